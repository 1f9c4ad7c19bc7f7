"""Firmware at the gateway: images that are fetched piece by piece, and devices that are offered them."""

import asyncio
import hashlib
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from edge_agent.cli.app import app
from edge_agent.devices.firmware_server import ASKS_WAITING_MAX, BUSY_JOBS, FirmwareServer
from edge_agent.ledger import database
from edge_agent.ledger.clock import SystemClock
from edge_agent.ledger.ledger import Ledger
from edge_agent.ledger.sql import statement
from edge_agent.link.firmware_sync import FETCHES_MAX, FirmwareSync
from edge_agent.provisioning import firmware
from edge_agent.provisioning.images import IMAGES_KEPT_MAX, ImageStore
from edge_agent.provisioning.twin import TwinWriter
from edge_agent.signals import Signals
from testbed.turned_loop import pass_time, turned
from tests.firmware_sim.images import MODEL, device, fetch, image, piece, release
from wire_protocol.firmware import (
    FirmwareChunk,
    FirmwareChunkLine,
    FirmwareOffer,
    FirmwareRequest,
    Manifest,
    Release,
    ReportedFirmware,
)
from wire_protocol.messages import DeviceStatus, InvalidMessage, UpdateState, UpdateStatus
from wire_protocol.twin import DesiredTwin, merged

BODY = image("1.1.0", 80_000)


def wanted(ledger: Ledger, version: int, *releases: Release) -> None:
    """Put a twin in force that wants these releases."""
    fields = {each.model: each.model_dump(mode="json", exclude={"v"}) for each in releases}
    with database.transaction(ledger.connection):
        assert (
            TwinWriter(ledger).apply(DesiredTwin(version=version, state=merged({}, {"firmware": fields}))) is not None
        )


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    """A gateway with one device."""
    with Ledger.create(tmp_path / "ledger.db", "gw-1", SystemClock()) as made:
        with database.transaction(made.connection):
            made.connection.execute(statement("insert_device"), ("probe-1", "probe"))
        yield made


class Gateway:
    """The part of a gateway that fetches images; asked and answered by hand."""

    def __init__(self, ledger: Ledger, folder: Path) -> None:
        self.offered = 0
        self.now_ms = 0
        self.image_store = ImageStore(folder)
        signals = Signals()
        signals.firmware_changed.connect(self._offer)
        self.link = FirmwareSync(ledger.connection, self.image_store, lambda: self.now_ms, signals)
        self.link.timer.connected(0)

    def _offer(self) -> None:
        self.offered += 1

    def take(self, chunk: FirmwareChunk) -> bool:
        return asyncio.run(self.link.take(chunk))

    def fetch(self, body: bytes, pieces: int | None = None) -> int:
        """Answer asks honestly until there is none, or so many times; returns how many there were."""
        asks = 0
        while asks != pieces and (ask := self.link.question()) is not None:
            asks += 1
            self.take(piece(body, ask.offset, ask.bytes))
        return asks


def test_an_image_is_fetched_and_kept_for_its_owner_alone(ledger: Ledger, tmp_path: Path) -> None:
    """An image is what a site's devices run: nobody else on the gateway may read or change it."""
    wanted(ledger, 1, release("1.1.0", 1, BODY))
    gateway = Gateway(ledger, tmp_path / "images")
    assert gateway.fetch(BODY) == 3
    assert gateway.link.question() is None
    [kept] = (tmp_path / "images").iterdir()
    assert (kept.name, kept.stat().st_mode & 0o777) == (f"{hashlib.sha256(BODY).hexdigest()}.img", 0o600)
    assert kept.parent.stat().st_mode & 0o777 == 0o700
    assert (kept.read_bytes(), gateway.offered) == (BODY, 1)
    assert gateway.link.report()[MODEL].fetched == len(BODY)


def test_a_fetch_goes_on_where_the_disk_is(ledger: Ledger, tmp_path: Path) -> None:
    """A gateway that is killed asks for what is missing; also when it was killed before it had checked the whole."""
    wanted(ledger, 1, release("1.1.0", 1, BODY))
    Gateway(ledger, tmp_path).fetch(BODY, pieces=2)
    again = Gateway(ledger, tmp_path)
    ask = again.link.question()
    assert ask is not None
    assert ask.offset == 64 * 1024
    [part] = tmp_path.glob("*.part")
    part.write_bytes(BODY)
    last = Gateway(ledger, tmp_path)
    assert last.fetch(BODY) == 1
    assert last.image_store.has(release("1.1.0", 1, BODY))


