"""What is wrong with a message, an entry or a frame, in one line that a person can act on."""

from collections.abc import Mapping
from typing import Any, Final

from pydantic import ValidationError

from wire_protocol import names

REASON_CHARS_MAX: Final = 200

# Beside those of `names`: what people write into documents and messages.
_PATTERNS: Final = {
    r"^[a-z][a-z0-9_]{0,47}$": "use 1 to 48 of a-z, 0-9 and '_', beginning with a letter",
    r"^[a-z][a-z0-9-]{0,47}$": "use 1 to 48 of a-z, 0-9 and '-', beginning with a letter",
    r"^[a-z][a-z0-9-]{0,31}$": "use 1 to 32 of a-z, 0-9 and '-', beginning with a letter",
    r"^[0-9]{1,6}(?:\.[0-9]{1,6}){1,3}$": "use two to four numbers with dots between them, as 1.4.2",
    r"^\d{8,14}$": "use the 8, 12, 13 or 14 digits of a GTIN",
    r"^[a-z2-7]{10}$": "use the 10 letters and digits of a key's prefix",
}


def first_problem(error: ValidationError, *, below: int = 0) -> str:
    """The first of pydantic's complaints: where, and what is wrong; at most 200 characters.

    Args:
        error: what pydantic raised.
        below: how many levels of the place to leave out (the index in a list, the tag of a union).
    """
    problem = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in problem["loc"][below:])
    said = sentence(problem)
    return (f"{where}: {said}" if where else said)[:REASON_CHARS_MAX]


def sentence(problem: Mapping[str, Any]) -> str:
    """What is wrong, of one of pydantic's complaints (as `ErrorDetails`). A regular expression is no sentence."""
    pattern = str(problem.get("ctx", {}).get("pattern", ""))
    given = problem.get("input")
    if pattern == names.TEXT_PATTERN and isinstance(given, str) and (wrong := names.misspelt(given)):
        return wrong
    if pattern:
        return names.PATTERNS.get(pattern) or _PATTERNS.get(pattern, "it does not have the form that is asked for")
    return str(problem["msg"]).removeprefix("Value error, ")
