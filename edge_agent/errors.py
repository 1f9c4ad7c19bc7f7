"""Errors of the edge agent. The docstring of a class is its default message; `hint` says what to do next."""

from typing import Final

from command_line.errors import StocktideError

# What a row raises, where it is read or shown, that is not as this program writes it.
UNREADABLE: Final = (ValueError, LookupError, TypeError, ArithmeticError, AttributeError)


class EdgeError(StocktideError):
    """The edge agent cannot go on."""


class LedgerMissing(EdgeError):
    """There is no ledger here."""

    hint = "Create one with: stocktide edge init --gateway NAME"


class LedgerExists(EdgeError):
    """A ledger is already here; it is never overwritten."""

    hint = "Use it as it is, or name another file with --ledger."


class LedgerCorrupt(EdgeError):
    """The ledger is damaged."""

    # As in sysexits(3), EX_DATAERR: a supervisor can tell it from a broker that is away.
    exit_code = 65
    hint = (
        "The events of devices are safe with their senders. Stop the agent, then: stocktide edge restore --set-aside "
        "--gateway NAME --cloud URL (keeps the damaged file, fetches what the cloud has), or put a backup in its place."
    )


class LedgerBusy(EdgeError):
    """Another process has held the ledger's write lock for too long."""

    hint = "Try again; if it persists, see which process has the file open (fuser LEDGER)."


class LedgerFull(EdgeError):
    """The disk is full: the ledger takes nothing more, and devices keep their events."""

    hint = "Free some space; the agent goes on by itself."


class DiskFailing(LedgerFull):
    """The disk does not read or write as it should."""

    hint = (
        "Look at the disk (dmesg, df) and save the ledger to another one: stocktide edge backup FILE. "
        "The agent goes on by itself when the disk works again."
    )


class LedgerReadOnly(EdgeError):
    """The ledger cannot be written."""

    usage = True
    hint = "Run as the user who owns the ledger; if the file system is read-only, see why (dmesg) and mount it again."


class LedgerOutdated(EdgeError):
    """The ledger is of an older version."""

    hint = "Bring it up to date with: stocktide edge ledger migrate"


class LedgerNewer(EdgeError):
    """The ledger is of a newer version."""

    hint = "Install that version of stocktide on this gateway, or put a backup of before the upgrade in its place."


class LedgerLinked(EdgeError):
    """The ledger's file has several names."""

    hint = "A copy is made with: stocktide edge backup FILE. Find the other names with: find / -xdev -samefile LEDGER"


class LedgerForeign(EdgeError):
    """This file is not a Stocktide ledger."""

    hint = "Name the right file with --ledger."


class AgentRunning(EdgeError):
    """An agent already runs on this ledger."""

    hint = "Stop it first (systemctl stop stocktide-edge), or use another ledger."


class UnknownDevice(EdgeError):
    """The device is not registered at this gateway."""

    hint = "Register it with: stocktide edge device add NAME"


class BadInput(EdgeError):
    """The command cannot be carried out as given."""

    usage = True
    hint = "See the command's --help."


class EventIdUsed(EdgeError):
    """The device has used this id for something else."""

    hint = "A device must never use an id twice; see docs/firmware.md. What it says here was not booked."


class OutOfDomain(BadInput):
    """A stock would be beyond what stock may be."""


def unreadable(error: Exception) -> Exception:
    """The error of a row that is not as this program writes it; any other error as it is.

    The ledger's rows are written by this program alone, so what it cannot read was changed by something else.
    """
    if hasattr(error, "hint") or isinstance(error, UnicodeEncodeError):  # which is the terminal's
        return error
    first = str(error).partition("\n")[0]
    return LedgerCorrupt(f"The ledger holds something that cannot be read: {first}.")
