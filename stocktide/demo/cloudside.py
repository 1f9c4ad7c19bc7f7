"""What the demo reads of the cloud while it runs: through the HTTP API for stock, from the database for counts.

Invariant: nothing here writes.
"""

import asyncio
import json
import urllib.error
import urllib.parse
import urllib.request
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from cloud_store.base.connection import session
from cloud_store.reports import snapshots
from stocktide.demo.errors import DemoError

TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class Cloud:
    """Where the cloud's database and API are, and an API key of each tenant."""

    database_url: str
    api_url: str
    keys: dict[str, str] = field(default_factory=dict)

    async def is_ready(self) -> bool:
        """Whether the API answers and reaches its database."""
        try:
            await asyncio.to_thread(self._get, "/readyz")
        except DemoError:
            return False
        return True

    async def stored(self) -> Counter[str]:
        """Movements, counts and readings stored, by gateway."""
        return await asyncio.to_thread(self._stored)

    async def on_hand(self, tenant: str, site: str, sku: str, location: str) -> int | None:
        """On hand at one location, as a dashboard asks for it; None while the cloud knows nothing of it."""
        query = urllib.parse.urlencode({"site": site, "sku": sku, "location": location})
        page = await asyncio.to_thread(self._get, f"/v1/stock?{query}", tenant)
        rows = page["items"]
        return int(rows[0]["on_hand"]) if rows else None

    def _stored(self) -> Counter[str]:
        counted: Counter[str] = Counter()
        with session(self.database_url, application="stocktide-demo") as connection:
            for row in snapshots.entries(connection):
                if row.table != "reading":
                    counted[row.gateway] += row.rows
            for (_, gateway), readings in snapshots.readings(connection).items():
                counted[gateway] += readings
        return counted

    def _get(self, path: str, tenant: str | None = None) -> dict[str, Any]:
        headers = {} if tenant is None else {"Authorization": f"Bearer {self.keys[tenant]}"}
        request = urllib.request.Request(self.api_url + path, headers=headers)  # noqa: S310 - our own API on loopback
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:  # noqa: S310 - as above
                answer: dict[str, Any] = json.load(response)
        except urllib.error.URLError as error:
            raise DemoError(f"The API does not answer: {error}") from None
        return answer
