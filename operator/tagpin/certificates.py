"""The certificate that tagpin serves TLS with, and the CA that API servers know it by.

The state is the data of one Secret, which `Material` parses and `renewed` brings up to date:

    ca.crt     the CAs that clients shall trust: an old and a new one while the CA changes
    ca.key     the key of the CA that the next certificate is signed with
    tls.crt    the serving certificate, first; what completes its chain after it
    tls.key    its key

Whoever holds ca.key issues. Without it the certificates are someone else's (cert-manager's),
and are used as they are.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Self

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import (
    CertificatePublicKeyTypes,
    PrivateKeyTypes,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tagpin.errors import ConfigurationError

CA_CERTIFICATE = "ca.crt"
CA_KEY = "ca.key"
CERTIFICATE = "tls.crt"
KEY = "tls.key"

CA_LIFETIME = timedelta(days=3650)
SERVING_LIFETIME = timedelta(days=90)
BACKDATING = timedelta(minutes=5)
"""How far the clocks of the API servers may be behind ours."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate, what completes its chain, and the private key that belongs to it."""

    chain: tuple[x509.Certificate, ...]
    key: PrivateKeyTypes = field(repr=False, compare=False)

    @classmethod
    def parse(cls, certificate: bytes, key: bytes) -> Self:
        """Read PEM; raises ConfigurationError unless the key is that of the first certificate."""
        chain = parse_certificates(certificate)
        private = _parse_key(key)
        if private.public_key() != _public_key(chain[0]):
            raise ConfigurationError(
                f"the private key does not belong to the certificate {_name(chain[0])}"
            )
        return cls(chain, private)

    @property
    def certificate(self) -> x509.Certificate:
        """The certificate that the key belongs to."""
        return self.chain[0]

    @property
    def expires(self) -> datetime:
        """When the first certificate of the chain stops being valid, in UTC."""
        return self.certificate.not_valid_after_utc

    def is_valid(self, now: datetime) -> bool:
        """Whether clients whose clock shows `now` find the certificate within its life."""
        return self.certificate.not_valid_before_utc <= now <= self.certificate.not_valid_after_utc

    def is_for(self, name: str) -> bool:
        """Whether clients that connect to this DNS name or IP address find it in here."""
        wanted = {_general_name(name), x509.DNSName("*." + name.partition(".")[2])}
        return not wanted.isdisjoint(_names(self.certificate))

    @property
    def certificate_pem(self) -> bytes:
        """The chain, in PEM."""
        return to_pem(self.chain)

    @property
    def key_pem(self) -> bytes:
        """The private key, in PEM, unencrypted."""
        return self.key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )


@dataclass(frozen=True, slots=True)
class Material:
    """What a replica serves TLS with, and the CAs that its clients must trust for that."""

    serving: Pair
    authorities: frozenset[x509.Certificate]
    """Empty where clients trust the certificate anyway: the caBundle is then not ours to keep."""

    @classmethod
    def parse(cls, data: Mapping[str, bytes]) -> Self:
        """Read the data of the Secret; raises ConfigurationError if it is incomplete or wrong."""
        missing = [name for name in (CERTIFICATE, KEY) if not data.get(name)]
        if missing:
            raise ConfigurationError(f"{' and '.join(missing)} missing")
        serving = Pair.parse(data[CERTIFICATE], data[KEY])
        bundle = data.get(CA_CERTIFICATE)
        return cls(serving, frozenset(parse_certificates(bundle) if bundle else ()))

    def is_trusted_by(self, authorities: Iterable[x509.Certificate]) -> bool:
        """Whether clients that trust these CAs accept the chain; or any client, see above."""
        return not self.authorities or any(map(self._ends_at, authorities))

    @property
    def authority_expires(self) -> datetime | None:
        """When the CA stops being valid that the chain ends at, in UTC; None if it is not known."""
        issuers = filter(self._ends_at, self.authorities)
        return max((each.not_valid_after_utc for each in issuers), default=None)

    def _ends_at(self, authority: x509.Certificate) -> bool:
        return any(_is_issued_by(each, authority) for each in self.serving.chain)


