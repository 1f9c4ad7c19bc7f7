"""Complete Mosquitto configuration, rendered from the topic policy: mosquitto.conf and its ACL file.

Invariant: a broker that lets every client in listens on loopback only. Everything else has an ACL file, which denies
whatever it does not grant.
"""

import ipaddress
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Final, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from broker_config import files
from broker_config.errors import InvalidConfig, UnsafeConfig
from broker_config.limits import BrokerLimits
from broker_config.policy import OWNER, ROLES, SERVICE_USER, Action, Grant, Side, grants

CONFIG_FILE: Final = "mosquitto.conf"
ACL_FILE: Final = "acl"
PASSWORD_FILE: Final = "passwords"  # noqa: S105 - the name of a file
_ACCESS: Final = {Action.PUBLISH: "write", Action.SUBSCRIBE: "read"}


class Auth(StrEnum):
    """How clients prove who they are."""

    PASSWORD = "password"  # noqa: S105 - the name of a method
    CERTIFICATE = "certificate"  # the user is the common name of the client's certificate
    ANONYMOUS = "anonymous"  # no credentials: demos and tests, on loopback


class BrokerTlsFiles(BaseModel):
    """A broker's own certificate and key, PEM files as the broker sees them: enough where clients have passwords."""

    model_config = ConfigDict(frozen=True)

    certfile: Path
    keyfile: Path


class TlsFiles(BrokerTlsFiles):
    """The same, and the authorities of clients that have certificates."""

    cafile: Path


class MosquittoConfig(BaseModel):
    """One broker: which side, where it listens, how clients prove who they are, where its files are.

    `directory` holds its configuration; `data_directory`, the same unless given, what it stores.
    """

    model_config = ConfigDict(frozen=True)

    side: Side
    auth: Auth
    directory: Path
    port: int = Field(ge=1, le=65_535)
    address: str = "127.0.0.1"
    tls: TlsFiles | BrokerTlsFiles | None = None
    limits: BrokerLimits | None = None
    data_directory: Path | None = None

    @model_validator(mode="after")
    def _is_safe(self) -> Self:
        if self.auth is Auth.ANONYMOUS and not _is_loopback(self.address):
            raise UnsafeConfig(
                f"A broker without authentication cannot listen on {self.address}.",
                hint="Use --address 127.0.0.1, or --auth password or certificate.",
            )
        if self.auth is Auth.CERTIFICATE and not isinstance(self.tls, TlsFiles):
            raise InvalidConfig(
                "Authentication by certificate needs the broker's own files and the authorities of the clients.",
                hint="Give --cafile, --certfile and --keyfile.",
            )
        return self

    @property
    def bounds(self) -> BrokerLimits:
        return self.limits or BrokerLimits.for_side(self.side)


def render(config: MosquittoConfig) -> dict[str, str]:
    """The text of each file of a broker by name, to be written into its directory.

    Raises:
        InvalidConfig: a value has characters that cannot stand in a configuration.
    """
    made = {CONFIG_FILE: files.text(_conf(config))}
    if config.auth is not Auth.ANONYMOUS:
        made[ACL_FILE] = files.text(_acl(config.side))
    return made


def _conf(config: MosquittoConfig) -> Iterator[str]:
    yield f"# Mosquitto 2 configuration of {_whose(config.side)}. Rendered by `stocktide broker render`; do not edit."
    yield ""
    yield f"listener {config.port} {config.address}"
    yield f"max_connections {config.bounds.connections_max}"
    yield from _auth(config)
    yield from bounds(config.bounds)
    yield from _persistence(config)
    yield from logging()


def logging() -> Iterator[str]:
    """What a broker writes down."""
    yield ""
    yield "# One line for each failure and each connection, in UTC, to standard error, which systemd keeps."
    yield "log_dest stderr"
    yield from (f"log_type {kind}" for kind in ("error", "warning", "notice"))
    yield "log_timestamp_format %Y-%m-%dT%H:%M:%SZ"


