"""Firmware in a real database: releases that only grow, images for the own tenant only, jobs that wait for devices."""

import json
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest

from cloud_store.base import audit_log
from cloud_store.base.connection import Connection
from cloud_store.base.errors import InvalidFirmware, UnknownName
from cloud_store.provisioning import firmware, jobs, twins
from cloud_store.provisioning.jobs import Rollout, Spec
from cloud_store.provisioning.twins import Selection
from cloud_store.tenancy import registry
from testbed.reported_twins import reported_twin
from testbed.store import StoreModule
from tests.firmware_sim.images import MODEL, image, release
from wire_protocol import topics
from wire_protocol.firmware import IMAGE_BYTES_MAX, NO_ROOM, FirmwareRequest, Release, ReportedFirmware
from wire_protocol.reasons import FirmwareProblemCode
from wire_protocol.twin import DesiredState, DesiredTwin

pytestmark = pytest.mark.services
GATEWAYS = ["gw-1", "gw-2", "gw-3", "gw-4"]
OLD, NEW, BACK = release("1.0.0", 1), release("1.1.0", 2), release("1.0.0", 3, replaces="1.1.0")


@pytest.fixture
def store(connection: Connection, database_url: str) -> Iterator[StoreModule]:
    """A store, four gateways, and two versions with the way back from the second."""
    registry.add_site(connection, "acme", "berlin")
    for gateway in GATEWAYS:
        registry.add_gateway(connection, "acme", "berlin", gateway)
    firmware.add(connection, "acme", [OLD], image("1.0.0"), who="kim")
    firmware.add(connection, "acme", [NEW, BACK], image("1.1.0"), who="kim")
    with closing(StoreModule(jobs, database_url)) as made:
        yield made


def test_what_was_added_is_listed_and_logged(store: StoreModule, connection: Connection) -> None:
    """Who brought an image into the house is the first question afterwards."""
    del store
    rows = firmware.listing(connection, tenant="acme")
    assert [(row["version"], row["release"], row["replaces"]) for row in rows] == [
        ("1.0.0", 3, "1.1.0"),
        ("1.1.0", 2, None),
        ("1.0.0", 1, None),
    ]
    assert firmware.rollback_release(connection, "acme", firmware.newest(connection, "acme", MODEL, "1.1.0")) == _plain(
        BACK
    )
    assert firmware.rollback_release(connection, "acme", OLD) is None
    assert firmware.before(connection, "acme", MODEL, "1.2") == _plain(NEW)
    assert firmware.before(connection, "acme", MODEL, "1.0.0") is None
    logged = [line for line in audit_log.newest(connection, limit=10) if line["action"] == "firmware.add"]
    assert [(line["tenant"], line["object"]) for line in logged][:2] == [
        ("acme", f"{MODEL} 1.0.0"),
        ("acme", f"{MODEL} 1.1.0"),
    ]


def _plain(offer: Release) -> Release:
    return Release(**offer.model_dump(exclude={"v"}))


@pytest.mark.bound("wire_protocol.firmware.IMAGE_BYTES_MAX")
@pytest.mark.parametrize(
    ("made", "body", "why"),
    [
        (release("1.2", 3), image("1.2"), "is not greater than 3"),
        (release("1.1.0", 9, image("other")), image("other"), "another image already"),
        (release("1.2", 9), image("other"), "not the one that was signed"),
        (release("1.2", 9), image("1.2")[:-1], "not the one that was signed"),
        (release("1.2", 9), bytes(IMAGE_BYTES_MAX + 1), "at most 16777216"),
    ],
)
def test_what_cannot_be_added(store: StoreModule, connection: Connection, made: Release, body: bytes, why: str) -> None:
    """An operator's mistake must not reach a single device, and must leave nothing behind."""
    del store
    before = firmware.listing(connection)
    with pytest.raises(InvalidFirmware, match=why):
        firmware.add(connection, "acme", [made], body, who="kim")
    assert firmware.listing(connection) == before
    with pytest.raises(UnknownName):
        firmware.add(connection, "nobody", [made], body, who="kim")


