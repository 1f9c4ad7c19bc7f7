"""What is wrong with a message, an entry or a frame, in one line that a person can act on."""

from typing import Final

from pydantic import ValidationError

from wire_protocol import names

REASON_CHARS_MAX: Final = 200


def first_problem(error: ValidationError, *, below: int = 0) -> str:
    """The first of pydantic's complaints: where, and what is wrong; at most 200 characters.

    Args:
        error: what pydantic raised.
        below: how many levels of the place to leave out (the index in a list, the tag of a union).
    """
    problem = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part) for part in problem["loc"][below:])
    # A regular expression is no sentence; where we have one for it, that is said instead.
    said = names.PATTERNS.get(str(problem.get("ctx", {}).get("pattern", "")), problem["msg"])
    said = said.removeprefix("Value error, ")
    return (f"{where}: {said}" if where else said)[:REASON_CHARS_MAX]
