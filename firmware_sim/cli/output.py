"""How a run of the simulator is reported, to people and to machines."""

from typing import TYPE_CHECKING, Any, Final

import typer

from command_line.output import FAILED, emit_json, table
from wire_protocol.reasons import RefusalCode

if TYPE_CHECKING:
    from firmware_sim.fleet.fleet import Report

COLUMNS: Final = ("gateway", "device", "events", "readings", "receipts", "refused", "resent", "waiting")


def number(count: int, what: str) -> str:
    """`1 site`, `2 sites`."""
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def emit_report(report: "Report", *, as_json: bool, extra: dict[str, Any] | None = None) -> None:
    """How a run ended; exits with 1 when something has no receipt."""
    if as_json:
        emit_json(_report_json(report) | (extra or {}))
    else:
        _print_report(report)
    if not report.is_complete:
        raise typer.Exit(FAILED)


def _report_json(report: "Report") -> dict[str, Any]:
    shot = report.snapshot
    return {
        "complete": report.is_complete,
        "seconds": round(report.seconds, 3),
        "events": shot.events,
        "readings": shot.readings,
        "receipts": shot.receipts,
        "refused": shot.refused,
        "resent": shot.resent,
        "digest": shot.digest,
        "devices": [{name: getattr(device, name) for name in _FIELDS} for device in shot.devices],
        "missing": [
            {
                "gateway": item.gateway,
                "device": item.device,
                "events": item.events,
                "ids": item.ids,
                "problem": item.problem,
            }
            for item in report.missing
        ],
    }


_FIELDS: Final = (*COLUMNS, "sent", "repeated", "readings_dropped", "memory_full", "reboots", "refusal", "problem")


def _print_report(report: "Report") -> None:
    shot = report.snapshot
    rows = [[getattr(device, name) for name in COLUMNS] for device in shot.devices]
    table(COLUMNS, rows, numbers=COLUMNS[2:])
    what = f"{number(shot.events, 'event')} and {number(shot.readings, 'reading')} in {report.seconds:.1f} s"
    typer.echo(f"\n{what}: {shot.receipts} committed, {shot.refused} refused")
    typer.echo(f"digest {shot.digest[:16]}")
    full = sum(device.memory_full for device in shot.devices)
    if full:
        typer.echo(f"memory full {number(full, 'time')}: the devices stopped scanning until receipts made room")
    _print_refusals(report)
    for item in report.missing:
        why = f": {item.problem}" if item.problem else ""
        typer.echo(f"missing: {item.gateway}/{item.device} has no receipt for {item.events}, {item.ids[0]} …{why}")
    if report.missing:
        typer.echo("hint:  is the gateway's agent running? stocktide edge status", err=True)


def _print_refusals(report: "Report") -> None:
    reasons: dict[str, str] = {}
    for device in report.snapshot.devices:
        if device.refusal is not None:
            reasons.setdefault(device.refusal.replace(device.device, "NAME"), f"{device.gateway}/{device.device}")
    for reason, where in reasons.items():
        typer.echo(f"refused: {reason} ({where})")
    if any(RefusalCode.of(reason) is RefusalCode.UNKNOWN_DEVICE for reason in reasons):
        typer.echo("hint:  at the gateway: stocktide edge device add NAME")
