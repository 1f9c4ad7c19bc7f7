"""What the pages say is what the code does."""

import ast
import importlib
import json
import re
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, Final

import pytest
import typer

from edge_agent.ledger.drafts import from_event
from stocktide.cli import PARTS
from wire_protocol.firmware import FirmwareOffer
from wire_protocol.messages import DeviceEvent, DeviceReading, DeviceReceipt, Message
from wire_protocol.topics import TOPICS
from wire_protocol.twin import DeviceConfig

ROOT: Final = Path(__file__).parent.parent
PAGES: Final = sorted(path for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
# Decisions and the changelog are never rewritten: they name what there was.
HISTORY: Final = frozenset({ROOT / "CHANGELOG.md", *(ROOT / "docs" / "adr").glob("00*.md")})
PRESENT: Final = [page for page in PAGES if page not in HISTORY]
PROMISES: Final = ("guarantees.md", "security.md", "life-of-a-scan.md", "life-of-a-twin.md")
FILE: Final = re.compile(r"(?:[\w.-]+/)+[\w.-]*\.(?:py|sql|md|toml|yaml|json|svg|service|txt|csv|gz)|(?:[\w-]+/)+")
TOP: Final = frozenset(path.name for path in ROOT.iterdir() if not path.name.startswith("."))
NO_COMMAND: Final = frozenset({"stocktide firmware 1"})  # the first line of what a release's signature covers
COMMAND: Final = re.compile(r"(?<![\w./-])stocktide((?:[ \n]+[a-z][a-z-]*(?:\|[a-z-]+)*)+)")


def _id(page: Path) -> str:
    return str(page.relative_to(ROOT))


def _text(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def _code(page: Path) -> Iterator[str]:
    """What stands in code type on a page: each line of a block, and each piece within a line."""
    text = _text(page)
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    for block in blocks:
        yield from block.splitlines()
    pieces = re.findall(r"`([^`]+)`", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))
    yield from (piece for piece in pieces if piece not in NO_COMMAND)


@pytest.mark.parametrize("page", PAGES, ids=_id)
def test_links_lead_somewhere(page: Path) -> None:
    """A dead link is the first thing a newcomer finds, and a picture that is missing the second."""
    for target, anchor in re.findall(r"\]\(([^)#]*)(?:#([^)]*))?\)", _text(page)):
        if "://" in target:
            continue
        found = page.parent / target if target else page
        assert found.exists(), target
        if anchor:
            assert anchor in _anchors(_text(found)), f"{target}#{anchor}"


def _anchors(text: str) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PRESENT, ids=_id)
def test_every_file_that_a_page_names_exists(page: Path) -> None:
    """A reader who looks for a file that was moved learns that the page is not to be trusted."""
    for code in _code(page):
        path = code.partition("::")[0]
        if FILE.fullmatch(path) and path.split("/")[0] in TOP:
            assert (ROOT / path).exists(), code
        elif re.fullmatch(r"\w+\.(py|sql)", path) and "NNN" not in path:
            assert any(path in names for names in _tracked()), code
        elif re.fullmatch(r"[a-z_]+(\.[a-z_]+)+", path) and (ROOT / path.split(".")[0]).is_dir():
            place = ROOT.joinpath(*path.split("."))
            assert place.is_dir() or place.with_suffix(".py").exists(), code


@cache
def _tracked() -> tuple[frozenset[str], ...]:
    """The names of the files in each folder with code."""
    tops = [path for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith(".")]
    return tuple(frozenset(path.name for path in top.rglob("*")) for top in tops)


@pytest.mark.parametrize("page", PRESENT, ids=_id)
def test_every_test_that_a_page_names_exists(page: Path) -> None:
    """A promise whose test was renamed or removed is no longer kept by anything."""
    named = 0
    for code in _code(page):
        if (match := re.fullmatch(r"(tests/[\w/]+\.py)(?:::(\w+))?", code)) is not None:
            path, name = match.groups()
            assert name is None or name in _functions(ROOT / path), code
            named += 1
        elif re.fullmatch(r"test_\w+", code):
            assert code in _all_tests(), code
    assert named > 15 or page.name not in PROMISES


@cache
def _functions(path: Path) -> frozenset[str]:
    return frozenset(node.name for node in ast.walk(ast.parse(_text(path))) if isinstance(node, _FUNCTION))


@cache
def _all_tests() -> frozenset[str]:
    return frozenset().union(*(_functions(path) for path in (ROOT / "tests").rglob("test_*.py")))


_FUNCTION: Final = (ast.FunctionDef, ast.AsyncFunctionDef)


@pytest.mark.parametrize("page", PRESENT, ids=_id)
def test_every_command_that_a_page_names_exists(page: Path) -> None:
    """A command that was renamed is typed, fails, and ends the reader's first hour with Stocktide."""
    for code in _code(page):
        for words in COMMAND.findall(code):
            for command in _spelled_out(words.split()):
                _resolve(command)


@pytest.mark.parametrize("page", PRESENT, ids=_id)
def test_every_option_that_a_page_names_exists(page: Path) -> None:
    """An option that was renamed is as bad as a command."""
    text = "\n".join(_code(page)).replace("\\\n", " ")
    for line in text.splitlines():
        if (match := re.match(r"\$? *stocktide((?: [a-z][a-z-]*)+)(?= |$)(.*)", line)) is not None:
            command = _resolve(match[1].split())
            known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
            given = re.sub(r"'[^']*'|\"[^\"]*\"|#.*|\|.*", "", match[2])
            for option in re.findall(r"(?<= )--[a-z][a-z-]+", given):
                assert option in known | {"--help"}, f"{line}: {option}"