@dataclass(frozen=True, slots=True)
class Renewal:
    """New data for the Secret, and why."""

    data: Mapping[str, bytes] = field(repr=False)
    reasons: tuple[str, ...]


def renewed(
    data: Mapping[str, bytes],
    names: Collection[str],
    now: datetime,
    trusted: Collection[x509.Certificate],
) -> Renewal | None:
    """What the Secret should hold instead of `data`, or None if it may stay.

    Data without ca.key but with anything else is someone else's and always stays. `trusted` are
    the CAs that the API servers are known to trust: as long as the served certificate is valid,
    none is issued by a CA outside of them. So a CA changes in two steps: the first adds it to
    ca.crt, and a later call, once it is trusted, issues the certificate. The old CA, whose key
    is gone by then, stays in ca.crt until it expires.
    """
    if not is_ours(data):
        return None
    reasons = []
    authorities = _authorities(data.get(CA_CERTIFICATE, b""), now)
    ca = _issuer(authorities, data.get(CA_KEY, b""))
    if ca is None or needs_renewal(ca.certificate, now):
        reasons.append("the CA is due" if ca else "there is no usable CA")
        ca = issue_ca(now)
        authorities.append(ca.certificate)

    try:
        serving: Pair | None = Pair.parse(data.get(CERTIFICATE, b""), data.get(KEY, b""))
    except ConfigurationError:
        serving = None
    if serving is None or not _is_trustworthy(serving, authorities, now):
        reasons.append("there is no usable certificate")
        serving = issue_serving(ca, names, now)
    else:
        flaw = _flaw(serving, ca, names, now)
        may_change = _is_issued_by(serving.certificate, ca.certificate) or ca.certificate in trusted
        if flaw and may_change:
            reasons.append(flaw)
            serving = issue_serving(ca, names, now)

    if not reasons:
        return None
    return Renewal(
        {
            CA_CERTIFICATE: to_pem(authorities),
            CA_KEY: ca.key_pem,
            CERTIFICATE: serving.certificate_pem,
            KEY: serving.key_pem,
        },
        tuple(reasons),
    )


def is_ours(data: Mapping[str, bytes]) -> bool:
    """Whether the data of the Secret is ours to write: empty, or with the key of a CA."""
    return CA_KEY in data or not any(data.get(name) for name in (CA_CERTIFICATE, CERTIFICATE, KEY))


def needs_renewal(certificate: x509.Certificate, now: datetime) -> bool:
    """Whether the certificate is in the last third of its life, or `now` is before its life."""
    start, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    return not start <= now < end - (end - start) / 3


