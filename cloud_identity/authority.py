"""The certificate authority: its directory, and the two ways to have something signed.

    ca/                      0700
      current -> 3f9a…       the authority that signs now; a rotation moves it
      3f9a…/key.pem          0600
      3f9a…/certificate.pem
      bundle.pem             every authority that is trusted, the current one first: for gateways and brokers
      crl.pem                one revocation list of each, for brokers

A worker signs with the key of such a directory, or asks a command that has the key somewhere else.

Invariant: a file here is replaced as a whole, and only its owner can ever read a key. An authority is whole and trusted
before it signs; a process that is killed leaves a directory that works, or that `create` finishes.
"""

import os
import shlex
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, Protocol, Self

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from cloud_identity import certificates, files
from cloud_identity.certificates import PrivateKey, PublicKey, Revoked
from cloud_identity.errors import AuthorityError, AuthorityExists, AuthorityMissing, SignerFailed
from wire_protocol import names

CURRENT: Final = "current"
KEY: Final = "key.pem"
CERTIFICATE: Final = "certificate.pem"
BUNDLE: Final = "bundle.pem"
CRL: Final = "crl.pem"
_PARTIAL: Final = ".authority-"
LIFE_SLACK: Final = timedelta(hours=1)
COMPLAINT_CHARS_MAX: Final = 200
ANSWER_BYTES_MAX: Final = 64 * 1024


@dataclass(frozen=True, slots=True)
class SigningRequest:
    """What is to be signed: the request as it came, the key found in it, and what we decide about the certificate."""

    csr_pem: str
    key: PublicKey
    gateway: str
    days: float

    @classmethod
    def of(cls, csr_pem: str, gateway: str, days: float) -> Self:
        """Check a gateway's request.

        Raises:
            InvalidRequest: it is not one, or not this gateway's.
        """
        return cls(csr_pem, certificates.requested_key(csr_pem, gateway), gateway, days)

    @property
    def fingerprint(self) -> bytes:
        """SHA-256 of the public key."""
        return certificates.fingerprint(self.key)


class Signer(Protocol):
    """The holder of the authority's key."""

    def sign(self, request: SigningRequest) -> x509.Certificate:
        """A gateway's certificate; raises SignerFailed. Called in a thread, may take its time."""

    def bundle(self) -> list[x509.Certificate]:
        """The authorities that gateways are to trust, the current one first."""


@dataclass(frozen=True, slots=True)
class Member:
    """One authority of a directory."""

    key_id: str
    certificate: x509.Certificate
    key: PrivateKey


