"""Bearer tokens of an OpenID provider: verified with its published keys (PyJWT), for us, by pinned algorithms.

Keys are fetched when they are needed and kept; a token with an unknown key id makes one fetch in `refetch_s`, so that
a caller that invents ids cannot make this process hammer the provider.

Invariant: only asymmetric algorithms are ever accepted, so a published key is never taken for a shared secret.
"""

import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, NamedTuple, TypeAlias

import jwt

from cloud_store.tenancy import permissions
from cloud_store.tenancy.permissions import Role

Algorithm: TypeAlias = Literal["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"]
JWKS_BYTES_MAX: Final = 256 * 1024
FETCH_TIMEOUT_S: Final = 5.0
LEEWAY_S: Final = 30
TOKEN_CHARS_MAX: Final = 8_192
TENANTS_MAX: Final = 100


class InvalidToken(Exception):
    """The bearer token is not valid here."""


class ProviderUnavailable(Exception):
    """The identity provider's keys cannot be fetched."""


class Subject(NamedTuple):
    """Whom a valid token speaks for: an id at the issuer, tenants by name, the highest of its roles."""

    name: str
    tenants: tuple[str, ...]
    role: Role


@dataclass(slots=True)
class KeySet:
    """The provider's keys by id. Thread-safe; `now_s` is a monotonic clock."""

    url: str
    keep_s: float = 3_600.0
    refetch_s: float = 30.0
    now_s: Callable[[], float] = time.monotonic
    _keys: dict[str, jwt.PyJWK] = field(default_factory=dict)
    _fetched_s: float | None = None
    _tried_s: float | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def key(self, kid: str) -> jwt.PyJWK:
        """The key of an id.

        Raises:
            InvalidToken: the provider has none of this id.
            ProviderUnavailable: the provider does not answer, so the token cannot be checked.
        """
        with self._lock:
            now = self.now_s()
            stale = self._fetched_s is None or now - self._fetched_s > self.keep_s
            waited = self._tried_s is None or now - self._tried_s >= self.refetch_s
            if waited and (stale or kid not in self._keys):
                self._tried_s = now
                self._refresh(now)
            if kid in self._keys:
                return self._keys[kid]
            if self._fetched_s is None:
                raise ProviderUnavailable
            raise InvalidToken("the token's key is unknown")

    def _refresh(self, now: float) -> None:
        """Fetch the keys; while the provider is away the known ones stay in force."""
        try:
            with urllib.request.urlopen(self.url, timeout=FETCH_TIMEOUT_S) as answer:  # noqa: S310 - our own setting
                document = json.loads(answer.read(JWKS_BYTES_MAX + 1))
            keys = jwt.PyJWKSet.from_dict(document).keys
        except (OSError, ValueError, AttributeError, TypeError, jwt.PyJWTError) as error:
            if not self._keys:
                raise ProviderUnavailable from error
            return
        self._keys = {key.key_id: key for key in keys if key.key_id and key.public_key_use in {None, "sig"}}
        self._fetched_s = now


@dataclass(frozen=True, slots=True)
class Verifier:
    """Turns a token into a subject. A claim's name may be a path with dots: `realm_access.roles`."""

    issuer: str
    audience: str
    keys: KeySet
    algorithms: tuple[Algorithm, ...]
    tenant_claim: str
    role_claim: str

    def subject(self, token: str) -> Subject:
        """Whom the token speaks for.

        Raises:
            InvalidToken: it is forged, expired, for another audience, or names no tenant or role.
            ProviderUnavailable: the key that could tell cannot be had.
        """
        if len(token) > TOKEN_CHARS_MAX:
            raise InvalidToken("the token is too long")
        claims = self._claims(token)
        tenants = _words(_at(claims, self.tenant_claim))[:TENANTS_MAX]
        if unprintable := [name for name in (str(claims["sub"]), *tenants) if not name.isprintable()]:
            raise InvalidToken(f"the token names {unprintable[0]!a}, which cannot be printed")
        role = permissions.highest(_words(_at(claims, self.role_claim)))
        if not tenants:
            raise InvalidToken(f"the token names no tenant ({self.tenant_claim})")
        if role is None:
            raise InvalidToken(f"the token names no role ({self.role_claim})")
        return Subject(str(claims["sub"]), tuple(tenants), role)

    def _claims(self, token: str) -> Mapping[str, Any]:
        try:
            header = jwt.get_unverified_header(token)
            if header.get("alg") not in self.algorithms:
                raise InvalidToken("the token's algorithm is not accepted")
            kid = header.get("kid")
            if not isinstance(kid, str):
                raise InvalidToken("the token names no key")
            claims: Mapping[str, Any] = jwt.decode(
                token,
                self.keys.key(kid),
                algorithms=list(self.algorithms),
                audience=self.audience,
                issuer=self.issuer,
                leeway=LEEWAY_S,
                options={"require": ["exp", "iat", "sub", "aud", "iss"]},
            )
        except jwt.ExpiredSignatureError as error:
            raise InvalidToken("the token has expired") from error
        except (jwt.PyJWTError, ValueError, TypeError) as error:
            raise InvalidToken("the token is not valid here") from error
        return claims


def _at(claims: Mapping[str, Any], path: str) -> Any:
    """The claim of this very name, or the one that a path with dots leads to; None when there is none."""
    if path in claims:
        return claims[path]
    value: Any = claims
    for part in path.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _words(value: Any) -> list[str]:
    """A claim that is one word or a list of them."""
    words = [value] if isinstance(value, str) else value if isinstance(value, list) else []
    return [word for word in words if isinstance(word, str)]
