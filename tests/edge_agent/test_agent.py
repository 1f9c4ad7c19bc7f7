"""The agent on a real broker: nothing acknowledged is lost and nothing is booked twice, whatever is killed."""

import json
import signal
import socket
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from edge_agent.desk.booking import book
from edge_agent.devices.dead_letters import retry_dead_letters
from edge_agent.ledger import audit, database, queries
from edge_agent.ledger.clock import SystemClock
from edge_agent.ledger.drafts import draft
from edge_agent.ledger.ledger import Ledger
from edge_agent.ledger.sql import statement
from testbed import warm_process
from testbed.agent_process import AgentProcess
from testbed.eventually import eventually
from testbed.loopback_cloud import LoopbackCloud
from testbed.scanner import Scanner
from testbed.services import PrivateBroker
from wire_protocol.stock import BALANCE_MAX
from wire_protocol.topics import Channel

Agents = Callable[..., AgentProcess]
Brokers = Callable[..., PrivateBroker]


@pytest.fixture
def broker(private_broker: Brokers) -> PrivateBroker:
    """The gateway's own broker, which remembers its sessions across a kill."""
    return private_broker(persistent=True)


@pytest.fixture
def gateway(path: Path, broker: PrivateBroker, unique_name: Callable[..., str]) -> str:
    """A ledger with two devices, and no agent yet."""
    name = unique_name()
    with Ledger.create(path, name, SystemClock(), local_url=broker.url) as made, database.transaction(made.connection):
        for device in ("till-1", "till-2"):
            made.connection.execute(statement("insert_device"), (device, "scanner"))
    return name


def booked(path: Path) -> dict[str, int]:
    """On hand by SKU."""
    with closing(database.open_reader(path)) as reader:
        return {row.sku: row.on_hand for row in queries.stock(reader)}


def entries(path: Path) -> int:
    """How many entries the ledger has."""
    with closing(database.open_reader(path)) as reader:
        return int(queries.status(reader, path)["entries"])


def assert_whole(path: Path) -> None:
    """The ledger agrees with itself."""
    with closing(database.open_reader(path)) as reader:
        assert audit.verify(reader).findings == []


def test_a_scan_is_committed_then_receipted(path: Path, gateway: str, broker: PrivateBroker, agents: Agents) -> None:
    """A receipt is a promise; it must not come before the commit, and a repetition must get one too."""
    del gateway
    agents(path).start()
    with Scanner(broker.port, "till-1") as scanner:
        scanner.scan("e-1", quantity=5)
        assert scanner.wait_for_receipts(1)
        assert booked(path) == {"tea": 5}
        scanner.committed.clear()
        scanner.scan("e-1", quantity=5)
        assert scanner.wait_for_receipts(1)
    assert booked(path) == {"tea": 5}


def test_what_cannot_be_used_is_kept_refused_and_the_stream_goes_on(
    path: Path, gateway: str, broker: PrivateBroker, agents: Agents
) -> None:
    """One bad device must cost its own messages and nothing else; and nothing of them is lost."""
    del gateway
    agents(path).start()
    with Scanner(broker.port, "till-1") as scanner, Scanner(broker.port, "stranger") as stranger:
        scanner.say(b"{not json")
        scanner.say(b'{"v":1,"id":"bad-1","kind":"pick","sku":"tea","quantity":"two","source":"A-01"}')
        scanner.say(b'{"v":9,"id":"bad-2","kind":"pick","sku":"tea","quantity":2,"source":"A-01"}')
        scanner.say(b'{"v":1,"id":"bad-3","kind":"pick","sku":"tea","quantity":2,"source":"@supplier"}')
        scanner.say(b'{"v":1,"id":"bad-4","kind":"pick","sku":"tea","quantity":2,"quantity":3,"source":"A-01"}')
        scanner.say(b'{"v":1,"id":"one","id":"other","kind":"pick","sku":"tea","quantity":2,"source":"A-01"}')
        scanner.say(b"x" * 20_000)
        scanner.say(b"\xff\xfe\x00")
        scanner.say(b'{"v":1,"id":"r-1","values":{"temperature_c":4.5}}', Channel.DEVICE_READING)
        stranger.scan("s-1")
        scanner.scan("good")
        assert scanner.wait_for_receipts(6)
        assert stranger.wait_for_receipts(1)
    assert "good" in scanner.committed
    assert "r-1" in scanner.committed
    assert {event: reason.partition(":")[0] for event, reason in scanner.refused.items()} == {
        "bad-1": "quantity",
        "bad-2": "v",
        "bad-3": "a pick cannot come from @supplier",
        "bad-4": "quantity",
    }, "of two ids neither is refused: the device would forget an event that may be another"
    assert "not registered" in stranger.refused["s-1"]
    with closing(database.open_reader(path)) as reader:
        letters = reader.execute(statement("dead_letters"), {"limit": 100}).fetchall()
    assert len(letters) == 9
    assert {bytes(row[3])[:4] for row in letters} >= {b"{not", b"xxxx", b"\xff\xfe\x00"}


