"""Signatures of firmware releases: Ed25519 (RFC 8032), keys as PEM files.

Invariant: a private key is made readable for its owner alone, and is never read by a worker.
"""

import os
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from cloud_identity.errors import InvalidKey
from wire_protocol.firmware import Manifest, Release

KEY_BYTES_MAX: Final = 4096
SIGNATURE_BYTES: Final = 64
_HINT: Final = "Make a pair with: stocktide cloud firmware keygen"


def make_pair(private: Path, public: Path) -> None:
    """Make a key pair in two files that do not exist yet.

    Raises:
        InvalidKey: one exists, or cannot be written.
    """
    key = Ed25519PrivateKey.generate()
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    public_pem = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    for path, content, mode in ((private, pem, 0o600), (public, public_pem, 0o644)):
        try:
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
                file.write(content)
        except OSError as error:
            raise InvalidKey(f"{path} cannot be made: {error.strerror}.", hint="A key is never overwritten.") from None


def sign(manifest: Manifest, key_file: Path) -> Release:
    """Sign a manifest.

    Raises:
        InvalidKey: the file has no Ed25519 private key.
    """
    try:
        key = serialization.load_pem_private_key(_read(key_file), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise InvalidKey(f"{key_file} is no private key: {error}", hint=_HINT) from None
    if not isinstance(key, Ed25519PrivateKey):
        raise InvalidKey(f"{key_file} is no Ed25519 key.", hint=_HINT)
    return Release(**manifest.model_dump(), signature=key.sign(manifest.signed_bytes()).hex())


def signed(manifest: Manifest, signature_file: Path, key_file: Path) -> Release:
    """A manifest with a signature that was made elsewhere, checked with the public key.

    Raises:
        InvalidKey: the signature is not of this manifest by this key.
    """
    try:
        key = serialization.load_pem_public_key(_read(key_file))
    except (ValueError, UnsupportedAlgorithm) as error:
        raise InvalidKey(f"{key_file} is no public key: {error}", hint=_HINT) from None
    if not isinstance(key, Ed25519PublicKey):
        raise InvalidKey(f"{key_file} is no Ed25519 key.", hint=_HINT)
    signature = _read(signature_file)
    try:
        key.verify(signature, manifest.signed_bytes())
    except InvalidSignature:
        raise InvalidKey(
            f"{signature_file} is not a signature of this release by the owner of {key_file}.",
            hint="Sign what `stocktide cloud firmware manifest` prints for the same options.",
        ) from None
    return Release(**manifest.model_dump(), signature=signature.hex())


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(KEY_BYTES_MAX)
    except OSError as error:
        raise InvalidKey(f"{path} cannot be read: {error.strerror}.") from None
