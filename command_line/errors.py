"""The root of every error that a person may read: what went wrong, and what to do next.

`wire_protocol` stands alone and has a root of its own of the same shape (`wire_protocol.errors.WireError`).
"""


class StocktideError(Exception):
    """Something went wrong."""

    # Set on a class: the command was given wrong, which is exit code 2 rather than 1.
    usage: bool = False
    hint: str | None = None

    def __init__(self, message: str | None = None, *, hint: str | None = None) -> None:
        """The docstring of a class is its default message; `hint` says what to do next."""
        super().__init__(message or type(self).__doc__)
        self.hint = hint or self.hint
