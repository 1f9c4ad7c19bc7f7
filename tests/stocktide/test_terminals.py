"""Nothing fails after it has booked: every write of the command line, on every terminal, by real processes (F6)."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import typer

from broker_config.cli.app import app as broker_app
from edge_agent.cli.app import app as edge_app
from edge_agent.desk.booking import book
from edge_agent.ledger import database
from stocktide.cloud import app as cloud_app
from tests.stocktide.terminals import ENCODINGS, SINKS, stocktide

SKU: Final = "Öl→5 L"
BOOKINGS: Final = {
    "receive": ["receive", SKU, "9", "A→1"],
    "pick": ["pick", SKU, "10", "A→1"],  # below zero: there is a note beside it
    "move": ["move", SKU, "1", "A→1", "B-1"],
    "ship": ["ship", SKU, "1", "A→1", "dublin"],
    "arrive": ["arrive", SKU, "1", "A→1", "--site", "berlin"],
    "scrap": ["scrap", SKU, "1", "A→1"],
    "count": ["count", SKU, "3", "A→1"],
}
# What changes nothing, and runs until it is stopped.
READS: Final = {
    "edge": "run twin item recount stock find low tracking history readings status firmware",
    "edge ledger": "verify export",
    "edge device": "list",
    "edge dead-letter": "list",
    "cloud": "ingest api status stock movements",
    "cloud tenant": "list",
    "cloud site": "list",
    "cloud gateway": "list certificates",
    "cloud claim": "list",
    "cloud ca": "show",
    "cloud item": "list clashes",
    "cloud location": "list clashes",
    "cloud dead-letter": "list",
    "cloud ledger": "verify",
    "cloud alarm": "list",
    "cloud twin": "show diff list history",
    "cloud command": "list",
    "cloud job": "list show",
    "cloud firmware": "list manifest",
    "cloud key": "list",
    "cloud audit": "list",
    "cloud database-user": "list",
    "cloud device": "list",
    "broker": "policy limits run run-fleet",
}


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    """A ledger with some goods."""
    path = tmp_path / "ledger.db"
    assert stocktide("edge", "init", "-g", "gw-1", "--ledger", str(path)).code == 0
    return path


def entries(ledger: Path) -> int:
    """How many entries a ledger has."""
    with database.reading(ledger) as connection:
        count: int = connection.execute("SELECT count(*) FROM entry").fetchone()[0]
        return count


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("command", BOOKINGS)
def test_a_booking_is_shown_in_any_encoding(ledger: Path, command: str, encoding: str) -> None:
    """A name keeps its letters: one that the terminal lacks is escaped, and never written as another."""
    for json_ in ([], ["--json"]):
        shown = stocktide("edge", *BOOKINGS[command], *json_, "--ledger", str(ledger), encoding=encoding)
        assert (shown.code, "Traceback" in shown.err) == (0, False)
        if json_:
            assert json.loads(shown.out)["sku"] == SKU
        elif encoding != "utf-8":
            assert "\\u21925 L" in shown.out
            assert " -> " in shown.out or command == "count"
    assert entries(ledger) == 2


@pytest.mark.parametrize("sink", SINKS)
@pytest.mark.parametrize("command", BOOKINGS)
def test_a_booking_that_cannot_be_shown_is_booked_once(ledger: Path, command: str, sink: str) -> None:
    """Exit code 0, so that no script books again; what it would have said is on standard error, with its number."""
    for count, json_ in enumerate(([], ["--json"]), 1):
        shown = stocktide("edge", *BOOKINGS[command], *json_, "--ledger", str(ledger), sink=sink)
        assert (shown.code, entries(ledger)) == (0, count)
        if sink in {"full", "gone"}:
            assert "it is done" in shown.err
            assert '"seq"' in shown.err if json_ else "(entry 1)" in shown.err
            assert "Traceback" not in shown.err
            assert "Exception ignored" not in shown.err


@pytest.mark.parametrize("sink", SINKS)
def test_the_other_writes_of_the_edge_are_done_as_well(ledger: Path, tmp_path: Path, sink: str) -> None:
    """Also those that draw their progress while they write."""
    new, there, table = tmp_path / "new.db", str(ledger), tmp_path / "counts.csv"
    table.write_text("location,sku,quantity\nA-01,tea,7\n")
    book(ledger, "receive", "tea", 1, destination="A-01")
    for arguments in (
        ["init", "-g", "gw-2", "--ledger", str(new)],
        ["device", "add", "till-1", "--ledger", there],
        ["device", "remove", "till-1", "--ledger", there],
        ["dead-letter", "retry", "--ledger", there],
        ["ledger", "migrate", "--ledger", there],
        ["ledger", "rebuild", "--ledger", there],
        ["backup", str(tmp_path / "copy"), "--ledger", there],
        ["undo", "--ledger", there],
        ["import-counts", str(table), "--book", "--ledger", there],
    ):
        shown = stocktide("edge", *arguments, sink=sink)
        assert (shown.code, "Traceback" in shown.err) == (0, False), arguments
    assert new.exists()
    assert (tmp_path / "copy").exists()
    assert entries(ledger) == 3
    assert stocktide("edge", "receive", "tea", "1", "A", "--ledger", str(new)).code == 0


@pytest.mark.parametrize("command", [["stock"], ["stock", "--json"], ["history"], ["ledger", "export"], ["status"]])
def test_a_question_that_cannot_be_answered_fails(ledger: Path, command: list[str]) -> None:
    """Nothing was done, so it may be asked again: exit code 1, and a sentence."""
    stocktide("edge", *BOOKINGS["receive"], "--ledger", str(ledger))
    shown = stocktide("edge", *command, "--ledger", str(ledger), sink="full")
    assert shown.code == 1
    assert "could not be written: No space left on device" in shown.err
    assert "Traceback" not in shown.err
    assert "Exception ignored" not in shown.err
    gone = stocktide("edge", *command, "--ledger", str(ledger), sink="gone")
    assert (gone.code, "Traceback" in gone.err) == (1, False)


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("command", [["--help"], ["edge", "--help"], ["edge", "pick", "--help"], ["edge", "pick"]])
def test_help_is_shown_in_any_encoding(command: list[str], encoding: str) -> None:
    """The first thing a technician tries."""
    shown = stocktide(*command, encoding=encoding)
    assert "UnicodeEncodeError" not in shown.err


def test_a_password_that_nobody_saw_is_no_success(tmp_path: Path) -> None:
    """A secret goes to standard output or nowhere: standard error ends in log files."""
    shown = stocktide("broker", "passwd", str(tmp_path / "users"), "gw-1", "--generate", sink="full")
    assert shown.code == 1
    assert "could not be shown" in shown.err
    assert "nobody knows" in shown.err


def commands(app: typer.Typer, name: str) -> Iterator[tuple[str, Any]]:
    """Every command of a group and of the groups in it, with the group's name."""

    def walk(group: Any, path: str) -> Iterator[tuple[str, Any]]:
        for each in group.commands.values():
            if hasattr(each, "commands"):
                yield from walk(each, f"{path} {each.name}")
            else:
                yield path, each

    yield from walk(typer.main.get_command(app), name)


def test_every_command_reads_or_is_marked_as_one_that_writes() -> None:
    """A new command that writes must not forget that nothing may fail afterwards."""
    for app, name in ((edge_app, "edge"), (cloud_app, "cloud"), (broker_app, "broker")):
        for group, command in commands(app, name):
            marked = getattr(command.callback, "writes", False) or hasattr(
                getattr(command.callback, "__wrapped__", None), "writes"
            )
            reads = command.name in READS.get(group, "").split()
            assert marked != reads, f"{group} {command.name}: mark it with @writes, or name it among READS"
