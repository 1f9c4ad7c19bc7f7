"""Settings of the HTTP API: one documented table, read from `STOCKTIDE_API_*` variables."""

from typing import Self

from pydantic import AliasChoices, Field, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from cloud_api.oidc import Algorithm


class ApiSettings(BaseSettings):
    """The settings of the API."""

    model_config = SettingsConfigDict(env_prefix="STOCKTIDE_API_", extra="ignore", frozen=True, populate_by_name=True)

    database_url: str = Field(
        "postgresql://postgres@127.0.0.1:5432/stocktide",
        validation_alias=AliasChoices("STOCKTIDE_API_DATABASE_URL", "STOCKTIDE_DATABASE_URL"),
        description="PostgreSQL or TimescaleDB, as a URL; STOCKTIDE_DATABASE_URL when absent",
    )
    host: str = Field("127.0.0.1", description="Address to listen on")
    port: int = Field(8080, ge=0, le=65535, description="TCP port to listen on")
    metrics_port: int | None = Field(None, ge=0, le=65535, description="TCP port of /metrics; absent for none")
    metrics_host: str = Field("127.0.0.1", description="Address that /metrics listens on")
    connections_max: int = Field(8, ge=1, le=256, description="Connections to the database at most")
    connection_wait_s_max: float = Field(5.0, gt=0, description="Seconds a request waits for a connection")
    connections_per_tenant_max: int = Field(3, ge=1, le=256, description="Of these, that one tenant's requests hold")
    database_share_per_tenant: float = Field(
        0.5, gt=0, le=256, description="Seconds of database time that a tenant may spend in a second, on average"
    )
    body_bytes_max: int = Field(64 * 1024, ge=1024, description="Bytes in the body of a request at most")
    page_rows_default: int = Field(100, ge=1, le=1000, description="Rows in a page when the request does not say")
    requests_per_minute_max: int = Field(
        600, ge=1, le=1_000_000, description="Requests of a tenant per clock minute, unless its quota says otherwise"
    )
    oidc_issuer: str | None = Field(None, description="Issuer of bearer tokens, as in `iss`; absent: only API keys")
    oidc_audience: str | None = Field(None, description="Audience that tokens must name, as in `aud`")
    oidc_jwks_url: str | None = Field(None, pattern=r"^https?://", description="Where the issuer publishes its keys")
    oidc_algorithms: list[Algorithm] = Field(
        ["RS256", "ES256"], min_length=1, description="Signature algorithms accepted; asymmetric ones only"
    )
    oidc_tenant_claim: str = Field("stocktide_tenant", description="Claim with the tenant's name, or a list of them")
    oidc_role_claim: str = Field(
        "stocktide_role", description="Claim with the role, or a list of which the highest counts"
    )
    oidc_keys_keep_s: float = Field(3600.0, gt=0, description="Seconds for which the issuer's keys are kept")
    oidc_keys_refetch_s: float = Field(30.0, gt=0, description="Seconds between two fetches for unknown key ids")

    @model_validator(mode="after")
    def _whole(self) -> Self:
        """Issuer, audience and keys go together: a token is never checked by half."""
        given = [self.oidc_issuer, self.oidc_audience, self.oidc_jwks_url]
        if any(given) and not all(given):
            raise ValueError("oidc_issuer, oidc_audience and oidc_jwks_url are set together or not at all")
        return self
