"""Opening a new epoch: whatever the cloud has or has lost, each entry is afterwards somewhere, and once."""

import asyncio
import json
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from edge_agent.ledger import audit, database, queries, streams
from edge_agent.ledger.clock import Clock
from edge_agent.ledger.drafts import Draft, ReadingDraft, draft
from edge_agent.ledger.ledger import Ledger
from edge_agent.ledger.outbox import Outbox
from edge_agent.ledger.recovery import Opened, Recovery
from edge_agent.ledger.writer import PatientWrites
from edge_agent.link.commands import COMMANDS_WAITING_MAX, Commands
from edge_agent.link.shipping import Shipping, sender_limits
from edge_agent.link.site_sync import CloudLost, SiteSync
from edge_agent.link.uplink import Uplink
from edge_agent.settings import EdgeSettings
from testbed import sites
from testbed.sites import START_MS, SiteGateway
from wire_protocol import frames, names
from wire_protocol.address import BrokerAddress
from wire_protocol.messages import Ack, GatewayStatus, Rejected
from wire_protocol.replication import Verdict
from wire_protocol.site_messages import LogCursor, SiteFrame, SiteHeads
from wire_protocol.stock import Cell

SHELF = Cell("A-1", "screw", "")
OLD = names.ulid(START_MS - 5, bytes(10))


def scan(number: int, quantity: int = 1) -> Draft:
    """Goods in, scanned under an event id of their own."""
    return draft("receive", "screw", quantity, destination="A-1", device="till-1", event=f"e-{number}")


async def made_nowhere(_run: object) -> None:
    """A write that these tests never ask for."""
    raise AssertionError


def head(message: SiteFrame) -> LogCursor:
    """Where the cloud has a log that ends with this frame."""
    made = frames.decode(message.frame)
    return LogCursor(
        gateway=message.gateway,
        epoch=made.header.epoch,
        frame=made.header.frame,
        seq=made.header.last_seq,
        digest=made.digest,
    )


def acked(gateway: SiteGateway, frame: int) -> None:
    """The cloud has acknowledged frames."""
    with database.transaction(gateway.ledger.connection):
        Outbox(gateway.ledger).acked("ledger", frame)


def recover(gateway: SiteGateway, *heads: LogCursor, having: list[SiteFrame] | None = None) -> Opened:
    """Stage, fetch and open, as after a fork."""
    with database.transaction(gateway.ledger.connection):
        Recovery(gateway.ledger).stage()
    gateway.receive(*(having or []))
    with database.transaction(gateway.ledger.connection):
        return Recovery(gateway.ledger).open_epoch(heads)


def events(gateway: SiteGateway) -> list[str]:
    """The events of every entry that counts, in any log."""
    return sorted(entry.event or "" for _, entry in queries.entries(gateway.ledger.connection))


def uplink(gateway: SiteGateway, path: Path) -> Uplink:
    """An uplink on a ledger, without a broker; what it writes is written at once."""

    def submit(run: Callable[[Ledger], Any]) -> "Future[Any]":
        done: Future[Any] = Future()
        with database.transaction(gateway.ledger.connection):
            done.set_result(run(gateway.ledger))
        return done

    clock: Clock = gateway.clock
    settings, reader = EdgeSettings(ledger=path), database.open_reader(path)
    write = PatientWrites(submit)
    shipping = Shipping(
        gateway=gateway.name,
        reader=reader,
        write=write,
        limits=lambda: sender_limits(settings, None),
        settings=settings,
        clock=clock,
        site=SiteSync(gateway.name, reader, write, settings, clock.mono_ms),
    )
    made = Uplink(
        brokers=(BrokerAddress.parse("mqtt://localhost"),),
        gateway=gateway.name,
        reader=reader,
        status=lambda state: GatewayStatus(state=state, epoch=gateway.ledger.epoch, version="0"),
        shipping=shipping,
        settings=settings,
        clock=clock,
    )
    made.shipping.connected(gateway.ledger.epoch, lambda _stream, _frame, _body: None)
    for stream_state in made.shipping.stream_states.values():
        stream_state.sender.connected(0)
    return made


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[SiteGateway]:
    """A gateway with its ledger in `tmp_path`."""
    with sites.gateways(tmp_path, ["gw-1"]) as (made,):
        yield made


def test_a_verdict_about_another_history_is_not_believed(gateway: SiteGateway, tmp_path: Path) -> None:
    """The cloud tells verdicts on contact; under a restored ledger they are on entries with the same numbers."""
    gateway.append(*(scan(number) for number in range(1, 6)))
    gateway.seal()
    acked(gateway, 1)
    gateway.append(scan(106), scan(107, 100), scan(108))
    link = uplink(gateway, tmp_path / "gw-1.db")
    told = Ack(
        stream="ledger",
        epoch=gateway.ledger.epoch,
        frame=2,
        seq=8,
        now_ms=START_MS,
        window=16,
        want=3,
        digest="ab" * 32,
        rejected=(Rejected(seq=7, reason="counts already"),),
    )
    asyncio.run(link.shipping.acknowledged(told))
    assert link.shipping.forked
    assert queries.balances(gateway.ledger.connection)[SHELF] == 107
    recover(gateway, LogCursor(gateway="gw-1", epoch=gateway.ledger.epoch, frame=2, seq=8, digest="ab" * 32))
    assert "e-107" in events(gateway)


