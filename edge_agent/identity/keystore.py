"""What this gateway proves itself with: its key, its certificate, which authorities it trusts, and its brokers.

    ledger.identity/            0700, beside the ledger
      current -> 9c1f…          what the uplink uses
      9c1f…/key.pem             0600; made here, never leaves
      9c1f…/certificate.pem, ca.pem, facts.json
      pending -> 77ab…          a key whose certificate has been asked for

A folder is complete before `current` points to it, so a crash anywhere leaves the old identity or the new one. The same
pending key is used until an answer has come: the cloud answers the same key the same, however often it is asked.

Invariant: a private key is in one file of one folder, readable by its owner alone.
"""

import json
import shutil
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, NamedTuple, Self

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from edge_agent import files
from edge_agent.errors import EdgeError
from edge_agent.paths import identity_folder

CURRENT: Final = "current"
PENDING: Final = "pending"
RENEW: Final = "renew"  # a file: the next certificate is wanted now
KEY: Final = "key.pem"
CERTIFICATE: Final = "certificate.pem"
CA: Final = "ca.pem"
FACTS: Final = "facts.json"
LOCK_S: Final = 10.0
KEPT_MAX: Final = 2  # the current identity and the one before
RENEW_AT: Final = 2 / 3
FALL_BACK_EVERY: Final = 3  # attempts: a new certificate that no broker takes must not shut the gateway out


class IdentityUnusable(EdgeError):
    """The gateway's key or certificate cannot be used."""

    hint = "Look at the files, or enrol again with a new claim: stocktide edge enroll CLAIM --broker URL"


class BadCertificate(EdgeError):
    """The cloud's answer does not fit what was asked for."""

    hint = "Nothing was changed here. Tell the cloud's operator."


@dataclass(frozen=True, slots=True)
class Pending:
    """A key that waits for its certificate."""

    folder: Path
    csr_pem: str


@dataclass(frozen=True, slots=True)
class Identity:
    """A complete identity. Times are of the certificate, Unix milliseconds."""

    folder: Path
    gateway: str
    brokers: tuple[str, ...]
    claim: str | None
    serial: int
    begins_ms: int
    ends_ms: int

    @property
    def renew_ms(self) -> int:
        """When the next certificate is due: two thirds through this one's life."""
        return self.begins_ms + int((self.ends_ms - self.begins_ms) * RENEW_AT)

    def context(self) -> ssl.SSLContext:
        """TLS with this identity, trusting the cloud's authorities alone.

        Raises:
            IdentityUnusable: a file is missing or does not fit.
        """
        try:
            context = ssl.create_default_context(cafile=str(self.folder / CA))
            context.load_cert_chain(self.folder / CERTIFICATE, self.folder / KEY)
        except (OSError, ssl.SSLError) as error:
            raise IdentityUnusable(f"The identity in {self.folder} cannot be used: {error}.") from None
        return context


class Facts(NamedTuple):
    """What is kept beside a certificate: whose it is, where it is used, and by which claim it came."""

    gateway: str
    brokers: tuple[str, ...]
    claim: str | None


