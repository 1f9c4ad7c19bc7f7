"""Planted bugs: each breaks one promise in the simulator's process for the length of a run, to see that it is noticed.

Production files are not touched: a bug replaces a method of a class or a name in a module, and puts it back.

`FINDINGS` are the other way round: the simulator steps around something that production really does; planting one
takes that step away, so that production is seen as it is.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Final
from unittest.mock import patch

import edge_agent.ledger.ledger
import edge_agent.ledger.outbox
import edge_agent.ledger.recovery
import edge_agent.ledger.site_logs
import edge_agent.link.site_sync
from cloud_ingest.merge.presence import Presence
from cloud_store.merge import presence
from edge_agent.ledger import recovery
from edge_agent.ledger.derivation import Derivation
from edge_agent.ledger.ledger import Ledger, _Order
from edge_agent.ledger.site_logs import SiteLogWriter
from edge_agent.ledger.sql import statement
from edge_agent.link.shipping import Shipping
from edge_agent.link.site_sync import SiteSync
from simulation import universe
from simulation.cloud.answers import RepeatQueries
from simulation.cloud.worker import SimWorker
from simulation.mutations import cloud, edge, sites
from simulation.network import Network
from wire_protocol import clock, times
from wire_protocol.replication import Receiver, Sender
from wire_protocol.stock import Balance

Patch = tuple[object, str, object]


@dataclass(frozen=True, slots=True)
class Bug:
    """One planted bug."""

    name: str
    what: str
    patches: tuple[Patch, ...]


def _instead(**statements: str) -> Callable[[str], str]:
    """The ledger's statements with some replaced."""
    return lambda name: statements.get(name) or statement(name)


def _sql(module: object, **statements: str) -> Patch:
    return module, "statement", _instead(**statements)


def _nothing(*_: object, **__: object) -> None:
    """What a removed check does."""


_DROP_UNACKED: Final = "DELETE FROM frame WHERE acked_ms IS NULL AND :before_ms > 0"
_DROP_ACKED: Final = "DELETE FROM frame WHERE acked_ms IS NOT NULL AND :before_ms > 0"
_SEEN_AGAIN: Final = "INSERT OR REPLACE INTO seen (device, event, seq) VALUES (?, ?, ?)"

