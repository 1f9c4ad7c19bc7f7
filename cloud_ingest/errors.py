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


class InvalidRequest(IngestError, ValueError):
    """A certificate signing request cannot be used."""


class SignerFailed(IngestError):
    """The certificate authority did not sign."""


class AuthorityMissing(IngestError):
    """There is no certificate authority here."""

    usage = True

    def __init__(self, message: str | None = None, *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint or "Make one with: stocktide cloud ca init, and set STOCKTIDE_CA_DIR.")


class AuthorityExists(IngestError):
    """A certificate authority is already here; it is never overwritten."""

    usage = True


class EvictionFailed(IngestError):
    """The gateway's live connection could not be ended."""
