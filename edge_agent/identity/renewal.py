"""The certificate's renewal: asked for at two thirds of its life over the link that it keeps open, and put in place.

The connection stays as it is, so there is no gap; the next one uses the new certificate.

Invariant: the old identity holds until the new one is complete.
"""

import secrets
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

import structlog

from edge_agent.conditions import Conditions, Part
from edge_agent.errors import EdgeError
from edge_agent.identity.keystore import IdentityFolder
from wire_protocol.messages import CertificateRequest, CertificateResponse

AGAIN_HINT: Final = (
    "Enrol again with a new claim, which keeps the ledger: stocktide edge enroll CLAIM --broker URL. "
    "If the clock here is wrong, set it: timedatectl"
)
CLOCK_HINT: Final = "Set the clock: timedatectl"

log = structlog.get_logger("edge_agent.identity.renewal")


class Renewal:
    """When to ask and what to do with the answer; `now_ms` is the true time, None while it is unknown."""

    def __init__(self, identity: IdentityFolder, gateway: str, now_ms: Callable[[], int | None]) -> None:
        self._identity, self._gateway, self._now_ms = identity, gateway, now_ms
        self._nonce: str | None = None

    def question(self) -> CertificateRequest | None:
        """What to ask now, if it is time. Touches files: call it in a thread."""
        now_ms = self._now_ms()
        current = None if now_ms is None else self._identity.due(now_ms)
        if current is None or now_ms is None:
            return None
        self._nonce = secrets.token_hex(8)
        csr_pem = self._identity.pending(self._gateway).csr_pem
        log.info("certificate_asked", serial=f"{current.serial:x}", left_s=(current.ends_ms - now_ms) // 1000)
        return CertificateRequest(csr_pem=csr_pem, nonce=self._nonce)

    def take(self, answer: CertificateResponse) -> bool:
        """Put the answer in place. Returns whether there is a new identity. Touches files: call it in a thread."""
        if self._nonce is None or answer.nonce != self._nonce:
            return False  # an answer to an earlier question, or to none
        self._nonce = None
        if answer.certificate_pem is None or answer.ca_pem is None:
            log.warning("certificate_refused", refusal=answer.refusal, reason=answer.reason)
            return False
        try:
            current = self._identity.current()
            made = self._identity.install(
                self._identity.pending(self._gateway),
                gateway=self._gateway,
                certificate_pem=answer.certificate_pem,
                ca_pem=answer.ca_pem,
                brokers=answer.brokers or (current.brokers if current else ()),
                claim=current.claim if current else None,
            )
        except (EdgeError, OSError) as error:
            log.error("certificate_not_stored", reason=str(error))  # noqa: TRY400 - a full disk, not a defect
            return False
        log.info("certificate_renewed", serial=f"{made.serial:x}", ends_ms=made.ends_ms)
        return True


def note_certificate(conditions: Conditions, identity: IdentityFolder, now_ms: int) -> None:
    """Look at how long the certificate is good for. Touches files: call it in a thread."""
    try:
        current = identity.current()
    except (EdgeError, OSError) as error:
        hint = getattr(error, "hint", None) or "Look at the files beside the ledger."
        changed = conditions.note(Part.CERTIFICATE, "unusable", ok=False, why=str(error), hint=hint)
    else:
        if current is None:
            conditions.note(Part.CERTIFICATE, "none", ok=True, why="This gateway is not enrolled.")
            return
        ends = _date(current.ends_ms)
        if now_ms >= current.ends_ms:
            why = f"This gateway's certificate ran out at {ends}; the cloud lets it in no more."
            changed = conditions.note(Part.CERTIFICATE, "expired", ok=False, why=why, hint=AGAIN_HINT)
        elif now_ms < current.begins_ms:
            why = f"The certificate begins at {_date(current.begins_ms)}, and the clock here says {_date(now_ms)}."
            changed = conditions.note(Part.CERTIFICATE, "not valid yet", ok=False, why=why, hint=CLOCK_HINT)
        elif now_ms >= current.renew_ms:
            why = f"It is to be renewed, which the cloud does by itself on contact; it ends at {ends}."
            changed = conditions.note(Part.CERTIFICATE, "renewal due", ok=True, why=why)
        else:
            why = f"It ends at {ends} and is renewed from {_date(current.renew_ms)} on."
            changed = conditions.note(Part.CERTIFICATE, "valid", ok=True, why=why)
    now = conditions[Part.CERTIFICATE]
    if changed and now is not None and not now.ok:
        log.error("certificate_problem", state=now.state, reason=now.why, hint=now.hint)


def _date(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M UTC")
