"""`stocktide edge status`: what this gateway has, and how far the cloud has it."""

from typing import TYPE_CHECKING, Final

from command_line.output import emit_json, facts, local_time, table
from command_line.streams import say
from edge_agent.cli.enroll import cloud_brokers
from edge_agent.cli.errors import shows
from edge_agent.cli.options import Json, LedgerPath

if TYPE_CHECKING:
    from edge_agent.conditions import Condition
    from edge_agent.upkeep.file_check import Checked

AGENT_GONE: Final = "not running: devices and cloud are not served. Start it: systemctl start stocktide-edge"


@shows
def status(ledger: LedgerPath, json_: Json = False) -> None:
    """What this gateway has, and how far the cloud has it."""
    from edge_agent import conditions
    from edge_agent.ledger import database, queries
    from edge_agent.ledger.sql import statement
    from edge_agent.upkeep import file_check

    with database.reading(ledger) as connection:
        found = queries.status(connection, ledger)
        found["without_lot"] = connection.execute(statement("without_lot")).fetchone()[0]
    checked = file_check.Checked.last(ledger)
    found["file_check"] = checked._asdict() if checked is not None else None
    brokers = cloud_brokers(ledger, found["cloud_url"])
    # Of an agent that has ended nothing is known: what it said last is no state of now.
    parts = conditions.last(ledger) if found["agent_running"] else {}
    found["conditions"] = {part: condition._asdict() for part, condition in parts.items()}
    if json_:
        emit_json(found | {"brokers": brokers})
        return
    facts(
        [
            ("gateway", found["gateway"]),
            ("ledger", f"{found['ledger']} ({found['size_bytes'] / 1e6:.1f} MB)"),
            ("agent", "running" if found["agent_running"] else AGENT_GONE),
            ("local broker", _state(parts.get("devices"))),
            ("cloud", ", ".join(brokers) or "none: working offline"),
            ("link", _state(parts.get("link"))),
            ("certificate", _state(parts.get("certificate"))),
            ("acknowledged", _state(parts.get("cloud"))),
            ("file", _file_state(checked)),
            ("entries", found["entries"]),
            ("readings", found["readings"]),
            ("devices online", found["devices_online"]),
            ("shelves below zero", found["below_zero"] or None),
            (
                "shelves without a lot",
                f"{found['without_lot']}: stocktide edge tracking" if found["without_lot"] else None,
            ),
            ("dead letters", found["dead_letters"] or None),
            ("rejected by cloud", found["verdicts"] or None),
            ("device times doubted", found["device_times_doubted"] or None),
            ("event ids used twice", found["event_ids_used_twice"] or None),
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


def _state(condition: "Condition | None") -> str | None:
    """A part's state in words; None for one that this gateway has not."""
    if condition is None or condition.state == "none":
        return None
    text = f"{condition.state if condition.ok else condition.state.upper()} since {local_time(condition.since_ms)}"
    return ". ".join([text, *(said.rstrip(".") for said in (condition.why, condition.hint) if said)])


def _file_state(checked: "Checked | None") -> str | None:
    if checked is None:
        return None
    since = f"{local_time(checked.since_ms)}, checked {local_time(checked.at_ms)}"
    return f"intact since {since}" if checked.problem is None else f"DAMAGED since {since}: {checked.problem}"