class IdentityFolder:
    """The identities of one ledger. Made of nothing: there may be none."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def beside(cls, ledger: Path) -> Self:
        """The folder of a ledger's gateway."""
        return cls(identity_folder(ledger))

    def current(self) -> Identity | None:
        """The identity in use; None before the gateway is enrolled.

        Raises:
            IdentityUnusable: it is damaged.
        """
        link = self.folder / CURRENT
        return self._read(self.folder / link.readlink()) if link.is_symlink() else None

    def tls(self, attempt: int = 0) -> ssl.SSLContext:
        """TLS for an attempt to connect, given how many have failed before it.

        Now and then with the identity before; without any, with the system's authorities and no certificate.

        Raises:
            IdentityUnusable: a file is missing or damaged.
        """
        current = self.current()
        if current is None:
            return ssl.create_default_context()
        if attempt % FALL_BACK_EVERY == FALL_BACK_EVERY - 1:
            for folder in self._complete():
                if folder != current.folder:
                    return self._read(folder).context()
        return current.context()

    def hurry(self) -> None:
        """Ask for the next certificate at the agent's next look, as after the cloud's authority was replaced."""
        (self.folder / RENEW).touch(mode=0o600)

    def due(self, now_ms: int) -> Identity | None:
        """The current identity, if its successor is to be asked for at this true time."""
        current = self.current()
        is_due = current is not None and (now_ms >= current.renew_ms or (self.folder / RENEW).exists())
        return current if is_due else None

    def pending(self, gateway: str | None) -> Pending:
        """The key that waits for its certificate, made if there is none, and a request for it.

        Raises:
            OSError: the folder cannot be written, or another process is at it.
        """
        files.make_folder(self.folder, 0o700)
        self.folder.chmod(0o700)
        with files.locked_folder(self.folder, wait_s=LOCK_S):
            return self._pending(gateway)

    def _pending(self, gateway: str | None) -> Pending:
        link, current = self.folder / PENDING, self.folder / CURRENT
        is_done = link.is_symlink() and current.is_symlink() and link.readlink() == current.readlink()
        if not link.is_symlink() or is_done or not (link / KEY).is_file():
            self._new_key()
        key = _private_key(link / KEY)
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, gateway)] if gateway else [])
        request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
        return Pending(self.folder / link.readlink(), request.public_bytes(serialization.Encoding.PEM).decode())

    def install(
        self,
        pending: Pending,
        *,
        gateway: str,
        certificate_pem: str,
        ca_pem: str,
        brokers: tuple[str, ...],
        claim: str | None,
    ) -> Identity:
        """Store the answer for a pending key and make it the current identity, in one step.

        Raises:
            BadCertificate: the certificate is not for this key and gateway, or not from one of these authorities.
            OSError: the folder cannot be written.
        """
        with files.locked_folder(self.folder, wait_s=LOCK_S):
            if (newer := self._overtaken(pending, gateway, claim)) is not None:
                return newer
            return self._install(pending, certificate_pem, ca_pem, Facts(gateway, brokers, claim))

    def _overtaken(self, pending: Pending, gateway: str, claim: str | None) -> Identity | None:
        """The identity that others have made by the same claim since, so often that this key is no longer kept."""
        if (pending.folder / KEY).exists():
            return None
        current = self.current()
        return current if current is not None and (current.gateway, current.claim) == (gateway, claim) else None

    def _install(self, pending: Pending, certificate_pem: str, ca_pem: str, facts: Facts) -> Identity:
        _require_fit(pending.folder / KEY, facts.gateway, certificate_pem, ca_pem)
        kept = json.dumps(facts._asdict())
        for name, text in ((CERTIFICATE, certificate_pem), (CA, ca_pem), (FACTS, kept)):
            files.write_whole(pending.folder / name, text.encode(), mode=files.FILE_MODE)
        made = self._read(pending.folder)
        self._point(CURRENT, pending.folder.name)
        (self.folder / RENEW).unlink(missing_ok=True)
        if self._waiting() == pending.folder:  # else another has begun since, with a key of its own
            (self.folder / PENDING).unlink()
        files.sync(self.folder)
        self._forget()
        return made

    def _new_key(self) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        digest = hashes.Hash(hashes.SHA256())
        digest.update(
            key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
        )
        name = digest.finalize().hex()[:32]
        (self.folder / name).mkdir(mode=0o700)
        text = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        files.write_whole(self.folder / name / KEY, text, mode=0o600)
        self._point(PENDING, name)

    def _point(self, link: str, target: str) -> None:
        partial = self.folder / f".{link}"
        partial.unlink(missing_ok=True)
        partial.symlink_to(target)
        partial.replace(self.folder / link)
        files.sync(self.folder)

    def _complete(self) -> list[Path]:
        """The folders that can be used, newest first."""
        folders = [place for place in self.folder.iterdir() if not place.is_symlink() and (place / FACTS).is_file()]
        return sorted(folders, key=lambda place: (place / FACTS).stat().st_mtime_ns, reverse=True)

    def _waiting(self) -> Path | None:
        """The folder of the key that waits for its certificate."""
        link = self.folder / PENDING
        return self.folder / link.readlink() if link.is_symlink() else None

    def _forget(self) -> None:
        """Remove what is older than the identity before, and keys that came to nothing."""
        kept = [*self._complete()[:KEPT_MAX], self._waiting()]
        for place in self.folder.iterdir():
            if place.is_dir() and not place.is_symlink() and place not in kept:
                shutil.rmtree(place, ignore_errors=True)

    @staticmethod
    def _read(folder: Path) -> Identity:
        try:
            facts = json.loads((folder / FACTS).read_text())
            certificate = x509.load_pem_x509_certificate((folder / CERTIFICATE).read_bytes())
            return Identity(
                folder,
                str(facts["gateway"]),
                tuple(facts["brokers"]),
                facts["claim"],
                certificate.serial_number,
                _ms(certificate.not_valid_before_utc),
                _ms(certificate.not_valid_after_utc),
            )
        except (OSError, ValueError, KeyError, TypeError, x509.InvalidVersion) as error:
            raise IdentityUnusable(f"The identity in {folder} is damaged: {error}.") from None


def _require_fit(key_file: Path, gateway: str, certificate_pem: str, ca_pem: str) -> None:
    try:
        certificate = x509.load_pem_x509_certificate(certificate_pem.encode())
        authorities = x509.load_pem_x509_certificates(ca_pem.encode())
        public = certificate.public_key()
        names = [attribute.value for attribute in certificate.subject]
    except (ValueError, TypeError, UnsupportedAlgorithm, x509.InvalidVersion):
        raise BadCertificate("The cloud's answer holds no certificate that can be read.") from None
    if public != _private_key(key_file).public_key():
        raise BadCertificate("The certificate is for another key.")
    if names != [gateway]:
        raise BadCertificate("The certificate is in another name.")
    if not any(_issued_by(certificate, authority) for authority in authorities):
        raise BadCertificate("The certificate is from another authority than those to be trusted.")


def _issued_by(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _private_key(file: Path) -> ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_pem_private_key(file.read_bytes(), None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise IdentityUnusable(f"{file} cannot be used: {error}.") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise IdentityUnusable(f"{file} is not a P-256 key.")
    return key


def _ms(at: datetime) -> int:
    return int(at.astimezone(UTC).timestamp() * 1000)
