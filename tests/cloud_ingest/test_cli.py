"""`stocktide cloud` as a person and a script use it. Broken when an answer, a hint or an exit code changes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from cloud_cli.app import app
from cloud_store.base.connection import connect
from cloud_store.provisioning import twins
from testbed.store import MergeSession
from tests.cloud_store.histories import NOW_MS, Chain, movement
from wire_protocol import clock

Run = Callable[..., Result]


@pytest.fixture
def run(database_url: str) -> Run:
    """Run a command against the test's database."""
    return lambda *words: CliRunner().invoke(app, list(words), env={"STOCKTIDE_DATABASE_URL": database_url})


@pytest.fixture
def registered(run: Run) -> Run:
    """A tenant, a site and a gateway are there."""
    for words in ("tenant add acme", "site add berlin -t acme", "gateway add gw-cli -t acme -s berlin"):
        result = run(*words.split())
        assert result.exit_code == 0, result.output
    return run


def answer(result: Result) -> Any:
    """The JSON that a command printed."""
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_the_registry_is_written_and_listed(registered: Run) -> None:
    """What was added is there, with what it belongs to."""
    assert [row["name"] for row in answer(registered("tenant", "list", "--json"))] == ["acme"]
    assert [row["gateways"] for row in answer(registered("site", "list", "--json"))] == [1]
    assert answer(registered("gateway", "list", "--json"))[0]["gateway"] == "gw-cli"
    assert registered("gateway", "disable", "gw-cli").exit_code == 0
    assert answer(registered("gateway", "list", "--json"))[0]["registered"] == "disabled"
    for words in (["status"], ["stock"], ["item", "list"], ["dead-letter", "list"], ["migrate"]):
        assert registered(*words).exit_code == 0


def test_items_are_imported_all_or_none(registered: Run, tmp_path: Path) -> None:
    """A bad line names its place and leaves nothing behind."""
    good, bad = tmp_path / "good.csv", tmp_path / "bad.csv"
    good.write_text("sku,name,scale\nA1,Screw,0\nA2,Oil,3\n")
    bad.write_text("sku,name,scale\nB1,Nut,0\nB2,Bolt,many\n")
    assert answer(registered("item", "import", str(good), "-t", "acme", "--json"))["changed"] == 2
    assert answer(registered("item", "import", str(good), "-t", "acme", "--json"))["changed"] == 0
    refused = registered("item", "import", str(bad), "-t", "acme")
    assert refused.exit_code == 2
    assert "bad.csv:3" in refused.stderr
    assert [row["sku"] for row in answer(registered("item", "list", "--json"))] == ["A1", "A2"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("tenant add acme", "already exists"),
        ("tenant add Acme!", "not a valid tenant name"),
        ("site add paris -t nobody", "no tenant nobody"),
        ("gateway add gw-2 -t acme -s nowhere", "no site nowhere"),
        ("gateway disable gw-none", "no gateway gw-none"),
        ("site add paris -t nobody", "stocktide cloud tenant add nobody"),
        ("gateway add gw-2 -t acme -s nowhere", "stocktide cloud site add nowhere --tenant acme"),
        ("location add A-01 -t acme -s nowhere", "stocktide cloud site add nowhere --tenant acme"),
        ("gateway disable gw-none", "stocktide cloud gateway claim gw-none"),
        ("ledger verify -t nobody", "stocktide cloud site add NAME --tenant nobody"),
        ("stock --tenant nobody", "stocktide cloud tenant add nobody"),
        ("stock --tenant nobody", "no tenant nobody"),
        ("status --tenant nobody", "no tenant nobody"),
        ("item import /no/such.csv -t acme", "cannot be read"),
        ("ingest --mqtt-url http://broker", "not a broker's address"),
        ("ingest --metrics-port 99999", "METRICS_PORT"),
    ],
)
def test_mistakes_get_a_sentence_and_exit_code_2(registered: Run, words: str, said: str) -> None:
    """Never a traceback for what a person typed."""
    result = registered(*words.split())
    assert result.exit_code == 2
    assert said in result.stderr
    assert "Traceback" not in result.output


@pytest.mark.parametrize("url", ["postgresql://127.0.0.1:1/none", "nonsense"])
def test_a_database_that_is_away_is_a_failure_with_a_hint(url: str) -> None:
    """Exit code 1, and what to look at."""
    result = CliRunner().invoke(app, ["status", "--database-url", url])
    assert result.exit_code == 1
    assert "hint:" in result.stderr


def test_an_empty_database_is_told_to_migrate(empty_database_url: str) -> None:
    """The hint is the command to run, and running it helps."""
    environment = {"STOCKTIDE_DATABASE_URL": empty_database_url}
    before = CliRunner().invoke(app, ["stock"], env=environment)
    assert (before.exit_code, "stocktide cloud migrate" in before.stderr) == (1, True)
    assert "relation" not in before.stderr
    assert CliRunner().invoke(app, ["migrate", "--check"], env=environment).exit_code == 1
    assert len(answer(CliRunner().invoke(app, ["migrate", "--json"], env=environment))["applied"]) >= 3
    assert CliRunner().invoke(app, ["migrate", "--check"], env=environment).exit_code == 0


