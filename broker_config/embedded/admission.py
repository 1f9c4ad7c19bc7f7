"""The first packet of a connection: read, judged at the door, and handed on in the name of whom the door knows.

amqtt looks a session up by the client id of CONNECT, and takes it over or drops it, before any plugin is asked who is
there; and to one who resumes a session it shows the TLS of the connection before. So it is asked here, in front of it.

Invariant: a client that is refused here has touched no session.
"""

import asyncio
import ssl
from typing import Final

from amqtt.adapters import BufferReader, ReaderAdapter, StreamReaderAdapter
from amqtt.errors import AMQTTError, MQTTError, NoDataError
from amqtt.mqtt.connack import (
    IDENTIFIER_REJECTED,
    NOT_AUTHORIZED,
    UNACCEPTABLE_PROTOCOL_VERSION,
    ConnackPacket,
)
from amqtt.mqtt.connect import ConnectPacket, ConnectPayload, ConnectVariableHeader
from amqtt.mqtt.packet import CONNECT, MQTTFixedHeader

from broker_config.embedded.listeners import Admitted, Caller, Listener, common_name
from broker_config.policy import Action, Side, may

CONNECT_BYTES_MAX: Final = 256 * 1024  # a last will is in it, and a gateway's is a status message
CONNECT_S_MAX: Final = 10.0
_LEVEL: Final = 4  # MQTT 3.1.1


class Refused(Exception):
    """The client is refused; `code` is the CONNACK's, None when it sent no CONNECT at all."""

    def __init__(self, code: int | None) -> None:
        super().__init__(code)
        self.code = code


class Handed(ReaderAdapter):
    """A connection's bytes for amqtt: CONNECT as the door has it, then the rest as it comes."""

    def __init__(self, first: bytes, rest: asyncio.StreamReader) -> None:
        self._first, self._left, self._rest = BufferReader(first), len(first), StreamReaderAdapter(rest)

    async def read(self, n: int = -1) -> bytes:
        """Part of `ReaderAdapter`; a packet is read to its end before the next, so no read spans both."""
        if not self._left:
            return await self._rest.read(n)
        read = await self._first.read(n)
        self._left -= len(read)
        return read

    def feed_eof(self) -> None:
        """Part of `ReaderAdapter`."""
        self._rest.feed_eof()


async def admitted(
    listener: Listener, side: Side, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> tuple[Admitted, Handed] | None:
    """Who has come, and what amqtt is to read; None when they were refused, with a CONNACK if they spoke MQTT."""
    try:
        async with asyncio.timeout(CONNECT_S_MAX):
            packet = await _read(StreamReaderAdapter(reader))
        who = _judged(listener, side, packet, writer.get_extra_info("ssl_object"))
    except Refused as refused:
        if refused.code is not None:
            writer.write(ConnackPacket.build(0, refused.code).to_bytes())
        return None
    except (AMQTTError, MQTTError, NoDataError, TimeoutError, OSError, asyncio.IncompleteReadError):
        return None
    packet.client_id = who.client_id
    packet.username_flag, packet.username = True, who.text
    packet.password_flag = False
    return who, Handed(packet.to_bytes(), reader)


async def _read(stream: ReaderAdapter) -> ConnectPacket:
    fixed = await MQTTFixedHeader.from_stream(stream)
    if fixed is None or fixed.packet_type != CONNECT or fixed.remaining_length > CONNECT_BYTES_MAX:
        raise Refused(None)
    body = BufferReader(await stream.read(fixed.remaining_length))
    header = await ConnectVariableHeader.from_stream(body, fixed)
    if header.proto_level != _LEVEL:
        raise Refused(UNACCEPTABLE_PROTOCOL_VERSION)
    payload = await ConnectPayload.from_stream(body, fixed, header)
    if payload.client_id_is_random and not header.clean_session_flag:
        raise Refused(IDENTIFIER_REJECTED)  # MQTT-3.1.3-8
    return ConnectPacket(fixed, header, payload)


def _judged(listener: Listener, side: Side, packet: ConnectPacket, tls: ssl.SSLObject | None) -> Admitted:
    shown = common_name(tls.getpeercert()) if tls is not None else None
    who = listener.admit(Caller(packet.client_id or "", packet.username, packet.password, shown))
    if who is None:
        raise Refused(NOT_AUTHORIZED)
    # amqtt publishes a last will without checking its topic.
    is_bound = packet.will_flag and who.roles is not None
    if is_bound and not may(side, who.user, Action.PUBLISH, packet.will_topic or "", who.roles):
        raise Refused(NOT_AUTHORIZED)
    return who
