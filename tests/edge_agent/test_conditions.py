"""What is between a gateway and its brokers is said: once in the log, and in `edge status` while it is so."""

import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from broker_config import passwords
from broker_config.limits import BrokerLimits
from broker_config.mosquitto import ACL_FILE, CONFIG_FILE, PASSWORD_FILE, Auth, MosquittoConfig, TlsFiles, render
from broker_config.policy import Side
from cloud_identity.authority import Authority
from edge_agent import conditions
from edge_agent.conditions import Conditions, Part
from edge_agent.devices.intake import SUBSCRIPTIONS
from edge_agent.devices.mqtt import DeviceBroker
from edge_agent.devices.notices import Notices
from edge_agent.ledger import database
from edge_agent.ledger.clock import SystemClock
from edge_agent.ledger.ledger import Ledger
from edge_agent.ledger.sql import statement
from mqtt_client import TlsUnusable
from testbed import warm_process
from testbed.agent_process import AgentProcess
from testbed.eventually import eventually
from testbed.loopback_cloud import LoopbackCloud
from testbed.scanner import Scanner
from testbed.services import PrivateBroker
from testbed.services.broker import anonymous_config
from testbed.services.server import HOST, free_port
from wire_protocol.address import BrokerAddress
from wire_protocol.messages import DeviceReceipt

Agents = Callable[..., AgentProcess]
Brokers = Callable[..., PrivateBroker]
WORD = "horse-battery-staple"


def new_ledger(path: Path, **urls: str) -> None:
    """A ledger with one device."""
    with Ledger.create(path, "gw-1", SystemClock(), **urls) as made, database.transaction(made.connection):
        made.connection.execute(statement("insert_device"), ("till-1", "scanner"))


def status(path: Path) -> dict[str, Any]:
    """What another process is shown."""
    asked = warm_process.run("edge", "status", "--ledger", str(path), "--json")
    assert asked.returncode == 0, asked.stderr
    shown: dict[str, Any] = json.loads(asked.stdout)
    return shown


def wait_for(path: Path, part: Part, state: str) -> dict[str, Any]:
    """Wait until a part is in a state, for the agent's file."""
    eventually(
        lambda: conditions.last(path).get(part, ("",))[0] == state, f"{part} is {state}: {conditions.last(path)}"
    )
    condition: dict[str, Any] = status(path)["conditions"][part]
    return condition


class Local:
    """A gateway's own broker as it is rendered: accounts, and TLS from an authority of its own."""

    def __init__(self, folder: Path, *, tls: bool) -> None:
        self.authority = Authority.create(folder / "ca", "Site") if tls else None

    def __call__(self, port: int, directory: Path) -> str:
        """What PrivateBroker asks for."""
        files = None
        if self.authority is not None:
            key, certificate = self.authority.server([HOST])
            files = TlsFiles(cafile=directory / "ca.pem", certfile=directory / "s.pem", keyfile=directory / "s.key")
            files.cafile.write_bytes(self.authority.bundle.read_bytes())
            files.certfile.write_bytes(certificate)
            files.keyfile.write_bytes(key)
        config = MosquittoConfig(
            side=Side.GATEWAY,
            auth=Auth.PASSWORD,
            directory=directory,
            port=port,
            address=HOST,
            tls=files,
            limits=BrokerLimits.for_side(Side.GATEWAY),
        )
        texts = render(config)
        (directory / ACL_FILE).write_text(texts[ACL_FILE])
        passwords.write(directory / PASSWORD_FILE, {user: passwords.hashed(WORD) for user in ("agent", "foreman")})
        return texts[CONFIG_FILE]


@pytest.mark.parametrize(
    ("host", "state"),
    [(f"{HOST}:{{port}}", "away (tcp)"), ("no-such-host.invalid", "away (name)"), ("a..b", "away (name)")],
)
def test_a_local_broker_that_cannot_be_reached_is_said_once_and_the_agent_comes_back(
    path: Path, agents: Agents, private_broker: Brokers, host: str, state: str
) -> None:
    """Nobody would know why no scan arrives; and a log line for each attempt would fill the disk with it."""
    broker = private_broker()
    broker.stop()
    url = f"mqtt://{host.format(port=broker.port)}"
    new_ledger(path, local_url=url)
    agent = agents(path).start("local_broker_away")
    condition = wait_for(path, Part.DEVICES, state)
    assert not condition["ok"]
    assert condition["why"].endswith(".")
    assert condition["hint"]
    if state == "away (tcp)":
        broker.start()
        up = wait_for(path, Part.DEVICES, "listening")
        assert up["ok"]
        assert up["since_ms"] >= condition["since_ms"]
        with Scanner(broker.port, "till-1") as scanner:
            scanner.scan("e-1")
            assert scanner.wait_for_receipts(1)
    assert agent.times("local_broker_away") == 1
    assert agent.is_running


