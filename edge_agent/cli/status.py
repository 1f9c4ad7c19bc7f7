"""`stocktide edge status`: what this gateway has, and how far the cloud has it."""

from typing import TYPE_CHECKING

from command_line.output import emit_json, facts, local_time, table
from command_line.streams import say
from edge_agent.cli.enroll import cloud_brokers
from edge_agent.cli.errors import shows
from edge_agent.cli.options import Json, LedgerPath

if TYPE_CHECKING:
    from edge_agent.upkeep.file_check import Checked


@shows
def status(ledger: LedgerPath, json_: Json = False) -> None:
    """What this gateway has, and how far the cloud has it."""
    from edge_agent.ledger import database, queries
    from edge_agent.upkeep import file_check

    with database.reading(ledger) as connection:
        found = queries.status(connection, ledger)
    checked = file_check.Checked.last(ledger)
    found["file_check"] = checked._asdict() if checked is not None else None
    brokers = cloud_brokers(ledger, found["cloud_url"])
    if json_:
        emit_json(found | {"brokers": brokers})
        return
    facts(
        [
            ("gateway", found["gateway"]),
            ("ledger", f"{found['ledger']} ({found['size_bytes'] / 1e6:.1f} MB)"),
            ("agent", "running" if found["agent_running"] else "not running"),
            ("cloud", ", ".join(brokers) or "none: working offline"),
            ("file", _file_state(checked)),
            ("entries", found["entries"]),
            ("readings", found["readings"]),
            ("devices online", found["devices_online"]),
            ("shelves below zero", found["below_zero"] or None),
            ("dead letters", found["dead_letters"] or None),
            ("rejected by cloud", found["verdicts"] or None),
            ("device times doubted", found["device_times_doubted"] or None),
            *((name.replace("_", " "), value) for name, value in found["dropped"].items()),
        ]
    )
    say()
    table(
        ["stream", "frames sealed", "in cloud", "waiting", "last contact"],
        [
            [name, at["sealed_frame"], at["acked_frame"], at["waiting"], local_time(at["acked_ms"]) or "never"]
            for name, at in found["streams"].items()
        ],
        numbers=["frames sealed", "in cloud", "waiting"],
        whole=["last contact"],
    )
    if found["site_logs"]:
        say()
        table(
            ["other logs of the site", "epoch", "entries"],
            [[log["gateway"], log["epoch"], log["entries"]] for log in found["site_logs"]],
            numbers=["entries"],
        )
    for name, at in found["streams"].items():
        if at["fork"]:
            say(f"\nThe cloud keeps {name} in quarantine: {at['fork']}.")
            say("hint: this ledger and the cloud have different histories, as after restoring a backup.")
            say("      Nothing is lost: on contact the agent fetches what it lacks and opens a new epoch.")


def _file_state(checked: "Checked | None") -> str | None:
    if checked is None:
        return None
    since = f"{local_time(checked.since_ms)}, checked {local_time(checked.at_ms)}"
    return f"intact since {since}" if checked.problem is None else f"DAMAGED since {since}: {checked.problem}"
