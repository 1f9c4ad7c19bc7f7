"""Recordings with everything that a file can have wrong: reported with its line, bounded, never skipped in silence."""

import gzip
from pathlib import Path

import pytest

from firmware_sim.errors import BadInput, BadRecording
from firmware_sim.firmware.happening import sale
from firmware_sim.recordings import recording, replay
from firmware_sim.recordings.recording import LINE_BYTES_MAX, BadRow, Row
from firmware_sim.scenarios import builtin
from tests.firmware_sim.recordings import HEADER, WriteRecording, busy_day

GOOD = "2020-01-01T08:00:00Z,oslo,till-1,tea,2"
AT_MS = 1_577_865_600_000


def _read(path: Path) -> tuple[list[Row], list[BadRow]]:
    bad: list[BadRow] = []
    return list(recording.read(path, on_bad=bad.append)), bad


@pytest.mark.parametrize("name", ["day.csv", "day.csv.gz"])
def test_a_row_is_read_as_it_was_written(name: str, write_recording: WriteRecording) -> None:
    """Plain and packed, by content and not by name."""
    path = write_recording(GOOD, name=name)
    assert list(recording.read(path)) == [Row(2, AT_MS, "oslo", "till-1", "tea", 2)]
    renamed = path.rename(path.with_name("day.txt"))
    assert list(recording.read(renamed)) == [Row(2, AT_MS, "oslo", "till-1", "tea", 2)]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("2020-01-01T08:00:00Z,oslo,till-1,tea", "4 fields instead of 5"),
        ("2020-01-01T08:00:00Z,oslo,till-1,tea,2,extra", "6 fields instead of 5"),
        ("yesterday,oslo,till-1,tea,2", "'yesterday' is not an ISO 8601 time"),
        ("1969-12-31T23:00:00Z,oslo,till-1,tea,2", "not between 1970 and"),
        ("9999-12-31T23:59:59-14:00,oslo,till-1,tea,2", "not between 1970 and"),
        (",oslo,till-1,tea,2", "'' is not an ISO 8601 time"),
        ("2020-01-01T08:00:00Z,Oslo,till-1,tea,2", "'Oslo' is not a valid site name"),
        ("2020-01-01T08:00:00Z,oslo,till/1,tea,2", "'till/1' is not a valid device name"),
        ("2020-01-01T08:00:00Z,oslo,till-1,,2", "'' is not a valid SKU"),
        ("2020-01-01T08:00:00Z,oslo,till-1, tea,2", "' tea' is not a valid SKU"),
        ("2020-01-01T08:00:00Z,oslo,till-1,te\x00a,2", "is not a valid SKU"),
        ("2020-01-01T08:00:00Z,oslo,till-1,tea,two", "'two' is not a whole number"),
        ("2020-01-01T08:00:00Z,oslo,till-1,tea,2.5", "'2.5' is not a whole number"),
        ("2020-01-01T08:00:00Z,oslo,till-1,tea,٢", "is not a whole number"),
        ("2020-01-01T08:00:00Z,oslo,till-1,tea,1_000", "is not a whole number"),
        ("2020-01-01T08:00:00Z,oslo,till-1,tea,nan", "is not a whole number"),
        ("2020-01-01T08:00:00Z,oslo,till-1,tea,0", "neither sold nor returned"),
        ("2020-01-01T08:00:00Z,oslo,till-1,tea,9999999999999", "out of bounds"),
        ('2020-01-01T08:00:00Z,oslo,till-1,"tea,2', "not CSV"),
        (f"2020-01-01T08:00:00Z,oslo,till-1,{'x' * 200},2", "is not a valid SKU"),
    ],
)
def test_a_bad_row_is_told_and_spoils_no_other(row: str, reason: str, write_recording: WriteRecording) -> None:
    """Line numbers are those of an editor; the rows around it are read."""
    path = write_recording(GOOD, row, GOOD)
    rows, (bad,) = _read(path)
    assert [good.line for good in rows] == [2, 4]
    assert bad.line == 3
    assert reason in bad.reason
    assert len(bad.reason) < 200
    with pytest.raises(BadRecording, match="line 3"):
        list(recording.read(path))


def test_bytes_that_are_no_text_are_a_bad_row(tmp_path: Path) -> None:
    """Latin-1 from an old till: the row is lost, and it is said which."""
    path = tmp_path / "day.csv"
    path.write_bytes(f"{HEADER}\n{GOOD}\n".encode() + b"2020-01-01T08:00:00Z,oslo,till-1,caf\xe9,1\n" + GOOD.encode())
    rows, bad = _read(path)
    assert ([row.line for row in rows], bad) == ([2, 4], [BadRow(3, "not UTF-8")])


