"""Every SQL statement of the ledger, by name, read once from the files beside this module."""

import re
from functools import cache
from importlib.resources import files


@cache
def _file(name: str) -> str:
    return (files(__name__) / f"{name}.sql").read_text(encoding="utf-8")


@cache
def _statements() -> dict[str, str]:
    named: dict[str, str] = {}
    for group in (
        "ledger",
        "derivation",
        "outbox",
        "site",
        "proof",
        "queries",
        "twin",
        "command",
        "catalog",
        "firmware",
    ):
        for block in re.split(r"^-- name: ", _file(group), flags=re.MULTILINE)[1:]:
            name, _, body = block.partition("\n")
            named[name.strip()] = body.strip().rstrip(";")
    return named


def statement(name: str) -> str:
    """The statement of that name."""
    return _statements()[name]


def script(name: str) -> list[str]:
    """The statements of a whole file, in order."""
    return [part.strip() for part in _file(name).split(";\n") if part.strip()]
