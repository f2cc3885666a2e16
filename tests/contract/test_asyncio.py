"""What we rely on of asyncio beyond its public interface."""

import asyncio
import ssl
from asyncio.sslproto import SSLProtocol

import pytest

from tagpin.app.serve import TLS_BUFFER


async def test_a_tls_connection_has_a_buffer_of_the_size_that_the_class_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else hundreds of connections would take hundreds of MiB again."""
    monkeypatch.setattr(SSLProtocol, "max_size", TLS_BUFFER)
    made = SSLProtocol(
        asyncio.get_running_loop(),
        asyncio.Protocol(),
        ssl.create_default_context(),
        waiter=asyncio.get_running_loop().create_future(),
        server_side=False,
        server_hostname="r.example",
    )
    buffer = vars(made)["_ssl_buffer"]
    made.connection_lost(None)
    assert len(buffer) == TLS_BUFFER
