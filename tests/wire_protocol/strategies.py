"""Hypothesis strategies for ledger entries and histories."""

from typing import Any

from hypothesis import strategies as st

from wire_protocol import clock, names
from wire_protocol.entries import Count, LedgerEntry, Movement, Reading
from wire_protocol.stock import EntryKey
from wire_protocol.times import TimeDoubt

BOOT = names.ulid(1_763_700_000_000, bytes(10))
EPOCH = names.ulid(1_763_700_000_001, bytes(10))
OLD_EPOCH = names.ulid(1_763_600_000_000, bytes(10))
NOW_MS = 1_763_700_000_000

skus = st.sampled_from(["85123A", "tea", "Schraube M4×20", "水"])
shelves = st.sampled_from(["A-01", "A-02", "B 17"])
lots = st.sampled_from([None, None, "L1", "L2"])
quantities = st.integers(1, 1_000)
routes = st.one_of(
    st.tuples(st.just("receive"), st.sampled_from([names.SUPPLIER, names.CUSTOMER]), shelves),
    st.tuples(st.just("pick"), shelves, st.just(names.CUSTOMER)),
    st.tuples(st.just("move"), shelves, shelves).filter(lambda route: route[1] != route[2]),
    st.tuples(st.just("ship"), shelves, st.just("@transit:berlin")),
    st.tuples(st.just("arrive"), st.just("@transit:here"), shelves),
    st.tuples(st.just("scrap"), shelves, st.just(names.SCRAP)),
    st.tuples(st.just("correct"), shelves, st.just(names.ADJUST)),
    st.tuples(st.just("correct"), st.just(names.ADJUST), shelves),
)


@st.composite
def base(draw: st.DrawFn) -> dict[str, Any]:
    """What every entry carries."""
    now_ms = NOW_MS + draw(st.integers(0, 10_000))
    return {
        "hlc": clock.pack(now_ms, draw(st.integers(0, 3))),
        "boot": BOOT,
        "mono_ms": now_ms - NOW_MS,
        "device": draw(st.sampled_from([None, "till-1", "till-2"])),
        "event": draw(st.sampled_from([None, "e-1", "e-2", "zz-000123"])),
        "device_at_ms": draw(st.one_of(st.none(), st.integers(0, NOW_MS))),
        "late_ms": draw(st.sampled_from([None, None, 1, 3_600_000])),
        "time_doubt": draw(st.sampled_from([None, None, *TimeDoubt])),
    }


@st.composite
def movements(draw: st.DrawFn) -> Movement:
    """Any movement."""
    kind, source, destination = draw(routes)
    goods = {"sku": draw(skus), "lot": draw(lots), "quantity": draw(quantities), "reference": draw(st.none() | skus)}
    ends = {"kind": kind, "source": source, "destination": destination}
    return Movement.model_validate(draw(base()) | goods | ends)


@st.composite
def counts(draw: st.DrawFn) -> Count:
    """Any count."""
    return Count(
        **draw(base()), sku=draw(skus), lot=draw(lots), quantity=draw(st.integers(0, 1_000)), location=draw(shelves)
    )


@st.composite
def readings(draw: st.DrawFn) -> Reading:
    """Any reading."""
    values = draw(
        st.dictionaries(
            st.sampled_from(["temperature_c", "humidity_pct", "weight_g"]),
            st.floats(allow_nan=False, allow_infinity=False),
            min_size=1,
        )
    )
    return Reading(**draw(base()), values=values)


ledger_entries: st.SearchStrategy[LedgerEntry] = st.one_of(movements(), movements(), counts())


@st.composite
def histories(draw: st.DrawFn, *, gateways: int = 3, entries_max: int = 40) -> list[tuple[EntryKey, LedgerEntry]]:
    """What happened at one site, with the keys entries have everywhere; each gateway's clock only rises."""
    history: list[tuple[EntryKey, LedgerEntry]] = []
    for number in range(draw(st.integers(1, gateways))):
        last = 0
        for seq, entry in enumerate(draw(st.lists(ledger_entries, max_size=entries_max // gateways)), start=1):
            last = max(last + 1, entry.hlc)
            history.append((EntryKey(last, f"gw-{number}", EPOCH, seq), entry.model_copy(update={"hlc": last})))
    return history
