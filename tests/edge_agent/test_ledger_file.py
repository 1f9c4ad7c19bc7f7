"""The ledger's file looked after: copied and checked in use, its log kept small, read where nothing is written."""

import json
import os
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import pytest
from structlog.testing import capture_logs
from typer.testing import CliRunner

from edge_agent.cli.app import app
from edge_agent.errors import BadInput, LedgerBusy, LedgerCorrupt
from edge_agent.ledger import audit, connections, database, queries
from edge_agent.ledger.clock import SystemClock
from edge_agent.ledger.drafts import draft
from edge_agent.ledger.ledger import Ledger
from edge_agent.provisioning.retention import empty_log
from edge_agent.settings import EdgeSettings
from edge_agent.upkeep.backup import backup
from edge_agent.upkeep.file_check import Checked, FileCheck
from testbed.eventually import eventually
from tests.edge_agent import acts

NO_MOUNT = 77
IN_A_NAMESPACE = """
set -e
mount -t tmpfs -o size=3M none "$1" || exit 77
cp "$1.from"/ledger.db* "$1"/
{}
disk="$1"
python="$2"
edge() {{ "$python" -c "from stocktide.cli import main; main()" edge "$@" --ledger "$disk/ledger.db"; }}
for read in "status" "history" "ledger export" "ledger verify"; do edge $read > /dev/null; done
edge stock --json
"""


def fill(ledger: Ledger, entries: int, at_once: int = 100) -> None:
    """Receive pieces of tea, in transactions of some entries each."""
    for _ in range(0, entries, at_once):
        with database.transaction(ledger.connection):
            ledger.append([draft("receive", "tea", 1, destination="A-01") for _ in range(at_once)])


def test_a_copy_is_of_one_moment_while_the_agent_writes(path: Path, ledger: Ledger, tmp_path: Path) -> None:
    """A file copied with `cp` under a running agent is of several moments; this is none of them."""
    fill(ledger, 20_000, 1_000)
    stop, written = threading.Event(), [0]

    def write() -> None:
        with Ledger.open(path, SystemClock()) as other:
            while not stop.is_set():
                fill(other, 1, 1)
                written[0] += 1

    writing = threading.Thread(target=write)
    writing.start()
    try:
        eventually(lambda: written[0] > 3)
        made = backup(path, tmp_path / "copy.db")
    finally:
        stop.set()
        writing.join()
    assert 20_003 <= made.entries <= 20_000 + written[0]
    with database.reading(tmp_path / "copy.db") as reader:
        found = audit.verify(reader)
        assert (found.findings, found.entries) == ([], made.entries)
        assert queries.stock(reader)[0].on_hand == made.entries
    assert made.gateway == "gw-1"


def test_a_copy_never_replaces_a_file(path: Path, ledger: Ledger, tmp_path: Path) -> None:
    """Yesterday's backup is worth more than today's, on the day the ledger is damaged."""
    fill(ledger, 100)
    file, link = tmp_path / "copy.db", tmp_path / "link.db"
    file.write_text("yesterday's")
    link.symlink_to(tmp_path / "nowhere")
    for name in (file, link, path):
        with pytest.raises(BadInput, match="exists already"):
            backup(path, name)
    with pytest.raises(BadInput, match="cannot be written"):
        backup(path, tmp_path / "no folder" / "copy.db")
    assert file.read_text() == "yesterday's"
    assert not list(tmp_path.glob(".*"))


def damage(path: Path) -> None:
    """Garbage in the middle of the file, where nobody looks by chance."""
    with closing(database.open_writer(path)) as writer:
        writer.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        root = writer.execute("SELECT rootpage FROM sqlite_master WHERE name = 'movement_sku'").fetchone()[0]
    with path.open("r+b") as file:
        file.seek((root - 1) * 4096)
        file.write(b"\x55" * 4096)


