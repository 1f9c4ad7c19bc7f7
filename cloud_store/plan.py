"""What a batch of frames will do, decided from the cursors alone.

The plan is made before the transaction, from cursors read without a lock, so that new words can get their ids first
and the locks are held briefly. The merge locks the cursors and compares: a plan is carried out only on the cursors it
was made for.

Invariant: planning is pure. The same frames on the same cursors give the same plan.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from cloud_store.arrivals import ArrivedFrame, Gateway, MergeReport, StreamKey, StreamOutcome
from wire_protocol import entries
from wire_protocol.entries import Count, Movement, Reading
from wire_protocol.messages import Rejected
from wire_protocol.problems import REASON_CHARS_MAX
from wire_protocol.replication import NO_CURSOR, Cursor, Receiver, Verdict

REJECTED_PER_ACK_MAX: Final = 1000


@dataclass(frozen=True, slots=True)
class RejectedEntry:
    """An entry that cannot be used; `row` is None when the whole frame could not be read."""

    seq: int
    reason: str
    row: object


@dataclass(frozen=True, slots=True)
class PlannedFrame:
    """A frame that will be merged: its usable entries with their sequence numbers, and the others with the reason."""

    arrived: ArrivedFrame
    gateway: Gateway
    entries: list[tuple[int, Movement | Count | Reading]]
    rejected: list[RejectedEntry]


@dataclass(slots=True)
class Plan:
    """What will happen: frames to merge, frames to quarantine with the reason, and the report to give afterwards."""

    gateways: dict[str, Gateway]
    cursors: dict[StreamKey, Cursor]
    merged: list[PlannedFrame] = field(default_factory=list)
    quarantined: list[tuple[ArrivedFrame, str]] = field(default_factory=list)
    report: MergeReport = field(default_factory=MergeReport)


def make(
    frames: Iterable[ArrivedFrame],
    gateways: Mapping[str, Gateway],
    cursors: Mapping[StreamKey, Cursor],
    *,
    unstorable: str | None = None,
) -> Plan:
    """Judge the frames in the order they came.

    Args:
        frames: what arrived.
        gateways: the registry's rows of the gateways concerned.
        cursors: how far each of their streams is.
        unstorable: reject every entry for this reason; the frames keep their place in the chain.
    """
    plan = Plan(dict(gateways), {})
    for arrived in frames:
        gateway = gateways.get(arrived.gateway)
        if gateway is None or not gateway.active:
            _refuse(plan, arrived, gateway)
            continue
        key = StreamKey(arrived.gateway, arrived.stream)
        if key not in plan.cursors:
            plan.cursors[key] = cursors.get(key, NO_CURSOR)
            plan.report.streams[key] = StreamOutcome(Receiver(arrived.gateway, arrived.stream, plan.cursors[key]))
        _judge(plan, arrived, gateway, plan.report.streams[key], unstorable)
    return plan


def _refuse(plan: Plan, arrived: ArrivedFrame, gateway: Gateway | None) -> None:
    reason = "the gateway is not in the registry" if gateway is None else "the gateway is disabled"
    plan.report.refused.add(arrived.gateway)
    plan.quarantined.append((arrived, reason))


def _judge(plan: Plan, arrived: ArrivedFrame, gateway: Gateway, outcome: StreamOutcome, unstorable: str | None) -> None:
    match outcome.receiver.offer(arrived.frame.header, arrived.frame.digest):
        case Verdict.DUPLICATE:
            plan.report.duplicates += 1
        case Verdict.AHEAD:
            plan.report.ahead += 1
        case Verdict.FORK:
            plan.report.forks += 1
            plan.quarantined.append((arrived, f"fork: {outcome.receiver.fork}"))
        case Verdict.MERGE:
            planned = _read(arrived, gateway, unstorable)
            plan.merged.append(planned)
            plan.report.frames += 1
            plan.report.rejected += len(planned.rejected)
            room = REJECTED_PER_ACK_MAX - len(outcome.rejected)
            outcome.rejected += [Rejected(seq=bad.seq, reason=bad.reason) for bad in planned.rejected[:room]]


def _read(arrived: ArrivedFrame, gateway: Gateway, unstorable: str | None) -> PlannedFrame:
    """Validate the entries of a frame that is next in its chain."""
    frame, first = arrived.frame, arrived.frame.header.first_seq
    if problem := unstorable or frame.problem:
        reason = problem[:REASON_CHARS_MAX]
        lost = [RejectedEntry(seq, reason, None) for seq in range(first, frame.header.last_seq + 1)]
        return PlannedFrame(arrived, gateway, [], lost)
    # The count in the header moves the cursor, so it must be the number of rows: asserted here again.
    assert len(frame.rows) == frame.header.count  # noqa: S101 - frames.decode promises it
    valid, problems = entries.validate(frame.rows)
    rejected = [RejectedEntry(first + index, reason, frame.rows[index]) for index, reason in problems]
    usable: list[tuple[int, Movement | Count | Reading]] = []
    wanted = (Movement, Count) if arrived.stream == "ledger" else (Reading,)
    for seq, entry in enumerate(valid, first):
        if isinstance(entry, wanted):
            usable.append((seq, entry))
        elif entry is not None:
            reason = f"a {entry.kind} does not belong into the stream {arrived.stream}"
            rejected.append(RejectedEntry(seq, reason, frame.rows[seq - first]))
    return PlannedFrame(arrived, gateway, usable, rejected)
