"""Jobs in a real database: waves in order, failures that end them, the way back."""

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud_store.base.connection import Connection
from cloud_store.provisioning import commands, jobs, twins
from cloud_store.provisioning.jobs import Rollout, Spec
from cloud_store.provisioning.twins import Selection
from cloud_store.tenancy import registry
from testbed.reported_twins import reported_twin
from testbed.store import StoreModule
from wire_protocol import topics, waves
from wire_protocol.commands import InvalidCommand
from wire_protocol.messages import Reply
from wire_protocol.waves import InvalidWaves

pytestmark = pytest.mark.services
GATEWAYS = [f"gw-{number:02}" for number in range(20)]
SLOW = {"limits": {"window_frames": 2}}
ALL_SHARDS = range(topics.SHARDS)


@pytest.fixture
def store(connection: Connection, database_url: str) -> Iterator[StoreModule]:
    """A store, and twenty gateways."""
    registry.add_site(connection, "acme", "berlin")
    for gateway in GATEWAYS:
        registry.add_gateway(connection, "acme", "berlin", gateway)
    with closing(StoreModule(jobs, database_url)) as made:
        yield made


def begin(connection: Connection, spec: Spec, **how: Any) -> str:
    """A job for all."""
    return jobs.create(connection, Selection(tenant="acme"), spec, Rollout(**how), who="kim")


def run(store: StoreModule) -> None:
    """All steps that can be taken now."""
    for job in store.running():
        while store.step(job):
            pass


def counts(connection: Connection, job: str) -> dict[str, Any]:
    """How far it is."""
    [row] = jobs.listing(connection, limit=1, job=job)
    return row


def obey(database_url: str, *, refuse: frozenset[str] = frozenset()) -> set[str]:
    """What gateways would do: take their twins, or refuse. Returns who had something to do."""
    with closing(StoreModule(twins, database_url)) as store:
        due = store.due(ALL_SHARDS, limit=100, again_s=3600).made
        store.pushed(due)
        for gateway, document in due:
            refused = gateway in refuse
            report = reported_twin(0, refused=document.version, reason="no") if refused else None
            store.report(gateway, report or reported_twin(document.version))
        return {push.gateway for push in due}


def test_waves_follow_each_other(store: StoreModule, connection: Connection, database_url: str) -> None:
    """One, then a tenth, then the rest; and the job is done when all have it in force."""
    job = begin(connection, Spec(patch=SLOW), waves=("1", "10%", "100%"))
    seen = []
    while counts(connection, job)["state"] == "running":
        run(store)
        seen.append(len(obey(database_url)))
        run(store)
    assert [number for number in seen if number] == [1, 1, 18]
    assert counts(connection, job)["succeeded"] == 20
    assert {row["state"] for row in twins.overview(connection)} == {"in force"}


def test_too_many_failures_end_it_and_twins_go_back(
    store: StoreModule, connection: Connection, database_url: str
) -> None:
    """The rest of the fleet never hears of it; those that took it are as before."""
    job = begin(connection, Spec(patch=SLOW), waves=("20%", "100%"), failures_percent_max=20.0, rollback=True)
    run(store)
    asked = obey(database_url, refuse=frozenset(GATEWAYS[:2]))
    assert len(asked) == 4
    run(store)
    found = counts(connection, job)
    assert (found["state"], found["waiting"], found["rolled_back"]) == ("failed", 16, 4)
    assert "2 of 4 gateways of wave 1 failed" in found["reason"]
    obey(database_url)
    assert all(twins.show(connection, gateway)["state"] in ({}, None) for gateway in GATEWAYS)


def report(database_url: str, gateway: str, version: int, **rest: object) -> None:
    """What a gateway says of its twin."""
    with closing(StoreModule(twins, database_url)) as store:
        store.report(gateway, reported_twin(version, **rest))


@pytest.mark.parametrize("online", [0, 1, 7])
@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ({}, "unconfirmed: not confirmed in time by probe-1, probe-2"),
        ({"confirmed": {"probe-2": 1, "probe-9": 1}}, "unconfirmed: not confirmed in time by probe-1"),
        ({"errors": {"probe-9": "no"}}, "unconfirmed: not confirmed in time by probe-1, probe-2"),
    ],
)
def test_a_change_that_no_device_has_confirmed_is_not_a_success(
    store: StoreModule, connection: Connection, database_url: str, said: dict[str, object], reason: str, online: int
) -> None:
    """What the gateway last said of its devices may be older than their connection: the step waits, up to its limit."""
    probe = {"kind": "probe", "sampling_s": 1}
    patch = {"devices": {"probe-1": probe, "probe-2": probe}}
    selected = Selection(("gw-00", "gw-01"))
    rollout = Rollout(waves=("1", "100%"), timeout_s=600)
    job = jobs.create(connection, selected, Spec(patch=patch), rollout, who="kim")
    run(store)
    [row] = jobs.targets(connection, job, limit=9)[:1]
    connection.execute(
        "INSERT INTO gateway_status (gateway_id, state, epoch, version, heard_at, backlog, dead_letters,"
        " readings_dropped, devices_online) SELECT gateway_id, 'online', '0', '0', now(), 0, 0, 0, %s"
        " FROM gateway WHERE name = %s",
        [online, row["gateway"]],
    )
    report(database_url, row["gateway"], 1, **said)
    run(store)
    assert (counts(connection, job)["started"], counts(connection, job)["waiting"]) == (1, 1)
    connection.execute("UPDATE job_target SET started_at = now() - interval '601 seconds' WHERE state = 'started'")
    run(store)
    found = counts(connection, job)
    assert [found[name] for name in ("state", "waiting", "failed", "unconfirmed")] == ["failed", 1, 1, 1]
    assert jobs.targets(connection, job, limit=9)[0]["reason"] == reason