def test_a_damaged_ledger_is_not_copied_as_if_it_were_sound(path: Path, tmp_path: Path) -> None:
    """A backup that is as damaged as the ledger replaces none."""
    acts.older_and_migrated(path)
    damage(path)
    with pytest.raises(LedgerCorrupt, match="damaged"):
        backup(path, tmp_path / "copy.db")
    assert not (tmp_path / "copy.db").exists()


def test_the_file_is_checked_and_the_result_is_shown(path: Path) -> None:
    """F4: `edge run` reported nothing. Now the log says it once, and `edge status` until it is mended."""
    acts.older_and_migrated(path)
    times = iter([1_000, 2_000, 3_000, 4_000])
    check = FileCheck(path, 1.0, lambda: next(times))

    def shown() -> str:
        return CliRunner().invoke(app, ["status", "--ledger", str(path)]).output

    with capture_logs() as logs:
        assert check.check() == Checked(1_000, 1_000, None)
        assert "intact since" in shown()
        damage(path)
        found = check.check()
        assert found is not None
        assert found.problem is not None
        assert check.check() == found._replace(at_ms=3_000)
    assert Checked.last(path) == found._replace(at_ms=3_000)
    assert "DAMAGED since" in shown()
    assert [line["event"] for line in logs] == ["ledger_damaged"]
    assert "edge restore" in logs[0]["hint"]


def test_verify_and_rebuild_do_not_send_each_other(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """F4: `verify` advised `rebuild`, and `rebuild` advised `verify`."""
    monkeypatch.setattr(sys, "argv", ["stocktide"])
    acts.older_and_migrated(path)
    damage(path)
    for command in (
        ["ledger", "verify"],
        ["ledger", "rebuild"],
        ["backup"],
        ["pick", "tea", "1", "A-01"],
    ):
        ended = CliRunner().invoke(app, [*command, "--ledger", str(path)])
        assert ended.exit_code != 0, command
        assert isinstance(ended.exception, SystemExit), command
        assert "edge restore --set-aside" in ended.output, command
        assert "ledger verify" not in ended.output
        assert "ledger rebuild" not in ended.output


def test_a_stalled_export_does_not_keep_the_log_from_shrinking(path: Path, ledger: Ledger) -> None:
    """Security 15: a pipe that nobody read made the log grow to 156 MB, for good."""
    fill(ledger, 5_000, 1_000)
    with closing(database.open_reader(path)) as reader:
        rows = queries.export(reader)
        first = next(rows)
        fill(ledger, 20_000, 1_000)
        assert database.log_bytes(path) > 1 << 20
        assert database.empty_log(path) == 0
        assert [first["seq"], *(row["seq"] for row in rows)] == list(range(1, 5_001))


def test_an_export_across_a_new_epoch_ends_with_a_sentence(path: Path, ledger: Ledger) -> None:
    """Numbers are given again in a new epoch: the second half would be of another ledger."""
    fill(ledger, 2_000, 1_000)
    with closing(database.open_reader(path)) as reader:
        rows = queries.export(reader)
        next(rows)
        ledger.connection.execute("UPDATE log SET epoch = 'other' WHERE log = 0")
        with pytest.raises(LedgerBusy, match="new epoch"):
            list(rows)


@pytest.mark.bound("edge.wal_bytes_max")
async def test_the_log_is_emptied_above_its_bound(path: Path, ledger: Ledger) -> None:
    """Security 15: upkeep gives the room back, and says so; a reader in the way is said too, and holds nobody up."""
    settings = EdgeSettings(ledger=path, wal_bytes_max=1 << 20)
    with capture_logs() as logs:
        fill(ledger, 1_000, 1_000)
        await empty_log(settings)
        assert database.log_bytes(path) > 0
        assert logs == []
        with closing(database.open_reader(path)) as reader:
            reader.execute("BEGIN")
            assert queries.stock(reader)[0].on_hand == 1_000
            fill(ledger, 10_000, 1_000)
            await empty_log(settings)
            assert database.log_bytes(path) > 1 << 20
            reader.execute("ROLLBACK")
        await empty_log(settings)
    assert database.log_bytes(path) == 0
    assert [line["event"] for line in logs] == ["ledger_log_too_large", "ledger_log_emptied"]


def stock_in_a_namespace(tmp_path: Path, then: str) -> tuple[int, str, str]:
    """Put a ledger onto a small file system of its own, do something to that, and read the stock there."""
    place = tmp_path / "disk"
    place.mkdir()
    script = IN_A_NAMESPACE.format(then)
    ended = subprocess.run(
        ["unshare", "--map-root-user", "--mount", "sh", "-c", script, "sh", place, sys.executable],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"TMPDIR": str(tmp_path)},
    )
    if ended.returncode == NO_MOUNT or "unshare" in ended.stderr:
        pytest.skip("this machine lets nobody mount")
    return ended.returncode, ended.stdout, ended.stderr


