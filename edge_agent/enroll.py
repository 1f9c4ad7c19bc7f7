"""Enrolment: from a one-time claim to an identity that the uplink uses, and to a ledger if there is none.

Each step can be repeated: the key that waits for its certificate is kept, and the cloud answers the same key the same.

Invariant: what is in force here changes in the last step alone.
"""

import asyncio
import secrets
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edge_agent.errors import EdgeError
from edge_agent.identity.claim_client import NoAnswer, NotConnected, ask
from edge_agent.identity.keystore import Identity, IdentityFolder, Pending
from edge_agent.ledger import database
from edge_agent.ledger.clock import SystemClock
from edge_agent.ledger.ledger import Ledger
from edge_agent.provisioning.twin import TwinWriter
from mqtt_client import TlsUnusable, client_context
from wire_protocol.address import BrokerAddress
from wire_protocol.claims import ClaimCode
from wire_protocol.messages import ClaimRequest, ClaimResponse, InvalidMessage, Refused
from wire_protocol.twin import DesiredTwin

Report = Callable[[str, str], None]

_HINTS: Final[dict[Refused, str]] = {
    "unknown": "Is it the right cloud? Copy the whole claim, or ask for a new one.",
    "used": "If it was not you, tell the cloud's operator. Ask for a new claim.",
    "expired": "Ask for a new claim: stocktide cloud gateway claim",
    "other-gateway": "Use the claim on the gateway it was made for, or name the right ledger with --ledger.",
    "revoked": "Ask the cloud's operator whether this gateway is to be trusted.",
    "invalid": "This is a defect; send the cloud's operator the text above.",
}


class StepFailed(EdgeError):
    """A step of the enrolment failed."""

    step = ""
    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(f"{self.step}: {message}", hint=hint)


class KeyNotMade(StepFailed):
    """No key could be made."""

    step = "Step 1, the key"
    exit_code = 3


class NotReached(StepFailed):
    """The claims broker could not be reached."""

    step = "Step 2, the connection"
    exit_code = 4


class NotAnswered(StepFailed):
    """The cloud did not answer."""

    step = "Step 3, the claim"
    exit_code = 5


class ClaimRefused(StepFailed):
    """The cloud refused."""

    step = "Step 3, the claim was refused"
    exit_code = 6


class NotStored(StepFailed):
    """The answer could not be stored."""

    step = "Step 4, storing the identity"
    exit_code = 7


class NoLedger(StepFailed):
    """The ledger could not be made."""

    step = "Step 5, the ledger"
    exit_code = 8


@dataclass(frozen=True, slots=True)
class Enrolled:
    """What came of it; `new_ledger` says whether there was none before, `twin` the version that came along."""

    identity: Identity
    new_ledger: bool
    twin: int | None = None


def enroll(
    code: ClaimCode,
    broker: str,
    ledger: Path,
    *,
    ca_file: Path | None,
    wait_s: float,
    make_ledger: bool,
    report: Report,
    mqtt_5: bool = True,
) -> Enrolled:
    """Use a claim. `report` is called for each step with its name and result.

    Raises:
        StepFailed: which step, why, and what to do; what was done before it need not be undone.
    """
    folder = IdentityFolder.beside(ledger)
    current = folder.current()
    first: str | None = None
    if current is not None and current.claim == code.name:
        identity = current  # a run before this one came as far as that
        report("identity", "is here already")
    else:
        identity, first = _enrolled(
            code, broker, ledger, folder, ca_file=ca_file, wait_s=wait_s, report=report, mqtt_5=mqtt_5
        )
    is_new = make_ledger and not database.exists(ledger)
    if is_new:
        with (
            _step(NoLedger, "Mend it, then run the same command again."),
            Ledger.create(ledger, identity.gateway, SystemClock()),
        ):
            pass
        report("ledger", f"{ledger} made")
    version = _first_twin(ledger, first, report) if first is not None and database.exists(ledger) else None
    return Enrolled(identity, is_new, version)


def _first_twin(ledger: Path, text: str, report: Report) -> int | None:
    """Put the twin of the answer in force, by the rules of any other; one that cannot be taken costs nothing else."""
    try:
        desired = DesiredTwin.decode(text.encode())
    except InvalidMessage as error:
        report("twin", f"cannot be applied; the agent reports it on the first contact: {error}")
        return None
    with (
        _step(NoLedger, "Mend it, then run the same command again."),
        Ledger.open(ledger, SystemClock()) as opened,
        database.transaction(opened.connection),
    ):
        is_newer = TwinWriter(opened).apply(desired) is not None
    if not is_newer:
        return None
    report("twin", f"version {desired.version}, {len(desired.state.devices)} devices")
    return desired.version


def _enrolled(
    code: ClaimCode,
    broker: str,
    ledger: Path,
    folder: IdentityFolder,
    *,
    ca_file: Path | None,
    wait_s: float,
    report: Report,
    mqtt_5: bool,
) -> tuple[Identity, str | None]:
    """The identity that a claim has brought, and the twin that came with it."""
    gateway = _gateway(ledger)
    address = BrokerAddress.parse(broker)
    with _step(KeyNotMade, "Run as the user who owns the ledger's folder, and see that the disk has room."):
        pending = folder.pending(gateway)
    report("key", f"made in {pending.folder}, it never leaves this machine")
    context = _context(address, ca_file)
    request = ClaimRequest(gateway=gateway, secret=code.secret, csr_pem=pending.csr_pem, nonce=secrets.token_hex(8))
    try:
        answer = asyncio.run(ask(address, code.name, request, context, wait_s=wait_s, mqtt_5=mqtt_5))
    except NotConnected as error:
        hint = "Is the address right, is it the claims listener, does --ca-file name the cloud's authorities?"
        raise NotReached(f"{address!r}: {error}.", hint=hint) from None
    except NoAnswer as error:
        raise NotAnswered(str(error), hint="Run the same command again; the claim is still good.") from None
    identity = _stored(folder, pending, gateway, code, answer)
    report("certificate", f"{identity.gateway}, serial {identity.serial:x}")
    return identity, answer.twin


def _stored(
    folder: IdentityFolder, pending: Pending, gateway: str | None, code: ClaimCode, answer: ClaimResponse
) -> Identity:
    if answer.refusal is not None:
        raise ClaimRefused(answer.reason or answer.refusal, hint=_HINTS.get(answer.refusal))
    name = gateway or answer.gateway
    if name is None or answer.certificate_pem is None or answer.ca_pem is None:
        raise NotAnswered("The answer is incomplete.", hint="Is this gateway's software older than the cloud's?")
    with _step(NotStored, "Mend it, then run the same command again; the claim is still good."):
        return folder.install(
            pending,
            gateway=name,
            certificate_pem=answer.certificate_pem,
            ca_pem=answer.ca_pem,
            brokers=answer.brokers,
            claim=code.name,
        )


def _context(address: BrokerAddress, ca_file: Path | None) -> ssl.SSLContext | None:
    try:
        return client_context(
            address, None if ca_file is None else str(ca_file), hint="--ca-file must hold certificates in PEM."
        )
    except TlsUnusable as error:
        raise NotReached(str(error), hint=error.hint) from None


def _gateway(ledger: Path) -> str | None:
    if not database.exists(ledger):
        return None
    with database.reading(ledger) as reader:
        return database.meta(reader)["gateway"]


@contextmanager
def _step(failure: type[StepFailed], hint: str) -> Iterator[None]:
    try:
        yield
    except (EdgeError, OSError) as error:
        raise failure(f"{error}", hint=hint) from error
