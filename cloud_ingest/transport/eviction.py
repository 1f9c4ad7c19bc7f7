"""Ending a gateway's live connection from outside: a client that connects under its client id takes its place.

That is the rule of every MQTT broker (MQTT 5, section 3.1.4: the server must end the existing connection), so it needs
no plugin. Where gateways connect, the broker takes the client id from the certificate; where workers connect, it does
not: only a worker's credentials can evict. Whether the gateway can come back is for the revocation list to say.

Invariant: nothing is published or subscribed under the gateway's name.
"""

import asyncio
from typing import Final

from cloud_ingest.errors import EvictionFailed
from mqtt_client import ConnectionLost, ConnectionOptions, client_context, connect
from wire_protocol.address import BrokerAddress

CONNECT_TIMEOUT_S: Final = 5.0
AGAIN_S: Final = 1.0  # by then a broker has read its new revocation list


async def evict(
    mqtt_url: str,
    gateway: str,
    *,
    ca_file: str | None,
    cert_file: str | None = None,
    key_file: str | None = None,
    mqtt_5: bool = True,
    times: int = 2,
) -> None:
    """End a gateway's connection, and once more a second later: it may have come back before the list was read.

    Raises:
        EvictionFailed: the broker could not be reached, or refused us.
        TlsUnusable: the files for TLS cannot be used.
    """
    address = BrokerAddress.parse(mqtt_url)
    options = ConnectionOptions(
        address=address,
        client_id=gateway,
        mqtt_5=mqtt_5,
        timeout_s=CONNECT_TIMEOUT_S,
        tls=client_context(address, ca_file, cert_file, key_file),
    )
    for number in range(times):
        if number:
            await asyncio.sleep(AGAIN_S)
        try:
            async with connect(options):
                pass
        except ConnectionLost as error:
            raise EvictionFailed(
                f"The broker {address!r} did not let us end the connection: {error}.",
                hint="The gateway's frames are refused all the same. Run the command again when the broker answers.",
            ) from None
