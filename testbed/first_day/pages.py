"""The commands of a page: its blocks that say on which machine and as whom they are typed.

A block that is run begins with a comment that the reader needs as well: `# on the cloud, as root`. Page and test cannot
drift apart, because there is one text.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_FENCED: Final = re.compile(r"^```(?P<language>\w*)\n(?P<text>.*?)^```$", flags=re.MULTILINE | re.DOTALL)
_WHERE: Final = re.compile(r"# on the (?P<machine>\w+), as (?P<account>[\w-]+)\n")


@dataclass(frozen=True, slots=True)
class Block:
    """Commands of a page: `where` they stand, as `PAGE:LINE`, and the machine and account that type them."""

    where: str
    machine: str
    account: str
    commands: str


def read(page: Path) -> Iterator[Block]:
    """The blocks of a page that are run, in their order. Blocks of other languages than `sh` are for the eye.

    Raises:
        ValueError: a block of `sh` does not say where it is typed.
    """
    text = page.read_text(encoding="utf-8")
    for found in _FENCED.finditer(text):
        if found["language"] != "sh":
            continue
        where = f"{page.name}:{text.count(chr(10), 0, found.start()) + 1}"
        head = _WHERE.match(found["text"])
        if head is None:
            raise ValueError(f"{where}: the block does not begin with `# on the MACHINE, as ACCOUNT`.")
        yield Block(where, head["machine"], head["account"], found["text"][head.end() :])
