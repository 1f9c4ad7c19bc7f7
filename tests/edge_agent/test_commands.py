"""Commands at the gateway: checked, carried out once, answered as often as asked."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edge_agent.ledger import database, streams
from edge_agent.ledger.drafts import Draft
from edge_agent.ledger.ledger import Ledger
from edge_agent.ledger.sql import statement
from edge_agent.link.commands import Commands
from edge_agent.provisioning import recounts
from edge_agent.settings import EdgeSettings
from edge_agent.signals import Signals
from testbed.hand_clock import HandClock
from wire_protocol.messages import Command, Reply

EXPIRES_MS = 1_763_700_060_000


class Gateway:
    """A ledger with commands, and what they moved."""

    def __init__(self, ledger: Ledger, path: Path, clock: HandClock) -> None:
        self.ledger, self.clock = ledger, clock
        self.located: list[tuple[str, int]] = []
        self.levels: list[tuple[str, int]] = []
        self.synced = 0
        signals = Signals()
        signals.sync_requested.connect(self._sync)
        signals.locate_requested.connect(lambda *given: self.located.append(given))
        signals.log_level_requested.connect(lambda *given: self.levels.append(given))
        settings = EdgeSettings(ledger=path, cloud_url="mqtts://gw:secret@cloud")
        self.commands = Commands(path, clock.now_ms, self._write, settings, signals)

    def send(self, name: str, number: str = "c-1", **arguments: Any) -> Reply:
        """Deliver a command and return the reply."""
        command = Command(id=number, name=name, arguments=arguments, expires_ms=EXPIRES_MS)
        assert self.commands.take()
        reply = asyncio.run(self.commands.execute(command))
        assert reply is not None
        return reply

    def _sync(self) -> None:
        self.synced += 1

    async def _write(self, run: Callable[[Ledger], Any]) -> Any:
        with database.transaction(self.ledger.connection):
            return run(self.ledger)


@pytest.fixture
def gateway(ledger: Ledger, path: Path, clock: HandClock) -> Gateway:
    """A gateway with some stock and a device."""
    with database.transaction(ledger.connection):
        ledger.connection.execute(statement("insert_device"), ("scale-1", "scale"))
        ledger.append(
            [Draft(kind="receive", sku=sku, quantity=5, source="@supplier", destination="A-1") for sku in "xy"]
        )
    return Gateway(ledger, path, clock)


@pytest.mark.parametrize(
    ("name", "arguments", "reason"),
    [
        ("format-disk", {}, "There is no command format-disk"),
        ("recount", {}, "location"),
        ("recount", {"location": ""}, "location"),
        ("recount", {"location": "A-1", "depth": 2}, "depth"),
        ("locate", {"device": "scale-1", "seconds": 10**9}, "seconds"),
        ("locate", {"device": "nobody"}, "not registered"),
        ("set-log-level", {"level": "everything"}, "level"),
        ("open-epoch", {"reason": ""}, "reason"),
        ("prove-stock", {"prefixes": "zz"}, "prefixes"),
    ],
)
def test_what_is_wrong_is_answered_with_its_reason(
    gateway: Gateway, name: str, arguments: dict[str, Any], reason: str
) -> None:
    """An operator who waits must not wait for nothing."""
    reply = gateway.send(name, **arguments)
    assert not reply.ok
    assert reason in (reply.reason or "")


def test_a_command_delivered_twice_is_done_once(gateway: Gateway) -> None:
    """The second delivery gets the first answer, also after a restart and after it has expired."""
    first = gateway.send("recount", location="A-1")
    assert first == Reply(id="c-1", ok=True, result={"to_count": 2})
    again = Gateway(gateway.ledger, gateway.commands.ledger, gateway.clock)
    gateway.clock.turn(10_000_000)
    assert again.send("recount", location="A-1") == first
    assert gateway.ledger.connection.execute("SELECT count(*) FROM recount").fetchone() == (1,)
    assert gateway.send("recount", number="c-2", location="A-1").reason == "the command has expired"


async def test_the_same_command_while_it_runs_is_left_to_the_first(gateway: Gateway) -> None:
    """A broker that delivers again at once."""
    command = Command(id="c-1", name="sync-now", expires_ms=EXPIRES_MS)
    assert gateway.commands.take()
    assert gateway.commands.take()
    replies = await asyncio.gather(*(gateway.commands.execute(command) for _ in range(2)))
    assert [reply is not None for reply in replies] == [True, False]
    assert gateway.synced == 1


def test_a_recount_is_open_until_everything_there_is_counted(gateway: Gateway) -> None:
    """Counts alone fulfil it; an item that is not there any more need not be counted."""
    gateway.clock.turn(1_000)
    gateway.send("recount", location="A-1", note="flooded")
    assert [(row["sku"], row["note"]) for row in recounts.waiting(gateway.ledger.connection)] == [
        ("x", "flooded"),
        ("y", "flooded"),
    ]
    gateway.clock.turn(1_000)
    with database.transaction(gateway.ledger.connection):
        gateway.ledger.append([Draft(kind="count", sku="x", quantity=4, location="A-1")])
    assert [row["sku"] for row in recounts.waiting(gateway.ledger.connection)] == ["y"]
    with database.transaction(gateway.ledger.connection):
        gateway.ledger.append([Draft(kind="pick", sku="y", quantity=5, source="A-1", destination="@customer")])
    assert recounts.waiting(gateway.ledger.connection) == []


def test_what_moves_things_beside_the_ledger(gateway: Gateway) -> None:
    """Devices and the log."""
    assert gateway.send("locate", device="scale-1", seconds=5).ok
    assert gateway.send("set-log-level", number="c-2", level="debug").ok
    assert (gateway.located, gateway.levels) == ([("scale-1", 5)], [("debug", 60)])


def test_diagnostics_have_no_secrets(gateway: Gateway) -> None:
    """They travel through a broker and end in a ticket."""
    reply = gateway.send("collect-diagnostics")
    assert reply.ok
    assert reply.result["status"]["gateway"] == "gw-1"
    assert "secret" not in reply.encode().decode()


def test_a_new_epoch_is_noted_with_the_command(gateway: Gateway) -> None:
    """Whatever dies after the commit, the ledger knows what it was asked."""
    assert gateway.send("open-epoch", reason="disk was swapped").ok
    assert "disk was swapped" in (streams.position(gateway.ledger.connection, "ledger").fork or "")
