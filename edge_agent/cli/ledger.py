"""`stocktide edge ledger`: check, rebuild and export."""

import contextlib
import csv
import json
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from command_line.output import FAILED, ErrorGroup, emit_json, facts
from edge_agent.cli.options import Json, LedgerPath

ledger_app = typer.Typer(cls=ErrorGroup, no_args_is_help=True, help="Check, rebuild and export the ledger.")

EXPORT_COLUMNS = (
    "seq",
    "kind",
    "sku",
    "lot",
    "serial",
    "quantity",
    "source",
    "destination",
    "location",
    "device",
    "event",
    "device_at_ms",
    "actor",
    "reference",
    "hlc",
    "boot",
    "mono_ms",
    "late_ms",
    "time_doubt",
)


@ledger_app.command()
def verify(ledger: LedgerPath, json_: Json = False) -> None:
    """Check every entry, frame and balance against each other. Exit code 1 when something differs."""
    from edge_agent.ledger import audit, database, queries

    with contextlib.closing(database.open_reader(ledger)) as connection:
        status = queries.status(connection, ledger)
        entries = status["entries"] + sum(log["entries"] for log in status["site_logs"])
        with typer.progressbar(length=entries, label="Verifying", file=sys.stderr, hidden=json_) as bar:
            found = audit.verify(connection, bar.update)
    if json_:
        emit_json(
            {
                "whole": not found.findings,
                "entries": found.entries,
                "frames": found.frames,
                "cells": found.cells,
                "findings": found.findings,
            }
        )
    else:
        facts([("entries", found.entries), ("frames kept", found.frames), ("balances", found.cells)])
        typer.echo("\nThe ledger is whole." if not found.findings else "")
        for finding in found.findings:
            typer.echo(f"differs: {finding}")
    if found.findings:
        if not json_:
            typer.echo("\nhint: differing balances, history or event ids: stocktide edge ledger rebuild", err=True)
        raise typer.Exit(FAILED)


@ledger_app.command()
def rebuild(ledger: LedgerPath, json_: Json = False) -> None:
    """Derive balances and history again from the entries."""
    from edge_agent.ledger import audit
    from edge_agent.ledger.clock import SystemClock
    from edge_agent.ledger.ledger import Ledger

    with Ledger.open(ledger, SystemClock()) as opened:
        entries = opened.tail().seq
        with typer.progressbar(length=entries, label="Rebuilding", file=sys.stderr, hidden=json_) as bar:
            done = audit.rebuild(opened, bar.update)
    emit_json({"entries": done}) if json_ else typer.echo(f"Derived again from {done} entries.")


@ledger_app.command()
def export(
    ledger: LedgerPath,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="File to write; else standard output.")] = None,
    format_: Annotated[Literal["jsonl", "csv"], typer.Option("--format", help="jsonl or csv.")] = "jsonl",
    after: Annotated[int, typer.Option("--after", min=0, help="Only entries after this number.")] = 0,
    json_: Json = False,
) -> None:
    """Every entry as it was recorded, oldest first."""
    from edge_agent.errors import BadInput
    from edge_agent.ledger import database, queries

    with contextlib.ExitStack() as stack:
        connection = stack.enter_context(contextlib.closing(database.open_reader(ledger)))
        try:
            sink = stack.enter_context(out.open("x", encoding="utf-8", newline="")) if out else sys.stdout
        except OSError as error:
            raise BadInput(f"{out} cannot be written: {error.strerror}.", hint="Name a new file with --out.") from None
        rows = queries.export(connection, after)
        if format_ == "csv" and not json_:
            writer = csv.DictWriter(sink, EXPORT_COLUMNS, restval="", lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        else:
            for row in rows:
                sink.write(json.dumps(row, ensure_ascii=False) + "\n")
