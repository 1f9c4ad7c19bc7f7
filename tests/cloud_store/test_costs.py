"""What a tenant's frames cost beyond their entries: bytes, names, dead letters, numbers at the end of their domain.

Broken when something that a gateway sends is kept, or reserved, and nobody has counted it.
"""

import json
import zlib
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from cloud_store.base.connection import Connection, connect
from cloud_store.base.errors import NamesExhausted
from cloud_store.merge import dead_letters
from cloud_store.merge.dead_letters import DeadLetter, LetterKind
from cloud_store.reports import snapshots
from cloud_store.tenancy import quotas, registry
from testbed.store import MergeSession
from tests.cloud_store.histories import BOOT as BOOT_ID
from tests.cloud_store.histories import NOW_MS, Chain, arrived, count, movement
from wire_protocol import clock
from wire_protocol.entries import QUANTITY_MAX, LedgerEntry, Reading
from wire_protocol.errors import InvalidFrame
from wire_protocol.frames import ENTRY_BYTES_MAX, ENVELOPE_BYTES_MAX
from wire_protocol.reasons import RejectCode
from wire_protocol.stock import BALANCE_MAX, Cell


@pytest.fixture
def connection(database_url: str) -> Iterator[Connection]:
    """Two tenants with a gateway each."""
    with closing(connect(database_url, application="test")) as opened:
        for tenant in ("acme", "other"):
            registry.add_tenant(opened, tenant)
            registry.add_site(opened, tenant, "berlin")
            registry.add_gateway(opened, tenant, "berlin", f"gw-{tenant}")
        yield opened


@pytest.fixture
def merger(database_url: str, connection: Connection) -> Iterator[MergeSession]:
    """A worker's merge."""
    del connection
    with MergeSession(database_url) as session:
        yield session


def receipt(number: int, **more: object) -> LedgerEntry:
    """A movement of its own tick."""
    return movement(clock.pack(NOW_MS, number), "receive", "@supplier", "A-1", **more)  # type: ignore[arg-type]


def forged(payload: bytes, **changes: object) -> bytes:
    """A sealed frame with something else in its envelope, sealed again."""
    envelope = json.loads(zlib.decompress(payload))
    return zlib.compress(json.dumps(envelope | changes).encode())


@pytest.mark.parametrize(
    "changes",
    [
        {"junk": "x" * 10},
        {"boots": {}, "note": None},
        {"entries": {"kind": "receive", "colour": "red"}},
    ],
)
def test_what_nobody_knows_is_refused(changes: dict[str, object]) -> None:
    """The cloud keeps a frame as it came, and passes it to every gateway of the site."""
    payload = Chain("gw-acme").seal([receipt(1)]).payload
    with pytest.raises(InvalidFrame):
        arrived("gw-acme", forged(payload, **changes))


def test_a_frame_is_no_larger_than_its_entries_can_need() -> None:
    """Blanks, or any other room that JSON has: what is stored is bounded by what it says."""
    payload = Chain("gw-acme").seal([receipt(1)]).payload
    plain = zlib.decompress(payload)
    room = ENVELOPE_BYTES_MAX + ENTRY_BYTES_MAX
    assert arrived("gw-acme", plain[:-1] + b" " * (room - len(plain)) + b"}").frame.header.count == 1
    with pytest.raises(InvalidFrame, match="a frame of 1 entries has at most"):
        arrived("gw-acme", plain[:-1] + b" " * (room - len(plain) + 1) + b"}")
    with pytest.raises(InvalidFrame, match="stands twice"):
        arrived("gw-acme", b"{" + b'"v":0,' + plain[1:])


def test_the_largest_honest_entry_fits() -> None:
    """Every field at its bound, in characters of four bytes."""
    text = "\N{GOTHIC LETTER AHSA}" * 64
    full: dict[str, Any] = {"lot": text, "serial": text, "actor": text, "reference": text, "device": "d" * 64}
    entry = movement(clock.pack(NOW_MS), "move", text, text[:-1] + "b", sku=text, event="e" * 64, **full)
    assert arrived("gw-acme", Chain("gw-acme").seal([entry]).payload).validated()[1] == []


def test_bytes_and_new_names_are_charged(merger: MergeSession) -> None:
    """A frame of one entry that is as large as one of hundreds costs as much; so does one of nothing but new names."""
    tenants = merger.merge([Chain("gw-acme").seal([receipt(1)])]).surcharge
    [(tenant, names)] = tenants.items()
    assert names >= 3, "an item, a shelf, an epoch"
    chain = Chain("gw-other")
    merger.merge([chain.seal([receipt(1)])])
    plain = zlib.decompress(chain.seal([receipt(2)]).payload)
    padded = arrived("gw-other", plain[:-1] + b" " * 10_000 + b"}")
    [(other, cost)] = merger.merge([padded]).surcharge.items()
    assert other != tenant
    assert cost >= 100
    assert merger.merge([chain.seal([receipt(n) for n in range(3, 300)])]).surcharge in ({}, {other: 0})


def test_names_beyond_a_tenants_bound_are_refused_and_another_tenants_are_not(
    merger: MergeSession, connection: Connection
) -> None:
    """Whatever kind they are of; nothing of the frame is merged, and an operator may raise the bound."""
    tenant_id = registry.tenant_id(connection, "acme")
    quotas.change(connection, tenant_id, "acme", {"names_max": 10})
    chain = Chain("gw-acme")
    merger.merge([chain.seal([receipt(1)])])
    many = chain.seal([receipt(2 + n, lot=f"lot-{n}", sku=f"sku-{n}", device=f"d-{n}") for n in range(4)])
    with pytest.raises(NamesExhausted, match="of 10 allowed") as refused:
        merger.merge([many])
    assert "--names" in str(refused.value.hint)
    assert merger.merge([Chain("gw-other").seal([receipt(1)])]).frames == 1
    quotas.change(connection, tenant_id, "acme", {"names_max": 1_000})
    assert merger.merge([many]).movements == 4
    [row] = quotas.listed(connection, "acme")
    assert row["names"] >= 13


