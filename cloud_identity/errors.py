"""Errors of the certificate authority. The docstring of a class is its default message."""

from command_line.errors import StocktideError


class AuthorityError(StocktideError):
    """The certificate authority failed."""


class InvalidRequest(AuthorityError, ValueError):
    """A certificate signing request cannot be used."""


class InvalidKey(AuthorityError, ValueError):
    """A key or a signature cannot be used."""

    usage = True


class SignerFailed(AuthorityError):
    """The certificate authority did not sign."""


class AuthorityMissing(AuthorityError):
    """There is no certificate authority here."""

    usage = True
    hint = "Make one with: stocktide cloud ca init, and set STOCKTIDE_CA_DIR."


class AuthorityExists(AuthorityError):
    """A certificate authority is already here; it is never overwritten."""

    usage = True