def test_an_entry_of_two_logs_is_carried_over_once(gateway: SiteGateway, tmp_path: Path) -> None:
    """Both had it, and the cloud has lost the older: twice in one log, nobody would notice any more."""
    with sites.gateways(tmp_path / "old", ["gw-1"], epoch=OLD) as (old,):
        old.append(scan(1))
        first = old.seal()
        old.append(scan(2, 10))
        second = old.seal()[-1:]
        gateway.fetch(first)
        gateway.append(scan(2, 10))
        gateway.receive(*second)
    recover(gateway, head(first[0]))
    assert queries.balances(gateway.ledger.connection)[SHELF] == 11
    assert events(gateway) == ["e-1", "e-2"]
    assert audit.verify(gateway.ledger.connection).findings == []


@pytest.mark.parametrize("longer", [False, True])
def test_an_older_log_that_the_cloud_has_otherwise_is_brought_again(
    gateway: SiteGateway, tmp_path: Path, *, longer: bool
) -> None:
    """The cloud fell back, and a backup of the old disk went on from there: what was only here must not be dropped."""
    with (
        sites.gateways(tmp_path / "dead", ["gw-1"], epoch=OLD) as (dead,),
        sites.gateways(tmp_path / "backup", ["gw-1"], epoch=OLD) as (backup,),
    ):
        for disk in (dead, backup):
            disk.append(scan(1))
            disk.seal()
        for number in (2, 5):
            dead.append(scan(number))
            dead.seal()
        gateway.fetch(dead.sealed)
        for number in (3, 4, 6) if longer else (3,):
            backup.append(scan(number))
            backup.seal()
        if longer:
            assert gateway.receive(backup.sealed[-1]) == [Verdict.FORK]
        recover(gateway, head(backup.sealed[-1]))
        assert events(gateway) == ["e-1", "e-2", "e-5"]
        # The next epoch is refused for not knowing the log; what the cloud has of it is not brought again.
        recover(gateway, head(backup.sealed[-1]), having=backup.sealed)
        there = {"e-1", "e-3"} | ({"e-4", "e-6"} if longer else set())
        assert events(gateway) == sorted(there | {"e-2", "e-5"})
    assert audit.verify(gateway.ledger.connection).findings == []


def test_what_is_booked_in_a_new_epoch_is_later_than_the_old(gateway: SiteGateway) -> None:
    """The clock had been an hour ahead, and was set right before the epoch was opened."""
    gateway.clock.at_ms += 3_600_000
    gateway.append(scan(1))
    sent, latest = gateway.seal(), gateway.ledger.tail().hlc
    gateway.clock.at_ms -= 3_600_000
    recover(gateway, head(sent[0]), having=sent)
    gateway.append(draft("count", "screw", 1, location="A-1"))
    assert gateway.ledger.tail().hlc > latest
    assert set(gateway.stock().variance.values()) == {0}


def test_what_came_late_is_carried_over_in_the_order_of_recording(gateway: SiteGateway) -> None:
    """The place of what comes late next is found by that order: by clock readings it would be before what was first."""
    clock = gateway.clock
    clock.turn(500)
    gateway.append(scan(1))
    clock.turn(60_000)
    gateway.append(scan(2), late_ms=600_000)
    gateway.append(scan(3), late_ms=30_000)
    recover(gateway)
    first = json.loads(gateway.ledger.connection.execute("SELECT body FROM entry WHERE seq = 1").fetchone()[0])
    assert first["event"] == "e-1"
    gateway.append(scan(4), late_ms=58_000)
    assert gateway.ledger.tail().hlc > first["hlc"], "it happened two seconds after the first was recorded"
    assert audit.verify(gateway.ledger.connection).findings == []