def test_a_huge_line_is_bounded_and_left_behind(tmp_path: Path) -> None:
    """A megabyte without a line break must neither fill the memory nor swallow the next row."""
    path = tmp_path / "day.csv.gz"
    path.write_bytes(gzip.compress(f"{HEADER}\n{GOOD}\n{'x' * 1_000_000}\n{GOOD}\n".encode()))
    rows, bad = _read(path)
    assert ([row.line for row in rows], bad) == ([2, 4], [BadRow(3, f"longer than {LINE_BYTES_MAX} bytes")])


def test_excel_files_are_read(tmp_path: Path) -> None:
    """A byte order mark, CRLF, quotes and blank lines are how spreadsheets write CSV."""
    path = tmp_path / "day.csv"
    quoted = '2020-01-01 08:00:00,"oslo","till-1","tea, green ""extra""",-3'
    path.write_bytes(f"\ufeff{HEADER}\r\n{GOOD}\r\n\r\n{quoted}\r\n".encode())
    rows, bad = _read(path)
    assert not bad
    assert rows[1] == Row(4, AT_MS, "oslo", "till-1", 'tea, green "extra"', -3)


@pytest.mark.parametrize(
    "content",
    [b"", b"\n", b"sku,quantity\n", b"\x00\x01\x02\xff\xfe", b"time,site,device,sku,quantity,price\n", b"PK\x03\x04"],
)
def test_what_is_no_recording_is_refused(content: bytes, tmp_path: Path) -> None:
    """The wrong file must be refused by its header, not by a thousand bad rows."""
    path = tmp_path / "day.csv"
    path.write_bytes(content)
    with pytest.raises(BadRecording, match="not the header") as caught:
        list(recording.read(path))
    assert caught.value.hint


def test_a_damaged_archive_is_told(tmp_path: Path, write_recording: WriteRecording) -> None:
    """A download that broke off must not pass for a short day."""
    whole = write_recording(*busy_day(2_000), name="day.csv.gz").read_bytes()
    for number, content in enumerate((whole[: len(whole) // 2], whole[:-4] + b"oops", whole[:50] + b"\xff" * 500)):
        path = tmp_path / f"{number}.csv.gz"
        path.write_bytes(content)
        with pytest.raises(BadRecording, match="damaged"):
            list(recording.read(path, on_bad=lambda _bad: None))
    with pytest.raises(BadRecording, match="cannot be read"):
        list(recording.read(tmp_path / "absent.csv"))


def test_sites_and_limit_choose_rows(write_recording: WriteRecording) -> None:
    """The demo takes a slice; a bad row is told whoever it belongs to."""
    path = write_recording(*busy_day(10, sites=("oslo", "bergen")))
    assert [row.site for row in recording.read(path, sites={"bergen"}, limit=3)] == ["bergen"] * 3
    assert len(list(recording.read(path))) == 10


def test_sales_leave_the_shop_and_returns_come_back() -> None:
    """The sign of a quantity is the direction of the goods."""
    sold, returned = sale("tea", 2), sale("tea", -3)
    assert (sold.kind, sold.quantity, sold.source, sold.destination) == ("pick", 2, "shop", "@customer")
    assert (returned.kind, returned.quantity, returned.source, returned.destination) == (
        "receive",
        3,
        "@customer",
        "shop",
    )


def test_a_plan_counts_bad_rows_and_strict_refuses_them(write_recording: WriteRecording) -> None:
    """Before anything is published it must be known what will be, and what will not."""
    path = write_recording(GOOD, *["nonsense"] * 30, GOOD)
    plan = replay.plan(path)
    assert (plan.rows, plan.bad_rows, len(plan.bad_rows_listed)) == (2, 30, 20)
    assert str(plan.bad_rows_listed[0]) == "line 3: 1 fields instead of 5"
    with pytest.raises(BadRecording, match="line 3"):
        replay.plan(path, strict=True)


def test_a_plan_refuses_sites_that_are_not_there(write_recording: WriteRecording) -> None:
    """A misspelt site must not become an empty success."""
    with pytest.raises(BadInput, match="nothing of bergen"):
        replay.plan(write_recording(GOOD), sites={"bergen"})
    with pytest.raises(BadInput, match="nothing to play"):
        replay.plan(write_recording())


def test_the_recording_that_comes_with_stocktide_is_whole() -> None:
    """42,481 real rows, oddities included, none of them bad, and small enough to be in the repository."""
    plan = replay.plan(builtin.ONLINE_RETAIL, strict=True)
    assert plan.rows == 42_481
    assert {name: plan.sites[name].rows for name in list(plan.sites)[:5]} == {
        "united-kingdom": 40_125,
        "germany": 565,
        "france": 439,
        "eire": 403,
        "norway": 147,
    }
    assert {"POST", "DOT", "M"} <= plan.sites["united-kingdom"].sold.keys()
    assert min(row.quantity for row in recording.read(builtin.ONLINE_RETAIL)) == -9_360
    assert builtin.ONLINE_RETAIL.stat().st_size < 1_000_000
