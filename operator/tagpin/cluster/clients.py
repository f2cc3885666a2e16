"""Who may call: whoever has a certificate of certain CAs, which is for clients and for a name."""

import logging
import ssl
import time
from collections.abc import Callable, Collection
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tagpin.certificates import parse_certificates, to_pem
from tagpin.errors import ConfigurationError

RECHECK = 5.0
"""Seconds after which the file is looked at again."""

Authorities = tuple[x509.Certificate, ...]

log = logging.getLogger(__name__)


class Clients:
    """Those who have a certificate of the CAs in `file`, a PEM file, that bears one of `names`.

    A name is a common name or a DNS name; without any, every certificate of the CAs will do. The
    file may change: one that is of no use then leaves everything as it was. One that is of no use
    at the start is a ConfigurationError, for nothing must be served without it.
    """

    def __init__(
        self,
        file: Path,
        names: Collection[str] = (),
        *,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._file = file
        self._names = frozenset(names)
        self._clock = clock
        self._now = now
        self._trouble = ""
        try:
            self._authorities = _read(file)
        except (OSError, ConfigurationError) as error:
            raise ConfigurationError(f"clientCaFile: {str(file)!r}: {_told(error)}") from error
        self._due = clock() + RECHECK

    @property
    def authorities(self) -> Authorities:
        """The CAs as the file has them now; the same object for as long as they are the same."""
        if self._clock() >= self._due:
            self._due = self._clock() + RECHECK
            self._reread()
        return self._authorities

    @property
    def is_broken(self) -> bool:
        """Whether the file is of no use now."""
        return bool(self._trouble)

    def flaw(self, certificate: bytes | None) -> str | None:
        """Why one (DER) that the CAs vouch for will not do, None if it will.

        OpenSSL asks what it is for only if the certificate says, and how old it is only if no
        earlier session is taken up.
        """
        try:
            found = x509.load_der_x509_certificate(certificate or b"")
            names, usages = _names(found), _usages(found)
        except (ValueError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType):
            return "there is no client certificate that could be read"
        if not found.not_valid_before_utc <= self._now() <= found.not_valid_after_utc:
            return "the client certificate has expired"
        if ExtendedKeyUsageOID.CLIENT_AUTH not in usages:
            return "the certificate is not for clients: it lacks the usage clientAuth"
        if self._names and self._names.isdisjoint(names):
            return "the client certificate bears none of the names in clientNames"
        return None

    def _reread(self) -> None:
        try:
            found = _read(self._file)
        except (OSError, ConfigurationError) as error:
            if (trouble := _told(error)) != self._trouble:
                log.warning("clientCaFile: %s: %s; the CAs from before stay", self._file, trouble)
                self._trouble = trouble
            return
        self._trouble = ""
        if found != self._authorities:
            self._authorities = found
            log.info("clientCaFile: %s has changed: %d CAs", self._file, len(found))


def _read(file: Path) -> Authorities:
    authorities = parse_certificates(file.read_bytes())
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(
            cadata=to_pem(authorities).decode()
        )
    except ssl.SSLError as error:
        raise ConfigurationError(f"a certificate is of no use: {error.reason}") from error
    return authorities


def _told(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def _names(certificate: x509.Certificate) -> set[str]:
    common = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    names = {str(each.value) for each in common}
    try:
        more = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return names
    return names | set(more.value.get_values_for_type(x509.DNSName))


def _usages(certificate: x509.Certificate) -> set[x509.ObjectIdentifier]:
    try:
        return set(certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
    except x509.ExtensionNotFound:
        return set()
