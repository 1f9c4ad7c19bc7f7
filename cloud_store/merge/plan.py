"""What a batch of frames will do, decided from the cursors alone.

The plan is made before the transaction, from cursors read without a lock, so that new words can get their ids first
and the locks are held briefly. The merge locks the cursors and compares: a plan is carried out only on the cursors it
was made for.

Invariant: planning is pure. The same frames on the same cursors give the same plan.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

import numpy as np

from cloud_store.base.gateways import Gateway
from cloud_store.merge import frame_entries
from cloud_store.merge.arrivals import ArrivedFrame, LogKey, MergeReport, StreamOutcome
from cloud_store.merge.frame_entries import Entry, FrameEntries, MovementColumns
from wire_protocol import names, stock
from wire_protocol.entries import Count, Movement, Reading
from wire_protocol.frames import EPOCHS_MAX
from wire_protocol.messages import Rejected
from wire_protocol.reasons import RejectCode
from wire_protocol.replication import NO_CURSOR, Cursor, Receiver, Verdict
from wire_protocol.stock import Cell


@dataclass(frozen=True, slots=True)
class RejectedEntry:
    """An entry that does not count, and why; `row` is None when the whole frame could not be read."""

    seq: int
    code: RejectCode
    sentence: str
    row: object

    @property
    def reason(self) -> str:
        """As it is sent to the gateway and stored."""
        return self.code.says(self.sentence)


class QuarantineCode(StrEnum):
    """Why a whole frame is put aside. It decides which alarm is raised; the dead letter has only the sentence."""

    FORK = "fork"
    UNKNOWN_GATEWAY = "unknown-gateway"
    DISABLED_GATEWAY = "disabled-gateway"


class QuarantinedFrame(NamedTuple):
    """A frame that is put aside, and why."""

    arrived: ArrivedFrame
    code: QuarantineCode
    sentence: str


@dataclass(slots=True)
class PlannedFrame:
    """A frame that will be merged: its usable movements, its other usable entries, and the rest with the reason."""

    arrived: ArrivedFrame
    gateway: Gateway
    movements: MovementColumns
    others: list[tuple[int, Count | Reading]]
    rejected: list[RejectedEntry]

    @property
    def entries(self) -> list[tuple[int, Entry]]:
        """All usable entries with their sequence numbers, one by one: for what is asked seldom."""
        usable = {*self.movements.seqs.tolist(), *(seq for seq, _ in self.others)}
        found, _ = self.arrived.validated()
        numbered = enumerate(found, self.arrived.frame.header.first_seq)
        return [(seq, entry) for seq, entry in numbered if entry is not None and seq in usable]

    def take_out(self, seqs: Collection[int]) -> None:
        """Make entries unusable."""
        self.movements = self.movements.where(~np.isin(self.movements.seqs, list(seqs)))
        self.others = [(seq, entry) for seq, entry in self.others if seq not in seqs]


@dataclass(slots=True)
class Plan:
    """What will happen: frames to merge, frames to quarantine with the reason, and the report to give afterwards.

    `cursors` are the logs that the plan depends on, as they were: those of its frames, and for a gateway with several
    epochs all of them. `known` are all ledger logs that its gateways had.
    """

    gateways: dict[str, Gateway]
    cursors: dict[LogKey, Cursor]
    known: frozenset[LogKey] = frozenset()
    merged: list[PlannedFrame] = field(default_factory=list)
    quarantined: list[QuarantinedFrame] = field(default_factory=list)
    report: MergeReport = field(default_factory=MergeReport)


def make(
    frames: Iterable[ArrivedFrame],
    gateways: Mapping[str, Gateway],
    cursors: Mapping[LogKey, Cursor],
    *,
    unstorable: str | None = None,
) -> Plan:
    """Judge the frames in the order they came.

    Args:
        frames: what arrived.
        gateways: the registry's rows of the gateways concerned.
        cursors: where every log of these gateways stands.
        unstorable: reject every entry for this reason; the frames keep their place in the chain.
    """
    plan, logs = Plan(dict(gateways), {}, known=ledger_logs(cursors)), _by_stream(cursors)
    for arrived in frames:
        gateway = gateways.get(arrived.gateway)
        if gateway is None or not gateway.active:
            _refuse(plan, arrived, gateway)
            continue
        key = arrived.log
        if key not in plan.report.streams:
            plan.cursors[key] = cursors.get(key, NO_CURSOR)
            older = _older(logs[key[:2]], key) if key.stream == "ledger" else {}
            plan.cursors |= {key._replace(epoch=epoch): cursor for epoch, cursor in older.items()}
            plan.report.streams[key] = StreamOutcome(Receiver(*key, plan.cursors[key], older))
        _judge(plan, arrived, gateway, plan.report.streams[key], unstorable)
    return plan


def _by_stream(cursors: Mapping[LogKey, Cursor]) -> Mapping[tuple[str, str], dict[LogKey, Cursor]]:
    """The logs of each stream of each gateway of which something was merged."""
    logs: defaultdict[tuple[str, str], dict[LogKey, Cursor]] = defaultdict(dict)
    for key, cursor in cursors.items():
        if cursor.frame:
            logs[key[:2]][key] = cursor
    return logs


def _refuse(plan: Plan, arrived: ArrivedFrame, gateway: Gateway | None) -> None:
    plan.report.refused.add(arrived.gateway)
    if gateway is None:
        why = QuarantinedFrame(arrived, QuarantineCode.UNKNOWN_GATEWAY, "the gateway is not in the registry")
    else:
        why = QuarantinedFrame(arrived, QuarantineCode.DISABLED_GATEWAY, "the gateway is disabled")
    plan.quarantined.append(why)


def _judge(plan: Plan, arrived: ArrivedFrame, gateway: Gateway, outcome: StreamOutcome, unstorable: str | None) -> None:
    match outcome.receiver.offer(arrived.frame.header, arrived.frame.digest):
        case Verdict.DUPLICATE:
            plan.report.duplicates += 1
        case Verdict.AHEAD:
            plan.report.ahead += 1
        case Verdict.FORK:
            plan.report.forks += 1
            plan.report.forked[arrived.gateway] = plan.report.forked.get(arrived.gateway, 0) + 1
            plan.quarantined.append(QuarantinedFrame(arrived, QuarantineCode.FORK, f"fork: {outcome.receiver.fork}"))
        case Verdict.MERGE:
            planned = _read(arrived, gateway, unstorable)
            plan.merged.append(planned)
            plan.report.frames += 1
            _tell(plan, outcome, planned.rejected)


def _older(logs: Mapping[LogKey, Cursor], log: LogKey) -> dict[str, Cursor]:
    """The gateway's other logs by epoch: as many of the latest as a frame can say that it knows."""
    latest = sorted(other.epoch for other in logs if other != log)[-EPOCHS_MAX:]
    return {epoch: logs[log._replace(epoch=epoch)] for epoch in latest}