def _spelled_out(words: list[str]) -> Iterator[list[str]]:
    """`job pause|resume` as two commands."""
    made: list[list[str]] = [[]]
    for word in words:
        made = [[*before, each] for before in made for each in word.split("|")]
    yield from made


@cache
def _part(name: str) -> Any:
    part = PARTS.get(name)
    return None if part is None else typer.main.get_command(importlib.import_module(part.module).app)


def _resolve(words: list[str]) -> Any:
    """The command that words begin with; the rest are its arguments."""
    command = _part(words[0])
    assert command is not None, f"stocktide {words[0]}"
    for number, word in enumerate(words[1:], start=2):
        if not hasattr(command, "commands"):
            break
        assert word in command.commands, f"stocktide {' '.join(words[:number])}"
        command = command.commands[word]
    return command


@pytest.mark.parametrize("page", PRESENT, ids=_id)
def test_every_variable_and_every_make_target_that_a_page_names_exists(page: Path) -> None:
    """A misspelt variable is worse than a misspelt command: it is ignored without a word."""
    variables = _variables()
    targets = set(re.findall(r"^([a-z-]+):", _text(ROOT / "Makefile"), flags=re.MULTILINE))
    for code in _code(page):
        for name in re.findall(r"STOCKTIDE_[A-Z0-9_]+(?![A-Z0-9_…])", code):
            assert name in variables or any(each.startswith(name) for each in variables if name.endswith("_")), name
        if (match := re.match(r"make ([a-z-]+)", code)) is not None:
            assert match[1] in targets, code


@cache
def _variables() -> frozenset[str]:
    """Every variable of the page of settings, and those that the code reads beside them."""
    code = [path for top in sorted(TOP) if (ROOT / top).is_dir() for path in (ROOT / top).rglob("*.py")]
    named = {name for path in code for name in re.findall(r"STOCKTIDE_[A-Z0-9_]+", _text(path))}
    return frozenset(named | set(re.findall(r"`(STOCKTIDE_[A-Z0-9_]+)`", _text(ROOT / "docs" / "settings.md"))))


# Words whose actor or thing a reader must guess (CONTRIBUTING.md, "Plain words").
VAGUE: Final = re.compile(r"\b(whoever|told|heard|anew|so many|let on|for ever|purse)\b", re.IGNORECASE)
NAMES: Final = re.compile(r"later than heard|\"purse\"")  # of an invariant of the simulation; among the older names


@pytest.mark.parametrize("page", PRESENT, ids=_id)
def test_pages_name_the_actor_and_the_thing(page: Path) -> None:
    """A sentence without an actor costs each reader a second look; English is the second language of most of them."""
    prose = re.sub(r"^```.*?^```|`[^`]+`", "", _text(page), flags=re.MULTILINE | re.DOTALL)
    assert VAGUE.findall(NAMES.sub("", prose)) == []


def test_the_map_says_what_the_contracts_say() -> None:
    """A contributor who trusts the table of packages must not be stopped by the linter afterwards."""
    linter = tomllib.loads(_text(ROOT / "pyproject.toml"))["tool"]["importlinter"]
    layers = [line.split(" | ") for line in linter["contracts"][0]["layers"]]
    packages = set(linter["root_packages"])
    rows = re.findall(r"^\| `(\w+)` \| [^|]+ \| [^|]+ \| ([^|]+) \|$", _text(ROOT / "ARCHITECTURE.md"), re.MULTILINE)
    assert {package for package, _ in rows} == packages
    for package, said in rows:
        [height] = [number for number, line in enumerate(layers) if package in line]
        below = {other for line in layers[height + 1 :] for other in line}
        forbidden = {
            module
            for contract in linter["contracts"]
            if package in contract.get("source_modules", ())
            for module in contract["forbidden_modules"]
        }
        named = below if said.startswith("all") else set(re.findall(r"`(\w+)`", said))
        assert named <= below - forbidden, package
        assert _imports(package) & packages - {package} <= named, package


def _imports(package: str) -> set[str]:
    """The top names of everything that a package imports."""
    found: set[str] = set()
    for path in (ROOT / package).rglob("*.py"):
        for node in ast.walk(ast.parse(_text(path))):
            if isinstance(node, ast.Import):
                found |= {name.name.partition(".")[0] for name in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.add(node.module.partition(".")[0])
    return found


def test_the_examples_for_firmware_authors_are_valid() -> None:
    """An author who copies an example must get a receipt, not a refusal."""
    text = (ROOT / "docs" / "firmware.md").read_text(encoding="utf-8")
    kinds: list[type[Message]] = [DeviceEvent, DeviceEvent, DeviceReading, DeviceReceipt, DeviceConfig, FirmwareOffer]
    examples = re.findall(r"```json\n(.*?)\n```", text, flags=re.DOTALL)
    assert len(examples) == len(kinds)
    for kind, example in zip(kinds, examples, strict=True):
        message = kind.decode(json.dumps(json.loads(example)).encode())
        if isinstance(message, DeviceEvent):
            assert from_event("scanner", message).destination == "@customer"


def test_the_page_for_firmware_authors_names_every_device_topic() -> None:
    """A topic that is not on the page does not exist for firmware."""
    text = (ROOT / "docs" / "firmware.md").read_text(encoding="utf-8")
    for rule in TOPICS:
        if "{device}" in rule.pattern:
            assert f"`{rule.pattern}`" in text
