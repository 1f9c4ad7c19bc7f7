"""Every SQL statement of the ledger, by name, read once from the files beside this module."""

from collections.abc import Mapping
from functools import cache
from typing import Final

from command_line import sql

SCHEMA: Final = 6
"""The version of the schema: how many migrations there are (`edge_agent.ledger.schema`)."""
NOUNS: Final = (
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
    "desk",
)


@cache
def _statements() -> Mapping[str, str]:
    return sql.named(__name__, *(f"{noun}.sql" for noun in NOUNS))


def statement(name: str) -> str:
    """The statement of that name."""
    return _statements()[name]


def script(name: str) -> list[str]:
    """The statements of a whole file, in order."""
    return sql.script(__name__, f"{name}.sql")
