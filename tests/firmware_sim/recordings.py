"""What the recordings that tests write consist of."""

from collections.abc import Callable, Sequence
from pathlib import Path

HEADER = "time,site,device,sku,quantity"
WriteRecording = Callable[..., Path]


def busy_day(rows: int, *, sites: Sequence[str] = ("oslo",), tills: int = 2) -> list[str]:
    """Rows of a busy day: a sale each second, every tenth one returned."""
    return [
        f"2020-01-01T{8 + n // 3600:02d}:{n // 60 % 60:02d}:{n % 60:02d}Z,{sites[n % len(sites)]},"
        f"till-{n % tills + 1},sku-{n % 7},{-1 if n % 10 == 9 else n % 3 + 1}"
        for n in range(rows)
    ]
