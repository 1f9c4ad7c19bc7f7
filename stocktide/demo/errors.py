"""Errors of the demo."""


class DemoError(Exception):
    """The demo cannot go on."""

    def __init__(self, message: str | None = None, *, hint: str | None = None) -> None:
        super().__init__(message or type(self).__doc__)
        self.hint = hint


class ProcessFailed(DemoError):
    """A process of the demo ended or did not get ready."""
