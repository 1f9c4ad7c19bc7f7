"""A fleet that enrols at once: keys, claims over TLS through both brokers, certificates, identities on disk.

Beside it the same number of TLS connections to the claims broker alone, which nobody can be faster than.
"""

import asyncio
import secrets
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Any, Final

from bench.cloud_worker import running_worker
from cloud_ingest.services.enrolment import secret_hash
from cloud_store.base import migrations
from cloud_store.base.connection import connect
from cloud_store.identity import enrolment
from cloud_store.tenancy import registry
from edge_agent.identity.claim_client import ask
from edge_agent.identity.keystore import IdentityFolder
from testbed import services
from testbed.brokers import FleetBrokers
from testbed.services import databases
from wire_protocol.address import BrokerAddress
from wire_protocol.claims import CODE_BYTES, ClaimCode
from wire_protocol.messages import ClaimRequest

GATEWAYS: Final = 1_000
AT_ONCE: Final = 50
WAIT_S: Final = 60.0


def run() -> dict[str, Any]:
    """Measure; seconds."""
    name = f"bench_{secrets.token_hex(4)}"
    with (
        databases.database(services.database_url(), name) as database_url,
        tempfile.TemporaryDirectory() as folder,
        FleetBrokers(Path(folder)) as brokers,
    ):
        migrations.apply(database_url)
        began = time.perf_counter()
        codes = _claims(database_url)
        claims_s = time.perf_counter() - began
        with running_worker(database_url, brokers.worker_url, **brokers.worker_settings()):
            warm, *rest = codes.items()
            asyncio.run(_enrol(brokers, Path(folder), dict([warm])))  # the worker and the bridge are there
            began = time.perf_counter()
            asyncio.run(_enrol(brokers, Path(folder), dict(rest)))
            enrol_s = time.perf_counter() - began
            began = time.perf_counter()
            asyncio.run(_connect(brokers, len(rest)))
            connect_s = time.perf_counter() - began
        with closing(connect(database_url, application="bench")) as connection:
            assert len(enrolment.certificates(connection, limit=2 * GATEWAYS)) == len(codes)
    return {
        "gateways": len(rest),
        "enrol_s": enrol_s,
        "enrolled_per_s": len(rest) / enrol_s,
        "tls_connections_alone_s": connect_s,
        "claims_made_s": claims_s,
    }


def _claims(database_url: str) -> dict[str, ClaimCode]:
    made = {}
    with closing(connect(database_url, application="bench")) as connection:
        registry.add_tenant(connection, "bench")
        registry.add_site(connection, "bench", "berlin")
        for number in range(GATEWAYS + 1):
            gateway, code = f"gw-{number}", ClaimCode.make(secrets.token_bytes(CODE_BYTES))
            hashed = secret_hash(code.secret)
            enrolment.add_claim(connection, "bench", "berlin", gateway, name=code.name, secret_hash=hashed)
            made[gateway] = code
    return made


async def _enrol(brokers: FleetBrokers, folder: Path, codes: dict[str, ClaimCode]) -> None:
    room = asyncio.Semaphore(AT_ONCE)
    address = BrokerAddress.parse(brokers.claims_url)

    async def one(gateway: str, code: ClaimCode) -> None:
        async with room:
            home = IdentityFolder(folder / f"{gateway}.identity")
            pending = await asyncio.to_thread(home.pending, gateway)
            request = ClaimRequest(
                gateway=gateway, secret=code.secret, csr_pem=pending.csr_pem, nonce=secrets.token_hex(8)
            )
            answer = await ask(address, code.name, request, brokers.context(), wait_s=WAIT_S)
            assert answer.certificate_pem is not None, answer.reason
            assert answer.ca_pem is not None
            certificate_pem, ca_pem = answer.certificate_pem, answer.ca_pem
            await asyncio.to_thread(
                lambda: home.install(
                    pending,
                    gateway=gateway,
                    certificate_pem=certificate_pem,
                    ca_pem=ca_pem,
                    brokers=answer.brokers,
                    claim=code.name,
                )
            )

    async with asyncio.TaskGroup() as group:
        for gateway, code in codes.items():
            group.create_task(one(gateway, code), name=f"bench.{gateway}")


async def _connect(brokers: FleetBrokers, number: int) -> None:
    room = asyncio.Semaphore(AT_ONCE)

    async def one(name: str) -> None:
        async with room, brokers.claimant(name):
            pass

    async with asyncio.TaskGroup() as group:
        for each in range(number):
            group.create_task(one(f"alone{each:03}"), name=f"bench.alone.{each}")
