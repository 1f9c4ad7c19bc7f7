"""The glossary has the words of the code."""

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parent.parent
TEXT: Final = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
TERMS: Final = re.findall(r"^- \*\*([^*]+)\*\*: (.*)$", TEXT.partition("\n## ")[0], flags=re.MULTILINE)
RENAMED: Final = dict(re.findall(r"^\| `(\w+)`[^|]*\| `(\w+)`", TEXT, flags=re.MULTILINE))
# The roots of errors: a class that stands on one of them is named for what happened, and needs no entry.
ERRORS: Final = frozenset({"Exception", "BaseException", "ValueError", "LookupError"})


def _classes() -> Iterator[tuple[Path, ast.ClassDef]]:
    """Every public class of every product package."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    for package in settings["tool"]["importlinter"]["root_packages"]:
        for path in sorted((ROOT / package).rglob("*.py")):
            for node in ast.parse(path.read_text(encoding="utf-8")).body:
                if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                    yield path.relative_to(ROOT), node


def _errors(classes: list[tuple[Path, ast.ClassDef]]) -> frozenset[str]:
    """The names of those that are errors, whatever error of ours they stand on."""
    errors: set[str] = set(ERRORS)
    while found := {
        node.name
        for _, node in classes
        if node.name not in errors and {ast.unparse(base) for base in node.bases} & errors
    }:
        errors |= found
    return frozenset(errors)


def _words(name: str) -> list[str]:
    return [word.casefold() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", name)]


def _known() -> frozenset[str]:
    """Words of the terms, and of the names in code type, of the entries; not those of the older names."""
    names = [name for _, text in TERMS for name in re.findall(r"`([A-Z]\w+)`", text)]
    terms = [word for term, _ in TERMS for word in re.findall(r"\w+", term.casefold())]
    return frozenset([*terms, *(word for name in names for word in _words(name))])


def test_every_word_of_a_public_class_is_in_the_glossary() -> None:
    """A new word in the code that no page explains is a word that its readers must guess.

    When this fails: add the class to the entry of its term in docs/glossary.md, or the term.
    """
    classes, known = list(_classes()), _known()
    errors = _errors(classes)
    missing = {
        f"{path}: {node.name} ({word})"
        for path, node in classes
        if node.name not in errors
        for word in _words(RENAMED.get(node.name, node.name))
        if word not in known
    }
    assert len(classes) > 300
    assert sorted(missing) == []


def test_every_class_is_where_the_glossary_says() -> None:
    """An entry for a class that was renamed or moved sends its readers to nothing."""
    there = {(str(path), name) for path, node in _classes() for name in (node.name, RENAMED.get(node.name, node.name))}
    named = [
        (module, name)
        for _, text in TERMS
        for names, module in re.findall(r"((?:`\w+`(?:, | and )?)+)[^`(]*\(`([\w/]+\.py)`", text)
        for name in re.findall(r"`([A-Z]\w+)`", names)
    ]
    assert len(named) > 200
    assert [each for each in named if each not in there] == []


@pytest.mark.parametrize("picture", sorted((ROOT / "docs" / "pictures").glob("*.svg")), ids=lambda path: path.stem)
def test_every_class_that_a_picture_names_exists(picture: Path) -> None:
    """A picture is read first and corrected last."""
    texts = " ".join(re.findall(r">([^<]+)<", picture.read_text(encoding="utf-8")))
    shown = set(re.findall(r"\b[A-Z][a-z]+(?:[A-Z][a-z]+)+\b", texts))
    assert shown <= {node.name for _, node in _classes()}


def test_no_class_has_an_older_name() -> None:
    """A name that two things had, one after the other, makes every older note ambiguous."""
    assert not {node.name for _, node in _classes()} & RENAMED.keys()


def test_the_terms_are_in_alphabetical_order() -> None:
    """A list that is not in order is searched twice."""
    terms = [term.casefold() for term, _ in TERMS]
    assert len(terms) > 100
    assert terms == sorted(terms)
