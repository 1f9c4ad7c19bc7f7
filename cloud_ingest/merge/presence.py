"""Contact with gateways: statuses in, cursors out.

A gateway that comes online is told its cursors and asked for what follows. So are all gateways of a shard that this
worker has just subscribed to: frames that were in flight to a worker that died are lost with its session.

Invariant: the rate of asking is bounded; a fleet that is asked all at once would answer all at once.
"""

import asyncio
import itertools
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Final

import structlog

from cloud_ingest.settings import IngestSettings
from cloud_ingest.threads import uninterrupted
from cloud_ingest.waiting import Waiting
from cloud_store.base.errors import StoreError
from cloud_store.merge.arrivals import LogKey
from cloud_store.merge.dead_letters import DeadLetter
from cloud_store.merge.presence import ContactStore
from wire_protocol import topics
from wire_protocol.messages import GatewayStatus, InvalidMessage, Rejected
from wire_protocol.proof import StockProof
from wire_protocol.replication import Cursor, Receiver
from wire_protocol.topics import Channel, Stream

# Long enough for the frames of a gateway that has some to arrive: then it need not be asked.
GATHER_S: Final = 0.3
RETRY_S: Final = 1.0
TRIM_S: Final = 60.0
ONLINE_REMEMBERED_MAX: Final = 100_000
EPOCHS_REMEMBERED_MAX: Final = 3  # of one gateway: clones that are online at the same time
_LOG = structlog.get_logger()


