"""Errors of the store. The docstring of a class is its default message; `hint` says what to do next."""

from command_line.errors import StocktideError


class StoreError(StocktideError):
    """The store failed."""


class DatabaseUnavailable(StoreError):
    """The database cannot be reached, or the connection to it was lost."""


class StoreTimeout(DatabaseUnavailable):
    """The database is there and did not finish something in time."""


class NotMigrated(StoreError):
    """The database does not have Stocktide's tables, or only old ones."""


class UnknownName(StoreError, LookupError):
    """A tenant, site, gateway or item is not in the registry."""

    usage = True


class InvalidName(StoreError, ValueError):
    """A name, role, scope or lifetime is not one that can be given."""

    usage = True


class QuotaExceeded(StoreError):
    """A tenant has as many of something as it may."""

    usage = True


class AlreadyExists(StoreError):
    """A tenant, site, gateway or item of this name is already registered."""

    usage = True


class InvalidFirmware(StoreError, ValueError):
    """A firmware release cannot be added or rolled out as asked."""

    usage = True


class InvalidCursor(StoreError, ValueError):
    """A page cursor is not one that this server gave out."""


class Unstorable(StoreError, ValueError):
    """The database cannot represent a value: a sum that exceeds 64 bits, for example."""


class NamesExhausted(StoreError):
    """A tenant has as many names as it may."""


class MergeConflict(StoreError):
    """A merge kept colliding with other workers."""
