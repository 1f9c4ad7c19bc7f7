"""Who imports whom, drawn from the code: `make graph` writes docs/import-graph.md, `--check` says whether it is true.

Every import counts, also those inside functions and those for type checkers alone.

Invariant: the same code gives the same page, byte for byte.
"""

import sys
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Final

import grimp

ROOT: Final = Path(__file__).resolve().parents[1]
PAGE: Final = ROOT / "docs" / "import-graph.md"

Edges = Mapping[str, set[str]]
"""Whom each imports."""

_HEAD: Final = """\
# Who imports whom

Drawn from the code by `make graph`; `make check` says when it is out of date. An arrow points from the one that imports
to the one that is imported. An arrow that follows from two others is left out: where *a → b → c* is drawn, *a* may
import *c* as well. No module of ours is in a circle, imports for type checkers included (`tests/test_imports.py`); who
may import whom is in the contracts of `pyproject.toml`, and why in [the map](../ARCHITECTURE.md).

## The packages
"""


def packages() -> list[str]:
    """The packages of the product."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return sorted(settings["tool"]["importlinter"]["root_packages"])


def build(names: Iterable[str]) -> grimp.ImportGraph:
    """Every import between the modules of some packages."""
    first, *others = names
    return grimp.build_graph(first, *others, cache_dir=None, exclude_type_checking_imports=False)


def modules(graph: grimp.ImportGraph) -> Edges:
    """Whom each module imports."""
    return {name: set(graph.find_modules_directly_imported_by(name)) for name in sorted(graph.modules)}


def circle(edges: Edges) -> list[str] | None:
    """A circle, as the way around it; None when there is none."""
    try:
        TopologicalSorter(edges).prepare()
    except CycleError as error:
        found: list[str] = error.args[1]
        return found
    return None


def grouped(edges: Edges, groups: Iterable[str]) -> Edges:
    """Whom each group imports, where a group is a module with everything below it."""
    of: dict[str, str] = {}
    for group in groups:
        of.update({name: group for name in edges if name == group or name.startswith(f"{group}.")})
    found: dict[str, set[str]] = {group: set() for group in sorted(set(of.values()))}
    for name, imported in edges.items():
        if name in of:
            found[of[name]] |= {of[other] for other in imported if other in of} - {of[name]}
    return found


def reduced(edges: Edges) -> Edges:
    """Without the arrows that follow from others.

    Raises:
        CycleError: there is a circle.
    """
    reached: dict[str, set[str]] = {}
    for name in TopologicalSorter(edges).static_order():
        direct = edges.get(name, set())
        reached[name] = direct.union(*(reached[other] for other in direct))
    return {
        name: {other for other in direct if not any(other in reached[between] for between in direct)}
        for name, direct in edges.items()
    }


def _mermaid(edges: Edges, container: str, folders: set[str]) -> Iterator[str]:
    yield "```mermaid"
    yield "flowchart TD"
    for name in edges:
        label = name.removeprefix(f"{container}.")
        yield f'  {_id(name)}[["{label}"]]' if name in folders else f'  {_id(name)}["{label}"]'
    for name, direct in edges.items():
        for other in sorted(direct):
            yield f"  {_id(name)} --> {_id(other)}"
    yield "```"


def _id(name: str) -> str:
    # Some words, `end` and `graph` among them, mean something to Mermaid.
    return "m_" + name.replace(".", "_")


def page(graph: grimp.ImportGraph, names: Iterable[str]) -> str:
    """The page: all packages, and then each that has folders of its own."""
    edges, names = modules(graph), list(names)
    folders = {name for name in edges if graph.find_children(name)}
    lines = [_HEAD, *_mermaid(reduced(grouped(edges, names)), "", set())]
    for name in names:
        children = graph.find_children(name)
        if children & folders:
            lines += ["", f"## {name}", "", "Folders have a double border.", ""]
            lines += _mermaid(reduced(grouped(edges, sorted(children))), name, folders)
    return "\n".join(lines) + "\n"


def main() -> int:
    """Write the page, or with `--check` compare it with the code."""
    names = packages()
    drawn = page(build(names), names)
    if "--check" not in sys.argv[1:]:
        PAGE.write_text(drawn, encoding="utf-8")
        print(f"{PAGE.relative_to(ROOT)} is drawn")
    elif not PAGE.exists() or PAGE.read_text(encoding="utf-8") != drawn:
        print(f"{PAGE.relative_to(ROOT)} is not what the code says.\nhint:  make graph", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
