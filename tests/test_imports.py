"""No circle among our modules, folders that can be looked over, and a drawing that is true."""

from collections import Counter
from functools import cache
from pathlib import Path
from typing import Final

import grimp
import pytest

from tools import import_graph

MODULES_PER_FOLDER_MAX: Final = 16
FLAT: Final = {"wire_protocol"}  # the contract of both ends is read as one list


@cache
def graph() -> grimp.ImportGraph:
    """Every import of the product and of its testbed."""
    return import_graph.build([*import_graph.packages(), "testbed"])


def test_no_module_is_in_a_circle() -> None:
    """Two modules that need each other are one module that nobody can read alone; types count."""
    assert import_graph.circle(import_graph.modules(graph())) is None


def test_a_circle_would_be_found() -> None:
    """A check that never fails proves nothing."""
    edges = {"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}
    assert set(import_graph.circle(edges) or ()) == {"a", "b", "c"}


@pytest.mark.parametrize("package", import_graph.packages())
def test_folders_are_in_no_circle(package: str) -> None:
    """Two folders may be in a circle although no two modules are."""
    edges = import_graph.modules(graph())
    folders = [name for name in edges if name.startswith(package) and graph().find_children(name)]
    for folder in folders:
        assert import_graph.circle(import_graph.grouped(edges, sorted(graph().find_children(folder)))) is None, folder


def test_a_folder_has_no_more_modules_than_the_eye_takes_in() -> None:
    """The seventeenth belongs into a folder of its own."""
    files = [path for name in import_graph.packages() for path in (import_graph.ROOT / name).rglob("*.py")]
    found = Counter(str(path.parent.relative_to(import_graph.ROOT)) for path in files if path.name != "__init__.py")
    assert {folder for folder, number in found.items() if number > MODULES_PER_FOLDER_MAX} <= FLAT


def test_the_drawing_is_what_the_code_says() -> None:
    """A map that is wrong is worse than none."""
    names = import_graph.packages()
    drawn = import_graph.page(import_graph.build(names), names)
    assert Path(import_graph.PAGE).read_text(encoding="utf-8") == drawn, "make graph"


def test_an_arrow_that_follows_from_others_is_not_drawn() -> None:
    """A hairball shows nothing."""
    assert import_graph.reduced({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == {"a": {"b"}, "b": {"c"}, "c": set()}
