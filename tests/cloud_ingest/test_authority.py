"""The certificate authority: what it signs, what it refuses to sign, and who can read its key."""

import base64
import os
import stat
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cloud_identity import certificates
from cloud_identity.authority import Authority, CommandSigner, KeyFileSigner, SigningRequest, signer
from cloud_identity.certificates import Revoked
from cloud_identity.errors import AuthorityError, AuthorityExists, AuthorityMissing, InvalidRequest, SignerFailed
from testbed.brokers import request_pem
from tests.cloud_ingest.authority_acts import make_authority, retire, rotate
from tests.edge_agent import killed


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.create(tmp_path_factory.mktemp("pki") / "ca", "Test")


@pytest.fixture(scope="module")
def csr() -> str:
    return request_pem(certificates.new_key(), "gw-a")


def test_no_file_of_an_authority_gives_its_key_away(tmp_path: Path) -> None:
    """A key that others can read is everybody's; not even for a moment, so the directory is closed as well."""
    made = Authority.create(tmp_path / "ca", "Test")
    made.add("Second")
    made.write_crl([])
    assert stat.S_IMODE((tmp_path / "ca").stat().st_mode) == 0o700
    for file in (tmp_path / "ca").rglob("*"):
        if file.is_file() and b"PRIVATE" in file.read_bytes():
            assert stat.S_IMODE(file.stat().st_mode) == 0o600, file
    assert b"PRIVATE" not in made.bundle.read_bytes() + made.crl.read_bytes()
    with pytest.raises(AuthorityExists):
        Authority.create(tmp_path / "ca", "Again")


def test_only_the_key_is_taken_from_a_request(authority: Authority) -> None:
    """Whatever else a gateway asks for (another use, to be an authority, other names) is for us to say."""
    key = certificates.new_key()
    greedy = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "gw-a")]))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("broker.example")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = greedy.public_bytes(serialization.Encoding.PEM).decode()
    made = KeyFileSigner(authority.directory).sign(SigningRequest.of(pem, "gw-a", 90))
    uses = made.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(uses) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    assert not made.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    with pytest.raises(x509.ExtensionNotFound):
        made.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert certificates.fingerprint_of(made) == certificates.fingerprint(key.public_key())
    life = made.not_valid_after_utc - datetime.now(UTC)
    assert timedelta(days=89) < life <= timedelta(days=90)
    assert issued_by(made, authority)


def issued_by(certificate: x509.Certificate, authority: Authority) -> bool:
    certificate.verify_directly_issued_by(authority.current().certificate)
    return certificates.issuer_id(certificate) == authority.current().key_id


def test_requests_that_are_refused(csr: str) -> None:
    """Another gateway's name, a weak or foreign kind of key, a request that its own key did not sign."""
    with pytest.raises(InvalidRequest, match="another name"):
        SigningRequest.of(csr, "gw-b", 90)
    for key in (rsa.generate_private_key(65537, 2048), ec.generate_private_key(ec.SECP384R1())):
        pem = (
            x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
        ).public_bytes(serialization.Encoding.PEM)
        with pytest.raises(InvalidRequest, match="P-256"):
            SigningRequest.of(pem.decode(), "gw-a", 90)
    der = bytearray(x509.load_pem_x509_csr(csr.encode()).public_bytes(serialization.Encoding.DER))
    der[-5] ^= 1
    forged = x509.load_der_x509_csr(bytes(der)).public_bytes(serialization.Encoding.PEM).decode()
    with pytest.raises(InvalidRequest):
        SigningRequest.of(forged, "gw-a", 90)


@example("\ud800")
@given(st.text(max_size=300))
def test_no_text_breaks_the_reading_of_requests(text: str) -> None:
    """What comes from the network is refused in words, never with a traceback."""
    with pytest.raises(InvalidRequest):
        SigningRequest.of(text, "gw-a", 90)


@settings(max_examples=200)
@given(data=st.data())
def test_no_damaged_request_breaks_the_reading(csr: str, data: st.DataObject) -> None:
    """A request whose bytes were changed is one of the same key or refused: the parser never gives way."""
    der = bytearray(x509.load_pem_x509_csr(csr.encode()).public_bytes(serialization.Encoding.DER))
    for _ in range(data.draw(st.integers(1, 4))):
        der[data.draw(st.integers(0, len(der) - 1))] = data.draw(st.integers(0, 255))
    body = base64.encodebytes(bytes(der)).decode()
    pem = f"-----BEGIN CERTIFICATE REQUEST-----\n{body}-----END CERTIFICATE REQUEST-----\n"
    try:
        found = SigningRequest.of(pem, "gw-a", 90)
    except InvalidRequest:
        return
    assert found.fingerprint == SigningRequest.of(csr, "gw-a", 90).fingerprint


