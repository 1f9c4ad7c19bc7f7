"""What the demo shows: steps as they are done, a calm live table, the proof. On a pipe, a table every few seconds."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from stocktide.demo.proof import Proof

PIPED_INTERVAL_S: Final = 8.0
PIPED_WIDTH_CHARS: Final = 120


@dataclass(frozen=True, slots=True)
class SiteRow:
    """One site in the live table."""

    site: str
    sent: int
    receipts: int
    ledger: int
    waiting: int
    frames: int
    cloud: int
    lag_s: float
    uplink: str


@dataclass(frozen=True, slots=True)
class Picture:
    """Everything the live table shows at one moment."""

    headline: str
    sites: Sequence[SiteRow]
    on_hand: Sequence[tuple[str, str, int]]
    """(site, SKU, on hand in the cloud) of a few SKUs that move a lot."""


def _console() -> Console:
    console = Console(markup=False, highlight=False, emoji=False)
    return console if console.is_terminal else Console(markup=False, highlight=False, width=PIPED_WIDTH_CHARS)


@dataclass(slots=True)
class Screen:
    """The demo's voice."""

    console: Console = field(default_factory=_console)
    _live: Live | None = None
    _shown_at: float = 0.0
    _headline: str = ""

    def say(self, text: str = "") -> None:
        """A line."""
        self.console.print(text)

    @contextmanager
    def step(self, title: str) -> Iterator[None]:
        """A step: its title, and how long it took."""
        began = time.monotonic()
        yield
        self.console.print(f"  ✓ {title:<66} {time.monotonic() - began:>5.1f} s")

    @contextmanager
    def live(self) -> Iterator[None]:
        """Inside, `show` updates one place on a terminal."""
        if not self.console.is_terminal:
            yield
            return
        with Live(console=self.console, refresh_per_second=4) as self._live:
            yield
        self._live = None

    def show(self, picture: Picture, *, last: bool = False) -> None:
        """Show the state of things."""
        if self._live is not None:
            self._live.update(_drawn(picture))
        elif last or picture.headline != self._headline or time.monotonic() - self._shown_at >= PIPED_INTERVAL_S:
            self._shown_at, self._headline = time.monotonic(), picture.headline
            self.console.print(_drawn(picture))

    def prove(self, proof: Proof) -> None:
        """Show the proof, and what differs if anything does."""
        self.console.print(_proof_table(proof))
        for row in proof.sites:
            for problem in row.problems:
                self.console.print(f"  differs at {row.site.name}: {problem}")
        for problem in proof.problems:
            self.console.print(f"  differs: {problem}")


def _grid(*columns: str) -> Table:
    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="bold", collapse_padding=True)
    for number, column in enumerate(columns):
        grid.add_column(column, justify="right" if number else "left", no_wrap=True)
    return grid


def _drawn(picture: Picture) -> Group:
    grid = _grid("site", "sent", "receipts", "ledger", "frames", "in cloud", "waiting", "lag", "uplink")
    for row in picture.sites:
        grid.add_row(
            row.site,
            f"{row.sent:,}",
            f"{row.receipts:,}",
            f"{row.ledger:,}",
            f"{row.frames:,}",
            f"{row.cloud:,}",
            f"{row.waiting:,}",
            f"{row.lag_s:.1f} s",
            Text(row.uplink, style="" if row.uplink == "up" else "bold red"),
        )
    parts: list[Table | Text] = [Text(f"\n{picture.headline}\n", style="bold"), grid]
    if picture.on_hand:
        stock = "   ".join(f"{site}/{sku} {on_hand:,}" for site, sku, on_hand in picture.on_hand)
        parts.append(Text(f"\non hand, from the API:  {stock}"))
    return Group(*parts)


def _proof_table(proof: Proof) -> Group:
    grid = _grid("tenant/site", "events", "ledger", "cloud", "distinct", "readings", "cloud", "balances", "equal")
    for row in proof.sites:
        grid.add_row(
            f"{row.site.tenant}/{row.site.name}",
            f"{row.events_sent:,}",
            f"{row.ledger_entries:,}",
            f"{row.cloud_entries:,}",
            f"{row.cloud_distinct:,}",
            f"{row.readings_sent:,}",
            f"{row.cloud_readings:,}",
            f"{row.cells:,}",
            "no" if row.problems else "yes",
        )
    double_entry = "holds: every SKU sums to zero over all locations" if not proof.problems else "does not hold"
    return Group(grid, Text(f"\ndouble entry {double_entry}"))
