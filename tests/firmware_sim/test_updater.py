"""A device's way from one firmware to the next, whatever it is sent and whenever its power is cut."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from firmware_sim.errors import BadInput
from firmware_sim.firmware.flash import FolderFlash
from firmware_sim.firmware.updater import DOWNLOADS_MAX, TRIAL_BOOTS_MAX, Updater
from firmware_sim.fleet.trust import TrustedKey
from tests.firmware_sim.images import (
    FACTORY,
    KEY,
    MODEL,
    STRANGER,
    CutFlash,
    PowerCut,
    device,
    fetch,
    image,
    piece,
    release,
)
from wire_protocol.firmware import DEVICE_CHUNK_BYTES, FirmwareOffer

NEXT = "1.1.0"


def state(updater: Updater) -> tuple[str | None, str | None]:
    """Where a device says it is, and why."""
    said = updater.status()
    return (None, None) if said is None else (said.state, said.reason)


def taken(updater: Updater, offer: FirmwareOffer, body: bytes) -> None:
    """Take a release all the way: fetched, booted, healthy."""
    updater.offer(offer, 0)
    fetch(updater, body)
    updater.power_on(0)
    updater.healthy(0)


def test_a_new_image_is_fetched_tried_and_kept() -> None:
    """The whole way, without anything in it."""
    updater = device()
    updater.offer(release(NEXT, 1), 0)
    assert state(updater) == ("downloading", None)
    assert fetch(updater, image(NEXT)) == 3
    assert (updater.version, updater.restart_wanted, state(updater)[0]) == (FACTORY, True, "testing")
    updater.power_on(10)
    assert (updater.version, updater.on_trial, updater.restart_wanted) == (NEXT, True, False)
    updater.healthy(20)
    assert (state(updater), updater.on_trial) == (("healthy", None), False)
    updater.power_on(30)
    assert (updater.version, state(updater)[0]) == (NEXT, "healthy")
    assert updater.next_ms() is None


def test_an_image_that_is_not_healthy_in_time_is_given_up() -> None:
    """Else a bad image would be a dead device; and it is not tried again and again."""
    updater = device(health_ms=5_000)
    bad = release(NEXT, 1)
    updater.offer(bad, 0)
    fetch(updater, image(NEXT))
    updater.power_on(0)
    updater.tick(4_999)
    assert not updater.restart_wanted
    updater.tick(5_000)
    assert updater.restart_wanted
    updater.power_on(6_000)
    assert (updater.version, state(updater)) == (FACTORY, ("rolled-back", "not healthy within 5 s"))
    updater.offer(bad, 7_000)
    assert (updater.ask(7_000), state(updater)[0]) == (None, "rolled-back")


@pytest.mark.bound("firmware_sim.firmware.updater.TRIAL_BOOTS_MAX")
def test_an_image_that_restarts_is_given_up() -> None:
    """An image that crashes at once never lets its time run out."""
    updater = device()
    updater.offer(release(NEXT, 1), 0)
    fetch(updater, image(NEXT))
    for _ in range(TRIAL_BOOTS_MAX):
        updater.power_on(0)
        assert updater.version == NEXT
    updater.power_on(0)
    assert (updater.version, state(updater)) == (FACTORY, ("rolled-back", "restarted 3 times before it was healthy"))


@pytest.mark.parametrize("gives_up", ["its time runs out", "its time has run out and nobody looked", "it restarts"])
def test_an_image_that_was_given_up_cannot_confirm_itself(gives_up: str) -> None:
    """It still runs when it says so, until the restart: a rolled-back release would have become the active one."""
    updater = device(health_ms=5_000)
    updater.offer(release(NEXT, 1), 0)
    fetch(updater, image(NEXT))
    updater.power_on(0)
    if gives_up == "its time runs out":
        updater.tick(5_000)
    elif gives_up == "it restarts":
        for _ in range(TRIAL_BOOTS_MAX):
            updater.power_on(0)
    assert not updater.healthy(5_000)
    assert (updater.flash.record().active, state(updater)[0]) == ("a", "rolled-back")
    updater.power_on(6_000)
    assert (updater.version, updater.healthy(6_001), state(updater)[0]) == (FACTORY, False, "rolled-back")


def test_healthy_at_the_wrong_moment_changes_nothing() -> None:
    """Before anything was fetched, before the trial boot, twice, and before the device was switched on."""
    updater = device()
    assert not updater.healthy(0)
    updater.offer(release(NEXT, 1), 0)
    assert not updater.healthy(0)
    fetch(updater, image(NEXT))
    assert not updater.healthy(0)
    assert (state(updater)[0], updater.restart_wanted, updater.flash.record().active) == ("testing", True, "a")
    updater.power_on(0)
    assert [updater.healthy(0) for _ in range(2)] == [True, False]
    for second in (False, True):
        if second:  # the next release is fetched into slot a, and waits for its trial boot
            updater.offer(release("1.2", 2), 0)
            fetch(updater, image("1.2"))
        before = updater.flash.record()
        again = Updater(model=MODEL, flash=updater.flash, trusted=updater.trusted)
        assert not again.healthy(0)
        assert (again.version, again.flash.record()) == (NEXT, before)


def test_an_image_that_changes_after_it_was_checked_is_not_booted() -> None:
    """Between the check and the boot lies a restart: whoever can write to flash then must gain nothing."""
    flash = CutFlash()
    updater = device(flash)
    updater.offer(release(NEXT, 1), 0)
    fetch(updater, image(NEXT))
    flash.slots["b"][5] ^= 1
    updater.power_on(0)
    assert (updater.version, state(updater)[0]) == (FACTORY, "rolled-back")


def forged(offer: FirmwareOffer, **changes: object) -> FirmwareOffer:
    """An offer with its signature kept and something else in it."""
    return offer.model_copy(update=changes)


@pytest.mark.parametrize(
    ("offer", "why"),
    [
        pytest.param(release(NEXT, 1, key=STRANGER), "signature", id="another key"),
        pytest.param(forged(release(NEXT, 1), version="9.0"), "signature", id="another version's signature"),
        pytest.param(forged(release(NEXT, 1, model="scale-y"), model=MODEL), "signature", id="another model's"),
        pytest.param(forged(release(NEXT, 1), release=7), "signature", id="another release's signature"),
        pytest.param(forged(release("0.9", 1), replaces=FACTORY), "signature", id="a way back that nobody signed"),
        pytest.param(forged(release(NEXT, 1), sha256="0" * 64), "signature", id="another image's signature"),
        pytest.param(forged(release(NEXT, 1), signature="0" * 128), "signature", id="no signature"),
        pytest.param(release(NEXT, 1, model="scale-y"), "it is for scale-y", id="another model"),
        pytest.param(release("0.9", 1), "older", id="an older version"),
        pytest.param(release("0.9", 1, replaces="1.0.1"), "older", id="the way back from another version"),
        pytest.param(release(NEXT, 1, size=1 << 20), "a slot", id="too large"),
    ],
)
def test_what_must_not_be_taken_is_refused_before_a_byte_is_fetched(offer: FirmwareOffer, why: str) -> None:
    """Whoever can publish on a gateway's broker must not be able to say what devices run."""
    updater = device(slot_bytes=1 << 19)
    updater.offer(offer, 0)
    said, reason = state(updater)
    assert said == "refused"
    assert why in (reason or "")
    assert updater.ask(10**9) is None
    taken(updater, release(NEXT, 1), image(NEXT))
    assert (updater.version, state(updater)[0]) == (NEXT, "healthy")


