"""The pins: everything that this repository asks for has one exact version in constraints.txt, and nothing else has."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
PIN = re.compile(r"^([A-Za-z0-9][A-Za-z0-9._-]*)==[0-9][A-Za-z0-9.+!]*$")
NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]*")


def _normal(name: str) -> str:
    """As PyPI compares names."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _pins() -> set[str]:
    header, *lines = (ROOT / "constraints.txt").read_text().splitlines()
    assert header.startswith("# "), "`make lock` keeps the first line, whatever it is"
    found = [PIN.match(line) for line in lines]
    assert all(found), "a name and a version alone: no address, no editable line, no marker"
    return {_normal(match[1]) for match in found if match}


def test_everything_that_is_asked_for_is_pinned() -> None:
    """What `make lock` does not install loses its pin: `make fuzz` took whatever release of atheris there was."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *(each for more in project["optional-dependencies"].values() for each in more)]
    names = {_normal(match[0]) for each in wanted if (match := NAME.match(each))} - {_normal(project["name"])}
    assert len(names) > 20
    assert names - _pins() == set()
