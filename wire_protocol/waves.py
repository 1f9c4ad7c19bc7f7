"""How a change for many gateways is spread: a few first, and the rest when these are well.

Invariant: pure arithmetic; every gateway is in exactly one wave.
"""

from collections.abc import Sequence
from typing import Final

from wire_protocol.errors import WireError

WAVES_MAX: Final = 20


class InvalidWaves(WireError, ValueError):
    """These are no waves."""


def assign(count: int, waves: Sequence[str]) -> list[int]:
    """The wave of each of `count` gateways, from 0.

    Args:
        count: how many gateways there are.
        waves: where each wave ends: a number of gateways, or a share of all like `10%`; the last takes the rest.

    Raises:
        InvalidWaves: a wave is neither, or there are too many.
    """
    if not 1 <= len(waves) <= WAVES_MAX:
        raise InvalidWaves(f"There are 1 to {WAVES_MAX} waves, not {len(waves)}.")
    ends = [_end(wave, count) for wave in waves]
    if ends != sorted(ends):
        raise InvalidWaves("Each wave ends after the one before it, as in 1,10%,100%.")
    ends[-1] = count
    return [next(number for number, end in enumerate(ends) if index < end) for index in range(count)]


def _end(wave: str, count: int) -> int:
    """How many gateways are done after this wave; a share is rounded up, so that it is never nobody."""
    share = wave.endswith("%")
    text = wave.removesuffix("%")
    if not (text.isascii() and text.isdecimal()) or len(text) > 9 or (share and int(text) > 100):  # noqa: PLR2004 - per cent; a length
        raise InvalidWaves(f"{wave} is no wave: a number of gateways, or a share like 10%.")
    return min(count, -(-count * int(text) // 100) if share else int(text))