def issue_ca(now: datetime) -> Pair:
    """A new CA of our own, good for ten years."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = _common_name(f"tagpin CA {now:%Y-%m-%d}")
    builder = (
        _builder(key, now, now + CA_LIFETIME)
        .subject_name(name)
        .issuer_name(name)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(key_cert_sign=True, crl_sign=True), critical=True)
    )
    return Pair((builder.sign(key, hashes.SHA256()),), key)


def issue_serving(ca: Pair, names: Collection[str], now: datetime) -> Pair:
    """A new serving certificate for DNS names and IP addresses, with a key of its own.

    It is good for ninety days, or as long as its CA where that is less. The extensions are
    those that strict clients ask for: RFC 5280 §4.2, and OpenSSL's X509_V_FLAG_X509_STRICT.
    """
    if not names:
        raise ConfigurationError("a serving certificate needs a name")
    if not isinstance(ca.key, ec.EllipticCurvePrivateKey):
        raise ConfigurationError("the CA's key is not an elliptic-curve key")
    key = ec.generate_private_key(ec.SECP256R1())
    builder = (
        _builder(key, now, min(now + SERVING_LIFETIME, ca.expires))
        .subject_name(_common_name("tagpin"))
        .issuer_name(ca.certificate.subject)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(
            x509.SubjectAlternativeName([_general_name(name) for name in names]), critical=False
        )
        .add_extension(
            _authority_key_identifier(ca.certificate, ca.key.public_key()), critical=False
        )
    )
    return Pair((builder.sign(ca.key, hashes.SHA256()),), key)


def parse_certificates(pem: bytes) -> tuple[x509.Certificate, ...]:
    """Read one or more PEM certificates; raises ConfigurationError if there is none."""
    try:
        return tuple(x509.load_pem_x509_certificates(pem))
    except (ValueError, x509.InvalidVersion) as error:
        raise ConfigurationError("not a PEM certificate") from error


def to_pem(certificates: Iterable[x509.Certificate]) -> bytes:
    """Certificates as PEM, one after the other."""
    return b"".join(
        certificate.public_bytes(serialization.Encoding.PEM) for certificate in certificates
    )


def _parse_key(pem: bytes) -> PrivateKeyTypes:
    try:
        return serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        # The cause is not chained: no part of a private key may reach a log.
        raise ConfigurationError("not an unencrypted PEM private key") from None


def _authorities(bundle: bytes, now: datetime) -> list[x509.Certificate]:
    """The CAs of ca.crt that have not expired; none if it is malformed."""
    try:
        certificates = parse_certificates(bundle)
    except ConfigurationError:
        return []
    return [each for each in certificates if now <= each.not_valid_after_utc]


def _issuer(authorities: list[x509.Certificate], key: bytes) -> Pair | None:
    """The CA that the key belongs to, if we can issue with it."""
    try:
        private = _parse_key(key)
    except ConfigurationError:
        return None
    if not isinstance(private, ec.EllipticCurvePrivateKey):
        return None
    public = private.public_key()
    return next(
        (Pair((each,), private) for each in authorities if _public_key(each) == public), None
    )


def _is_trustworthy(serving: Pair, authorities: list[x509.Certificate], now: datetime) -> bool:
    """Whether clients that trust `authorities` accept the certificate now."""
    return serving.is_valid(now) and any(
        _is_issued_by(serving.certificate, each) for each in authorities
    )


def _flaw(serving: Pair, ca: Pair, names: Collection[str], now: datetime) -> str | None:
    """Why the certificate, though accepted, should be replaced."""
    if not _is_issued_by(serving.certificate, ca.certificate):
        return "the certificate is not of the newest CA"
    if not all(serving.is_for(name) for name in names):
        return "the certificate lacks a name"
    if needs_renewal(serving.certificate, now):
        return "the certificate is due"
    return None


def _is_issued_by(certificate: x509.Certificate, ca: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(ca)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


def _public_key(certificate: x509.Certificate) -> CertificatePublicKeyTypes | None:
    """The key of a certificate; None where it is of a kind that we don't know."""
    try:
        return certificate.public_key()
    except (ValueError, UnsupportedAlgorithm):
        return None


def _names(certificate: x509.Certificate) -> set[x509.GeneralName]:
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except (
        ValueError,  # malformed
        x509.DuplicateExtension,
        x509.ExtensionNotFound,
        x509.UnsupportedGeneralNameType,
    ):
        return set()
    return set(extension.value)


def _authority_key_identifier(
    ca: x509.Certificate, key: ec.EllipticCurvePublicKey
) -> x509.AuthorityKeyIdentifier:
    """What the CA calls its key; an administrator's own CA may not call it anything."""
    kind = x509.AuthorityKeyIdentifier
    try:
        called = ca.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
    except x509.ExtensionNotFound:
        return kind.from_issuer_public_key(key)
    return kind.from_issuer_subject_key_identifier(called.value)


def _general_name(name: str) -> x509.GeneralName:
    address = _address(name)
    return x509.DNSName(name) if address is None else x509.IPAddress(address)


def _address(name: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(name)
    except ValueError:
        return None


def _name(certificate: x509.Certificate) -> str:
    return certificate.subject.rfc4514_string() or f"with serial {certificate.serial_number:x}"


def _common_name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _builder(
    key: ec.EllipticCurvePrivateKey, now: datetime, end: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATING)
        .not_valid_after(end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _key_usage(
    *, digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False
) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        encipher_only=False,
        decipher_only=False,
    )
