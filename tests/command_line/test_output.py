"""Tables for people. Broken when a small terminal shows a table without its contents."""

import os
import pty
import subprocess
import sys
from contextlib import closing

import pytest

PROGRAM = """
from command_line.output import table
heads = ["entry", "time", "what", "quantity", "SKU", "where", "by"]
row = [16, "21:41:59", "receive", 5, "TEA-GREEN", "@supplier > A-01", "eva"]
table(heads, [row, [17, *row[1:]]], numbers=["entry", "quantity"], whole=["time", "what"])
"""


def shown(columns: int) -> list[str]:
    """What a terminal of that width gets."""
    inside, outside = pty.openpty()
    environment = os.environ | {"COLUMNS": str(columns), "PYTHONIOENCODING": "ascii", "TERM": "dumb"}
    subprocess.run([sys.executable, "-c", PROGRAM], check=True, stdout=outside, env=environment)
    os.close(outside)
    text = b""
    with closing(os.fdopen(inside, "rb", buffering=0)) as terminal:
        while True:
            try:
                more = terminal.read(65536)
            except OSError:  # nobody writes any more
                break
            if not more:
                break
            text += more
    return text.decode().splitlines()


@pytest.mark.parametrize("columns", [40, 24, 100])
def test_a_table_that_has_no_room_is_a_list_of_facts(columns: int) -> None:
    """Its columns were crushed to nothing: SKU and place of a history could not be read on a scanner's terminal."""
    lines = shown(columns)
    assert max(map(len, lines)) <= columns
    whole = " ".join(" ".join(lines).split())
    assert whole.count("TEA-GREEN") == whole.count("@supplier > A-01") == 2
    assert ("SKU TEA-GREEN" in whole) == (columns < 100)
