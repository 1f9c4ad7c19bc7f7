"""Firmware at the gateway: which release each of its devices is to run, and how far they are.

The twin says which release a model is to run, devices say what they are and where they are with it.

Invariant: a device is offered a release when its whole image is here, and not before; what it was offered earlier is
taken back until then.
"""

from collections.abc import Mapping
from typing import Final, NamedTuple

from edge_agent.ledger.database import Connection
from edge_agent.ledger.ledger import Ledger
from edge_agent.ledger.sql import statement
from edge_agent.provisioning.images import ImageStore
from edge_agent.provisioning.twin import Configured
from wire_protocol.firmware import FAILED_SHOWN_MAX, FirmwareOffer, Release, ReportedFirmware
from wire_protocol.messages import DeviceStatus, UpdateState
from wire_protocol.problems import REASON_CHARS_MAX
from wire_protocol.reasons import FirmwareProblemCode
from wire_protocol.twin import DesiredFirmware

FINAL_FAILURES: Final = frozenset({UpdateState.ROLLED_BACK, UpdateState.REFUSED})


class ImageProblem(NamedTuple):
    """Why an image cannot be had: for programs and for people."""

    code: FirmwareProblemCode
    sentence: str


class FirmwareRow(NamedTuple):
    """What a device has said of its firmware."""

    name: str
    model: str
    version: str | None
    release: int | None
    state: str | None
    reason: str | None


def wanted(connection: Connection) -> Mapping[str, Release]:
    """The release that each model is to run."""
    found = (DesiredFirmware.model_validate_json(row[0]) for row in connection.execute(statement("wanted_firmware")))
    return {release.model: release for release in found}


def rows(connection: Connection, device: str | None = None) -> list[FirmwareRow]:
    """Every device whose firmware can be exchanged, or one of them."""
    found = (
        connection.execute(statement("device_firmware"))
        if device is None
        else connection.execute(statement("firmware_of_device"), (device,))
    )
    return [FirmwareRow(*row) for row in found]


def offers(connection: Connection, image_store: ImageStore, device: str | None = None) -> list[Configured]:
    """What devices are to be offered now, or one that has not answered to it; an empty payload takes an offer back."""
    known = rows(connection, device)
    releases = wanted(connection) if known else {}
    found = []
    for row in known:
        release = releases.get(row.model)
        if device is None or release is None or release.release != row.release:
            found.append(Configured(row.name, _offer(release, image_store)))
    return found


def reported(
    connection: Connection, image_store: ImageStore, problems: Mapping[str, ImageProblem]
) -> dict[str, ReportedFirmware]:
    """The report to the cloud, by model; `problems` says by image why it cannot be had."""
    releases = wanted(connection)
    found = rows(connection) if releases else []
    return {
        model: _reported(release, [row for row in found if row.model == model], image_store, problems)
        for model, release in releases.items()
    }


def note(ledger: Ledger, device: str, status: DeviceStatus) -> None:
    """Note what a device says of its firmware, inside a transaction."""
    update = status.update
    said = (None, None, None) if update is None else (update.release, update.state, update.reason)
    ledger.connection.execute(statement("set_device_firmware"), (device, status.model, status.firmware, *said))


def _offer(release: Release | None, image_store: ImageStore) -> bytes:
    return b"" if release is None or not image_store.has(release) else FirmwareOffer.of(release).encode()


def _reported(
    release: Release, devices: list[FirmwareRow], image_store: ImageStore, problems: Mapping[str, ImageProblem]
) -> ReportedFirmware:
    said = [row for row in devices if row.release == release.release]
    problem = problems.get(release.sha256)
    failed = {
        row.name: f"{row.state}: {row.reason or 'without a reason'}"[:REASON_CHARS_MAX]
        for row in said
        if row.state in FINAL_FAILURES
    }
    return ReportedFirmware(
        release=release.release,
        version=release.version,
        fetched=image_store.fetched(release),
        devices=len(devices),
        healthy=sum(row.state == UpdateState.HEALTHY for row in said),
        failed=dict(list(failed.items())[:FAILED_SHOWN_MAX]),
        problem=None if problem is None else problem.sentence[:REASON_CHARS_MAX],
        problem_code=None if problem is None else problem.code,
    )
