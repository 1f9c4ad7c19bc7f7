"""Mutated messages on every channel at once, to a worker and an agent that are killed meanwhile: everybody is served.

`make fuzz ARGS="--seconds 600 everything"` does the same for longer, with another seed each time.
"""

import os
from pathlib import Path

import pytest

from fuzz.everything import Everything

SECONDS = 20.0
SEED = int(os.environ.get("STOCKTIDE_TEST_SEED", "1"))


@pytest.mark.slow
@pytest.mark.timeout(180)
async def test_one_sender_of_anything_stops_nobody(tmp_path: Path, database_url: str) -> None:
    """One gateway's message that ends a worker would be every tenant's outage."""
    print(f"STOCKTIDE_TEST_SEED={SEED}")  # noqa: T201 - shown when it fails
    assert await Everything(tmp_path, database_url, SEED).run(SECONDS) > 0