def test_a_metric_is_its_tenants(merger: MergeSession, connection: Connection) -> None:
    """The same word of two tenants is two metrics: neither fills, nor shows, the other's list."""
    for tenant in ("acme", "other"):
        body: dict[str, object] = {"hlc": clock.pack(NOW_MS), "boot": BOOT_ID, "mono_ms": 0, "device": "probe"}
        reading = Reading.model_validate(body | {"values": {"temperature": 4.5}})
        merger.merge([Chain(f"gw-{tenant}", "readings").seal([reading])])
    rows = connection.execute("SELECT tenant_id, name FROM metric ORDER BY tenant_id").fetchall()
    assert [name for _, name in rows] == ["temperature"] * 2
    assert len({tenant for tenant, _ in rows}) == 2


def test_dead_letters_of_a_gateway_are_bounded_in_bytes(connection: Connection) -> None:
    """Two hundred of the largest would be fifty megabytes for each gateway that is."""
    letters = [
        DeadLetter(LetterKind.FRAME, gateway, f"topic/{gateway}", "forked", bytes([number]) * 10_000)
        for gateway in ("gw-acme", "gw-other")
        for number in range(20 if gateway == "gw-acme" else 3)
    ]
    dead_letters.add(connection, letters)
    dead_letters.trim(connection, bytes_per_gateway_max=55_000)
    kept = connection.execute("SELECT gateway, count(*) FROM dead_letter GROUP BY 1 ORDER BY 1").fetchall()
    assert kept == [("gw-acme", 5), ("gw-other", 3)]


def test_a_flood_of_dead_letters_pushes_out_its_own_gateways_only(connection: Connection) -> None:
    """However many come between two looks, the others' are not among the oldest of all."""
    letters = [
        DeadLetter(LetterKind.FRAME, gateway, f"topic/{gateway}", "forked", b"%d" % number)
        for gateway, many in (("gw-other", 3), ("gw-acme", 300))
        for number in range(many)
    ]
    for letter in letters:
        dead_letters.add(connection, [letter])
    dead_letters.trim(connection, rows_max=100, rows_per_gateway_max=20)
    kept = connection.execute("SELECT gateway, count(*) FROM dead_letter GROUP BY 1 ORDER BY 1").fetchall()
    assert kept == [("gw-acme", 20), ("gw-other", 3)]


@pytest.mark.parametrize("sign", [1, -1])
def test_stock_at_the_end_of_its_domain_rejects_what_goes_beyond_and_nothing_else(
    merger: MergeSession, connection: Connection, sign: int
) -> None:
    """Each entry that would take a cell beyond, with its reason; the frame's others and its neighbours are merged."""
    chain = Chain("gw-acme")
    merger.merge([chain.seal([receipt(1), receipt(2, sku="nut")])])
    connection.execute(
        "UPDATE balance b SET on_hand = %(end)s, moved = %(end)s FROM item i, location l WHERE i.item_id = b.item_id"
        " AND l.location_id = b.location_id AND i.sku = 'screw' AND l.name = 'A-1'",
        {"end": sign * BALANCE_MAX},
    )
    away = ("@supplier", "A-1") if sign > 0 else ("A-1", "@customer")
    kind = "receive" if sign > 0 else "pick"
    entries = [
        movement(clock.pack(NOW_MS, 10), kind, *away, quantity=QUANTITY_MAX),  # type: ignore[arg-type]
        movement(clock.pack(NOW_MS, 11), "receive", "@supplier", "A-1", sku="nut", quantity=4),
    ]
    report = merger.merge([chain.seal(entries), Chain("gw-other").seal([receipt(1)])])
    assert (report.frames, report.movements, report.rejected) == (2, 2, 1)
    [rejected] = [bad for outcome in report.streams.values() for bad in outcome.rejected]
    assert RejectCode.of(rejected.reason) is RejectCode.OUT_OF_DOMAIN
    assert snapshots.balances(connection, "acme", "berlin")[Cell("A-1", "nut", "")] == 5


def test_variances_beyond_the_domain_reject_their_counts(merger: MergeSession, connection: Connection) -> None:
    """They add up at `@adjust`, which no shelf's own number shows; the same again finds the row as it is."""
    chain = Chain("gw-acme")
    shelves = [f"A-{n}" for n in range(40)]
    merger.merge(
        [chain.seal([movement(clock.pack(NOW_MS, n), "receive", "@supplier", s) for n, s in enumerate(shelves)])]
    )
    connection.execute(
        "UPDATE balance b SET on_hand = %s, moved = %s FROM location l WHERE l.location_id = b.location_id"
        " AND NOT l.virtual",
        [-BALANCE_MAX, -BALANCE_MAX],
    )
    for attempt in range(2):
        counts = [count(clock.pack(NOW_MS, 100 + 100 * attempt + n), shelf, 0) for n, shelf in enumerate(shelves)]
        fine = movement(clock.pack(NOW_MS, 400 + attempt), "receive", "@supplier", "B-1", sku="nut")
        report = merger.merge([chain.seal([*counts, fine])])
        assert report.movements == 1
        assert report.rejected == len(shelves)
    assert merger.merge([Chain("gw-other").seal([receipt(1)])]).frames == 1
