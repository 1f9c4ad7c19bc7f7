"""The worker's answers to claims and renewals, on a real database: reasons, races, bounds, hostile payloads."""

import asyncio
import hashlib
import json
import secrets
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cloud_identity import certificates
from cloud_identity.authority import Authority, KeyFileSigner
from cloud_ingest.inbound import Inbound
from cloud_ingest.services.enrolment import Enrolment, secret_hash
from cloud_store.base import gateways
from cloud_store.base.connection import connect
from cloud_store.base.errors import AlreadyExists, UnknownName
from cloud_store.identity import enrolment
from cloud_store.tenancy import registry
from testbed.brokers import request_pem
from testbed.eventually import eventually_async
from testbed.store import Session, context, running
from wire_protocol import topics
from wire_protocol.claims import CODE_BYTES, ClaimCode
from wire_protocol.messages import CertificateRequest, CertificateResponse, ClaimRequest, ClaimResponse
from wire_protocol.topics import Channel

Publish = Callable[[str, bytes], None]


class Desk:
    """A worker's enrolment with its store, and gateways that come to it."""

    def __init__(self, database_url: str, tenant: str, folder: Path, **options: Any) -> None:
        self.database_url, self.tenant, self.published = database_url, tenant, list[tuple[str, bytes]]()
        ca = folder / "ca"
        self.authority = Authority(ca) if ca.exists() else Authority.create(ca, "Test")
        self.store = Session(database_url)
        stands = context(self.store.database, self._publish, **{"gateway_brokers": "mqtts://a, mqtts://b:1"} | options)
        self.metrics = stands.metrics
        self.enrolment = Enrolment(stands, KeyFileSigner(self.authority.directory))

    def _publish(self, topic: str, payload: bytes, qos: int = 1, *, retain: bool = False) -> None:
        del qos, retain
        self.published.append((topic, payload))

    def claim(self, gateway: str) -> ClaimCode:
        """A new claim."""
        code = ClaimCode.make(secrets.token_bytes(CODE_BYTES))
        with closing(connect(self.database_url, application="test")) as connection:
            enrolment.add_claim(
                connection, self.tenant, "berlin", gateway, name=code.name, secret_hash=secret_hash(code.secret)
            )
        return code

    def present(self, code: ClaimCode, csr_pem: str, **fields: object) -> ClaimResponse:
        """The answer to a claim."""
        request = ClaimRequest.model_validate({"secret": code.secret, "csr_pem": csr_pem, "nonce": "n"} | fields)
        answer = self.enrolment.answer_claim(code.name, request.encode())
        assert answer is not None
        assert ClaimResponse.decode(answer.encode()) == answer
        return answer

    def renew(self, gateway: str, csr_pem: str) -> CertificateResponse:
        """The answer to a gateway that has a certificate."""
        answer = self.enrolment.answer_renewal(gateway, CertificateRequest(csr_pem=csr_pem, nonce="n").encode())
        assert answer is not None
        return answer


@pytest.fixture
def desk(database_url: str, tmp_path: Path, unique_name: Callable[..., str]) -> Iterator[Desk]:
    with closing(connect(database_url, application="test")) as connection:
        registry.add_tenant(connection, tenant := unique_name("acme"))
        registry.add_site(connection, tenant, "berlin")
    made = Desk(database_url, tenant, tmp_path)
    yield made
    made.store.close()


def request(gateway: str | None = None) -> str:
    """A request with a new key."""
    return request_pem(certificates.new_key(), gateway)


def test_a_claim_brings_a_certificate_once_and_the_same_key_gets_it_again(desk: Desk) -> None:
    """An answer may be lost; a second key may not profit from that."""
    code, csr = desk.claim("gw-1"), request("gw-1")
    first = desk.present(code, csr, nonce="one")
    assert (first.gateway, first.refusal, first.nonce) == ("gw-1", None, "one")
    assert first.brokers == ("mqtts://a", "mqtts://b:1")
    assert first.certificate_pem is not None
    certificate = x509.load_pem_x509_certificate(first.certificate_pem.encode())
    assert [attribute.value for attribute in certificate.subject] == ["gw-1"]
    assert desk.present(code, csr).certificate_pem == first.certificate_pem
    assert desk.present(code, request("gw-1")).refusal == "used"
    assert desk.present(code, request("gw-2"), gateway="gw-2").refusal == "other-gateway"
    assert desk.present(code, "nonsense").refusal == "invalid"
    with closing(connect(desk.database_url, application="test")) as connection:
        enrolment.revoke_gateway(connection, "gw-1")
        assert [line[0] for line in enrolment.revoked(connection)] == [desk.authority.current().key_id]
    assert desk.present(code, csr).refusal == "revoked"
    assert desk.renew("gw-1", request("gw-1")).refusal == "revoked"


