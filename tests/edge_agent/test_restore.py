"""A restore that is killed anywhere goes on: broken when a technician whose terminal was closed has to begin again."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import count
from pathlib import Path
from typing import NamedTuple

import pytest

from edge_agent.ledger import audit, database, queries
from edge_agent.ledger.drafts import draft
from edge_agent.ledger.ledger import Ledger
from edge_agent.restore import RESTORING
from testbed import sites
from testbed.hand_clock import HandClock
from testbed.loopback_site import LoopbackSite
from testbed.services import PrivateBroker
from tests.edge_agent import acts, killed
from wire_protocol.stock import Cell

KILLED = -9
OLD = "01HF7YAT00" + "3" * 16
DONE = 0


class Lost(NamedTuple):
    """What a dead gateway leaves in the cloud: where that is, and the stock that all of its site have."""

    url: str
    balances: dict[Cell, int]


@pytest.fixture
def lost(tmp_path: Path, private_broker: Callable[..., PrivateBroker]) -> Iterator[Lost]:
    """A cloud with three frames of a dead gateway and one of another."""
    broker = private_broker()
    with (
        sites.gateways(tmp_path / "dead", ["gw-1"], epoch=OLD) as (dead,),
        sites.gateways(tmp_path / "other", ["gw-2"], epoch=OLD) as (other,),
    ):
        for number in range(5):
            event = {"device": f"till-{number % 2}", "event": f"e-{number}"}
            dead.append(draft("receive", "tea", 2 + number, destination="A-01", lot="L1", **event))
        dead.append(draft("count", "tea", 4, location="A-01", lot="L1"))
        other.append(draft("move", "tea", 1, source="A-01", destination="B-01", lot="L1"))
        everything = [*dead.seal(entries_max=2), *other.seal()]
        balances = dict(sites.defined([dead, other]).on_hand)
    with LoopbackSite(broker.port, "gw-1", everything):
        yield Lost(broker.url, balances)


class Left(NamedTuple):
    """What a killed restore has left: files, whether it is unfinished, how far the logs are, devices."""

    files: tuple[str, ...]
    unfinished: bool = True
    logs: tuple[tuple[str, int], ...] = ()
    devices: tuple[str, ...] = ()


def state(path: Path) -> Left:
    """What there is; whatever it is, it agrees with itself."""
    files = tuple(sorted(file.name for file in path.parent.iterdir() if not file.name.endswith(("-shm", "-wal"))))
    if not path.exists():
        return Left(files)
    with closing(database.open_reader(path)) as reader:
        assert audit.verify(reader).findings == []
        logs = reader.execute("SELECT gateway, frame FROM log WHERE log > 0 ORDER BY gateway").fetchall()
        devices = reader.execute("SELECT name FROM device ORDER BY name").fetchall()
        here = RESTORING in database.meta(reader)
        return Left(files, here, tuple(logs), tuple(name for (name,) in devices))


def assert_restored(path: Path, lost: Lost) -> None:
    """Everything is there, once, and the ledger is an ordinary one."""
    left = state(path)
    assert (left.unfinished, left.devices) == (False, ("till-0", "till-1"))
    with closing(database.open_reader(path)) as reader:
        assert {cell: held for cell, held in queries.balances(reader).items() if held} == {
            cell: held for cell, held in lost.balances.items() if held
        }
        assert reader.execute("SELECT count(*) FROM site_entry").fetchone()[0] == 7


def assert_goes_on(folder: Path, lost: Lost, act: killed.Act, prepare: Callable[[Path], object]) -> set[Left]:
    """Kill a restore at every stage, and bring each state that it leaves to the end; those states."""
    seen: set[Left] = set()
    for step in count(1):
        path = folder / str(step) / "ledger.db"
        path.parent.mkdir()
        (path.parent / "url").write_text(lost.url)
        prepare(path)
        code = killed.run(act, path, step)
        left = state(path)
        if left not in seen:
            seen.add(left)
            if left.unfinished or not left.logs:
                assert killed.run(act, path) == DONE
            assert_restored(path, lost)
        if code != KILLED:
            assert code == DONE
            return seen
        if act is acts.restore_aside and left.logs:
            return seen  # from here on it is the same as without
    raise AssertionError


def test_a_restore_killed_at_any_stage_goes_on(tmp_path: Path, lost: Lost) -> None:
    """F3's kind: at each commit, sync and rename, until nothing is left to do."""
    seen = assert_goes_on(tmp_path, lost, acts.restore, lambda _: None)
    assert {left.logs for left in seen} >= {(), (("gw-1", 1),), (("gw-1", 2),), (("gw-1", 3), ("gw-2", 1))}
    assert {(left.unfinished, left.devices != ()) for left in seen} == {(True, False), (False, True)}


def test_a_ledger_that_is_set_aside_is_moved_once(tmp_path: Path, lost: Lost) -> None:
    """What was here is neither lost nor taken for the unfinished one, however often it is killed."""
    damaged = tmp_path / "damaged.db"
    with Ledger.create(damaged, "gw-1", HandClock()) as ledger, database.transaction(ledger.connection):
        ledger.append([draft("receive", "tea", 99, destination="A-01")])
    seen = assert_goes_on(tmp_path, lost, acts.restore_aside, lambda path: shutil.copy(damaged, path))
    assert len(seen) > 3
    for folder in tmp_path.iterdir():
        if (folder / "url").exists() and (folder / "ledger.db").exists():
            old = [file for file in folder.glob("ledger.db*") if len(_receipts(file)) == 1]
            assert len(old) == 1


def _receipts(path: Path) -> list[int]:
    """The receipt of a ledger that was set aside."""
    if not path.name.endswith(("db", "-1", "-2")):
        return []
    with closing(database.open_reader(path)) as reader:
        return [row[0] for row in reader.execute("SELECT quantity FROM movement WHERE log = 0 AND quantity = 99")]