BUGS: Final[tuple[Bug, ...]] = (
    Bug(
        "ack-before-commit",
        "a worker acknowledges, then commits",
        ((universe, "SimWorker", cloud.AckBeforeCommit),),
    ),
    Bug(
        "cursor-apart",
        "the cursor moves in a transaction before the rows'",
        ((universe, "SimWorker", cloud.CursorApart),),
    ),
    Bug(
        "rows-apart",
        "the rows are stored in a transaction before the cursor's",
        ((universe, "SimWorker", cloud.RowsApart),),
    ),
    Bug(
        "stale-plan",
        "a plan is carried out on cursors that have moved",
        ((SimWorker, "require_fresh", _nothing),),
    ),
    Bug(
        "takeover-in-silence",
        "a worker that takes a shard over asks nobody, nor whoever claims more than the cloud has (with one of the two"
        " gone, the other catches it)",
        ((Presence, "subscribed", _nothing), (presence, "_is_behind", lambda *_: False)),
    ),
    Bug("gap-accepted", "a frame ahead of the cursor is merged", ((Receiver, "offer", cloud.offer_with_gaps),)),
    Bug(
        "duplicate-merged",
        "a frame behind the cursor is merged again",
        ((Receiver, "offer", cloud.offer_repeated),),
    ),
    Bug(
        "fork-check-removed",
        "a frame of another history is merged, and no sender compares digests either",
        ((Receiver, "_fork_reason", _nothing), (Sender, "receive", edge.receive_without_digest)),
    ),
    Bug("count-as-delta", "a count adds what was found", ((Balance, "after_count", cloud.count_as_delta),)),
    Bug(
        "late-count-forgets",
        "a late count forgets later movements",
        ((Balance, "after_count", cloud.count_forgets),),
    ),
    Bug(
        "late-movement-counts",
        "a movement covered by a count counts",
        ((Balance, "after_movement", cloud.move_always),),
    ),
    Bug(
        "dedupe-by-timestamp",
        "an event of the same millisecond is a repetition",
        ((Ledger, "append", edge.append_by_time),),
    ),
    Bug("seen-skipped", "event ids are not looked up", (_sql(edge_agent.ledger.ledger, insert_seen=_SEEN_AGAIN),)),
    Bug(
        "hlc-without-counter",
        "the logical clock stands while the wall clock does",
        ((clock, "tick", edge.tick_without_counter),),
    ),
    Bug(
        "receipt-before-commit",
        "a device gets its receipt on arrival",
        ((universe, "Machine", edge.ReceiptBeforeCommit),),
    ),
    Bug("resealed", "a frame is encoded again for each sending", ((edge_agent.ledger.outbox, "body", edge.reseal),)),
    Bug(
        "window-off-by-one",
        "one frame more than the window is in flight",
        ((Sender, "_admitted", edge.admit_one_more),),
    ),
    Bug("no-resend", "nothing is sent again after a timeout", ((Sender, "_expecting", lambda _: False),)),
    Bug("step-back-ignored", "a cloud that fell back is not heard", ((Sender, "_go_back", edge.never_step_back),)),
    Bug(
        "foreign-ack",
        "another epoch's acknowledgement is taken",
        ((Shipping, "acknowledged", edge.acknowledged_for_any_log),),
    ),
    Bug(
        "dropped-before-ack",
        "upkeep forgets unacknowledged frames",
        (_sql(edge_agent.ledger.outbox, trim_frames_by_age=_DROP_UNACKED),),
    ),
    Bug(
        "no-retention",
        "upkeep forgets frames once they are acknowledged",
        (_sql(edge_agent.ledger.outbox, trim_frames_by_age=_DROP_ACKED),),
    ),
    Bug(
        "digest-not-compared",
        "a sender does not ask whose frame was acknowledged",
        ((Sender, "receive", edge.receive_without_digest),),
    ),
    Bug(
        "after-not-checked",
        "a new epoch need not know the older ones, and events that two logs have count in both",
        ((Receiver, "_ignorance", _nothing), (RepeatQueries, "take_out", _nothing)),
    ),
    Bug(
        "repeats-not-taken-out",
        "events that two logs have count in both",
        ((RepeatQueries, "take_out", _nothing),),
    ),
    Bug("rejected-still-booked", "a rejected entry stays in the edge's stock", ((Derivation, "withdraw", _nothing),)),
    Bug(
        "rejected-passed-on",
        "a rejected entry counts at the site's other gateways",
        ((edge_agent.ledger.site_logs, "_counting", sites.counting_all),),
    ),
    Bug("late-entry-not-replayed", "cells are not replayed for a late entry", ((Derivation, "_disturb", _nothing),)),
    Bug("late-is-now", "what is delivered late is placed at its arrival", ((Ledger, "lateness", edge.never_late),)),
    Bug(
        "late-by-the-wall-clock",
        "what is delivered late is placed by the wall clock, not between what was recorded before and after it",
        ((_Order, "_place", edge.place_by_wall_clock),),
    ),
    Bug("observe-skipped", "the clock does not follow other gateways'", ((Ledger, "_observed", lambda _: 0),)),
    Bug("staged-booked", "what is staged is booked at once", ((SiteLogWriter, "_store", sites.store_booked),)),
    Bug(
        "carried-without-dedupe",
        "a new epoch takes over what older logs have",
        ((recovery, "_identity", sites.nothing_known),),
    ),
    Bug(
        "site-cursor-apart",
        "another log's cursor moves in a transaction before the rows'",
        ((SiteSync, "_receive", sites.cursor_apart),),
    ),
    Bug(
        "time-from-wall-clock",
        "the true time is the entry's clock",
        ((times, "true_time", edge.time_from_wall_clock), (Ledger, "now_ms", edge.wall_clock)),
    ),
    Bug(
        "sealed-before-time",
        "frames are sealed before this boot's true time is known",
        ((Shipping, "may_seal", lambda _: True),),
    ),
    Bug(
        "lost-log-ignored",
        "a cloud that lost an older log is not noticed",
        ((recovery, "lost_by_cloud", sites.never_lost),),
    ),
    Bug(
        "unlike-log-ignored",
        "a cloud that fell back behind a neighbour's log is not noticed",
        ((edge_agent.link.site_sync, "diverged_from_cloud", sites.never_diverged),),
    ),
    Bug(
        "own-log-asked-unstaged",
        "a stopped ledger asks for its own log before it can take it",
        ((SiteSync, "_staged", sites.asks_own_once_stopped),),
    ),
)

FINDINGS: Final[tuple[Bug, ...]] = (
    Bug(
        "judged-again",
        "after a failover the cloud rejects what it took before, or takes what it rejected",
        ((universe.Universe, "answer_alarms", lambda self: self.store.rejudged.clear()),),
    ),
    Bug(
        "damaged-plain-json",
        "a flipped bit in a payload without a checksum is not noticed",
        ((Network, "damage", edge.flip_anywhere),),
    ),
)

BY_NAME: Final = {bug.name: bug for bug in (*BUGS, *FINDINGS)}


@contextmanager
def planted(bug: Bug | None) -> Iterator[None]:
    """Plant a bug for the length of the block."""
    with ExitStack() as stack:
        for target, name, replacement in bug.patches if bug else ():
            changed: Any = patch.object(target, name, replacement)
            stack.enter_context(changed)
        yield
