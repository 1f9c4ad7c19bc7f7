"""What the cloud's workers ask the database, answered from the store in memory.

Where production decides in Python and asks in SQL, its own code runs and only the question is answered here: which
device events are in other logs (`cloud_store.merge.cross_log_dedup`), what contacts need to know
(`cloud_ingest.merge.presence`). The answer to a site's gateways (`cloud_store.provisioning.sites`) is put together here
as it is there.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, cast

from cloud_store.base.connection import Connection
from cloud_store.base.gateways import Gateway
from cloud_store.merge import cross_log_dedup, presence
from cloud_store.merge.arrivals import LogKey
from cloud_store.merge.plan import Plan
from cloud_store.merge.presence import Contacts, Standing
from cloud_store.provisioning.sites import SiteReply
from simulation.store import Store, cursor_of
from wire_protocol import topics
from wire_protocol.messages import Rejected
from wire_protocol.reasons import RejectCode
from wire_protocol.replication import Cursor
from wire_protocol.site_messages import LogCursor, SiteFrame, SiteRequest

_REPEATS = cross_log_dedup._SQL  # noqa: SLF001 - the statements are told apart by their text

TOLD_AGAIN: Final = RejectCode.REPEATED.says("counts already")


class RepeatQueries:
    """The two questions of `cloud_store.merge.cross_log_dedup`."""

    def __init__(self, store: Store, registry: Mapping[str, Gateway]) -> None:
        self._store, self._registry = store, registry
        self._ids: dict[str, int] = {}

    def take_out(self, planned: Plan) -> None:
        """Production's `take_out`, on this store."""
        self._store.require()
        cross_log_dedup.take_out(cast("Connection", self), planned)

    def execute(self, query: object, parameters: Mapping[str, Any]) -> list[tuple[Any, ...]]:
        """As a connection does it."""
        return self._after(parameters["gateways"]) if query == _REPEATS["after"] else self._events(parameters)

    def _id(self, epoch: str) -> int:
        return self._ids.setdefault(epoch, len(self._ids) + 1)

    def _after(self, gateways: Sequence[int]) -> list[tuple[Any, ...]]:
        numbers = {name: gateway.gateway_id for name, gateway in self._registry.items()}
        return [
            (numbers[key.gateway], key.epoch, self._id(key.epoch), self._store.after.get(key, {}))
            for key in self._store.cursors
            if key.stream == "ledger" and numbers[key.gateway] in gateways
        ]

    def _events(self, wanted: Mapping[str, Any]) -> list[tuple[Any, ...]]:
        name = next(name for name, known in self._registry.items() if known.gateway_id == wanted["gateway_id"])
        events, hlcs, epochs = set(wanted["events"]), set(wanted["hlcs"]), set(wanted["epochs"])
        return [
            (
                entry.device,
                entry.event,
                entry.hlc,
                entry.sku,
                entry.quantity,
                entry.actor,
                entry.reference,
                key.epoch,
                seq,
            )
            for key, entries in self._store.entries.items()
            if key.gateway == name and self._id(key.epoch) in epochs
            for seq, entry in entries
            if (entry.hlc in hlcs if entry.event is None else entry.event in events)
        ]


def exchange(store: Store, contacts: Contacts) -> Standing:
    """What `cloud_store.merge.presence.exchange` stores and reads."""
    store.require()
    for gateway, (status, _) in sorted(contacts.statuses.items()):
        store.announce(gateway, status.epoch)
    logs = {key[::2] for key in store.cursors} | set(store.announced.items())
    found = _cursors_of(store, (log for log in logs if topics.shard(log[0]) in contacts.shards))
    if announced := presence.announced_by(contacts):
        found |= presence.to_be_sent(contacts, _cursors_of(store, announced))
    rejected = {key: store.rejected.get(key, ()) for key in found}
    verdicts = {
        key: [Rejected(seq=seq, reason=TOLD_AGAIN) for seq in sorted(seqs)] for key, seqs in rejected.items() if seqs
    }
    return Standing(found, verdicts)


def _cursors_of(store: Store, announced: Iterable[tuple[str, str]]) -> dict[LogKey, Cursor]:
    """Both streams of each: (gateway, epoch)."""
    keys = [LogKey(name, stream, epoch) for name, epoch in sorted(announced) for stream in topics.STREAMS]
    return {key: cursor_of(store, key) for key in keys}


def peers(registry: Mapping[str, Gateway], wanted: Iterable[int]) -> dict[int, list[str]]:
    """What `cloud_store.provisioning.sites.peers` reads; here all gateways count as online."""
    return {site: [name for name, each in registry.items() if each.site_id == site] for site in wanted}


def answer(
    store: Store, registry: Mapping[str, Gateway], gateway: str, ask: SiteRequest, *, bytes_max: int
) -> SiteReply:
    """What a gateway lacks of its site's logs, put together as `cloud_store.provisioning.sites.answer` does."""
    store.require()
    known = {(log.gateway, log.epoch): log.frame for log in ask.logs}
    site = registry[gateway].site_id
    logs = sorted(
        (
            key
            for key, cursor in store.cursors.items()
            if key.stream == "ledger" and cursor.frame and registry[key.gateway].site_id == site
        ),
        key=lambda key: (key.epoch, key.gateway),
    )
    heads = [
        LogCursor(gateway=key.gateway, epoch=key.epoch, frame=at.frame, seq=at.seq, digest=at.digest)
        for key in logs
        for at in [store.cursors[key]]
    ]
    sent: list[SiteFrame] = []
    room = bytes_max
    for key in logs:
        if (key.gateway, key.epoch) == (gateway, ask.own):
            continue
        for frame in store.frames[key][known.get((key.gateway, key.epoch), 0) :]:
            room -= len(frame.frame)
            if sent and room < 0:
                return SiteReply(sent, heads, more=True)
            sent.append(frame)
    return SiteReply(sent, heads, more=False)
