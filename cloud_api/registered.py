"""What is registered, and what needs somebody: items, sites, locations, alarms over HTTP."""

from typing import Annotated

from fastapi import FastAPI, Query, Request

from cloud_api import problems
from cloud_api.access import Access, access
from cloud_api.models import AlarmRow, ItemRow, LocationRow, Page, SiteRow
from cloud_api.pages import After, Limit, Text, document, rows_of
from cloud_store.merge.alarms import ADVICE, AlarmKind
from cloud_store.reports import listings
from cloud_store.reports.paging import RowPage
from wire_protocol.names import TEXT_CHARS_MAX, TEXT_PATTERN

Stock = Annotated[Access, access("stock:read")]
Alarms = Annotated[Access, access("alarms:read")]
Part = Annotated[str | None, Query(max_length=TEXT_CHARS_MAX, pattern=TEXT_PATTERN, description="A part of a name.")]


def install(app: FastAPI) -> None:
    """Add the endpoints."""
    for path, endpoint, summary, tag in (
        ("/v1/items", _items, "Items, stubs included; found by a part of SKU, name or GTIN", "inventory"),
        ("/v1/sites", _sites, "Sites", "inventory"),
        ("/v1/locations", _locations, "Places for goods", "inventory"),
        ("/v1/alarms", _alarms, "What an operator must look at, the latest first", "operation"),
    ):
        app.get(path, tags=[tag], summary=summary, responses=problems.RESPONSES)(endpoint)


def _items(
    request: Request, reader: Stock, *, search: Part = None, limit: Limit = None, after: After = None
) -> Page[ItemRow]:
    page = listings.items(reader.connection, reader.tenant, limit=rows_of(request, limit), after=after, part=search)
    return Page[ItemRow].model_validate(document(page))


def _sites(request: Request, reader: Stock, *, limit: Limit = None, after: After = None) -> Page[SiteRow]:
    page = listings.sites(reader.connection, reader.tenant, limit=rows_of(request, limit), after=after)
    return Page[SiteRow].model_validate(document(page))


def _locations(
    request: Request,
    reader: Stock,
    *,
    site: Text = None,
    search: Part = None,
    virtual: bool = False,
    limit: Limit = None,
    after: After = None,
) -> Page[LocationRow]:
    page = listings.locations(
        reader.connection,
        reader.tenant,
        limit=rows_of(request, limit),
        after=after,
        site=site,
        part=search,
        virtual=virtual,
    )
    return Page[LocationRow].model_validate(document(page))


def _alarms(
    request: Request, reader: Alarms, *, cleared: bool = False, limit: Limit = None, after: After = None
) -> Page[AlarmRow]:
    page = listings.alarms(
        reader.connection, reader.tenant, limit=rows_of(request, limit), after=after, cleared=cleared
    )
    rows = [row | {"advice": ADVICE[AlarmKind(row["kind"])]} for row in page.rows]
    return Page[AlarmRow].model_validate(document(RowPage(rows, page.after)))
