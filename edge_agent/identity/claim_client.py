"""A gateway without a certificate asks the claims broker: one connection, one question, its answer."""

import asyncio
import ssl
from dataclasses import replace
from typing import Final

from mqtt_client import Connection, ConnectionLost, ConnectionOptions, connect, in_a_task
from wire_protocol import topics
from wire_protocol.address import BrokerAddress
from wire_protocol.messages import ClaimRequest, ClaimResponse, InvalidMessage
from wire_protocol.topics import Channel

CONNECT_TIMEOUT_S: Final = 5.0
CONNECT_ATTEMPTS: Final = 3
ASK_AGAIN_S: Final = 3.0


class NotConnected(Exception):
    """The broker could not be reached, or did not let us in."""


class NoAnswer(Exception):
    """The broker was there, the cloud did not answer."""


async def ask(
    address: BrokerAddress,
    claim: str,
    request: ClaimRequest,
    context: ssl.SSLContext | None,
    *,
    wait_s: float,
    mqtt_5: bool = True,
) -> ClaimResponse:
    """Present a claim until it is answered; asked again now and then, because whatever is on the way may be lost.

    Raises:
        NotConnected: no connection, or TLS did not come about, three times.
        NoAnswer: nothing came within `wait_s` seconds.
    """
    for left in range(CONNECT_ATTEMPTS - 1, -1, -1):
        try:
            # A broker that ends in the same moment would hide a cancellation, and the next attempt would begin.
            asking = _ask_once(address, claim, request, context, wait_s=wait_s, mqtt_5=mqtt_5)
            return await in_a_task(asking, "enroll.attempt")
        except NotConnected:
            if not left:
                raise
        except ConnectionLost as error:
            raise NoAnswer(str(error)) from None
    raise NotConnected  # there is at least one attempt


async def _ask_once(
    address: BrokerAddress,
    claim: str,
    request: ClaimRequest,
    context: ssl.SSLContext | None,
    *,
    wait_s: float,
    mqtt_5: bool,
) -> ClaimResponse:
    # A claims broker that asks for a user gets the claim; one that does not, ignores it.
    user, password = (address.user, address.password) if address.user else (claim, request.secret)
    options = ConnectionOptions(
        address=replace(address, user=user, password=password),
        client_id=claim,  # what the broker's rights go by
        mqtt_5=mqtt_5,
        timeout_s=CONNECT_TIMEOUT_S,
        tls=context,
    )
    connected, put_off = False, [f"The cloud did not answer within {wait_s:g} seconds."]
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT_S + wait_s), connect(options) as connection:
            connected = True
            await connection.subscribe(topics.claim(claim, Channel.CLAIM_RESPONSE))
            async with asyncio.timeout(wait_s), asyncio.TaskGroup() as group:
                asking = group.create_task(_repeat(connection, claim, request), name="enroll.ask")
                answer = await _answer(connection, request.nonce, put_off)
                asking.cancel()
            return answer
    except* (ConnectionLost, TimeoutError) as errors:
        reason = str(errors.exceptions[0]) or "no answer"
    raise NoAnswer(put_off[-1]) if connected else NotConnected(reason)


async def _repeat(connection: Connection, claim: str, request: ClaimRequest) -> None:
    while True:
        await connection.publish(topics.claim(claim, Channel.CLAIM_REQUEST), request.encode())
        await asyncio.sleep(ASK_AGAIN_S)


async def _answer(connection: Connection, nonce: str, put_off: list[str]) -> ClaimResponse:
    """The answer that settles it; what only puts us off is noted in `put_off`."""
    async for message in connection.messages():
        try:
            answer = ClaimResponse.decode(message.payload)
        except InvalidMessage:
            continue
        if answer.nonce != nonce:
            continue
        if answer.refusal not in {"busy", "unavailable"}:
            return answer
        put_off[:] = [answer.reason or answer.refusal]
    raise ConnectionLost("The connection ended.")