def test_a_device_registered_later_gets_its_events_in(
    path: Path, gateway: str, broker: PrivateBroker, agents: Agents
) -> None:
    """The technician registers the forgotten scanner; its scans of the morning must not be gone."""
    del gateway
    agents(path).start()
    with Scanner(broker.port, "late") as scanner:
        scanner.scan("e-1", quantity=3)
        assert scanner.wait_for_receipts(1)
        assert retry_dead_letters(path) == (0, 1)
        with closing(database.open_writer(path)) as writer, database.transaction(writer):
            writer.execute(statement("insert_device"), ("late", "scanner"))
        assert retry_dead_letters(path) == (1, 0)
        scanner.scan("e-2", quantity=4)
        assert scanner.wait_for_receipts(2)
    assert booked(path) == {"tea": 7}
    assert_whole(path)


def test_agent_killed_under_load_loses_and_doubles_nothing(
    path: Path, gateway: str, broker: PrivateBroker, agents: Agents
) -> None:
    """Invariants I1 and I2 at the first hop: SIGKILL at any instruction, twice, in the middle of a burst."""
    del gateway
    agent = agents(path).start()
    with Scanner(broker.port, "till-1") as scanner:
        for number in range(3_000):
            scanner.scan(f"e-{number}", quantity=2)
            if number in {800, 1_900}:
                agent.kill()
                agent.start()
        assert scanner.wait_for_receipts(1_000)
        eventually(lambda: entries(path) == 3_000)
        scanner.resend()
        assert scanner.wait_for_receipts(3_000)
    assert booked(path) == {"tea": 6_000}
    assert_whole(path)
    assert agent.stop() == 0


def test_broker_killed_under_load_loses_nothing_that_has_a_receipt(
    path: Path, gateway: str, agents: Agents, private_broker: Brokers
) -> None:
    """A broker that forgets everything: devices send again what has no receipt, and the ledger takes each once."""
    del gateway
    forgetful = private_broker()
    agents(path, "--local", forgetful.url).start()
    with Scanner(forgetful.port, "till-1") as scanner:
        for number in range(2_000):
            scanner.scan(f"e-{number}")
            if number == 1_000:
                forgetful.kill()
                forgetful.start()
        eventually(lambda: scanner.has_receipts(2_000))
    assert booked(path) == {"tea": 2_000}
    assert_whole(path)


def test_the_command_line_and_the_agent_write_side_by_side(
    path: Path, gateway: str, broker: PrivateBroker, agents: Agents
) -> None:
    """The technician counts while the scanners scan."""
    del gateway
    agents(path).start()
    with Scanner(broker.port, "till-1") as scanner:
        for number in range(200):
            scanner.scan(f"e-{number}", sku="scanned")
            if number % 20 == 0:
                book(path, "receive", "typed", 1, destination="A-01")
        assert scanner.wait_for_receipts(200)
    assert booked(path) == {"scanned": 200, "typed": 10}
    assert_whole(path)


def test_two_agents_on_one_ledger_are_refused(path: Path, gateway: str, agents: Agents) -> None:
    """They would acknowledge each other's messages."""
    del gateway
    agents(path).start()
    shown = warm_process.run("edge", "run", "--ledger", str(path), timeout=20)
    assert shown.returncode == 1
    assert "already runs" in shown.stderr
    assert "Traceback" not in shown.stderr


