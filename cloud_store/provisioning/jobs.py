"""Jobs: a command, a change of twins or a firmware release for many gateways, in waves, with a rollback.

A firmware release is a change of twins as well; it has ended at a gateway when its devices say so, and its rollback is
another release, because a device takes none a second time.

A job is a row, and its progress is in the rows of its gateways: any worker can take the next step, and one that dies in
the middle leaves a step undone or done, never half.

Invariant: a wave begins when all of the one before it have ended, and not when too many of them failed.
"""

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Final, NamedTuple

from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from cloud_store.base import audit_log, sql
from cloud_store.base.connection import Connection
from cloud_store.base.errors import InvalidFirmware, UnknownName
from cloud_store.provisioning import commands, firmware, twins
from cloud_store.provisioning.twins import Selection
from wire_protocol import names, waves
from wire_protocol.commands import InvalidCommand, parse
from wire_protocol.firmware import NO_ROOM, Release
from wire_protocol.reasons import FirmwareProblemCode, ReasonCode
from wire_protocol.twin import InvalidTwin, merged

STEP_GATEWAYS_MAX: Final = 200
NO_DEVICE_WAIT_S: Final = 300.0  # how long a gateway that knows no device of a model may just not know them yet
_SQL: Final = sql.load("jobs")


class JobState(StrEnum):
    """Where a job is; the last three are final."""

    RUNNING = "running"
    PAUSED = "paused"
    DONE = "done"
    FAILED = "failed"
    ABORTED = "aborted"


class TargetState(StrEnum):
    """Where a job is at one gateway. The column has `rolled back` with a space; `jobs.sql` translates."""

    WAITING = "waiting"
    STARTED = "started"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    ROLLED_BACK = "rolled-back"


class TargetCode(ReasonCode):
    """Why a job failed at a gateway, where that is an outcome of its own."""

    UNCONFIRMED = "unconfirmed"
    """The change is in force, and a device that it is about has neither confirmed nor refused it in time."""


@dataclass(frozen=True, slots=True)
class Spec:
    """What is to be done: a command with its arguments, a merge patch of twins, or a version for a model of devices.

    `release` and `back`, its rollback release, are found when the job begins.
    """

    command: str | None = None
    arguments: Mapping[str, Any] | None = None
    patch: Mapping[str, Any] | None = None
    firmware: tuple[str, str] | None = None
    release: Release | None = None
    back: Release | None = None

    def check(self) -> None:
        """Raise InvalidCommand or InvalidTwin when no gateway could take it."""
        if self.command is not None:
            parse(self.command, self.arguments or {})
        elif self.patch is not None and self.patch.get("devices") is None:
            merged({}, self.patch)

    def summary(self) -> dict[str, Any]:
        """As it is shown: without the signature of a rollback release that no gateway has taken yet."""
        if self.release is not None:
            return {"firmware": self.release.model, "version": self.release.version, "release": self.release.release}
        return self.document()

    def document(self) -> dict[str, Any]:
        """As it is stored."""
        if self.command is not None:
            return {"command": self.command, "arguments": dict(self.arguments or {})}
        if self.release is not None:
            back = None if self.back is None else self.back.model_dump()
            return {"firmware": self.release.model_dump(), "back": back}
        return {"patch": dict(self.patch or {})}


@dataclass(frozen=True, slots=True)
class Rollout:
    """How: where each wave ends, what share may fail (percent), how long a gateway may take, and whether to go back."""

    waves: Sequence[str] = ("1", "10%", "100%")
    failures_percent_max: float = 5.0
    timeout_s: int = 3600
    rollback: bool = False


def running(connection: Connection) -> list[str]:
    """The jobs under way."""
    return [row[0] for row in connection.execute(_SQL["running"])]


def step(connection: Connection, job: str) -> bool:
    """Take the next step of a job, if no other worker does. Returns whether another should follow at once."""
    with connection.transaction():
        row = connection.execute(_SQL["lock"], {"job": job}).fetchone()
        return row is not None and row[2] == JobState.RUNNING and _step(connection, _Job(*row))


