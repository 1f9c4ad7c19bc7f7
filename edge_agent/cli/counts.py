"""`stocktide edge import-counts`: opening stock and counts from a table."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from command_line.output import emit_json, table
from command_line.streams import patient, say, writes
from edge_agent.cli.booking import Actor, Untracked
from edge_agent.cli.options import Json, LedgerPath, Limit

if TYPE_CHECKING:
    from edge_agent.desk.opening import Change, Opening


@writes
def import_counts(
    ledger: LedgerPath,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="CSV: location, sku, quantity; if need be lot, serial.")],
    book: Annotated[
        bool, typer.Option("--book", help="Book it; without this it only shows what would change.")
    ] = False,
    again: Annotated[bool, typer.Option("--again", help="Although this table was imported before.")] = False,
    by: Actor = None,
    untracked: Untracked = False,
    limit: Limit = 50,
    json_: Json = False,
) -> None:
    """Count many shelves from a table, all or none: first it shows what would change, then --book books it."""
    from edge_agent.desk import opening
    from edge_agent.ledger import database

    if not book:
        with database.reading(ledger) as connection, database.snapshot(connection):
            seen = opening.look(connection, file, untracked=untracked)
    else:
        with typer.progressbar(length=1, label="Booking", file=patient(), hidden=json_) as bar:

            def progress(entries: int) -> None:
                bar.length = (bar.length or 0) + entries
                bar.update(entries)

            seen = opening.book(ledger, file, actor=by, again=again, untracked=untracked, progress=progress)
    if json_:
        emit_json(_document(seen, booked=book))
        return
    changed = [change for change in seen.changes if change.counted != change.on_hand or change.serials]
    if not book:
        _tell(changed, limit)
    for slip in seen.slips:
        say(f"note: {slip}", err=True)
    say(f"{len(seen.lines)} rows, {len(seen.changes)} shelves of items, {len(changed)} of them change.")
    if book:
        say(f"Booked in {seen.entries} entries with the reference {seen.reference}.")
    elif seen.imported_ms is not None:
        from command_line.output import local_time

        say(f"Nothing is booked. It was imported on {local_time(seen.imported_ms)}; --again would undo bookings.")
    else:
        say("Nothing is booked yet. To book it, run the same command with --book.")


def _tell(changed: "list[Change]", limit: int) -> None:
    if changed:
        table(
            ["SKU", "location", "lot", "now", "counted", "change", "new serials"],
            [
                [
                    change.cell.sku,
                    change.cell.location,
                    change.cell.lot,
                    change.on_hand,
                    change.counted,
                    f"{change.counted - change.on_hand:+d}",
                    change.serials or None,
                ]
                for change in changed[:limit]
            ],
            numbers=["now", "counted", "change", "new serials"],
            optional=["lot", "new serials"],
        )
        if len(changed) > limit:
            say(f"and {len(changed) - limit} more; see them with --limit")
        say()


def _document(seen: "Opening", *, booked: bool) -> dict[str, object]:
    return {
        "booked": booked,
        "reference": seen.reference,
        "rows": len(seen.lines),
        "entries": seen.entries,
        "imported_ms": seen.imported_ms,
        "changes": [
            {
                **change.cell._asdict(),
                "on_hand": change.on_hand,
                "counted": change.counted,
                "new_serials": change.serials,
            }
            for change in seen.changes
        ],
        "notes": list(seen.slips),
    }
