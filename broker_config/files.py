"""How rendered configuration gets into files: line by line, checked, and readable by their owner alone.

Invariant: a value can never become a line of its own. What a person or a script gives as an address or a path stands in
one line of the file, or the file is not written.
"""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from broker_config.errors import InvalidConfig

FOLDER_MODE: Final = 0o750
FILE_MODE: Final = 0o600
_QUOTES: Final = '"\\$'


def text(lines: Iterable[str]) -> str:
    """The text of a configuration file.

    Raises:
        InvalidConfig: a line has a character that ends it, or that nobody sees.
    """
    made = []
    for line in lines:
        if not line.isprintable():
            found = next(character for character in line if not character.isprintable())
            raise InvalidConfig(
                f"{line[:80]!a} has the character U+{ord(found):04X}, which cannot stand in a configuration.",
                hint="Give addresses and paths without line ends and other characters that nobody sees.",
            )
        made.append(f"{line}\n")
    return "".join(made)


def quoted(value: object) -> str:
    """A value between quotation marks, for the brokers whose configuration has them.

    Raises:
        InvalidConfig: it has a character that would end them, or mean something inside.
    """
    plain = str(value)
    if found := next((character for character in plain if character in _QUOTES), None):
        raise InvalidConfig(f"{plain!a} has a {found!a}, which cannot stand in this broker's configuration.")
    return f'"{plain}"'


def make_folder(folder: Path) -> None:
    """Make a folder and those above it that are missing, whatever the process's umask is."""
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    for each in reversed(missing):
        each.mkdir(mode=FOLDER_MODE, exist_ok=True)
        each.chmod(FOLDER_MODE)


def write(file: Path, content: str) -> None:
    """Replace a file as a whole; only its owner can read it, from its first byte on.

    A file that root replaces keeps its owner: the account of a running broker, which reads the file again.
    """
    make_folder(file.parent)
    partial = file.with_name(f".{file.name}")
    partial.unlink(missing_ok=True)
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, FILE_MODE), "w", encoding="utf-8") as writing:
        writing.write(content)
        writing.flush()
        os.fsync(writing.fileno())
        if os.geteuid() == 0 and file.exists():
            os.fchown(writing.fileno(), file.stat().st_uid, file.stat().st_gid)
    partial.replace(file)
