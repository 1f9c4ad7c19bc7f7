"""What every endpoint that lists has in common: the parameters of a page, and its document.

Invariant: a parameter that an endpoint does not know, or that is there twice, is refused: with a filter that was
misspelt the answer would be everything.
"""

from typing import Annotated, Any

from fastapi import Query, Request
from fastapi.exceptions import RequestValidationError

from cloud_store.reports.paging import PAGE_ROWS_MAX, RowPage
from wire_protocol.names import TEXT_CHARS_MAX, TEXT_PATTERN

Text = Annotated[str | None, Query(max_length=TEXT_CHARS_MAX, pattern=TEXT_PATTERN)]
After = Annotated[str | None, Query(max_length=512, description="`next` of the page before.")]
Limit = Annotated[int | None, Query(ge=1, le=PAGE_ROWS_MAX, description="Rows in the page at most.")]


def exact_query(request: Request) -> None:
    """Refuse a query with a parameter that is unknown or there twice; a dependency of every endpoint."""
    operation = request.app.openapi()["paths"][request.scope["route"].path][request.method.lower()]
    known = {each["name"] for each in operation.get("parameters", ()) if each["in"] == "query"}
    names = [name for name, _ in request.query_params.multi_items()]
    for name in names:
        if name not in known:
            listed = f"Known are {', '.join(sorted(known))}" if known else "This endpoint has none"
            raise _refused(name, f"There is no such parameter. {listed}")
        if names.count(name) > 1:
            raise _refused(name, "It is there more than once")


def _refused(name: str, message: str) -> RequestValidationError:
    return RequestValidationError([{"type": "query", "loc": ("query", name[:TEXT_CHARS_MAX]), "msg": message}])


def rows_of(request: Request, limit: int | None) -> int:
    """How many rows the page has at most."""
    usual: int = request.app.state.settings.page_rows_default
    return usual if limit is None else limit


def document(page: RowPage) -> dict[str, Any]:
    """The page as it is sent."""
    return {"items": page.rows, "next": page.after}
