"""`stocktide edge find|low|tracking`: goods by what a person has, what is to be ordered, what lacks a lot or serial."""

from typing import TYPE_CHECKING, Annotated

import typer

from command_line.output import FAILED, emit_json, facts, table
from command_line.streams import say
from edge_agent.cli.errors import shows
from edge_agent.cli.options import Json, LedgerPath, Limit

if TYPE_CHECKING:
    from edge_agent.desk.tracking import Report


@shows
def find(
    ledger: LedgerPath,
    text: Annotated[str, typer.Argument(metavar="TEXT", help="Part of a SKU, name, lot or serial, or a GTIN.")],
    limit: Limit = 50,
    json_: Json = False,
) -> None:
    """Find goods by a part of SKU, name, lot or serial, or by GTIN. Exit code 1 when there is nothing."""
    from dataclasses import asdict

    from edge_agent.desk import search
    from edge_agent.errors import BadInput
    from edge_agent.ledger import database, stock_digest
    from wire_protocol.quantities import shown

    if not text.strip():
        raise BadInput("There is nothing to look for.", hint="For everything: stocktide edge stock")
    with database.reading(ledger) as connection, database.snapshot(connection):
        stock_digest.require_intact(connection)
        found = search.find(connection, text, rows_max=limit)
    if json_:
        emit_json([asdict(each) for each in found])
    elif found:
        table(
            ["SKU", "name", "location", "lot", "serial", "on hand", "unit", "found by"],
            [
                [
                    each.sku,
                    each.name,
                    each.location or "none here",
                    each.lot,
                    each.serial,
                    shown(each.on_hand, each.scale),
                    each.unit,
                    each.by,
                ]
                for each in found
            ],
            numbers=["on hand"],
            optional=["name", "lot", "serial", "unit"],
        )
        if len(found) == limit:
            say(f"\nThe first {limit} rows; more with --limit.", err=True)
    else:
        say(f"Nothing here has {text} in its SKU, name, GTIN, lot or serial.")
    if not found:
        raise typer.Exit(FAILED)


@shows
def low(ledger: LedgerPath, limit: Limit = 1_000, json_: Json = False) -> None:
    """Items of which this site has no more than the catalogue's reorder point."""
    from dataclasses import asdict

    from edge_agent.desk import search
    from edge_agent.ledger import database, stock_digest
    from wire_protocol.quantities import shown

    with database.reading(ledger) as connection, database.snapshot(connection):
        stock_digest.require_intact(connection)
        rows = search.low(connection, rows_max=limit)
    if json_:
        emit_json([asdict(row) for row in rows])
    elif rows:
        table(
            ["SKU", "name", "on hand", "reorder at", "unit"],
            [
                [row.sku, row.name, shown(row.on_hand, row.scale), shown(row.reorder_point, row.scale), row.unit]
                for row in rows
            ],
            numbers=["on hand", "reorder at"],
            optional=["name"],
        )
    else:
        say("Nothing is low, of what the catalogue has a reorder point for.")


@shows
def tracking(ledger: LedgerPath, limit: Limit = 50, json_: Json = False) -> None:
    """What lacks the lot or serial that its item is tracked by, and serials that cannot be. Exit code 1 when any."""
    from edge_agent.desk import tracking as desk
    from edge_agent.ledger import database, stock_digest

    with database.reading(ledger) as connection, database.snapshot(connection):
        stock_digest.require_intact(connection)
        found = desk.report(connection)
    if json_:
        emit_json(found.as_json())
    else:
        _tell(found, limit)
    if found.unnamed or found.serials:
        raise typer.Exit(FAILED)


def _tell(found: "Report", limit: int) -> None:
    if found.unnamed:
        table(
            ["SKU", "location", "tracked by", "on hand", "with one"],
            [[each.sku, each.location, each.tracked_by, each.on_hand, each.named] for each in found.unnamed[:limit]],
            numbers=["on hand", "with one"],
        )
        say("\nTo name a lot: count the shelf with --lot, and the rest of it to 0 with --untracked.")
    if found.serials:
        if found.unnamed:
            say()
        table(
            ["SKU", "serial", "at", "what is wrong"],
            [
                [each.sku, each.serial, ", ".join(f"{place}: {n}" for place, n in each.places.items()), each.problem]
                for each in found.serials[:limit]
            ],
        )
        say("\nSee what was booked: stocktide edge history SKU")
    if not (found.unnamed or found.serials):
        say("All that is tracked by lot or serial number has one, and each serial is at one place.")
    facts(
        [
            ("lots or serials missing", len(found.unnamed) or None),
            ("serials that cannot be", len(found.serials) or None),
        ]
    )
    if found.expiry_tracked:
        say(f"\nnote: {found.expiry_tracked} item(s) are tracked by expiry; entries have no date: put it into the lot.")