def test_what_is_damaged_or_out_of_place_never_ends_in_the_image(ledger: Ledger, tmp_path: Path) -> None:
    """Repeated, out of order, of another image, beyond the end, with the wrong size or digest: asked for again."""
    wanted(ledger, 1, release("1.1.0", 1, BODY))
    gateway = Gateway(ledger, tmp_path)
    other, name = image("7.7", 80_000), hashlib.sha256(BODY).hexdigest()
    for chunk in (
        piece(BODY, 100, 100),
        piece(other, 0, 100),
        piece(BODY, 0, 100, digest="0" * 64),
        piece(BODY, 0, 0),
        piece(BODY, 0, 40_000),
        piece(BODY[:-1], 0, 100, of=name),
        piece(BODY + b"!", 0, 100, of=name),
    ):
        assert not gateway.take(chunk)
    assert gateway.link.report()[MODEL].fetched == 0
    gateway.take(piece(BODY, 0, 100))
    gateway.take(piece(BODY, 0, 100))
    assert gateway.link.report()[MODEL].fetched == 100
    gateway.fetch(BODY)
    assert gateway.image_store.read(name, 0, len(BODY)) == (len(BODY), BODY)


@pytest.mark.bound("edge_agent.link.firmware_sync.FETCHES_MAX")
def test_another_image_under_that_name_is_thrown_away_and_told(ledger: Ledger, tmp_path: Path) -> None:
    """A broker that lies must cost some fetches, not the site's link forever; and devices never see it."""
    wanted(ledger, 1, release("1.1.0", 1, BODY))
    gateway, name, asks = Gateway(ledger, tmp_path), hashlib.sha256(BODY).hexdigest(), 0
    while (ask := gateway.link.question()) is not None:
        asks += 1
        gateway.take(piece(bytes(len(BODY)), ask.offset, ask.bytes, of=name))
    assert asks == 3 * FETCHES_MAX
    assert "not what was signed" in (gateway.link.report()[MODEL].problem or "")
    assert (list(tmp_path.glob("*.img")), gateway.offered) == ([], 0)
    gateway.now_ms += 60_000
    gateway.fetch(BODY)
    assert (gateway.link.report()[MODEL].problem, gateway.offered) == (None, 1)


def test_an_image_that_the_cloud_has_not_is_told(ledger: Ledger, tmp_path: Path) -> None:
    """The job that waits for it must learn why."""
    wanted(ledger, 1, release("1.1.0", 1, BODY))
    gateway, name = Gateway(ledger, tmp_path), hashlib.sha256(BODY).hexdigest()
    assert gateway.link.question() is not None
    nothing = FirmwareChunkLine(sha256=name, offset=0, size=0, digest=hashlib.sha256(b"").hexdigest())
    assert gateway.take(FirmwareChunk(nothing, b""))
    assert gateway.link.report()[MODEL].problem == "the cloud has no such image"
    assert gateway.link.question() is None


@pytest.mark.bound("edge_agent.provisioning.images.IMAGES_KEPT_MAX")
def test_images_are_bounded(ledger: Ledger, tmp_path: Path) -> None:
    """A gateway's disk is for its ledger: what nobody wants goes, the oldest first, and begun parts at once."""
    for number in range(1, IMAGES_KEPT_MAX + 4):
        gateway, body = Gateway(ledger, tmp_path), image(f"1.{number}", 2_000)
        wanted(ledger, number, release(f"1.{number}", number, body))
        gateway.link.twin_changed()
        gateway.fetch(body)
        (tmp_path / f"{'0' * 63}{number % 10}.part").write_bytes(b"begun")
    gateway.link.twin_changed()
    assert (len(list(tmp_path.glob("*.img"))), list(tmp_path.glob("*.part"))) == (IMAGES_KEPT_MAX, [])
    assert gateway.image_store.has(release(f"1.{number}", number, body))


def said(ledger: Ledger, name: str, **fields: object) -> None:
    """A device says what it is."""
    status = DeviceStatus.model_validate({"state": "online", "model": MODEL, "firmware": "1.0.0"} | fields)
    with database.transaction(ledger.connection):
        firmware.note(ledger, name, status)


