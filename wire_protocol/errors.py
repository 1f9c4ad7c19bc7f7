"""Errors of the wire protocol. The docstring of a class is its default message; `hint` says what to do next."""


class WireError(Exception):
    """The wire protocol was violated."""

    def __init__(self, message: str | None = None, *, hint: str | None = None) -> None:
        super().__init__(message or type(self).__doc__)
        self.hint = hint


class InvalidName(WireError, ValueError):
    """A tenant, site, gateway, device, SKU or location name is not well formed."""

    usage = True


class InvalidTopic(WireError, ValueError):
    """A topic is not one of Stocktide's."""


class InvalidFrame(WireError, ValueError):
    """A frame cannot be decoded."""


class InvalidEntry(WireError, ValueError):
    """A ledger entry is malformed or impossible."""

    usage = True
