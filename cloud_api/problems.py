"""Errors as problem documents (RFC 9457): one shape for everything that goes wrong.

Invariant: a problem tells what to do next and never what the database said inside.
"""

from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from cloud_store.base.errors import (
    DatabaseUnavailable,
    InvalidCursor,
    InvalidName,
    NotMigrated,
    QuotaExceeded,
    StoreError,
    UnknownName,
)
from cloud_store.reports.history import InvalidAsOf, TooMuchHistory
from wire_protocol.problems import sentence

MEDIA_TYPE = "application/problem+json"
_STATUS: dict[type[StoreError], HTTPStatus] = {
    InvalidCursor: HTTPStatus.BAD_REQUEST,
    InvalidAsOf: HTTPStatus.BAD_REQUEST,
    TooMuchHistory: HTTPStatus.BAD_REQUEST,
    InvalidName: HTTPStatus.BAD_REQUEST,
    QuotaExceeded: HTTPStatus.FORBIDDEN,
    UnknownName: HTTPStatus.NOT_FOUND,
    DatabaseUnavailable: HTTPStatus.SERVICE_UNAVAILABLE,
    NotMigrated: HTTPStatus.SERVICE_UNAVAILABLE,
}


class Problem(BaseModel):
    """A problem document."""

    type: str = "about:blank"
    title: str = Field(examples=["Not Found"])
    status: int = Field(examples=[404])
    detail: str | None = Field(None, examples=["There is no tenant acme."])
    hint: str | None = None


RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"model": Problem, "content": {MEDIA_TYPE: {}}, "description": HTTPStatus(status).phrase}
    for status in (400, 401, 403, 404, 413, 422, 429, 503)
}


def install(app: FastAPI) -> None:
    """Answer every error of an application with a problem document."""
    app.add_exception_handler(StoreError, _store_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _invalid_request)


def _answer(status: int, detail: str | None, hint: str | None = None, headers: Any = None) -> JSONResponse:
    problem = Problem(title=HTTPStatus(status).phrase, status=status, detail=detail, hint=hint)
    return JSONResponse(
        problem.model_dump(exclude_none=True), status_code=status, media_type=MEDIA_TYPE, headers=headers
    )


def too_long(bytes_max: int) -> JSONResponse:
    """The answer to a body that is too long; it is an ASGI application. The connection ends: more is on its way."""
    detail = f"A body has at most {bytes_max} bytes."
    return _answer(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, detail, headers={"Connection": "close"})


def unusable(detail: str) -> JSONResponse:
    """The answer to a body that says two things; it is an ASGI application."""
    return _answer(HTTPStatus.UNPROCESSABLE_ENTITY, f"body.{detail}")


def _store_error(_: Request, error: Exception) -> JSONResponse:
    status = _STATUS.get(type(error), HTTPStatus.INTERNAL_SERVER_ERROR)  # type: ignore[arg-type]  # of StoreError only
    if status in {HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.INTERNAL_SERVER_ERROR}:
        # The driver's message names hosts and tables; the class's own sentence does not.
        return _answer(status, type(error).__doc__, headers={"Retry-After": "5"})
    return _answer(status, str(error), getattr(error, "hint", None))


def _http_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)  # noqa: S101 - installed for this class
    return _answer(error.status_code, error.detail, headers=error.headers)


def _invalid_request(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)  # noqa: S101 - installed for this class
    problem = error.errors()[0]
    where = ".".join(str(part) for part in problem["loc"])
    return _answer(HTTPStatus.UNPROCESSABLE_ENTITY, f"{where}: {sentence(problem)}")
