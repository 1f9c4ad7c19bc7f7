"""The command line: answers on standard output, one line and a hint for what is wrong, and its exit codes."""

import asyncio
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from firmware_sim.cli.app import app
from testbed.services import PrivateBroker
from tests.firmware_sim.recordings import WriteRecording, busy_day
from tests.firmware_sim.small_agent import SmallAgent

Brokers = Callable[..., PrivateBroker]


async def _sim(*arguments: str) -> tuple[int, str, str]:
    """Run the command in a process of its own."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "stocktide",
        "sim",
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(60):
        out, err = await process.communicate()
    assert "Traceback" not in err.decode()
    return process.returncode or 0, out.decode(), err.decode()


async def test_replay_answers_in_json(private_broker: Brokers, write_recording: WriteRecording) -> None:
    """What a script reads must be one document, whole."""
    broker = private_broker()
    path = write_recording(*busy_day(60), "nonsense", name="day.csv.gz")
    agent = SmallAgent(broker.port)
    async with agent.running():
        code, out, _ = await _sim("replay", str(path), "--broker", broker.url, "--opening-stock", "--json")
    answer = json.loads(out)
    assert code == 0
    assert (answer["complete"], answer["events"], answer["receipts"]) == (True, 67, 67)
    assert (answer["rows"], answer["bad_rows"]) == (60, 1)
    assert answer["bad_rows_listed"] == [{"line": 62, "reason": "1 fields instead of 5"}]
    assert len(agent.events) == 67


async def test_replay_prints_a_calm_table(private_broker: Brokers, write_recording: WriteRecording) -> None:
    """Two runs make new events each time; the same boot counter makes the same ones, taken once."""
    broker = private_broker()
    path = write_recording(*busy_day(20))
    agent = SmallAgent(broker.port)
    command = ("replay", str(path), "--map", f"oslo={broker.url}", "--speed", "1000x")
    async with agent.running():
        for boot in ("a", "a", "b"):
            code, out, err = await _sim(*command, "--boot", boot)
            assert code == 0, err
    assert len(agent.events) == 40
    assert "20 rows of 1 site over 0.0 days, 2 devices, 1 broker" in out
    assert "20 events and 0 readings" in out
    assert "20 committed, 0 refused" in out
    assert not err


async def test_a_run_without_an_agent_fails_and_says_so(
    private_broker: Brokers, write_recording: WriteRecording
) -> None:
    """Exit code 1 and the reason; a script must not take it for done."""
    broker = private_broker()
    path = write_recording(*busy_day(3))
    code, out, err = await _sim("replay", str(path), "--broker", broker.url, "--stall-s", "0.5")
    assert code == 1
    assert "missing: oslo/till-1 has no receipt for 2" in out
    assert "hint:" in err


async def test_a_broker_that_is_not_there_is_told(write_recording: WriteRecording, unused_port: int) -> None:
    """The problem of the link must reach the person."""
    path = write_recording(*busy_day(3))
    code, out, _ = await _sim("replay", str(path), "--broker", f"mqtt://127.0.0.1:{unused_port}", "--stall-s", "0.5")
    assert code == 1
    assert "refused" in out


async def test_run_lives_through_a_scenario(private_broker: Brokers) -> None:
    """By its short name, on one broker for all gateways."""
    broker = private_broker()
    agent = SmallAgent(broker.port)
    async with agent.running():
        code, out, _ = await _sim("run", "day-in-a-shop", "--broker", broker.url, "--speed", "max", "--json")
    answer = json.loads(out)
    assert code == 0
    assert answer["receipts"] == answer["events"] + answer["readings"] > 1_000
    assert answer["seed"] == 7


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["replay", "absent.csv", "--broker", "mqtt://localhost"], "cannot be read"),
        (["replay", "online_retail_2010-12", "--speed", "fast"], "'fast' is not a speed"),
        (["replay", "online_retail_2010-12", "--speed", "-1"], "speed must be above 0"),
        (["replay", "online_retail_2010-12", "-n", "5"], "Which broker serves united-kingdom?"),
        (["replay", "online_retail_2010-12", "-n", "5", "--site", "atlantis"], "nothing of atlantis"),
        (["replay", "online_retail_2010-12", "-n", "5", "--broker", "localhost:1883"], "is not a broker's address"),
        (["replay", "online_retail_2010-12", "-n", "5", "--map", "oslo=mqtt://localhost"], "There is no oslo in it"),
        (["replay", "online_retail_2010-12", "--broker", "mqtt://h", "--mqtt-version", "4"], "not an MQTT version"),
        (["replay", "online_retail_2010-12", "--broker", "mqtt://h", "--boot", "xyz"], "not a boot counter"),
        (["run", "absent.yaml", "--broker", "mqtt://localhost"], "cannot be read"),
        (["run", "bad-radio"], "Which broker serves north?"),
        (["convert", "online-retail", "absent.csv", "--out", "out.csv"], "absent.csv"),
        (["list", "absent.csv"], "cannot be read"),
    ],
)
def test_what_is_wrong_is_one_line_and_a_hint(arguments: list[str], message: str, tmp_path: Path) -> None:
    """No traceback for a user's mistake, and a way out of it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        result = CliRunner().invoke(app, arguments)
    assert result.exit_code in {1, 2}
    assert message in result.stderr
    assert result.stderr.startswith("error: ")
    assert result.stderr.splitlines()[1].startswith("hint:  ")
    assert not result.stdout


