"""X.509 as Stocktide uses it: one self-signed authority, certificates for gateways and brokers, revocation lists.

Of a gateway's certificate signing request only the public key is taken; its name, life and purpose are ours to say.

What authorities and brokers show is valid from 1970 on: a gateway whose clock has lost the time must be able to verify
a broker, or it could never learn the time. What gateways show is checked by brokers, whose clocks are right.

Invariant: no private key passes through here but the authority's own and those made for brokers.
"""

import ipaddress
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final, TypeAlias

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from cloud_identity.errors import InvalidRequest, SignerFailed

PublicKey: TypeAlias = ec.EllipticCurvePublicKey
PrivateKey: TypeAlias = ec.EllipticCurvePrivateKey

CA_DAYS: Final = 20 * 365
SERVER_DAYS: Final = 2 * 365
# A list that has run out would lock every gateway out, and its end protects no one: brokers are handed the file.
CRL_DAYS: Final = CA_DAYS
BACKDATED: Final = timedelta(minutes=5)  # a broker's clock may be a little behind ours
EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
CHAIN_MAX: Final = 8


@dataclass(frozen=True, slots=True)
class Revoked:
    """One line of a revocation list; `issuer` is the authority's key id, in hexadecimal."""

    issuer: str
    serial: int
    at: datetime


def new_key() -> PrivateKey:
    """A new P-256 key."""
    return ec.generate_private_key(ec.SECP256R1())


def key_pem(key: PrivateKey) -> bytes:
    """A private key as PEM (PKCS 8), not encrypted: the file's mode protects it."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def read_key(pem: bytes) -> PrivateKey:
    """A P-256 private key from PEM.

    Raises:
        SignerFailed: it is none.
    """
    try:
        key = serialization.load_pem_private_key(pem, None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise SignerFailed("The authority's key file cannot be read.", hint="Is it a P-256 key in PEM?") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise SignerFailed("The authority's key is not a P-256 key.")
    return key


def read_chain(pem: bytes) -> list[x509.Certificate]:
    """Certificates from PEM, at most 8.

    Raises:
        SignerFailed: there is none, or one is malformed.
    """
    try:
        chain = x509.load_pem_x509_certificates(pem)
    except (ValueError, x509.InvalidVersion):
        raise SignerFailed("This is not a certificate in PEM.") from None
    if len(chain) > CHAIN_MAX:
        raise SignerFailed(f"There are {len(chain)} certificates; at most {CHAIN_MAX} are taken.")
    return chain


def pem(certificates: Iterable[x509.Certificate]) -> str:
    """Certificates as PEM, one after the other."""
    return "".join(each.public_bytes(serialization.Encoding.PEM).decode() for each in certificates)


def fingerprint(key: PublicKey) -> bytes:
    """SHA-256 of a public key (SubjectPublicKeyInfo): the same key has the same, whatever the request around it."""
    digest = hashes.Hash(hashes.SHA256())
    digest.update(key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo))
    return digest.finalize()


def key_id(certificate: x509.Certificate) -> str:
    """The name of an authority's key, as its certificates say: 40 hexadecimal digits."""
    return x509.SubjectKeyIdentifier.from_public_key(certificate.public_key()).digest.hex()


def issuer_id(certificate: x509.Certificate) -> str:
    """The key id of the authority that signed a certificate; empty when the certificate does not say."""
    try:
        found = certificate.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier
    except x509.ExtensionNotFound:
        return ""
    return (found or b"").hex()


def requested_key(csr_pem: str, gateway: str) -> PublicKey:
    """The public key of a certificate signing request, after everything about the request was checked.

    Raises:
        InvalidRequest: not a request, not signed with its own key, not P-256, or in another gateway's name.
    """
    try:
        request = x509.load_pem_x509_csr(csr_pem.encode())
        key, proper = request.public_key(), request.is_signature_valid
        names = [attribute.value for attribute in request.subject]
    except (ValueError, TypeError, UnsupportedAlgorithm, x509.InvalidVersion):
        raise InvalidRequest("The certificate signing request cannot be read.") from None
    if not proper:
        raise InvalidRequest("The certificate signing request is not signed with its own key.")
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise InvalidRequest("The key is not a P-256 key.")
    if names not in ([], [gateway]):
        raise InvalidRequest("The certificate signing request is in another name.")
    return key


