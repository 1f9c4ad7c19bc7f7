"""The catalogue from files and by hand: what table programs, keyboards and scanners make of names (F13, F17)."""

import json
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from cloud_cli.app import app
from cloud_store.base.connection import connect

Run = Callable[..., Result]


@pytest.fixture
def run(database_url: str) -> Run:
    """Run a command against the test's database, in which a tenant and a site are."""

    def invoke(*words: str) -> Result:
        return CliRunner().invoke(app, list(words), env={"STOCKTIDE_DATABASE_URL": database_url})

    for words in ("tenant add acme", "site add berlin -t acme"):
        assert invoke(*words.split()).exit_code == 0
    return invoke


@pytest.fixture
def import_(run: Run, tmp_path: Path) -> Callable[..., Result]:
    """Import a file of these bytes."""

    def invoke(data: bytes | str, *words: str) -> Result:
        file = tmp_path / "goods.csv"
        file.write_bytes(data.encode() if isinstance(data, str) else data)
        return run("item", "import", str(file), "-t", "acme", *words)

    return invoke


def items(run: Run) -> list[dict[str, Any]]:
    """The catalogue."""
    found: list[dict[str, Any]] = json.loads(run("item", "list", "--json").stdout)
    return found


@pytest.mark.parametrize(
    "data",
    [
        "sku,name,scale\nA1,Screw,0\nA2,Oil,3\n",
        "SKU;Name;Scale\r\nA1;Screw;0\r\nA2;Oil;3\r\n",
        "sku\tname\tscale\nA1\tScrew\t0\nA2\tOil\t3",
        b"\xef\xbb\xbfsku,name,scale\nA1,Screw,0\nA2,Oil,3\n",
        "sep=;\n sku ; Name ; SCALE \n\nA1 ; Screw ; 0 \n;;\nA2;Oil;3\n",
        'name,"sku",scale,\n"Screw",A1,0,\nOil,\u00a0A2\u00a0,3,\n',
        "sku,name,scale\rA1,Screw,0\rA2,Oil,3\r",
    ],
)
def test_a_table_program_may_write_it_as_it_does(run: Run, import_: Callable[..., Result], data: bytes | str) -> None:
    """Separators, byte order marks, capitals, blanks, line ends, empty lines and columns at the end."""
    shown = import_(data)
    assert shown.exit_code == 0, shown.output
    assert [(row["sku"], row["name"], row["scale"]) for row in items(run)] == [("A1", "Screw", 0), ("A2", "Oil", 3)]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("sku,name\nA1,Screw\nA2,Oil,5 litres\n", ("goods.csv:3", "cell 3 has no column", "between quotes")),
        ("sku;name\nA1;Screw;x\n", ("goods.csv:2", "cell 3", 'separator is ";"')),
        ("sku,name,colour\nA1,Screw,red\n", ("goods.csv:1", "'colour'", "reorder_point")),
        ("article,name\nA1,Screw\n", ("goods.csv:1", "column sku is missing", "'article'")),
        ("sku,Name,name\nA1,a,b\n", ("goods.csv:1", "name is there twice")),
        ("sku,name\nA1,a\nA2,b\n A1 ,c\n", ("goods.csv:4", "A1 is in line 2 already")),
        ("sku,name\nCafe\u0301,a\nCaf\u00e9,b\n", ("goods.csv:3", "is in line 2 already")),
        ("sku,name\n,a\n", ("goods.csv:2", "sku is empty")),
        ("", ("is empty", "sku,name")),
        ("\n \n,,\n", ("is empty",)),
        ("sku,name\nA1,Screw\n".encode("utf-16"), ("UTF-16", "UTF-8")),
        ("sku,name\nA1,Screw\n".encode("utf-16-be"), ("UTF-16", "UTF-8")),
        ("sku,name\nA1,Screw\nA2,\u00d6l\n".encode("latin-1"), ("goods.csv:3", "0xD6", "latin-1", "UTF-8")),
        ('sku,name\nA1,"Screw\nA2,Oil\n', ("goods.csv:2", "no CSV", "between quotes")),
        ('sku,name\nA1,ok\nA2,"4" pipe"\n', ("goods.csv:3", "no CSV")),
        ("sku,scale\nA1,many\n", ("goods.csv:2", "scale", "whole number")),
        ("sku,scale\nA1,1_0\n", ("goods.csv:2", "whole number")),
        ("sku,reorder_point\nA1,\u0665\n", ("goods.csv:2", "whole number")),
        ("sku,retired\nA1,vielleicht\n", ("goods.csv:2", "retired", "yes or no")),
        ("sku,gtin\nA1,4.00638E+12\n", ("goods.csv:2", "rounded", "as text")),
        ("sku,gtin\nA1,4006381333930\n", ("goods.csv:2", "last digit is 0", "give 1")),
        ("sku,gtin\nA1,12345678901\n", ("goods.csv:2", "11 digits", "8, 12, 13 or 14")),
        ("sku,gtin\nA1,\u0664006381333931\n", ("goods.csv:2", "0 to 9")),
        ("sku,gtin\nA1,036000291452\nA2,0036000291452\n", ("00036000291452", "A1 and A2")),
        ("sku\nte\u200ba\n", ("goods.csv:2", "U+200B ZERO WIDTH SPACE at position 3")),
        ("sku\n]C1tea\n", ("goods.csv:2", "]C1")),
        ("sku,name\nA1,in\u202etxt\n", ("goods.csv:2", "U+202E RIGHT-TO-LEFT OVERRIDE at position 3")),
        ("sku,unit\nA1,k\u00adg\n", ("goods.csv:2", "U+00AD SOFT HYPHEN")),
    ],
)
def test_what_cannot_be_used_is_said_with_its_line(
    run: Run, import_: Callable[..., Result], data: bytes | str, words: tuple[str, ...]
) -> None:
    """One sentence, what to write, and nothing of the file is in the catalogue."""
    refused = import_(data)
    assert (refused.exit_code, refused.exception.__class__) == (2, SystemExit), refused.output
    for word in words:
        assert word in refused.stderr
    assert items(run) == []