def test_an_account_that_gets_no_events_is_not_listening(path: Path, agents: Agents, tmp_path: Path) -> None:
    """A broker grants every subscription and delivers nothing to an account other than the agent's."""
    with PrivateBroker(Local(tmp_path, tls=False)) as broker:
        new_ledger(path, local_url=f"mqtt://foreman:{WORD}@{HOST}:{broker.port}")
        agent = agents(path).start("local_broker_gives_nothing")
        condition = wait_for(path, Part.DEVICES, "deaf")
        assert "'foreman'" in condition["why"]
        assert "mqtt://agent:" in condition["hint"]
        assert WORD not in agent.log_file.read_text() + json.dumps(status(path))
        assert agent.times("listening_to_devices") == 0
        agent.kill()
        agents(path, STOCKTIDE_EDGE_LOCAL_URL=f"mqtt://agent:wrong@{HOST}:{broker.port}").start("local_broker_refused")
        assert "user agent" in wait_for(path, Part.DEVICES, "away (connect)")["why"]


def test_the_local_brokers_authority_can_be_a_private_one(path: Path, agents: Agents, tmp_path: Path) -> None:
    """TLS on the site's network has its own authority; without its file there is no connection."""
    local = Local(tmp_path, tls=True)
    assert local.authority is not None
    with PrivateBroker(local) as broker:
        new_ledger(path, local_url=f"mqtts://agent:{WORD}@{HOST}:{broker.port}")
        agent = agents(path).start("local_broker_away")
        condition = wait_for(path, Part.DEVICES, "away (tls)")
        assert "authority that is not trusted" in condition["why"]
        assert "CA_FILE" in condition["hint"]
        agent.kill()
        agents(path, STOCKTIDE_EDGE_LOCAL_CA_FILE=str(local.authority.bundle)).start()
        assert wait_for(path, Part.DEVICES, "listening")["ok"]


def test_authorities_for_a_connection_without_tls_are_refused(tmp_path: Path) -> None:
    """Who names an authority believes that the connection is encrypted."""
    authority = Authority.create(tmp_path / "ca", "Site")
    with pytest.raises(TlsUnusable, match="without TLS"):
        device_broker("mqtt://broker", ca_file=str(authority.bundle))


def device_broker(url: str, **options: Any) -> DeviceBroker:
    """The adapter as the agent makes it."""
    return DeviceBroker(
        BrokerAddress.parse(url), "gw-1", SUBSCRIPTIONS, mqtt_5=True, keepalive_s=30, inflight_max=20, **options
    )


def test_the_link_and_the_cloud_behind_it_have_states(path: Path, agents: Agents, private_broker: Brokers) -> None:
    """An enrolled gateway was shown as working offline, whatever its link did."""
    local, cloud_broker = private_broker(), private_broker()
    new_ledger(path, local_url=local.url, cloud_url=cloud_broker.url)
    agent = agents(path, STOCKTIDE_EDGE_RECONNECT_DELAY_S_MAX="0.5")
    with LoopbackCloud(cloud_broker.port, "gw-1"):
        agent.start("uplink_up")
        with Scanner(local.port, "till-1") as scanner:
            scanner.scan("e-1")
            assert scanner.wait_for_receipts(1)
        assert wait_for(path, Part.CLOUD, "acknowledging")["ok"]
        assert wait_for(path, Part.LINK, "up")["ok"]
    cloud_broker.stop()
    down = wait_for(path, Part.LINK, "down (tcp)")
    assert not down["ok"]
    assert f"port {cloud_broker.port}" in down["why"]
    assert not wait_for(path, Part.CLOUD, "out of reach")["ok"]
    attempts = agent.times("uplink_down")
    cloud_broker.start()
    wait_for(path, Part.LINK, "up")
    assert agent.times("uplink_down") == attempts <= 2, "once that it was lost, and once that nothing listens"
    agent.stop()
    assert status(path)["conditions"] == {}, "of an agent that does not run nothing is known"


@pytest.mark.parametrize("tls", [False, True])
def test_tls_and_plain_tcp_on_the_wrong_port_are_named(
    path: Path, agents: Agents, tmp_path: Path, *, tls: bool
) -> None:
    """An address that says the one where the broker speaks the other is the first mistake of a first day."""
    with PrivateBroker(Local(tmp_path, tls=tls)) as broker:
        new_ledger(path, local_url=f"{'mqtt' if tls else 'mqtts'}://agent:{WORD}@{HOST}:{broker.port}")
        agent = agents(path).start("local_broker_away" if not tls else "local_broker_refused")
        eventually(lambda: "TLS" in str(conditions.last(path).get("devices")), "the state names TLS")
        assert agent.is_running


