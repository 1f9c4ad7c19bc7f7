"""Errors of the ingest worker. The docstring of a class is its default message; `hint` says what to do next."""


class IngestError(Exception):
    """The ingest worker failed."""

    def __init__(self, message: str | None = None, *, hint: str | None = None) -> None:
        super().__init__(message or type(self).__doc__)
        self.hint = hint


class BadInput(IngestError, ValueError):
    """The command cannot be carried out as given."""

    usage = True


class InvalidCatalog(IngestError, ValueError):
    """A file of items cannot be imported."""

    usage = True
