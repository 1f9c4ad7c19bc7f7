"""Ending a gateway's live connection from outside: whoever connects under its client id takes its place.

That is the rule of every MQTT broker (MQTT 5, section 3.1.4: the server must end the existing connection), so it needs
no plugin. Where gateways connect, the broker takes the client id from the certificate; where workers connect, it does
not: only a worker's credentials can evict. Whether the gateway can come back is for the revocation list to say.

Invariant: nothing is published or subscribed under the gateway's name.
"""

import asyncio
from typing import Final

import aiomqtt

from cloud_ingest.errors import EvictionFailed
from cloud_ingest.transport import broker_tls
from wire_protocol.address import BrokerAddress

CONNECT_TIMEOUT_S: Final = 5.0
AGAIN_S: Final = 1.0  # a broker that was told to read its revocation list has done so by then


async def evict(
    mqtt_url: str, gateway: str, *, ca_file: str | None, cert_file: str | None = None, key_file: str | None = None,
    mqtt_5: bool = True, times: int = 2,
) -> None:  # fmt: skip
    """End a gateway's connection, and once more a second later: it may have come back before the list was read.

    Raises:
        EvictionFailed: the broker could not be reached, or refused us.
    """
    address = BrokerAddress.parse(mqtt_url)
    tls = broker_tls.context(address, ca_file, cert_file, key_file)
    for number in range(times):
        if number:
            await asyncio.sleep(AGAIN_S)
        client = aiomqtt.Client(
            address.host,
            address.port,
            username=address.user,
            password=address.password,
            identifier=gateway,
            protocol=aiomqtt.ProtocolVersion.V5 if mqtt_5 else aiomqtt.ProtocolVersion.V311,
            clean_session=None if mqtt_5 else True,
            timeout=CONNECT_TIMEOUT_S,
            tls_context=tls,
        )
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S), client:
                pass
        except (aiomqtt.MqttError, OSError, TimeoutError) as error:
            raise EvictionFailed(
                f"The broker {address!r} did not let us end the connection: {str(error) or 'no answer'}.",
                hint="The gateway's frames are refused all the same. Run the command again when the broker answers.",
            ) from None