def test_the_uplink_ships_everything_once_and_in_order(
    path: Path, gateway: str, broker: PrivateBroker, agents: Agents, mqtt_url: str
) -> None:
    """Movements and readings, live and from before the contact, with at most 25 bytes a movement in full frames."""
    for _ in range(5):
        book(path, "receive", "typed", 2, destination="A-01")
    with LoopbackCloud(int(mqtt_url.rpartition(":")[2]), gateway) as cloud, Scanner(broker.port, "till-1") as scanner:
        agents(path, "--cloud", mqtt_url).start()
        for number in range(1_000):
            scanner.scan(f"9f3c-{number:06d}", sku=f"{20_000 + number * 7 % 300}")
            scanner.say(f'{{"v":1,"id":"r-{number}","values":{{"t_c":{number}}}}}'.encode(), Channel.DEVICE_READING)
        cloud.wait_for(lambda: len(cloud.entries["ledger"]) == 1_005 and len(cloud.entries["readings"]) == 1_000)
        book(path, "pick", "typed", 1, source="A-01")
        cloud.wait_for(lambda: len(cloud.entries["ledger"]) == 1_006)
        eventually(lambda: _status(path)["streams"]["ledger"]["waiting"] == 0)
    hlcs = [entry.hlc for entry in cloud.entries["ledger"]]
    assert hlcs == sorted(set(hlcs))
    assert cloud.headers[0].replay
    assert not cloud.headers[-1].replay
    assert [status.state for status in cloud.statuses][:1] == ["online"]


def _status(path: Path) -> dict[str, dict[str, dict[str, int]]]:
    with closing(database.open_reader(path)) as reader:
        return queries.status(reader, path)


def test_a_long_backlog_drains_through_kills_of_agent_and_broker(
    path: Path, gateway: str, agents: Agents, private_broker: Brokers
) -> None:
    """Weeks offline, then a bad line: every entry arrives once."""
    with Ledger.open(path, SystemClock()) as ledger, database.transaction(ledger.connection):
        ledger.append([draft("receive", f"sku-{n % 50}", 1, destination="A-01") for n in range(20_000)])
    cloud_broker = private_broker()
    agent = agents(path, "--cloud", cloud_broker.url, STOCKTIDE_EDGE_RESEND_DELAY_MS="300")
    with LoopbackCloud(cloud_broker.port, gateway) as cloud:
        agent.start("uplink_up")
        for threshold in (3_000, 9_000, 14_000):
            cloud.wait_for(lambda least=threshold: len(cloud.entries["ledger"]) >= least)  # type: ignore[misc]
            cloud_broker.kill() if threshold == 9_000 else agent.kill()
            cloud_broker.start() if threshold == 9_000 else agent.start("uplink_up")
        cloud.wait_for(lambda: len(cloud.entries["ledger"]) == 20_000)
        hlcs = [entry.hlc for entry in cloud.entries["ledger"]]
        assert hlcs == sorted(set(hlcs))
        assert cloud.frame_bytes / 20_000 < 25
        eventually(lambda: _status(path)["streams"]["ledger"]["waiting"] == 0)
    assert agent.stop() == 0
    assert_whole(path)


def test_a_cloud_that_does_not_answer_gets_the_frames_again(
    path: Path, gateway: str, agents: Agents, mqtt_url: str
) -> None:
    """A broker's acknowledgement proves nothing: only the cloud's moves the cursor."""
    book(path, "receive", "typed", 2, destination="A-01")
    with LoopbackCloud(int(mqtt_url.rpartition(":")[2]), gateway, answering=False) as cloud:
        agents(path, "--cloud", mqtt_url, STOCKTIDE_EDGE_RESEND_DELAY_MS="200").start()
        cloud.wait_for(lambda: len(cloud.statuses) >= 1)
        cloud.answering = True
        cloud.wait_for(lambda: len(cloud.entries["ledger"]) == 1)


