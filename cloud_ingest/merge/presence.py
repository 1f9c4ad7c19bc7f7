"""Presence: who is connected. Statuses come in, cursors go out.

A gateway that comes online gets its cursors and is asked for what follows. So are all gateways of a shard that this
worker has just subscribed to: frames that were in flight to a worker that died are lost with its session.

`Presence.answer` waits for nothing but the context, so that the simulator drives it on virtual time.

Invariant: the rate of asking is bounded; a fleet that is asked all at once would answer all at once.
"""

import asyncio
import itertools
from collections.abc import Callable, Coroutine, Iterable, Iterator
from typing import Any, Final

import structlog

from cloud_ingest.context import Context
from cloud_ingest.inbound import Inbound
from cloud_ingest.mailbox import Mailbox, WakeUp
from cloud_store.base.errors import DatabaseUnavailable
from cloud_store.merge import dead_letters, presence
from cloud_store.merge.arrivals import LogKey
from cloud_store.merge.dead_letters import DeadLetter, LetterKind
from cloud_store.merge.presence import Contacts, Standing
from wire_protocol import topics
from wire_protocol.messages import GatewayStatus, InvalidMessage
from wire_protocol.proof import StockDigest
from wire_protocol.replication import Receiver
from wire_protocol.topics import Channel, Stream

# Long enough for the frames of a gateway that has some to arrive: then it need not be asked.
GATHER_S: Final = 0.3
TRIM_S: Final = 60.0
ONLINE_REMEMBERED_MAX: Final = 100_000
EPOCHS_REMEMBERED_MAX: Final = 3  # of one gateway: clones that are online at the same time
_LOG = structlog.get_logger()