def test_movements_are_shown_newest_first_and_narrowed(registered: Run, database_url: str) -> None:
    """What was moved, by whom, from where to where; a kind that does not exist and a time without a zone are said."""
    made = [
        movement(clock.pack(NOW_MS, 1), "receive", "@supplier", "A-1", 5),
        movement(clock.pack(NOW_MS, 2), "pick", "A-1", "@customer", 2, actor="kim"),
    ]
    with MergeSession(database_url) as merger:
        merger.merge([Chain("gw-cli").seal(made)])
    rows = answer(registered("movements", "-t", "acme", "--json"))
    assert [(row["kind"], row["quantity"], row["actor"]) for row in rows] == [("pick", 2, "kim"), ("receive", 5, None)]
    assert len(answer(registered("movements", "-t", "acme", "--kind", "pick", "--json"))) == 1
    for sku in (["screw"], ["--sku", "screw"]):  # at the edge and here in one form; the older one still works
        assert answer(registered("movements", *sku, "-t", "acme", "--json"))
        assert answer(registered("stock", *sku, "-t", "acme", "--json"))
    assert answer(registered("movements", "nothing", "-t", "acme", "--json")) == []
    assert "Nothing was moved." in registered("movements", "-t", "acme", "--since", "2100-01-01T00:00:00Z").output
    for wrong in (["--kind", "steal"], ["--since", "2026-11-17"], ["--until", "yesterday"]):
        refused = registered("movements", "-t", "acme", *wrong)
        assert refused.exit_code == 2, refused.output
        assert "hint" in refused.output
    assert registered("movements", "-t", "nobody").exit_code == 2


@pytest.mark.parametrize(
    "patch", ['{"limits":{},"limits":{"window_frames":9}}', '{"devices":{"p":{"kind":"a","kind":"b"}}}']
)
def test_a_patch_in_which_a_name_stands_twice_is_refused(registered: Run, tmp_path: Path, patch: str) -> None:
    """The last of two was taken, on the command line and from a file."""
    file = tmp_path / "patch.json"
    file.write_text(patch)
    for given in (patch, f"@{file}"):
        refused = registered("twin", "set", "gw-cli", "--patch", given)
        assert refused.exit_code == 2
        assert "stands twice" in refused.stderr


LISTS = (
    "alarm list",
    "audit list",
    "claim list",
    "command list",
    "database-user list",
    "dead-letter list",
    "device list",
    "firmware list",
    "gateway list",
    "item clashes",
    "item list",
    "key list",
    "location clashes",
    "location list",
    "site list",
    "status",
    "stock",
    "twin list",
)


def test_a_filter_that_is_misspelt_is_no_empty_list(registered: Run) -> None:
    """An empty list about a tenant that does not exist is a wrong answer, with exit code 0 for a script."""
    for words in LISTS:
        refused = registered(*words.split(), "-t", "acne")
        assert (refused.exit_code, "no tenant acne" in refused.stderr) == (2, True), (words, refused.output)
        known = registered(*words.split(), "-t", "acme")
        assert known.exit_code == 0, (words, known.output)
    for words in ("gateway list", "location list", "movements", "stock", "twin list"):
        refused = registered(*words.split(), "-t", "acme", "-s", "bertlin")
        assert (refused.exit_code, "has no site bertlin" in refused.stderr) == (2, True), (words, refused.output)
        assert "stocktide cloud site add bertlin" in refused.stderr


def test_what_does_not_exist_is_not_shown_as_empty(registered: Run) -> None:
    """A script that waits for a job must not take a wrong number for one that has nothing to do."""
    missing = {
        "job show 01NONE": "no job 01NONE",
        "twin history gw-none": "no gateway gw-none",
        "twin show gw-none": "no gateway gw-none",
    }
    for words, said in missing.items():
        refused = registered(*words.split(), "--json")
        assert (refused.exit_code, said in refused.stderr) == (2, True), (words, refused.output)


def test_a_twin_is_shown_without_its_secrets(registered: Run, database_url: str) -> None:
    """With its signature a release is an order that devices obey, and a hash gives a short password away.

    A screen or a ticket is no place for either.
    """
    release = {"model": "probe", "version": "2.0", "release": 2, "size": 1, "sha256": "0" * 64, "signature": "5" * 128}
    with connect(database_url, application="test") as connection:
        assert list(
            twins.change(connection, twins.Selection(("gw-cli",)), {"firmware": {"probe": release}}, who="test")
        )
    patch = '{"devices": {"probe-1": {"kind": "probe"}}}'
    assert registered("twin", "set", "gw-cli", "--patch", patch).exit_code == 0
    assert registered("device", "key", "probe-1", "-g", "gw-cli").exit_code == 0
    for words in ("show", "history"):
        for more in ((), ("--json",)):
            shown = registered("twin", words, "gw-cli", *more)
            assert (shown.exit_code, "probe" in shown.stdout) == (0, True), shown.output
            assert "5" * 128 not in shown.stdout
            assert "$7$" not in shown.stdout
