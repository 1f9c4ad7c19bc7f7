"""Gateways whose live connection is to be ended, because they or their certificates were revoked.

Invariant: a revocation stays due until a worker notes that it has ended the connection; enabling the gateway again does
not take it back.
"""

from collections.abc import Iterable
from datetime import datetime
from typing import Final, NamedTuple

from cloud_store.base import sql
from cloud_store.base.connection import translated
from cloud_store.base.session import Session

_SQL: Final = sql.load("revocations")


class Cut(NamedTuple):
    """A gateway to cut, and since when."""

    gateway: str
    asked_at: datetime


class RevocationStore(Session):
    """What a worker needs, over one connection. Not thread-safe: one call at a time.

    Every method raises DatabaseUnavailable when the database is away.
    """

    def due(self, shards: Iterable[int], *, limit: int) -> list[Cut]:
        """Gateways of these shards that are to be cut, those that wait longest first."""
        with translated():
            parameters = {"shards": sorted(shards), "limit": limit}
            return [Cut(*row) for row in self._connected().execute(_SQL["due"], parameters)]

    def done(self, cut: Cut) -> None:
        """Its connection was ended."""
        with translated():
            self._connected().execute(_SQL["done"], {"name": cut.gateway, "asked_at": cut.asked_at})