def test_two_workers_that_answer_at_once_sign_one_certificate(desk: Desk, tmp_path: Path) -> None:
    """Claims come to every worker; while leases move, two may answer. The technician must get one truth."""
    code, csr, other = desk.claim("gw-1"), request("gw-1"), request("gw-1")
    desks = [Desk(desk.database_url, desk.tenant, tmp_path) for _ in range(4)]
    answers: list[ClaimResponse] = []
    gate = threading.Barrier(len(desks))

    def present(at: Desk, csr_pem: str) -> None:
        gate.wait(60)
        answers.append(at.present(code, csr_pem))

    threads = [threading.Thread(target=present, args=(at, csr if n % 2 else other)) for n, at in enumerate(desks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    given_ = {answer.certificate_pem for answer in answers if answer.certificate_pem}
    assert len(answers) == 4
    assert len(given_) == 1
    assert {answer.refusal for answer in answers} == {None, "used"}
    for each in desks:
        each.store.close()


def test_the_store_keeps_no_secret(desk: Desk) -> None:
    """A stolen database must not enrol anybody."""
    code = desk.claim("gw-1")
    with closing(connect(desk.database_url, application="test")) as connection:
        row = connection.execute("SELECT secret_hash, claim::text FROM claim").fetchone()
    assert row is not None
    assert row[0] == hashlib.sha256(code.secret.encode()).digest()
    assert code.secret not in row[1]


def test_a_claim_is_made_for_the_right_site_only(desk: Desk) -> None:
    """A gateway's name is unique across tenants: whoever does not own it must not learn whose it is."""
    desk.claim("gw-1")
    with closing(connect(desk.database_url, application="test")) as connection:
        registry.add_tenant(connection, other := f"{desk.tenant}-2")
        registry.add_site(connection, other, "berlin")
        with pytest.raises(AlreadyExists) as caught:
            enrolment.add_claim(connection, other, "berlin", "gw-1", name="x", secret_hash=b"")
        assert desk.tenant not in str(caught.value).replace(other, "")
        with pytest.raises(UnknownName):
            enrolment.add_claim(connection, other, "paris", "gw-9", name="x", secret_hash=b"")
        assert gateways.named(connection, ["gw-9"]) == {}


@pytest.mark.bound("cloud.renewals_per_day_max")
def test_a_gateway_is_given_so_many_certificates_a_day(desk: Desk, tmp_path: Path) -> None:
    """A gateway gone mad, or in a thief's hands, must not fill the database; the same key costs nothing."""
    desk.present(desk.claim("gw-1"), request("gw-1"))
    strict = Desk(desk.database_url, desk.tenant, tmp_path, renewals_per_day_max=2)
    csr = request("gw-1")
    assert strict.renew("gw-1", csr).certificate_pem == strict.renew("gw-1", csr).certificate_pem
    assert strict.renew("gw-1", request("gw-1")).certificate_pem
    assert strict.renew("gw-1", request("gw-1")).refusal == "busy"
    assert strict.renew("gw-1", csr).certificate_pem
    assert strict.renew("gw-unknown", request("gw-unknown")).refusal == "revoked"
    assert strict.renew("gw-1", request("gw-2")).refusal == "invalid"
    strict.store.close()


@pytest.mark.bound("cloud.claims_waiting_max")
@pytest.mark.bound("cloud.claims_per_s_max")
async def test_a_flood_of_claims_is_bounded_and_paced(desk: Desk, tmp_path: Path) -> None:
    """Strangers reach the claim topics: they must cost little memory and not keep the database busy."""
    flooded = Desk(desk.database_url, desk.tenant, tmp_path, claims_waiting_max=5, claims_per_s_max=20)
    stranger = ClaimRequest(secret="0" * 24, csr_pem=request(), nonce="n").encode()
    for number in range(1000):
        for claim in (f"zzzz{number:04}", "zzzz0000"):
            topic = topics.claim(claim, Channel.CLAIM_REQUEST)
            flooded.enrolment.requested(Inbound(claim, Channel.CLAIM_REQUEST, topic, stranger, 0))
    loop = asyncio.get_running_loop()
    began = loop.time()
    async with running(flooded.enrolment.loops()):
        await eventually_async(lambda: len(flooded.published) == 5)
    elapsed_s = loop.time() - began
    flooded.store.close()
    # Two at once, the rest as the bucket fills: the pace is a bound, and the machine's speed cannot make it shorter.
    assert elapsed_s >= 3 / 20
    assert {ClaimResponse.decode(payload).refusal for _, payload in flooded.published} == {"unknown"}
    assert len(flooded.published) == 5


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    payload=st.binary(max_size=200)
    | st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
        max_leaves=8,
    ).map(lambda value: json.dumps(value).encode())
    | st.fixed_dictionaries(
        {
            "v": st.sampled_from([1, 2, "1", True]),
            "nonce": st.text(max_size=70),
            "csr_pem": st.text(max_size=80),
            "secret": st.sampled_from(["0" * 24, "'; DROP TABLE claim; --", "\ud800"]) | st.text(max_size=30),
        },
        optional={"gateway": st.sampled_from(["gw-1", "+", "#", "../x", "ingest"]) | st.text(max_size=70)},
    ).map(lambda value: json.dumps(value).encode())
)
def test_no_payload_stops_the_worker(desk: Desk, payload: bytes) -> None:
    """Whatever a stranger or a gateway sends is refused or dropped; the claim stays as it was."""
    code = desk.claim("gw-fuzz")
    answer = desk.enrolment.answer_claim(code.name, payload)
    assert answer is None or answer.refusal in {"unknown", "invalid"}
    renewal = desk.enrolment.answer_renewal("gw-fuzz", payload)
    assert renewal is None or renewal.refusal == "invalid"
    with closing(connect(desk.database_url, application="test")) as connection:
        row = connection.execute("SELECT used_at FROM claim WHERE name = %s", [code.name]).fetchone()
    assert row == (None,)


