"""Errors of the store. The docstring of a class is its default message; `hint` says what to do next."""

from shlex import quote

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


class CannotMerge(StoreError):
    """Two names cannot be made one."""

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


def unknown_tenant(tenant: str) -> UnknownName:
    """The error about a tenant that is not registered, with the command that registers it."""
    add = f"stocktide cloud tenant add {quote(tenant)}"
    return UnknownName(f"There is no tenant {tenant}.", hint=f"{add}; those there are: stocktide cloud tenant list")


def unknown_site(tenant: str, site: str | None) -> UnknownName:
    """The error about a site that is not registered, or a tenant without sites, with the command that mends it."""
    of = f"--tenant {quote(tenant)}"
    return UnknownName(
        f"Tenant {tenant} has no site {site or 'at all'}.",
        hint=f"stocktide cloud site add {quote(site or 'NAME')} {of}; those there are: stocktide cloud site list {of}",
    )


def unknown_gateway(gateway: str) -> UnknownName:
    """The error about a gateway that is not registered, with the command that registers it."""
    return UnknownName(
        f"There is no gateway {gateway}.",
        hint=f"stocktide cloud gateway claim {quote(gateway)} --tenant TENANT --site SITE --broker mqtts://…; "
        "those there are: stocktide cloud gateway list",
    )
