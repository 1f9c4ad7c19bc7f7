"""Shutting a gateway out, and the certificates' way through time: renewal and rotation, on real brokers over TLS."""

import asyncio
import json
import shutil
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, closing
from pathlib import Path

import aiomqtt
import pytest

from cloud_store.base.connection import connect
from edge_agent.desk.booking import book
from edge_agent.identity.keystore import IdentityFolder
from mqtt_client import Connection, ConnectionLost, ConnectionOptions
from mqtt_client import connect as mqtt_connect
from testbed.agent_process import AgentProcess
from testbed.eventually import WITHIN_S, eventually, eventually_async
from tests.enrolment.cloud import Cloud, waiting
from wire_protocol import topics
from wire_protocol.address import BrokerAddress

Name = Callable[..., str]
Agents = Callable[..., AgentProcess]


def entries(cloud: Cloud) -> int:
    """How many movements the cloud has of everybody."""
    with closing(connect(cloud.database_url, application="test")) as connection:
        row = connection.execute("SELECT count(*) FROM movement").fetchone()
        assert row is not None
        return int(row[0])


def session(cloud: Cloud, identity: IdentityFolder) -> AbstractAsyncContextManager[Connection]:
    """A connection to the cloud's broker with a gateway's certificate."""
    address = BrokerAddress("127.0.0.1", cloud.brokers.cloud.port, tls=True)
    options = ConnectionOptions(address=address, client_id="", mqtt_5=False, timeout_s=5.0, tls=identity.tls())
    return mqtt_connect(options)


class Thief:
    """Somebody with a gateway's key and certificate who publishes without pause and comes back at once."""

    def __init__(self, cloud: Cloud, gateway: str, identity: IdentityFolder) -> None:
        self._cloud, self._identity = cloud, identity
        self._topic = topics.up(gateway, "ledger")
        self.refusals = 0

    async def run(self) -> None:
        """Steal until cancelled."""
        while True:
            try:
                async with session(self._cloud, self._identity) as connection:
                    while True:
                        await connection.publish(self._topic, b"stolen")
            except ConnectionLost:
                self.refusals += 1
            await asyncio.sleep(0.01)  # the attack itself: as fast as leaves the broker room for others


async def test_a_revoked_gateway_is_cut_off_and_kept_out(cloud: Cloud, tmp_path: Path, unique_name: Name) -> None:
    """A stolen gateway must be out within seconds: its live connection, its certificate, and a claim still open."""
    stolen, honest = unique_name(), unique_name()
    homes = {name: tmp_path / name / "ledger.db" for name in (stolen, honest)}
    for name, ledger in homes.items():
        await asyncio.to_thread(cloud.enroll, await asyncio.to_thread(cloud.claim, name), ledger)
    spare = await asyncio.to_thread(cloud.claim, stolen)
    thief = Thief(cloud, stolen, IdentityFolder.beside(homes[stolen]))
    heard: list[bytes] = []

    async def listen(worker: aiomqtt.Client) -> None:
        async for message in worker.messages:
            heard.append(bytes(message.payload))  # noqa: PERF401 - read while it grows

    async def say(text: bytes) -> None:
        """The honest gateway publishes: nobody else is harmed, and the list does not lock out who is not on it."""
        async with session(cloud, IdentityFolder.beside(homes[honest])) as connection:
            await connection.publish(topics.up(honest, "ledger"), text)

    async with cloud.brokers.worker(identifier="witness") as worker, asyncio.TaskGroup() as group:
        await worker.subscribe([(topics.up(name, "ledger"), 1) for name in (stolen, honest)])
        tasks = [group.create_task(listen(worker)), group.create_task(thief.run())]
        await eventually_async(lambda: len(heard) > 10)
        done = await asyncio.to_thread(cloud.revoke, stolen)
        # The broker handles messages in order: what came through before the revocation is heard before this.
        await say(b"revoked")
        refused_before = thief.refusals
        await eventually_async(lambda: thief.refusals > refused_before + 5)
        await say(b"still at work")
        await eventually_async(lambda: heard[-1] == b"still at work")
        for task in tasks:
            task.cancel()
    assert done["certificates_revoked"] == 1
    assert heard[heard.index(b"revoked") :] == [b"revoked", b"still at work"]
    refused = await asyncio.to_thread(cloud.enroll, spare, tmp_path / "again.db", exit_code=6)
    assert "revoked" in refused["error"]


