"""The key that a device was made to trust. The only importer of cryptography in the simulator."""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from firmware_sim.errors import BadInput
from wire_protocol.firmware import Release

KEY_BYTES_MAX = 4096


@dataclass(frozen=True, slots=True)
class TrustedKey:
    """An Ed25519 public key."""

    key: Ed25519PublicKey

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read it from a PEM file.

        Raises:
            BadInput: there is none.
        """
        try:
            with path.open("rb") as file:
                key = load_pem_public_key(file.read(KEY_BYTES_MAX))
        except (OSError, ValueError, UnsupportedAlgorithm) as error:
            raise BadInput(f"{path} is no public key: {error}", hint="stocktide cloud firmware keygen") from None
        if not isinstance(key, Ed25519PublicKey):
            raise BadInput(f"{path} is no Ed25519 key.", hint="stocktide cloud firmware keygen")
        return cls(key)

    def signed(self, release: Release) -> bool:
        """Whether the owner of the key has signed this release."""
        try:
            self.key.verify(bytes.fromhex(release.signature), release.signed_bytes())
        except InvalidSignature:
            return False
        return True
