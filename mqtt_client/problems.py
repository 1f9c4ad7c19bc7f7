"""Why there is no connection to a broker, in words: how far an attempt came, what stood in the way, and what to do.

The libraries' own texts are those of OpenSSL and of errno; a person at a gateway needs the next step.
"""

import socket
import ssl
import time
from enum import StrEnum
from typing import Final, NamedTuple

from wire_protocol.address import BrokerAddress

# What `ssl` calls a certificate that cannot be right before a date, or after one (OpenSSL, x509_vfy.h).
_NOT_YET, _OVER = 9, 10
_UNKNOWN_AUTHORITIES: Final = frozenset({2, 18, 19, 20, 21})
_ANOTHER_NAME: Final = frozenset({62, 63, 64})
# Reason codes of a CONNACK (MQTT 5, 3.2.2.2), by the library's names of them, which MQTT 3.1.1's are mapped to.
_CREDENTIALS: Final = ("bad user name or password", "not authorized", "not authorised", "banned")
ANSWERED_NOTHING: Final = "the broker closed the connection without an answer"


class Stage(StrEnum):
    """Where an attempt to connect ended, in the order in which it goes on."""

    NAME = "name"
    """The host's name has no address."""
    TCP = "tcp"
    TLS = "tls"
    CONNECT = "connect"
    """The broker was reached and did not let us in."""
    SUBSCRIBE = "subscribe"
    LOST = "lost"
    """There was a connection, and it ended."""


class Problem(NamedTuple):
    """Why there is no connection. `why` and `hint` are sentences; neither has a password in it."""

    stage: Stage
    why: str
    hint: str


def explain(error: BaseException, address: BrokerAddress, *, was_connected: bool = False) -> Problem:
    """An error of an attempt to connect, or of a connection that ended, in words."""
    causes, text = _causes(error), str(error).rstrip(".")
    for cause in causes:
        if isinstance(cause, socket.gaierror | UnicodeError):
            why = f"The name {address.host} has no address here."
            hint = "Look at the spelling and at this gateway's DNS: getent hosts " + address.host
            return Problem(Stage.NAME, why, hint)
        if isinstance(cause, ssl.SSLError):
            return _tls_problem(cause, address)
    if was_connected:
        return Problem(Stage.LOST, f"The connection ended: {text}.", "It is opened again by itself.")
    network = next((cause for cause in causes if isinstance(cause, OSError)), None)
    # A refused CONNECT has no number of the operating system's.
    if network is not None and (network.errno is not None or isinstance(network, TimeoutError)):
        return _network_problem(network, address)
    return _refusal(text, address)


def _refusal(text: str, address: BrokerAddress) -> Problem:
    why, hint = f"The broker does not let us in: {text}.", "Look at the broker's log."
    if any(word in text.lower() for word in _CREDENTIALS):
        who = f"user {address.user}" if address.user is not None else "a client without a user"
        why, hint = f"The broker does not let {who} in: {text}.", "Look at the user and password in the address."
    elif ANSWERED_NOTHING in text and not address.tls:
        hint = "Does the port want TLS? Then the address begins with mqtts://"
    return Problem(Stage.CONNECT, why, hint)


def _network_problem(error: OSError, address: BrokerAddress) -> Problem:
    if isinstance(error, ConnectionRefusedError):
        why = f"Nothing listens on port {address.port} of {address.host}."
        return Problem(Stage.TCP, why, "Does the broker run there, on this port?")
    if isinstance(error, ConnectionResetError | BrokenPipeError):
        return _tls_problem(ssl.SSLEOFError(), address) if address.tls else _refusal(ANSWERED_NOTHING, address)
    if isinstance(error, TimeoutError):
        return Problem(
            Stage.TCP,
            f"{address.host}, port {address.port}, does not answer.",
            "Look at the network, and at the firewalls between here and there.",
        )
    why = f"{address.host}, port {address.port}, cannot be reached: {error.strerror or error}."
    return Problem(Stage.TCP, why, "Look at this gateway's network: ip route get " + address.host)


def _tls_problem(error: ssl.SSLError, address: BrokerAddress) -> Problem:
    reason = str(getattr(error, "reason", None) or error)
    why, hint = f"TLS with {address.host} failed: {reason}.", "Look at the broker's log."
    code = error.verify_code if isinstance(error, ssl.SSLCertVerificationError) else None
    today = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    if code in _UNKNOWN_AUTHORITIES:
        why = f"The certificate of {address.host} is from an authority that is not trusted here."
        hint = "Name the authority's file (CA_FILE, see docs/settings.md), or enrol again where the authority changed."
    elif code in _ANOTHER_NAME:
        why = f"The certificate of {address.host} is for another name."
        hint = "Write the name of the certificate into the address, or give the broker a certificate for this one."
    elif code == _OVER:
        why = f"The certificate of {address.host} has run out; this machine's clock says {today}."
        hint = "Set the clock (timedatectl) if it is wrong; else the broker needs a new certificate."
    elif code == _NOT_YET:
        why = f"The certificate of {address.host} is not valid yet; this machine's clock says {today}."
        hint = "Set the clock: timedatectl"
    elif reason in {"WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG"}:
        why = f"Port {address.port} of {address.host} does not speak TLS."
        hint = "TLS has its own port, usually 8883; an address that begins with mqtt:// is without TLS."
    elif isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError):
        why = f"{address.host} closed the connection when TLS began."
        hint = f"Does port {address.port} speak TLS? It has its own port, usually 8883. If so, see the broker's log."
    elif "ALERT" in reason:
        alert = reason.replace("SSLV3_ALERT_", "").replace("TLSV1_ALERT_", "").replace("_", " ").lower()
        why = f"The broker refuses this machine's certificate: {alert}."
        hint = "See when it ends: stocktide edge status. Enrol again with a new claim: stocktide edge enroll CLAIM"
    return Problem(Stage.TLS, why, hint)


def _causes(error: BaseException) -> list[BaseException]:
    """An error and what led to it: aiomqtt hides the cause of its own."""
    found: list[BaseException] = []
    while error not in found:
        found.append(error)
        error = error.__cause__ or error.__context__ or error
    return found
