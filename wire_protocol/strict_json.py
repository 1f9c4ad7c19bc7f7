"""JSON from outside, in which each name stands once in its object.

A parser takes the last of two equal names and says nothing: what the sender wrote first is lost, and two readers of
one document may see two documents (RFC 8259, section 4).
"""

import json
from typing import Any, Final

from wire_protocol.errors import WireError

NAME_CHARS_MAX: Final = 40


class RepeatedName(WireError, ValueError):
    """A name stands twice in an object of a JSON document."""


def load(text: str | bytes) -> Any:
    """The value of a JSON text.

    Raises:
        RepeatedName: a name stands twice in one object; the message has the name.
        ValueError, RecursionError: it is not JSON, or nested too deep.
    """
    return json.loads(text, object_pairs_hook=_object)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)[:NAME_CHARS_MAX]
        raise RepeatedName(f"{twice}: the name stands twice in one object; say it once")
    return made
