"""Settings of the HTTP API: one documented table, read from `STOCKTIDE_API_*` variables."""

from pydantic import AliasChoices, Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class ApiSettings(BaseSettings):
    """What the API can be told."""

    model_config = SettingsConfigDict(env_prefix="STOCKTIDE_API_", extra="ignore", frozen=True, populate_by_name=True)

    database_url: str = Field(
        "postgresql://postgres@127.0.0.1:5432/stocktide",
        validation_alias=AliasChoices("STOCKTIDE_API_DATABASE_URL", "STOCKTIDE_DATABASE_URL"),
        description="PostgreSQL or TimescaleDB, as a URL; STOCKTIDE_DATABASE_URL when absent",
    )
    host: str = Field("127.0.0.1", description="Address to listen on")
    port: int = Field(8080, ge=0, le=65535, description="TCP port to listen on")
    connections_max: int = Field(8, ge=1, le=256, description="Connections to the database at most")
    connection_wait_s_max: float = Field(5.0, gt=0, description="Seconds a request waits for a connection")
    page_rows_default: int = Field(100, ge=1, le=1000, description="Rows in a page when the request does not say")