def test_the_way_back_is_a_release_and_works_once() -> None:
    """Anyone who has recorded releases must not lead a device to an older version, nor to a bad one again."""
    updater = device()
    old, new, back = release(FACTORY, 1), release(NEXT, 2), release(FACTORY, 3, replaces=NEXT)
    taken(updater, new, image(NEXT))
    updater.offer(old, 0)
    assert state(updater)[0] == "refused"
    taken(updater, back, image(FACTORY))
    assert (updater.version, state(updater)[0]) == (FACTORY, "healthy")
    updater.offer(new, 0)
    assert (updater.ask(0), state(updater)[0]) == (None, "refused")
    again = release(NEXT, 4)
    taken(updater, again, image(NEXT))
    assert updater.version == NEXT
    updater.offer(back, 0)
    assert (updater.ask(0), state(updater)[0]) == (None, "refused")


def test_a_device_that_is_there_already_says_so() -> None:
    """The way back reaches devices that never left, too: they are done without a download."""
    updater = device()
    updater.offer(release(FACTORY, 3, replaces=NEXT), 0)
    assert (updater.ask(0), state(updater)[0]) == (None, "healthy")


def test_a_forged_offer_does_not_spoil_the_real_one() -> None:
    """Neither one under way nor one that is still to come."""
    updater = device()
    updater.offer(forged(release(NEXT, 5), version="9.0"), 0)
    updater.offer(release(NEXT, 5), 0)
    ask = updater.ask(0)
    assert ask is not None
    updater.chunk(piece(image(NEXT), 0, ask.bytes), 0)
    updater.offer(forged(release("8.0", 9), version="9.0"), 0)
    updater.offer(release("1.0.5", 4), 0)  # signed, but not newer than what is under way
    assert state(updater)[0] == "downloading"
    fetch(updater, image(NEXT))
    updater.power_on(0)
    assert updater.version == NEXT