def new_authority(key: PrivateKey, name: str, now: datetime) -> x509.Certificate:
    """A self-signed root certificate; a part of its key id is in its name, so that no two authorities share one."""
    subject = _named(f"{name} {x509.SubjectKeyIdentifier.from_public_key(key.public_key()).digest.hex()[:8]}")
    return (
        _builder(subject, subject, key.public_key(), key.public_key(), begin=EPOCH, end=now + timedelta(days=CA_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(authority=True), critical=True)
        .sign(key, hashes.SHA256())
    )


def client_certificate(
    key: PrivateKey, authority: x509.Certificate, public: PublicKey, gateway: str, *, now: datetime, days: float
) -> x509.Certificate:
    """A gateway's certificate: its common name is the gateway, its one use is to be a TLS client."""
    end = min(now + timedelta(days=days), authority.not_valid_after_utc)
    return (
        _builder(_named(gateway), authority.subject, public, key.public_key(), begin=now - BACKDATED, end=end)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(authority=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        .sign(key, hashes.SHA256())
    )


def server_certificate(
    key: PrivateKey, authority: x509.Certificate, public: PublicKey, hosts: Sequence[str], *, now: datetime, days: float
) -> x509.Certificate:
    """A broker's certificate for its host names and addresses; the first is its common name."""
    end = min(now + timedelta(days=days), authority.not_valid_after_utc)
    return (
        _builder(_named(hosts[0]), authority.subject, public, key.public_key(), begin=EPOCH, end=end)
        .add_extension(x509.SubjectAlternativeName([_host(host) for host in hosts]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(authority=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(key, hashes.SHA256())
    )


def revocation_list(
    key: PrivateKey, authority: x509.Certificate, revoked: Iterable[Revoked], now: datetime
) -> x509.CertificateRevocationList:
    """What of an authority's certificates is not to be accepted any more."""
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(authority.subject)
        .last_update(now - BACKDATED)
        .next_update(now + timedelta(days=CRL_DAYS))
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
        .add_extension(x509.CRLNumber(int(now.timestamp() * 1000)), critical=False)
    )
    for each in revoked:
        line = x509.RevokedCertificateBuilder().serial_number(each.serial).revocation_date(each.at).build()
        builder = builder.add_revoked_certificate(line)
    return builder.sign(key, hashes.SHA256())


def require_gateway_certificate(
    certificate: x509.Certificate,
    authorities: Sequence[x509.Certificate],
    *,
    key: PublicKey,
    gateway: str,
    until: datetime,
) -> None:
    """Assert of what a signer returned that it is what was asked for, and nothing more.

    Raises:
        SignerFailed: another key, name, use, life, or an authority that is not in the gateways' trust anchors.
    """
    names = [attribute.value for attribute in certificate.subject]
    if names != [gateway]:
        raise SignerFailed("The signer certified another name.")
    if fingerprint_of(certificate) != fingerprint(key):
        raise SignerFailed("The signer certified another key.")
    if certificate.not_valid_after_utc > until:
        raise SignerFailed("The signer's certificate lives longer than asked for.")
    try:
        uses = list(certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
        is_authority = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        raise SignerFailed("The signer's certificate does not say what it is for.") from None
    if uses != [ExtendedKeyUsageOID.CLIENT_AUTH] or is_authority:
        raise SignerFailed("The signer's certificate is not one of a TLS client alone.")
    if not any(_signed_by(certificate, authority) for authority in authorities):
        raise SignerFailed("The signer's authority is not in the bundle that gateways trust.")


def fingerprint_of(certificate: x509.Certificate) -> bytes | None:
    """The fingerprint of a certificate's key; None when it is not a P-256 key."""
    key = certificate.public_key()
    return fingerprint(key) if isinstance(key, ec.EllipticCurvePublicKey) else None


def _signed_by(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _builder(
    subject: x509.Name, issuer: x509.Name, key: PublicKey, issuer_key: PublicKey, *, begin: datetime, end: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key), critical=False)
    )


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )
