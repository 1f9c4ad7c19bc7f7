"""`stocktide cloud api`: serve the HTTP API."""

from typing import Annotated, Any

import typer

app = typer.Typer(no_args_is_help=False, pretty_exceptions_enable=False)


@app.callback()
def main() -> None:
    """The HTTP API."""


@app.command()
def api(
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="TCP port to listen on.")] = None,
    database_url: Annotated[str | None, typer.Option(help="The cloud's database.")] = None,
) -> None:
    """Serve the HTTP API until SIGTERM. Everything else is set by STOCKTIDE_API_* variables."""
    import uvicorn

    from cloud_api.app import create
    from cloud_api.settings import ApiSettings

    given: dict[str, Any] = {"host": host, "port": port, "database_url": database_url}
    settings = ApiSettings(**{name: value for name, value in given.items() if value is not None})
    uvicorn.run(create(settings), host=settings.host, port=settings.port, log_level="warning", access_log=False)
