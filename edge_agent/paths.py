"""The ledger's path when no option gives one, and what stands beside a ledger."""

import os
from pathlib import Path

SYSTEM_LEDGER = Path("/var/lib/stocktide/ledger.db")


def default_ledger() -> Path:
    """The system's ledger where its folder exists (the systemd unit makes it), the user's own otherwise."""
    if SYSTEM_LEDGER.parent.is_dir():
        return SYSTEM_LEDGER
    data_home = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(data_home) / "stocktide" / "ledger.db"


def identity_folder(ledger: Path) -> Path:
    """The folder of the keys and certificates of a ledger's gateway."""
    return ledger.with_suffix(".identity")
