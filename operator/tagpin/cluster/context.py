"""The TLS side of the webhook port: a context whose certificate changes under open connections."""

import os
import ssl
from collections.abc import Iterator
from contextlib import contextmanager

from tagpin.certificates import Pair


class LiveContext:
    """A TLS context for servers, whose certificate changes while the listener stays.

    Each certificate gets a context of its own, chosen per handshake. Loading it into the outer
    one would keep the old certificate beside the new one if their key types differ, and serve
    it to clients that prefer it.
    """

    def __init__(self) -> None:
        self._current: ssl.SSLContext | None = None
        self.outer = self._context()
        self.outer.sni_callback = self._select

    def load(self, pair: Pair) -> None:
        """Serve this certificate from the next handshake on; raises ssl.SSLError or OSError."""
        context = self._context()
        with _readable(pair.certificate_pem) as certificate, _readable(pair.key_pem) as key:
            context.load_cert_chain(certificate, key)
        self._current = context

    def _context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        return context

    def _select(
        self, connection: ssl.SSLObject | ssl.SSLSocket, _name: str | None, _outer: ssl.SSLContext
    ) -> int | None:
        """OpenSSL calls this in every handshake, also where the client names no server."""
        if self._current is None:
            return ssl.AlertDescription.ALERT_DESCRIPTION_INTERNAL_ERROR
        connection.context = self._current
        return None


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