@pytest.mark.parametrize("log", ["none", "with index", "without index"])
@pytest.mark.parametrize("disk", ["read-only", "full"])
def test_reads_work_where_nothing_can_be_written(tmp_path: Path, disk: str, log: str) -> None:
    """F11: with its log the file is right, without its log it is out of date: the log is never left out."""
    source = tmp_path / "disk.from"
    source.mkdir()
    with Ledger.create(source / "ledger.db", "gw-1", SystemClock()) as ledger:
        fill(ledger, 100)
        ledger.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        fill(ledger, 20, 1)
        for name in ("ledger.db", "ledger.db-wal", "ledger.db-shm"):
            (source / f"{name}.kept").write_bytes((source / name).read_bytes())
    for name in ("ledger.db", "ledger.db-wal", "ledger.db-shm"):
        kept = source / f"{name}.kept"
        if log == "with index" or (log == "without index" and not name.endswith("-shm")):
            kept.rename(source / name)
        else:
            kept.unlink()
    then = {"read-only": 'mount -o remount,ro none "$1"', "full": 'cat /dev/zero > "$1/rest" 2>/dev/null || true'}
    code, shown, said = stock_in_a_namespace(tmp_path, then[disk])
    assert code == 0, said
    assert [row["on_hand"] for row in json.loads(shown)] == [120]


def test_a_read_without_locks_notices_a_writer(path: Path, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of one state and half of the next is no number to show."""
    fill(ledger, 100)
    ledger.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    monkeypatch.setattr(connections, "connect_reading", connections.connect_still)
    with database.reading(path) as reader:
        assert queries.stock(reader)[0].on_hand == 100
    with pytest.raises(LedgerBusy, match="while it was read"), database.reading(path) as reader:
        fill(ledger, 1, 1)


def test_a_damaged_log_is_kept_before_it_is_overwritten(path: Path, ledger: Ledger, tmp_path: Path) -> None:
    """SQLite goes on from the last good commit and writes over the others: they may be nowhere else."""
    fill(ledger, 5, 1)
    copy = tmp_path / "crashed" / "ledger.db"
    copy.parent.mkdir()
    for suffix in ("", "-wal"):
        copy.with_name(copy.name + suffix).write_bytes(path.with_name(path.name + suffix).read_bytes())
    log = connections.log_of(copy)
    content = bytearray(log.read_bytes())
    content[-3 * 4120 * 4] ^= 1
    log.write_bytes(bytes(content))
    with pytest.raises(LedgerCorrupt, match="log is damaged") as caught:
        database.open_reader(copy)
    assert "edge run" in str(caught.value.hint)
    assert database.rescue_log(copy) == log.with_name("ledger.db-wal.damaged-1")
    assert log.with_name("ledger.db-wal.damaged-1").read_bytes() == bytes(content)
    with Ledger.open(copy, SystemClock()) as opened:
        fill(opened, 1, 1)
        assert audit.verify(opened.connection).findings == []
    check = FileCheck(copy, 1.0)
    found = check.check()
    assert found is not None
    assert "ledger.db-wal.damaged-1" in str(found.problem)
    log.with_name("ledger.db-wal.damaged-1").unlink()
    found = check.check()
    assert found is not None
    assert found.problem is None
