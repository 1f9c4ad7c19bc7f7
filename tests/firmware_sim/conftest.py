"""Fixtures of the simulator: recordings written by the test."""

import gzip
import socket
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

HEADER = "time,site,device,sku,quantity"

WriteRecording = Callable[..., Path]


@pytest.fixture
def write_recording(tmp_path: Path) -> WriteRecording:
    """Write a recording from rows of text: `write_recording("2020-01-01T08:00:00Z,oslo,till-1,tea,2")`."""

    def write(*rows: str, header: str = HEADER, name: str = "recording.csv") -> Path:
        path = tmp_path / name
        text = "".join(f"{line}\n" for line in (header, *rows)).encode()
        path.write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
        return path

    return write


def busy_day(rows: int, *, sites: Sequence[str] = ("oslo",), tills: int = 2) -> list[str]:
    """Rows of a busy day: a sale each second, every tenth one returned."""
    return [
        f"2020-01-01T{8 + n // 3600:02d}:{n // 60 % 60:02d}:{n % 60:02d}Z,{sites[n % len(sites)]},"
        f"till-{n % tills + 1},sku-{n % 7},{-1 if n % 10 == 9 else n % 3 + 1}"
        for n in range(rows)
    ]


@pytest.fixture
def unused_port() -> int:
    """A port on which nobody listens."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return int(bound.getsockname()[1])
