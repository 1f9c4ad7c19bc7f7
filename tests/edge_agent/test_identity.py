"""The gateway's key and certificate: never half there, never readable by others, never somebody else's."""

import json
import stat
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from cloud_identity import certificates
from cloud_identity.authority import Authority, KeyFileSigner, SigningRequest
from edge_agent import files
from edge_agent.cli.app import app
from edge_agent.conditions import Conditions, Part
from edge_agent.identity.keystore import (
    CERTIFICATE,
    BadCertificate,
    Identity,
    IdentityFolder,
    IdentityUnusable,
    Pending,
)
from edge_agent.identity.renewal import Renewal, note_certificate
from edge_agent.ledger.clock import SystemClock
from edge_agent.ledger.ledger import Ledger
from wire_protocol.messages import CertificateResponse

NOW_MS = int(datetime.now(UTC).timestamp() * 1000)
DAY_MS = 86_400_000


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.create(tmp_path_factory.mktemp("pki") / "ca", "Test")


def answer(authority: Authority, csr_pem: str, gateway: str = "gw-a", days: float = 90) -> dict[str, Any]:
    """What the cloud says to a request."""
    signer = KeyFileSigner(authority.directory)
    made = signer.sign(SigningRequest.of(csr_pem, gateway, days))
    bundle = certificates.pem(signer.bundle())
    return {
        "gateway": gateway,
        "certificate_pem": certificates.pem([made]),
        "ca_pem": bundle,
        "brokers": ("mqtts://b",),
    }


def installed(home: IdentityFolder, authority: Authority, **options: Any) -> Identity:
    pending = home.pending("gw-a")
    return home.install(pending, claim="c1a1m000", **answer(authority, pending.csr_pem, **options))


def test_a_key_is_its_owner_s_alone(tmp_path: Path, authority: Authority) -> None:
    """The key is the gateway's name: whoever can read it is the gateway."""
    home = IdentityFolder(tmp_path / "identity")
    assert home.current() is None
    made = installed(home, authority)
    assert home.current() == made
    assert stat.S_IMODE(home.folder.stat().st_mode) == 0o700
    keys = list(home.folder.rglob("key.pem"))
    assert [stat.S_IMODE(key.stat().st_mode) for key in keys if not key.is_symlink()] == [0o600] * len(keys)
    made.context()


@pytest.mark.parametrize("number", range(12))
def test_a_crash_anywhere_can_be_repeated(
    tmp_path: Path, authority: Authority, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut at any step leaves the old identity or the new one, and the same key for the cloud's same answer."""
    home = IdentityFolder(tmp_path / "identity")
    before = installed(home, authority)
    steps, asked = [0], set[bytes]()

    def crashing(call: Callable[..., Any]) -> Callable[..., Any]:
        def step(*arguments: Any, **options: Any) -> Any:
            steps[0] += 1
            if steps[0] == number + 1:
                raise KeyboardInterrupt
            return call(*arguments, **options)

        return step

    def renew() -> Identity:
        pending = home.pending("gw-a")
        asked.add(certificates.fingerprint(certificates.requested_key(pending.csr_pem, "gw-a")))
        return home.install(pending, claim=None, **answer(authority, pending.csr_pem))

    with monkeypatch.context() as cut:
        cut.setattr(files, "sync", crashing(files.sync))
        cut.setattr(Path, "replace", crashing(Path.replace))
        try:
            renew()
        except KeyboardInterrupt:
            found = home.current()
            assert found is not None
            found.context()  # whichever it is, it is whole
            done = found != before
    if not done:
        assert home.current() == before
        renew()
    current = home.current()
    assert current is not None
    assert current != before
    assert len(asked) <= 2  # a key that was not yet complete is made again; one that was asked for stays


def test_what_does_not_fit_is_not_stored(tmp_path: Path, authority: Authority) -> None:
    """A certificate for another key, in another name or of another authority must not replace one that works."""
    home = IdentityFolder(tmp_path / "identity")
    before = installed(home, authority)
    pending = home.pending("gw-a")
    good = answer(authority, pending.csr_pem)
    other = IdentityFolder(tmp_path / "other").pending("gw-a")
    foreign = Authority.create(tmp_path / "foreign", "Foreign")
    for bad, why in (
        (answer(authority, other.csr_pem), "another key"),
        (good | {"gateway": "gw-b"}, "another name"),
        (good | {"ca_pem": foreign.bundle.read_text()}, "another authority"),
        (good | {"certificate_pem": "nonsense"}, "no certificate"),
    ):
        with pytest.raises(BadCertificate, match=why):
            home.install(pending, claim=None, **bad)
        assert home.current() == before


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(max_size=200), field=st.sampled_from(["certificate_pem", "ca_pem"]))
def test_no_answer_breaks_the_gateway(tmp_path: Path, authority: Authority, text: str, field: str) -> None:
    """A hostile or broken cloud is refused in words, and the identity in force stays."""
    home = IdentityFolder(tmp_path / "identity")
    before = home.current() or installed(home, authority)
    pending: Pending = home.pending("gw-a")
    with pytest.raises(BadCertificate):
        home.install(pending, claim=None, **(answer(authority, pending.csr_pem) | {field: text}))
    assert home.current() == before


