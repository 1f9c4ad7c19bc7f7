"""Stock proof: two ends that took the same entries can tell in 16 hexadecimal digits that they hold the same stock.

The digest is a linear sketch, the sum of hash(cell) * on_hand over all cells modulo the prime 2**61 - 1, so it is kept
up to date by one addition for each change, in any order, and empty cells count for nothing. A position is the same
kind of sum over a site's logs, hash(gateway, epoch) * seq: since each log is taken in order from 1, equal positions
mean the same entries. Digests are compared at equal positions only; where they differ, a bisection finds the cells:
cells lie in buckets by the leading hexadecimal digits of their hash, and only buckets that differ are opened.

The modulus is prime because a product modulo 2**64 forgets as many high bits of the hash as the difference has low zero
bits (stock that is off by 2**40 would be compared in 24 bits), while modulo a prime every difference below 2**61 is
multiplied by an invertible number and seen in all 61 bits; the values also fit a signed 64-bit column.

What it is not: proof against a forger. The hash has no secret key and the sum is linear, so an attacker who may choose
cell names or quantities can work out two stocks with one digest. It finds faults (a lost row, a double booking, a disk
that lies), with a chance of 2**-61 to miss one; who may write to a ledger is the business of names and certificates.

Invariant: everything here is a pure function of its arguments. A bisection ends after `ROUNDS_MAX` questions, whatever
it is answered, and neither question nor answer exceeds its bounds.
"""

import hashlib
from bisect import bisect_left
from collections.abc import Iterable
from functools import lru_cache
from itertools import accumulate
from typing import Annotated, Final, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from wire_protocol import names
from wire_protocol.stock import Cell, differences

MODULUS: Final = (1 << 61) - 1
HASH_HEX_CHARS: Final = 16
FAN_OUT: Final = "0123456789abcdef"

CELLS_CACHED_MAX: Final = 1 << 16  # the same few cells take part in most movements
PREFIXES_MAX: Final = 64
LEAF_CELLS_MAX: Final = 32
# Eight full leaves; with names of 64 four-byte characters such an answer still fits the 256 KiB of a message.
ANSWER_CELLS_MAX: Final = 256
BUCKETS_MAX: Final = PREFIXES_MAX * len(FAN_OUT)
ROUNDS_MAX: Final = 64
DIFFERENCES_MAX: Final = 100

# Setting a hash up costs more than hashing three names: each begins as a copy.
_CELL_HASH: Final = hashlib.blake2b(digest_size=8, person=b"stocktide-cell")
_LOG_HASH: Final = hashlib.blake2b(digest_size=8, person=b"stocktide-log")

Hex64 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{16}$")]
Prefix = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{0,16}$")]
CellCount = Annotated[int, Field(ge=0, lt=1 << 62)]
OnHand = Annotated[int, Field(ge=-(1 << 63), lt=1 << 63)]
LotOrNone = Annotated[str, StringConstraints(max_length=0)] | names.Lot


# --- the sums ---------------------------------------------------------------------------------------------------


def new_cell_hash(location: str, sku: str, lot: str) -> int:
    """The 64-bit hash of a cell: BLAKE2b (RFC 7693) over its three names, each with its length in bytes before it."""
    return _hash(_CELL_HASH, location, sku, lot)


cell_hash = lru_cache(CELLS_CACHED_MAX)(new_cell_hash)


def log_hash(gateway: str, epoch: str) -> int:
    """The 64-bit hash of one gateway's log; another domain than `cell_hash`."""
    return _hash(_LOG_HASH, gateway, epoch)


def add(digest: int, change: int) -> int:
    """A digest or position after a change; in any order and grouping the result is the same."""
    return (digest + change) % MODULUS


def digest_change(cell: Cell, change: int) -> int:
    """What it adds to the digest when on hand in a cell changes by so much."""
    return cell_hash(*cell) * change % MODULUS


def position_change(gateway: str, epoch: str, entries: int) -> int:
    """What it adds to the position when that many more entries of a log are taken."""
    return log_hash(gateway, epoch) * entries % MODULUS


def stock_digest(on_hand: Iterable[tuple[Cell, int]]) -> int:
    """The digest of a set of balances, from scratch."""
    return sum(cell_hash(*cell) * quantity for cell, quantity in on_hand) % MODULUS