def test_verdicts_offsets_and_forks_from_the_cloud_are_kept(
    path: Path, gateway: str, agents: Agents, mqtt_url: str
) -> None:
    """The technician sees what the cloud could not use, and that the clock is a day off."""
    book(path, "receive", "typed", 2, destination="A-01")
    tomorrow = SystemClock().now_ms() + 86_400_000
    port = int(mqtt_url.rpartition(":")[2])
    with LoopbackCloud(port, gateway, reject={1: "no such thing"}, clock_ms=lambda: tomorrow) as cloud:
        agents(path, "--cloud", mqtt_url).start()
        cloud.wait_for(lambda: len(cloud.entries["ledger"]) == 1)
        eventually(lambda: _status(path)["verdicts"] == 1)  # type: ignore[comparison-overlap]
        with closing(sqlite3.connect(path)) as raw:
            zero = "SELECT zero_ms FROM boot"
            eventually(lambda: raw.execute(zero).fetchone()[0] is not None)
            zero_ms = raw.execute(zero).fetchone()[0]
            assert zero_ms + SystemClock().mono_ms() == pytest.approx(tomorrow, abs=20_000)
        # What is booked from now on has the true time, in a process that has asked no cloud.
        book(path, "receive", "typed", 1, destination="A-01")
        with closing(database.open_reader(path)) as reader:
            assert queries.history(reader)[0].at_ms == pytest.approx(tomorrow, abs=20_000)
        cloud.cursors["ledger"] = cloud.cursors["ledger"]._replace(digest="0" * 64)
        book(path, "receive", "typed", 2, destination="A-01")
        eventually(lambda: _status(path)["streams"]["ledger"]["fork"] is not None)


def test_sigterm_ends_with_exit_code_zero_and_a_farewell(
    path: Path, gateway: str, agents: Agents, mqtt_url: str
) -> None:
    """An orderly stop must be told from a crash."""
    with LoopbackCloud(int(mqtt_url.rpartition(":")[2]), gateway) as cloud:
        agent = agents(path, "--cloud", mqtt_url).start("uplink_up")
        assert agent.stop() == 0
        cloud.wait_for(lambda: cloud.statuses[-1].state == "offline")
        killed = agents(path, "--cloud", mqtt_url).start("uplink_up")
        cloud.wait_for(lambda: cloud.statuses[-1].state == "online")
        killed.kill()
        cloud.wait_for(lambda: cloud.statuses[-1].state == "offline")
    assert [event["event"] for event in agent.log()].count("agent_stopped") == 1


def test_sigterm_in_the_moment_the_link_breaks_ends_the_agent_too(
    path: Path, gateway: str, agents: Agents, private_broker: Brokers
) -> None:
    """Power goes down in a shop: switch, router and gateway at once. A lost cancellation would hang the shutdown."""
    del gateway
    broker = private_broker()
    agent = agents(path, "--cloud", broker.url).start("uplink_up")
    agent.child.send_signal(signal.SIGSTOP)
    broker.kill()
    agent.child.send_signal(signal.SIGTERM)
    agent.child.send_signal(signal.SIGCONT)
    assert agent.child.wait(60) == 0


def test_an_agent_without_any_broker_keeps_working(path: Path, gateway: str, agents: Agents) -> None:
    """Invariant I7: no edge command needs the cloud, nor even the local broker."""
    del gateway
    agent = agents(path, "--local", "mqtt://127.0.0.1:9", "--cloud", "mqtt://127.0.0.1:9").start("agent_started")
    assert book(path, "receive", "typed", 2, destination="A-01").on_hand == {"A-01": 2}
    assert agent.stop() == 0


def test_systemd_is_told_about_readiness_and_life(path: Path, gateway: str, agents: Agents, tmp_path: Path) -> None:
    """Without WATCHDOG=1 systemd would restart a healthy agent."""
    del gateway
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind(str(tmp_path / "notify"))
        channel.settimeout(20)
        agent = agents(path, NOTIFY_SOCKET=str(tmp_path / "notify"), WATCHDOG_USEC="200000").start()
        told = [channel.recv(1_000).decode() for _ in range(4)]
        assert agent.stop() == 0
        assert any(message.startswith("READY=1") for message in told)
        assert "WATCHDOG=1" in told


