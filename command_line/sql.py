"""Named SQL statements, read from `.sql` files that lie in a package.

In a file of statements each begins with `-- name: its_name`; the comment lines after that say why it is the way it is.
A file of a schema is a script: statements without names, each ending with a semicolon at the end of a line.

Invariant: no statement is ever built from strings at run time; values travel as parameters.
Invariant: a name stands for one statement. Two of one name are refused, also when they are in different files.
"""

import re
from collections.abc import Mapping
from importlib.resources import files
from types import MappingProxyType
from typing import Final

from command_line.errors import StocktideError

_HEAD: Final = re.compile(r"^-- name:[ \t]*(.*?)[ \t]*\n", re.MULTILINE)
_NAME: Final = re.compile(r"[a-z][a-z0-9_]*")


class BadStatements(StocktideError):
    """A file of SQL statements cannot be used."""

    hint = "This is a defect of the program: each statement needs a name of its own, such as `-- name: insert_entry`."


def named(package: str, *paths: str) -> Mapping[str, str]:
    """The statements of some files of a package, by name, without the semicolon at their end.

    Args:
        package: the package that the files lie in, such as `cloud_store`.
        paths: the files below it, such as `queries/twins.sql`; they share one room of names.

    Raises:
        BadStatements: a name is there twice, or is none, or its statement is empty.
    """
    statements: dict[str, str] = {}
    found_in: dict[str, str] = {}
    for path in paths:
        parts = _HEAD.split(_read(package, path))[1:]
        for name, body in zip(parts[::2], parts[1::2], strict=True):
            statement = body.strip().rstrip(";").rstrip()
            if not _NAME.fullmatch(name) or not statement:
                raise BadStatements(f"{path} has a statement named {name!r} that cannot be used.")
            if name in statements:
                raise BadStatements(f"The statement {name} is in {found_in[name]} and in {path}.")
            statements[name], found_in[name] = statement, path
    return MappingProxyType(statements)


def script(package: str, path: str) -> list[str]:
    """The statements of a whole file, in order."""
    return [part.strip() for part in _read(package, path).split(";\n") if part.strip()]


def _read(package: str, path: str) -> str:
    return files(package).joinpath(*path.split("/")).read_text(encoding="utf-8")
