"""What the ledger knows, read-only: stock, history, readings, status. Works while the agent runs and without it."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any, Final

from command_line.version import version
from edge_agent import files
from edge_agent.errors import LedgerBusy
from edge_agent.ledger import database, streams
from edge_agent.ledger.database import Connection
from edge_agent.ledger.derivation import Keys
from edge_agent.ledger.sql import statement
from wire_protocol import clock
from wire_protocol.address import without_password
from wire_protocol.entries import ENTRY, Count, LedgerEntry, Movement
from wire_protocol.stock import Cell, EntryKey
from wire_protocol.topics import STREAMS

EXPORT_PAGE_ENTRIES: Final = 1_000


@dataclass(frozen=True, slots=True)
class StockRow:
    """On hand of one SKU and lot at one location; `counted_ms` is when it was last counted.

    `on_hand` is in base units; `unit` and `scale` are the item's, where the catalogue has it.
    """

    sku: str
    location: str
    lot: str
    on_hand: int
    counted_ms: int | None
    unit: str | None = None
    scale: int = 0


@dataclass(frozen=True, slots=True)
class HistoryRow:
    """One movement or count of any gateway of the site; `in_cloud` once the cloud has acknowledged it.

    `verdict` says why the cloud could not use it; then it is not in the stock. `late_ms` is how long before its
    recording it happened, where a device delivered it late, and `time_doubt` why a device's time was not believed.
    """

    gateway: str
    seq: int
    at_ms: int
    kind: str
    sku: str
    lot: str
    quantity: int
    source: str | None
    destination: str | None
    variance: int | None
    device: str | None
    actor: str | None
    reference: str | None
    in_cloud: bool
    verdict: str | None
    late_ms: int | None
    time_doubt: str | None

    def delivered(self) -> str:
        """What there is to say of its way from a device: late, or with a time that was not believed."""
        if self.late_ms is not None:
            minutes, rest_ms = divmod(self.late_ms, 60_000)
            return f"{minutes} min late" if minutes else f"{rest_ms // 1_000} s late"
        return "" if self.time_doubt is None else f"time {self.time_doubt}"


@dataclass(frozen=True, slots=True)
class ReadingRow:
    """One value of one sensor reading."""

    at_ms: int
    device: str
    metric: str
    value: float


def stock(
    connection: Connection,
    *,
    sku: str | None = None,
    location: str | None = None,
    virtual: bool = False,
    zero: bool = False,
    rows_max: int = 1_000,
) -> list[StockRow]:
    """On hand by SKU, location and lot."""
    found = connection.execute(
        statement("stock"), {"sku": sku, "location": location, "virtual": virtual, "zero": zero, "limit": rows_max}
    )
    return [
        StockRow(sku_, place, lot, on_hand, clock.wall_ms(hlc) if hlc is not None else None, unit, scale or 0)
        for sku_, place, lot, on_hand, hlc, unit, scale in found
    ]


def history(
    connection: Connection, *, sku: str | None = None, location: str | None = None, rows_max: int = 50
) -> list[HistoryRow]:
    """Movements and counts of the whole site, newest first, those that the cloud rejected among them."""
    zeros = dict(connection.execute(statement("zeros")).fetchall())
    wanted = {"sku": sku, "location": location, "limit": rows_max}
    # Log by log, because each is in the order of time by itself and no index of all is worth its weight.
    asked = [(statement("history"), {**wanted, "log": log}) for log in Keys(connection).all()]
    rows = []
    for query, parameters in (*asked, (statement("rejected"), wanted)):
        for gateway, seq, hlc, body, variance, in_cloud, at_ms, verdict in connection.execute(query, parameters):
            entry = streams.recorded(body)
            rows.append(
                (
                    hlc,
                    HistoryRow(
                        gateway,
                        seq,
                        _true_ms(entry, hlc, zeros) if at_ms is None else at_ms,
                        entry["kind"],
                        entry["sku"],
                        entry.get("lot", ""),
                        entry["quantity"],
                        entry.get("source"),
                        entry.get("destination", entry.get("location")),
                        variance,
                        entry.get("device"),
                        entry.get("actor"),
                        entry.get("reference"),
                        bool(in_cloud),
                        verdict,
                        entry.get("late_ms"),
                        entry.get("time_doubt"),
                    ),
                )
            )
    return [row for _, row in sorted(rows, key=itemgetter(0), reverse=True)[:rows_max]]


def _true_ms(entry: dict[str, Any], hlc: int, zeros: dict[str, int]) -> int:
    """When an own entry happened: by its boot's clock where the time of the boot is known."""
    zero_ms = zeros.get(entry["boot"])
    return clock.wall_ms(hlc) if zero_ms is None else zero_ms + entry["mono_ms"] - entry.get("late_ms", 0)