def test_devices_are_offered_what_is_here_and_reported_by_model(ledger: Ledger, tmp_path: Path) -> None:
    """Offered too early, a device would ask in vain; what it was offered before is taken back until then."""
    wanted(ledger, 1, release("1.1.0", 5, BODY))
    gateway = Gateway(ledger, tmp_path)
    said(ledger, "probe-1")
    said(ledger, "stranger")
    said(ledger, "probe-1", update=UpdateStatus(release=4, state=UpdateState.HEALTHY))
    [offer] = firmware.offers(ledger.connection, gateway.image_store)
    assert offer == ("probe-1", b"")
    gateway.fetch(BODY)
    [offer] = firmware.offers(ledger.connection, gateway.image_store, "probe-1")
    assert FirmwareOffer.decode(offer.payload).release == 5
    told = gateway.link.report()[MODEL]
    assert (told.devices, told.healthy, told.failed) == (1, 0, {})
    said(ledger, "probe-1", update=UpdateStatus(release=5, state=UpdateState.ROLLED_BACK, reason="not healthy"))
    assert gateway.link.report()[MODEL].failed == {"probe-1": "rolled-back: not healthy"}
    assert firmware.offers(ledger.connection, gateway.image_store, "probe-1") == []
    said(ledger, "probe-1", update=UpdateStatus(release=5, state=UpdateState.HEALTHY), firmware="1.1.0")
    told = gateway.link.report()[MODEL]
    assert (told.healthy, told.failed) == (1, {})
    with database.transaction(ledger.connection):
        ledger.connection.execute(statement("delete_device"), ("probe-1",))
    assert firmware.rows(ledger.connection) == []


def test_a_device_that_says_what_it_is_costs_a_look_at_that_device_alone(ledger: Ledger, tmp_path: Path) -> None:
    """A thousand devices that come back each looked all of them up: a million rows, in the broker's thread."""
    wanted(ledger, 1, release("1.1.0", 5, BODY))
    gateway = Gateway(ledger, tmp_path)
    gateway.fetch(BODY)
    for number in range(20):
        with database.transaction(ledger.connection):
            ledger.connection.execute(statement("insert_device"), (f"other-{number}", "probe"))
        said(ledger, f"other-{number}")
    said(ledger, "probe-1")
    run = list[str]()
    ledger.connection.set_trace_callback(run.append)
    assert [offer.device for offer in firmware.offers(ledger.connection, gateway.image_store, "probe-1")] == ["probe-1"]
    assert firmware.offers(ledger.connection, gateway.image_store, "nobody") == []
    ledger.connection.set_trace_callback(None)
    plans = [ledger.connection.execute(f"EXPLAIN QUERY PLAN {sql}").fetchall() for sql in run]
    steps = [step for plan in plans for *_, step in plan if "VIRTUAL" not in step]
    assert [step for step in steps if step.startswith("SCAN") and step != "SCAN twin"] == []
    assert len(firmware.offers(ledger.connection, gateway.image_store)) == 21


def test_a_technician_sees_it_offline(ledger: Ledger, tmp_path: Path) -> None:
    """`stocktide edge firmware` works beside the running agent, without a network."""
    wanted(ledger, 1, release("1.1.0", 5, BODY))
    said(ledger, "probe-1", update=UpdateStatus(release=5, state=UpdateState.DOWNLOADING))
    path = str(tmp_path / "ledger.db")
    shown = CliRunner().invoke(app, ["firmware", "--ledger", path])
    assert (shown.exit_code, "downloading" in shown.output, "0 %" in shown.output) == (0, True, True)
    told = json.loads(CliRunner().invoke(app, ["firmware", "--ledger", path, "--json"]).output)
    assert (told["wanted"][0]["version"], told["devices"][0]["name"]) == ("1.1.0", "probe-1")


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "a" * 63, "A" * 64, "..", ""])
def test_no_name_of_an_image_leads_out_of_the_folder(name: str) -> None:
    """A name becomes a file's name: only a hash can."""
    with pytest.raises(InvalidMessage):
        FirmwareRequest.decode(json.dumps({"v": 1, "sha256": name, "offset": 0, "bytes": 1}).encode())


async def served(server: FirmwareServer, seconds: float) -> None:
    """Let a server work for a while."""
    running = asyncio.create_task(server.run())
    await pass_time(seconds)
    running.cancel()
    await asyncio.wait([running])