@pytest.mark.parametrize("revocation", ["registry", "certificate"])
async def test_a_revocation_by_the_database_alone_cuts_the_connection_once(
    cloud: Cloud, tmp_path: Path, unique_name: Name, revocation: str
) -> None:
    """Anyone who disables a gateway from a dashboard's database has no broker at hand; the workers have."""
    names = [unique_name(), unique_name()]
    homes = [tmp_path / name / "ledger.db" for name in names]
    for name, ledger in zip(names, homes, strict=True):
        await asyncio.to_thread(cloud.enroll, await asyncio.to_thread(cloud.claim, name), ledger)

    def revoke(name: str) -> None:
        with closing(connect(cloud.database_url, application="test")) as connection:
            if revocation == "registry":
                connection.execute("UPDATE gateway SET state = 'disabled' WHERE name = %s", [name])
            else:
                connection.execute(
                    "UPDATE certificate c SET revoked_at = now() FROM gateway g"
                    " WHERE g.gateway_id = c.gateway_id AND g.name = %s",
                    [name],
                )

    def is_asked(name: str) -> bool:
        with closing(connect(cloud.database_url, application="test")) as connection:
            row = connection.execute("SELECT cut_asked_at IS NOT NULL FROM gateway WHERE name = %s", [name]).fetchone()
        assert row is not None
        return bool(row[0])

    def client(number: int) -> AbstractAsyncContextManager[Connection]:
        return session(cloud, IdentityFolder.beside(homes[number]))

    async def cut(number: int) -> None:
        """Connect, revoke, and wait until the broker ends it."""
        async with client(number) as connected:
            await asyncio.to_thread(revoke, names[number])
            async with asyncio.timeout(WITHIN_S):
                with pytest.raises(ConnectionLost):
                    await anext(connected.messages())
        await asyncio.to_thread(eventually, lambda: not is_asked(names[number]))

    await cut(0)
    # No list was written, so it can come back; it is not chased, while the next one is cut as the first was.
    async with client(0) as again:
        await cut(1)
        await again.publish(topics.up(names[0], "ledger"), b"still connected", qos=1)
    logged = [json.loads(line) for line in cloud.worker.log_file.read_text().splitlines() if '"gateway_cut"' in line]
    assert [line["gateway"] for line in logged] == names


def test_the_agent_of_a_revoked_gateway_keeps_working_alone(
    cloud: Cloud, tmp_path: Path, agents: Agents, unique_name: Name
) -> None:
    """What a revoked gateway sends is not taken; its technician still has a ledger that works (I7)."""
    gateway, ledger = unique_name(), tmp_path / "edge" / "ledger.db"
    cloud.enroll(cloud.claim(gateway), ledger)
    agent = agents(ledger, STOCKTIDE_EDGE_RECONNECT_DELAY_S_MAX="1").start("uplink_up")
    cloud.revoke(gateway)
    eventually(lambda: '"uplink_down"' in agent.log_file.read_text())
    book(ledger, "receive", "TEA", 5, destination="A-01")
    assert waiting(ledger) == 1
    assert entries(cloud) == 0
    rows = json.loads(cloud.run("cloud", "gateway", "certificates", gateway, "--json").stdout)
    assert [row["state"] for row in rows] == ["revoked"]


def test_a_certificate_renews_itself_without_a_gap(
    cloud: Cloud, tmp_path: Path, agents: Agents, unique_name: Name
) -> None:
    """Nobody climbs a ladder every 90 days. The connection stays; the next one uses the new key and certificate."""
    gateway, ledger = unique_name(), tmp_path / "edge" / "ledger.db"
    cloud.worker.kill()
    cloud.worker.environment["STOCKTIDE_CERTIFICATE_DAYS"] = "0.001"  # due at once
    cloud.worker.start()
    first = cloud.enroll(cloud.claim(gateway), ledger)
    cloud.worker.kill()
    del cloud.worker.environment["STOCKTIDE_CERTIFICATE_DAYS"]
    cloud.worker.start()

    book(ledger, "receive", "TEA", 5, destination="A-01")
    agent = agents(ledger, STOCKTIDE_EDGE_CERTIFICATE_LOOK_S="0.2", STOCKTIDE_EDGE_RECONNECT_DELAY_S_MAX="1")
    agent.start("certificate_renewed")
    second = json.loads(cloud.run("edge", "certificate", "--ledger", str(ledger), "--json").stdout)
    assert second["serial"] != first["serial"]
    assert (Path(first["identity"]) / "key.pem").read_bytes() != (Path(second["folder"]) / "key.pem").read_bytes()
    eventually(lambda: waiting(ledger) == 0)
    assert agent.log_file.read_text().count('"uplink_up"') == 1  # no gap
    assert agent.log_file.read_text().count('"certificate_renewed"') == 1

    cloud.brokers.cloud.restart()
    book(ledger, "receive", "TEA", 6, destination="A-01")
    eventually(lambda: waiting(ledger) == 0)  # with the new certificate
    assert agent.stop() == 0


