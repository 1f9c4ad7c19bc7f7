"""Certificates for gateways: answers to one-time claims, and to gateways whose certificate runs out.

A claim's secret proves who asks; an unknown claim and a wrong secret get the same answer. The same key gets the same
certificate again, because an answer may have been lost, and because several workers may answer.

Invariant: the latest request of each claim waits, a bounded number of requests waits, and a rate bounds the answers.
"""

import hashlib
import hmac
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Final, TypeAlias, TypeVar

import structlog

from cloud_identity import certificates
from cloud_identity.authority import Signer, SigningRequest
from cloud_identity.errors import AuthorityError, InvalidRequest
from cloud_ingest.context import Context
from cloud_ingest.inbound import Inbound
from cloud_ingest.mailbox import Mailbox
from cloud_ingest.token_bucket import TokenBucket
from cloud_store.base.database import finished
from cloud_store.base.errors import StoreError
from cloud_store.identity import enrolment
from cloud_store.identity.enrolment import Claim, ClaimSpent, GatewayRevoked, Issue, KeyRevoked
from wire_protocol import topics
from wire_protocol.messages import (
    TWIN_CHARS_MAX,
    CertificateRequest,
    CertificateResponse,
    ClaimRequest,
    ClaimResponse,
    InvalidMessage,
    Issued,
    Refused,
)
from wire_protocol.topics import Channel

_NO_HASH: Final = bytes(32)
_LOG = structlog.get_logger()
Answer = TypeVar("Answer", bound=Issued)
Key: TypeAlias = tuple[str, Channel]


class CertificateRefused(Exception):
    """No certificate: why, for the machine and for the person."""

    def __init__(self, kind: Refused, reason: str) -> None:
        super().__init__(reason)
        self.kind: Refused = kind