@pytest.mark.bound("edge.firmware_chunks_per_s_max")
@turned
async def test_devices_are_served_slowly_in_turn_and_after_scans(ledger: Ledger, tmp_path: Path) -> None:
    """Five hundred devices that update together must not hold back a single scan."""
    wanted(ledger, 1, release("1.1.0", 5, BODY))
    gateway = Gateway(ledger, tmp_path)
    await asyncio.to_thread(gateway.fetch, BODY)
    name, given, depth = hashlib.sha256(BODY).hexdigest(), list[tuple[str, FirmwareChunk]](), [BUSY_JOBS + 1]
    server = FirmwareServer(
        gateway.image_store,
        lambda device, payload: given.append((device, FirmwareChunk.decode(payload))),
        lambda: depth[0],
        20,
    )
    for number in range(50):
        for offset in (0, 8192):
            server.requested(f"probe-{number}", FirmwareRequest(sha256=name, offset=offset, bytes=60_000))
    await served(server, 0.3)
    assert given == []
    depth[0] = 0
    server._work.set()
    await served(server, 0.5)
    assert len(given) == 10
    assert [device for device, _ in given] == [f"probe-{number}" for number in range(len(given))]
    assert all((chunk.line.offset, len(chunk.piece)) == (8192, 8192) for _, chunk in given)


@pytest.mark.bound("edge_agent.devices.firmware_server.ASKS_WAITING_MAX")
@turned
async def test_what_devices_ask_is_bounded_and_may_be_nonsense(tmp_path: Path) -> None:
    """An ask for what is not here, or lies beyond the end, costs nothing; beyond the bound a device asks again."""
    image_store, given = ImageStore(tmp_path), list[str]()
    body = image("1.1.0", 5_000)
    assert image_store.add(release("1.1.0", 1, body), 0, body)
    server = FirmwareServer(image_store, lambda device, _: given.append(device), lambda: 0, 10_000)
    server.requested("nothing", FirmwareRequest(sha256="0" * 64, offset=0, bytes=10))
    server.requested("beyond", FirmwareRequest(sha256=hashlib.sha256(body).hexdigest(), offset=9_999_999, bytes=10))
    for number in range(ASKS_WAITING_MAX + 10):
        server.requested(f"p-{number}", FirmwareRequest(sha256=hashlib.sha256(body).hexdigest(), offset=0, bytes=10))
    assert len(server._asks) == ASKS_WAITING_MAX
    await served(server, 1)
    assert server._asks == {}
    assert ("nothing" in given, "beyond" in given, "p-0" in given) == (False, False, True)


@given(steps=st.lists(st.tuples(st.sampled_from(["honest", "lie", "old", "kill", "cut"]), st.integers(0, 40_000))))
@settings(max_examples=40, deadline=None)
def test_whatever_comes_in_whatever_order_the_image_is_right_or_not_there(
    steps: list[tuple[Literal["honest", "lie", "old", "kill", "cut"], int]],
) -> None:
    """Kills, torn writes, lies and repetitions: what devices are given is what was signed, and it comes in the end."""
    name, wanted_release = hashlib.sha256(BODY).hexdigest(), release("1.1.0", 1, BODY)
    with TemporaryDirectory() as folder, Ledger.create(Path(folder) / "l.db", "gw-1", SystemClock()) as ledger:
        wanted(ledger, 1, wanted_release)
        images = Path(folder) / "images"
        gateway = Gateway(ledger, images)
        for what, number in steps:
            part = images / f"{name}.part"
            if what == "kill":
                gateway = Gateway(ledger, images)
            elif what == "cut" and part.exists():
                os.truncate(part, min(number, part.stat().st_size))
            elif what == "old":
                gateway.take(piece(BODY, number, 1_000))
            elif (ask := gateway.link.question()) is not None:
                body = BODY if what == "honest" else bytes(len(BODY))
                gateway.take(piece(body, ask.offset, ask.bytes, of=name))
            size, found = gateway.image_store.read(name, 0, len(BODY))
            assert (size, found) in [(0, b""), (len(BODY), BODY)]
        for _ in range(2):  # what was damaged is found at its end, and fetched from its beginning
            gateway.now_ms += 600_000
            gateway.fetch(BODY)
        assert gateway.image_store.read(name, 0, len(BODY)) == (len(BODY), BODY)


async def test_an_image_that_has_rotted_is_fetched_again(tmp_path: Path) -> None:
    """Every device would download it three times, refuse it, and never be asked to again."""
    image_store = ImageStore(tmp_path)
    good, bad = image("1.0.0"), image("1.1.0")
    for made, version in ((good, "1.0.0"), (bad, "1.1.0")):
        assert image_store.add(release(version, 1), 0, made)
    rotten = image_store._whole(release("1.1.0", 1).sha256)
    rotten.write_bytes(bad[:-1] + bytes([bad[-1] ^ 1]))
    image_store.check()
    assert (image_store.has(release("1.0.0", 1)), image_store.has(release("1.1.0", 1))) == (True, False)
    assert image_store.fetched(release("1.1.0", 1)) == 0


