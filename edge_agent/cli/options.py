"""Options that many edge commands share."""

from pathlib import Path
from typing import Annotated

import typer

from edge_agent.paths import default_ledger

LedgerPath = Annotated[
    Path,
    typer.Option(
        "--ledger",
        envvar="STOCKTIDE_EDGE_LEDGER",
        default_factory=default_ledger,
        show_default=False,
        help="Ledger file.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Limit = Annotated[int, typer.Option("--limit", "-n", min=1, max=1_000_000, help="Rows at most.")]
SkuFilter = Annotated[str | None, typer.Argument(metavar="[SKU]", help="Only this SKU.")]
LocationFilter = Annotated[str | None, typer.Option("--location", "-l", help="Only this location.")]
SkuOption = Annotated[str | None, typer.Option("--sku", hidden=True, help="As the argument: the cloud had it so.")]