def test_a_gateway_is_given_its_own_tenants_images_in_pieces(
    store: StoreModule, connection: Connection, database_url: str
) -> None:
    """An image is a tenant's property, and a name is easily guessed from another's release."""
    del store
    registry.add_tenant(connection, "bravo")
    registry.add_site(connection, "bravo", "rome")
    registry.add_gateway(connection, "bravo", "rome", "gw-b")
    ask = FirmwareRequest(sha256=NEW.sha256, offset=19_000, bytes=5_000)
    with closing(StoreModule(firmware, database_url)) as images:
        own = images.piece("gw-1", ask)
        assert own is not None
        assert (own.line.size, own.line.offset, own.piece) == (20_000, 19_000, image("1.1.0")[19_000:])
        other = images.piece("gw-b", ask)
        assert other is not None
        assert (other.line.size, other.piece) == (0, b"")
        assert images.piece("gw-unknown", ask) is None
        beyond = images.piece("gw-1", FirmwareRequest(sha256=NEW.sha256, offset=20_001, bytes=1))
        assert beyond is not None
        assert beyond.piece == b""
        assert type(beyond).decode(own.encode()) == own


def begin(connection: Connection, version: str = "1.1.0", **how: Any) -> str:
    """A job for all gateways."""
    return jobs.create(connection, Selection(tenant="acme"), Spec(firmware=(MODEL, version)), Rollout(**how), who="kim")


def run(store: StoreModule) -> None:
    """All steps that can be taken now."""
    for job in store.running():
        while store.step(job):
            pass


Say = Callable[[str, DesiredTwin], dict[str, Any]]


def obey(database_url: str, say: Say) -> list[str]:
    """What gateways would do: take their twins and say how far their devices are."""
    with closing(StoreModule(twins, database_url)) as store:
        due = store.due(range(topics.SHARDS), limit=100, again_s=3600).made
        store.pushed(due)
        for gateway, document in due:
            wanted = document.state.firmware[MODEL]
            told = {"release": wanted.release, "version": wanted.version, "devices": 2, "healthy": 2}
            report = ReportedFirmware.model_validate(told | say(gateway, document))
            store.report(gateway, reported_twin(document.version, firmware={MODEL: report}))
        return [push.gateway for push in due]


def states(connection: Connection, job: str) -> dict[str, tuple[str, str | None]]:
    """Each gateway's state and reason."""
    return {row["gateway"]: (row["state"], row["reason"]) for row in jobs.targets(connection, job, limit=99)}


def test_a_wave_ends_when_all_devices_are_healthy(
    store: StoreModule, connection: Connection, database_url: str
) -> None:
    """Some of them, or those of another release, are not all."""
    job = begin(connection, waves=("1", "100%"))
    run(store)
    assert obey(database_url, lambda *_: {"healthy": 1}) == ["gw-1"]
    run(store)
    assert states(connection, job)["gw-1"] == ("started", None)
    assert [row["healthy"] for row in jobs.targets(connection, job, limit=1)] == ["1.1.0: 1 of 2"]
    with closing(StoreModule(twins, database_url)) as worker:
        for said in ({"release": 1, "version": "1.0.0"}, {"release": 2, "version": "1.1.0"}):
            told = ReportedFirmware.model_validate(said | {"devices": 2, "healthy": 2})
            worker.report("gw-1", reported_twin(1, firmware={MODEL: told}))
            run(store)
            assert states(connection, job)["gw-1"][0] == ("started" if said["release"] == 1 else "succeeded")
    assert (
        obey(database_url, lambda gateway, _: {"devices": 0, "healthy": 0} if gateway == "gw-2" else {}) == GATEWAYS[1:]
    )
    run(store)
    assert states(connection, job)["gw-2"] == ("started", None), "it may only not know its devices yet"
    connection.execute("UPDATE job_target SET started_at = now() - interval '6 minutes' WHERE state = 'started'")
    run(store)
    assert states(connection, job)["gw-2"] == ("succeeded", "no device of this model")
    [row] = jobs.listing(connection, limit=1, job=job)
    assert (row["state"], row["succeeded"]) == ("done", 4)


