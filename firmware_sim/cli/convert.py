"""`stocktide sim convert`: published data sets into recordings."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from command_line.output import ErrorGroup, emit_json, table
from firmware_sim.cli.options import Json
from firmware_sim.cli.output import number

if TYPE_CHECKING:
    from firmware_sim.recordings.convert.complete_journey import CompleteJourney
    from firmware_sim.recordings.convert.online_retail import OnlineRetail

convert_app = typer.Typer(
    cls=ErrorGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Turn published data sets into recordings.",
)
Files = Annotated[list[Path], typer.Argument(metavar="FILES…", help="CSV or CSV.gz, in the order to convert them.")]
Out = Annotated[Path, typer.Option("--out", "-o", help="The recording to write, .csv or .csv.gz.")]
Tills = Annotated[int, typer.Option("--tills", min=1, max=1_000, help="Tills of each site.")]


@convert_app.command("online-retail")
def online_retail(files: Files, out: Out, tills: Tills = 4, json_: Json = False) -> None:
    """UCI Online Retail: countries are sites, invoices are spread over tills."""
    from firmware_sim.recordings.convert.online_retail import OnlineRetail

    _convert(files, out, OnlineRetail(tills), as_json=json_)


@convert_app.command("complete-journey")
def complete_journey(files: Files, out: Out, tills: Tills = 4, json_: Json = False) -> None:
    """completejourney: stores are sites, baskets are spread over tills."""
    from firmware_sim.recordings.convert.complete_journey import CompleteJourney

    _convert(files, out, CompleteJourney(tills), as_json=json_)


def _convert(files: list[Path], out: Path, make: "OnlineRetail | CompleteJourney", *, as_json: bool) -> None:
    from firmware_sim.recordings.convert.writer import convert

    done = convert(files, out, make.columns, make)
    if as_json:
        emit_json({"out": str(out), "rows": done.rows, "sites": dict(done.sites), "left_out": dict(done.left_out)})
        return
    table(("site", "rows"), done.sites.most_common(), numbers=("rows",))
    typer.echo(f"\n{done.rows} rows written to {out}")
    for reason, rows in done.left_out.most_common():
        first = next(f"{file} line {bad.line}" for file, bad in done.first_left_out if bad.reason == reason)
        typer.echo(f"{number(rows, 'row')} left out: {reason} (first: {first})")
