"""How a request gets to its tenant's rows, and how many requests a tenant may make.

Invariant: the tenant is set for one transaction, from a credential; outside of it the session sees nothing.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, NamedTuple

from cloud_store.base import sql
from cloud_store.base.connection import Connection

_SQL: Final = sql.load("admission")


class RateLimit(NamedTuple):
    """Where a tenant stands in the current minute."""

    requests_max: int
    requests: int
    reset_s: int

    @property
    def remaining(self) -> int:
        """Requests that are left in this minute."""
        return max(0, self.requests_max - self.requests)

    @property
    def exceeded(self) -> bool:
        """Whether the request that was just counted is one too many."""
        return self.requests > self.requests_max


@contextmanager
def as_tenant(connection: Connection, tenant_id: int, *, actor: str, writing: bool = False) -> Iterator[None]:
    """A transaction that sees one tenant; it only reads, and all of one moment, unless it is `writing`."""
    with connection.transaction():
        connection.execute(_SQL["writing" if writing else "reading"])
        connection.execute(_SQL["enter"], {"tenant_id": tenant_id, "actor": actor})
        yield


def tenant_id(connection: Connection, tenant: str) -> int | None:
    """The id of a tenant that a verified token names."""
    row = connection.execute(_SQL["tenant_named"], {"tenant": tenant}).fetchone()
    return None if row is None else row[0]


def count_request(connection: Connection, tenant_id: int, *, usual_per_minute: int) -> RateLimit:
    """Count a request of a tenant; all API processes share the count. A quota of the tenant's replaces the usual."""
    with as_tenant(connection, tenant_id, actor="", writing=True):
        row = connection.execute(_SQL["count"], {"usual": usual_per_minute}).fetchone()
    assert row is not None  # noqa: S101 - a function with OUT parameters gives one row
    return RateLimit(*row)
