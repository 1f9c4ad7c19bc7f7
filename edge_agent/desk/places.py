"""Names that nobody has used before and that are nearly one that is known: a slip of the keyboard, perhaps.

The catalogue of a gateway that was offline may lag, so a new name is taken. What looks like a slip is pointed out with
what would take it back.
"""

import re
from collections.abc import Iterator
from typing import Final

from edge_agent.ledger.database import Connection
from edge_agent.ledger.drafts import Draft
from edge_agent.ledger.sql import statement
from wire_protocol import names

NAMES_COMPARED_MAX: Final = 20_000
LIKENESS_MIN: Final = 0.75  # of difflib.SequenceMatcher: one letter of four

_LETTER: Final = re.compile(r"(?<![^\W\d_])[^\W\d_](?![^\W\d_])")


def slips(connection: Connection, made: Draft) -> list[str]:
    """The names of an entry that are new here and like another, in sentences; call it before the entry is appended."""
    found = (slip(connection, noun, name) for noun, name in new_names(connection, made))
    return [each for each in found if each is not None]


def new_names(connection: Connection, made: Draft) -> list[tuple[str, str]]:
    """The names of an entry that are new here, each with what it is a name of."""
    return [
        (noun, name)
        for noun, name in _names(made)
        if not connection.execute(statement(f"{noun}_known"), {"name": name}).fetchone()[0]
    ]


def slip(connection: Connection, noun: str, name: str) -> str | None:
    """What there is to say of a new name that is like a known one."""
    like = _like(connection, noun, name)
    return None if like is None else f"{_shown(name)} was never used here; is it {like}?"


def _names(made: Draft) -> Iterator[tuple[str, str]]:
    yield "sku", made.sku
    for place in (made.source, made.destination, made.location):
        if place is not None:
            yield "location", place


def _like(connection: Connection, noun: str, name: str) -> str | None:
    """The known name that is most like this one. B-07 after A-01 is another shelf, and no slip."""
    import difflib  # noqa: PLC0415 - only a new name waits for it

    all_known = (row[0] for row in connection.execute(statement(f"all_{noun}s"), {"limit": NAMES_COMPARED_MAX}))
    known = [_shown(each) for each in all_known if names.is_virtual(each) == names.is_virtual(name)]
    name = _shown(name)
    mask = _mask(name)
    others = {each.casefold(): each for each in known if _mask(each) != mask or each.casefold() == name.casefold()}
    found = difflib.get_close_matches(name.casefold(), others, n=1, cutoff=LIKENESS_MIN)
    return others[found[0]] if found else None


def _mask(name: str) -> str:
    """What is left of a name when its numbers and its single letters are taken for any."""
    return _LETTER.sub("a", re.sub(r"\d+", "0", name.casefold()))


def _shown(name: str) -> str:
    return name.removeprefix(names.TRANSIT_PREFIX)
