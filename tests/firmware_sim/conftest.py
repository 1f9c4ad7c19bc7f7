"""Fixtures of the simulator: recordings written by the test."""

import gzip
import socket
from pathlib import Path

import pytest

from tests.firmware_sim.recordings import HEADER, WriteRecording


@pytest.fixture
def write_recording(tmp_path: Path) -> WriteRecording:
    """Write a recording from rows of text: `write_recording("2020-01-01T08:00:00Z,oslo,till-1,tea,2")`."""

    def write(*rows: str, header: str = HEADER, name: str = "recording.csv") -> Path:
        path = tmp_path / name
        text = "".join(f"{line}\n" for line in (header, *rows)).encode()
        path.write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
        return path

    return write


@pytest.fixture
def unused_port() -> int:
    """A port on which nobody listens."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return int(bound.getsockname()[1])