@pytest.mark.parametrize(
    "said",
    [
        {"problem": "the disk is full", "problem_code": FirmwareProblemCode.NO_ROOM.value},
        {"problem": f"{NO_ROOM}: No space left on device"},  # as a gateway of before there were codes says it
    ],
)
def test_a_full_disk_at_a_gateway_may_pass(
    store: StoreModule, connection: Connection, database_url: str, said: dict[str, str]
) -> None:
    """It tries again by itself, and there is a time limit anyway."""
    job = begin(connection, waves=("1", "100%"))
    run(store)
    obey(database_url, lambda *_: {"healthy": 0} | said)
    run(store)
    assert states(connection, job)["gw-1"] == ("started", None)


@pytest.mark.parametrize(
    ("say", "why"),
    [
        (
            {"healthy": 0, "failed": {"p-2": "rolled-back: x", "p-1": "refused: y"}},
            "p-1 refused: y; p-2 rolled-back: x",
        ),
        ({"healthy": 0, "problem": "the cloud has no such image"}, "the cloud has no such image"),
        ({"healthy": 0, "problem": f"{NO_ROOM}, they say", "problem_code": "no-image"}, f"{NO_ROOM}, they say"),
    ],
)
def test_a_failure_names_the_device_and_devices_go_back(
    store: StoreModule, connection: Connection, database_url: str, say: dict[str, Any], why: str
) -> None:
    """The way back is a release of its own: the old one would be refused as taken."""
    job = begin(connection, waves=("2", "100%"), rollback=True)
    run(store)
    assert obey(database_url, lambda gateway, _: say if gateway == "gw-2" else {}) == GATEWAYS[:2]
    run(store)
    [row] = jobs.listing(connection, limit=1, job=job)
    assert (row["state"], row["reason"]) == ("failed", "1 of 2 gateways of wave 1 failed; 2 went back")
    found = states(connection, job)
    assert [found[gateway] for gateway in GATEWAYS] == [
        ("rolled-back", None),
        ("rolled-back", why),
        ("waiting", None),
        ("waiting", None),
    ]
    back: list[DesiredTwin] = []

    def say_back(_: str, document: DesiredTwin) -> dict[str, Any]:
        back.append(document)
        return {}

    assert obey(database_url, say_back) == GATEWAYS[:2]
    assert {(twin.state.firmware[MODEL].release, twin.state.firmware[MODEL].replaces) for twin in back} == {
        (3, "1.1.0")
    }
    assert [row["healthy"] for row in jobs.targets(connection, job, limit=2)] == ["1.0.0: 2 of 2"] * 2


def _fill_twin(connection: Connection, gateway: str) -> None:
    """Fill a gateway's twin until release NEW takes its last byte: its rollback release, which names NEW, is longer."""
    wanted = {MODEL: NEW.model_dump(exclude={"v"}, exclude_none=True)}
    state: dict[str, Any] = {"devices": {}}

    def bytes_left() -> int:
        made = DesiredState.model_validate_json(json.dumps(state | {"firmware": wanted}))
        return DesiredTwin.bytes_max - len(DesiredTwin(version=(1 << 62) - 1, state=made).encode())

    texts = [(f"d-{number // 60}", f"s{number % 60}") for number in range(1_100)]
    for device, setting in texts:
        settings = state["devices"].setdefault(device, {"kind": "probe", "settings": {}})["settings"]
        settings[setting] = ""
        settings[setting] = "x" * min(256, max(0, bytes_left()))
        if bytes_left() <= 0:
            break
    while (excess := -bytes_left()) > 0:
        settings = state["devices"]["d-0"]["settings"]
        name = max(settings, key=lambda each: len(settings[each]))
        settings[name] = settings[name][excess:]
    assert bytes_left() == 0
    assert list(twins.change(connection, Selection((gateway,)), state, who="kim"))


def test_a_rollback_that_does_not_fit_a_twin_fails_at_that_gateway_alone(
    store: StoreModule, connection: Connection, database_url: str
) -> None:
    """The step raised InvalidTwin instead: it ended every ingest worker that took it, one after the other."""
    _fill_twin(connection, "gw-1")
    job = begin(connection, waves=("2", "100%"), rollback=True)
    run(store)
    failing = {"healthy": 0, "failed": {"p-1": "refused: x"}}
    assert obey(database_url, lambda *_: failing) == GATEWAYS[:2]
    run(store)
    [row] = jobs.listing(connection, limit=1, job=job)
    assert (row["state"], row["reason"]) == ("failed", "2 of 2 gateways of wave 1 failed; 1 went back")
    found = states(connection, job)
    assert found["gw-1"][0] == "failed"
    assert str(found["gw-1"][1]).startswith("cannot be sent back: The twin would have 262")
    assert found["gw-2"][0] == "rolled-back"