def test_a_password_is_never_shown() -> None:
    """Error messages end up in tickets."""
    result = CliRunner().invoke(app, ["run", "rfid-portal", "--broker", "mqtts://me:hunter2@:bad"])
    assert result.exit_code == 2
    assert "hunter2" not in result.stderr


def test_list_names_everything_and_its_devices() -> None:
    """Anyone who registers devices needs their names before the run."""
    ours = json.loads(CliRunner().invoke(app, ["list", "--json"]).stdout)
    assert {row["name"] for row in ours} >= {"bad-radio", "day-in-a-shop", "rfid-portal", "online_retail_2010-12"}
    devices = json.loads(CliRunner().invoke(app, ["list", "online_retail_2010-12", "--json"]).stdout)
    assert devices[0]["devices"] == ["till-1", "till-2", "till-3", "till-4", "handheld-1"]


def test_convert_writes_a_recording(tmp_path: Path) -> None:
    """The command that reproduces our recording, on a few rows."""
    source, out = tmp_path / "in.csv", tmp_path / "out.csv.gz"
    source.write_text(
        "store_id,basket_id,product_id,quantity,transaction_timestamp\n"
        "367,31198481877,852856,2,2017-01-01 18:24:46\n367,1,2,0,2017-01-01 18:24:46\n"
    )
    result = CliRunner().invoke(app, ["convert", "complete-journey", str(source), "--out", str(out)])
    assert result.exit_code == 0, result.stderr
    assert "1 row left out: the quantity is zero (first: in.csv line 3)" in result.stdout
    assert json.loads(CliRunner().invoke(app, ["list", str(out), "--json"]).stdout)[0]["gateway"] == "store-367"


@pytest.mark.parametrize(
    ("model", "factory", "key", "why"),
    [
        ("../x", "1.0.0", None, "no model and version"),
        ("probe-x", "one", None, "no model and version"),
        ("probe-x", "1.0.0", b"rubbish", "no public key"),
        ("probe-x", "1.0.0", None, "no public key"),
    ],
)
def test_a_device_needs_a_model_and_a_key_to_trust(
    tmp_path: Path, model: str, factory: str, key: bytes | None, why: str
) -> None:
    """A device that trusted nobody, or anybody, would be no test of anything."""
    if key is not None:
        (tmp_path / "key.pub").write_bytes(key)
    options = ["--model", model, "--factory", factory, "--trust", str(tmp_path / "key.pub"), "--folder", str(tmp_path)]
    done = CliRunner().invoke(app, ["device", "probe-1", "--broker", "mqtt://127.0.0.1", *options])
    assert done.exit_code == 2
    assert why in done.stderr
