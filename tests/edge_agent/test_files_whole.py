"""A file is never half made: ledger, migration, identity, copy, killed at every step, and done twice at once."""

import os
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from itertools import count
from pathlib import Path

import pytest

from edge_agent import files
from edge_agent.desk.booking import book
from edge_agent.errors import AgentRunning, LedgerExists, LedgerLinked, LedgerNewer, LedgerOutdated
from edge_agent.identity.keystore import IdentityFolder
from edge_agent.ledger import audit, connections, database, queries
from edge_agent.ledger.clock import SystemClock
from edge_agent.ledger.ledger import Ledger
from edge_agent.ledger.sql import SCHEMA, script
from edge_agent.upkeep.backup import backup
from tests.edge_agent import acts, killed

KILLED = -9
MIGRATIONS = range(2, SCHEMA + 1)


def state(path: Path) -> tuple[int, list[str], int]:
    """How many entries a ledger has, what is wrong with it, and the version of its schema."""
    with database.reading(path) as reader:
        found = audit.verify(reader)
        return found.entries, found.findings, database.version(reader)


def shape(path: Path) -> set[tuple[str, str, str]]:
    """The schema of a file, without its comments and blanks."""
    with closing(sqlite3.connect(path)) as connection:
        return {
            (kind, name, " ".join(part for line in sql.splitlines() for part in line.partition("--")[0].split()))
            for kind, name, sql in connection.execute("SELECT type, name, sql FROM sqlite_master WHERE sql NOT NULL")
        }


def leavings(folder: Path) -> set[str]:
    """Files that were not finished."""
    return {file.name for file in folder.iterdir() if file.name.startswith(".")}


def killed_at_every_step(act: killed.Act, places: Iterator[Path]) -> Iterator[Path]:
    """The place of each death, one step later each time, until the act comes to its end."""
    for step in count(1):
        path = next(places)
        code = killed.run(act, path, step)
        yield path
        if code != KILLED:
            assert code == 0
            assert step > 5
            return


def fresh(folder: Path, prepare: Callable[[Path], object] = lambda _: None, name: str = "ledger.db") -> Iterator[Path]:
    """A path for each attempt, in a folder of its own."""
    for number in count():
        place = folder / str(number)
        place.mkdir()
        prepare(place / name)
        yield place / name


def test_init_killed_at_any_step_can_be_repeated(tmp_path: Path) -> None:
    """F3: a technician whose terminal is closed must not be left with a file that is in the way."""
    made = 0
    for path in killed_at_every_step(acts.make_ledger, fresh(tmp_path)):
        already = path.exists()
        assert killed.run(acts.make_ledger, path) == (acts.ALREADY_THERE if already else 0)
        made += not already
        assert state(path) == (0, [], SCHEMA)
        with database.reading(path) as reader:
            assert [row[0] for row in reader.execute("SELECT name FROM device ORDER BY name")] == list(acts.DEVICES)
        assert leavings(path.parent) == set()
    assert made > 20


@pytest.mark.parametrize("version", range(1, SCHEMA))
def test_a_migration_killed_at_any_step_goes_on(tmp_path: Path, version: int) -> None:
    """F3: SIGKILL between two statements of a migration made the file unusable for good."""
    older = partial(acts.older_ledger, version=version)
    for path in killed_at_every_step(acts.migrate, fresh(tmp_path, older)):
        assert killed.run(acts.migrate, path) == 0
        assert state(path) == (20, [], SCHEMA)


@pytest.mark.parametrize(
    ("version", "statements"),
    [(version, made) for version in MIGRATIONS for made in range(len(script(f"schema_{version:03}")) + 1)],
)
def test_what_an_older_program_left_half_made_is_finished(tmp_path: Path, version: int, statements: int) -> None:
    """F3: files that were made unusable before this was mended are in the field; they hold stock."""
    path, other = tmp_path / "ledger.db", tmp_path / "other.db"
    acts.half_made(path, version, statements)
    acts.migrate(path)
    assert state(path) == (20, [], SCHEMA)
    acts.make_ledger(other)
    assert shape(path) == shape(other)


@pytest.mark.parametrize("leaving", ["nothing", "no schema", "no gateway"])
def test_what_an_older_init_left_half_made_is_made_again(path: Path, leaving: str) -> None:
    """F3: it said "exists already" and "table meta already exists" forever; nothing can have been booked in it."""
    if leaving == "nothing":
        path.touch()
    else:
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute(f"PRAGMA application_id = {database.APPLICATION_ID}")
            for text in script("schema_001")[: 0 if leaving == "no schema" else 3]:
                connection.execute(text)
    acts.make_ledger(path)
    assert state(path) == (0, [], SCHEMA)


