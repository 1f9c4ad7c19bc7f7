"""The cloud's brokers for a fleet with certificates: who may connect where, as Mosquitto's configuration.

Two processes. The **cloud's broker** has a listener for gateways (client certificates; the certificate's name is both
the user and the client id) and one for workers (passwords; client ids of their own choice). The **claims broker** is
for gateways that have no certificate yet: TLS, no authentication, and nothing to reach but the topics of the claim that
is their client id. A bridge carries claims to the cloud's broker and answers back.

They are apart because client ids are one space in a broker: a client that may connect under any client id can end the
connection of any other. Unauthenticated clients get a space of their own.

Invariant: no listener that lets unauthenticated clients in shares a process with one that gateways or workers use.
"""

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict, Field

from broker_config import files
from broker_config.limits import BrokerLimits
from broker_config.mosquitto import TlsFiles, bounds, logging
from broker_config.policy import OWNER, SERVICE_USER, Action, Grant, Side, grants
from wire_protocol import names
from wire_protocol.topics import Channel, Role

CLOUD: Final = Path("cloud")
CLAIMS: Final = Path("claims")
CONF: Final = "mosquitto.conf"
PASSWORDS: Final = "passwords"
ACL_GATEWAYS: Final = "acl-gateways"
ACL_WORKERS: Final = "acl-workers"
ACL_CLAIMANTS: Final = "acl-claimants"
_ACCESS: Final = {Action.PUBLISH: "write", Action.SUBSCRIBE: "read"}
_MARK: Final = "# Rendered by `stocktide broker fleet`; do not edit."


class FleetConfig(BaseModel):
    """Where the two brokers listen and where their files are, as the brokers see them.

    `tls.cafile` is the bundle of authorities that gateways' certificates are from, `crlfile` their revocation lists.
    `bridge_password` is the claims broker's at the cloud's broker.
    """

    model_config = ConfigDict(frozen=True)

    directory: Path
    tls: TlsFiles
    crlfile: Path
    bridge_password: str = Field(min_length=12, repr=False)
    address: str = "0.0.0.0"
    gateway_port: int = Field(default=8883, ge=1, le=65_535)
    claims_port: int = Field(default=8884, ge=1, le=65_535)
    worker_address: str = "127.0.0.1"
    worker_port: int = Field(default=1884, ge=1, le=65_535)
    worker_tls: bool = False
    data_directory: Path | None = None
    limits: BrokerLimits = BrokerLimits.for_side(Side.CLOUD)
    claim_limits: BrokerLimits = BrokerLimits.for_claims()


def render_fleet(config: FleetConfig) -> dict[Path, str]:
    """The text of each file by its place below `directory`; the password file is the operator's (`broker passwd`)."""
    made = {
        CLOUD / CONF: _cloud(config),
        CLOUD / ACL_GATEWAYS: _acl_gateways(),
        CLOUD / ACL_WORKERS: _acl_workers(),
        CLAIMS / CONF: _claims(config),
        CLAIMS / ACL_CLAIMANTS: _acl_claimants(),
    }
    return {place: files.text([_MARK, *lines]) for place, lines in made.items()}


def _cloud(config: FleetConfig) -> Iterator[str]:
    home = config.directory / CLOUD
    yield "per_listener_settings true"
    yield ""
    yield "# Gateways: the certificate's common name is the user, which the ACL goes by, and the client id, so that no"
    yield "# gateway can take another's place. A gateway has one connection."
    yield f"listener {config.gateway_port} {config.address}"
    yield f"max_connections {config.limits.connections_max}"
    yield from _tls(config.tls)
    yield f"crlfile {config.crlfile}"
    yield "require_certificate true"
    yield "use_identity_as_username true"
    yield "use_username_as_clientid true"
    yield "allow_anonymous false"
    yield f"acl_file {home / ACL_GATEWAYS}"
    yield ""
    yield "# Workers: by password. A client that has one may use any client id; an eviction uses a gateway's."
    yield f"listener {config.worker_port} {config.worker_address}"
    if config.worker_tls:
        yield from _tls(config.tls)
    yield "allow_anonymous false"
    yield f"password_file {home / PASSWORDS}"
    yield f"acl_file {home / ACL_WORKERS}"
    yield from bounds(config.limits)
    yield ""
    yield "# Nothing depends on what this broker stores: both ends resume from the cloud's cursors."
    yield "persistence true"
    yield f"persistence_location {config.data_directory or home}/"
    yield f"autosave_interval {config.limits.save_interval_s}"
    yield "autosave_on_changes false"
    yield from logging()