def test_replace_changes_and_counts_what_differs(run: Run, import_: Callable[..., Result]) -> None:
    """A column that the file has not got says nothing about what is there; an empty cell does."""
    assert import_("sku,name,gtin,unit,scale\nA1,Screw,4006381333931,piece,0\nA2,Oil,,kg,3\n").exit_code == 0
    changed = json.loads(import_("sku,name\nA1,Screw\nA2,Oil 5\n", "--replace", "--json").stdout)
    assert (changed["read"], changed["changed"]) == (2, 1)
    found = {row["sku"]: (row["name"], row["gtin"], row["unit"], row["scale"]) for row in items(run)}
    assert found == {"A1": ("Screw", "4006381333931", "piece", 0), "A2": ("Oil 5", None, "kg", 3)}
    assert json.loads(import_("sku,gtin\nA1,\n", "--replace", "--json").stdout)["changed"] == 1
    assert items(run)[0]["gtin"] is None


def test_a_gtin_moves_from_one_item_to_another_in_one_file(run: Run, import_: Callable[..., Result]) -> None:
    """What counts is how the catalogue is afterwards, and not the order of the rows."""
    assert import_("sku,gtin\nA1,4006381333931\nA2,96385074\n").exit_code == 0
    assert import_("sku,gtin\nA1,96385074\nA2,4006381333931\n", "--replace").exit_code == 0
    refused = run("item", "add", "A3", "-t", "acme", "--gtin", "00000096385074")
    assert refused.exit_code == 2
    assert "A1 and A3" in refused.stderr
    assert len(items(run)) == 2


def test_locations_come_from_a_file(run: Run, tmp_path: Path) -> None:
    """By the same rules as items."""
    file = tmp_path / "shelves.csv"
    file.write_text("Name\nA-01\nA-02 \n", encoding="utf-8")
    words = ["location", "import", str(file), "-t", "acme", "-s", "berlin", "--json"]
    assert json.loads(run(*words).stdout)["added"] == 2
    assert json.loads(run(*words).stdout)["added"] == 0
    file.write_text("name\nA-03\n@dock\n", encoding="utf-8")
    refused = run(*words)
    assert (refused.exit_code, "shelves.csv:3" in refused.stderr) == (2, True)


def test_names_that_look_the_same_are_listed(run: Run, database_url: str) -> None:
    """Old ones stay what they are, because history has them; new ones are not made."""
    composed, marked = "caf\u00e9", "caf\u200b\u00e9"
    apart = unicodedata.normalize("NFD", composed)
    with connect(database_url, application="test") as connection:
        tenant = connection.execute("SELECT tenant_id FROM tenant").fetchone()
        site = connection.execute("SELECT site_id FROM site").fetchone()
        assert tenant is not None
        assert site is not None
        for sku in (composed, apart, marked, "tea", "tea bag", "Tea"):
            connection.execute("INSERT INTO item (tenant_id, sku, stub) VALUES (%s, %s, true)", (tenant[0], sku))
        for name in ("A 01", "A\u00a001", "B"):
            connection.execute("INSERT INTO location (site_id, name, stub) VALUES (%s, %s, true)", (site[0], name))
    shown = run("item", "clashes", "-t", "acme", "--json")
    assert shown.exit_code == 1
    found = {row["sku"]: row["difference"] for row in json.loads(shown.stdout)}
    assert found.keys() == {composed, apart, marked}
    assert "U+200B ZERO WIDTH SPACE" in found[marked]
    assert "stocktide cloud item merge ODD OTHER" in run("item", "clashes").stderr
    places = json.loads(run("location", "clashes", "--json").stdout)
    assert {row["name"] for row in places} == {"A 01", "A\u00a001"}
    assert run("item", "add", apart, "-t", "acme").exit_code == 0  # it is the composed one that becomes a real item
    real = {row["sku"] for row in items(run) if not row["stub"]}
    assert real == {composed}
    assert run("location", "add", "A\u00a001", "A 01", "-t", "acme", "-s", "berlin").exit_code == 0
    refused = run("location", "add", "A\u200d1", "-t", "acme", "-s", "berlin")
    assert (refused.exit_code, "U+200D ZERO WIDTH JOINER at position 2" in refused.stderr) == (2, True)