class Enrolment:
    """Answers claims and renewals, one at a time."""

    def __init__(self, context: Context, signer: Signer | None) -> None:
        self._context, self._database, settings = context, context.database, context.settings
        self._settings, self._metrics, self._signer = settings, context.metrics, signer
        # Apart, each with a rate of its own: anybody may present a claim, and a flood of them must not keep gateways
        # that are trusted from their next certificate.
        self._claims: Mailbox[Key, bytes] = context.mailbox("enrolment", settings.claims_waiting_max)
        self._renewals: Mailbox[Key, bytes] = context.mailbox("renewals", settings.claims_waiting_max)
        self._claim_rate = TokenBucket(settings.claims_per_s_max, context.mono_s)
        self._renewal_rate = TokenBucket(settings.claims_per_s_max, context.mono_s)
        # A thread of its own: signing may be another program that takes its time, with no database connection held.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="enrolment")

    def requested(self, inbound: Inbound) -> None:
        """A claim is presented, or a gateway requests its next certificate; the latest of each is kept."""
        # A broker takes larger packets, and what is none of ours would be found only when it is read.
        fits = len(inbound.payload) <= ClaimRequest.bytes_max
        waiting = self._claims if inbound.channel is Channel.CLAIM_REQUEST else self._renewals
        if not fits or not waiting.put((inbound.sender, inbound.channel), inbound.payload, len(inbound.payload)):
            self._metrics.certificates.labels("dropped").inc()  # the sender requests it again

    def loops(self) -> Iterator[Coroutine[Any, Any, None]]:
        """What runs until the worker stops."""
        yield self._context.serve(self._renewals, self._respond, self._renewal_rate)
        yield self._context.serve(self._claims, self._respond, self._claim_rate)

    async def _respond(self, key: Key, payload: bytes) -> None:
        name, channel = key
        work = self.answer_claim if channel is Channel.CLAIM_REQUEST else self.answer_renewal
        response = await finished(self._thread.submit(work, name, payload))
        if isinstance(response, ClaimResponse):
            self._context.publish(topics.claim(name, Channel.CLAIM_RESPONSE), response.encode())
        elif response is not None:
            self._context.publish(topics.link(name, Channel.CERTIFICATE), response.encode())

    def answer_claim(self, name: str, payload: bytes) -> ClaimResponse | None:
        """The answer to what came on a claim's topic; None to what is not even a request."""
        try:
            request = ClaimRequest.decode(payload)
        except InvalidMessage:
            self._metrics.certificates.labels("malformed").inc()
            return None
        answer = self._answer(ClaimResponse, request.nonce, f"claim {name}", lambda: self._claim(name, request))
        return answer if answer.gateway is None else self._with_twin(answer, answer.gateway)

    def answer_renewal(self, gateway: str, payload: bytes) -> CertificateResponse | None:
        """The answer to a gateway; its name is the broker's word, by the certificate it has now."""
        try:
            request = CertificateRequest.decode(payload)
        except InvalidMessage:
            self._metrics.certificates.labels("malformed").inc()
            return None
        made = partial(self._renewal, gateway, request)
        return self._answer(CertificateResponse, request.nonce, f"renewal of {gateway}", made)

    def _answer(self, kind: type[Answer], nonce: str, what: str, issue: Callable[[], tuple[str, str]]) -> Answer:
        try:
            gateway, certificate_pem = issue()
            bundle = certificates.pem(self._signing().bundle())
        except CertificateRefused as refusal:
            outcome: Refused = refusal.kind
            said = str(refusal)
        except (StoreError, AuthorityError) as error:
            # What went wrong is for the operator's log; the gateway only learns to ask later.
            _LOG.warning("certificate_not_issued", asked=what, reason=str(error), hint=error.hint)
            outcome, said = "unavailable", "The cloud cannot issue certificates now; its operator's log says why."
        else:
            self._metrics.certificates.labels("issued").inc()
            _LOG.info("certificate_issued", asked=what, gateway=gateway)
            return kind(
                nonce=nonce,
                gateway=gateway,
                certificate_pem=certificate_pem,
                ca_pem=bundle,
                brokers=self._settings.brokers_of_gateways,
            )
        self._metrics.certificates.labels(outcome).inc()
        _LOG.info("certificate_refused", asked=what, refusal=outcome)
        return kind(nonce=nonce, refusal=outcome, reason=said)

    def _with_twin(self, answer: ClaimResponse, gateway: str) -> ClaimResponse:
        """The answer with the gateway's twin, if there is one and room for it; else the first contact brings it."""
        try:
            twin = self._database.call(enrolment.twin, gateway)
        except Exception:  # noqa: BLE001 - nor for a document that cannot be read
            return answer  # the certificate is issued, and what there is of it must not wait for a database
        if twin is None or len(text := twin.encode().decode()) > TWIN_CHARS_MAX:
            return answer
        whole = answer.model_copy(update={"twin": text})
        return whole if len(whole.encode()) <= ClaimResponse.bytes_max else answer

    def _claim(self, name: str, request: ClaimRequest) -> tuple[str, str]:
        claim = self._database.call(enrolment.claim, name)
        given = secret_hash(request.secret)
        if not hmac.compare_digest(given, _NO_HASH if claim is None else claim.secret_hash) or claim is None:
            raise CertificateRefused("unknown", "There is no such claim, or its secret is wrong.")
        if request.gateway not in {None, claim.gateway}:
            raise CertificateRefused("other-gateway", f"The claim is for another gateway than {request.gateway}.")
        wanted = _checked(request.csr_pem, claim.gateway, self._settings.certificate_days)
        if found := _judged(claim, wanted.fingerprint):
            return claim.gateway, found
        issue = self._signed(wanted)
        try:
            self._database.call(enrolment.use_claim, claim, issue)
        except GatewayRevoked:
            raise CertificateRefused("revoked", f"Gateway {claim.gateway} is disabled.") from None
        except KeyRevoked as error:
            raise CertificateRefused("revoked", str(error)) from None
        except ClaimSpent:
            # Another worker was faster, perhaps for the same key: what it has recorded is the answer.
            again = self._database.call(enrolment.claim, name)
            if again is None or (found := _judged(again, wanted.fingerprint)) is None:
                raise CertificateRefused("busy", "The claim is being answered already; ask again.") from None
            return claim.gateway, found
        return claim.gateway, issue.pem

    def _renewal(self, gateway: str, request: CertificateRequest) -> tuple[str, str]:
        wanted = _checked(request.csr_pem, gateway, self._settings.certificate_days)
        found = self._database.call(enrolment.renewals, gateway, wanted.fingerprint)
        if not found.active:
            raise CertificateRefused("revoked", f"Gateway {gateway} is disabled.")
        if found.key_revoked:
            raise CertificateRefused("revoked", str(KeyRevoked()))
        if found.certificate_pem is not None:
            return gateway, found.certificate_pem
        if found.issued_in_a_day >= self._settings.renewals_per_day_max:
            raise CertificateRefused("busy", f"{found.issued_in_a_day} certificates were issued within a day.")
        issue = self._signed(wanted)
        try:
            self._database.call(enrolment.renew, issue)
        except GatewayRevoked:
            raise CertificateRefused("revoked", f"Gateway {gateway} is disabled.") from None
        except KeyRevoked as error:
            raise CertificateRefused("revoked", str(error)) from None
        return gateway, issue.pem

    def _signing(self) -> Signer:
        if self._signer is None:
            raise CertificateRefused("unavailable", "This cloud has no certificate authority.")
        return self._signer

    def _signed(self, wanted: SigningRequest) -> Issue:
        certificate = self._signing().sign(wanted)
        return Issue(
            gateway=wanted.gateway,
            issuer=certificates.issuer_id(certificate),
            serial=certificate.serial_number,
            public_key=wanted.fingerprint,
            pem=certificates.pem([certificate]),
            not_after=certificate.not_valid_after_utc,
        )


def _checked(csr_pem: str, gateway: str, days: float) -> SigningRequest:
    try:
        return SigningRequest.of(csr_pem, gateway, days)
    except InvalidRequest as error:
        raise CertificateRefused("invalid", str(error)) from None


def _judged(claim: Claim, public_key: bytes) -> str | None:
    """The certificate that a claim has brought this key already; None when it is still to be used.

    Raises:
        Refusal: it is good for nothing.
    """
    if claim.revoked or not claim.active:
        raise CertificateRefused(
            "revoked", "The claim was revoked." if claim.revoked else f"Gateway {claim.gateway} is disabled."
        )
    if claim.expired:
        raise CertificateRefused("expired", "The claim has run out.")
    if claim.public_key is None:
        return None
    if claim.public_key != public_key or claim.certificate_pem is None:
        raise CertificateRefused("used", "The claim was used already, with another key.")
    return claim.certificate_pem


def secret_hash(secret: str) -> bytes:
    """What is kept of a claim's secret; 120 random bits need no stretching."""
    return hashlib.sha256(secret.encode()).digest()
