"""Names that look the same to people and are not: taken by an older door, or from a gateway of before."""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any, Final

from wire_protocol import names

ADVICE: Final = (
    "Nothing is merged by itself, because history keeps the names under which it was booked. Until a merge exists:\n"
    "move what is on hand under the odd one to the other (scrap it there, with a reference, and count the other), and\n"
    "retire the odd item (item import --replace, column retired). Devices and commands can make no new ones."
)


def find(rows: Iterable[dict[str, Any]], within: tuple[str, ...], name: str) -> list[dict[str, Any]]:
    """The rows whose names look like another's, beside it; each with what it looks like and how it differs from that.

    Args:
        rows: all of them.
        within: the columns within which names are compared.
        name: the column of the name.
    """
    alike: defaultdict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        alike[(*(row[column] for column in within), names.likeness(row[name]))].append(row)
    return [
        {
            **{column: row[column] for column in (*within, name)},
            "looks_like": key[-1],
            "difference": names.misspelt(row[name]) or ("" if row[name] == key[-1] else "blanks inside"),
            "stub": row["stub"],
        }
        for key, group in sorted(alike.items())
        if len(group) > 1
        for row in group
    ]
