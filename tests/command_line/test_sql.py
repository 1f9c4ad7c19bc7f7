"""One loader of named SQL statements, for both stores."""

import sys
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import pytest

from cloud_store.base import sql as cloud_sql
from command_line import sql
from edge_agent.ledger import sql as edge_sql

PACKAGE = "statements_of_a_test"


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of a package that files can be put into."""
    folder = tmp_path / PACKAGE
    folder.mkdir()
    (folder / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    yield folder
    sys.modules.pop(PACKAGE, None)


def test_statements_come_by_name_with_their_comments(package: Path) -> None:
    """The comment says why; the semicolon is a file's, not a statement's."""
    (package / "one.sql").write_text(
        "-- Before.\n-- name: first\nSELECT 1;\n\n-- name: second \n-- Why.\nSELECT\n    2\n"
    )
    assert sql.named(PACKAGE, "one.sql") == {"first": "SELECT 1", "second": "-- Why.\nSELECT\n    2"}


def test_a_name_that_is_there_twice_is_refused(package: Path) -> None:
    """The later one would replace the earlier in silence, and somebody's query become another."""
    (package / "one.sql").write_text("-- name: entries\nSELECT 1;\n-- name: entries\nSELECT 2;\n")
    with pytest.raises(sql.BadStatements, match=r"entries is in one\.sql and in one\.sql"):
        sql.named(PACKAGE, "one.sql")


def test_a_name_of_another_file_is_refused(package: Path) -> None:
    """All files of the ledger share their names."""
    (package / "one.sql").write_text("-- name: entries\nSELECT 1;\n")
    (package / "two.sql").write_text("-- name: other\nSELECT 1;\n-- name: entries\nSELECT 2;\n")
    with pytest.raises(sql.BadStatements, match=r"entries is in one\.sql and in two\.sql"):
        sql.named(PACKAGE, "one.sql", "two.sql")


@pytest.mark.parametrize("text", ["-- name: two words\nSELECT 1\n", "-- name:\nSELECT 1\n", "-- name: empty\n;\n"])
def test_what_is_no_statement_is_refused(package: Path, text: str) -> None:
    """It would become a part of the statement before it."""
    (package / "one.sql").write_text("-- name: good\nSELECT 1;\n" + text)
    with pytest.raises(sql.BadStatements, match="cannot be used"):
        sql.named(PACKAGE, "one.sql")


def test_a_script_is_its_statements_in_order(package: Path) -> None:
    """A semicolon inside a line is part of a statement: a trigger has some."""
    (package / "schema.sql").write_text("CREATE TABLE a (b);\n\nCREATE TRIGGER t BEGIN DELETE FROM a; END;\n")
    assert sql.script(PACKAGE, "schema.sql") == ["CREATE TABLE a (b)", "CREATE TRIGGER t BEGIN DELETE FROM a; END"]


def test_every_file_of_the_product_is_read() -> None:
    """A file that nobody lists has statements that nobody finds."""
    queries = [file.name for file in files("cloud_store").joinpath("queries").iterdir() if file.name.endswith(".sql")]
    assert queries
    assert all(cloud_sql.load(name.removesuffix(".sql")) for name in queries)
    ledger = {file.name.removesuffix(".sql") for file in files(edge_sql.__name__).iterdir() if ".sql" in file.name}
    assert {name for name in ledger if not name.startswith("schema_")} == set(edge_sql.NOUNS)
    assert edge_sql.statement("insert_entry").startswith("INSERT")
