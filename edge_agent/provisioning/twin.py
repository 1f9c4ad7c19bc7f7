"""The twin in force at this gateway: taken whole or not at all, and what its devices make of it.

Rules: `wire_protocol.twin`.

Invariant: everything a document changes here is changed in one transaction with its version.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from edge_agent.ledger.database import Connection
from edge_agent.ledger.ledger import Ledger
from edge_agent.ledger.sql import statement
from wire_protocol.firmware import ReportedFirmware
from wire_protocol.twin import DesiredState, DesiredTwin, DeviceBody, DeviceConfig, Limits, ReportedTwin


class ConfigRow(NamedTuple):
    """A device's configuration, and what it has confirmed."""

    name: str
    version: int
    body: str
    owned: int
    confirmed: int
    problem: str | None


class Configured(NamedTuple):
    """A device's configuration from now on: an empty payload withdraws it."""

    device: str
    payload: bytes


def version(connection: Connection) -> int:
    """The version in force, 0 before the first."""
    row = connection.execute(statement("twin")).fetchone()
    return 0 if row is None else int(row[0])


def state(connection: Connection) -> DesiredState:
    """The content in force."""
    row = connection.execute(statement("twin")).fetchone()
    return DesiredState() if row is None else DesiredState.model_validate_json(row[1])


def limits(connection: Connection) -> Limits:
    """How far the twin narrows this gateway's settings."""
    return state(connection).limits


def narrow(setting: int, limit: int | None) -> int:
    """A setting within a limit of the twin, which never widens it."""
    return setting if limit is None else min(setting, limit)


def rows(connection: Connection) -> list[ConfigRow]:
    """Every device of the twin."""
    return [ConfigRow(*row) for row in connection.execute(statement("device_configs"))]


def configs(connection: Connection) -> list[Configured]:
    """The configuration of every device of the twin."""
    return [_configured(row.name, row.version, row.body) for row in rows(connection)]


def reported(
    connection: Connection,
    firmware: Mapping[str, ReportedFirmware],
    *,
    refused: int | None = None,
    reason: str | None = None,
) -> ReportedTwin:
    """What is reported to the cloud; `refused` and `reason` when a document was just refused."""
    devices = rows(connection)
    return ReportedTwin(
        version=version(connection),
        confirmed={row.name: row.confirmed for row in devices if row.confirmed >= row.version},
        errors={row.name: row.problem for row in devices if row.problem},
        refused=refused,
        reason=reason,
        firmware=dict(firmware),
    )


@dataclass(frozen=True, slots=True)
class TwinWriter:
    """The writing side, inside a transaction of the ledger."""

    ledger: Ledger

    def apply(self, desired: DesiredTwin) -> list[Configured] | None:
        """Put a document in force. Returns the configurations to send to devices; None when it is not newer."""
        connection = self.ledger.connection
        if desired.version <= version(connection):
            return None
        had = {row.name: row for row in rows(connection)}
        local = {row[0] for row in connection.execute(statement("devices"))}
        configured: list[Configured] = []
        for name, device in desired.state.devices.items():
            body = device.body().model_dump_json(exclude_defaults=True)
            connection.execute(statement("insert_device"), (name, device.kind))
            if name not in had or had[name].body != body:
                owned = int(name not in local)
                connection.execute(statement("set_device_config"), (name, desired.version, body, owned))
                configured.append(_configured(name, desired.version, body))
        for name in had.keys() - desired.state.devices.keys():
            if had[name].owned:
                connection.execute(statement("delete_device"), (name,))
            connection.execute(statement("delete_device_config"), (name,))
            configured.append(Configured(name, b""))
        document = desired.state.model_dump_json(exclude_defaults=True)
        connection.execute(statement("set_twin"), (desired.version, document, self.ledger.clock.now_ms()))
        return configured


def _configured(name: str, at_version: int, body: str) -> Configured:
    plain = DeviceBody.model_validate_json(body)
    made = DeviceConfig(version=at_version, **{field: getattr(plain, field) for field in DeviceBody.model_fields})
    return Configured(name, made.encode())
