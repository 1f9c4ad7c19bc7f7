"""No bound without a test that reaches it: the settings are compared with what the tests say they are about.

A test says so with `@pytest.mark.bound("edge.readings_max")`: the part and the setting; or, for a bound that is a
constant, its module and name.
"""

import ast
import importlib
import re
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel

from broker_config.limits import BrokerLimits
from cloud_api.settings import ApiSettings
from cloud_ingest.settings import IngestSettings
from edge_agent.settings import EdgeSettings

PARTS: dict[str, type[BaseModel]] = {
    "edge": EdgeSettings,
    "cloud": IngestSettings,
    "api": ApiSettings,
    "broker": BrokerLimits,
}
UNREACHABLE = {"broker.session_days_max"}  # Mosquitto's shortest is a day
BOUND = re.compile(r"(^|_)(max|target|budget|keep)(_|$)")
TESTS = Path(__file__).parents[1]


def test_every_bound_is_reached_by_a_test() -> None:
    """A bound that was never reached is a guess: nobody knows what happens there."""
    bounds = {
        f"{part}.{name}" for part, settings in PARTS.items() for name in settings.model_fields if BOUND.search(name)
    }
    assert len(bounds) > 20
    assert bounds - UNREACHABLE - set(_marked()) == set()


def test_every_mark_names_a_bound_that_exists() -> None:
    """A mark that survives its setting would let the next one of that name pass untested."""
    for bound in _marked():
        place, _, name = bound.rpartition(".")
        if place in PARTS:
            assert name in PARTS[place].model_fields, bound
        else:
            assert isinstance(getattr(importlib.import_module(place), name), int | float), bound


def _marked() -> Iterator[str]:
    """The arguments of every `pytest.mark.bound(…)` in the tests."""
    for path in TESTS.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "bound":
                yield from (str(argument.value) for argument in node.args if isinstance(argument, ast.Constant))
