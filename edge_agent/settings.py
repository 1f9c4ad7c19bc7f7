"""Every setting of the edge agent: name, default, meaning, unit. docs/settings.md is checked against this table."""

import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from edge_agent.paths import default_ledger
from wire_protocol.address import without_password


class EdgeSettings(BaseSettings):
    """Settings of `stocktide edge run`; each is read from the environment with the prefix STOCKTIDE_EDGE_."""

    model_config = SettingsConfigDict(env_prefix="STOCKTIDE_EDGE_", extra="ignore")

    ledger: Annotated[Path, Field(default_factory=default_ledger, description="The ledger file.")]
    cloud_url: Annotated[
        str | None, Field(description="The cloud's broker, mqtt://[user:password@]host[:port]; none: work offline.")
    ] = None
    local_url: Annotated[str, Field(description="The gateway's own broker, where devices publish.")] = (
        "mqtt://127.0.0.1:1883"
    )
    local_ca_file: Annotated[
        Path | None, Field(description="Authorities the gateway's own broker is trusted by; none: the system's.")
    ] = None
    device_password_file: Annotated[
        Path | None, Field(description="The gateway's broker's password file, where keys of the twin's devices go.")
    ] = None
    broker_reload_command: Annotated[
        str | None, Field(description="Makes the gateway's broker read its password file again.")
    ] = None
    mqtt_version: Annotated[
        Literal["5", "3.1.1"], Field(description="MQTT version on both links; 3.1.1 for the embedded broker.")
    ] = "5"
    keepalive_s: Annotated[int, Field(ge=5, le=3600, description="MQTT keepalive on both links, seconds.")] = 30
    local_inflight_max: Annotated[
        int, Field(ge=1, le=10_000, description="Device messages the local broker may have unacknowledged.")
    ] = 2_000
    device_late_s_max: Annotated[
        int,
        Field(ge=0, le=90 * 86_400, description="Age up to which a device's late event takes its place, seconds."),
    ] = 30 * 86_400
    window_frames_max: Annotated[
        int, Field(ge=1, le=1024, description="Frames in flight to the cloud before an acknowledgement.")
    ] = 16
    frame_entries_max: Annotated[
        int, Field(ge=1, le=500, description="Entries in a frame while the link is quiet.")
    ] = 100
    seal_delay_ms: Annotated[
        int, Field(ge=0, le=60_000, description="Longest wait of an entry for its frame, milliseconds.")
    ] = 50
    resend_delay_ms: Annotated[
        int, Field(ge=100, le=600_000, description="First wait for an acknowledgement before resending, milliseconds.")
    ] = 2_000
    resend_delay_ms_max: Annotated[
        int, Field(ge=100, le=3_600_000, description="Longest wait before resending, milliseconds.")
    ] = 60_000
    reconnect_delay_s_max: Annotated[
        float, Field(ge=0.1, le=3600, description="Longest pause between attempts to connect, seconds.")
    ] = 30.0
    status_interval_s: Annotated[
        float, Field(ge=1, le=86_400, description="How often the gateway reports its status, seconds.")
    ] = 30.0
    site_ask_interval_s: Annotated[
        float, Field(ge=1, le=86_400, description="How often the site's other logs are asked for, seconds.")
    ] = 60.0
    lost_log_wait_s: Annotated[
        float, Field(ge=0, description="Wait for a cloud that has lost entries of an older epoch to recover, seconds.")
    ] = 600.0
    stock_scan_interval_s: Annotated[
        float,
        Field(ge=1, le=86_400, description="How often balances are compared with their digest, seconds."),
    ] = 600.0
    file_check_interval_s: Annotated[
        float, Field(ge=1, le=2_592_000, description="How often the ledger's file is checked for damage, seconds.")
    ] = 21_600.0
    wal_bytes_max: Annotated[
        int, Field(ge=1 << 20, description="Size of the ledger's log (WAL) from which it is emptied, bytes.")
    ] = 64 << 20
    certificate_look_s: Annotated[
        float, Field(ge=0.1, le=86_400, description="How often the certificate's age is looked at, seconds.")
    ] = 60.0
    firmware_chunks_per_s_max: Annotated[
        float, Field(gt=0, le=10_000, description="Pieces of firmware images given to devices per second.")
    ] = 100.0
    frame_keep_s: Annotated[
        int, Field(ge=0, description="How long acknowledged frames are kept for a cloud that falls back, seconds.")
    ] = 7 * 86_400
    frame_keep_bytes_max: Annotated[
        int, Field(ge=1 << 20, description="Disk budget of acknowledged frames, bytes.")
    ] = 256 << 20
    readings_max: Annotated[int, Field(ge=1_000, description="Sensor readings kept; then thinned, then dropped.")] = (
        1_000_000
    )
    dead_letters_max: Annotated[int, Field(ge=100, description="Dead letters kept; the oldest go first.")] = 10_000

    def public(self) -> dict[str, str | int | float | None]:
        """The settings without passwords, for the cloud's operators."""
        shown = self.model_dump(mode="json")
        urls = {name: without_password(url) for name in ("cloud_url", "local_url") if (url := shown[name]) is not None}
        return shown | urls


def watchdog_interval_s() -> float | None:
    """How often systemd wants to hear from us (sd_notify(3)): half of WATCHDOG_USEC; None without a watchdog."""
    microseconds = os.environ.get("WATCHDOG_USEC", "")
    return int(microseconds) / 2_000_000 if microseconds.isdigit() else None
