"""The doors of the embedded broker: where it listens, over what, and whom it lets in as whom.

    gateways    TLS, a certificate of the fleet's authority; its common name is the user and the client id
    claims      TLS, the claim's name and its secret as user and password; the client id is made of the name
    workers     TLS, the workers' certificate; client ids of their own choice, because an eviction uses a gateway's
    one door    plain TCP on loopback, users and passwords: a gateway's own broker, and tests

Client ids are one space in a broker, and a client that may choose one can end another's connection. With Mosquitto,
unauthenticated clients get a process of their own for that; here neither they nor gateways choose, so one process will
do.

Invariant: a client's identity comes from its listener, before the broker looks at a session; never from a client id.
"""

import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self, TypeAlias

from broker_config import passwords
from broker_config.errors import InvalidConfig
from broker_config.mosquitto import TlsFiles
from broker_config.policy import ROLES, SERVICE_USER, Side
from wire_protocol import names
from wire_protocol.errors import InvalidName
from wire_protocol.topics import Role

GATEWAYS: Final = "gateways"
CLAIMS: Final = "claims"
WORKERS: Final = "workers"
ONLY: Final = "clients"
_ANYTHING: Final = "*"
_BETWEEN: Final = "/"  # in no user name, in no role


@dataclass(frozen=True, slots=True)
class Caller:
    """What a client presents at a listener; `common_name` is of a certificate that TLS has verified."""

    client_id: str
    user: str | None
    password: str | None
    common_name: str | None


@dataclass(frozen=True, slots=True)
class Admitted:
    """A client's identity from here on, and its roles; None for all of them, in a broker without rules."""

    user: str
    roles: tuple[Role, ...] | None
    client_id: str

    @property
    def text(self) -> str:
        """What stands in the place of the user name: roles and user."""
        return _ANYTHING if self.roles is None else "+".join(self.roles) + _BETWEEN + self.user

    @classmethod
    def parse(cls, text: str, client_id: str) -> Self:
        """The reverse of `text`."""
        roles, _, user = text.partition(_BETWEEN)
        return cls(user, None if roles == _ANYTHING else tuple(Role(role) for role in roles.split("+")), client_id)


Admit: TypeAlias = Callable[[Caller], Admitted | None]


@dataclass(frozen=True, slots=True)
class Listener:
    """A listener. Port 0 takes a free one; `tls` is asked once when the door is opened, and again on a reload."""

    name: str
    port: int
    admit: Admit
    tls: Callable[[], ssl.SSLContext] | None = None


def anybody(caller: Caller) -> Admitted:
    """No rules."""
    return Admitted(caller.user or "", None, caller.client_id)


def by_password(users: Mapping[str, str], side: Side) -> Admit:
    """A client that knows a user's password, in any role of a side; `users` maps names to hashes."""

    def admit(caller: Caller) -> Admitted | None:
        if not _knows_password(caller, users):
            return None
        user = caller.user or ""
        # A client id is the key of a session: no client may take up another's by its name.
        client_id = caller.client_id if user == SERVICE_USER[side] else f"{user}/{caller.client_id}"
        return Admitted(user, ROLES[side], client_id)

    return admit


def gateways(caller: Caller) -> Admitted | None:
    """A gateway, by its certificate; what it says of itself is not looked at."""
    name = _name(names.gateway, caller.common_name)
    return None if name is None else Admitted(name, (Role.GATEWAY,), name)


def workers(caller: Caller) -> Admitted | None:
    """A worker, by the workers' certificate."""
    if caller.common_name != SERVICE_USER[Side.CLOUD]:
        return None
    return Admitted(SERVICE_USER[Side.CLOUD], (Role.INGEST,), caller.client_id)


def claimants(users: Mapping[str, str]) -> Admit:
    """A client that knows a claim's secret; no other role has a client id with a slash."""

    def admit(caller: Caller) -> Admitted | None:
        claim = _name(lambda name: names.slug(name, "claim"), caller.user)
        if claim is None or not _knows_password(caller, users):
            return None
        return Admitted(claim, (Role.CLAIMANT,), f"{Role.CLAIMANT}/{claim}")

    return admit


def only(port: int, side: Side, users: Mapping[str, str] | None) -> Listener:
    """The one listener of a broker without TLS; without users it is open to every client."""
    return Listener(ONLY, port, anybody if users is None else by_password(users, side))


def fleet(
    tls: TlsFiles,
    crlfile: Path | None,
    claims: Mapping[str, str],
    *,
    gateway_port: int = 0,
    claims_port: int = 0,
    worker_port: int = 0,
) -> list[Listener]:
    """The three doors of a fleet with certificates."""

    def with_certificate() -> ssl.SSLContext:
        return server_context(tls, crlfile, certificates=True)

    return [
        Listener(GATEWAYS, gateway_port, gateways, with_certificate),
        Listener(CLAIMS, claims_port, claimants(claims), lambda: server_context(tls, None, certificates=False)),
        Listener(WORKERS, worker_port, workers, with_certificate),
    ]


def server_context(tls: TlsFiles, crlfile: Path | None, *, certificates: bool) -> ssl.SSLContext:
    """TLS 1.2 or later; with `certificates` only for those with one of `tls.cafile` that is not in `crlfile`.

    Raises:
        InvalidConfig: a file cannot be used.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # A resumed session would not be held against a revocation list that is newer than it.
    context.options |= ssl.OP_NO_TICKET
    context.num_tickets = 0
    try:
        context.load_cert_chain(tls.certfile, tls.keyfile)
        if certificates:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(tls.cafile)
            if crlfile is not None:
                context.load_verify_locations(crlfile)
                context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
    except (OSError, ssl.SSLError) as error:
        raise InvalidConfig(
            f"The TLS files cannot be used: {error}.", hint="See: stocktide cloud ca server, stocktide cloud ca crl"
        ) from None
    return context


def common_name(shown: Mapping[str, Any] | None) -> str | None:
    """The common name of what `SSLObject.getpeercert()` returns; None without one, or with several."""
    subject = (shown or {}).get("subject", ())
    found = [value for part in subject for kind, value in part if kind == "commonName"]
    return found[0] if len(found) == 1 else None


def _knows_password(caller: Caller, users: Mapping[str, str]) -> bool:
    return passwords.verify(caller.password or "", users.get(caller.user or "", ""))


def _name(checked: Callable[[str], str], text: str | None) -> str | None:
    try:
        return None if text is None else checked(text)
    except InvalidName:
        return None
