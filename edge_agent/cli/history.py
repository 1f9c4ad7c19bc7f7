"""`stocktide edge history|readings`: what happened, narrowed by goods, place, time, device and person."""

import re
from datetime import UTC, datetime, timedelta
from typing import Annotated, Final

import typer

from command_line.output import emit_json, local_time, short_time, table
from command_line.streams import say
from edge_agent.cli.errors import shows
from edge_agent.cli.options import Json, LedgerPath, Limit, LocationFilter, SkuFilter, SkuOption
from edge_agent.errors import BadInput

_AGO: Final = re.compile(r"(\d{1,4})\s*([mhd])")
_UNITS: Final = {"m": "minutes", "h": "hours", "d": "days"}


def time_ms(written: str | None, now: datetime | None = None) -> int | None:
    """A time as a person writes it, in Unix milliseconds; without a zone it is this machine's.

    Raises:
        BadInput: it is no time.
    """
    if written is None:
        return None
    now = now or datetime.now(UTC).astimezone()
    text = written.strip()
    if ago := _AGO.fullmatch(text):
        return int((now - timedelta(**{_UNITS[ago[2]]: int(ago[1])})).timestamp() * 1000)
    try:
        if re.fullmatch(r"\d{1,2}:\d{2}(:\d{2})?", text):
            text = f"{now:%Y-%m-%d} {text:0>5}"
        return int(datetime.fromisoformat(text).timestamp() * 1000)  # without a zone: this machine's, as it was then
    except (ValueError, OverflowError, OSError):
        hint = "For example 14:30, 2026-11-28, '2026-11-28 14:30', 2h or 3d ago, 2026-11-28T14:30+01:00."
        raise BadInput(f"{written[:40]!a} is no time.", hint=hint) from None


@shows
def history(
    ledger: LedgerPath,
    sku: SkuFilter = None,
    sku_option: SkuOption = None,
    location: LocationFilter = None,
    since: Annotated[str | None, typer.Option(metavar="TIME", help="From this time on.")] = None,
    until: Annotated[str | None, typer.Option(metavar="TIME", help="Before this time.")] = None,
    device: Annotated[str | None, typer.Option("--device", "-d", help="Only of this device.")] = None,
    by: Annotated[str | None, typer.Option("--by", help="Only of this person.")] = None,
    limit: Limit = 30,
    json_: Json = False,
) -> None:
    """Movements and counts, newest first.

    TIME is 14:30 for today, 2026-11-28, '2026-11-28 14:30', 3d, 2h or 30m for ago, or ISO 8601 with a zone; without one
    it is this gateway's.
    """
    from edge_agent.ledger import database, queries

    wanted = queries.HistoryFilter(
        sku or sku_option, location, device=device, actor=by, since_ms=time_ms(since), until_ms=time_ms(until)
    )
    with database.reading(ledger) as connection:
        rows = queries.history(connection, wanted, rows_max=limit)
        here = queries.gateway(connection)
    if json_:
        emit_json([queries.as_json(row) for row in rows])
        return
    if not rows:
        say("Nothing has happened there yet.")
        return
    table(
        [
            "entry",
            "time",
            "what",
            "quantity",
            "SKU",
            "lot",
            "serial",
            "where",
            "by",
            "ref",
            "gateway",
            "cloud",
            "delivered",
        ],
        [
            [
                row.seq,
                short_time(row.at_ms),
                row.kind,
                row.quantity if row.variance is None else f"{row.quantity} ({row.variance:+d})",
                row.sku,
                row.lot,
                row.serial,
                row.destination if row.source is None else f"{row.source} → {row.destination}",
                row.actor or row.device,
                row.reference,
                "" if row.gateway == here else row.gateway,
                row.verdict or ("" if row.in_cloud else "waits"),
                row.delivered(),
            ]
            for row in rows
        ],
        numbers=["entry", "quantity"],
        whole=["time", "what"],
        optional=["lot", "serial", "by", "ref", "gateway", "cloud", "delivered"],
    )


@shows
def readings(
    ledger: LedgerPath,
    device: Annotated[str | None, typer.Argument(metavar="[DEVICE]", help="Only this device.")] = None,
    limit: Limit = 30,
    json_: Json = False,
) -> None:
    """Sensor readings, newest first."""
    from edge_agent.ledger import database, queries

    with database.reading(ledger) as connection:
        rows = queries.readings(connection, device=device, rows_max=limit)
    if json_:
        emit_json([queries.as_json(row) for row in rows])
        return
    if not rows:
        say("No readings.")
        return
    table(
        ["time", "device", "metric", "value"],
        [[local_time(row.at_ms), row.device, row.metric, f"{row.value:g}"] for row in rows],
        numbers=["value"],
    )
