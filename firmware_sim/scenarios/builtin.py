"""The scenarios and recordings that come with Stocktide, by name."""

from pathlib import Path
from typing import Final

SCENARIOS: Final = Path(__file__).parent
RECORDINGS: Final = SCENARIOS.parent / "recordings"
ONLINE_RETAIL: Final = RECORDINGS / "online_retail_2010-12.csv.gz"


def scenarios() -> list[Path]:
    """All scenarios, by name."""
    return sorted(SCENARIOS.glob("*.yaml"))


def recordings() -> list[Path]:
    """All recordings, by name."""
    return sorted([*RECORDINGS.glob("*.csv.gz"), *RECORDINGS.glob("*.csv")])


def resolve(path: Path) -> Path:
    """A file as named, or else the one of ours with that name, with or without its ending."""
    if path.exists() or path.parent != Path():
        return path
    ours = (file for file in (*scenarios(), *recordings()) if path.name in {file.name, file.name.partition(".")[0]})
    return next(ours, path)