def ledger_logs(cursors: Mapping[LogKey, Cursor]) -> frozenset[LogKey]:
    """The ledger logs of which something was merged."""
    return frozenset(key for key, cursor in cursors.items() if key.stream == "ledger" and cursor.frame)


def moved(plan: Plan) -> dict[LogKey, Cursor]:
    """Where the plan moves logs to."""
    ends = {key: outcome.receiver.cursor for key, outcome in plan.report.streams.items()}
    return {key: cursor for key, cursor in ends.items() if cursor != plan.cursors[key]}


def reject(plan: Plan, planned: PlannedFrame, code: RejectCode, sentences: Mapping[int, str]) -> None:
    """Take entries out of a planned frame; `sentences` says by sequence number why."""
    first, rows = planned.arrived.frame.header.first_seq, planned.arrived.frame.rows
    out = [RejectedEntry(seq, code, said, rows[seq - first]) for seq, said in sorted(sentences.items())]
    planned.take_out(sentences.keys())
    planned.rejected.extend(out)
    _tell(plan, plan.report.streams[planned.arrived.log], out)


def reject_concerning(plan: Plan, cells: Collection[Cell]) -> None:
    """Take out every entry that changes one of these cells, because their stock would leave its domain."""
    for planned in plan.merged:
        sentences = {
            seq: f"the stock of {found.sku} at {found.location} would be beyond {stock.BALANCE_MAX}"
            for seq, entry in planned.entries
            for found in _changed(entry)
            if found in cells
        }
        if sentences:
            reject(plan, planned, RejectCode.OUT_OF_DOMAIN, sentences)


def _changed(entry: Entry) -> Iterable[Cell]:
    if isinstance(entry, Movement):
        return [delta.cell for delta in stock.deltas(entry)]
    if isinstance(entry, Count):
        counted = stock.counted_cell(entry)
        return [counted, counted._replace(location=names.ADJUST)]
    return []


def _tell(plan: Plan, outcome: StreamOutcome, rejected: list[RejectedEntry]) -> None:
    plan.report.rejected += len(rejected)
    outcome.rejected += [Rejected(seq=bad.seq, reason=bad.reason) for bad in rejected]


def _read(arrived: ArrivedFrame, gateway: Gateway, unstorable: str | None) -> PlannedFrame:
    """Sort the entries of a frame that is next in its chain."""
    frame, first = arrived.frame, arrived.frame.header.first_seq
    found = FrameEntries(frame_entries.NONE, [], [], unstorable) if unstorable else arrived.entries()
    if problem := found.unreadable:
        code = RejectCode.UNSTORABLE if unstorable else RejectCode.UNREADABLE
        lost = [RejectedEntry(seq, code, problem, None) for seq in range(first, frame.header.last_seq + 1)]
        return PlannedFrame(arrived, gateway, frame_entries.NONE, [], lost)
    # The count in the header moves the cursor, so it must be the number of entries: asserted here again.
    assert len(found.movements) + len(found.others) + len(found.problems) == frame.header.count  # noqa: S101
    rejected = [
        RejectedEntry(first + index, RejectCode.INVALID, problem, frame.rows[index])
        for index, problem in found.problems
    ]
    others: list[tuple[int, Count | Reading]] = []
    wanted = Count if arrived.stream == "ledger" else Reading
    for seq, entry in found.others:
        if isinstance(entry, wanted):
            others.append((seq, entry))
        else:
            sentence = f"a {entry.kind} does not belong into the stream {arrived.stream}"
            rejected.append(RejectedEntry(seq, RejectCode.WRONG_STREAM, sentence, frame.rows[seq - first]))
    return PlannedFrame(arrived, gateway, found.movements, others, rejected)
