"""Errors of the edge agent. The docstring of a class is its default message; `hint` says what to do next."""

from command_line.errors import StocktideError


class EdgeError(StocktideError):
    """The edge agent cannot go on."""


class LedgerMissing(EdgeError):
    """There is no ledger here."""

    hint = "Create one with: stocktide edge init --gateway NAME"


class LedgerExists(EdgeError):
    """A ledger is already here; it is never overwritten."""

    hint = "Use it as it is, or name another file with --ledger."


class LedgerCorrupt(EdgeError):
    """The ledger does not agree with itself."""

    hint = "See what differs with: stocktide edge ledger verify"


class LedgerBusy(EdgeError):
    """Another process has held the ledger's write lock for too long."""

    hint = "Try again; if it persists, see which process has the file open (fuser LEDGER)."


class LedgerFull(EdgeError):
    """The disk is full: the ledger takes nothing more, and devices keep their events."""

    hint = "Free some space; the agent goes on by itself."


class LedgerForeign(EdgeError):
    """This file is not a Stocktide ledger, or one of a newer version."""

    hint = "Name the right file with --ledger, or upgrade stocktide on this gateway."


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