def create(connection: Connection, wanted: Selection, spec: Spec, rollout: Rollout, *, who: str) -> str:
    """Begin a job. Returns its id.

    Raises:
        UnknownName: not all gateways exist.
        InvalidCommand, InvalidTwin, InvalidWaves, InvalidFirmware: it cannot be done like that.
    """
    spec.check()
    gateways = twins.select(connection, wanted)
    spec = _with_release(connection, spec, gateways, rollback=rollout.rollback)
    assigned = waves.assign(len(gateways), rollout.waves)
    job = names.ulid(time.time_ns() // 1_000_000, os.urandom(10))
    parameters = {
        "job": job,
        "spec": Jsonb(spec.document()),
        "failures_percent_max": rollout.failures_percent_max,
        "timeout_s": rollout.timeout_s,
        "rollback": rollout.rollback,
        "who": who,
    }
    with connection.transaction():
        connection.execute(_SQL["add"], parameters)
        connection.execute(_SQL["add_targets"], {"job": job, "gateways": gateways, "waves": assigned})
        audit_log.record(connection, "job.create", job, gateways=len(gateways), **spec.summary())
    return job


def pause(connection: Connection, job: str) -> None:
    """Begin no further wave until it is resumed; what has begun goes on."""
    _set_state(connection, job, JobState.PAUSED, (JobState.RUNNING,))


def resume(connection: Connection, job: str) -> None:
    """Go on with a paused job."""
    _set_state(connection, job, JobState.RUNNING, (JobState.PAUSED,))


def abort(connection: Connection, job: str, *, rollback: bool) -> int:
    """End a job, and give twins their content of before back if asked. Returns how many went back.

    Raises:
        UnknownName: there is no such job under way.
        InvalidFirmware: it is to roll back, and there is no rollback release.
    """
    with connection.transaction():
        _set_state(connection, job, JobState.ABORTED, (JobState.RUNNING, JobState.PAUSED))
        row = connection.execute(_SQL["wait_for"], {"job": job}).fetchone()
        undone = _undo(connection, _Job(*row), "abort") if rollback and row is not None else 0
        connection.execute(_SQL["end"], {"job": job, "state": JobState.ABORTED, "reason": "aborted by an operator"})
    return undone


def listing(connection: Connection, *, limit: int, job: str | None = None) -> list[dict[str, Any]]:
    """The latest jobs, or one, and how far each is; releases in `spec` without their signatures."""
    rows = _all(connection, "jobs", limit=limit, job=job, unconfirmed=f"{TargetCode.UNCONFIRMED}:")
    return [row | {"spec": _unsigned(row["spec"])} for row in rows]


def targets(connection: Connection, job: str, *, limit: int) -> list[dict[str, Any]]:
    """The gateways of a job.

    Raises:
        UnknownName: there is no such job.
    """
    if not (rows := _all(connection, "targets", limit=limit, job=job)):
        raise UnknownName(f"There is no job {job}.", hint="stocktide cloud job list")
    return rows


class _Job(NamedTuple):
    job: str
    spec: Mapping[str, Any]
    state: str
    failures_percent_max: float
    timeout_s: int
    rollback: bool
    who: str


def _step(connection: Connection, job: _Job) -> bool:
    _settle(connection, job)
    counts: dict[int, dict[TargetState, int]] = {}
    for wave, state, number in connection.execute(_SQL["counts"], {"job": job.job}):
        counts.setdefault(wave, {})[TargetState(state)] = number
    for wave, states in sorted(counts.items()):
        if states.get(TargetState.WAITING):
            return _start(connection, job, wave)
        if states.get(TargetState.STARTED):
            return False
        failed, total = states.get(TargetState.FAILED, 0), sum(states.values())
        if 100 * failed > job.failures_percent_max * total:
            undone = _undo(connection, job, job.who) if job.rollback else 0
            back = f"; {undone} went back" if job.rollback else ""
            reason = f"{failed} of {total} gateways of wave {wave + 1} failed{back}"
            connection.execute(_SQL["end"], {"job": job.job, "state": JobState.FAILED, "reason": reason})
            return False
    connection.execute(_SQL["end"], {"job": job.job, "state": JobState.DONE, "reason": None})
    return False


def _settle(connection: Connection, job: _Job) -> None:
    """Note what has become of those that were begun."""
    parameters = {"job": job.job, "timeout_s": job.timeout_s}
    connection.execute(_SQL["settle_commands"], parameters)
    if "firmware" in job.spec:
        release = job.spec["firmware"]
        which = {"model": release["model"], "release": release["release"]}
        connection.execute(
            _SQL["settle_firmware"],
            parameters
            | which
            | {"empty_s": NO_DEVICE_WAIT_S, "no_room": FirmwareProblemCode.NO_ROOM, "no_room_words": NO_ROOM},
        )
        return
    devices = [name for name, body in (job.spec.get("patch", {}).get("devices") or {}).items() if body is not None]
    sentence = TargetCode.UNCONFIRMED.says("not confirmed in time by %s")
    connection.execute(_SQL["settle_twins"], parameters | {"devices": devices, "unconfirmed": sentence})


def _start(connection: Connection, job: _Job, wave: int) -> bool:
    parameters = {"job": job.job, "wave": wave, "limit": STEP_GATEWAYS_MAX}
    for gateway_id, name in connection.execute(_SQL["waiting"], parameters).fetchall():
        started = {"job": job.job, "gateway_id": gateway_id, **_started(connection, job, gateway_id, name)}
        connection.execute(_SQL["start"], started)
    return True


def _started(connection: Connection, job: _Job, gateway_id: int, name: str) -> dict[str, Any]:
    """Begin at one gateway; what came of it, as columns."""
    columns: dict[str, Any] = dict.fromkeys(("command", "version", "before", "reason"))
    columns["state"] = TargetState.STARTED
    spec = job.spec
    try:
        if "command" in spec:
            columns["command"] = commands.give(
                connection, name, spec["command"], spec["arguments"], expires_s=job.timeout_s, who=job.who
            )
        else:
            patch = _patch(spec["firmware"]) if "firmware" in spec else spec["patch"]
            columns["version"], before = twins.change_one(connection, gateway_id, patch, who=job.who)
            columns["before"] = Jsonb(before)
    except (UnknownName, InvalidTwin, InvalidCommand) as error:
        columns |= {"state": TargetState.FAILED, "reason": str(error)}
    return columns


def _undo(connection: Connection, job: _Job, who: str) -> int:
    """Give every twin that the job was the last to change its content of before back, as a new version."""
    undone = 0
    for gateway_id, version, before in connection.execute(_SQL["to_undo"], {"job": job.job}).fetchall():
        if "firmware" in job.spec:
            try:
                went = _send_back(connection, job.spec, gateway_id, who)
            except InvalidTwin as error:
                went = False
                note = {"job": job.job, "gateway_id": gateway_id, "reason": f"cannot be sent back: {error}"[:200]}
                connection.execute(_SQL["not_undone"], note)
        else:
            went = twins.restore_version(connection, gateway_id, version, before, who=who)
        if went:
            connection.execute(_SQL["undone"], {"job": job.job, "gateway_id": gateway_id})
            undone += 1
    return undone


def _send_back(connection: Connection, spec: Mapping[str, Any], gateway_id: int, who: str) -> bool:
    """Want the version before, if the job's release is still what is wanted."""
    release, back = spec["firmware"], spec["back"]
    if back is None:
        raise InvalidFirmware(
            f"There is no rollback release for {release['model']} {release['version']}.",
            hint="Add the version before once more, with --replaces, and roll it out by a job.",
        )
    if not twins.wants_release(connection, gateway_id, release["model"], release["release"]):
        return False
    twins.change_one(connection, gateway_id, _patch(back), who=who)
    return True


def _patch(release: Mapping[str, Any]) -> dict[str, Any]:
    """The change of a twin that wants a release; every field is in it, so that nothing of the last one stays."""
    return {"firmware": {release["model"]: dict(release)}}


def _with_release(connection: Connection, spec: Spec, gateways: Sequence[int], *, rollback: bool) -> Spec:
    """Find the releases of a job that rolls firmware out."""
    if spec.firmware is None:
        return spec
    tenant = firmware.tenant_of(connection, gateways)
    release = firmware.newest(connection, tenant, *spec.firmware)
    back = firmware.rollback_release(connection, tenant, release)
    if rollback and back is None:
        raise InvalidFirmware(
            f"There is no rollback release for {release.model} {release.version}.",
            hint="Add the version before once more, with --replaces; or roll out without --rollback.",
        )
    return replace(spec, release=release, back=back)


def _unsigned(spec: Mapping[str, Any]) -> dict[str, Any]:
    """A stored spec as it is shown: a rollback release with its signature would be an order before it is sent."""
    return {
        name: {field: value for field, value in part.items() if field != "signature"}
        if name in {"firmware", "back"} and part is not None
        else part
        for name, part in spec.items()
    }


def _set_state(connection: Connection, job: str, state: JobState, before: Sequence[JobState]) -> None:
    with connection.transaction():
        parameters = {"job": job, "state": state, "from": list(before)}
        audit_log.record(connection, f"job.{state}", job)
        if not connection.execute(_SQL["set_state"], parameters).rowcount:
            raise UnknownName(f"There is no job {job} that is {' or '.join(before)}.", hint="stocktide cloud job list")


def _all(connection: Connection, statement: str, **parameters: Any) -> list[dict[str, Any]]:
    with connection.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(_SQL[statement], parameters).fetchall()
