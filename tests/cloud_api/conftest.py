"""The API as it is served: uvicorn on a free port, plain HTTP requests."""

import json
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import Request, urlopen

import uvicorn
from fastapi import FastAPI


class Answer(NamedTuple):
    """An HTTP response."""

    status: int
    content_type: str
    text: str

    def json(self) -> Any:
        """The body as a document."""
        return json.loads(self.text)


class Client:
    """Asks one server."""

    def __init__(self, base: str) -> None:
        self._base = base

    def get(self, path: str, headers: Mapping[str, str] | None = None, **query: object) -> Answer:
        """GET a path; an error status is an answer too."""
        url = self._base + path + (f"?{urlencode(query)}" if query else "")
        try:
            response = urlopen(Request(url, headers=dict(headers or {})), timeout=10)  # noqa: S310 - our own server
        except HTTPError as error:
            response = error
        with response:
            return Answer(response.status, response.headers["content-type"], response.read().decode())


@contextmanager
def served(app: FastAPI) -> Iterator[Client]:
    """Serve an application while the block runs."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", lifespan="on"))
    thread = threading.Thread(target=server.run, name="api")
    thread.start()
    try:
        while not server.started and thread.is_alive():
            time.sleep(0.01)  # uvicorn sets no event when it is ready
        port = server.servers[0].sockets[0].getsockname()[1]
        yield Client(f"http://127.0.0.1:{port}")
    finally:
        server.should_exit = True
        thread.join()