def _auth(config: MosquittoConfig) -> Iterator[str]:
    if config.tls is not None:
        if isinstance(config.tls, TlsFiles):
            yield f"cafile {config.tls.cafile}"
        yield f"certfile {config.tls.certfile}"
        yield f"keyfile {config.tls.keyfile}"
        yield "tls_version tlsv1.2"
    if config.auth is Auth.ANONYMOUS:
        yield "# Every client may do anything: this broker is for a demo or a test on this machine."
        yield "allow_anonymous true"
        return
    yield "allow_anonymous false"
    if config.auth is Auth.CERTIFICATE:
        yield "# The common name of the client's certificate is its user name, which the ACL file goes by."
        yield "require_certificate true"
        yield "use_identity_as_username true"
    else:
        yield f"password_file {config.directory / PASSWORD_FILE}"
    if config.side is Side.GATEWAY:
        yield "# A client's id is its user name: under another's id it could end the other's connection."
        yield "use_username_as_clientid true"
    yield f"acl_file {config.directory / ACL_FILE}"


def bounds(limits: BrokerLimits, session: str | None = None) -> Iterator[str]:
    """The bounds that hold for a whole broker; `session` is how long it keeps those of clients that are away."""
    yield ""
    yield "# Bounds: see `stocktide broker limits`."
    yield f"max_packet_size {limits.packet_bytes_max}"
    yield f"max_inflight_messages {limits.inflight_messages_max}"
    yield f"max_queued_messages {limits.queued_messages_max}"
    yield f"max_queued_bytes {limits.queued_bytes_max}"
    yield f"max_keepalive {limits.keepalive_s_max}"
    yield f"persistent_client_expiration {session or f'{limits.session_days_max}d'}"
    yield "# Clients are known by name; one without a name could not have a session."
    yield "allow_zero_length_clientid false"
    yield "# A receipt is sent at QoS 0 and must not become a QoS 1 message that waits in a queue."
    yield "upgrade_outgoing_qos false"
    yield "# Acknowledgements are small and waited for: Nagle's algorithm would hold them back."
    yield "set_tcp_nodelay true"


def _persistence(config: MosquittoConfig) -> Iterator[str]:
    yield ""
    if config.auth is Auth.ANONYMOUS:
        yield "persistence false"
        return
    if config.side is Side.GATEWAY:
        yield "# A PUBACK proves only that this broker has the event in memory. Devices keep an event until the agent's"
        yield "# receipt, so a power cut loses nothing; saving often spares sending again over a weak radio."
    else:
        yield "# Nothing depends on what this broker stores: both ends resume from the cloud's cursors."
    yield "persistence true"
    yield f"persistence_location {config.data_directory or config.directory}/"
    yield f"autosave_interval {config.bounds.save_interval_s}"
    yield "autosave_on_changes false"


def _acl(side: Side) -> Iterator[str]:
    yield f"# Access to {_whose(side)}, rendered from the topic table; whatever is not granted here is denied."
    yield "# Mosquitto accepts any subscription and checks each message before it delivers it."
    granted = grants(side)
    # Mosquitto applies lines after `user` to that user until the next one, and pattern lines to all users.
    for role in (role for role in ROLES[side] if any(grant.role is role and grant.is_owned for grant in granted)):
        yield ""
        yield f"# A {role} is confined to the topics with its user name in them."
        yield from (_line("pattern", grant) for grant in granted if grant.role is role)
    yield ""
    yield f"user {SERVICE_USER[side]}"
    yield from (_line("topic", grant) for grant in granted if not grant.is_owned)


def _line(kind: str, grant: Grant) -> str:
    return f"{kind} {_ACCESS[grant.action]} {grant.pattern.replace(OWNER, '%u')}"


def _whose(side: Side) -> str:
    return "the cloud's broker" if side is Side.CLOUD else "a gateway's own broker"


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"
