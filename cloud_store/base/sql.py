"""The cloud's SQL statements: a file of `queries` for each noun, and names of its own in each."""

from collections.abc import Mapping
from functools import cache
from types import MappingProxyType

from command_line import sql


@cache
def load(noun: str) -> Mapping[str, bytes]:
    """The statements of `queries/{noun}.sql` by name. Bytes, because psycopg takes only literals or bytes."""
    named = sql.named("cloud_store", f"queries/{noun}.sql")
    return MappingProxyType({name: statement.encode() for name, statement in named.items()})