def contact(gateway: SiteGateway, folder: Path, there: list[SiteFrame], *, forked: bool) -> Opened | CloudLost | None:
    """A contact of an hour at most with a cloud that has one log of this gateway, up to what it means for its own."""
    epoch, log_epoch = gateway.ledger.epoch, frames.decode(there[0].frame).header.epoch
    heads = SiteHeads(heads=(head(there[-1]),), now_ms=START_MS)

    async def write(run: Callable[[Ledger], Any]) -> Any:
        with database.transaction(gateway.ledger.connection):
            return run(gateway.ledger)

    async def go(site: SiteSync) -> Opened | CloudLost | None:
        site.connected(epoch)
        for _ in range(60):
            gateway.clock.turn(60_000)
            question = site.question()
            if question is None:
                continue
            have = {(log.gateway, log.epoch): log.frame for log in question.logs}
            for message in there[have.get(("gw-1", log_epoch), 0) :]:
                await site.take(message, forked=forked, before_opening=lambda: None)
            outcome = await site.take(heads, forked=forked, before_opening=lambda: None)
            if outcome is not None:
                return outcome
        return None

    with closing(database.open_reader(folder / "gw-1.db")) as reader:
        settings = EdgeSettings(ledger=folder / "gw-1.db")
        return asyncio.run(go(SiteSync("gw-1", reader, write, settings, gateway.clock.mono_ms)))


@pytest.mark.parametrize("forked", [False, True])
def test_an_older_log_that_the_cloud_has_otherwise_is_not_fetched_for_ever(
    gateway: SiteGateway, tmp_path: Path, *, forked: bool
) -> None:
    """None of the cloud's frames follows on what is here: the log must be given up, not asked for again and again."""
    with (
        sites.gateways(tmp_path / "dead", ["gw-1"], epoch=OLD) as (dead,),
        sites.gateways(tmp_path / "backup", ["gw-1"], epoch=OLD) as (backup,),
    ):
        dead.append(scan(1))
        gateway.fetch(dead.seal())
        for number in (2, 3, 4):
            backup.append(scan(number))
            backup.seal()
        outcome = contact(gateway, tmp_path, backup.sealed, forked=forked)
    assert isinstance(outcome, Opened if forked else CloudLost)
    if forked:
        assert events(gateway) == ["e-1"]  # brought again in the new epoch; the cloud's log is fetched in its turn


def test_a_frame_that_was_thought_to_be_shared_is_fetched_from_the_start(gateway: SiteGateway, tmp_path: Path) -> None:
    """The cloud fell back behind an acknowledged frame, and a clone wrote others: the staged log never fits."""
    epoch = gateway.ledger.epoch
    with sites.gateways(tmp_path / "clone", ["gw-1"], epoch=epoch) as (clone,):
        for disk in (gateway, clone):
            disk.append(scan(1))
            disk.seal()
        gateway.append(scan(2))
        gateway.seal()
        acked(gateway, 2)
        for number in (12, 13):
            clone.append(scan(number))
            clone.seal()
        opened = contact(gateway, tmp_path, clone.sealed, forked=True)
    assert isinstance(opened, Opened)
    assert opened.carried == 1
    assert events(gateway) == ["e-1", "e-12", "e-13", "e-2"]


def test_more_older_logs_than_a_frame_can_name(gateway: SiteGateway) -> None:
    """The seventieth restore must still be able to seal its first frame."""
    with database.transaction(gateway.ledger.connection):
        for number in range(frames.EPOCHS_MAX + 6):
            gateway.ledger.connection.execute(
                "INSERT INTO log (gateway, epoch, frame, seq, digest) VALUES ('gw-1', ?, 1, 1, ?)",
                (names.ulid(START_MS + number, bytes(10)), "a" * 64),
            )
    gateway.append(scan(1))
    made = frames.decode(gateway.seal()[0].frame).header
    assert len(made.after) == frames.EPOCHS_MAX
    assert max(made.after) == names.ulid(START_MS + frames.EPOCHS_MAX + 5, bytes(10))


def test_a_flood_of_commands_is_bounded(tmp_path: Path) -> None:
    """A hostile or mad cloud must not fill the gateway's memory."""
    path = tmp_path / "ledger.db"
    commands = Commands(path, lambda: 0, made_nowhere, EdgeSettings(ledger=path))
    assert [commands.take() for _ in range(COMMANDS_WAITING_MAX + 2)] == [True] * COMMANDS_WAITING_MAX + [False] * 2


def test_readings_on_their_way_are_sealed_again_in_the_new_epoch(gateway: SiteGateway) -> None:
    """What of them the cloud has is not known; a reading twice is better than one lost."""
    with database.transaction(gateway.ledger.connection):
        gateway.ledger.append_readings([ReadingDraft("probe", f"r-{n}", {"t_c": float(n)}) for n in range(5)])
        Outbox(gateway.ledger).seal("readings", 2, contact_mono_ms=None)
        Outbox(gateway.ledger).seal("readings", 2, contact_mono_ms=None)
        Outbox(gateway.ledger).acked("readings", 1)
    recover(gateway)
    with database.transaction(gateway.ledger.connection):
        sealed = Outbox(gateway.ledger).seal("readings", 100, contact_mono_ms=None)
    assert sealed is not None
    assert (sealed.frame, sealed.entries) == (1, 3)
    assert streams.position(gateway.ledger.connection, "readings").fork is None
