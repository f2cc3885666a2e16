"""The TLS side of the webhook port: what a handshake is made with, and how one fails."""

import os
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from tagpin.certificates import Pair, to_pem
from tagpin.cluster.clients import Authorities, Clients

failed: ContextVar[Callable[[ssl.SSLError], None]] = ContextVar("failed")
"""Told why a handshake fails that was begun in this context of execution."""


class LiveContext:
    """What servers make their handshakes with: it changes while the listener stays.

    Each certificate, and each set of CAs that `clients` must have one of, has a context of its
    own, so no session outlives the CAs that it was verified by.
    """

    def __init__(self, clients: Clients | None = None) -> None:
        self._clients = clients
        self._pair: Pair | None = None
        self._authorities: Authorities = clients.authorities if clients else ()
        self._current = self._made_of(None)

    @property
    def current(self) -> ssl.SSLContext:
        """For the next handshake; one that is refused, before the first `load`."""
        if self._clients and self._clients.authorities is not self._authorities:
            self._authorities = self._clients.authorities
            self._current = self._made_of(self._pair)
        return self._current

    def load(self, pair: Pair) -> None:
        """Serve this certificate from the next handshake on; raises ssl.SSLError or OSError."""
        self._current = self._made_of(pair)
        self._pair = pair

    def _made_of(self, pair: Pair | None) -> ssl.SSLContext:
        context = _Context(ssl.PROTOCOL_TLS_SERVER)
        context.sslobject_class = _Handshake
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if self._clients:
            context.verify_mode = ssl.CERT_REQUIRED
            context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # what is listed need be no root
            context.load_verify_locations(cadata=to_pem(self._authorities).decode())
            context.options |= ssl.OP_NO_TICKET
            context.num_tickets = 0
        if pair is not None:
            with _readable(pair.certificate_pem) as certificate, _readable(pair.key_pem) as key:
                context.load_cert_chain(certificate, key)
        return context


class _Context(ssl.SSLContext):
    """Lets a handshake know what comes in."""

    def wrap_bio(self, incoming: ssl.MemoryBIO, *arguments: Any, **options: Any) -> ssl.SSLObject:
        made = super().wrap_bio(incoming, *arguments, **options)
        if isinstance(made, _Handshake):
            made.incoming = incoming
        return made


class _Handshake(ssl.SSLObject):
    """Fails so that the other side hears why, and tells `failed`, which is to end it.

    An event loop drops a connection whose handshake fails before the alert has gone out: an API
    server could only say that the connection was reset.
    """

    incoming: ssl.MemoryBIO
    _has_failed = False

    def do_handshake(self) -> None:
        """As of SSLObject; but once it has failed, it takes in what comes, and never ends."""
        if self._has_failed:
            self.incoming.read()
            raise ssl.SSLWantReadError
        try:
            super().do_handshake()
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise
        except ssl.SSLError as error:
            if (tell := failed.get(None)) is None:
                raise
            self._has_failed = True
            tell(error)
            raise ssl.SSLWantReadError from None


@contextmanager
def _readable(content: bytes) -> Iterator[str]:
    """A path that can be read once, and is a pipe: no private key is written to a disk.

    The ssl module takes paths only, and the root file system of the pod is read-only.
    """
    reader, writer = os.pipe()
    try:
        os.set_blocking(writer, False)  # BlockingIOError where it would not fit: 64 KiB on Linux
        with os.fdopen(writer, "wb") as file:
            file.write(content)
        yield f"/dev/fd/{reader}"
    finally:
        os.close(reader)
