"""`stocktide edge` as the technician uses it: on the file alone, calm, and never a traceback."""

import csv
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from edge_agent.cli.app import app
from edge_agent.ledger import database
from edge_agent.ledger.clock import SystemClock
from edge_agent.ledger.drafts import ReadingDraft
from edge_agent.ledger.ledger import Ledger

Run = Callable[..., Result]


@pytest.fixture
def run(path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run `stocktide edge …` on the test's ledger."""
    monkeypatch.setenv("STOCKTIDE_EDGE_LEDGER", str(path))
    monkeypatch.setenv("TZ", "UTC")

    def invoke(*arguments: str) -> Result:
        monkeypatch.setattr(sys, "argv", ["stocktide", "edge", *arguments])
        return CliRunner().invoke(app, list(arguments))

    return invoke


@pytest.fixture
def ready(run: Run) -> Run:
    """The same, on a ledger with some stock."""
    assert run("init", "--gateway", "gw-1", "--device", "till-1").exit_code == 0
    assert run("receive", "tea", "20", "A-01", "--lot", "L1", "--ref", "PO 7", "--by", "eva").exit_code == 0
    return run


def test_a_day_of_a_technician(ready: Run) -> None:
    """The main commands, in the order of a day, each with its effect in the next."""
    assert "now A-01: 17" in ready("pick", "tea", "3", "A-01", "--lot", "L1").output
    assert "B-02: 5" in ready("move", "tea", "5", "A-01", "B-02", "--lot", "L1").output
    assert "-1 against the book" in ready("count", "tea", "11", "A-01", "--lot", "L1").output
    assert "as expected" in ready("count", "tea", "5", "B-02", "--lot", "L1").output
    assert ready("ship", "tea", "2", "B-02", "dublin", "--lot", "L1").exit_code == 0
    assert ready("arrive", "tea", "1", "B-02", "--site", "berlin", "--lot", "L1").exit_code == 0
    assert ready("scrap", "tea", "1", "A-01", "--lot", "L1").exit_code == 0
    assert ready("receive", "tea", "1", "A-01", "--lot", "L1", "--return").exit_code == 0
    stock = json.loads(ready("stock", "--json").output)
    assert {row["location"]: row["on_hand"] for row in stock} == {"A-01": 11, "B-02": 4}
    assert "The ledger is whole." in ready("ledger", "verify").output


def test_an_entry_below_zero_is_booked_and_pointed_out(ready: Run) -> None:
    """The goods exist; refusing the scan would only hide that something was not booked."""
    shown = ready("pick", "tea", "21", "A-01", "--lot", "L1")
    assert shown.exit_code == 0
    assert "stocktide edge count tea QUANTITY A-01 --lot L1" in shown.stderr
    assert json.loads(ready("status", "--json").output)["below_zero"] == 1
    assert "count 'green tea' QUANTITY 'A 1'" in ready("pick", "green tea", "1", "A 1").stderr


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["pick", "tea", "0", "A-01"], 2, "nothing to pick"),
        (["pick", "tea", "1", "@supplier"], 2, "cannot come from"),
        (["pick", "t\u200bea", "1", "A-01"], 2, "sku: U+200B ZERO WIDTH SPACE at position 2"),
        (["pick", "tea", "1", "A\u2028"], 2, "source: U+2028 LINE SEPARATOR"),
        (["pick", "tea", "1", "A-01", "--lot", "\ufe0f"], 2, "lot: U+FE0F VARIATION SELECTOR-16"),
        (["pick", "tea", "1", "A-01", "--serial", "\U000e0041"], 2, "serial: U+E0041"),
        (["pick", "tea", "1", "A-01", "--ref", "a\u2066b"], 2, "reference: U+2066 LEFT-TO-RIGHT ISOLATE"),
        (["pick", "tea", "1", "A-01", "--by", "\ue000"], 2, "actor: U+E000"),
        (["count", "tea", "1", "A\x1b[2J"], 2, "location: U+001B ESCAPE"),
        (["pick", "", "1", "A-01"], 2, "sku: it is empty"),
        (["pick", "tea", "-1", "A-01"], 2, "quantity"),
        (["pick", "tea", "many", "A-01"], 2, "integer"),
        (["move", "tea", "1", "A-01", "A-01"], 2, "same location"),
        (["ship", "tea", "1", "A-01", "Not A Site"], 2, "site name"),
        (["count", "tea", "1", "@adjust"], 2, "virtual"),
        (["init", "--gateway", "gw-2"], 1, "never overwritten"),
        (["device", "remove", "ghost"], 2, "not registered"),
        (["device", "add", "not/a/device"], 2, "device name"),
        (["stock", "--limit", "0"], 2, "limit"),
        (["nonsense"], 2, "nonsense"),
    ],
)
def test_a_wrong_command_says_what_is_wrong(ready: Run, arguments: list[str], code: int, words: str) -> None:
    """Gloves on and in a hurry: one line, and what to do next."""
    shown = ready(*arguments)
    assert (shown.exit_code, "Traceback" in shown.output) == (code, False)
    assert words in " ".join(shown.stderr.split())