def log_position(logs: Iterable[tuple[str, str, int]]) -> int:
    """The position of a site, from scratch: (gateway, epoch, last sequence number) of each log."""
    return sum(position_change(gateway, epoch, seq) for gateway, epoch, seq in logs) % MODULUS


def as_text(value: int) -> str:
    """A digest or position as it travels: 16 hexadecimal digits."""
    return f"{value:0{HASH_HEX_CHARS}x}"


def _hash(domain: "hashlib.blake2b", *parts: str) -> int:
    digest = domain.copy()
    text = "".join([f"{len(part)}:{part}" for part in parts])
    if text.isascii():
        digest.update(text.encode())
    else:  # a length is in bytes
        digest.update(b"".join([b"%d:%b" % (len(encoded), encoded) for encoded in map(str.encode, parts)]))
    return int.from_bytes(digest.digest())


# --- what travels -----------------------------------------------------------------------------------------------


class _Part(BaseModel):
    """Part of a message, as in `messages`, which imports this module."""

    model_config = ConfigDict(defer_build=True, strict=True, frozen=True, extra="ignore")


class StockDigest(_Part):
    """What one end holds: where it is, the digest of its stock there, and in how many cells that is not zero."""

    position: Hex64
    digest: Hex64
    cells: CellCount

    @classmethod
    def make(cls, position: int, digest: int, cells: int) -> "StockDigest":
        """A proof from the numbers that a store keeps."""
        return cls(position=as_text(position), digest=as_text(digest), cells=cells)

    @classmethod
    def of(cls, on_hand: Iterable[tuple[Cell, int]], position: int) -> "StockDigest":
        """A proof from scratch."""
        held = [(cell, quantity) for cell, quantity in on_hand if quantity]
        return cls.make(position, stock_digest(held), len(held))


class DigestQuestion(_Part):
    """What do you hold of the cells whose hash begins with each of these?"""

    prefixes: Annotated[tuple[Prefix, ...], Field(min_length=1, max_length=PREFIXES_MAX)]


class DigestAnswer(_Part):
    """What is held at a position, by bucket: digest and number of cells.

    A prefix with more than `LEAF_CELLS_MAX` cells is answered by its children (one more digit; empty ones left out),
    another by itself and its cells: location, SKU, lot, on hand. A prefix that did not fit is left out: ask again.
    """

    position: Hex64
    buckets: Annotated[dict[Prefix, tuple[Hex64, CellCount]], Field(max_length=BUCKETS_MAX)] = {}
    cells: Annotated[
        tuple[tuple[names.LocationName, names.Sku, LotOrNone, OnHand], ...], Field(max_length=ANSWER_CELLS_MAX)
    ] = ()


# --- the answering side -----------------------------------------------------------------------------------------


def answer(question: DigestQuestion, on_hand: Iterable[tuple[Cell, int]], position: int) -> DigestAnswer:
    """Answer a question from balances, taken at a position; a prefix for which there is no room is left out."""
    held = _Buckets(on_hand)
    buckets: dict[str, tuple[str, int]] = {}
    cells: list[tuple[str, str, str, int]] = []
    for prefix in question.prefixes:
        bucket = held.bucket(prefix)
        if bucket.cells > LEAF_CELLS_MAX and len(prefix) < HASH_HEX_CHARS:
            children = {prefix + digit: held.bucket(prefix + digit) for digit in FAN_OUT}
            buckets |= {child: found.as_parts() for child, found in children.items() if found.cells}
            continue
        listed = held.cells(prefix)[:LEAF_CELLS_MAX]
        if len(cells) + len(listed) <= ANSWER_CELLS_MAX:
            buckets[prefix] = bucket.as_parts()
            cells += [(*cell, quantity) for cell, quantity in listed]
    return DigestAnswer(position=as_text(position), buckets=buckets, cells=tuple(cells))


class _Bucket(NamedTuple):
    """The digest of the cells whose hash begins with a prefix, and how many there are."""

    digest: int
    cells: int

    def as_parts(self) -> tuple[str, int]:
        return as_text(self.digest), self.cells