def readings(connection: Connection, *, device: str | None = None, rows_max: int = 50) -> list[ReadingRow]:
    """Sensor readings, newest first; one row for each value."""
    rows: list[ReadingRow] = []
    for _, hlc, name, body in connection.execute(statement("readings"), {"device": device, "limit": rows_max}):
        values: Any = streams.recorded(body)["values"]
        rows += [ReadingRow(clock.wall_ms(hlc), name, metric, _number(value)) for metric, value in values.items()]
    return rows


def _number(value: Any) -> float:
    if not isinstance(value, int | float):
        raise TypeError(f"{value!r} is no number")
    return value


def gateway(connection: Connection) -> str:
    """Whose ledger this is."""
    return database.meta(connection)["gateway"]


def balances(connection: Connection) -> dict[Cell, int]:
    """On hand of every cell that is not zero, virtual locations included: what the cloud must agree with."""
    found = connection.execute(statement("all_balances"))
    return {Cell(row[0], row[1], row[2]): row[3] for row in found if row[3]}


def entries(connection: Connection) -> Iterator[tuple[EntryKey, LedgerEntry]]:
    """Every entry that counts, of all logs that this ledger has: what its stock is a function of."""
    keys = Keys(connection)
    for source in ("entries_that_count", "site_entries"):
        for log, seq, body in connection.execute(statement(source)):
            entry = ENTRY.validate_json(body)
            if isinstance(entry, Movement | Count):
                yield keys.key(entry.hlc, log, seq), entry


def export(connection: Connection, after_seq: int = 0) -> Iterator[dict[str, object]]:
    """Every entry that is there now, as it was recorded, oldest first, with its sequence number.

    By pages, each a transaction of its own: a reader of the output that stalls must not keep the log from shrinking.

    Raises:
        LedgerBusy: the numbers were given again meanwhile, because a new epoch was opened.
    """
    epoch, end = _own_epoch(connection), _single(connection, "entry_count")
    while page := connection.execute(statement("export"), (after_seq, end, EXPORT_PAGE_ENTRIES)).fetchall():
        if _own_epoch(connection) != epoch:
            raise LedgerBusy("The ledger opened a new epoch while it was exported.", hint="Export it again.")
        for seq, body in page:
            yield {"seq": seq} | streams.recorded(body)
        after_seq = page[-1][0]


def _own_epoch(connection: Connection) -> str:
    epoch: str = connection.execute(statement("own_log")).fetchone()[1]
    return epoch


def counters(connection: Connection) -> dict[str, int]:
    """What was dropped by a bound, and whose time was not believed."""
    return dict(connection.execute(statement("counters")).fetchall())


def _single(connection: Connection, name: str) -> int:
    value: int = connection.execute(statement(name)).fetchone()[0]
    return value


def status(connection: Connection, path: Path) -> dict[str, Any]:
    """Everything `stocktide edge status` shows."""
    facts, dropped = database.meta(connection), counters(connection)
    doubted = dropped.pop("device_times_doubted", 0)
    entries = _single(connection, "entry_count")
    shown = {}
    for name in STREAMS:
        at = streams.position(connection, name)
        shown[name] = {
            "sealed_frame": at.sealed_frame,
            "acked_frame": at.acked_frame,
            "acked_seq": at.acked_seq,
            "waiting": max(0, entries - at.acked_seq) if name == "ledger" else _waiting_readings(connection, at),
            "acked_ms": at.acked_ms,
            "fork": at.fork,
        }
    return {
        "gateway": facts.get("gateway"),
        "epoch": facts.get("epoch"),
        "ledger": str(path),
        "size_bytes": sum(file.stat().st_size for file in _files(path)),
        "agent_running": files.holder(path) is not None,
        "cloud_url": without_password(facts["cloud_url"]) if "cloud_url" in facts else None,
        "local_url": without_password(facts["local_url"]) if "local_url" in facts else None,
        "entries": entries,
        "readings": _single(connection, "reading_count"),
        "dead_letters": _single(connection, "dead_letter_count"),
        "verdicts": _single(connection, "verdict_count"),
        "below_zero": _single(connection, "below_zero"),
        "devices_online": _single(connection, "online_devices"),
        "device_times_doubted": doubted,
        "dropped": dropped,
        "streams": shown,
        "site_logs": [
            {"gateway": gateway, "epoch": epoch, "frame": frame, "entries": seq}
            for _, gateway, epoch, frame, seq in connection.execute(statement("site_logs"))
        ],
        "version": version(),
    }


def _waiting_readings(connection: Connection, at: streams.StreamPosition) -> int:
    return at.sealed_seq - at.acked_seq + streams.waiting(connection, "readings", at.source_id)


def _files(path: Path) -> list[Path]:
    path = files.real(path)
    return [file for suffix in ("", "-wal", "-shm") if (file := path.with_name(path.name + suffix)).exists()]


def as_json(row: StockRow | HistoryRow | ReadingRow) -> dict[str, Any]:
    """A row as plain values."""
    return asdict(row)
