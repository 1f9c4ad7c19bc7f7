"""The cloud's two brokers as a fleet with certificates has them, on real Mosquittos, with an authority of their own."""

import signal
import ssl
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Self

import aiomqtt
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from broker_config import fleet, passwords
from broker_config.fleet import FleetConfig
from broker_config.mosquitto import TlsFiles
from cloud_identity import certificates
from cloud_identity.authority import Authority
from cloud_identity.certificates import Revoked
from testbed.services import PrivateBroker
from testbed.services.server import HOST, free_port
from wire_protocol import names

SECRET: Final = "correct-horse-battery"


def request_pem(key: ec.EllipticCurvePrivateKey, name: str | None) -> str:
    """A certificate signing request, as any tool would make it."""
    subject = x509.Name([] if name is None else [x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    return request.public_bytes(serialization.Encoding.PEM).decode()


@dataclass
class FleetBrokers:
    """`with FleetBrokers(tmp_path) as brokers:`: an authority, the broker of gateways and workers, that of claims."""

    folder: Path
    authority: Authority = field(init=False)
    cloud: PrivateBroker = field(init=False)
    claims: PrivateBroker = field(init=False)
    worker_port: int = 0
    _stack: ExitStack = field(default_factory=ExitStack)

    def __post_init__(self) -> None:
        self.authority = Authority.create(self.folder / "ca", "Stocktide test")

    def __enter__(self) -> Self:
        self.worker_port = free_port()
        self.cloud = self._stack.enter_context(PrivateBroker(self._rendered(fleet.CLOUD)))
        self.claims = self._stack.enter_context(PrivateBroker(self._rendered(fleet.CLAIMS)))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _rendered(self, which: Path) -> Callable[[int, Path], str]:
        """What PrivateBroker asks for."""

        def config(port: int, directory: Path) -> str:
            tls = self._files(directory)
            settings = FleetConfig(
                directory=directory,
                tls=tls,
                crlfile=directory / "crl.pem",
                bridge_password=SECRET,
                address=HOST,
                gateway_port=port,
                claims_port=port,
                worker_port=self.worker_port,
            )
            files = fleet.render_fleet(settings)
            for place, text in files.items():
                (directory / place).parent.mkdir(exist_ok=True)
                (directory / place).write_text(text)
            users = {user: passwords.hashed(SECRET) for user in (names.INGEST_USER, names.CLAIMS_USER)}
            passwords.write(directory / fleet.CLOUD / fleet.PASSWORDS, users)
            return files[which / fleet.CONF]

        return config

    def _files(self, directory: Path) -> TlsFiles:
        key, certificate = self.authority.server([HOST, "localhost"])
        made = TlsFiles(
            cafile=directory / "ca.pem", certfile=directory / "server.pem", keyfile=directory / "server.key"
        )
        made.cafile.write_bytes(self.authority.bundle.read_bytes())
        made.certfile.write_bytes(certificate)
        made.keyfile.write_bytes(key)
        (directory / "crl.pem").write_bytes(self.authority.write_crl([]).read_bytes())
        return made

    @property
    def worker_url(self) -> str:
        return f"mqtt://{names.INGEST_USER}:{SECRET}@{HOST}:{self.worker_port}"

    @property
    def gateway_url(self) -> str:
        return f"mqtts://{HOST}:{self.cloud.port}"

    @property
    def claims_url(self) -> str:
        return f"mqtts://{HOST}:{self.claims.port}"

    @property
    def reload_command(self) -> str:
        """What `cloud gateway revoke --reload-command` runs: hands the list over and has it read."""
        target = self.cloud.data / "crl.pem"
        return f"sh -c 'cp {self.authority.crl} {target} && kill -HUP {self.cloud.pid}'"

    def hand_over(self, *, server: bool = False) -> None:
        """Give the brokers the authority's files of now, with `server` a new certificate too, and have them read."""
        self.authority.write_crl([])
        for broker in (self.cloud, self.claims):
            files = {"ca.pem": self.authority.bundle.read_bytes(), "crl.pem": self.authority.crl.read_bytes()}
            if server:
                files["server.key"], files["server.pem"] = self.authority.server([HOST, "localhost"])
            for name, content in files.items():
                (broker.data / name).write_bytes(content)
            broker.send(signal.SIGHUP)

    def worker_settings(self) -> dict[str, str]:
        """The settings with which a worker signs here."""
        return {"STOCKTIDE_CA_DIR": str(self.authority.directory), "STOCKTIDE_GATEWAY_BROKERS": self.gateway_url}

    def identity(self, name: str) -> tuple[Path, Revoked]:
        """A file with a gateway's key and certificate, and the line that would revoke it."""
        key, current = certificates.new_key(), self.authority.current()
        made = certificates.client_certificate(
            current.key, current.certificate, key.public_key(), name, now=datetime.now(UTC), days=1
        )
        file = self.folder / f"{name}.pem"
        file.write_bytes(certificates.key_pem(key) + certificates.pem([made]).encode())
        file.chmod(0o600)
        return file, Revoked(certificates.issuer_id(made), made.serial_number, datetime.now(UTC))

    def context(self, name: str | None = None) -> ssl.SSLContext:
        """What a gateway needs to connect, or with no name somebody who has no certificate."""
        context = ssl.create_default_context(cafile=str(self.authority.bundle))
        if name is not None:
            file = self.folder / f"{name}.pem"
            context.load_cert_chain(str(file if file.exists() else self.identity(name)[0]))
        return context

    def gateway(self, name: str, *, identifier: str | None = None) -> aiomqtt.Client:
        """A gateway's client, not yet connected."""
        return aiomqtt.Client(
            HOST,
            self.cloud.port,
            identifier=identifier or f"any-{name}",
            tls_context=self.context(name),
            protocol=aiomqtt.ProtocolVersion.V5,
        )

    def claimant(self, claim: str) -> aiomqtt.Client:
        """The client of somebody who presents a claim, not yet connected."""
        return aiomqtt.Client(
            HOST, self.claims.port, identifier=claim, tls_context=self.context(), protocol=aiomqtt.ProtocolVersion.V5
        )

    def worker(self, *, identifier: str = "worker") -> aiomqtt.Client:
        """A worker's client, not yet connected."""
        return aiomqtt.Client(
            HOST,
            self.worker_port,
            username=names.INGEST_USER,
            password=SECRET,
            identifier=identifier,
            protocol=aiomqtt.ProtocolVersion.V5,
        )