class _Buckets:
    """Balances sorted by hash, so that every bucket is a slice and its digest a difference of two running sums."""

    def __init__(self, on_hand: Iterable[tuple[Cell, int]]) -> None:
        hashed = sorted((cell_hash(*cell), cell, quantity) for cell, quantity in on_hand if quantity)
        self._hashes = [number for number, _, _ in hashed]
        self._held = [(cell, quantity) for _, cell, quantity in hashed]
        self._sums = list(accumulate((number * quantity for number, _, quantity in hashed), initial=0))

    def bucket(self, prefix: str) -> _Bucket:
        first, end = self._slice(prefix)
        return _Bucket((self._sums[end] - self._sums[first]) % MODULUS, end - first)

    def cells(self, prefix: str) -> list[tuple[Cell, int]]:
        return self._held[slice(*self._slice(prefix))]

    def _slice(self, prefix: str) -> tuple[int, int]:
        shift = 4 * (HASH_HEX_CHARS - len(prefix))
        number = int(prefix or "0", 16)
        return bisect_left(self._hashes, number << shift), bisect_left(self._hashes, number + 1 << shift)


# --- the asking side --------------------------------------------------------------------------------------------


class Bisection:
    """Finds the cells in which the other end differs, question by question.

    ```
    while (question := bisection.next_question()) is not None:
        bisection.receive(...the other end's answer...)
    ```

    `moved` becomes true when the other end has taken entries meanwhile: begin again at a quieter moment. `complete`
    says that everything was found; it is false when there were more than `DIFFERENCES_MAX` differences, or when the
    answers contradicted themselves until the rounds were used up.
    """

    def __init__(self, on_hand: Iterable[tuple[Cell, int]], position: int) -> None:
        self.moved = False
        self.rounds = 0
        self._held, self._position = _Buckets(on_hand), as_text(position)
        # Never a prefix together with the beginning of it, so no cell is found twice.
        self._pending = [""]
        self._asked: DigestQuestion | None = None
        self._found: list[tuple[Cell, int, int]] = []

    @property
    def complete(self) -> bool:
        """Whether `differences` are all there are."""
        return not (self.moved or self._pending or self._asked or len(self._found) > DIFFERENCES_MAX)

    @property
    def differences(self) -> list[tuple[Cell, int, int]]:
        """The cells that differ with what we hold and what they hold, sorted; at most `DIFFERENCES_MAX`."""
        return sorted(self._found)[:DIFFERENCES_MAX]

    def next_question(self) -> DigestQuestion | None:
        """What to ask, the same again until it is answered; None when there is nothing more to ask."""
        if self._asked is None and not self._is_over():
            # The deepest first: what is waiting stays short, and the first differences are known early.
            chosen, self._pending = self._pending[-PREFIXES_MAX:], self._pending[:-PREFIXES_MAX]
            self._asked = DigestQuestion(prefixes=tuple(chosen))
            self.rounds += 1
        return self._asked

    def receive(self, answer: DigestAnswer) -> None:
        """Take an answer. What was asked and is not answered in it, or not credibly, is asked again."""
        asked, self._asked = self._asked, None
        if asked is None:
            return
        if answer.position != self._position:
            self.moved = True
            return
        theirs = _Buckets((Cell(location, sku, lot), quantity) for location, sku, lot, quantity in answer.cells)
        for prefix in asked.prefixes:
            if not (self._settle(prefix, answer, theirs) or self._descend(prefix, answer)):
                self._pending.append(prefix)

    def _is_over(self) -> bool:
        return self.moved or not self._pending or self.rounds >= ROUNDS_MAX or len(self._found) > DIFFERENCES_MAX

    def _settle(self, prefix: str, answer: DigestAnswer, theirs: _Buckets) -> bool:
        """Compare the cells of a bucket; only when those listed are the ones its digest speaks of."""
        if answer.buckets.get(prefix) != theirs.bucket(prefix).as_parts():
            return False
        self._found += differences(self._held.cells(prefix), theirs.cells(prefix))
        return True

    def _descend(self, prefix: str, answer: DigestAnswer) -> bool:
        """Look at the children of a bucket: those that differ are asked next, those they do not have are known."""
        children = [prefix + digit for digit in FAN_OUT]
        if not any(child in answer.buckets for child in children):
            return False
        for child in children:
            if child not in answer.buckets:
                self._found += ((cell, quantity, 0) for cell, quantity in self._held.cells(child))
            elif answer.buckets[child] != self._held.bucket(child).as_parts():
                self._pending.append(child)
        return True
