"""Named SQL statements, read once from `queries/*.sql`.

A file holds the statements about one noun. Each begins with `-- name: its_name`; the comment lines after that say
why it is the way it is.

Invariant: no statement is ever built from strings at run time; values travel as parameters.
"""

import re
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from types import MappingProxyType
from typing import Final

_NAME: Final = re.compile(r"^-- name: (\w+)\n", re.MULTILINE)


@cache
def load(noun: str) -> Mapping[str, bytes]:
    """The statements of `queries/{noun}.sql` by name. Bytes, because psycopg takes only literals or bytes."""
    text = files("cloud_store").joinpath("queries", f"{noun}.sql").read_text(encoding="utf-8")
    parts = _NAME.split(text)[1:]
    return MappingProxyType(
        {name: statement.strip().encode() for name, statement in zip(parts[::2], parts[1::2], strict=True)}
    )
