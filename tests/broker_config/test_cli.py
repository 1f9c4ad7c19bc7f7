"""`stocktide broker` as a person or a script uses it."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import aiomqtt
import pytest
from typer.testing import CliRunner

from broker_config import passwords
from broker_config.cli.app import app
from broker_config.limits import BrokerLimits
from broker_config.policy import Side, grants
from testbed.services import PrivateBroker

RUNNER = CliRunner()


def _ok(*arguments: object, stdin: str | None = None) -> str:
    result = RUNNER.invoke(app, [str(argument) for argument in arguments], input=stdin)
    assert result.exit_code == 0, result.output
    return result.stdout


def _refused(*arguments: object, stdin: str | None = None) -> str:
    result = RUNNER.invoke(app, [str(argument) for argument in arguments], input=stdin)
    assert result.exit_code in {1, 2}
    assert result.stdout == ""
    assert isinstance(result.exception, SystemExit)
    return result.stderr


async def test_what_render_and_passwd_write_starts_and_lets_the_user_in(
    private_broker: Callable[..., PrivateBroker],
) -> None:
    """The two commands of the manual, one after the other, give a working broker."""

    def config(port: int, directory: Path) -> str:
        _ok("render", "--out", directory, "--side", "gateway", "--port", port)
        _ok("passwd", directory / "passwords", "agent", "--password-stdin", stdin="correct-horse-battery\n")
        return (directory / "mosquitto.conf").read_text()

    broker = private_broker(config)
    async with aiomqtt.Client(
        "127.0.0.1", broker.port, username="agent", password="correct-horse-battery", identifier="c"
    ):
        pass


def test_render_says_what_it_wrote_and_keeps_passwords(tmp_path: Path) -> None:
    """Rendering again after an upgrade must not lock the fleet out."""
    first = json.loads(_ok("render", "--out", tmp_path, "--limit", "connections_max=7", "--json"))
    assert {Path(file).name for file in first["files"]} == {"mosquitto.conf", "acl", "passwords"}
    assert first["start"] == f"mosquitto -c {tmp_path}/mosquitto.conf"
    assert "max_connections 7" in (tmp_path / "mosquitto.conf").read_text().splitlines()
    password = _ok("passwd", tmp_path / "passwords", "gw-a", "--generate").strip()
    shown = _ok("render", "--out", tmp_path, "--data", tmp_path / "data")
    assert "stocktide broker passwd" in shown
    assert f"persistence_location {tmp_path}/data/" in (tmp_path / "mosquitto.conf").read_text().splitlines()
    assert passwords.verify(password, passwords.read(tmp_path / "passwords")["gw-a"])


def test_passwords_over_tls_need_the_brokers_own_files_alone(tmp_path: Path) -> None:
    """A gateway's broker has no clients with certificates; a newcomer would look for their authorities in vain."""
    _ok("render", "--side", "gateway", "--out", tmp_path, "--certfile", "own.pem", "--keyfile", "own.key")
    lines = (tmp_path / "mosquitto.conf").read_text().splitlines()
    assert not [line for line in lines if line.startswith("cafile")]
    assert {f"certfile {Path('own.pem').absolute()}", f"keyfile {Path('own.key').absolute()}"} <= set(lines)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_a_file_that_root_renders_again_stays_the_brokers(tmp_path: Path) -> None:
    """A broker that runs under an account of its own must read its new rules at the next reload, not fail."""
    _ok("render", "--out", tmp_path)
    for name in ("acl", "mosquitto.conf"):
        os.chown(tmp_path / name, 65_534, 65_534)
    _ok("render", "--out", tmp_path, "--limit", "connections_max=7")
    assert {(tmp_path / name).stat().st_uid for name in ("acl", "mosquitto.conf")} == {65_534}


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["render", "--auth", "anonymous", "--address", "0.0.0.0"], "--auth password"),
        (["render", "--auth", "certificate"], "--cafile"),
        (["render", "--cafile", "ca.crt"], "--keyfile"),
        (["render", "--auth", "certificate", "--certfile", "own.pem", "--keyfile", "own.key"], "--cafile"),
        (["render", "--limit", "no_such_limit=1"], "broker limits"),
        (["render", "--limit", "connections_max=many"], "broker limits"),
        (["render", "--limit", "connections_max=0"], "broker limits"),
        (["passwd", "passwords", "+", "--generate"], "Use 1 to"),
        (["passwd", "no/such/directory/passwords", "gw-a", "--generate"], "No such file"),
        (["run"], "--anonymous"),
        (["run", "--passwords", "no-such-file"], "broker passwd"),
    ],
)
def test_mistakes_are_answered_with_what_to_do(
    arguments: list[str], hint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No traceback for a user's error."""
    monkeypatch.chdir(tmp_path)
    out = ["--out", str(tmp_path / "out")] if arguments[0] == "render" else []
    assert hint in _refused(*arguments, *out)
    assert not (tmp_path / "out").exists()


def test_policy_and_limits_are_shown_in_full() -> None:
    """Operators compare them with what their own broker does."""
    shown = json.loads(_ok("policy", "--json"))
    assert len(shown) == sum(len(grants(side)) for side in Side)
    assert {row["broker"] for row in shown} == {"cloud", "gateway"}
    assert all(row["topic"] in _ok("policy") for row in shown)
    assert [row["limit"] for row in json.loads(_ok("limits", "--json"))] == list(BrokerLimits.model_fields)
    assert all(name in _ok("limits") for name in BrokerLimits.model_fields)


def test_every_limit_is_bounded_documented_and_ends_in_its_unit() -> None:
    """Habit 9 of the style guide, for the table that operators see."""
    units = ("_bytes_max", "_messages_max", "_s_max", "_days_max", "_interval_s", "connections_max")
    for name, field in BrokerLimits.model_fields.items():
        assert name.endswith(units)
        assert field.description
        assert field.metadata


async def _started(*options: str) -> tuple[asyncio.subprocess.Process, str]:
    """The embedded broker as a process, and the line that says where it listens."""
    program = [sys.executable, "-c", "from broker_config.cli.app import app; app()"]
    pipe = asyncio.subprocess.PIPE
    broker = await asyncio.create_subprocess_exec(*program, *options, stdout=pipe, stderr=pipe)
    assert broker.stdout is not None
    return broker, (await broker.stdout.readline()).decode()


async def _stopped(broker: asyncio.subprocess.Process) -> tuple[int | None, bytes]:
    broker.send_signal(signal.SIGTERM)
    async with asyncio.timeout(60):
        _, errors = await broker.communicate()
    return broker.returncode, errors


@pytest.mark.parametrize("as_json", [True, False])
async def test_run_serves_until_it_is_told_to_stop(*, as_json: bool) -> None:
    """The demo and scripts wait for the first line, and stop it with SIGTERM."""
    broker, line = await _started("run", "--anonymous", "--port", "0", *(["--json"] if as_json else []))
    url = json.loads(line)["url"] if as_json else line.removeprefix("listening on ").strip()
    _, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
    assert await _stopped(broker) == (0, b"")
    writer.transport.abort()


async def test_a_running_broker_reads_its_files_again(tmp_path: Path) -> None:
    """`passwd` says that SIGHUP is enough; a file that cannot be read then must not open or close anything."""
    file = tmp_path / "passwords"
    passwords.set_password(file, "gw-a", "correct-horse-battery")
    broker, line = await _started("run", "--passwords", str(file), "--port", "0", "--json")
    port = int(json.loads(line)["url"].rpartition(":")[2])

    async def read_again() -> bytes:
        broker.send_signal(signal.SIGHUP)
        assert broker.stderr is not None
        async with asyncio.timeout(60):
            return await broker.stderr.readline()

    async def connects(user: str) -> None:
        async with aiomqtt.Client("127.0.0.1", port, username=user, password="correct-horse-battery"):
            pass

    await connects("gw-a")
    passwords.set_password(file, "gw-b", "correct-horse-battery")
    assert await read_again() == b"read again\n"
    await connects("gw-b")
    file.write_text("no password file")
    assert b"error" in await read_again()
    await connects("gw-b")
    code, _ = await _stopped(broker)
    assert code == 0


def test_the_package_does_not_need_amqtt_until_it_runs_a_broker() -> None:
    """A gateway installs stocktide[edge] and renders its broker's configuration without the sim extra."""
    program = (
        "import sys, broker_config.cli.app; assert not {'amqtt', 'pydantic_settings'} & set(sys.modules), sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