def _claims(config: FleetConfig) -> Iterator[str]:
    home = config.directory / CLAIMS
    yield "# Gateways without a certificate. The client id is the claim's name; the claim's secret is in the message."
    yield f"listener {config.claims_port} {config.address}"
    yield f"max_connections {config.claim_limits.connections_max}"
    yield from _tls(config.tls)
    yield "allow_anonymous true"
    yield f"acl_file {home / ACL_CLAIMANTS}"
    yield from bounds(config.claim_limits, session="1h")
    yield "# Nothing is retained: a claimant could leave a message behind for each client id that it makes up."
    yield "retain_available false"
    yield "persistence false"
    yield ""
    yield "# Claims go to the cloud's broker, answers come back, and nothing else."
    yield "connection stocktide-claims"
    yield f"address {_reachable(config.worker_address)}:{config.worker_port}"
    if config.worker_tls:
        yield f"bridge_cafile {config.tls.cafile}"
    yield f"topic {_pattern(Channel.CLAIM_REQUEST)} out 1"
    yield f"topic {_pattern(Channel.CLAIM_RESPONSE)} in 1"
    yield f"remote_username {names.CLAIMS_USER}"
    yield f"remote_password {config.bridge_password}"
    yield "remote_clientid stocktide-claims"
    yield "# A client that knew the bridge's client id here could end the bridge's connection."
    yield f"local_clientid {hashlib.sha256(config.bridge_password.encode()).hexdigest()[:40]}"
    yield "bridge_protocol_version mqttv50"
    yield "bridge_attempt_unsubscribe false"
    yield "bridge_outgoing_retain false"
    yield "cleansession true"
    yield "notifications false"
    yield "restart_timeout 1 10"
    yield from logging()


def _tls(tls: TlsFiles) -> Iterator[str]:
    yield f"cafile {tls.cafile}"
    yield f"certfile {tls.certfile}"
    yield f"keyfile {tls.keyfile}"
    yield "tls_version tlsv1.2"


def _acl_gateways() -> Iterator[str]:
    yield "# A gateway is confined to the topics with its own name in them. Whatever is not granted is denied."
    yield from _lines("pattern", _of(Role.GATEWAY), "%u")


def _acl_workers() -> Iterator[str]:
    yield f"user {SERVICE_USER[Side.CLOUD]}"
    yield from _lines("topic", _of(Role.INGEST), "+")
    yield ""
    yield "# The bridge from the claims broker stands for all claimants."
    yield f"user {names.CLAIMS_USER}"
    yield from _lines("topic", _of(Role.CLAIMANT), "+")


def _acl_claimants() -> Iterator[str]:
    yield "# A client reaches the topics of the claim that is its client id."
    yield from _lines("pattern", _of(Role.CLAIMANT), "%c")


def _lines(kind: str, granted: Iterable[Grant], owner: str) -> Iterator[str]:
    for grant in granted:
        yield f"{kind} {_ACCESS[grant.action]} {grant.pattern.replace(OWNER, owner)}"


def _of(role: Role) -> list[Grant]:
    return [grant for grant in grants(Side.CLOUD) if grant.role is role]


def _pattern(channel: Channel) -> str:
    return next(
        grant.pattern.replace(OWNER, "+")
        for grant in grants(Side.CLOUD)
        if grant.rule.channel is channel and grant.role is Role.CLAIMANT
    )


def _reachable(address: str) -> str:
    return "127.0.0.1" if address in {"0.0.0.0", "::"} else address