class KeyFileSigner:
    """Signs with the key of an authority's directory; a rotation takes effect at once."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def sign(self, request: SigningRequest) -> x509.Certificate:
        """Part of `Signer`."""
        current = Authority(self._directory).current()
        return certificates.client_certificate(
            current.key,
            current.certificate,
            request.key,
            request.gateway,
            now=datetime.now(UTC),
            days=request.days,
        )

    def bundle(self) -> list[x509.Certificate]:
        """Part of `Signer`."""
        return certificates.read_chain(_read(self._directory / BUNDLE))


class CommandSigner:
    """Asks a command: the request in PEM on its standard input, the certificate in PEM on its standard output.

    Its environment has STOCKTIDE_GATEWAY (the common name) and STOCKTIDE_DAYS. What it returns is checked.
    """

    def __init__(self, command: str, bundle_file: Path, *, timeout_s: float) -> None:
        self._command, self._bundle_file, self._timeout_s = shlex.split(command), bundle_file, timeout_s

    def sign(self, request: SigningRequest) -> x509.Certificate:
        """Part of `Signer`."""
        variables = {"STOCKTIDE_GATEWAY": request.gateway, "STOCKTIDE_DAYS": f"{request.days:g}"}
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("STOCKTIDE_")}
        try:
            done = subprocess.run(  # noqa: S603 - the operator's own setting, without a shell
                self._command,
                input=request.csr_pem.encode(),
                capture_output=True,
                env=inherited | variables,
                timeout=self._timeout_s,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise SignerFailed(f"The signer did not answer within {self._timeout_s:g} s.") from None
        except OSError as error:
            raise SignerFailed(f"The signer cannot be run: {error.strerror}.") from None
        if done.returncode != 0:
            said = " ".join(done.stderr.decode(errors="replace").split())[:COMPLAINT_CHARS_MAX]
            raise SignerFailed(f"The signer ended with {done.returncode}: {said or 'it said nothing'}")
        if len(done.stdout) > ANSWER_BYTES_MAX:
            raise SignerFailed("The signer's answer is too long.")
        certificate = certificates.read_chain(done.stdout)[0]
        until = datetime.now(UTC) + timedelta(days=request.days) + LIFE_SLACK
        certificates.require_gateway_certificate(
            certificate, self.bundle(), key=request.key, gateway=request.gateway, until=until
        )
        return certificate

    def bundle(self) -> list[x509.Certificate]:
        """Part of `Signer`."""
        return certificates.read_chain(_read(self._bundle_file))


class Authority:
    """An authority's directory, for a process that may read its keys."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    @classmethod
    def create(cls, directory: Path, name: str) -> Self:
        """Make a directory with its first authority. Where an earlier attempt was killed, it goes on with that one.

        Raises:
            AuthorityExists: there is one.
            AuthorityError: there are several, and none that signs.
        """
        files.make_folder(directory, mode=0o700)
        directory.chmod(0o700)
        made = cls(directory)
        with files.locked(directory):
            if (directory / CURRENT).is_symlink():
                if made.bundle.exists():
                    hint = "Replace it with: stocktide cloud ca rotate"
                    raise AuthorityExists(f"{directory} has an authority.", hint=hint)
            elif unfinished := made._folders():
                if len(unfinished) > 1:
                    raise AuthorityError(
                        f"{directory} has {len(unfinished)} authorities, and none that signs.",
                        hint=f"Say which: ln -s KEY_ID {directory / CURRENT}",
                    )
                made._point(unfinished[0].name)
            else:
                made._add(name)
            made._write_bundle()
        return made

    def add(self, name: str) -> Member:
        """A new authority, which signs from now on; those before stay trusted."""
        with files.locked(self.directory):
            member = self._add(name)
            self._write_bundle()
        return member

    def _add(self, name: str) -> Member:
        """Its folder is whole before it has its name, and it is trusted before it signs."""
        key = certificates.new_key()
        certificate = certificates.new_authority(key, name, datetime.now(UTC))
        key_id = certificates.key_id(certificate)
        self._sweep()
        partial = self.directory / f"{_PARTIAL}{key_id}"
        partial.mkdir(mode=0o700)
        files.write(partial / KEY, certificates.key_pem(key), mode=0o600)
        files.write(partial / CERTIFICATE, certificates.pem([certificate]).encode(), mode=0o644)
        partial.rename(self.directory / key_id)
        files.sync(self.directory)
        if (self.directory / CURRENT).is_symlink():
            self._write_bundle()
        self._point(key_id)
        return Member(key_id, certificate, key)

    def _point(self, key_id: str) -> None:
        partial = self.directory / f".{CURRENT}"
        partial.unlink(missing_ok=True)
        partial.symlink_to(key_id)
        partial.replace(self.directory / CURRENT)
        files.sync(self.directory)

    def _sweep(self) -> None:
        """Remove the folders that a killed process has left: authorities that never signed, or do no more."""
        for folder in self.directory.glob(f"{_PARTIAL}*"):
            shutil.rmtree(folder)

    def _folders(self) -> list[Path]:
        """The folders of authorities that are whole, the one that signs among them."""
        return [
            folder
            for folder in sorted(self.directory.iterdir())
            if folder.is_dir() and not folder.is_symlink() and not folder.name.startswith(".")
        ]

    def retire(self, key_id: str) -> None:
        """Trust an authority no longer, and remove its key.

        Raises:
            AuthorityMissing: there is no such authority, or it is the one that signs.
        """
        with files.locked(self.directory):
            if key_id not in {member.key_id for member in self.members()} or key_id == self.current().key_id:
                raise AuthorityMissing(f"{key_id} is not an earlier authority.", hint="See: stocktide cloud ca show")
            self._sweep()
            (self.directory / key_id).rename(self.directory / f"{_PARTIAL}{key_id}")
            self._write_bundle()
            self._sweep()

    def current(self) -> Member:
        """The authority that signs now.

        Raises:
            AuthorityMissing: there is none.
        """
        return self._member(self.directory / CURRENT)

    def members(self) -> list[Member]:
        """All authorities that are trusted, the current one first."""
        current = self.current()
        return [current, *(self._member(folder) for folder in self._folders() if folder.name != current.key_id)]

    @property
    def bundle(self) -> Path:
        """The file of every authority's certificate."""
        return self.directory / BUNDLE

    @property
    def crl(self) -> Path:
        """The file of the revocation lists."""
        return self.directory / CRL

    def write_crl(self, revoked: Iterable[Revoked]) -> Path:
        """Write the revocation list of every authority, also those without a line: a broker wants one of each."""
        lines, now = list(revoked), datetime.now(UTC)
        lists = [
            certificates.revocation_list(
                member.key, member.certificate, (line for line in lines if line.issuer == member.key_id), now
            )
            for member in self.members()
        ]
        files.write(self.crl, b"".join(each.public_bytes(serialization.Encoding.PEM) for each in lists), mode=0o644)
        return self.crl

    def server(self, hosts: Sequence[str], days: float = certificates.SERVER_DAYS) -> tuple[bytes, bytes]:
        """A broker's new key and its certificate, both PEM."""
        current, key = self.current(), certificates.new_key()
        certificate = certificates.server_certificate(
            current.key, current.certificate, key.public_key(), hosts, now=datetime.now(UTC), days=days
        )
        return certificates.key_pem(key), certificates.pem([certificate]).encode()

    def worker(self, days: float = certificates.SERVER_DAYS) -> tuple[bytes, bytes]:
        """A new key for workers and its certificate, both PEM: a client's, in the workers' own name."""
        current, key = self.current(), certificates.new_key()
        certificate = certificates.client_certificate(
            current.key, current.certificate, key.public_key(), names.INGEST_USER, now=datetime.now(UTC), days=days
        )
        return certificates.key_pem(key), certificates.pem([certificate]).encode()

    def _write_bundle(self) -> None:
        files.write(self.bundle, certificates.pem(member.certificate for member in self.members()).encode(), mode=0o644)

    @staticmethod
    def _member(folder: Path) -> Member:
        certificate = certificates.read_chain(_read(folder / CERTIFICATE))[0]
        return Member(certificates.key_id(certificate), certificate, certificates.read_key(_read(folder / KEY)))


def signer(ca_dir: Path | None, command: str | None, bundle_file: Path | None, *, timeout_s: float) -> Signer | None:
    """The signer of a worker's settings; None when it has none.

    Raises:
        AuthorityMissing: it is set, and not there.
    """
    if command:
        if bundle_file is None:
            hint = "Set STOCKTIDE_CA_BUNDLE_FILE to what gateways are to trust."
            raise AuthorityMissing("A signer command needs the authorities' certificates.", hint=hint)
        made: Signer = CommandSigner(command, bundle_file, timeout_s=timeout_s)
    elif ca_dir is not None:
        Authority(ca_dir).current()
        made = KeyFileSigner(ca_dir)
    else:
        return None
    made.bundle()
    return made


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except FileNotFoundError:
        raise AuthorityMissing(f"There is no {file}.") from None
    except OSError as error:
        raise AuthorityError(
            f"{file} cannot be read: {error.strerror}.", hint="Who owns it, and who runs this?"
        ) from None