class Presence:
    """Answers gateways that announce themselves, and asks those of new shards.

    Args:
        context: what all services stand on.
        window: how many frames the gateway of a log may have in flight.
        proved: called with each digest of a gateway's stock.
    """

    def __init__(
        self,
        context: Context,
        window: Callable[[LogKey], int],
        proved: Callable[[str, StockDigest], None] = lambda _gateway, _proof: None,
    ) -> None:
        self._context, self._settings, self._window, self._proved = context, context.settings, window, proved
        self._statuses: dict[str, tuple[GatewayStatus, int]] = {}
        self._letters: Mailbox[tuple[str, int], DeadLetter] = context.mailbox(
            "status_letters", self._settings.status_waiting_max
        )
        self._letter_numbers = itertools.count()
        self._arrived: set[tuple[str, str]] = set()
        self._online: dict[str, frozenset[str]] = {}
        self._new_shards: set[int] = set()
        self._sending: set[tuple[str, Stream]] = set()
        # What was acknowledged since the answers in hand were looked up; None while there are none.
        self._acknowledged: set[LogKey] | None = None
        self.due = WakeUp("presence")

    def reported(self, inbound: Inbound) -> None:
        """A status arrived; the latest of each gateway is kept until it is stored."""
        try:
            status = GatewayStatus.decode(inbound.payload)
        except InvalidMessage as error:
            letter = DeadLetter(LetterKind.STATUS, inbound.sender, inbound.topic, str(error), inbound.payload)
            if inbound.payload and self._letters.put(
                (inbound.sender, next(self._letter_numbers)), letter, len(inbound.payload)
            ):
                self.due()
            return
        gateway = inbound.sender
        if gateway not in self._statuses and len(self._statuses) >= self._settings.status_waiting_max:
            self._context.metrics.refused_items.labels("presence").inc()  # it reports again, and then counts as new
            return
        if status.stock is not None and status.state == "online" and not inbound.retained:
            self._proved(gateway, status.stock)
        self._note_online(gateway, status, retained=inbound.retained)
        self._statuses[gateway] = (status, inbound.received_ms)
        self.due()

    def subscribed(self, shards: frozenset[int]) -> None:
        """Frames of these shards now come here."""
        self._new_shards |= shards
        self._online = {name: epochs for name, epochs in self._online.items() if topics.shard(name) not in shards}
        self.due()

    def sending(self, gateway: str, stream: Stream) -> None:
        """A frame was taken into the inbox: its own acknowledgement says more than an answer to the contact would.

        Asking such a gateway would only make it send its whole window again.
        """
        epochs = self._online.get(gateway, frozenset())
        if len(epochs) > 1:
            return  # two disks under one name: which of them sent the frame is unknown
        arrived = any((gateway, epoch) in self._arrived for epoch in epochs)
        has_room = len(self._sending) < self._settings.status_waiting_max
        if has_room and (arrived or topics.shard(gateway) in self._new_shards):
            self._sending.add((gateway, stream))

    def acknowledged(self, logs: Iterable[LogKey]) -> None:
        """These were acknowledged just now: a cursor that was read a moment ago would ask for what is there."""
        if self._acknowledged is not None:
            self._acknowledged.update(logs)

    def loops(self) -> Iterator[Coroutine[Any, Any, None]]:
        """What runs until the worker stops."""
        yield self._context.serve(self.due, self._gather)
        yield self._context.every(TRIM_S, "dead_letters", self._trim)

    async def answer(self) -> None:
        """Store what was reported, and tell gateways where their logs stand.

        Raises:
            DatabaseUnavailable: nothing was answered yet; everything is still to be done.
        """
        self._acknowledged = set()
        try:
            await self._look_up_and_ask(self._acknowledged)
        finally:
            self._acknowledged = None

    async def _look_up_and_ask(self, acknowledged: set[LogKey]) -> None:
        contacts = Contacts(
            self._letters.values(), dict(self._statuses), frozenset(self._new_shards), frozenset(self._arrived)
        )
        cursors, verdicts = await self._look_up(contacts)
        self._done(contacts)
        cursors = {log: cursor for log, cursor in cursors.items() if log[:2] not in self._sending}
        self._sending.clear()
        if cursors:
            _LOG.info(
                "gateways_asked", streams=len(cursors), shards=len(contacts.shards), arrived=len(contacts.arrived)
            )
        asked = 0
        for log, cursor in cursors.items():
            if log in acknowledged:
                continue  # a newer acknowledgement has reached it since the look-up
            rejected = verdicts.get(log, ())
            for ack in Receiver(*log, cursor).acks(
                self._context.now_ms(), self._window(log), rejected=rejected, ask=True
            ):
                self._context.publish(topics.link(log.gateway, Channel.ACK), ack.encode())
            asked += 1
            if asked % self._settings.asks_per_s_max == 0:
                await self._context.pause(1.0)

    async def _look_up(self, contacts: Contacts) -> Standing:
        """All at once; each gateway by itself when one of them cannot be stored, whose contact is then dropped."""
        database = self._context.database
        try:
            return await database.run(presence.exchange, contacts)
        except DatabaseUnavailable:
            raise
        except Exception:  # noqa: BLE001 - one gateway's contact must not keep all the others' from being answered
            standing = Standing({}, {})
            for one in _each(contacts):
                try:
                    found = await database.run(presence.exchange, one)
                except DatabaseUnavailable:
                    raise
                except Exception as error:  # noqa: BLE001 - as above
                    self._context.failed("presence", _gateway_of(one), error)
                else:
                    standing.cursors.update(found.cursors)
                    standing.verdicts.update(found.verdicts)
            return standing

    def _done(self, contacts: Contacts) -> None:
        """Drop what was stored, but not what came in meanwhile."""
        for _ in contacts.letters:
            self._letters.pop()
        for gateway, stored in contacts.statuses.items():
            if self._statuses.get(gateway) is stored:
                del self._statuses[gateway]
        self._new_shards -= contacts.shards
        self._arrived -= contacts.arrived

    def _note_online(self, gateway: str, status: GatewayStatus, *, retained: bool) -> None:
        """Keep in which epochs a gateway is online, and whether it has just arrived."""
        before = there = self._online.pop(gateway, frozenset())
        if status.state == "offline":
            there -= {status.epoch}
        elif (status.arrived or status.epoch not in there) and not retained:
            # A retained status may be old; a gateway that is really there is asked with its shard. And one that was
            # there in this epoch may have left it for another without a word, and a clone of its disk come instead.
            there = frozenset({*sorted(there - {status.epoch})[-EPOCHS_REMEMBERED_MAX:], status.epoch})
            self._arrived.add((gateway, status.epoch))
        # One that has left, or has come in too many epochs to be remembered, waits for no answer.
        self._arrived -= {(gateway, epoch) for epoch in before - there}
        if there:
            if len(self._online) >= ONLINE_REMEMBERED_MAX:
                del self._online[next(iter(self._online))]
            self._online[gateway] = there

    async def _gather(self, _key: None, _value: None) -> None:
        await asyncio.sleep(GATHER_S)
        await self.answer()

    async def _trim(self) -> None:
        await self._context.database.run(dead_letters.trim)


def _gateway_of(contacts: Contacts) -> str | None:
    """The gateway that contacts of one gateway are about."""
    return next(iter(contacts.statuses), None) or next((gateway for gateway, _ in contacts.arrived), None)


def _each(contacts: Contacts) -> Iterator[Contacts]:
    """Contacts of one gateway each, the dead letters and the shards by themselves."""
    if contacts.letters:
        yield Contacts(contacts.letters, {}, frozenset(), frozenset())
    if contacts.shards:
        yield Contacts((), {}, contacts.shards, frozenset())
    for gateway in contacts.statuses.keys() | {gateway for gateway, _ in contacts.arrived}:
        arrived = frozenset(contact for contact in contacts.arrived if contact[0] == gateway)
        status = contacts.statuses.get(gateway)
        yield Contacts((), {} if status is None else {gateway: status}, frozenset(), arrived)
