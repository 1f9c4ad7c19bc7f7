"""The FastAPI application.

Endpoints are plain functions: FastAPI runs them in its threads, and the store is synchronous.

Invariant: every endpoint under /v1 depends on `access`, which has the tenant from the credential.
"""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime
from time import perf_counter
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Query, Request, Response
from prometheus_client import CollectorRegistry, Histogram, start_http_server
from pydantic import AwareDatetime

from cloud_api import administration, problems, registered
from cloud_api.access import Access, access, verifier
from cloud_api.bounds import BodyLimit, TenantBudget
from cloud_api.models import GatewayRow, Health, MovementRow, Page, StockRow
from cloud_api.pages import After, Limit, Text, document, exact_query, rows_of
from cloud_api.settings import ApiSettings
from cloud_store.base.connection import READ_ONLY_OPTIONS
from cloud_store.base.database import Database
from cloud_store.reports import history, stock_levels
from wire_protocol.entries import MovementKind


def create(settings: ApiSettings | None = None) -> FastAPI:
    """Make the application. Nothing is opened until it starts."""
    chosen = settings or ApiSettings()
    database = Database(
        chosen.database_url,
        application="stocktide-api",
        role="stocktide_api",
        options=READ_ONLY_OPTIONS,
        connections_max=chosen.connections_max,
        wait_s_max=chosen.connection_wait_s_max,
    )

    registry = CollectorRegistry()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        with database, _metrics_served(registry, chosen):
            yield

    app = FastAPI(
        title="Stocktide",
        version="1",
        lifespan=lifespan,
        description="Stock, movements and gateways of one tenant.",
        dependencies=[Depends(exact_query)],
    )
    app.state.database, app.state.settings, app.state.verifier = database, chosen, verifier(chosen)
    app.state.budget = TenantBudget(chosen.connections_per_tenant_max, chosen.database_share_per_tenant)
    problems.install(app)
    app.add_middleware(
        BodyLimit,
        bytes_max=chosen.body_bytes_max,
        refuse=problems.too_long(chosen.body_bytes_max),
        unusable=problems.unusable,
    )
    _measure(app, registry)
    app.get("/healthz", tags=["operation"], summary="The process runs")(_healthz)
    app.get("/readyz", tags=["operation"], summary="The database answers", responses=problems.RESPONSES)(_readyz)
    for path, endpoint, summary in (
        ("/v1/stock", _stock, "What is on hand, now or in the past"),
        ("/v1/movements", _movements, "What was moved, newest first"),
        ("/v1/gateways", _gateways, "Gateways and how far their streams are"),
    ):
        app.get(path, tags=["inventory"], summary=summary, responses=problems.RESPONSES)(endpoint)
    registered.install(app)
    administration.install(app)
    return app


Stock = Annotated[Access, access("stock:read")]
Movements = Annotated[Access, access("movements:read")]
Gateways = Annotated[Access, access("gateways:read")]
At = Annotated[
    AwareDatetime | None,
    Query(description="What was truly on hand at this time (ISO 8601 with a zone), as well as it is known."),
]
KnownAt = Annotated[
    AwareDatetime | None,
    Query(description="Only what had been received by this time; with `at` it repeats a report as it was."),
]


def _healthz() -> Health:
    return Health(status="ok")


def _readyz(request: Request) -> Health:
    with request.app.state.database.connection() as connection:
        stock_levels.totals(connection)
    return Health(status="ok")


def _stock(
    request: Request,
    reader: Stock,
    *,
    site: Text = None,
    sku: Text = None,
    location: Text = None,
    virtual: bool = False,
    zero: bool = False,
    at: At = None,
    known_at: KnownAt = None,
    limit: Limit = None,
    after: After = None,
) -> Page[StockRow]:
    wanted = stock_levels.StockFilter(
        tenant=reader.tenant, site=site, sku=sku, location=location, virtual=virtual, zero=zero
    )
    if at is None and known_at is None:
        page = stock_levels.stock(reader.connection, wanted, limit=rows_of(request, limit), after=after)
    else:
        as_of = history.AsOf(at, known_at).require_past(datetime.now(UTC))
        page = history.stock(reader.connection, wanted, as_of, limit=rows_of(request, limit), after=after)
    return Page[StockRow].model_validate(document(page))


def _movements(
    request: Request,
    reader: Movements,
    *,
    site: Text = None,
    sku: Text = None,
    location: Text = None,
    gateway: Text = None,
    kind: MovementKind | None = None,
    since: AwareDatetime | None = None,
    until: AwareDatetime | None = None,
    limit: Limit = None,
    after: After = None,
) -> Page[MovementRow]:
    wanted = stock_levels.MovementFilter(
        tenant=reader.tenant,
        site=site,
        sku=sku,
        location=location,
        gateway=gateway,
        kind=kind,
        since=since,
        until=until,
    )
    page = stock_levels.movements(reader.connection, wanted, limit=rows_of(request, limit), after=after)
    return Page[MovementRow].model_validate(document(page))


def _gateways(
    request: Request, reader: Gateways, *, site: Text = None, limit: Limit = None, after: After = None
) -> Page[GatewayRow]:
    page = stock_levels.gateways(
        reader.connection, limit=rows_of(request, limit), tenant=reader.tenant, site=site, after=after
    )
    return Page[GatewayRow].model_validate(document(page))


def _measure(app: FastAPI, registry: CollectorRegistry) -> None:
    """Time every request by route."""
    seconds = Histogram("stocktide_api_request_seconds", "Requests", ["route", "status"], registry=registry)

    @app.middleware("http")
    async def timed(request: Request, call_next: Any) -> Response:
        began = perf_counter()
        response: Response = await call_next(request)
        route = getattr(request.scope.get("route"), "path", "unknown")
        seconds.labels(route, response.status_code).observe(perf_counter() - began)
        return response


@contextmanager
def _metrics_served(registry: CollectorRegistry, settings: ApiSettings) -> Iterator[None]:
    """Serve the figures on a port of their own: how busy others are is no tenant's business."""
    if settings.metrics_port is None:
        yield
        return
    server, thread = start_http_server(settings.metrics_port, settings.metrics_host, registry)
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