def test_a_systemd_that_does_not_listen_ends_nothing(path: Path, gateway: str, agents: Agents, tmp_path: Path) -> None:
    """Its socket is refused while systemd executes itself again, or forgotten by a container's end: devices go on."""
    del gateway
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind(str(tmp_path / "notify"))
    agent = agents(path, NOTIFY_SOCKET=str(tmp_path / "notify"), WATCHDOG_USEC="200000").start()
    eventually(lambda: sum(event["event"] == "systemd_not_notified" for event in agent.log()) > 2)
    assert agent.stop() == 0


def test_the_log_holds_no_secret(path: Path, gateway: str, agents: Agents) -> None:
    """A password in a log is a password in every log collector."""
    del gateway
    agent = agents(path, "--cloud", "mqtt://gw:s3cr3t@127.0.0.1:9").start("agent_started")
    eventually(lambda: any(event["event"] == "uplink_down" for event in agent.log()))
    agent.stop()
    assert "s3cr3t" not in agent.log_file.read_text()
    assert "s3cr3t" not in json.dumps(_status(path))


def test_an_event_that_the_ledger_can_never_take_is_refused(
    path: Path, gateway: str, broker: PrivateBroker, agents: Agents
) -> None:
    """It was neither committed nor refused, and the device sent it again for good; the events beside it go on."""
    del gateway
    with Ledger.open(path, SystemClock()) as ledger, database.transaction(ledger.connection):
        ledger.append([draft("receive", "tea", 1, destination="A-01")])
        ledger.connection.execute("UPDATE balance SET on_hand = ?, moved = ?", (BALANCE_MAX, BALANCE_MAX))
    agents(path).start()
    with Scanner(broker.port, "till-1") as scanner:
        for number in range(3):
            event = {"v": 1, "id": f"big-{number}", "kind": "receive", "sku": "tea", "quantity": 10**12}
            scanner.say(json.dumps(event | {"destination": "A-01"}).encode())
            scanner.scan(f"good-{number}", sku="nut")
        assert scanner.wait_for_receipts(6)
    assert {event for event in scanner.committed if event.startswith("good")} == {"good-0", "good-1", "good-2"}
    assert set(scanner.refused) == {"big-0", "big-1", "big-2"}
    assert all("beyond" in reason for reason in scanner.refused.values())


def test_an_id_that_a_device_uses_twice_is_refused_and_kept(
    path: Path, gateway: str, broker: PrivateBroker, agents: Agents
) -> None:
    """The second event was answered "committed" and was nowhere; now the device, the technician and the log know."""
    del gateway
    agent = agents(path).start()
    with Scanner(broker.port, "till-1") as scanner:
        scanner.scan("e-1", quantity=5)
        scanner.scan("e-2", quantity=1)
        assert scanner.wait_for_receipts(2)
        for number in range(20):
            scanner.scan("e-1", quantity=7 + number)
        assert scanner.wait_for_receipts(3)
        scanner.scan("e-2", quantity=1)  # a repetition, after all of them
        scanner.scan("e-3", quantity=1)
        assert scanner.wait_for_receipts(4)
    assert scanner.committed == {"e-1", "e-2", "e-3"}
    assert scanner.refused["e-1"].startswith("id-used: ")
    assert booked(path) == {"tea": 7}
    assert retry_dead_letters(path) == (0, 20), "a retry must not take it for a repetition and forget it"
    with closing(database.open_reader(path)) as reader:
        status = queries.status(reader, path)
        assert (status["dead_letters"], status["event_ids_used_twice"]) == (20, 20)
    assert len([line for line in agent.log() if line["event"] == "message_dead_lettered"]) <= 5
    assert_whole(path)


def test_a_retained_event_is_no_event(path: Path, gateway: str, broker: PrivateBroker, agents: Agents) -> None:
    """A bad one made a dead letter at each contact."""
    del gateway
    with Scanner(broker.port, "till-1") as scanner:
        scanner.say(b"{not json", retain=True)
        for _ in range(3):
            agent = agents(path).start()
            scanner.scan("e-1")
            assert scanner.wait_for_receipts(1)
            scanner.committed.clear()
            agent.kill()
    with closing(database.open_reader(path)) as reader:
        assert reader.execute(statement("dead_letters"), {"limit": 100}).fetchall() == []
