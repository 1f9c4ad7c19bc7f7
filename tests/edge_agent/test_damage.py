"""Damage is said with the way out: no command ends in a traceback, and no wrong number is shown as a right one."""

import json
import random
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from edge_agent.cli.app import app
from edge_agent.errors import LedgerCorrupt
from edge_agent.ledger import database
from edge_agent.ledger.clock import SystemClock
from edge_agent.ledger.drafts import ReadingDraft, draft
from edge_agent.ledger.ledger import Ledger
from edge_agent.ledger.sql import statement
from tests.edge_agent import acts

READS = (
    ["stock"],
    ["stock", "--virtual", "--zero"],
    ["status"],
    ["history"],
    ["readings"],
    ["twin"],
    ["item"],
    ["recount"],
    ["firmware"],
    ["certificate"],
    ["device", "list"],
    ["dead-letter", "list"],
    ["ledger", "verify"],
    ["ledger", "export"],
)
SKUS = ("tea", "coffee", "sugar", "screws M4")
Run = Callable[..., Result]


def edge(path: Path, *arguments: str) -> Result:
    """Run `stocktide edge …` on a ledger, as a process would."""
    argv, sys.argv = sys.argv, ["stocktide", "edge", *arguments]
    try:
        return CliRunner().invoke(app, list(arguments), env={"STOCKTIDE_EDGE_LEDGER": str(path), "TZ": "UTC"})
    finally:
        sys.argv = argv


