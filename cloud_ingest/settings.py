"""Settings of the ingest worker: one documented table, read from `STOCKTIDE_*` variables.

Invariant: every bound of the worker is here, with its unit at the end of its name.
"""

from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from cloud_ingest.defaults import DATABASE_URL, MQTT_URL


class IngestSettings(BaseSettings):
    """The settings of an ingest worker."""

    model_config = SettingsConfigDict(env_prefix="STOCKTIDE_", extra="ignore", frozen=True)

    database_url: str = Field(DATABASE_URL, description="PostgreSQL or TimescaleDB, as a URL")
    mqtt_url: str = Field(MQTT_URL, description="Broker: mqtt:// or mqtts://[user:password@]host[:port]")
    mqtt_version: Literal["5", "3.1.1"] = Field("5", description="MQTT protocol version that the broker speaks")
    mqtt_ca_file: str | None = Field(None, description="CA certificates for mqtts://, PEM; the system's when absent")
    mqtt_cert_file: str | None = Field(None, description="Our certificate for mqtts://, PEM; absent for a password")
    mqtt_key_file: str | None = Field(None, description="The key of that certificate, PEM")
    mqtt_keepalive_s: int = Field(30, ge=5, le=600, description="Seconds of silence before the link is probed")
    reconnect_delay_s_max: float = Field(20.0, gt=0, description="Longest pause between two connection attempts")
    worker_name: str = Field("ingest", max_length=48, description="Name of this worker in logs and in the database")
    database_connections_max: int = Field(
        2, ge=1, le=32, description="Connections for what is beside merging; merging and leases have one each"
    )
    metrics_port: int | None = Field(None, ge=0, le=65535, description="TCP port of /metrics; absent for none")
    metrics_host: str = Field("127.0.0.1", description="Address that /metrics listens on")
    window_frames_max: int = Field(16, ge=1, le=1024, description="Frames a gateway may have in flight at best")
    merge_lanes: int = Field(
        1,
        ge=1,
        le=16,
        description="Merges at a time, each on a connection of its own; a site's in the same one",
    )
    batch_frames_max: int = Field(200, ge=1, description="Frames merged in one go at most")
    batch_entries_max: int = Field(20_000, ge=500, description="Entries merged in one transaction at most")
    batch_delay_ms: int = Field(10, ge=0, le=1000, description="Milliseconds a lone frame waits for others")
    bad_frames_per_minute_max: int = Field(
        64, ge=1, description="Frames of a gateway that cannot be used, in a minute, before it is ignored for a while"
    )
    inbox_frames_target: int = Field(400, ge=1, description="Frames waiting at which windows are down to one frame")
    inbox_frames_max: int = Field(4096, ge=16, description="Frames waiting to be merged at most")
    inbox_bytes_max: int = Field(64 * 1024 * 1024, ge=1 << 20, description="Bytes of frames waiting to be merged")
    outgoing_messages_max: int = Field(10_000, ge=100, description="Acknowledgements waiting to be published")
    outgoing_bytes_max: int = Field(
        64 * 1024 * 1024, ge=1 << 20, description="Bytes of messages to gateways waiting to be published"
    )
    publishers: int = Field(32, ge=1, le=256, description="Acknowledgements published at the same time")
    lease_poll_s: float = Field(1.0, gt=0, description="Seconds between two looks at the shard leases")
    asks_per_s_max: int = Field(500, ge=1, description="Gateways asked for their frames per second after a takeover")
    site_asks_waiting_max: int = Field(10_000, ge=100, description="Gateways waiting for frames of their site's others")
    catalog_requests_waiting_max: int = Field(10_000, ge=100, description="Gateways waiting for a catalogue page")
    catalog_notices_waiting_max: int = Field(
        100_000, ge=100, description="Gateways waiting to be notified of a newer catalogue"
    )
    firmware_requests_waiting_max: int = Field(10_000, ge=100, description="Gateways waiting for a piece of an image")
    reports_waiting_max: int = Field(10_000, ge=100, description="Reported twins waiting to be stored")
    replies_waiting_max: int = Field(10_000, ge=100, description="Replies to commands waiting to be stored")
    site_answer_bytes_max: int = Field(512 * 1024, ge=1 << 18, description="Bytes of frames in one answer to a gateway")
    site_peers_max: int = Field(64, ge=0, description="Gateways of a site that are notified of each frame at once")
    proofs_waiting_max: int = Field(1_000, ge=10, description="Gateways whose stock waits to be compared")
    proof_scan_s: float = Field(600.0, ge=0, description="Seconds between two scans of a site's balances")
    proof_answer_s_max: float = Field(20.0, gt=0, description="Seconds a gateway is waited for in a comparison")
    twins_per_s_max: int = Field(200, ge=1, description="Twins pushed to gateways per second")
    firmware_chunks_per_s_max: float = Field(
        200.0, gt=0, description="Pieces of firmware images sent to gateways per second"
    )
    status_waiting_max: int = Field(10_000, ge=100, description="Gateway statuses waiting to be stored")
    waiting_bytes_max: int = Field(
        64 * 1024 * 1024,
        ge=1 << 20,
        description="Bytes of messages waiting for the database, of each kind: twin reports, replies, asks, dead "
        "letters, frames for other gateways of a site",
    )
    refusal_quiet_s: float = Field(10.0, ge=0, description="Seconds a refused gateway is ignored before judged again")
    refused_gateways_max: int = Field(10_000, ge=1, description="Refused gateways remembered")
    ca_dir: Path | None = Field(None, description="Directory of the certificate authority, when its key is here")
    signer_command: str | None = Field(None, description="Command that signs, when the authority's key is elsewhere")
    ca_bundle_file: Path | None = Field(None, description="With a signer command: the authorities to trust, PEM")
    signer_answer_s_max: float = Field(10.0, gt=0, description="Seconds a signer command may take")
    certificate_days: float = Field(90.0, gt=0, le=825, description="Days a gateway's certificate is valid")
    gateway_brokers: str = Field(
        "", description="Brokers for enrolled gateways: mqtts:// addresses with commas between"
    )
    claims_waiting_max: int = Field(2_000, ge=1, description="Claims and renewals waiting to be answered")
    claims_per_s_max: float = Field(100.0, gt=0, description="Claims and renewals answered a second")
    renewals_per_day_max: int = Field(10, ge=1, description="Certificates a gateway is given a day without a claim")
    drain_s_max: float = Field(10.0, gt=0, description="Seconds for finishing work after SIGTERM")
    log_format: Literal["console", "json"] = Field("json", description="How log events are written")

    @property
    def brokers_of_gateways(self) -> tuple[str, ...]:
        """`gateway_brokers`, one by one."""
        return tuple(address.strip() for address in self.gateway_brokers.split(",") if address.strip())