class Contacts:
    """Answers gateways that announce themselves, and asks those of new shards."""

    def __init__(
        self,
        settings: IngestSettings,
        store: ContactStore,
        publish: Callable[[str, bytes], None],
        window: Callable[[LogKey], int],
        proved: Callable[[str, StockProof], None] = lambda _gateway, _proof: None,
    ) -> None:
        self._proved = proved
        self._settings, self._store, self._publish, self._window = settings, store, publish, window
        self._statuses: dict[str, tuple[GatewayStatus, int]] = {}
        self._letters: Waiting[int, DeadLetter] = Waiting(
            messages_max=settings.status_waiting_max, bytes_max=settings.waiting_bytes_max
        )
        self._letter_numbers = itertools.count()
        self._arrived: set[tuple[str, str]] = set()
        self._online: dict[str, frozenset[str]] = {}
        self._new_shards: set[int] = set()
        self._sending: set[tuple[str, Stream]] = set()
        # What was acknowledged since the answer in hand was looked up; None while there is none.
        self._acknowledged: set[LogKey] | None = None
        self._work = asyncio.Event()
        self._trim_at = 0.0

    def heard(self, gateway: str, topic: str, payload: bytes, *, received_ms: int, retained: bool) -> None:
        """A status arrived; the latest of each gateway is kept until it is stored."""
        try:
            status = GatewayStatus.decode(payload)
        except InvalidMessage as error:
            letter = DeadLetter("status", gateway, topic, str(error), payload)
            if payload and self._letters.put(next(self._letter_numbers), letter, len(payload)):
                self._work.set()
            return
        if status.stock is not None and status.state == "online" and not retained:
            self._proved(gateway, status.stock)
        before = there = self._online.pop(gateway, frozenset())
        if status.state == "offline":
            there -= {status.epoch}
        elif (status.arrived or status.epoch not in there) and not retained:
            # A retained status may be old; whoever is really there is asked with its shard. And whoever was there in
            # this epoch may have left it for another without a word, and a clone of its disk come in its place.
            there = frozenset({*sorted(there - {status.epoch})[-EPOCHS_REMEMBERED_MAX:], status.epoch})
            arrived = (gateway, status.epoch)
            if arrived in self._arrived or len(self._arrived) < self._settings.status_waiting_max:
                self._arrived.add(arrived)
            else:
                there -= {status.epoch}  # so that its next status is an arrival again
        # Whoever has left, or has come in too many epochs to be remembered, waits for no answer.
        self._arrived -= {(gateway, epoch) for epoch in before - there}
        if there:
            if len(self._online) >= ONLINE_REMEMBERED_MAX:
                del self._online[next(iter(self._online))]
            self._online[gateway] = there
        if gateway in self._statuses or len(self._statuses) < self._settings.status_waiting_max:
            self._statuses[gateway] = (status, received_ms)
        self._work.set()

    def subscribed(self, shards: frozenset[int]) -> None:
        """Frames of these shards now come here."""
        self._new_shards |= shards
        self._online = {name: epochs for name, epochs in self._online.items() if topics.shard(name) not in shards}
        self._work.set()

    def sending(self, gateway: str, stream: Stream) -> None:
        """A frame was taken into the inbox: its own acknowledgement says more than an answer to the contact would.

        Asking such a gateway would only make it send its whole window again.
        """
        epochs = self._online.get(gateway, frozenset())
        if len(epochs) > 1:
            return  # two disks under one name: nobody knows here whose frame it is
        arrived = any((gateway, epoch) in self._arrived for epoch in epochs)
        has_room = len(self._sending) < self._settings.status_waiting_max
        if has_room and (arrived or topics.shard(gateway) in self._new_shards):
            self._sending.add((gateway, stream))

    def acknowledged(self, logs: Iterable[LogKey]) -> None:
        """These were acknowledged just now: a cursor that was read a moment ago would ask for what is there."""
        if self._acknowledged is not None:
            self._acknowledged.update(logs)

    async def run(self) -> None:
        """Store and answer until cancelled; what could not be stored for want of a database is tried again."""
        while True:
            await self._work.wait()
            await asyncio.sleep(GATHER_S)
            self._work.clear()
            try:
                await self._answer()
            except StoreError as error:
                _LOG.warning("contacts_failed", reason=str(error), hint=error.hint)
                self._work.set()
                await asyncio.sleep(RETRY_S)

    async def _answer(self) -> None:
        self._acknowledged = set()
        try:
            await self._look_up_and_ask(self._acknowledged)
        finally:
            self._acknowledged = None

    async def _look_up_and_ask(self, acknowledged: set[LogKey]) -> None:
        letters, statuses = dict(self._letters), dict(self._statuses)
        shards, arrived = frozenset(self._new_shards), frozenset(self._arrived)
        cursors, verdicts = await uninterrupted(
            lambda: self._look_up(list(letters.values()), statuses, shards, arrived)
        )
        for number in letters:
            del self._letters[number]
        for gateway, heard in statuses.items():
            if self._statuses.get(gateway) is heard:
                del self._statuses[gateway]
        self._new_shards -= shards
        self._arrived -= arrived
        cursors = {key: at for key, at in cursors.items() if key[:2] not in self._sending}
        self._sending.clear()
        if cursors:
            _LOG.info("gateways_asked", streams=len(cursors), shards=len(shards), arrived=len(arrived))
        await self._ask(cursors, verdicts, acknowledged)

    def _look_up(
        self,
        letters: list[DeadLetter],
        statuses: Mapping[str, tuple[GatewayStatus, int]],
        shards: frozenset[int],
        arrived: frozenset[tuple[str, str]],
    ) -> tuple[dict[LogKey, Cursor], dict[LogKey, list[Rejected]]]:
        """What a thread does for `_answer`: store what was heard, read the cursors and the verdicts to tell."""
        self._store.quarantine(letters)
        self._store.record((gateway, status, received_ms) for gateway, (status, received_ms) in statuses.items())
        if time.monotonic() >= self._trim_at:
            self._store.trim_dead_letters()
            self._trim_at = time.monotonic() + TRIM_S
        cursors = self._store.cursors_in(shards) if shards else {}
        online = {(gateway, status.epoch): status for gateway, (status, _) in statuses.items() if status.streams}
        if asked := arrived | online.keys():
            found = self._store.cursors_of(asked)
            cursors |= {key: at for key, at in found.items() if key[::2] in arrived or _is_behind(at, key, online)}
        return cursors, self._store.verdicts_of(cursors) if cursors else {}

    async def _ask(
        self, cursors: Mapping[LogKey, Cursor], verdicts: Mapping[LogKey, list[Rejected]], acknowledged: set[LogKey]
    ) -> None:
        """Ask gateways, some of them a second; not those that a newer acknowledgement has reached since the look-up."""
        asked = 0
        for key, cursor in cursors.items():
            if key in acknowledged:
                continue
            now_ms = time.time_ns() // 1_000_000
            rejected = verdicts.get(key, ())
            for ack in Receiver(*key, cursor).acks(now_ms, self._window(key), rejected=rejected, ask=True):
                self._publish(topics.link(key.gateway, Channel.ACK), ack.encode())
            asked += 1
            if asked % self._settings.asks_per_s_max == 0:
                await asyncio.sleep(1.0)


def _is_behind(cursor: Cursor, log: LogKey, online: Mapping[tuple[str, str], GatewayStatus]) -> bool:
    """Whether a gateway believes that the cloud has more: it fell back, and its word of that was lost on the way."""
    status = online.get((log.gateway, log.epoch))
    stream = status.streams.get(log.stream) if status else None
    return stream is not None and stream.acked_frame > cursor.frame