def test_without_a_ledger_every_command_says_how_to_make_one(run: Run) -> None:
    """The first thing a new technician sees."""
    for command in (["stock"], ["status"], ["history"], ["readings"], ["pick", "tea", "1", "A"], ["ledger", "verify"]):
        shown = run(*command)
        assert shown.exit_code == 1
        assert "stocktide edge init" in shown.stderr
    refused = run("stock", "--json")
    assert json.loads(refused.stderr)["hint"].startswith("Create one")


def test_init_refuses_bad_names_and_addresses(run: Run, path: Path) -> None:
    """A half-made ledger would be in the way of the next try."""
    for arguments in (
        ["--gateway", "GW 1"],
        ["--gateway", "g", "--cloud", "http://x"],
        ["--gateway", "g", "-d", "a/b"],
    ):
        assert run("init", *arguments).exit_code == 2
        assert not path.exists()


def test_verify_fails_loudly_and_rebuild_mends(ready: Run, path: Path) -> None:
    """The exit code is what a fleet's monitoring looks at."""
    writer = database.open_writer(path)
    writer.execute("UPDATE balance SET on_hand = 7 WHERE location = 'A-01'")
    writer.close()
    shown = ready("ledger", "verify")
    assert shown.exit_code == 1
    assert "balance of tea lot L1 at A-01 is 7, the entries give 20" in shown.output
    assert json.loads(ready("ledger", "verify", "--json").output)["whole"] is False
    assert ready("ledger", "rebuild").exit_code == 0
    assert ready("ledger", "verify").exit_code == 0


def test_export_holds_every_entry(ready: Run, tmp_path: Path) -> None:
    """What a person takes away must be complete, in the formats people have tools for."""
    ready("count", "tea", "19", "A-01", "--lot", "L1")
    lines = [json.loads(line) for line in ready("ledger", "export").output.splitlines()]
    assert [(line["seq"], line["kind"]) for line in lines] == [(1, "receive"), (2, "count")]
    assert ready("ledger", "export", "--format", "csv", "--out", str(tmp_path / "out.csv")).exit_code == 0
    with (tmp_path / "out.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["kind"], row["quantity"], row["actor"]) for row in rows] == [
        ("receive", "20", "eva"),
        ("count", "19", ""),
    ]
    assert ready("ledger", "export", "--out", str(tmp_path / "out.csv")).exit_code == 2
    assert len(ready("ledger", "export", "--after", "1").output.splitlines()) == 1


def test_history_and_readings_show_what_happened(ready: Run, path: Path) -> None:
    """The technician looks for who took it, and whether the fridge was warm."""
    with Ledger.open(path, SystemClock()) as ledger, database.transaction(ledger.connection):
        ledger.append_readings([ReadingDraft("probe-1", "r-1", {"temperature_c": 4.25, "humidity_pct": 61.0})])
    shown = ready("history", "tea", "--location", "A-01").output
    assert "eva" in shown
    assert "PO 7" in shown
    assert ready("history", "--location", "nowhere", "--json").output.strip() == "[]"
    readings = json.loads(ready("readings", "probe-1", "--json").output)
    assert {row["metric"]: row["value"] for row in readings} == {"temperature_c": 4.25, "humidity_pct": 61.0}
    assert "4.25" in ready("readings").output


def test_devices_are_registered_listed_and_removed(ready: Run) -> None:
    """Only registered devices may speak."""
    assert ready("device", "add", "scale-1", "scale-2", "--kind", "scale").exit_code == 0
    listed = json.loads(ready("device", "list", "--json").output)
    assert [(row["name"], row["kind"]) for row in listed] == [
        ("scale-1", "scale"),
        ("scale-2", "scale"),
        ("till-1", "device"),
    ]
    assert ready("device", "remove", "scale-1").exit_code == 0
    assert "scale-1" not in ready("device", "list").output
    assert json.loads(ready("dead-letter", "list", "--json").output) == []
    assert ready("dead-letter", "retry").exit_code == 0


def test_stock_of_what_people_type_is_shown_as_they_typed_it(ready: Run) -> None:
    """A SKU like `[bold]` must not vanish as markup."""
    ready("receive", "[bold]x[/] 水 :smile:", "1", "A [1]")
    assert "[bold]x[/] 水 :smile:" in ready("stock").output
    assert "A [1]" in ready("stock").output


def test_reading_commands_import_no_broker_client() -> None:
    """The answer must be there before the hand is back in the glove: half a second of imports would be felt."""
    program = (
        "import sys; sys.argv = ['stocktide', 'edge', 'stock', '--ledger', '/nonexistent']\n"
        "from stocktide.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print(*sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    heavy = {"paho", "aiomqtt", "sqlite_utils", "structlog", "pydantic_settings", "psycopg", "fastapi", "asyncio"}
    heavy |= {"wire_protocol.messages", "wire_protocol.catalog", "edge_agent.ledger.drafts"}
    assert not heavy & set(shown.stdout.split())


def test_what_a_keyboard_or_scanner_added_is_mended(ready: Run) -> None:
    """One shelf, one SKU, however it was typed: what is mended needs no guess."""
    for sku in ("caf\u00e9", "cafe\u0301", " caf\u00e9\r", "]C1caf\u00e9", "caf\u00e9\u00a0"):
        assert ready("receive", sku, "1", "A\u00a002").exit_code == 0
    rows = json.loads(ready("stock", "--json").output)
    assert [(row["sku"], row["on_hand"]) for row in rows if row["location"] == "A 02"] == [("caf\u00e9", 5)]