@pytest.mark.usefixtures("ledger")
def test_a_log_without_its_ledger_is_not_taken_for_the_new_one_s(path: Path) -> None:
    """Somebody moved the ledger and left its log: what is in there may be nowhere else."""
    book(path, "receive", "tea", 3, destination="A-01")
    path.rename(path.with_name("moved.db"))
    with pytest.raises(LedgerExists, match="belongs to a ledger that is not here"):
        acts.make_ledger_or_fail(path)


def test_of_two_that_make_a_ledger_one_does(path: Path) -> None:
    """The loser gets a sentence, and the winner's ledger is whole."""
    codes = killed.at_once(acts.make_ledger, path, 6)
    assert sorted(codes) == [0, *[acts.ALREADY_THERE] * 5]
    assert state(path) == (0, [], SCHEMA)


def test_all_that_migrate_at_once_go_on(path: Path) -> None:
    """F3: one of two failed. Each looks at what is left to do inside the lock."""
    acts.older_ledger(path, entries=2_000)
    assert killed.at_once(acts.migrate, path, 6) == [0] * 6
    assert state(path) == (2_000, [], SCHEMA)


def test_an_identity_killed_at_any_step_can_be_repeated(tmp_path: Path) -> None:
    """The old identity or the new one, and the next attempt succeeds."""
    acts.make_authority(tmp_path / "ca")

    def prepare(path: Path) -> None:
        path.with_name("ca").symlink_to(tmp_path / "ca")
        acts.enrol(path)

    places = fresh(tmp_path, prepare, "ledger.identity")
    for path in killed_at_every_step(acts.enrol, places):
        found = IdentityFolder(path).current()
        assert found is not None
        found.context()
        assert killed.run(acts.enrol, path) == 0
        renewed = IdentityFolder(path).current()
        assert renewed is not None
        renewed.context()


def test_all_that_enrol_at_once_end_with_one_identity(tmp_path: Path) -> None:
    """Two terminals with the same claim: no file of one is in the other's folder."""
    acts.make_authority(tmp_path / "ca")
    assert killed.at_once(acts.enrol, tmp_path / "ledger.identity", 4) == [0] * 4
    found = IdentityFolder(tmp_path / "ledger.identity").current()
    assert found is not None
    found.context()


def test_an_enrolment_that_others_have_overtaken_ends_with_their_identity(tmp_path: Path) -> None:
    """The slowest of several terminals with one claim found its key gone, and ended with an error."""
    path = tmp_path / "ledger.identity"
    acts.make_authority(tmp_path / "ca")
    slowest = acts.request(path)
    others = [acts.enrol(path) for _ in range(4)]
    assert not slowest[1].folder.exists()
    assert acts.answer(path, slowest) == others[-1] == IdentityFolder(path).current()


def test_a_copy_killed_at_any_step_is_whole_or_not_there(tmp_path: Path) -> None:
    """Half a backup that looks like one is found out on the day it is needed."""
    for path in killed_at_every_step(acts.copy, fresh(tmp_path, acts.older_and_migrated)):
        copy = path.with_name("copy.db")
        if not copy.exists():
            assert killed.run(acts.copy, path) == 0
        copied = path.with_name("restored.db")
        copied.write_bytes(copy.read_bytes())
        assert state(copied) == (20, [], SCHEMA)


def test_a_newer_ledger_is_refused_with_both_versions(path: Path, ledger: Ledger) -> None:
    """An older program on a newer file could not book, and did not say why."""
    ledger.connection.execute(f"PRAGMA user_version = {SCHEMA + 2}")
    ledger.connection.execute("UPDATE meta SET value = '7.8.9' WHERE key = 'migrated_by'")
    for opening in (database.open_writer, database.open_reader):
        with pytest.raises(LedgerNewer, match=rf"schema {SCHEMA + 2}, written by stocktide 7\.8\.9.*up to {SCHEMA}"):
            opening(path)


@pytest.mark.parametrize("version", range(1, SCHEMA))
def test_an_older_ledger_is_read_after_migrating_it(path: Path, version: int) -> None:
    """Readers had raw tracebacks; now a sentence, with the command that leads on."""
    acts.older_ledger(path, version=version)
    with pytest.raises(LedgerOutdated, match=f"schema {version}") as caught:
        database.open_reader(path)
    assert caught.value.hint is not None
    assert "ledger migrate" in caught.value.hint
    acts.migrate(path)
    with database.reading(path) as reader:
        assert queries.stock(reader)[0].on_hand == 20


