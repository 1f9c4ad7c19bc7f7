"""The ledger's path when no option gives one."""

import os
from pathlib import Path

SYSTEM_LEDGER = Path("/var/lib/stocktide/ledger.db")


def default_ledger() -> Path:
    """The system's ledger where its folder exists (the systemd unit makes it), the user's own otherwise."""
    if SYSTEM_LEDGER.parent.is_dir():
        return SYSTEM_LEDGER
    data_home = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(data_home) / "stocktide" / "ledger.db"