@pytest.mark.parametrize("host", ["a..b", "x" * 64 + ".example"])
def test_a_host_that_no_dns_can_be_asked_for_does_not_end_the_agent(
    path: Path, agents: Agents, private_broker: Brokers, host: str
) -> None:
    """The library's error for it is none of the network's, and devices must be served all the same."""
    local = private_broker()
    new_ledger(path, local_url=local.url, cloud_url=f"mqtt://{host}")
    agent = agents(path).start("uplink_down")
    assert wait_for(path, Part.LINK, "down (name)")["hint"]
    with Scanner(local.port, "till-1") as scanner:
        scanner.scan("e-1")
        assert scanner.wait_for_receipts(1)
    assert agent.is_running
    assert agent.times("uplink_down") == 1


def test_a_change_is_a_change_and_a_repetition_is_none() -> None:
    """Since when is the first time, whatever the reason is called meanwhile; the log says each once."""
    now = [1_000]
    kept = Conditions(None, lambda: now[0])
    assert kept.note(Part.LINK, "down", ok=False, why="a")
    now[0] = 2_000
    assert not kept.note(Part.LINK, "down", ok=False, why="a")
    assert kept.note(Part.LINK, "down", ok=False, why="b\x1b[2J\n" + "x" * 1_000)
    condition = kept[Part.LINK]
    assert condition is not None
    assert condition.since_ms == 1_000
    assert condition.why is not None
    assert condition.why.isprintable()
    assert len(condition.why) == conditions.TEXT_CHARS_MAX
    assert kept.note(Part.LINK, "up", ok=True)
    assert kept[Part.LINK] == ("up", True, 2_000, None, None)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b'{"link": 3}', b'{"link": {"state": 1}}', b"\xff\xfe"])
def test_a_state_file_that_cannot_be_read_is_no_state(path: Path, content: bytes) -> None:
    """It is a display; a damaged one must not end the command."""
    conditions.state_file(path).write_bytes(content)
    assert conditions.last(path) == {}


@pytest.mark.parametrize("columns", [80, 40])
def test_a_terminal_shows_the_states_in_its_width(
    path: Path, agents: Agents, private_broker: Brokers, columns: int
) -> None:
    """A sentence that is cut at the edge of a small screen names no next step."""
    broker = private_broker()
    new_ledger(path, local_url=broker.url, cloud_url=f"mqtt://{HOST}:{free_port()}")
    agents(path).start("uplink_down")
    wait_for(path, Part.LINK, "down (tcp)")
    inside, outside = pty.openpty()
    command = [sys.executable, "-m", "stocktide", "edge", "status", "--ledger", str(path)]
    environment = os.environ | {"COLUMNS": str(columns), "LINES": "50"}
    subprocess.run(command, check=True, stdout=outside, env=environment)
    os.close(outside)
    with closing(os.fdopen(inside, "rb", buffering=0)) as terminal:
        text = b""
        while True:
            try:
                more = terminal.read(65536)
            except OSError:
                break
            if not more:
                break
            text += more
    head = text.decode().partition("devices online")[0].splitlines()  # the facts, without the tables after them
    assert max(len(line) for line in head if "/ledger.db" not in line) <= columns, "a path is not cut"
    shown = " ".join(text.decode().split())
    assert "local broker listening since" in shown
    assert "link DOWN (TCP) since" in shown
    assert "Does the broker run there" in shown


def test_receipts_fit_what_the_broker_takes(private_broker: Brokers) -> None:
    """A broker that is given more ends the connection, and with it every device's."""
    broker = private_broker(lambda port, data: anonymous_config(port, data) + "\nmax_packet_size 2000\n")
    side = device_broker(broker.url)
    with side, Scanner(broker.port, "till-1") as scanner:
        assert side.connected.wait(60)
        notices = Notices(side)
        ids = tuple(f"{'e' * 50}-{number:03}" for number in range(200))
        notices.receipt("till-1", DeviceReceipt(committed=ids))
        assert scanner.wait_for_receipts(len(ids))
        assert scanner.committed == set(ids)
        side.publish("stocktide/v1/dev/till-1/config", b"x" * 3_000, qos=1, retain=True)
        scanner.committed.clear()
        notices.receipt("till-1", DeviceReceipt(committed=("last",)))
        eventually(lambda: "last" in scanner.committed, "the connection goes on")
        assert side.connected.is_set()