def test_a_command_does_not_migrate_under_a_running_agent(path: Path) -> None:
    """The agent in memory is of the older version: its statements would not fit any more."""
    acts.older_ledger(path)
    holding = "import sys; from edge_agent import agent; from pathlib import Path\n"
    holding += "with agent._sole_agent(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", holding, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as agent:
        assert agent.stdout is not None
        assert agent.stdout.readline() == "held\n"
        with pytest.raises(LedgerOutdated, match="older version") as caught:
            database.open_writer(path)
        agent.communicate("")
    assert "Restart it" in str(caught.value.hint)
    acts.migrate(path)


def test_one_ledger_has_one_lock_whatever_it_is_called(tmp_path: Path, path: Path, ledger: Ledger) -> None:
    """Security 18: by a symbolic link, a second agent ran on the same ledger."""
    from edge_agent.agent import _sole_agent  # noqa: PLC0415 - loads the broker's client

    (tmp_path / "elsewhere").mkdir()
    for name in (tmp_path / "link.db", tmp_path / "elsewhere" / "ledger.db"):
        name.symlink_to(path)
    (tmp_path / "chain.db").symlink_to(tmp_path / "link.db")
    names = [path, tmp_path / "link.db", tmp_path / "elsewhere" / "ledger.db", tmp_path / "chain.db"]
    for one in names:
        with _sole_agent(one):
            for other in names:
                assert files.holder(other) == os.getpid()
                with pytest.raises(AgentRunning), _sole_agent(other):
                    pass
    book(tmp_path / "chain.db", "receive", "tea", 2, destination="A-01")
    assert queries.stock(ledger.connection)[0].on_hand == 2


@pytest.mark.usefixtures("ledger")
def test_a_ledger_with_two_names_is_refused(tmp_path: Path, path: Path) -> None:
    """Security 18: a hard link has a log of its own; two logs for one file destroy it."""
    other = tmp_path / "copy.db"
    other.hardlink_to(path)
    for name in (path, other):
        with pytest.raises(LedgerLinked, match="2 names"):
            database.open_reader(name)
        with pytest.raises(LedgerLinked), Ledger.open(name, SystemClock()):
            pass
        with pytest.raises(LedgerLinked):
            book(name, "receive", "tea", 2, destination="A-01")
    other.unlink()
    book(path, "receive", "tea", 2, destination="A-01")


@pytest.mark.parametrize("umask", [0o000, 0o002, 0o022, 0o027, 0o077])
def test_nothing_is_open_to_all_users_whatever_the_umask(tmp_path: Path, umask: int) -> None:
    """Security 19: with umask 000 the folders were writable for everyone."""
    acts.make_authority(tmp_path / "ca")
    path = tmp_path / "var" / "lib" / "ledger.db"
    before = os.umask(umask)
    try:
        acts.make_ledger(path)
        (path.parent / "ca").symlink_to(tmp_path / "ca")
        acts.enrol(path.with_suffix(".identity"))
        backup(path, path.with_name("copy.db"))
        with files.locked(files.lock_path(path)), Ledger.open(path, SystemClock()):
            modes = {
                place.relative_to(tmp_path): stat.S_IMODE(place.stat().st_mode)
                for place in (tmp_path / "var").rglob("*")
                if not place.is_symlink() and "ca" not in place.parts
            }
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "var").stat().st_mode) == 0o750 & ~umask
    inside = {place: mode for place, mode in modes.items() if "ledger.identity" in map(str, place.parts)}
    assert {mode & 0o027 for mode in modes.values()} == {0}, modes
    assert stat.S_IMODE(path.with_suffix(".identity").stat().st_mode) == 0o700
    assert inside


def test_a_damaged_ledger_is_moved_aside_as_a_whole(path: Path) -> None:
    """The way out of damage: nothing is deleted, and a log never stays behind to be taken for the next ledger's."""
    acts.older_and_migrated(path)
    with Ledger.open(path, SystemClock()) as ledger:
        with database.transaction(ledger.connection):
            ledger.append([])
        parts = {suffix: path.with_name(path.name + suffix).read_bytes() for suffix in ("", "-wal")}
        kept = {path.with_name(f"{path.name}{suffix}.kept"): content for suffix, content in parts.items()}
        for file, content in kept.items():
            file.write_bytes(content)
    for file in kept:
        file.rename(file.with_name(file.name.removesuffix(".kept")))
    path.rename(path.with_name("ledger.db.aside-1"))  # as if it was killed here
    assert files.set_aside(path) == path.with_name("ledger.db.aside-1")
    assert not connections.log_of(path).exists()
    assert state(path.with_name("ledger.db.aside-1")) == (20, [], SCHEMA)
    acts.make_ledger(path)
    assert files.set_aside(path) == path.with_name("ledger.db.aside-2")
    assert files.set_aside(path) is None
    acts.make_ledger(path)
    with files.locked(files.lock_path(path)), pytest.raises(BlockingIOError):
        files.set_aside(path)
