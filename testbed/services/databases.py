"""Throw-away databases on a PostgreSQL server, copied from a template that was filled once.

Invariant: under its final name a template is complete and nobody is connected to it.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, LiteralString
from urllib.parse import urlsplit

import psycopg
from psycopg import sql

# One lock id for "a template is being made", held by the first pytest-xdist worker to come.
TEMPLATE_LOCK: Final = 7265312


def url_of(server_url: str, name: str) -> str:
    """The URL of another database of the same server."""
    return urlsplit(server_url)._replace(path=f"/{name}").geturl()


@contextmanager
def database(server_url: str, name: str, *, template: str = "template0") -> Iterator[str]:
    """Create a database as a copy of another, give its URL, and drop it in the end, even with clients connected.

    The default template is empty, and the only one of PostgreSQL's own that TimescaleDB's scheduler cannot enter.
    """
    with psycopg.connect(server_url, autocommit=True) as admin:
        admin.execute(_statement("CREATE DATABASE {} TEMPLATE {}", name, template))
    try:
        yield url_of(server_url, name)
    finally:
        drop(server_url, name)


def drop(server_url: str, name: str) -> None:
    """Drop a database if it exists."""
    with psycopg.connect(server_url, autocommit=True) as admin:
        admin.execute(_statement("DROP DATABASE IF EXISTS {} WITH (FORCE)", name))


def ensure_template(server_url: str, name: str, fill: Callable[[str], object]) -> None:
    """Create a database to copy others from and fill it, unless it exists. `fill` is given its URL."""
    with psycopg.connect(server_url, autocommit=True) as admin:
        admin.execute("SELECT pg_advisory_lock(%s)", [TEMPLATE_LOCK])
        if admin.execute("SELECT 1 FROM pg_database WHERE datname = %s", [name]).fetchone():
            return
        unfinished = f"{name}_unfinished"
        drop(server_url, unfinished)
        admin.execute(_statement("CREATE DATABASE {} TEMPLATE template0", unfinished))
        fill(url_of(server_url, unfinished))
        # A database can be copied only while nobody is in it, and TimescaleDB's scheduler enters any that lets it.
        admin.execute(_statement("ALTER DATABASE {} ALLOW_CONNECTIONS false", unfinished))
        admin.execute("SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE datname = %s", [unfinished])
        admin.execute(_statement("ALTER DATABASE {} RENAME TO {}", unfinished, name))


def _statement(form: LiteralString, *names: str) -> sql.Composed:
    return sql.SQL(form).format(*(sql.Identifier(name) for name in names))