async def test_a_flood_of_claims_keeps_no_gateway_from_its_next_certificate(desk: Desk, tmp_path: Path) -> None:
    """With as many claims waiting as may, a trusted gateway's renewal was dropped."""
    flooded = Desk(desk.database_url, desk.tenant, tmp_path, claims_waiting_max=50, claims_per_s_max=20)
    flooded.present(desk.claim("gw-1"), request("gw-1"))
    claim = ClaimRequest(secret="0" * 24, csr_pem=request(), nonce="n").encode()
    for number in range(200):
        name = f"zzzz{number:04}"
        topic = topics.claim(name, Channel.CLAIM_REQUEST)
        flooded.enrolment.requested(Inbound(name, Channel.CLAIM_REQUEST, topic, claim, 0))
    renewal = CertificateRequest(csr_pem=request("gw-1"), nonce="n").encode()
    answer = topics.link("gw-1", Channel.CERTIFICATE)
    flooded.enrolment.requested(Inbound("gw-1", Channel.CERTIFICATE_REQUEST, "topic", renewal, 0))
    async with running(flooded.enrolment.loops()):
        await eventually_async(lambda: answer in [topic for topic, _ in flooded.published])
    flooded.store.close()
    assert len(flooded.published) < 50, "it did not wait for all the claims"
    [payload] = [payload for topic, payload in flooded.published if topic == answer]
    assert CertificateResponse.decode(payload).certificate_pem


def test_a_key_that_was_revoked_is_never_certified_again(desk: Desk) -> None:
    """Not by a renewal after the gateway was enabled again, not by a new claim, and at no other gateway."""
    key = certificates.new_key()
    stolen = request_pem(key, "gw-1")
    assert desk.present(desk.claim("gw-1"), stolen).certificate_pem
    with closing(connect(desk.database_url, application="test")) as connection:
        enrolment.revoke_gateway(connection, "gw-1")
        registry.set_gateway_state(connection, "gw-1", "active")
    assert desk.renew("gw-1", stolen).refusal == "revoked"
    assert desk.present(desk.claim("gw-1"), stolen).refusal == "revoked"
    assert desk.present(desk.claim("gw-2"), request_pem(key, "gw-2")).refusal == "revoked"
    assert desk.present(desk.claim("gw-1"), request("gw-1")).certificate_pem, "a new key is welcome"
