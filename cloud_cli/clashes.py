"""Names that look the same to people and are not: taken by an older door, or from a gateway of before."""

import re
from collections import defaultdict
from collections.abc import Iterable
from typing import Any, Final

from wire_protocol import names

_ESCAPE: Final = re.compile(r"\\(?:x([0-9a-f]{2})|u([0-9a-f]{4})|U(000[0-9a-f]{5}|0010[0-9a-f]{4}))")

ADVICE: Final = """\
Nothing is merged by itself. Let the odd name stand for the other: stocktide cloud {noun} merge ODD OTHER. History keeps
the names under which it was booked; stock, movements and the API add them up. Write them as the column `typed` does."""


def typed(name: str) -> str:
    """A name in characters that any keyboard has: what it may be written as where it is an argument (`spelt`)."""
    return name.encode("unicode_escape").decode("ascii")


def spelt(argument: str) -> str:
    r"""The name that an argument means: as it is, or with `\u200b` and the like for characters that nobody can type."""
    return _ESCAPE.sub(lambda found: chr(int(found[1] or found[2] or found[3], 16)), argument)


def find(rows: Iterable[dict[str, Any]], within: tuple[str, ...], name: str) -> list[dict[str, Any]]:
    """The rows whose names look like another's, beside it; each with what it looks like and how it differs from that.

    A name that stands for another is no longer one to look at.

    Args:
        rows: all of them.
        within: the columns within which names are compared.
        name: the column of the name.
    """
    alike: defaultdict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    for row in (each for each in rows if each["merged_into"] is None):
        alike[(*(row[column] for column in within), names.likeness(row[name]))].append(row)
    return [
        {
            **{column: row[column] for column in (*within, name)},
            "looks_like": key[-1],
            "difference": names.misspelt(row[name]) or ("" if row[name] == key[-1] else "blanks inside"),
            "typed": typed(row[name]),
            "stub": row["stub"],
        }
        for key, group in sorted(alike.items())
        if len(group) > 1
        for row in group
    ]
