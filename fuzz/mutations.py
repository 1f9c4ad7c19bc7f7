"""Messages as a broken or hostile sender makes them: valid ones with one thing in them that is extreme, wrong or cut.

Invariant: what is made follows from the random numbers alone, so that a seed makes the same messages again.
"""

import json
import zlib
from collections.abc import Iterator
from random import Random
from typing import Any, Final

Path = tuple[str | int, ...]

INTEGERS: Final = (1 << 62, (1 << 62) - 1, (1 << 63) - 1, 1 << 63, -(1 << 63), -1, 0, 10**30)
OTHERS: Final[tuple[Any, ...]] = (
    None,
    True,
    1.5,
    1e308,
    float("nan"),
    "",
    "\0",
    "\ud800",
    "\N{ZERO WIDTH SPACE}A",
    "x" * 3_000,
    [],
    {},
    [[[[[[]]]]]],
    {"\0": "\0"},
)
TURNED_BYTES_MAX: Final = 4


def mutations(payload: bytes, random: Random) -> Iterator[bytes]:
    """Endless variants of a payload; an extreme number comes twice in a row."""
    value = _read(payload)
    paths = list(_paths(value)) if value is not None else []
    integers = [path for path in paths if _is_integer(_at(value, path))]
    while True:
        kind = random.random()
        if paths and integers and kind < 0.4:  # noqa: PLR2004 - shares of the kinds
            made = _write(_with(value, random.choice(integers), random.choice(INTEGERS)), payload)
            yield made
            yield made
        elif paths and kind < 0.65:  # noqa: PLR2004
            yield _write(_with(value, random.choice(paths), random.choice(OTHERS)), payload)
        elif paths and kind < 0.75:  # noqa: PLR2004
            yield _write(_without(value, random.choice(paths)), payload)
        elif isinstance(value, dict) and kind < 0.85:  # noqa: PLR2004
            yield _write({**value, "nobody-knows": random.choice(OTHERS)}, payload)
        elif kind < 0.95:  # noqa: PLR2004
            yield _damaged(payload, random)
        else:
            yield payload
            yield payload


def _damaged(payload: bytes, random: Random) -> bytes:
    """Cut, doubled, or with bytes turned."""
    if not payload or random.random() < 0.3:  # noqa: PLR2004
        return payload[: random.randint(0, len(payload))]
    if random.random() < 0.2:  # noqa: PLR2004
        return payload + payload
    turned = bytearray(payload)
    for _ in range(random.randint(1, TURNED_BYTES_MAX)):
        turned[random.randrange(len(turned))] = random.randrange(256)
    return bytes(turned)


def _read(payload: bytes) -> Any:
    """The JSON of a message or of a frame; None when there is none."""
    try:
        return json.loads(payload if payload[:1] == b"{" else zlib.decompress(payload))
    except (ValueError, zlib.error):
        return None


def _write(value: Any, like: bytes) -> bytes:
    plain = json.dumps(value, separators=(",", ":")).encode()
    return plain if like[:1] == b"{" else zlib.compress(plain)


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _paths(value: Any, path: Path = ()) -> Iterator[Path]:
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in inside:
        yield (*path, key)
        yield from _paths(item, (*path, key))


def _at(value: Any, path: Path) -> Any:
    for key in path:
        value = value[key]
    return value


def _with(value: Any, path: Path, item: Any) -> Any:
    made = json.loads(json.dumps(value))
    _at(made, path[:-1])[path[-1]] = item
    return made


def _without(value: Any, path: Path) -> Any:
    made = json.loads(json.dumps(value))
    del _at(made, path[:-1])[path[-1]]
    return made