def test_pieces_that_belong_nowhere_are_passed_over() -> None:
    """Repeated, out of order, of another image, damaged, empty, too large, beyond the end: none ends in the slot."""
    body, other = image(NEXT), image("7.7")
    updater = device()
    updater.chunk(piece(body, 0, 100), 0)  # nothing was asked for
    updater.offer(release(NEXT, 1), 0)
    first = updater.ask(0)
    assert first is not None
    wrong = [
        piece(body, DEVICE_CHUNK_BYTES, 100),
        piece(other, 0, 100),
        piece(body, 0, 100, digest="0" * 64),
        piece(body, 0, 0),
        piece(body, 0, DEVICE_CHUNK_BYTES + 1),
        piece(body[:-1], 0, 100, of=hashlib.sha256(body).hexdigest()),
    ]
    for chunk in wrong:
        updater.chunk(chunk, 0)
    assert updater.ignored == len(wrong) + 1
    good = piece(body, 0, first.bytes)
    updater.chunk(good, 0)
    updater.chunk(good, 0)
    assert updater.ignored == len(wrong) + 2
    fetch(updater, body)
    updater.power_on(0)
    assert updater.version == NEXT


@pytest.mark.bound("firmware_sim.firmware.updater.DOWNLOADS_MAX")
def test_another_image_under_the_right_name_is_not_booted_and_given_up() -> None:
    """A gateway that lies costs some downloads and no more; the right image is taken afterwards."""
    updater, body = device(), image(NEXT)
    lie = bytes(len(body))
    updater.offer(release(NEXT, 1), 0)
    asks = 0
    while (ask := updater.ask(0)) is not None:
        asks += 1
        updater.chunk(piece(lie, ask.offset, ask.bytes, of=hashlib.sha256(body).hexdigest()), 0)
    assert asks == 3 * DOWNLOADS_MAX
    assert (state(updater)[0], updater.restart_wanted) == ("refused", False)
    taken(updater, release(NEXT, 1), body)
    assert updater.version == NEXT


def test_an_ask_without_an_answer_is_said_again_ever_less_often() -> None:
    """Many devices behind a slow gateway must not shout it down."""
    updater = device()
    updater.offer(release(NEXT, 1), 0)
    now_ms, waits = 0, []
    for _ in range(8):
        assert updater.ask(now_ms) is not None
        at_ms = updater.next_ms()
        assert at_ms is not None
        waits.append(at_ms - now_ms)
        assert updater.ask(at_ms - 1) is None
        now_ms = at_ms
    assert waits == [2_000, 4_000, 8_000, 16_000, 32_000, 60_000, 60_000, 60_000]


def test_a_download_goes_on_after_a_power_cut(tmp_path: Path) -> None:
    """On real files: what was fetched is not fetched again."""
    trusted = TrustedKey(KEY.public_key()).signed
    updater = Updater(model=MODEL, flash=FolderFlash(tmp_path, FACTORY), trusted=trusted)
    updater.power_on(0)
    updater.offer(release(NEXT, 1), 0)
    ask = updater.ask(0)
    assert ask is not None
    updater.chunk(piece(image(NEXT), 0, ask.bytes), 0)
    again = Updater(model=MODEL, flash=FolderFlash(tmp_path, FACTORY), trusted=trusted)
    again.power_on(0)
    ask = again.ask(0)
    assert ask is not None
    assert ask.offset == DEVICE_CHUNK_BYTES
    assert fetch(again, image(NEXT), 10_000) == 2
    again.power_on(0)
    again.healthy(0)
    assert Updater(model=MODEL, flash=FolderFlash(tmp_path, "9.9"), trusted=trusted).flash.record().active == "b"
    (tmp_path / "record.json").write_text("{}")
    with pytest.raises(BadInput, match="not a device's record"):
        Updater(model=MODEL, flash=FolderFlash(tmp_path, FACTORY), trusted=trusted)


