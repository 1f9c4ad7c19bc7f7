"""How the edge's commands fail: a library's error becomes a sentence and a next command."""

import errno
import sys
from collections.abc import Callable
from functools import wraps
from typing import Final, ParamSpec, TypeVar

from command_line.output import ErrorGroup
from edge_agent.errors import UNREADABLE, DiskFailing, EdgeError, LedgerFull, LedgerReadOnly, unreadable

P = ParamSpec("P")
T = TypeVar("T")

_MEANINGS: Final[dict[int | None, type[EdgeError]]] = {
    errno.ENOSPC: LedgerFull,
    errno.EDQUOT: LedgerFull,
    errno.EROFS: LedgerReadOnly,
    errno.EACCES: LedgerReadOnly,
    errno.EPERM: LedgerReadOnly,
    errno.EIO: DiskFailing,
}


class EdgeGroup(ErrorGroup):
    """A group of the edge's commands."""

    def in_our_words(self, error: Exception) -> Exception:
        """An error of SQLite or of the file system as one of ours; any other as it is."""
        if hasattr(error, "hint"):
            return error
        if isinstance(error, OSError) and error.errno != errno.EPIPE:  # a pipe that nobody reads any more is no fault
            place = f"{error.filename}: " if error.filename is not None else ""
            return _MEANINGS.get(error.errno, EdgeError)(f"{place}{error.strerror or error}.")
        if "sqlite3" in sys.modules:  # a command that has not loaded it cannot have failed by it
            from edge_agent.ledger import connections

            if isinstance(error, connections.DatabaseError):
                return connections.translated(error)
        return error


def shows(command: Callable[P, T]) -> Callable[P, T]:
    """A command that shows what is in the ledger: what cannot be shown is damage, and no defect."""

    @wraps(command)
    def run(*arguments: P.args, **options: P.kwargs) -> T:
        try:
            return command(*arguments, **options)
        except UNREADABLE as error:
            raise unreadable(error) from error

    return run
