"""The one loop of every service: broken, it loses requests, holds up others, or ends a worker."""

import asyncio
from collections.abc import Callable
from contextlib import closing

import pytest

from cloud_ingest.failures import Failures
from cloud_ingest.mailbox import Mailbox, WakeUp, every, sender_of, serve
from cloud_ingest.metrics import WorkerMetrics
from cloud_ingest.token_bucket import TokenBucket
from cloud_store.base.connection import connect
from cloud_store.base.errors import DatabaseUnavailable, StoreError
from cloud_store.merge import alarms
from cloud_store.tenancy import registry
from testbed.eventually import eventually_async
from testbed.store import Failed, Session, running
from testbed.turned_loop import now_s, pass_time, turned


@turned
async def test_an_item_that_fails_is_reported_and_dropped_and_the_next_is_served() -> None:
    """A defect of ours that one gateway brings out must not end the service for every tenant."""
    box: Mailbox[str, int] = Mailbox("box", items_max=10)
    served, failed = list[str](), Failed()

    async def step(gateway: str, _value: int) -> None:
        served.append(gateway)
        if gateway == "gw-evil":
            raise RuntimeError("a defect")
        if gateway == "gw-odd":
            raise StoreError("a statement failed")

    for gateway in ("gw-a", "gw-evil", "gw-odd", "gw-b"):
        box.put(gateway, 1)
    async with running([serve(box, step, failed)]):
        await pass_time(1)
    assert served == ["gw-a", "gw-evil", "gw-odd", "gw-b"]
    assert [(service, gateway) for service, gateway, _ in failed] == [("box", "gw-evil"), ("box", "gw-odd")]


@turned
async def test_while_the_database_is_away_an_item_is_tried_again_and_a_newer_one_takes_its_place() -> None:
    """It was taken out to be served: what comes in meanwhile is the latest, and the older one must not come back."""
    box: Mailbox[str, int] = Mailbox("box", items_max=10)
    tried, away = list[tuple[str, int]](), [True]

    async def step(gateway: str, value: int) -> None:
        tried.append((gateway, value))
        if away[0]:
            if value == 1:
                box.put(gateway, 2)
            raise DatabaseUnavailable

    box.put("gw-a", 1)
    failed = Failed()
    async with running([serve(box, step, failed)]):
        await pass_time(3.5)
        away[0] = False
        await pass_time(2)
    assert tried[0] == ("gw-a", 1)
    assert set(tried[1:]) == {("gw-a", 2)}
    assert len(tried) == 5, "once a second, and once more when it is back"
    assert failed == []


@turned
async def test_a_value_that_comes_in_while_the_one_before_is_answered_is_served_too() -> None:
    """A gateway that was answered in that moment lost its newer request, and waited for its own timer."""
    box: Mailbox[str, int] = Mailbox("box", items_max=10)
    served = list[int]()

    async def step(gateway: str, value: int) -> None:
        if value == 1:
            box.put(gateway, 2)
        await asyncio.sleep(0.1)
        served.append(value)

    box.put("gw-a", 1)
    async with running([serve(box, step, Failed())]):
        await pass_time(1)
    assert served == [1, 2]


@turned
async def test_a_rate_is_kept_and_what_waits_for_it_can_still_be_replaced() -> None:
    """A token is waited for before an item is taken out: the latest value is served, not the one of a minute ago."""
    box: Mailbox[str, float] = Mailbox("box", items_max=10)
    served = list[tuple[float, float]]()

    async def step(_gateway: str, value: float) -> None:
        served.append((now_s(), value))

    async with running([serve(box, step, Failed(), rate=TokenBucket(1.0, now_s))]):
        for number in range(50):
            box.put("gw-a", now_s())
            await pass_time(0.1 + number / 10_000)
    assert 4 <= len(served) <= 7
    assert all(at - value < 0.2 for at, value in served)


@turned
async def test_what_is_done_now_and_then_goes_on_after_a_failure() -> None:
    """A throttle that stopped looking at its quotas would hold a tenant back for good."""
    turns, failed = list[float](), Failed()

    async def step() -> None:
        turns.append(now_s())
        if len(turns) == 1:
            raise DatabaseUnavailable
        if len(turns) == 2:
            raise ValueError("a defect")

    async with running([every(1.0, "now and then", step, failed)]):
        await pass_time(4.5)
    assert len(turns) == 4
    assert [service for service, _, _ in failed] == ["now and then"]


def test_several_wake_ups_are_one_and_concern_nobody() -> None:
    """A notification for each of ten thousand changes is one look."""
    wake = WakeUp("looks")
    for _ in range(100):
        wake()
    assert len(wake) == 1
    assert wake.pop() == (None, None, 0)
    assert (sender_of("gw-a"), sender_of(("gw-a", 7)), sender_of((None, "job")), sender_of(None)) == (
        "gw-a",
        "gw-a",
        None,
        None,
    )


@pytest.mark.services
async def test_a_dropped_item_is_an_alarm_of_its_gateway(database_url: str, unique_name: Callable[..., str]) -> None:
    """Its operator must learn of it; a name that is in no registry leaves no trace, whatever it contains."""
    tenant, gateway = unique_name("acme"), unique_name("gw")
    metrics = WorkerMetrics()
    with closing(connect(database_url, application="test")) as connection, Session(database_url) as session:
        registry.add_tenant(connection, tenant)
        registry.add_site(connection, tenant, "berlin")
        registry.add_gateway(connection, tenant, "berlin", gateway)
        failures = Failures(session.database, metrics)
        failures.report("twins", gateway, ValueError("an absurd number\0"))
        failures.report("twins", "gw-unknown\0", ValueError("x"))
        failures.report("jobs", None, ValueError("nobody's"))
        async with running([failures.run()]):
            await eventually_async(lambda: alarms.listing(connection, limit=10, tenant=tenant))
            failures.report("commands", gateway, ValueError("another"))
            await eventually_async(lambda: alarms.listing(connection, limit=10, tenant=tenant)[0]["times"] == 2)
        [alarm] = alarms.listing(connection, limit=10, tenant=tenant)
    assert (alarm["gateway"], alarm["kind"]) == (gateway, "item-dropped")
    assert alarm["detail"].startswith("commands: ValueError: another")
    sample = metrics.registry.get_sample_value("stocktide_failed_items_total", {"service": "twins"})
    assert sample == 2


@turned
async def test_a_bucket_gives_tokens_at_its_rate_whatever_its_fractions() -> None:
    """A hair of a token that rounding had left was waited for in steps too small for any clock: a worker spun."""
    for per_s in (3.0, 40.0, 7.7):
        bucket, began = TokenBucket(per_s, now_s), now_s()
        for _ in range(200):
            await bucket.acquire()
        assert now_s() - began == pytest.approx((200 - bucket.turn) / per_s, rel=0.05)
