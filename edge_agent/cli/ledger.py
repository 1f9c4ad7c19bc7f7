"""`stocktide edge ledger`: check, rebuild and export."""

import contextlib
import csv
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from command_line.output import FAILED, emit_json, facts
from command_line.streams import patient, pouring, say, writes
from edge_agent.cli.errors import EdgeGroup, shows
from edge_agent.cli.options import Json, LedgerPath

if TYPE_CHECKING:
    from edge_agent.ledger.audit import Audit

ledger_app = typer.Typer(cls=EdgeGroup, no_args_is_help=True, help="Check, rebuild and export the ledger.")

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
@shows
def verify(ledger: LedgerPath, json_: Json = False) -> None:
    """Check every entry, frame and balance against each other. Exit code 1 when something differs."""
    from edge_agent.ledger import audit, database, queries

    with database.reading(ledger) as connection:
        status = queries.status(connection, ledger)
        entries = status["entries"] + sum(log["entries"] for log in status["site_logs"])
        with typer.progressbar(length=entries, label="Verifying", file=patient(), hidden=json_) as bar:
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
        say("\nThe ledger is whole." if not found.findings else "")
        for finding in found.findings:
            say(f"differs: {finding}")
    if found.findings:
        if not json_:
            say(f"\nhint: {_way_out(found)}", err=True)
        raise typer.Exit(FAILED)


def _way_out(found: "Audit") -> str:
    from edge_agent.errors import LedgerCorrupt

    if found.derived_only:
        return "What happened is intact; derive the rest again: stocktide edge ledger rebuild"
    return f"This is more than a rebuild can mend. {LedgerCorrupt.hint}"


@ledger_app.command()
@writes
def migrate(ledger: LedgerPath, json_: Json = False) -> None:
    """Bring the ledger of an older version up to date; it can be interrupted and run again. Whatever writes does it."""
    from edge_agent.ledger import database

    def progress(version: int) -> None:
        if made[-1] != version:
            made.append(version)
            say(f"Schema {version} …", err=True)

    made = [0]
    with contextlib.closing(database.open_writer(ledger, progress)) as connection:
        now = database.version(connection)
    if json_:
        emit_json({"schema": now, "migrations": len(made) - 1})
    else:
        say(f"The ledger has schema {now}." if made[1:] else f"The ledger has schema {now} already.")


@writes
def backup(
    ledger: LedgerPath,
    file: Annotated[Path | None, typer.Argument(metavar="[FILE]", help="New file; else beside the ledger.")] = None,
    json_: Json = False,
) -> None:
    """Copy the ledger while the agent runs: whole, checked, and without the gateway's key."""
    from datetime import UTC, datetime

    from edge_agent.upkeep import backup as backups

    file = file or ledger.with_name(f"{ledger.stem}-{datetime.now(UTC):%Y%m%dT%H%M%SZ}.backup")
    with typer.progressbar(length=1, label="Copying", file=patient(), hidden=json_) as bar:

        def progress(done: int, of: int) -> None:
            bar.length = max(1, of)
            bar.update(done - bar.pos)

        made = backups.backup(ledger, file, progress)
    if json_:
        emit_json(made._asdict())
        return
    facts(
        [
            ("file", f"{made.file} ({made.size_bytes / 1e6:.1f} MB)"),
            ("gateway", made.gateway),
            ("epoch", made.epoch),
            ("entries", made.entries),
        ]
    )
    say(f"\nKeep it on another disk. To use it: stop the agent, move {ledger.name} away with its -wal, copy it there.")


@ledger_app.command()
@writes
def rebuild(ledger: LedgerPath, json_: Json = False) -> None:
    """Derive balances and history again from the entries."""
    from edge_agent.ledger import audit, database
    from edge_agent.ledger.clock import SystemClock
    from edge_agent.ledger.ledger import Ledger

    with database.in_our_words(), Ledger.open(ledger, SystemClock()) as opened:
        entries = opened.tail().seq
        with typer.progressbar(length=entries, label="Rebuilding", file=patient(), hidden=json_) as bar:
            done = audit.rebuild(opened, bar.update)
    emit_json({"entries": done}) if json_ else say(f"Derived again from {done} entries.")


@ledger_app.command()
@shows
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
        connection = stack.enter_context(database.reading(ledger))
        try:
            sink = stack.enter_context(out.open("x", encoding="utf-8", newline="")) if out else sys.stdout
        except OSError as error:
            raise BadInput(f"{out} cannot be written: {error.strerror}.", hint="Name a new file with --out.") from None
        if not out:
            stack.enter_context(pouring())
        rows = queries.export(connection, after)
        if format_ == "csv" and not json_:
            writer = csv.DictWriter(sink, EXPORT_COLUMNS, restval="", lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        else:
            for row in rows:
                sink.write(json.dumps(row, ensure_ascii=False) + "\n")
