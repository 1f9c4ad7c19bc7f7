"""The API as it is served: uvicorn on a free port, plain HTTP requests."""

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NamedTuple
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import Request, urlopen

import uvicorn
from fastapi import FastAPI

from cloud_store.base.connection import Connection
from cloud_store.tenancy import api_keys, registry
from cloud_store.tenancy.permissions import Role
from testbed.eventually import eventually


class Answer(NamedTuple):
    """An HTTP response."""

    status: int
    content_type: str
    text: str
    headers: Mapping[str, str]

    def json(self) -> Any:
        """The body as a document."""
        return json.loads(self.text)


class Client:
    """Asks one server."""

    def __init__(self, base: str) -> None:
        self.base = base

    @property
    def port(self) -> int:
        """Where the server listens on loopback."""
        return int(self.base.rpartition(":")[2])

    def get(self, path: str, headers: Mapping[str, str] | None = None, **query: object) -> Answer:
        """GET a path; an error status is an answer too."""
        return self.ask("GET", path + (f"?{urlencode(query)}" if query else ""), headers)

    def ask(self, method: str, path: str, headers: Mapping[str, str] | None = None, document: Any = None) -> Answer:
        """A request, with a JSON body if there is a document."""
        body = None if document is None else json.dumps(document).encode()
        given = {**(headers or {}), **({} if body is None else {"Content-Type": "application/json"})}
        request = Request(self.base + path, data=body, headers=given, method=method)  # noqa: S310 - our own server
        try:
            response = urlopen(request, timeout=60)  # noqa: S310 - as above
        except HTTPError as error:
            response = error
        with response:
            text = response.read().decode()
            return Answer(response.status, response.headers["content-type"], text, response.headers)


def key(connection: Connection, tenant: str, role: Role = "admin", days: float = 1, **options: Any) -> dict[str, str]:
    """The headers of somebody with a new key."""
    tenant_id = registry.tenant_id(connection, tenant)
    made = api_keys.create(
        connection, tenant_id, name=f"{role} of a test", role=role, lifetime=timedelta(days=days), **options
    )
    return {"Authorization": f"Bearer {made.key}"}


@contextmanager
def served(app: FastAPI) -> Iterator[Client]:
    """Serve an application while the block runs."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", lifespan="on"))
    thread = threading.Thread(target=server.run, name="api")
    thread.start()
    try:
        eventually(lambda: server.started or not thread.is_alive(), "uvicorn is ready or has given up")
        port = server.servers[0].sockets[0].getsockname()[1]
        yield Client(f"http://127.0.0.1:{port}")
    finally:
        server.should_exit = True
        thread.join()
