"""The fake proxy and a real one behind one face: start, be told the login, stop and start again."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

from cluster.programs import LOOPBACK, Running
from fakes.proxy import FakeProxy

LOGIN = "proxyuser:pr0xy"

KINDS = ("fake", "fake-login", "proxy.py", "proxy.py-login")
WITH_LOGIN = tuple(kind for kind in KINDS if kind.endswith("-login"))


class Proxy(Protocol):
    """An HTTP proxy that keeps its port when it is stopped and entered again."""

    @property
    def name(self) -> str:
        """`host:port`."""

    async def __aenter__(self) -> Self: ...

    async def stop(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Backend:
    """A running proxy, whatever it is, and the `user:password` that it wants, if any."""

    proxy: Proxy
    login: str | None

    def url(self, login: str | None = None) -> str:
        """What an operator writes: with the login that is right, unless told otherwise."""
        given = self.login if login is None else login
        return f"http://{given}@{self.proxy.name}" if given else f"http://{self.proxy.name}"


@asynccontextmanager
async def running(kind: str, folder: Path) -> AsyncIterator[Backend]:
    """Start a proxy of `KINDS`."""
    login = LOGIN if kind in WITH_LOGIN else None
    proxy: FakeProxy | ProxyPy
    if kind.startswith("fake"):
        # It knows no other name, as the real one knows those of this machine.
        proxy = FakeProxy({"localhost": LOOPBACK}, login=login)
    else:
        proxy = ProxyPy(folder, login=login)
    try:
        yield Backend(await proxy.__aenter__(), login)
    finally:
        await proxy.stop()


# It serves in a second process, which on Linux ends with the first one as that ends with us.
_PROGRAM = """
import ctypes, os, signal, sys
from proxy import entry_point
PR_SET_PDEATHSIG = 1
if sys.platform == "linux":
    libc = ctypes.CDLL(None)
    os.register_at_fork(after_in_child=lambda: libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL))
entry_point()
"""


class ProxyPy:
    """proxy.py, whose names are those of this machine."""

    def __init__(self, folder: Path, *, login: str | None) -> None:
        self._folder = folder
        self._login = login
        self._port_file = folder / "port"
        self._port = 0
        self._running: Running | None = None

    @property
    def name(self) -> str:
        return f"{LOOPBACK}:{self._port}"

    async def __aenter__(self) -> Self:
        self._port_file.unlink(missing_ok=True)
        options = {
            "hostname": LOOPBACK,
            "port": self._port,  # 0: a free one
            "port-file": self._port_file,
            "data-dir": self._folder,
            "num-acceptors": 1,
            "num-workers": 1,
        }
        if self._login:
            options["basic-auth"] = self._login
        # In this thread: a child dies with the thread that started it.
        self._running = Running(
            "proxy.py",
            [sys.executable, "-c", _PROGRAM, *(f"--{key}={options[key]}" for key in options)],
            log=self._folder / "log",
            environ={},
        )
        self._running.wait_until(self._listens, seconds=20)
        self._port = int(self._port_file.read_text())
        return self

    async def stop(self) -> None:
        if self._running is not None:
            # Both processes: asked politely, it would take a second to end.
            with suppress(ProcessLookupError):
                os.killpg(self._running.pid, signal.SIGKILL)
            await asyncio.to_thread(self._running.stop)
            self._running = None

    def _listens(self) -> bool:
        return self._port_file.exists() and self._port_file.read_text() != ""