def test_an_authority_is_replaced_while_gateways_work(
    cloud: Cloud, tmp_path: Path, agents: Agents, unique_name: Name
) -> None:
    """A rotation: gateways of the old authority and of the new one are trusted side by side, then the old one goes."""
    brokers, ledgers = cloud.brokers, [tmp_path / name / "ledger.db" for name in ("old", "new")]
    directory = str(brokers.authority.directory)
    cloud.enroll(cloud.claim(unique_name()), ledgers[0])
    hurried = agents(ledgers[0], STOCKTIDE_EDGE_CERTIFICATE_LOOK_S="0.2", STOCKTIDE_EDGE_RECONNECT_DELAY_S_MAX="1")
    hurried.start("uplink_up")

    shown = json.loads(cloud.run("cloud", "ca", "rotate", "--ca-dir", directory, "--json").stdout)
    assert [row["signs"] for row in shown] == [True, False]
    old = shown[1]["key_id"]
    brokers.hand_over()  # the bundle and the lists; the brokers keep their certificate of the old authority
    cloud.enroll(cloud.claim(unique_name()), ledgers[1])
    other = agents(ledgers[1], STOCKTIDE_EDGE_RECONNECT_DELAY_S_MAX="1").start("uplink_up")
    cloud.run("cloud", "ca", "retire", old, "--ca-dir", directory, code=1)  # a gateway hangs on it

    # The old gateway renews, early, and learns to trust the new authority; then the broker can show its certificate.
    cloud.run("edge", "certificate", "--renew", "--ledger", str(ledgers[0]))
    eventually(lambda: '"certificate_renewed"' in hurried.log_file.read_text())
    cloud.run("cloud", "ca", "retire", old, "--ca-dir", directory)
    brokers.hand_over(server=True)
    for broker in (brokers.cloud, brokers.claims):
        broker.restart()
    for number, ledger in enumerate(ledgers):
        book(ledger, "receive", "TEA", number + 1, destination="A-01")
        eventually(lambda at=ledger: waiting(at) == 0)  # type: ignore[misc]
    assert other.stop() == hurried.stop() == 0


def test_a_clone_with_its_key_takes_turns_and_nothing_is_lost(
    cloud: Cloud, tmp_path: Path, agents: Agents, unique_name: Name
) -> None:
    """Two disks with one certificate have one connection: each is heard in turn, what both recorded counts once."""
    ledgers = [tmp_path / name / "ledger.db" for name in ("original", "clone")]
    cloud.enroll(cloud.claim(unique_name()), ledgers[0])
    shutil.copytree(ledgers[0].parent, ledgers[1].parent, symlinks=True)
    running = []
    for number, ledger in enumerate(ledgers):
        book(ledger, "receive", f"TEA-{number}", number + 1, destination="A-01")
        running.append(agents(ledger, STOCKTIDE_EDGE_RECONNECT_DELAY_S_MAX="2").start("uplink_up"))
    eventually(lambda: entries(cloud) == len(ledgers), within_s=60)
    eventually(lambda: any('"uplink_taken_over"' in agent.log_file.read_text() for agent in running))


def test_the_next_broker_is_tried_when_one_does_not_answer(
    cloud: Cloud, tmp_path: Path, agents: Agents, unique_name: Name
) -> None:
    """A gateway is told all brokers of the cloud, so that one of them may be away."""
    cloud.worker.kill()
    cloud.worker.environment["STOCKTIDE_GATEWAY_BROKERS"] = f"mqtts://127.0.0.1:1, {cloud.brokers.gateway_url}"
    cloud.worker.start()
    ledger = tmp_path / "edge" / "ledger.db"
    assert len(cloud.enroll(cloud.claim(unique_name()), ledger)["brokers"]) == 2
    book(ledger, "receive", "TEA", 1, destination="A-01")
    agents(ledger, STOCKTIDE_EDGE_RECONNECT_DELAY_S_MAX="1").start("uplink_up")
    eventually(lambda: waiting(ledger) == 0)


@pytest.mark.parametrize("answer", ["nothing", "late", "failure", "another's"])
def test_a_signer_command_is_believed_nothing(cloud: Cloud, tmp_path: Path, unique_name: Name, answer: str) -> None:
    """The authority's key may live elsewhere: whatever goes wrong there refuses the claim for now, and says why."""
    script = tmp_path / "signer"
    other = cloud.brokers.identity("gw-other")[0]
    does = {
        "nothing": "true",
        "late": "exec sleep 60",
        "failure": "echo the vault is sealed >&2; exit 3",
        "another's": f"cat {other}",
    }[answer]
    script.write_text(f"#!/bin/sh\n{does}\n")
    script.chmod(0o755)
    cloud.worker.kill()
    cloud.worker.environment |= {
        "STOCKTIDE_SIGNER_COMMAND": str(script),
        "STOCKTIDE_CA_BUNDLE_FILE": str(cloud.brokers.authority.bundle),
        "STOCKTIDE_SIGNER_ANSWER_S_MAX": "0.5",
    }
    cloud.worker.start()
    eventually(lambda: '"broker_connected"' in cloud.worker.log_file.read_text().split("worker_started")[-1])
    code, ledger = cloud.claim(unique_name()), tmp_path / "ledger.db"
    assert "operator's log" in cloud.enroll(code, ledger, "--wait", "4", exit_code=5)["error"]
    said = {
        "nothing": "not a certificate",
        "late": "did not answer",
        "failure": "the vault is sealed",
        "another's": "another name",
    }[answer]
    assert said in cloud.worker.log_file.read_text()
