"""What one request, and one tenant's requests together, may cost this process.

A tenant's requests hold a share of the database connections and no more, and spend a budget of the database's time, so
that one tenant's expensive questions are not everybody's wait. A dashboard's page may ask a few cheap things at once; a
tenant whose questions are dear holds one connection, and so one of the server's cores. A body ends at its bound while
it arrives, before anybody has looked at the credential.
"""

import time
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, Final

from wire_protocol import strict_json

TENANTS_REMEMBERED_MAX: Final = 10_000
BURST_S: Final = 20.0  # of the budget's refill that may be spent at once
SPENT: Final = 0.5  # of the burst; a tenant that has spent so much asks one thing at a time

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]


class TenantBusy(Exception):
    """A tenant's requests hold, or have spent, what they may. `retry_after_s` says when to ask again."""

    def __init__(self, message: str, retry_after_s: int) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


@dataclass(slots=True)
class _Use:
    """What a tenant's requests hold and may still spend."""

    left_s: float
    at_s: float
    held: int = 0


@dataclass(slots=True)
class TenantBudget:
    """Connections that a tenant may hold at a time, and seconds of the database's work for each second. Thread-safe.

    Args:
        connections_max: of a tenant at a time; one, when it has spent much of its time.
        share: seconds of database time that a tenant may spend in a second, on average.
        now_s: a clock that is never set.
    """

    connections_max: int
    share: float
    now_s: Callable[[], float] = time.monotonic
    _uses: dict[int, _Use] = field(default_factory=dict)
    _lock: Lock = field(default_factory=Lock)

    @contextmanager
    def spending(self, tenant_id: int) -> Iterator[None]:
        """A connection's work for a tenant.

        Raises:
            TenantBusy: it holds as many connections as it may, or has spent its time.
        """
        began_s = self._begin(tenant_id)
        try:
            yield
        finally:
            self._end(tenant_id, began_s)

    def _begin(self, tenant_id: int) -> float:
        with self._lock:
            now_s, most_s = self.now_s(), BURST_S * self.share
            use = self._uses.pop(tenant_id, None) or _Use(most_s, now_s)
            use.left_s = min(most_s, use.left_s + (now_s - use.at_s) * self.share)
            use.at_s = now_s
            self._uses[tenant_id] = use
            self._forget()
            if use.held >= (self.connections_max if use.left_s > most_s * (1 - SPENT) else 1):
                raise TenantBusy(f"{use.held} requests of the tenant are at work; ask when one has its answer.", 1)
            if use.left_s <= 0:
                wait_s = 1 + int(-use.left_s / self.share)
                raise TenantBusy("The tenant's requests have spent its share of the database's time.", wait_s)
            use.held += 1
            return now_s

    def _end(self, tenant_id: int, began_s: float) -> None:
        with self._lock:
            use = self._uses[tenant_id]
            use.held -= 1
            use.left_s -= self.now_s() - began_s

    def _forget(self) -> None:
        if len(self._uses) > TENANTS_REMEMBERED_MAX:
            idle = next((tenant for tenant, use in self._uses.items() if not use.held), None)
            if idle is not None:
                del self._uses[idle]


class BodyLimit:
    """ASGI middleware: ends a request whose body is longer than it may be, while it arrives.

    Args:
        app: what is asked.
        bytes_max: of a body.
        refuse: answers a request that is too long.
        unusable: makes the answer to a body in which a name stands twice; the parser would take the last silently.
    """

    def __init__(
        self, app: Application, bytes_max: int, refuse: Application, unusable: Callable[[str], Application]
    ) -> None:
        self._app, self._bytes_max, self._refuse, self._unusable = app, bytes_max, refuse, unusable

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if declared.isdigit() and int(declared) > self._bytes_max:
            await self._refuse(scope, receive, send)
            return
        body, received = bytearray(), False
        # Read here, before the application does: it would read all of it, with a credential or without.
        while not received:
            message = await receive()
            if message["type"] != "http.request":
                return  # it has gone
            body += message.get("body", b"")
            if len(body) > self._bytes_max:
                await self._refuse(scope, receive, send)
                return
            received = not message.get("more_body", False)
        if (ambiguous := _ambiguous(body)) is not None:
            await self._unusable(ambiguous)(scope, receive, send)
            return

        async def replay() -> Message:
            nonlocal received
            if received:
                received = False
                return {"type": "http.request", "body": bytes(body), "more_body": False}
            return await receive()

        await self._app(scope, replay, send)


def _ambiguous(body: bytes | bytearray) -> str | None:
    try:
        strict_json.load(bytes(body or b"null"))
    except strict_json.RepeatedName as error:
        return str(error)
    except (ValueError, RecursionError):
        return None  # the endpoint that reads it says what is wrong
    return None
