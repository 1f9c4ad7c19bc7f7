"""What a technician does beside booking: look for goods, take a booking back, count from a table, see what lacks a lot.

Broken when a slip cannot be found or mended, a table is booked twice or in part, or a tracking flag means nothing.
"""

import json
import sys
from collections.abc import Callable
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from edge_agent.cli.app import app
from edge_agent.cli.history import time_ms
from edge_agent.desk import opening, tracking
from edge_agent.errors import BadInput
from edge_agent.ledger import audit, database, queries
from edge_agent.ledger.clock import SystemClock
from edge_agent.ledger.drafts import draft
from edge_agent.ledger.ledger import Ledger
from edge_agent.provisioning.catalog import CatalogWriter
from wire_protocol.catalog import CatalogItem, CatalogPage, CatalogPosition

Run = Callable[..., Result]

ITEMS = (
    CatalogItem(sku="TEA-GREEN", name="Grüner Tee 100 g", gtin="04006381333931", reorder_point=10),
    CatalogItem(sku="VAX-1", name="Impfstoff", lot_tracked=True, expiry_tracked=True),
    CatalogItem(sku="DRILL-9", name="Bohrmaschine", serial_tracked=True, reorder_point=1),
    CatalogItem(sku="PAINT", name="Farbe im Faß", unit="kg", scale=3, serial_tracked=True),
    CatalogItem(sku="OLD", name="Tee, alt", reorder_point=5, retired=True),
)


