"""An identity provider of a test's own: keys, tokens good and bad, and its key set over HTTP."""

import base64
import hashlib
import hmac
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

ISSUER: Final = "https://id.example.test"
AUDIENCE: Final = "stocktide"


class Provider:
    """Publishes one RSA and one EC key, and counts how often it was asked."""

    def __init__(self) -> None:
        self.rsa = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self.ec = ec.generate_private_key(ec.SECP256R1())
        self.fetches = 0
        self.url = ""

    def key_set(self) -> dict[str, Any]:
        """The published keys."""
        rsa_key = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(self.rsa.public_key()))
        ec_key = json.loads(jwt.algorithms.ECAlgorithm.to_jwk(self.ec.public_key()))
        return {"keys": [rsa_key | {"kid": "rsa-1", "use": "sig"}, ec_key | {"kid": "ec-1", "use": "sig"}]}

    def claims(self, **changes: Any) -> dict[str, Any]:
        """The claims of a good token; None takes one out."""
        now = int(time.time())
        good = {
            "iss": ISSUER,
            "aud": AUDIENCE,
            "sub": "kim",
            "iat": now,
            "exp": now + 300,
            "stocktide_tenant": "acme",
            "stocktide_role": "operator",
        }
        return {name: value for name, value in (good | changes).items() if value is not None}

    def token(self, kid: str = "rsa-1", algorithm: str = "RS256", **changes: Any) -> str:
        """A token signed with the RSA key, unless the algorithm is of the other kind."""
        key: Any = self.ec if algorithm.startswith("ES") else self.rsa
        return jwt.encode(self.claims(**changes), key, algorithm=algorithm, headers={"kid": kid})

    def unsigned(self) -> str:
        """A token of the algorithm `none`."""
        return jwt.encode(self.claims(), "", algorithm="none", headers={"kid": "rsa-1"})

    def confused(self) -> str:
        """A token of HS256 whose shared secret is the published key."""
        secret = self.rsa.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        parts = [{"alg": "HS256", "typ": "JWT", "kid": "rsa-1"}, self.claims()]
        signed = ".".join(_base64(json.dumps(part).encode()) for part in parts)
        return f"{signed}.{_base64(hmac.digest(secret, signed.encode(), hashlib.sha256))}"

    def tampered(self) -> str:
        """A good token with another tenant written into it."""
        head, _, signature = self.token().split(".")
        return f"{head}.{_base64(json.dumps(self.claims(stocktide_tenant='other')).encode())}.{signature}"

    @contextmanager
    def served(self) -> Iterator[None]:
        """Publish the keys while the block runs."""
        provider = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                provider.fetches += 1
                body = json.dumps(provider.key_set()).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever, name="provider")
        thread.start()
        self.url = f"http://127.0.0.1:{server.server_port}/jwks"
        try:
            yield
        finally:
            server.shutdown()
            thread.join()
            server.server_close()


def _base64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")
