"""Nothing fails after it was done in the cloud either; a secret that nobody saw is worthless (F6)."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from tests.stocktide.terminals import stocktide


@pytest.fixture
def environment(database_url: str) -> dict[str, str]:
    """The database, with a tenant, a site and a gateway, and with a device in its twin."""
    variables = {"STOCKTIDE_DATABASE_URL": database_url}
    for command in (
        ["tenant", "add", "acme"],
        ["site", "add", "berlin", "-t", "acme"],
        ["gateway", "add", "gw-out", "-t", "acme", "-s", "berlin"],
        ["twin", "set", "gw-out", "--patch", '{"devices": {"till-1": {"kind": "scanner"}}}'],
    ):
        assert stocktide("cloud", *command, environment=variables).code == 0
    return variables


def rows(environment: dict[str, str], *command: str) -> list[dict[str, Any]]:
    """What a command lists."""
    shown = stocktide("cloud", *command, "--json", environment=environment)
    assert shown.code == 0, shown.err
    found: list[dict[str, Any]] = json.loads(shown.out)
    return found


def test_every_write_ends_with_success(environment: dict[str, str], tmp_path: Path) -> None:
    """Also in a script whose output has nowhere to go."""
    (tmp_path / "items.csv").write_text("sku,name\nA1,Screw\n")
    (tmp_path / "shelves.csv").write_text("name\nA-01\n")
    sinks = itertools.cycle(("full", "gone", "closed"))
    for command in (
        ["tenant", "add", "bravo"],
        ["tenant", "quota", "acme", "--devices", "7"],
        ["site", "add", "dublin", "-t", "acme"],
        ["gateway", "add", "gw-new", "-t", "acme", "-s", "berlin"],
        ["gateway", "disable", "gw-new"],
        ["gateway", "enable", "gw-new"],
        ["location", "add", "B-1", "-t", "acme", "-s", "berlin"],
        ["location", "import", str(tmp_path / "shelves.csv"), "-t", "acme", "-s", "berlin"],
        ["item", "add", "tea", "-t", "acme"],
        ["item", "import", str(tmp_path / "items.csv"), "-t", "acme"],
        ["device", "add", "till-9", "-g", "gw-out"],
        ["device", "key", "till-1", "-g", "gw-out", "--remove"],
        ["twin", "set", "gw-out", "--patch", '{"limits": {"window_frames": 9}}'],
        ["ledger", "rebuild", "-t", "acme"],
        ["alarm", "clear", "gw-out"],
        ["ca", "init", "--ca-dir", str(tmp_path / "ca")],
        ["ca", "worker", "--ca-dir", str(tmp_path / "ca"), "--out", str(tmp_path)],
        ["ca", "crl", "--ca-dir", str(tmp_path / "ca")],
        ["firmware", "keygen", str(tmp_path / "signer"), str(tmp_path / "public")],
        ["migrate"],
    ):
        sink = next(sinks)
        shown = stocktide("cloud", *command, sink=sink, environment=environment)
        assert shown.code == 0, (command, shown.err)
        assert "Traceback" not in shown.err
        assert sink == "closed" or "it is done" in shown.err
    assert {row["sku"] for row in rows(environment, "item", "list")} == {"tea", "A1"}
    assert rows(environment, "tenant", "quota", "acme")[0]["devices_max"] == 7


@pytest.mark.parametrize(("sink", "json_"), [("full", []), ("gone", ["--json"]), ("closed", []), ("all-full", [])])
def test_a_secret_that_was_not_seen_is_worthless(environment: dict[str, str], sink: str, json_: list[str]) -> None:
    """It is made worthless, the command fails, and it is not on standard error, which ends in log files."""
    made = {
        "key": ["key", "create", "report", "-t", "acme"],
        "claim": ["gateway", "claim", "gw-out", "-t", "acme", "-s", "berlin"],
        "device": ["device", "key", "till-1", "-g", "gw-out"],
    }
    for command in made.values():
        shown = stocktide("cloud", *command, *json_, sink=sink, environment=environment)
        assert (shown.code, "Traceback" in shown.err) == (1, False), shown.err
        assert sink == "all-full" or "could not be shown" in shown.err
        assert "stk_" not in shown.err
    assert [row["state"] for row in rows(environment, "key", "list")] == ["revoked"]
    assert [row["state"] for row in rows(environment, "claim", "list")] == ["revoked"]
    twin = stocktide("cloud", "twin", "show", "gw-out", "--json", environment=environment)
    assert json.loads(twin.out)["state"]["devices"]["till-1"].get("key") is None


def test_a_login_that_was_not_seen_is_dropped(environment: dict[str, str], unique_name: Any) -> None:
    """The same, for a dashboard's password."""
    name = unique_name("dash").replace("-", "_")
    shown = stocktide("cloud", "database-user", "create", name, "-t", "acme", sink="full", environment=environment)
    assert (shown.code, "is dropped" in shown.err) == (1, True), shown.err
    assert rows(environment, "database-user", "list") == []


def test_a_claim_is_shown_where_its_picture_cannot_be_drawn(environment: dict[str, str]) -> None:
    """A picture of blocks needs a terminal that has them; the claim does not."""
    command = ["gateway", "claim", "gw-out", "-t", "acme", "-s", "berlin"]
    for encoding in ("ascii", "latin-1"):
        shown = stocktide("cloud", *command, encoding=encoding, environment=environment)
        assert shown.code == 0, shown.err
        assert "claim  " in shown.out
        assert "\\u25" not in shown.out