def test_a_damaged_identity_is_told_not_used(tmp_path: Path, authority: Authority) -> None:
    """A file cut short by a failing card is an error with a hint, not a traceback in the log every second."""
    home = IdentityFolder(tmp_path / "identity")
    made = installed(home, authority)
    for name in ("facts.json", "certificate.pem", "key.pem"):
        file = made.folder / name
        whole = file.read_bytes()
        file.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(IdentityUnusable) as caught:
            home.tls()
        assert caught.value.hint
        file.write_bytes(whole)
    home.tls()


def test_the_next_certificate_is_asked_for_at_two_thirds(tmp_path: Path, authority: Authority) -> None:
    """Early enough that a link down for weeks does not cost the gateway its certificate; and by the cloud's clock."""
    home, told = IdentityFolder(tmp_path / "identity"), list[int | None]([None])
    made = installed(home, authority)
    renewal = Renewal(home, "gw-a", lambda: told[0])
    for now_ms, due in ((None, False), (NOW_MS + 59 * DAY_MS, False), (NOW_MS + 61 * DAY_MS, True)):
        told[0] = now_ms
        assert (renewal.question() is not None) == due
    first, again = renewal.question(), renewal.question()
    assert first is not None
    assert again is not None
    keys = {certificates.fingerprint(certificates.requested_key(each.csr_pem, "gw-a")) for each in (first, again)}
    assert len(keys) == 1
    fields = answer(authority, again.csr_pem)
    assert not renewal.take(CertificateResponse(nonce=first.nonce, **fields))  # to the earlier question
    assert renewal.take(CertificateResponse(nonce=again.nonce, **fields))
    assert not renewal.take(CertificateResponse(nonce=again.nonce, **fields))  # once is enough
    renewed = home.current()
    assert renewed is not None
    assert renewed.serial != made.serial
    assert renewed.claim == made.claim


def test_a_new_certificate_that_no_broker_takes_does_not_shut_the_gateway_out(
    tmp_path: Path, authority: Authority
) -> None:
    """Every third attempt is made with the identity before; nothing older is kept."""
    home = IdentityFolder(tmp_path / "identity")
    folders = [installed(home, authority).folder for _ in range(4)]
    assert sorted(place for place in home.folder.iterdir() if not place.is_symlink()) == sorted(folders[-2:])
    for attempt in range(3):
        home.tls(attempt)
    (folders[-2] / "key.pem").write_text("gone")
    home.tls(0)
    home.tls(1)
    with pytest.raises(IdentityUnusable):
        home.tls(2)


@pytest.mark.parametrize(
    ("days", "state", "ok", "words"),
    [
        (-1, "not valid yet", False, "clock"),
        (1, "valid", True, "ends at"),
        (70, "renewal due", True, "by itself"),
        (91, "expired", False, "ran out at"),
    ],
)
def test_the_certificates_state_is_a_sentence_with_a_date(
    tmp_path: Path, authority: Authority, days: int, state: str, *, ok: bool, words: str
) -> None:
    """A certificate that ran out while the gateway was offline was shown as a line of OpenSSL's, if at all."""
    home, kept = IdentityFolder(tmp_path / "identity"), Conditions()
    installed(home, authority)
    note_certificate(kept, home, NOW_MS + days * DAY_MS)
    condition = kept[Part.CERTIFICATE]
    assert condition is not None
    assert (condition.state, condition.ok) == (state, ok)
    assert words in (condition.why or "")
    assert ok or condition.hint


def test_a_damaged_certificate_and_none_are_states_too(tmp_path: Path, authority: Authority) -> None:
    """The look at it must not end the agent."""
    home, kept = IdentityFolder(tmp_path / "identity"), Conditions()
    note_certificate(kept, home, NOW_MS)
    assert kept[Part.CERTIFICATE] == ("none", True, *kept[Part.CERTIFICATE][2:])  # type: ignore[index]
    identity = installed(home, authority)
    (identity.folder / CERTIFICATE).write_bytes(b"\x00")
    note_certificate(kept, home, NOW_MS)
    assert "damaged" in kept.problems()["certificate"]


def test_status_names_the_brokers_of_the_enrolment(tmp_path: Path, authority: Authority) -> None:
    """An enrolled gateway has no address in its ledger; its technician must not read that it works offline."""
    ledger = tmp_path / "ledger.db"
    with Ledger.create(ledger, "gw-a", SystemClock(), cloud_url=None, local_url=None):
        pass
    home = IdentityFolder.beside(ledger)

    def shown() -> list[str]:
        found = CliRunner().invoke(app, ["status", "--json", "--ledger", str(ledger)])
        assert found.exit_code == 0, found.output
        brokers: list[str] = json.loads(found.stdout)["brokers"]
        return brokers

    assert shown() == []
    home.pending("gw-a")
    assert shown() == []  # a claim without an answer yet
    made = installed(home, authority)
    assert shown() == ["mqtts://b"]
    (made.folder / CERTIFICATE).write_text("no certificate")
    [problem] = shown()
    assert "damaged" in problem


def test_one_enrolment_that_ends_leaves_the_key_of_another_that_has_begun(tmp_path: Path, authority: Authority) -> None:
    """Four terminals at once: the last to install took away the key that another had just asked a certificate for."""
    home = IdentityFolder(tmp_path / "identity")
    first = home.pending("gw-a")
    home.install(first, claim=None, **answer(authority, first.csr_pem))
    second = home.pending("gw-a")
    assert second.folder != first.folder
    home.install(first, claim=None, **answer(authority, first.csr_pem))  # a third, which had read the first key too
    home.install(second, claim=None, **answer(authority, second.csr_pem))
    found = home.current()
    assert found is not None
    assert found.folder == second.folder
