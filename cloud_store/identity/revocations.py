"""Gateways whose live connection is to be ended, because they or their certificates were revoked.

Invariant: a revocation stays due until a worker notes that it has ended the connection; enabling the gateway again does
not take it back.
"""

from collections.abc import Iterable
from datetime import datetime
from typing import Final, NamedTuple

from cloud_store.base import sql
from cloud_store.base.connection import Connection

_SQL: Final = sql.load("revocations")


class PendingDisconnect(NamedTuple):
    """A gateway to cut, and since when."""

    gateway: str
    asked_at: datetime


def due(connection: Connection, shards: Iterable[int], *, limit: int) -> list[PendingDisconnect]:
    """Gateways of these shards that are to be cut, those that wait longest first."""
    parameters = {"shards": sorted(shards), "limit": limit}
    return [PendingDisconnect(*row) for row in connection.execute(_SQL["due"], parameters)]


def done(connection: Connection, cut: PendingDisconnect) -> None:
    """Its connection was ended."""
    connection.execute(_SQL["done"], {"name": cut.gateway, "asked_at": cut.asked_at})
