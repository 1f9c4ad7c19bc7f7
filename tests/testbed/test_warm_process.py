"""A warm process is, in all that a test can see, the fresh one in whose place it stands."""

import os
import re
import signal
import subprocess
from functools import partial
from pathlib import Path

import pytest

from testbed import warm_process
from testbed.eventually import eventually
from testbed.warm_process import WarmProcess
from tests.stocktide import terminals


@pytest.mark.parametrize("sink", ["pipe", *terminals.SINKS])
@pytest.mark.parametrize("words", [["--help"], ["stock"], ["init", "-g", "gw-1"], ["no-such-command"]])
def test_it_shows_and_ends_as_a_fresh_one(words: list[str], sink: str, tmp_path: Path) -> None:
    """On every sink: what it prints, what it complains about, also at the end of the interpreter, and its exit code."""
    shown = []
    for encoding in (None, "utf-8"):
        there = [] if "--help" in words else ["--ledger", str(tmp_path / f"{encoding}" / "ledger.db")]
        done = terminals.stocktide("edge", *words, *there, encoding=encoding, sink=sink)
        name = f"{encoding}|python -m stocktide|-c|[0-9A-Z]{{26}}| +(?=\n)"  # of the program, the folder and the epoch
        shown.append((done.code, *(re.sub(name, "", text).splitlines()[-1:] for text in (done.out, done.err))))
    assert shown[0] == shown[1]


def test_its_variables_and_its_folder_are_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What one was given, the next one is not."""
    monkeypatch.chdir(tmp_path)
    made = warm_process.run("edge", "init", "-g", "gw-1", "--ledger", "here.db", environment=os.environ | {"TZ": "UTC"})
    assert (made.returncode, (tmp_path / "here.db").exists()) == (0, True), made.stderr
    asked = ("edge", "stock", "--json")
    there = os.environ | {"STOCKTIDE_EDGE_LEDGER": str(tmp_path / "here.db")}
    assert warm_process.run(*asked, environment=there).returncode == 0
    assert "no ledger at" in warm_process.run(*asked).stderr


def has_started(log: Path, times: int) -> bool:
    """Whether an agent with this log has started so often."""
    return log.read_text().count('"agent_started"') == times


def test_it_is_stopped_and_killed(tmp_path: Path) -> None:
    """By its own pid; the exit code is as `subprocess` has it, and a dead process stays dead."""
    asked = ["edge", "run", "--ledger", str(tmp_path / "ledger.db")]
    warm_process.run("edge", "init", "-g", "gw-1", "--ledger", asked[-1])
    with (tmp_path / "log").open("wb") as log:
        for life, (number, code) in enumerate(((signal.SIGTERM, 0), (signal.SIGKILL, -signal.SIGKILL)), 1):
            running = WarmProcess(asked, stderr=log)
            eventually(partial(has_started, tmp_path / "log", life))
            with pytest.raises(subprocess.TimeoutExpired):
                running.wait(0.01)
            running.send_signal(number)
            assert running.wait(60) == running.poll() == code
            running.kill()


def test_what_an_interpreter_must_read_itself_is_refused() -> None:
    """It is too late for those variables in a warm one."""
    with pytest.raises(ValueError, match="fresh interpreter"):
        WarmProcess(["edge", "stock"], environment=os.environ | {"PYTHONUTF8": "0"})