def test_an_offer_that_is_taken_back_ends_the_download() -> None:
    """Anyone who aborts a job does not want devices to go on fetching."""
    updater = device()
    updater.offer(release(NEXT, 1), 0)
    updater.withdraw()
    assert (updater.ask(0), updater.status()) == (None, None)


def begun(updater: Updater, offer: FirmwareOffer, body: bytes) -> None:
    """Take a release and fetch its first piece."""
    updater.offer(offer, 0)
    ask = updater.ask(0)
    assert ask is not None
    updater.chunk(piece(body, ask.offset, ask.bytes), 0)
    assert (state(updater)[0], updater.flash.record().received) == ("downloading", ask.bytes)


def test_a_device_that_is_put_back_in_the_middle_of_a_download_abandons_it() -> None:
    """It fetched the newer release to its end and booted it, though the twin wanted what was installed again."""
    updater, flash = (made := device()), made.flash
    taken(updater, first := release(NEXT, 1), image(NEXT))
    begun(updater, release("1.2", 2), image("1.2"))
    updater.offer(first, 0)
    said = updater.status()
    assert said is not None
    assert (said.release, said.state, updater.ask(10**9), updater.next_ms()) == (1, "healthy", None, None)
    kept = flash.record()
    assert (kept.download, kept.received, kept.installed["a"], kept.active) == (None, 0, None, "b")
    updater.power_on(0)
    assert (updater.version, updater.status(), updater.restart_wanted) == (NEXT, said, False)
    # The newer one is wanted after all: from its beginning, as nothing of it is counted on.
    updater.offer(release("1.2", 2), 0)
    ask = updater.ask(0)
    assert ask is not None
    assert ask.offset == 0
    fetch(updater, image("1.2"), 10_000)
    updater.power_on(0)
    updater.healthy(0)
    assert updater.version == "1.2"


def test_a_device_says_that_it_runs_what_it_is_put_back_to() -> None:
    """It has given up a newer release since, and refused the installed one as older than that."""
    updater = device(health_ms=5_000)
    taken(updater, first := release(NEXT, 1), image(NEXT))
    updater.offer(release("1.2", 2), 0)
    fetch(updater, image("1.2"))
    updater.power_on(0)
    updater.tick(5_000)
    updater.power_on(5_000)
    begun(updater, release("1.3", 3), image("1.3"))
    for _ in range(2):
        updater.offer(first, 5_000)
        said = updater.status()
        assert said is not None
        assert (said.release, said.state, updater.ask(10**9)) == (1, "healthy", None)
        updater.power_on(6_000)
    updater.offer(release("1.2", 2), 7_000)
    assert state(updater)[0] == "rolled-back", "what was given up stays given up"
    updater.offer(forged(first, version="9.0"), 7_000)
    assert state(updater)[0] == "refused"
    updater.withdraw()
    assert state(updater)[0] == "rolled-back", "an offer that is gone is not refused any more"


def test_what_comes_during_a_trial_waits_for_its_end() -> None:
    """One slot is on trial and the other the way back: neither may be written to."""
    updater = device()
    updater.offer(release(NEXT, 1), 0)
    fetch(updater, image(NEXT))
    updater.power_on(0)
    updater.offer(release("1.2", 2), 0)
    assert updater.ask(0) is None
    updater.healthy(0)
    ask = updater.ask(0)
    assert ask is not None
    assert ask.sha256 == release("1.2", 2).sha256


VERSIONS = ("0.9", FACTORY, "1.1", "1.2", "1.3")
BODIES = {hashlib.sha256(image(version)).hexdigest(): image(version) for version in VERSIONS}
SIGNED = [
    release(version, number, replaces=replaces)
    for number, (version, replaces) in enumerate(
        [("1.1", None), ("0.9", None), (FACTORY, "1.1"), ("1.2", None), ("1.1", "1.2"), ("1.3", None)], start=1
    )
]
OFFERS = [
    *SIGNED,
    *(forged(offer, release=offer.release + 10) for offer in SIGNED),
    release("1.3", 20, key=STRANGER),
    release("1.3", 21, model="scale-y"),
]


