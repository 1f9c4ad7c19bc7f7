"""Which version of Stocktide is installed, whichever of its artefacts it came in."""

from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as _installed
from typing import Final

GATEWAYS: Final = "stocktide-edge"
"""What a gateway installs."""
WHOLE: Final = "stocktide"
"""The whole product."""


def version() -> str:
    """The installed version.

    Raises:
        PackageNotFoundError: neither artefact is installed: the source tree alone is on the path.
    """
    try:
        return _installed(GATEWAYS)
    except PackageNotFoundError:
        return _installed(WHOLE)
