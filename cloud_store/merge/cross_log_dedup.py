"""Device events that two logs of one gateway both have: the one that is merged first counts.

A scan that was committed just before a gateway died, and whose receipt was lost, is sent again to the gateway's
replacement. When the old disk is plugged in later, its log goes on and brings the same scan again. Within one log the
ledger itself takes an event once, and a new epoch begins only after it has fetched the older logs; so what is left to
look for are logs that went on without knowing of each other, which is rare, and what a new epoch has carried over. Only
then is anything asked of the database.

Invariant: all ledger cursors of a gateway with several epochs are locked by the merge that asks here.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

from psycopg.types.json import Jsonb

from cloud_store.base import sql
from cloud_store.base.connection import Connection
from cloud_store.merge import plan
from cloud_store.merge.arrivals import LogKey
from cloud_store.merge.plan import Plan, PlannedFrame
from wire_protocol.entries import Reading
from wire_protocol.reasons import RejectCode

_SQL: Final = sql.load("cross_log_dedup")


class _Event(NamedTuple):
    """What is unique forever at a gateway: a device's event.

    A technician's own entry has none. Two disks that were one have it with the same clock reading; its device is empty
    here, and its event made of what does not change when it is carried over into another log.
    """

    device: str
    event: str


class _Log(NamedTuple):
    """A log as the database knows it: its id, and how much of other epochs it knew when it began."""

    epoch_id: int
    after: Mapping[str, Any]


def take_out(connection: Connection, planned: Plan) -> None:
    """Reject the entries of a plan whose event another log of the same gateway has."""
    frames: defaultdict[str, list[PlannedFrame]] = defaultdict(list)
    for frame in planned.merged:
        if frame.arrived.stream == "ledger":
            frames[frame.arrived.gateway].append(frame)
    several = {name: found for name, found in frames.items() if _logs_of(planned, name) > 1}
    if not several:
        return
    logs = _read_logs(connection, [planned.gateways[name].gateway_id for name in several])
    for name, found in several.items():
        _take_out_of(connection, planned, found, logs[planned.gateways[name].gateway_id])


def remember_after(connection: Connection, planned: Plan) -> None:
    """Store what new logs knew of older ones; in the transaction that stores their first frame."""
    for frame in planned.merged:
        header = frame.arrived.frame.header
        if header.after:
            after = {epoch: head.model_dump() for epoch, head in header.after.items()}
            key = {"gateway_id": frame.gateway.gateway_id, "epoch": header.epoch}
            connection.execute(_SQL["set_after"], {**key, "after": Jsonb(after)})


def _logs_of(planned: Plan, gateway: str) -> int:
    return sum(1 for key in planned.cursors if key.gateway == gateway and key.stream == "ledger")


def _read_logs(connection: Connection, gateways: list[int]) -> Mapping[int, dict[str, _Log]]:
    logs: defaultdict[int, dict[str, _Log]] = defaultdict(dict)
    for gateway_id, ulid, epoch_id, after in connection.execute(_SQL["after"], {"gateways": gateways}):
        logs[gateway_id][ulid] = _Log(epoch_id, after)
    return logs


def _take_out_of(connection: Connection, planned: Plan, frames: list[PlannedFrame], logs: Mapping[str, _Log]) -> None:
    """The frames are of one gateway, in the order they are merged in."""
    here: dict[_Event, tuple[str, int]] = {}
    for frame in frames:
        key = frame.arrived.log
        unrelated = [epoch for epoch in logs if epoch != key.epoch and _unrelated(planned, key, epoch, logs, frame)]
        known = _stored(connection, frame, [logs[epoch].epoch_id for epoch in unrelated]) if unrelated else {}
        repeated: dict[int, str] = {}
        for seq, event in _events(frame):
            epoch, where = known.get(event) or here.get(event) or (key.epoch, seq)
            if epoch != key.epoch:
                what = f" (event {event.event} of {event.device})" if event.device else ""
                repeated[seq] = f"counts already, as entry {where} of epoch {epoch}{what}"
            else:
                here[event] = (key.epoch, seq)
        if repeated:
            plan.reject(planned, frame, RejectCode.REPEATED, repeated)


def _unrelated(planned: Plan, log: LogKey, other: str, logs: Mapping[str, _Log], frame: PlannedFrame) -> bool:
    """Whether the other log may have an event of this frame without either having known of it."""
    at = planned.cursors.get(log._replace(epoch=other))
    if at is None or at.frame == 0:
        return False
    if frame.arrived.frame.header.carried:
        # It knew that log, and perhaps a verdict on it from before the database fell back: it counts otherwise now.
        return True
    mine = {epoch: head.model_dump() for epoch, head in frame.arrived.frame.header.after.items()}
    known = (mine or (logs[log.epoch].after if log.epoch in logs else {})).get(other)
    return known is None or (at.frame, at.digest) != (known["frame"], known["digest"])


def _events(frame: PlannedFrame) -> Iterable[tuple[int, _Event]]:
    for seq, entry in frame.entries:
        if entry.device is not None and entry.event is not None:
            yield seq, _Event(entry.device, entry.event)
        elif not isinstance(entry, Reading):
            yield seq, _without_event(entry.hlc, entry.sku, entry.quantity, entry.actor, entry.reference)


def _without_event(hlc: int, sku: str, quantity: int, *who_and_what_for: str | None) -> _Event:
    # Two technicians at two machines that bear one name may book the same goods in the same millisecond.
    return _Event("", json.dumps([hlc, quantity, sku, *who_and_what_for]))


def _stored(connection: Connection, frame: PlannedFrame, epochs: list[int]) -> Mapping[_Event, tuple[str, int]]:
    events = [event for _, event in _events(frame)]
    goods = [entry for _, entry in frame.entries if not isinstance(entry, Reading)]
    skus = {entry.sku for entry in goods}
    parameters = {
        "events": sorted({event.event for event in events if event.device}),
        "hlcs": [entry.hlc for entry in goods if entry.event is None],
        "skus": sorted(skus),
        "tenant_id": frame.gateway.tenant_id,
        "gateway_id": frame.gateway.gateway_id,
        "epochs": epochs,
    }
    stored: dict[_Event, tuple[str, int]] = {}
    for device, event, hlc, sku, quantity, actor, reference, epoch, seq in connection.execute(
        _SQL["events"], parameters
    ):
        known = _without_event(hlc, sku, quantity, actor, reference) if event is None else _Event(device, event)
        stored[known] = (epoch, seq)
    return stored