def test_nothing_of_a_way_back_stays_in_the_next_release(
    store: StoreModule, connection: Connection, database_url: str
) -> None:
    """A merge patch keeps what it does not name: a `replaces` left behind would break the signature."""
    begin(connection, "1.0.0", waves=("100%",))
    run(store)
    obey(database_url, lambda *_: {})
    run(store)
    assert twins.show(connection, "gw-1")["state"]["firmware"][MODEL]["replaces"] == "1.1.0"
    firmware.add(connection, "acme", [release("1.2", 4)], image("1.2"), who="kim")
    begin(connection, "1.2", waves=("100%",))
    run(store)
    assert "replaces" not in twins.show(connection, "gw-1")["state"]["firmware"][MODEL]


def test_an_abort_goes_back_unless_somebody_has_asked_for_something_else(
    store: StoreModule, connection: Connection, database_url: str
) -> None:
    """What an operator has decided meanwhile stays."""
    job = begin(connection, waves=("2", "100%"))
    run(store)
    obey(database_url, lambda *_: {"healthy": 0})
    assert list(twins.change(connection, Selection(("gw-2",)), {"firmware": {MODEL: None}}, who="ann"))
    run(store)
    assert states(connection, job)["gw-2"] == ("failed", "somebody has asked for another version")
    assert jobs.abort(connection, job, rollback=True) == 1
    assert states(connection, job)["gw-1"][0] == "rolled-back"
    assert twins.show(connection, "gw-2")["state"] == {}


def test_a_gateway_that_says_nothing_is_not_waited_for_for_ever(store: StoreModule, connection: Connection) -> None:
    """A device that is switched off would hold up the fleet."""
    job = begin(connection, waves=("1", "100%"), timeout_s=1)
    run(store)
    connection.execute("UPDATE job_target SET started_at = now() - interval '2 seconds' WHERE started_at IS NOT NULL")
    run(store)
    assert states(connection, job)["gw-1"] == ("failed", "not in time: no report came")


def test_what_cannot_be_rolled_out(store: StoreModule, connection: Connection) -> None:
    """A job that could not go back, or whose image a gateway may not have, must not begin."""
    del store
    firmware.add(connection, "acme", [release("1.2", 4)], image("1.2"), who="kim")
    with pytest.raises(InvalidFirmware, match=r"no rollback release for probe-x 1\.2"):
        begin(connection, "1.2", rollback=True)
    with pytest.raises(UnknownName, match=r"no firmware 9\.9"):
        begin(connection, "9.9")
    job = begin(connection, "1.2")
    connection.execute("UPDATE job_target SET state = 'started', before = '{}' WHERE job_id = %s", [job])
    with pytest.raises(InvalidFirmware, match="no rollback release"):
        jobs.abort(connection, job, rollback=True)
    assert jobs.listing(connection, limit=1, job=job)[0]["state"] == "running"
    registry.add_tenant(connection, "bravo")
    registry.add_site(connection, "bravo", "rome")
    registry.add_gateway(connection, "bravo", "rome", "gw-b")
    with pytest.raises(InvalidFirmware, match="several tenants"):
        jobs.create(connection, Selection(("gw-1", "gw-b")), Spec(firmware=(MODEL, "1.1.0")), Rollout(), who="kim")


@pytest.mark.parametrize("role", ["stocktide_api", "stocktide_dashboard", "stocktide_ingest"])
def test_a_worker_reads_images_and_others_see_nothing(store: StoreModule, connection: Connection, role: str) -> None:
    """A way back that nobody has sent yet is not for dashboards; and a worker that is owned brings in no image."""
    del store
    for table in ("firmware_image", "firmware_release"):
        for action in ("SELECT", "INSERT", "UPDATE", "DELETE"):
            [(may,)] = connection.execute("SELECT has_table_privilege(%s, %s, %s)", [role, table, action]).fetchall()
            assert may is (role == "stocktide_ingest" and action == "SELECT")