def said(result: Result) -> str:
    """What a command said, after it was made sure that it did not end in a traceback."""
    ends_well = result.exception is None or isinstance(result.exception, SystemExit)
    assert ends_well, repr(result.exception)
    return result.output


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a ledger that has some of everything, in its file and in its log, and an identity."""
    folder = tmp_path_factory.mktemp("sound")
    path = folder / "ledger.db"
    with Ledger.create(path, "gw-1", SystemClock(), devices=["till-1", "till-2"], cloud_url="mqtt://h") as ledger:
        with database.transaction(ledger.connection):
            ledger.append(
                [
                    draft("receive", SKUS[n % 4], 5, destination=f"A-{n % 30:02}", actor="eva", reference=f"PO {n}")
                    for n in range(400)
                ]
            )
            ledger.append([draft("count", "tea", 7, location="A-00")])
            ledger.append_readings([ReadingDraft("till-1", f"r-{n}", {"temperature_c": n / 3}) for n in range(50)])
            ledger.connection.execute(statement("insert_dead_letter"), (1, "a/b", b"\xff{", "because", "", 0))
        ledger.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        for number in range(40):
            with database.transaction(ledger.connection):
                ledger.append([draft("pick", SKUS[number % 4], 1, source=f"A-{number % 30:02}")])
        for name in ("ledger.db", "ledger.db-wal"):
            shutil.copy(folder / name, folder / f"{name}.kept")
    for name in ("ledger.db", "ledger.db-wal"):
        (folder / f"{name}.kept").rename(folder / name)
    (folder / "ledger.db-shm").unlink(missing_ok=True)
    acts.make_authority(folder / "ca")
    acts.enrol(path.with_suffix(".identity"))
    shutil.rmtree(folder / "ca")
    return folder


@pytest.fixture
def copies(sound: Path, tmp_path: Path) -> Iterator[Callable[[], Path]]:
    """Copies of the sound folder, one at a time."""

    def copy() -> Path:
        place = tmp_path / "copy"
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(sound, place, symlinks=True)
        return place / "ledger.db"

    yield copy
    shutil.rmtree(tmp_path / "copy", ignore_errors=True)


def truth(path: Path) -> list[object]:
    """The stock that a sound ledger shows."""
    shown: list[object] = json.loads(said(edge(path, "stock", "--virtual", "--zero", "--json")))
    return shown


def test_every_read_works_on_the_sound_ledger(copies: Callable[[], Path]) -> None:
    """What the property below compares with."""
    path = copies()
    assert len(truth(path)) > 60
    assert [edge(path, *read).exit_code for read in READS] == [0] * len(READS)


def flip(file: Path, at: float, bits: int) -> int:
    """Change bits of one byte of a file; where."""
    content = bytearray(file.read_bytes())
    place = int(at * (len(content) - 1))
    content[place] ^= bits
    file.write_bytes(bytes(content))
    return place


def require_no_lies(path: Path, expected: list[object]) -> None:
    """Every command ends in words; the stock is right, or is not shown."""
    for read in READS:
        said(edge(path, *read))
    shown = edge(path, "stock", "--virtual", "--zero", "--json")
    said(shown)
    if shown.exit_code == 0:
        assert json.loads(shown.stdout) == expected
    else:
        hint = json.loads(shown.stderr)["hint"]
        assert hint is not None
        assert "verify" not in hint


WHERE = st.tuples(st.floats(0, 1), st.integers(1, 255))


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(flips=st.lists(WHERE, min_size=1, max_size=3), checkpointed=st.booleans())
def test_flipped_bits_of_the_ledger_are_said(
    copies: Callable[[], Path], flips: list[tuple[float, int]], *, checkpointed: bool
) -> None:
    """F4: every command ended in a traceback, and a lost row was a smaller stock."""
    path = copies()
    expected = truth(path)
    if checkpointed:
        with closing(database.open_writer(path)) as writer:
            writer.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    for at, bits in flips:
        flip(path, at, bits)
    require_no_lies(path, expected)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    page=st.integers(0, 60),
    seed=st.integers(0, 1 << 30),
    kind=st.sampled_from(["garbage", "zeros", "other page", "cut"]),
)
def test_pages_of_garbage_are_said(copies: Callable[[], Path], page: int, seed: int, kind: str) -> None:
    """F4: as a worn flash card does it: a page of nothing, of anything, of another place, or the end missing."""
    path = copies()
    expected = truth(path)
    with closing(database.open_writer(path)) as writer:
        writer.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    content = bytearray(path.read_bytes())
    page = page % (len(content) // 4096)
    if kind == "cut":
        del content[max(1, page) * 4096 :]
    else:
        other = random.Random(seed).randrange(len(content) // 4096) * 4096
        filling = {"garbage": random.Random(seed).randbytes(4096), "zeros": bytes(4096)}
        content[page * 4096 : (page + 1) * 4096] = filling.get(kind, content[other : other + 4096])
    path.write_bytes(bytes(content))
    require_no_lies(path, expected)


@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(flips=st.lists(WHERE, min_size=1, max_size=3))
def test_flipped_bits_of_the_log_are_said(copies: Callable[[], Path], flips: list[tuple[float, int]]) -> None:
    """SQLite takes a log up to its first bad frame and says nothing of the commits behind it."""
    path = copies()
    expected = truth(path)
    for at, bits in flips:
        flip(path.with_name("ledger.db-wal"), at, bits)
    require_no_lies(path, expected)


@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.floats(0, 1), bits=st.integers(1, 255), number=st.integers(0, 3), cut=st.booleans())
def test_flipped_bits_of_the_identity_are_said(
    copies: Callable[[], Path], at: float, bits: int, number: int, *, cut: bool
) -> None:
    """`edge certificate` and `edge status` say what is wrong; everything else works on."""
    path = copies()
    expected = truth(path)
    found = sorted((path.with_suffix(".identity") / "current").resolve().iterdir())
    file = found[number % len(found)]
    place = flip(file, at, bits)
    if cut:
        file.write_bytes(file.read_bytes()[:place])
    require_no_lies(path, expected)
    assert truth(path) == expected


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE balance SET on_hand = on_hand + 64 WHERE location = 'A-01' AND sku = 'coffee'",
        "DELETE FROM balance WHERE location = 'A-02'",
        "UPDATE balance SET sku = 'tee' WHERE location = 'A-02' AND sku = 'tea'",
        "INSERT INTO balance (location, sku, lot, on_hand, moved) VALUES ('Z-1', 'tea', '', 1, 1)",
        "UPDATE stock_digest SET digest = digest + 1",
    ],
)
def test_a_changed_balance_is_not_shown(copies: Callable[[], Path], change: str) -> None:
    """A lost row is a smaller stock: no page is malformed, so SQLite has nothing to complain of."""
    path = copies()
    expected = truth(path)
    with closing(database.open_writer(path)) as writer:
        writer.execute(change)
    for filters in ([], ["sugar"], ["--location", "A-09"]):
        shown = edge(path, "stock", *filters)
        assert shown.exit_code == LedgerCorrupt.exit_code
        assert "ledger rebuild" in said(shown)
        assert "A-09" not in said(shown)
    assert edge(path, "ledger", "rebuild").exit_code == 0
    assert truth(path) == expected