class PowerCuts(RuleBasedStateMachine):
    """Anything may be offered and sent, and the power may be cut at any write."""

    def __init__(self) -> None:
        super().__init__()
        self.flash = CutFlash()
        self.now_ms = 0
        self.updater = device(self.flash, health_ms=1_000)

    def attempt(self, what: Callable[[], object]) -> None:
        """Do something to the device; when its power is cut it is switched on again, until it stays on."""
        action = what
        while True:
            try:
                action()
            except PowerCut:
                self.updater = Updater(
                    model=MODEL, flash=self.flash, trusted=TrustedKey(KEY.public_key()).signed, health_ms=1_000
                )
                action = lambda: self.updater.power_on(self.now_ms)  # noqa: E731 - as the others
            else:
                return

    @rule(cut=st.integers(0, 4), torn=st.floats(0, 1))
    def power_will_be_cut(self, cut: int, torn: float) -> None:
        self.flash.cut, self.flash.torn = cut, torn

    @rule()
    def switched_off_and_on(self) -> None:
        self.attempt(lambda: self.updater.power_on(self.now_ms))

    @rule(offer=st.sampled_from(OFFERS))
    def offered(self, offer: FirmwareOffer) -> None:
        self.attempt(lambda: self.updater.offer(offer, self.now_ms))

    @rule(pieces=st.integers(1, 4))
    def served(self, pieces: int) -> None:
        for _ in range(pieces):
            self.attempt(self.serve_one)

    def serve_one(self) -> None:
        ask = self.updater.ask(self.now_ms)
        if ask is not None:
            self.updater.chunk(piece(BODIES[ask.sha256], ask.offset, ask.bytes), self.now_ms)

    @rule(sha256=st.sampled_from(sorted(BODIES)), offset=st.integers(0, 20_000), size=st.integers(0, 9_000))
    def sent_anything(self, sha256: str, offset: int, size: int) -> None:
        self.attempt(lambda: self.updater.chunk(piece(BODIES[sha256], offset, size), self.now_ms))

    @rule()
    def lied_to(self) -> None:
        """The right name and place, and other bytes."""

        def lie() -> None:
            ask = self.updater.ask(self.now_ms)
            if ask is not None:
                self.updater.chunk(piece(bytes(20_000), ask.offset, ask.bytes, of=ask.sha256), self.now_ms)

        self.attempt(lie)

    @rule()
    def restarts_when_it_wants(self) -> None:
        if self.updater.restart_wanted:
            self.attempt(lambda: self.updater.power_on(self.now_ms))

    @rule()
    def says_that_it_is_healthy(self) -> None:
        """At whatever moment: a firmware's author may call it anywhere."""
        self.attempt(lambda: self.updater.healthy(self.now_ms))

    @rule(ms=st.integers(1, 3_000))
    def time_passes(self, ms: int) -> None:
        self.now_ms += ms
        self.attempt(lambda: self.updater.tick(self.now_ms))

    @invariant()
    def what_runs_may_run(self) -> None:
        """The factory's, or byte for byte what was signed."""
        installed = self.flash.kept.installed[self.updater.running]
        if installed is None:
            assert self.updater.running == "a"
        else:
            assert TrustedKey(KEY.public_key()).signed(installed)
            assert self.updater.image() == BODIES[installed.sha256]
            assert installed.model == MODEL

    @invariant()
    def there_is_a_slot_to_boot(self) -> None:
        """Switched on at this instant, by whoever comes: something runs."""
        kept = self.flash.kept
        installed = kept.installed[kept.active]
        assert (
            kept.active == "a"
            if installed is None
            else self.flash.read(kept.active, installed.size) == BODIES[installed.sha256]
        )

    @invariant()
    def what_was_given_up_is_not_active(self) -> None:
        """Whatever it says of itself afterwards."""
        kept = self.flash.kept
        installed = kept.installed[kept.active]
        if kept.outcome is not None and kept.outcome.state == "rolled-back":
            assert installed is None or installed.release != kept.outcome.release

    @invariant()
    def releases_only_grow(self) -> None:
        """Nothing recorded is worth anything the second time."""
        before = getattr(self, "_greatest", 0)
        assert self.flash.kept.release >= before
        self._greatest = self.flash.kept.release


PowerCuts.TestCase.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)
TestPowerCuts = PowerCuts.TestCase
