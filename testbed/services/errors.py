"""Errors of the test services. The docstring of a class is its default message; `hint` says what to do next."""


class ServicesError(Exception):
    """The servers that the tests need are not available."""

    def __init__(self, message: str | None = None, *, hint: str | None = None) -> None:
        super().__init__(message or type(self).__doc__)
        self.hint = hint

    def __str__(self) -> str:
        """Return the message with its hint: pytest shows only this."""
        return f"{super().__str__()} {self.hint}" if self.hint else super().__str__()


class NotInstalled(ServicesError):
    """This machine has no TimescaleDB and Mosquitto for the tests."""


class BuildFailed(ServicesError):
    """The Debian root with the test servers could not be built."""


class ServerFailed(ServicesError):
    """A test server did not start or stopped answering."""


class NotRunning(ServicesError):
    """The shared test servers are not running."""
