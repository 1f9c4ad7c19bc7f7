"""`stocktide cloud`: the commands of the ingest worker and of the HTTP API, side by side."""

from cloud_api.cli import app as api
from cloud_cli.app import app

app.registered_commands += api.registered_commands

__all__ = ["app"]
