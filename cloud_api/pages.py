"""What every endpoint that lists has in common: the parameters of a page, and its document."""

from typing import Annotated, Any

from fastapi import Query, Request

from cloud_store.reports.paging import PAGE_ROWS_MAX, RowPage
from wire_protocol.names import TEXT_CHARS_MAX, TEXT_PATTERN

Text = Annotated[str | None, Query(max_length=TEXT_CHARS_MAX, pattern=TEXT_PATTERN)]
After = Annotated[str | None, Query(max_length=512, description="`next` of the page before.")]
Limit = Annotated[int | None, Query(ge=1, le=PAGE_ROWS_MAX, description="Rows in the page at most.")]


def rows_of(request: Request, limit: int | None) -> int:
    """How many rows the page has at most."""
    usual: int = request.app.state.settings.page_rows_default
    return usual if limit is None else limit


def document(page: RowPage) -> dict[str, Any]:
    """The page as it is sent."""
    return {"items": page.rows, "next": page.after}