@turned
async def test_a_disk_that_cannot_be_read_costs_an_image_and_not_the_agent(tmp_path: Path) -> None:
    """Devices ask again and again: the agent would end again and again, and take no scans."""
    image_store, given = ImageStore(tmp_path), list[str]()
    made = release("1.0.0", 1)
    image_store.add(made, 0, image("1.0.0"))
    server = FirmwareServer(image_store, lambda device, _: given.append(device), lambda: 0, 1_000)
    running = asyncio.create_task(server.run())
    await pass_time(1)
    whole = image_store._whole(made.sha256)
    whole.unlink()
    whole.mkdir()
    server.requested("probe-1", FirmwareRequest(sha256=made.sha256, offset=0, bytes=100))
    await pass_time(1)
    assert not running.done()
    whole.rmdir()
    image_store.add(made, 0, image("1.0.0"))
    server.requested("probe-1", FirmwareRequest(sha256=made.sha256, offset=0, bytes=100))
    await pass_time(1)
    running.cancel()
    await asyncio.wait([running])
    assert given == ["probe-1"]


class SlowShelf(ImageStore):
    """A disk that writes when it is let."""

    begun, let = threading.Event(), threading.Event()

    def add(self, image: Manifest, offset: int, piece: bytes) -> bool:
        self.begun.set()
        assert self.let.wait(10)
        return super().add(image, offset, piece)


@pytest.mark.parametrize("size", [len(BODY), 100], ids=["a part", "the last piece"])
async def test_a_piece_that_is_written_while_the_twin_goes_back_does_not_stay(
    ledger: Ledger, tmp_path: Path, size: int
) -> None:
    """The change had tidied the disk already: the part of an image that nobody wants stayed until the next change."""
    old, new = release("1.0.0", 1, image("1.0.0")), release("1.1.0", 2, BODY[:size])
    wanted(ledger, 1, new)
    image_store = SlowShelf(tmp_path / "images")
    link = FirmwareSync(ledger.connection, image_store, lambda: 0, Signals())
    taking = asyncio.create_task(link.take(piece(BODY[:size], 0, 100)))
    await asyncio.to_thread(image_store.begun.wait, 10)
    wanted(ledger, 2, old)
    link.twin_changed()
    image_store.let.set()
    assert not await taking
    assert list((tmp_path / "images").glob("*.part")) == []
    assert link.report()[MODEL].release == old.release
    image_store.begun.clear()
    image_store.let.clear()


def test_a_device_that_is_put_back_in_the_middle_of_a_download_is_reported_where_it_is(
    ledger: Ledger, tmp_path: Path
) -> None:
    """Said to the cloud: the installed release, healthy; nothing of the one that was under way."""
    first, second = release("1.1.0", 1), release("1.2", 2)
    image_store, updater = ImageStore(tmp_path / "images"), device()
    for made, version in ((first, "1.1.0"), (second, "1.2")):
        image_store.add(made, 0, image(version))

    def said() -> ReportedFirmware:
        status = DeviceStatus(state="online", model=MODEL, firmware=updater.version, update=updater.status())
        with database.transaction(ledger.connection):
            firmware.note(ledger, "probe-1", status)
        return firmware.reported(ledger.connection, image_store, {})[MODEL]

    def offered() -> None:
        for _, payload in firmware.offers(ledger.connection, image_store):
            updater.offer(FirmwareOffer.decode(payload), 0)

    wanted(ledger, 1, first)
    said()
    offered()
    fetch(updater, image("1.1.0"))
    updater.power_on(0)
    updater.healthy(0)
    assert (said().healthy, said().failed) == (1, {})
    wanted(ledger, 2, second)
    offered()
    ask = updater.ask(0)
    assert ask is not None
    updater.chunk(piece(image("1.2"), 0, ask.bytes), 0)
    assert (said().release, said().healthy) == (2, 0)
    wanted(ledger, 3, first)
    offered()
    found = said()
    assert (found.release, found.version, found.healthy, found.failed) == (1, "1.1.0", 1, {})
    assert (updater.ask(10**9), updater.restart_wanted, updater.version) == (None, False, "1.1.0")
