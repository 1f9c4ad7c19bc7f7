"""The certificate on the link: the next one is requested before this one runs out."""

import asyncio
from dataclasses import dataclass
from typing import Protocol

from edge_agent.link.contact import Contact
from wire_protocol.messages import CertificateRequest, CertificateResponse
from wire_protocol.topics import Channel


class Renewal(Protocol):
    """Keeps this gateway's certificate from running out; both methods touch files."""

    def question(self) -> CertificateRequest | None:
        """What to request of the cloud now, if it is time."""

    def take(self, answer: CertificateResponse) -> bool:
        """Put the answer in place. Returns whether there is a new identity."""


@dataclass(slots=True)
class CertificateSync:
    """Requests and takes certificates; looks every `look_s` seconds."""

    renewal: Renewal
    look_s: float

    async def receive(self, _contact: Contact, payload: bytes) -> None:
        """Part of `Uplink.on`."""
        await asyncio.to_thread(self.renewal.take, CertificateResponse.decode(payload))

    async def run(self, contact: Contact) -> None:
        """Request when it is time, as long as the contact lasts."""
        while True:
            request = await asyncio.to_thread(self.renewal.question)
            if request is not None:
                await contact.publish(Channel.CERTIFICATE_REQUEST, request.encode())
            await asyncio.sleep(self.look_s)