def test_openssl_agrees(authority: Authority, csr: str, tmp_path: Path) -> None:
    """Brokers verify with OpenSSL: purpose, chain and revocation must mean there what they mean here."""
    made = KeyFileSigner(authority.directory).sign(SigningRequest.of(csr, "gw-a", 90))
    (tmp_path / "gw.pem").write_text(certificates.pem([made]))
    key, server = authority.server(["broker.example", "127.0.0.1"])
    (tmp_path / "server.pem").write_bytes(server)
    assert b"PRIVATE" in key

    def verifies(file: str, purpose: str) -> bool:
        done = subprocess.run(
            [
                "openssl",
                "verify",
                "-CAfile",
                str(authority.bundle),
                "-CRLfile",
                str(authority.crl),
                "-crl_check",
                "-purpose",
                purpose,
                str(tmp_path / file),
            ],
            capture_output=True,
            check=False,
        )
        return done.returncode == 0

    authority.write_crl([])
    assert verifies("gw.pem", "sslclient")
    assert verifies("server.pem", "sslserver")
    assert not verifies("gw.pem", "sslserver")
    assert not verifies("server.pem", "sslclient")
    authority.write_crl([Revoked(certificates.issuer_id(made), made.serial_number, datetime.now(UTC))])
    assert not verifies("gw.pem", "sslclient")
    assert verifies("server.pem", "sslserver")


def test_a_rotation_keeps_both_trusted_until_the_old_one_is_retired(tmp_path: Path, csr: str) -> None:
    """Between the two, certificates of both hold, and both can be revoked."""
    authority = Authority.create(tmp_path / "ca", "Test")
    signs = KeyFileSigner(authority.directory)
    old, before = authority.current().key_id, signs.sign(SigningRequest.of(csr, "gw-a", 90))
    authority.add("Test")
    after = signs.sign(SigningRequest.of(csr, "gw-a", 90))
    assert [member.key_id for member in authority.members()] == [authority.current().key_id, old]
    assert {certificates.issuer_id(before), certificates.issuer_id(after)} == {
        certificates.key_id(each) for each in signs.bundle()
    }
    lists = authority.write_crl([Revoked(old, before.serial_number, datetime.now(UTC))]).read_bytes()
    assert lists.count(b"BEGIN X509 CRL") == 2
    with pytest.raises(AuthorityMissing):
        authority.retire(authority.current().key_id)
    authority.retire(old)
    assert [certificates.key_id(each) for each in signs.bundle()] == [authority.current().key_id]
    assert not (tmp_path / "ca" / old).exists()


def test_a_command_signs_as_well_as_a_key_file(authority: Authority, csr: str, tmp_path: Path) -> None:
    """The key may live where no worker can read it; here the command is openssl, and what it returns is checked."""
    home = authority.directory / "current"
    (tmp_path / "ext").write_text("extendedKeyUsage=clientAuth\nbasicConstraints=critical,CA:FALSE\n")
    script = tmp_path / "sign"
    script.write_text(
        '#!/bin/sh\nset -e\n[ -z "$STOCKTIDE_DATABASE_URL" ]\n'
        f"exec openssl x509 -req -CA {home}/certificate.pem -CAkey {home}/key.pem -days ${{STOCKTIDE_DAYS}} "
        f"-extfile {tmp_path}/ext\n"
    )
    script.chmod(0o755)
    made = CommandSigner(str(script), authority.bundle, timeout_s=10)
    assert issued_by_subject(made.sign(SigningRequest.of(csr, "gw-a", 30)), authority)

    (tmp_path / "ext").write_text("extendedKeyUsage=serverAuth\nbasicConstraints=critical,CA:FALSE\n")
    with pytest.raises(SignerFailed, match="client alone"):
        made.sign(SigningRequest.of(csr, "gw-a", 30))
    (tmp_path / "ext").write_text("extendedKeyUsage=clientAuth\nbasicConstraints=critical,CA:TRUE\n")
    with pytest.raises(SignerFailed, match="client alone"):
        made.sign(SigningRequest.of(csr, "gw-a", 30))
    stranger = Authority.create(tmp_path / "other", "Other")
    (tmp_path / "ext").write_text("extendedKeyUsage=clientAuth\nbasicConstraints=critical,CA:FALSE\n")
    with pytest.raises(SignerFailed, match="not in the bundle"):
        CommandSigner(str(script), stranger.bundle, timeout_s=10).sign(SigningRequest.of(csr, "gw-a", 30))
    script.write_text(script.read_text().replace("${STOCKTIDE_DAYS}", "4000"))
    with pytest.raises(SignerFailed, match="longer"):
        made.sign(SigningRequest.of(csr, "gw-a", 30))


def issued_by_subject(certificate: x509.Certificate, authority: Authority) -> bool:
    return certificate.issuer == authority.current().certificate.subject


@pytest.mark.bound("cloud.signer_answer_s_max")
def test_a_signer_that_hangs_is_given_up(authority: Authority, csr: str) -> None:
    """A vault that does not answer must not stop the worker's other claims forever."""
    with pytest.raises(SignerFailed, match=r"within 0\.2 s"):
        CommandSigner("sleep 60", authority.bundle, timeout_s=0.2).sign(SigningRequest.of(csr, "gw-a", 90))
    with pytest.raises(SignerFailed, match="cannot be run"):
        CommandSigner("/does/not/exist", authority.bundle, timeout_s=1).sign(SigningRequest.of(csr, "gw-a", 90))