@pytest.fixture
def run(path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run `stocktide edge …` on a ledger with a catalogue."""
    with Ledger.create(path, "gw-1", SystemClock()) as made, database.transaction(made.connection):
        page = CatalogPage(
            after=CatalogPosition(), upto=CatalogPosition(version=1), head=1, items=ITEMS, locations=("A-01", "A-02")
        )
        assert CatalogWriter(made).take(page) == "taken"
    monkeypatch.setenv("STOCKTIDE_EDGE_LEDGER", str(path))
    monkeypatch.delenv("STOCKTIDE_ACTOR", raising=False)

    def invoke(*arguments: str) -> Result:
        monkeypatch.setattr(sys, "argv", ["stocktide", "edge", *arguments])
        return CliRunner().invoke(app, list(arguments))

    return invoke


def done(run: Run, words: str, *more: str) -> str:
    """The output of a command that succeeds."""
    shown = run(*words.split(), *more)
    assert shown.exit_code == 0, shown.output
    return shown.output


def answer(run: Run, words: str) -> Any:
    """The JSON of a command, whatever its exit code."""
    return json.loads(run(*words.split(), "--json").stdout)


def refused(run: Run, words: str, *more: str) -> str:
    """What a command says that cannot be carried out as given."""
    shown = run(*words.split(), *more)
    assert (shown.exit_code, "Traceback" in shown.output) == (2, False), shown.output
    return " ".join(shown.stderr.split())


def device_said(path: Path, kind: str, sku: str, quantity: int, **fields: str) -> None:
    """An event of a device, whose facts are facts."""
    with Ledger.open(path, SystemClock()) as ledger, database.transaction(ledger.connection):
        event = f"e-{ledger.tail().seq}"
        ledger.append([draft(kind, sku, quantity, device="till-1", event=event, **fields)])  # type: ignore[arg-type]


def on_hand(run: Run) -> dict[str, int]:
    """Stock by SKU and place."""
    return {f"{row['sku']} {row['location']}{row['lot']}": row["on_hand"] for row in answer(run, "stock")}


def assert_whole(path: Path) -> None:
    """The ledger agrees with itself."""
    with closing(database.open_reader(path)) as reader:
        assert audit.verify(reader).findings == []


# --- tracking ---------------------------------------------------------------------------------------------------


UNTRACKED = [
    ("receive VAX-1 5 A-01", "tracked by lot: name it with --lot"),
    ("move VAX-1 5 A-01 A-02", "tracked by lot"),
    ("count VAX-1 5 A-01", "tracked by lot"),
    ("receive DRILL-9 1 A-01", "tracked by serial number: name it with --serial"),
    ("receive DRILL-9 2 A-01 --serial S-1", "A serial number is of one piece, and this is 2"),
    ("pick TEA-GREEN 3 A-01 --serial S-1", "A serial number is of one piece"),
    ("scrap unknown 2 A-01 --serial S-1", "A serial number is of one piece"),
    ("ship PAINT 12500 A-01 paris", "tracked by serial number"),
]


def test_a_booking_by_hand_names_what_its_item_is_tracked_by(run: Run, path: Path) -> None:
    """The flags meant nothing: a person who books still has the label before the eyes. There is a way round it."""
    for number, (words, says) in enumerate(UNTRACKED):
        said = refused(run, words)
        assert says in said
        assert "--untracked" in said
        with closing(database.open_reader(path)) as reader:
            assert len(queries.history(reader)) == number
        done(run, words, "--untracked")


def test_what_names_its_lot_or_serial_is_booked(run: Run) -> None:
    """One piece is one piece whatever its unit: a drum of paint is weighed. A count cannot say which pieces."""
    for words in (
        "receive VAX-1 5 A-01 --lot L1",
        "receive DRILL-9 1 A-01 --serial S-1",
        "receive PAINT 12500 A-01 --serial DRUM-1",
        "count DRILL-9 1 A-01",
        "receive unknown 7 A-01",
    ):
        done(run, words)
    assert answer(run, "tracking") == {"unnamed": [], "serials": [], "expiry_tracked": 1}
    assert "put it into the lot" in done(run, "tracking")
    assert "shelves without a lot" not in done(run, "status")


def test_what_devices_report_is_taken_and_said(run: Run, path: Path) -> None:
    """Goods have moved, and refusing the report would not move them back."""
    device_said(path, "receive", "VAX-1", 5, destination="A-01")
    device_said(path, "receive", "DRILL-9", 3, destination="A-01")
    for place in ("A-01", "A-02", "A-02"):
        device_said(path, "receive", "DRILL-9", 1, destination=place, serial="S-1")
    device_said(path, "receive", "DRILL-9", 4, destination="A-01", serial="S-2")
    device_said(path, "pick", "TEA-GREEN", 1, source="A-02", serial="S-3")
    device_said(path, "receive", "PAINT", 12_500, destination="A-01", serial="DRUM-1")
    found = answer(run, "tracking")
    assert [tuple(each.values()) for each in found["unnamed"]] == [
        ("VAX-1", "A-01", "lot", 5, 0),
        ("DRILL-9", "A-01", "serial", 8, 2),
        ("DRILL-9", "A-02", "serial", 2, 1),
    ]
    assert {each["serial"]: each["problem"] for each in found["serials"]} == {
        "S-1": "it is at 2 places",
        "S-2": "it is there 4 times",
        "S-3": "it was taken from A-02, where it was not",
    }
    assert run("tracking").exit_code == 1
    assert answer(run, "status")["without_lot"] == 1
    assert "shelves without a lot" in done(run, "status")


def test_a_serial_is_where_it_was_last_moved_or_counted(run: Run, path: Path) -> None:
    """Also by a count of a device, and when it has left."""
    done(run, "receive DRILL-9 1 A-01 --serial S-1")
    done(run, "move DRILL-9 1 A-01 A-02 --serial S-1")
    device_said(path, "count", "DRILL-9", 1, location="A-02", serial="S-1")
    done(run, "receive DRILL-9 1 A-01 --serial S-2")
    done(run, "pick DRILL-9 1 A-01 --serial S-2")
    with closing(database.open_reader(path)) as reader:
        assert tracking.positions(reader) == {("DRILL-9", "S-1"): {"A-02": 1}, ("DRILL-9", "S-2"): {}}
    assert "none here" in done(run, "find s-2")


# --- looking ----------------------------------------------------------------------------------------------------


FINDABLE: list[tuple[str, list[tuple[str, str | None, str]]]] = [
    ("green", [("TEA-GREEN", "A-01", "sku")]),
    ("grüner", [("TEA-GREEN", "A-01", "name")]),
    ("GRU\u0308NER", [("TEA-GREEN", "A-01", "name")]),
    ("4006381333931", [("TEA-GREEN", "A-01", "gtin")]),
    ("04006381333931", [("TEA-GREEN", "A-01", "gtin")]),
    ("]E04006381333931", [("TEA-GREEN", "A-01", "gtin")]),
    ("tee", [("TEA-GREEN", "A-01", "name"), ("OLD", None, "name")]),
    ("impf", [("VAX-1", None, "name")]),
    ("lot-8", [("loose", "B-07", "lot")]),
    ("s-4", [("DRILL-9", "A-02", "serial")]),
    ("vax-1", [("VAX-1", None, "sku")]),
    ("a-01", []),
    ("%", []),
    ("40", []),
]


def test_goods_are_found_by_what_a_person_has(run: Run) -> None:
    """A part of a name in any case and form, what a scanner reads, a lot, a serial."""
    done(run, "receive TEA-GREEN 12 A-01")
    done(run, "receive loose 5 B-07 --lot LOT-88")
    done(run, "receive DRILL-9 1 A-02 --serial S-41")
    for text, found in FINDABLE:
        shown = run("find", text, "--json")
        rows = json.loads(shown.stdout)
        assert sorted(((row["sku"], row["location"], row["by"]) for row in rows), key=str) == sorted(found, key=str)
        assert shown.exit_code == (0 if found else 1)
        assert ("Nothing here" in run("find", text).output) == (not found)


def test_what_is_low_is_listed(run: Run) -> None:
    """By the catalogue's reorder points, over all shelves; retired items are not ordered any more."""
    done(run, "receive TEA-GREEN 6 A-01")
    done(run, "receive TEA-GREEN 5 A-02")
    assert [row["sku"] for row in answer(run, "low")] == ["DRILL-9"]
    done(run, "pick TEA-GREEN 1 A-02")
    assert [(row["sku"], row["on_hand"]) for row in answer(run, "low")] == [("DRILL-9", 0), ("TEA-GREEN", 10)]
    assert "reorder at" in done(run, "low")


def test_history_is_narrowed_by_time_device_and_person(run: Run, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And by SKU as an argument, or as the option that the cloud had."""
    done(run, "receive TEA-GREEN 12 A-01 --by eva")
    device_said(path, "pick", "TEA-GREEN", 2, source="A-01", actor="kim")
    done(run, "receive other 1 A-01 --by kim")

    def kinds(words: str) -> list[str]:
        return [row["kind"] for row in answer(run, f"history {words}")]

    assert kinds("--by kim") == ["receive", "pick"]
    assert kinds("--by kim TEA-GREEN") == kinds("--by kim --sku TEA-GREEN") == kinds("--device till-1") == ["pick"]
    assert kinds("--since 1h --by eva") == ["receive"]
    assert kinds("--until 1h") == kinds("--since 2100-01-01") == []
    at_ms = answer(run, "history --device till-1")[0]["at_ms"]
    for bound, number in ((at_ms, 1), (at_ms + 1, 0)):
        wanted = queries.HistoryFilter(device="till-1", since_ms=bound)
        with closing(database.open_reader(path)) as reader:
            assert len(queries.history(reader, wanted)) == number
            assert len(queries.history(reader, queries.HistoryFilter(device="till-1", until_ms=bound))) == 1 - number
    assert "is no time" in refused(run, "history --since yesterday")
    monkeypatch.setattr("edge_agent.cli.history.short_time", str)
    assert "till-1" in done(run, "history --device till-1") or "kim" in done(run, "history --device till-1")


def test_history_by_time_goes_by_true_time(run: Run, path: Path) -> None:
    """The wall clock was two days behind when it was booked, and the cloud has given the time since."""
    done(run, "receive TEA-GREEN 12 A-01")
    with Ledger.open(path, SystemClock()) as ledger, database.transaction(ledger.connection):
        zero_ms = ledger.clock.now_ms() - ledger.clock.mono_ms() + 2 * 86_400_000
        ledger.connection.execute("UPDATE boot SET zero_ms = ?", (zero_ms,))
    assert len(answer(run, "history --until 2100-01-01")) == 1
    with closing(database.open_reader(path)) as reader:
        at_ms = queries.history(reader)[0].at_ms
        assert len(queries.history(reader, queries.HistoryFilter(since_ms=at_ms, until_ms=at_ms + 1))) == 1
        assert queries.history(reader, queries.HistoryFilter(until_ms=at_ms)) == []


def test_times_are_read_as_people_write_them() -> None:
    """Of today, of a day, ago, or in full; what is no time is said."""
    now = datetime.fromisoformat("2026-11-28T15:00:00+00:00").astimezone()
    today = now.replace(hour=14, minute=30, second=0)
    assert time_ms(None) is None
    assert time_ms("14:30", now) == time_ms(f"{now:%Y-%m-%d} 14:30", now) == int(today.timestamp() * 1000)
    assert time_ms("2h", now) == int(now.timestamp() * 1000) - 7_200_000
    assert time_ms("3d", now) == int(now.timestamp() * 1000) - 3 * 86_400_000
    assert time_ms("2026-11-28T14:30:00+02:00", now) == 1_795_869_000_000
    for wrong in ("", "25:00", "2026-13-01", "soon", "9999d", "-1h"):
        if wrong != "9999d":
            with pytest.raises(BadInput, match="is no time"):
                time_ms(wrong, now)
    assert time_ms("9999d", now) is not None


# --- taking back ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "back"),
    [
        ("receive tea 5 A-02 --lot L", "correct"),
        ("receive tea 5 A-02 --lot L --return", "pick"),
        ("pick tea 5 A-01 --lot L", "receive"),
        ("move tea 5 A-01 A-02 --lot L", "move"),
        ("ship tea 5 A-01 paris --lot L", "arrive"),
        ("arrive tea 5 A-01 --site paris --lot L", "ship"),
        ("scrap tea 5 A-01 --lot L", "correct"),
    ],
)
def test_every_kind_is_taken_back_and_once(run: Run, path: Path, words: str, back: str) -> None:
    """The shelves have what they had; the new entry names the first, and a second time is refused."""
    done(run, "receive tea 9 A-01 --lot L --by eva")
    before = on_hand(run)
    done(run, words, "--by", "kim")
    assert on_hand(run) != before
    made = answer(run, "undo --by kim")
    assert (made["undone"], made["kind"], on_hand(run)) == (2, back, before)
    row = answer(run, "history")[0]
    assert row["reference"].startswith("undo 2 ")
    assert (row["actor"], row["lot"]) == ("kim", "L")
    assert "taken back already, by entry 3" in refused(run, "undo 2")
    assert "took entry 2 back itself" in refused(run, "undo --by kim")
    assert_whole(path)


def test_only_ones_own_last_booking_is_taken_back_without_a_number(run: Run, path: Path) -> None:
    """Not what somebody else, or a device, has booked since."""
    done(run, "receive tea 9 A-01 --by eva")
    done(run, "receive tea 4 A-01")
    done(run, "receive tea 3 A-01 --by kim")
    device_said(path, "receive", "tea", 1, destination="A-01")
    assert answer(run, "undo --by eva")["undone"] == 1
    assert answer(run, "undo")["undone"] == 2
    assert "by hand by ann" in refused(run, "undo --by ann")
    assert answer(run, "undo 4")["undone"] == 4
    assert on_hand(run) == {"tea A-01": 3}
    assert "no entry 99" in refused(run, "undo 99")


def test_what_a_count_has_set_is_not_taken_back(run: Run) -> None:
    """A count replaces what was before it: moving the goods back would make the shelf wrong."""
    done(run, "receive tea 9 A-01")
    done(run, "pick tea 2 A-01")
    done(run, "count tea 8 A-01")
    assert "a count cannot be taken back" in refused(run, "undo")
    assert "stocktide edge count tea QUANTITY A-01" in refused(run, "undo")
    assert "A-01 was counted after entry 2" in refused(run, "undo 2")
    done(run, "pick tea 3 A-01")
    done(run, "undo")
    assert on_hand(run) == {"tea A-01": 8}


# --- slips ------------------------------------------------------------------------------------------------------


NEW_NAMES = [
    ("ship tea 1 A-01 pariz", "is it paris"),
    ("arrive tea 1 A-01 --site berlim", "is it berlin"),
    ("receive tea 1 A-O1", "is it A-01"),
    ("receive tea 1 a-01", "is it A-01"),
    ("receive TEA-GREN 1 A-01", "is it TEA-GREEN"),
    ("receive tea 1 B-07", None),
    ("receive tea 1 A-03", None),
    ("ship tea 1 A-01 dublin", None),
    ("receive TEA-GREEN 1 A-01", None),
]


def test_a_new_name_that_is_nearly_a_known_one_is_pointed_out(run: Run) -> None:
    """It is booked, for the catalogue of an offline gateway may lag; with what would take it back."""
    done(run, "ship tea 1 A-01 paris")
    done(run, "ship tea 1 A-01 berlin")
    for seq, (words, meant) in enumerate(NEW_NAMES, 3):
        shown = run(*words.split())
        assert shown.exit_code == 0
        assert ("never used here" in shown.stderr) == (meant is not None)
        assert meant is None or (meant in shown.stderr and f"stocktide edge undo {seq}" in shown.stderr)
    for words, _ in NEW_NAMES:
        assert "never used" not in run(*words.split()).stderr


# --- counts from a table ----------------------------------------------------------------------------------------

TABLE = """Location;SKU;Quantity;Lot;Serial
A-01;TEA-GREEN;7;;
A-01;VAX-1;40;L-1;
A-01;VAX-1;2;L-2;
B-07;DRILL-9;1;;S-1
B-07;DRILL-9;1;;S-2
"""


def test_opening_stock_is_shown_then_booked_and_once(run: Run, path: Path, tmp_path: Path) -> None:
    """All of it with one reference; a second time would undo what was picked since."""
    file = tmp_path / "counts.csv"
    file.write_text(TABLE, encoding="utf-8-sig")
    done(run, "receive TEA-GREEN 9 A-01")
    shown = done(run, f"import-counts {file}")
    assert "Nothing is booked yet" in shown
    assert on_hand(run) == {"TEA-GREEN A-01": 9}
    plan = answer(run, f"import-counts {file}")
    assert [(each["sku"], each["on_hand"], each["counted"], each["new_serials"]) for each in plan["changes"]] == [
        ("TEA-GREEN", 9, 7, 0),
        ("VAX-1", 0, 40, 0),
        ("VAX-1", 0, 2, 0),
        ("DRILL-9", 0, 2, 2),
    ]
    assert "Booked in 6 entries" in done(run, f"import-counts {file} --book --by eva")
    counted = {"TEA-GREEN A-01": 7, "VAX-1 A-01L-1": 40, "VAX-1 A-01L-2": 2, "DRILL-9 B-07": 2}
    assert on_hand(run) == counted
    done(run, "pick TEA-GREEN 1 A-01")
    file.write_text("\n".join(reversed(TABLE.replace(";", ",").splitlines()[1:])), encoding="utf-8")
    lines = file.read_text().splitlines()
    file.write_text("\n".join(["location,sku,quantity,lot,serial", *lines]))
    assert "imported already" in refused(run, f"import-counts {file} --book"), "the same rows, saved otherwise"
    assert "It was imported on" in done(run, f"import-counts {file}")
    assert on_hand(run)["TEA-GREEN A-01"] == 6
    done(run, f"import-counts {file} --book --again")
    assert on_hand(run) == counted
    assert answer(run, "tracking") == {"unnamed": [], "serials": [], "expiry_tracked": 1}
    assert {row["actor"] for row in answer(run, "history") if str(row["reference"]).startswith("import ")} == {
        "eva",
        None,
    }
    assert_whole(path)


WRONG_ROWS = [
    ("A-01,TEA-GREEN,x,,", "counts.csv:2: quantity: 'x' is no whole number"),
    ("A-01,PAINT,2.5,,D-1", "1000 of them are a kg"),
    ("A-01,TEA-GREEN,-1,,", "quantity: '-1'"),
    ("A-01,TEA-GREEN,9999999999999,,", "counts.csv:2: quantity"),
    ("A-01,TEA-GREEN,99999999999999999999999,,", "counts.csv:2: quantity"),
    ("@supplier,TEA-GREEN,1,,", "counts.csv:2: a virtual location cannot be counted"),
    ("A-01,T\u200bEA,1,,", "counts.csv:2: sku: U+200B"),
    ("A-01,VAX-1,1,,", "counts.csv:2: VAX-1 is tracked by lot"),
    ("A-01,DRILL-9,4,,", "counts.csv:2: DRILL-9 is tracked by serial number"),
    ("A-01,DRILL-9,4,,S-1", "counts.csv:2: A serial number is of one piece"),
    ("A-01,DRILL-9,0,,S-1", "serial S-1 has the quantity 0"),
    ("A-01,TEA-GREEN,1,,\nA-01,TEA-GREEN,2,,", "counts.csv:3: location A-01, sku TEA-GREEN is in line 2 already"),
    ("A-01,,1,,", "counts.csv:2: the column sku is empty"),
    ("A-01,TEA-GREEN,1,,,more", "cell 6 has no column"),
]


def test_a_table_with_a_wrong_row_books_nothing(run: Run, path: Path, tmp_path: Path) -> None:
    """Each error has its line; the good rows beside it wait for the whole."""
    file = tmp_path / "counts.csv"
    for rows, says in WRONG_ROWS:
        file.write_text(f"location,sku,quantity,lot,serial\n{rows}\nA-02,fine,3,,\n", encoding="utf-8")
        assert says in refused(run, f"import-counts {file} --book")
        assert says in refused(run, f"import-counts {file}")
    with closing(database.open_reader(path)) as reader:
        assert queries.history(reader) == []


def test_wrong_rows_are_listed_up_to_a_bound(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A person mends several at a time; a thousand of them fill no screen."""
    file = tmp_path / "counts.csv"
    file.write_text("location,sku,quantity\n" + "".join(f"A-{n},tea,many\n" for n in range(30)))
    said = refused(run, f"import-counts {file}")
    assert "30 of 30 rows" in said
    assert "counts.csv:21:" in said
    assert "counts.csv:22:" not in said
    assert "and 10 more" in said
    file.write_text("location,sku,quantity\n" + "".join(f"A-{n},tea,1\n" for n in range(30)))
    monkeypatch.setattr(opening, "ROWS_MAX", 29)
    assert "29 are the most" in refused(run, f"import-counts {file}")


def test_a_table_points_out_slips(run: Run, tmp_path: Path) -> None:
    """With the line; in an empty ledger all names are new, and none is a slip of another."""
    file = tmp_path / "counts.csv"
    file.write_text("location,sku,quantity\nA-O1,TEA-GREEN,1\nA-01,TEA-GREN,1\nB-07,x,1\n")
    notes = answer(run, f"import-counts {file}")["notes"]
    assert [note.split(": ")[-1] for note in notes] == [
        "A-O1 was never used here; is it A-01?",
        "TEA-GREN was never used here; is it TEA-GREEN?",
    ]
    assert "counts.csv:2" in notes[0]
