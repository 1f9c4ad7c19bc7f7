"""`stocktide edge receive|pick|move|ship|arrive|scrap|count|undo`: what a technician books, agent or no agent."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from command_line.output import emit_json
from command_line.streams import say, writes
from edge_agent.cli.options import Json, LedgerPath

if TYPE_CHECKING:
    from edge_agent.desk.booking import Booked
    from wire_protocol.entries import EntryKind

Sku = Annotated[str, typer.Argument(help="What.")]
Quantity = Annotated[int, typer.Argument(min=0, help="How many base units.")]
Lot = Annotated[str | None, typer.Option("--lot", help="Lot or batch.")]
Serial = Annotated[str | None, typer.Option("--serial", help="Serial number.")]
Untracked = Annotated[
    bool, typer.Option("--untracked", help="Also without the lot or serial that the catalogue wants.")
]
Reference = Annotated[str | None, typer.Option("--ref", help="Order, delivery note, …")]
Actor = Annotated[str | None, typer.Option("--by", envvar="STOCKTIDE_ACTOR", help="Who.")]
From = Annotated[str, typer.Argument(metavar="FROM", help="Taken from this location.")]
To = Annotated[str, typer.Argument(metavar="TO", help="Put at this location.")]
Site = Annotated[str, typer.Argument(metavar="SITE", help="The receiving site.")]


def _book(
    path: Path, kind: "EntryKind", sku: str, quantity: int, *, json_: bool, untracked: bool, **fields: str | None
) -> None:
    """Append a technician's own entry and show what it did."""
    from edge_agent.desk.booking import book

    _show(book(path, kind, sku, quantity, untracked=untracked, **fields), json_=json_)


def _show(booked: "Booked", *, json_: bool) -> None:
    if json_:
        emit_json(booked.as_json())
        return
    say(booked.sentence())
    for warning in booked.warnings():
        say(f"note: {warning}", err=True)


@writes
def receive(
    ledger: LedgerPath,
    sku: Sku,
    quantity: Quantity,
    to: To,
    customer: Annotated[bool, typer.Option("--return", help="A customer's return, not a delivery.")] = False,
    lot: Lot = None,
    serial: Serial = None,
    ref: Reference = None,
    by: Actor = None,
    untracked: Untracked = False,
    json_: Json = False,
) -> None:
    """Goods have come in."""
    _book(
        ledger,
        "receive",
        sku,
        quantity,
        source="@customer" if customer else None,
        destination=to,
        lot=lot,
        serial=serial,
        reference=ref,
        actor=by,
        untracked=untracked,
        json_=json_,
    )


@writes
def pick(
    ledger: LedgerPath,
    sku: Sku,
    quantity: Quantity,
    source: From,
    lot: Lot = None,
    serial: Serial = None,
    ref: Reference = None,
    by: Actor = None,
    untracked: Untracked = False,
    json_: Json = False,
) -> None:
    """Goods have gone to a customer."""
    _book(
        ledger,
        "pick",
        sku,
        quantity,
        source=source,
        lot=lot,
        serial=serial,
        reference=ref,
        actor=by,
        untracked=untracked,
        json_=json_,
    )


@writes
def move(
    ledger: LedgerPath,
    sku: Sku,
    quantity: Quantity,
    source: From,
    to: To,
    lot: Lot = None,
    serial: Serial = None,
    ref: Reference = None,
    by: Actor = None,
    untracked: Untracked = False,
    json_: Json = False,
) -> None:
    """Goods have moved from one location to another."""
    _book(
        ledger,
        "move",
        sku,
        quantity,
        source=source,
        destination=to,
        lot=lot,
        serial=serial,
        reference=ref,
        actor=by,
        untracked=untracked,
        json_=json_,
    )


@writes
def ship(
    ledger: LedgerPath,
    sku: Sku,
    quantity: Quantity,
    source: From,
    site: Site,
    lot: Lot = None,
    serial: Serial = None,
    ref: Reference = None,
    by: Actor = None,
    untracked: Untracked = False,
    json_: Json = False,
) -> None:
    """Goods are on their way to another site."""
    from wire_protocol.names import transit

    _book(
        ledger,
        "ship",
        sku,
        quantity,
        source=source,
        destination=transit(site),
        lot=lot,
        serial=serial,
        reference=ref,
        actor=by,
        untracked=untracked,
        json_=json_,
    )


@writes
def arrive(
    ledger: LedgerPath,
    sku: Sku,
    quantity: Quantity,
    to: To,
    site: Annotated[str, typer.Option("--site", help="This site, as the sender named it.")],
    lot: Lot = None,
    serial: Serial = None,
    ref: Reference = None,
    by: Actor = None,
    untracked: Untracked = False,
    json_: Json = False,
) -> None:
    """Goods from another site have come in."""
    from wire_protocol.names import transit

    _book(
        ledger,
        "arrive",
        sku,
        quantity,
        source=transit(site),
        destination=to,
        lot=lot,
        serial=serial,
        reference=ref,
        actor=by,
        untracked=untracked,
        json_=json_,
    )


@writes
def scrap(
    ledger: LedgerPath,
    sku: Sku,
    quantity: Quantity,
    source: From,
    lot: Lot = None,
    serial: Serial = None,
    ref: Reference = None,
    by: Actor = None,
    untracked: Untracked = False,
    json_: Json = False,
) -> None:
    """Goods are spoilt, broken or lost."""
    _book(
        ledger,
        "scrap",
        sku,
        quantity,
        source=source,
        lot=lot,
        serial=serial,
        reference=ref,
        actor=by,
        untracked=untracked,
        json_=json_,
    )


@writes
def count(
    ledger: LedgerPath,
    sku: Sku,
    quantity: Quantity,
    location: Annotated[str, typer.Argument(metavar="LOCATION", help="Where it was counted.")],
    lot: Lot = None,
    ref: Reference = None,
    by: Actor = None,
    untracked: Untracked = False,
    json_: Json = False,
) -> None:
    """Set the quantity that was counted: absolute, and true from now on."""
    _book(
        ledger,
        "count",
        sku,
        quantity,
        location=location,
        lot=lot,
        reference=ref,
        actor=by,
        untracked=untracked,
        json_=json_,
    )


@writes
def undo(
    ledger: LedgerPath,
    entry: Annotated[
        int | None, typer.Argument(metavar="[ENTRY]", min=1, help="The entry's number, else your last booking by hand.")
    ] = None,
    by: Actor = None,
    json_: Json = False,
) -> None:
    """Take a booking back: a new entry moves the goods the other way and names the first. Counts are counted again."""
    from edge_agent.desk.undo import undo as take_back

    done = take_back(ledger, entry, actor=by)
    if json_:
        emit_json(done.as_json())
        return
    what = done.entry
    goods = f"{what['quantity']} × {what['sku']}  {what['source']} → {what['destination']}"
    say(f"took back entry {done.seq}: {what['kind']} {goods}")
    _show(done.by, json_=False)