@pytest.mark.parametrize(
    ("said", "state"),
    [
        ({"confirmed": {"probe-1": 1, "probe-2": 1}}, ("succeeded", 0)),
        ({"errors": {"probe-1": "no faster than 5 s"}}, ("failed", 0)),
    ],
)
def test_devices_that_answer_end_a_step_at_once(
    store: StoreModule, connection: Connection, database_url: str, said: dict[str, object], state: tuple[str, int]
) -> None:
    """All have confirmed, or one has refused: there is nothing to wait for."""
    probe = {"kind": "probe", "sampling_s": 1}
    spec = Spec(patch={"devices": {"probe-1": probe, "probe-2": probe}})
    job = jobs.create(connection, Selection(("gw-00",)), spec, Rollout(waves=("100%",)), who="kim")
    run(store)
    report(database_url, "gw-00", 1, **said)
    run(store)
    [target] = jobs.targets(connection, job, limit=9)
    assert (target["state"], counts(connection, job)["unconfirmed"]) == state


def test_what_somebody_has_changed_since_is_left_alone(
    store: StoreModule, connection: Connection, database_url: str
) -> None:
    """Going back must not undo the work of others."""
    job = begin(connection, Spec(patch=SLOW), waves=("100%",))
    run(store)
    obey(database_url)
    list(twins.change(connection, Selection(("gw-00",)), {"limits": {"window_frames": 7}}, who="somebody"))
    assert jobs.abort(connection, job, rollback=True) == 19
    assert twins.show(connection, "gw-00")["state"] == {"limits": {"window_frames": 7}}


def test_a_paused_job_begins_nothing_until_it_is_resumed(
    store: StoreModule, connection: Connection, database_url: str
) -> None:
    """What has begun goes on."""
    job = begin(connection, Spec(patch=SLOW), waves=("1", "100%"))
    run(store)
    jobs.pause(connection, job)
    obey(database_url)
    run(store)
    assert counts(connection, job)["waiting"] == 19
    jobs.resume(connection, job)
    run(store)
    assert counts(connection, job)["waiting"] == 0


def test_a_command_for_many(store: StoreModule, connection: Connection, database_url: str) -> None:
    """Replies decide; a gateway that is gone fails when its time is over."""
    job = begin(
        connection, Spec("recount", {"location": "A-1"}), waves=("100%",), failures_percent_max=10.0, timeout_s=60
    )
    run(store)
    with closing(StoreModule(commands, database_url)) as sending:
        due = sending.due(ALL_SHARDS, limit=100, again_s=60).made
        assert len(due) == 20
        for gateway, command in due[1:]:
            assert sending.reply(gateway, Reply(id=command.id, ok=True))
        assert not sending.reply("gw-05", Reply(id=due[0].command.id, ok=True)), "another gateway may not answer"
    run(store)
    assert counts(connection, job)["started"] == 1
    connection.execute("UPDATE command SET expires_at = now() WHERE replied_at IS NULL")
    run(store)
    found = counts(connection, job)
    assert (found["state"], found["succeeded"], found["failed"]) == ("done", 19, 1)


def test_a_command_that_this_worker_does_not_know_fails_and_ends_no_worker(
    store: StoreModule, connection: Connection
) -> None:
    """A job that a newer version began, during a rolling upgrade: InvalidCommand ended every older worker in turn."""
    job = begin(connection, Spec("recount", {"location": "A-1"}), waves=("100%",))
    connection.execute("UPDATE job SET spec = jsonb_set(spec, '{command}', '\"of-a-newer-version\"')")
    run(store)
    found = counts(connection, job)
    assert (found["state"], found["failed"]) == ("failed", 20)
    assert "no command of-a-newer-version" in jobs.targets(connection, job, limit=1)[0]["reason"]


def test_what_cannot_be_done_is_refused_at_once(store: StoreModule, connection: Connection) -> None:
    """Before any gateway hears of it."""
    with pytest.raises(InvalidCommand):
        begin(connection, Spec("recount", {}))
    with pytest.raises(InvalidWaves):
        begin(connection, Spec(patch=SLOW), waves=("10%", "5%"))
    assert store.running() == []


@given(st.integers(0, 500), st.lists(st.integers(0, 100), min_size=1, max_size=8).map(sorted))
def test_everybody_is_in_exactly_one_wave(count: int, shares: list[int]) -> None:
    """In order, and the last wave takes the rest."""
    assigned = waves.assign(count, [f"{share}%" for share in shares])
    assert len(assigned) == count
    assert assigned == sorted(assigned)
    assert all(0 <= wave < len(shares) for wave in assigned)


@pytest.mark.parametrize("wave", ["", "%", "ten", "-1", "101%", "1.5%", "9" * 30, "\u0661"])
def test_what_is_no_wave_is_said(wave: str) -> None:
    """Somebody types this."""
    with pytest.raises(InvalidWaves):
        waves.assign(10, [wave])
