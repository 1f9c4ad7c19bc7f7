"""From an empty folder to a trusted gateway, on real brokers over TLS, with the commands that people type."""

import json
import sqlite3
import stat
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

import aiomqtt
import psutil
from cryptography import x509

from cloud_store.base.connection import connect
from cloud_store.reports import snapshots
from edge_agent.desk.booking import book
from edge_agent.identity.keystore import IdentityFolder
from testbed.agent_process import AgentProcess
from testbed.brokers import SECRET, FleetBrokers
from testbed.eventually import eventually
from tests.enrolment.cloud import Cloud, waiting
from wire_protocol import topics
from wire_protocol.claims import ClaimCode
from wire_protocol.topics import Channel

Name = Callable[..., str]


def test_a_claim_makes_a_gateway_that_ships(
    cloud: Cloud, tmp_path: Path, agents: Callable[..., AgentProcess], unique_name: Name
) -> None:
    """The whole way: claim, key, certificate, ledger, and an entry in the cloud over mutual TLS, without options."""
    gateway, ledger = unique_name(), tmp_path / "edge" / "ledger.db"
    done = cloud.enroll(cloud.claim(gateway), ledger)
    assert done["gateway"] == gateway
    assert done["brokers"] == [cloud.brokers.gateway_url]
    folder = Path(done["identity"])
    assert stat.S_IMODE((folder / "key.pem").stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == stat.S_IMODE(folder.parent.stat().st_mode) == 0o700
    certificate = x509.load_pem_x509_certificate((folder / "certificate.pem").read_bytes())
    assert [attribute.value for attribute in certificate.subject] == [gateway]

    book(ledger, "receive", "TEA", 5, destination="A-01")
    agents(ledger).start("uplink_up")
    eventually(lambda: waiting(ledger) == 0, explain=lambda: cloud.worker.log_file.read_text()[-2000:])
    with closing(connect(cloud.database_url, application="test")) as connection:
        assert [row.rows for row in snapshots.entries(connection) if row.tenant == cloud.tenant] == [1]


def test_the_first_twin_comes_with_the_certificate(
    cloud: Cloud, tmp_path: Path, agents: Callable[..., AgentProcess], unique_name: Name
) -> None:
    """A gateway must know its devices before its first contact: they may speak from the agent's first second on."""
    gateway, ledger = unique_name(), tmp_path / "edge" / "ledger.db"
    code = cloud.claim(gateway)
    fridge = {"devices": {"fridge-1": {"kind": "probe", "sampling_s": 60}}, "limits": {"window_frames": 4}}
    cloud.run("cloud", "twin", "set", gateway, "--patch", json.dumps(fridge))
    assert cloud.enroll(code, ledger)["twin"] == 1
    shown = json.loads(cloud.run("edge", "twin", "--ledger", str(ledger), "--json").stdout)
    assert (shown["version"], shown["limits"]) == (1, {"window_frames": 4})
    assert [(device["name"], device["version"]) for device in shown["devices"]] == [("fridge-1", 1)]

    def reported() -> int:
        return int(json.loads(cloud.run("cloud", "twin", "show", gateway, "--json").stdout)["reported_version"])

    assert reported() == 0
    agents(ledger).start("uplink_up")
    eventually(lambda: reported() == 1)
    assert "twin_in_force" not in {line.get("event") for line in agents(ledger).log()}  # it was so before


def test_a_twin_that_has_no_room_comes_with_the_first_contact(
    cloud: Cloud, tmp_path: Path, agents: Callable[..., AgentProcess], unique_name: Name
) -> None:
    """A site of many devices must still get its certificate: the answer has a bound, the twin a way of its own."""
    gateway, ledger = unique_name(), tmp_path / "edge" / "ledger.db"
    code = cloud.claim(gateway)
    notes = {f"note_{number}": "x" * 250 for number in range(60)}
    devices = {f"probe-{number}": {"kind": "probe", "settings": notes} for number in range(4)}
    cloud.run("cloud", "twin", "set", gateway, "--patch", json.dumps({"devices": devices}))
    assert cloud.enroll(code, ledger)["twin"] is None

    def version() -> int:
        return int(json.loads(cloud.run("edge", "twin", "--ledger", str(ledger), "--json").stdout)["version"])

    assert version() == 0
    agents(ledger).start("uplink_up")
    eventually(lambda: version() == 1)


def test_the_same_key_is_answered_the_same_and_another_is_refused(
    cloud: Cloud, tmp_path: Path, unique_name: Name
) -> None:
    """A lost answer must not cost the claim, and a stolen claim must not make a second gateway."""
    gateway, one, two = unique_name(), tmp_path / "one" / "ledger.db", tmp_path / "two" / "ledger.db"
    code = cloud.claim(gateway)
    first = cloud.enroll(code, one)
    # As after a crash between the answer and its storing: the key is there, nothing else is.
    home = IdentityFolder.beside(one).folder
    (home / "pending").symlink_to((home / "current").readlink())
    (home / "current").unlink()
    assert cloud.enroll(code, one)["serial"] == first["serial"]
    assert cloud.enroll(code, one)["serial"] == first["serial"]  # all is there: nothing is asked
    refused = cloud.enroll(code, two, exit_code=6)
    assert "used already" in refused["error"]
    assert refused["hint"]
    assert not two.exists()


def test_each_refusal_says_why(cloud: Cloud, tmp_path: Path, unique_name: Name) -> None:
    """A technician on a ladder must know from one line what to do."""
    other = tmp_path / "other" / "ledger.db"
    cloud.run("edge", "init", "--gateway", unique_name(), "--ledger", str(other))
    code = cloud.claim(unique_name())
    assert "another gateway" in cloud.enroll(code, other, exit_code=6)["error"]

    cloud.run("cloud", "claim", "revoke", code[:9])
    assert "revoked" in cloud.enroll(code, tmp_path / "r.db", exit_code=6)["error"]

    expired = cloud.claim(unique_name())
    with closing(connect(cloud.database_url, application="test")) as connection:
        connection.execute("UPDATE claim SET expires_at = now() WHERE name = %s", [expired.replace("-", "")[:8]])
    assert "run out" in cloud.enroll(expired, tmp_path / "e.db", exit_code=6)["error"]

    disabled = unique_name()
    code = cloud.claim(disabled)
    cloud.run("cloud", "gateway", "disable", disabled)
    assert "disabled" in cloud.enroll(code, tmp_path / "d.db", exit_code=6)["error"]

    cloud.enroll("abcd-" * 9, tmp_path / "m.db", exit_code=2)
    states = {row["state"] for row in json.loads(cloud.run("cloud", "claim", "list", "--json").stdout)}
    assert states == {"open", "revoked", "expired"}


def test_an_unknown_claim_and_a_wrong_secret_look_the_same(cloud: Cloud, tmp_path: Path, unique_name: Name) -> None:
    """Anyone who guesses must not learn which claims exist."""
    real = ClaimCode.parse(cloud.claim(unique_name()))
    wrong = ClaimCode(real.name, "0" * 24).text()
    unknown = ClaimCode("zzzzzzzz", "0" * 24).text()
    answers = [cloud.enroll(code, tmp_path / f"{n}.db", exit_code=6) for n, code in enumerate((wrong, unknown))]
    assert answers[0] == answers[1]


def test_no_connection_and_no_answer_are_told_apart(cloud: Cloud, tmp_path: Path, unique_name: Name) -> None:
    """Each step that fails says which one it was: a wrong authority, and a cloud whose workers are all down."""
    code, ledger = cloud.claim(unique_name()), tmp_path / "ledger.db"
    done = cloud.run(
        "edge",
        "enroll",
        "-",
        "--broker",
        cloud.brokers.claims_url,
        "--ledger",
        str(ledger),
        "--json",
        text=code,
        code=4,
    )
    assert "CERTIFICATE_VERIFY_FAILED" in done.stderr
    cloud.run("edge", "enroll", "-", "--broker", "mqtt://127.0.0.1:1", "--ledger", str(ledger), text=code, code=2)
    cloud.worker.kill()
    assert "did not answer" in cloud.enroll(code, ledger, "--wait", "1", exit_code=5)["error"]
    cloud.worker.start()
    cloud.enroll(code, ledger)


def test_a_claim_is_nowhere_but_on_the_screen(cloud: Cloud, tmp_path: Path, unique_name: Name) -> None:
    """The secret is stored hashed, and neither logs nor databases nor the gateway's own files repeat it."""
    gateway, ledger = unique_name(), tmp_path / "edge" / "ledger.db"
    shown = cloud.run("cloud", "gateway", "claim", gateway, "--tenant", cloud.tenant, "--site", "berlin").stdout
    code = next(line.split()[1] for line in shown.splitlines() if line.startswith("claim"))
    assert "█" in shown
    cloud.enroll(code, ledger)
    secret = code.replace("-", "")[8:32]
    spellings = {secret.encode(), code.encode(), secret.upper().encode()}
    places = [cloud.worker.log_file, cloud.brokers.cloud.log, cloud.brokers.claims.log, ledger]
    places += [place for place in IdentityFolder.beside(ledger).folder.rglob("*") if place.is_file()]
    for place in places:
        assert not any(spelling in place.read_bytes() for spelling in spellings), place
    with closing(connect(cloud.database_url, application="test")) as connection:
        dump = str(
            connection.execute("SELECT claim, certificate FROM claim LEFT JOIN certificate USING (claim_id)").fetchall()
        )
    assert secret not in dump
    for pid in (cloud.worker.child.pid, cloud.brokers.cloud.pid):
        shown = " ".join(psutil.Process(pid).cmdline())
        assert SECRET not in shown
        assert secret not in shown
    key = next(IdentityFolder.beside(ledger).folder.glob("*/key.pem")).read_text().splitlines()[1]
    for place in (cloud.worker.log_file, ledger):
        assert key.encode() not in place.read_bytes()
    assert sqlite3.connect(ledger).execute("SELECT count(*) FROM meta").fetchone()[0] > 0


async def test_what_a_claimant_retains_stays_nowhere(brokers: FleetBrokers) -> None:
    """A thousand client ids with a hundred kilobytes each were kept in both brokers; a claim still gets through."""
    topic = topics.claim("zzzz0001", Channel.CLAIM_REQUEST)
    async with brokers.worker() as listening:
        await listening.subscribe(topics.claim_filter(), qos=1)
        with suppress(aiomqtt.MqttError):  # refused, or cut off
            async with brokers.claimant("zzzz0001") as claimant:
                await claimant.publish(topic, b"x" * 50_000, qos=1, retain=True)
        async with brokers.claimant("zzzz0001") as claimant:
            await claimant.publish(topic, b"a claim", qos=1)
        while (await anext(listening.messages)).payload != b"a claim":
            pass
    async with brokers.worker(identifier="another") as later:
        await later.subscribe(topics.claim_filter(), qos=1)
        async with brokers.claimant("zzzz0001") as claimant:
            await claimant.publish(topic, b"the last", qos=1)
        first = await anext(later.messages)
        assert (first.payload, first.retain) == (b"the last", False), "nothing was waiting here"