def test_a_worker_finds_out_at_its_start_that_its_authority_is_missing(tmp_path: Path) -> None:
    """A wrong path must not show only when the first gateway enrols."""
    assert signer(None, None, None, timeout_s=1) is None
    for given_ in ((tmp_path / "none", None, None), (None, "true", None), (None, "true", tmp_path / "none")):
        with pytest.raises(AuthorityMissing):
            signer(*given_, timeout_s=1)


# --- killed in the middle -----------------------------------------------------------------------------------------

KILLED = -9
STEPS_MIN = 5


def require_working(authority: Authority) -> None:
    """It signs, what it signs is trusted by its bundle, it writes its lists, and no folder is open."""
    request = SigningRequest.of(request_pem(certificates.new_key(), "gw-a"), "gw-a", 1)
    made = KeyFileSigner(authority.directory).sign(request)
    trusted = {certificates.key_id(each) for each in certificates.read_chain(authority.bundle.read_bytes())}
    assert certificates.issuer_id(made) == authority.current().key_id
    assert authority.current().key_id in trusted
    lists = authority.write_crl([]).read_bytes().count(b"BEGIN X509 CRL")
    assert lists == len(authority.members())
    for place in authority.directory.rglob("*"):
        if place.is_dir() and not place.is_symlink():
            assert stat.S_IMODE(place.stat().st_mode) == 0o700


def deaths(act: killed.Act, folder: Path, *before: killed.Act) -> Iterator[Path]:
    """A directory for each step at which the act was killed; the act after `before` comes to its end in the last."""
    for step in count(1):
        directory = folder / str(step)
        for earlier in before:
            earlier(directory)
        code = killed.run(act, directory, step)
        yield directory
        if code != KILLED:
            assert code == 0
            assert step > STEPS_MIN
            return


def test_init_killed_at_any_step_can_be_repeated(tmp_path: Path) -> None:
    """A kill between the link and the bundle left a directory that had an authority for `init` and none for workers."""
    for directory in deaths(make_authority, tmp_path):
        try:
            authority = Authority.create(directory, "Test")
        except AuthorityExists:
            authority = Authority(directory)
        require_working(authority)
        assert len(authority.members()) == 1


@pytest.mark.parametrize(("act", "before"), [(rotate, [make_authority]), (retire, [make_authority, rotate])])
def test_an_authority_works_wherever_a_change_was_killed(
    tmp_path: Path, act: killed.Act, before: list[killed.Act]
) -> None:
    """A folder without its key, or an authority that signs and is not trusted, would stop every enrolment."""
    for directory in deaths(act, tmp_path, *before):
        authority = Authority(directory)
        require_working(authority)
        authority.add("After")  # and the next change mends what was left
        require_working(authority)
        trusted = [certificates.key_id(each) for each in certificates.read_chain(authority.bundle.read_bytes())]
        assert trusted == [member.key_id for member in authority.members()]
        assert not [place for place in directory.iterdir() if place.name.startswith(".authority-")]


def test_two_at_once_make_one_authority(tmp_path: Path) -> None:
    """Two terminals, one of which hangs: the second must not put its own authority in the first one's place."""
    codes = killed.at_once(make_authority, tmp_path / "ca", 4)
    assert sorted(codes) == [0, 1, 1, 1]
    authority = Authority(tmp_path / "ca")
    assert len(authority.members()) == 1
    require_working(authority)


def test_folders_do_not_depend_on_the_umask(tmp_path: Path) -> None:
    """Above the authority, folders that everybody may write are folders in which everybody may replace it."""
    for umask, name in ((0o000, "open"), (0o077, "closed")):
        before = os.umask(umask)
        try:
            Authority.create(tmp_path / name / "srv" / "ca", "Test")
        finally:
            os.umask(before)
        modes = [stat.S_IMODE((tmp_path / name / each).stat().st_mode) for each in ("", "srv", "srv/ca")]
        assert modes == [0o755, 0o755, 0o700]
        assert stat.S_IMODE((tmp_path / name / "srv" / "ca" / "bundle.pem").stat().st_mode) == 0o644


def test_a_directory_that_lost_its_link_is_not_made_again(tmp_path: Path) -> None:
    """A copy without symbolic links has its keys still: one goes on, of several the operator says which signs."""
    directory = tmp_path / "ca"
    first = Authority.create(directory, "Test").current().key_id
    (directory / "current").unlink()
    assert Authority.create(directory, "Test").current().key_id == first
    second = Authority(directory).add("Next").key_id
    (directory / "current").unlink()
    with pytest.raises(AuthorityError, match="2 authorities") as refused:
        Authority.create(directory, "Test")
    assert "ln -s KEY_ID" in (refused.value.hint or "")
    (directory / "current").symlink_to(second)
    require_working(Authority(directory))
