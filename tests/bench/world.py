"""Where the bench takes place: a control plane, a registry, tagpin, and whom it is compared with.

Whoever is measured has a core of its own, and everybody else shares the other one.
"""

import os
import ssl
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import bare, machine
from bench.away import Away, black_hole
from bench.bodies import Digests
from bench.load import Target, accepts
from cluster.authority import Authority, Issued
from cluster.controlplane import ControlPlane
from cluster.installation import Installation, Replica
from cluster.programs import LOOPBACK, Running, free_ports
from fakes.registry import FakeRegistry
from stages.played import LoopThread

FOREVER = "1h"
"""Longer than the bench: what is warm stays so."""


@dataclass(frozen=True, slots=True)
class Server:
    """A webhook that is measured, and what it must answer.

    `pid` is None where we cannot know it.
    """

    name: str
    target: Target
    digests: Digests
    pid: int | None = None


@dataclass(frozen=True, slots=True)
class Registry:
    """One of the registries: what is pushed, and what was asked."""

    away: Away
    digests: dict[str, str]
    """Image, as a pod has it → digest, of all that was pushed."""

    @property
    def host(self) -> str:
        return self.away.host

    def push(self, name: str) -> str:
        """Push an image of its own as `repository:tag`; return how a pod writes it."""
        repository, _, tag = name.partition(":")
        text = f"{self.host}/{name}"
        self.digests[text] = self.away.registry.push_image(repository, tag, text.encode())
        return text


@dataclass(frozen=True, slots=True)
class World:
    control_plane: ControlPlane
    installation: Installation
    authority: Authority
    background: LoopThread
    registry: Registry
    private: Registry
    """Another one, that wants a password."""
    lost: tuple[str, ...]
    """Hosts of some that nobody reaches: each is left alone soon, so each serves once."""
    tagpin: Server
    bare: Server
    stock: Server
    peers: tuple[Server, ...] = ()
    """Those that others have started."""

    @property
    def replica(self) -> Replica:
        return self.installation.replicas[0]

    @property
    def servers(self) -> tuple[Server, ...]:
        """All that are compared, the references first."""
        return (self.bare, self.stock, self.tagpin, *self.peers)


@contextmanager
def world(**settings: Any) -> Iterator[World]:
    """Start all of it, and end it. `settings` are tagpin's."""
    machine.stay_on(machine.CLIENTS)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tagpin-bench-")))
        authority = Authority(folder)
        issued = authority.issue("bench", hosts=[LOOPBACK])
        background = stack.enter_context(LoopThread())
        servers = AsyncExitStack()
        stack.callback(lambda: background.run(servers.aclose()))

        def registry(users: Mapping[str, str]) -> Registry:
            fake = FakeRegistry(tls=_serving(issued), tokens=True, users=users)
            background.run(servers.enter_async_context(fake))
            return Registry(background.run(servers.enter_async_context(Away(fake))), {})

        public, private = registry({}), registry(TENANTS)
        lost = tuple(stack.enter_context(black_hole()) for _ in range(4))
        control_plane = stack.enter_context(ControlPlane(scheduler=False, nodes=0))
        ca = str(authority.certificate)
        installation = Installation(
            control_plane,
            settings={
                "registries": [{"host": each, "caFile": ca} for each in (public.host, private.host)]
                + [{"host": each} for each in lost],
                "freshness": FOREVER,
                "cacheTTL": FOREVER,
                "recordTTL": FOREVER,
            }
            | settings,
        )
        stack.enter_context(installation)
        replica = installation.replicas[0]
        machine.stay_on(machine.SERVERS, [replica.pid])
        yield World(
            control_plane,
            installation,
            authority,
            background,
            public,
            private,
            lost,
            Server(
                "tagpin",
                Target(f"https://{LOOPBACK}:{replica.port}/pin?timeout=5s", replica.ca()),
                public.digests.__getitem__,
                replica.pid,
            ),
            stack.enter_context(_bare(folder, issued, authority.certificate)),
            stack.enter_context(_stock(folder, issued, authority.certificate, control_plane)),
        )


TENANTS = {f"tenant-{number}": f"password-{number}" for number in range(8)}
"""Who may log in to the private registry."""


@contextmanager
def _bare(folder: Path, issued: Issued, ca: Path) -> Iterator[Server]:
    (port,) = free_ports(1)
    command = (sys.executable, "-m", "bench.bare", str(port), *issued)
    with _running("bare", command, folder, port, {"PYTHONPATH": _tests()}) as pid:
        target = Target(f"https://{LOOPBACK}:{port}/", ca)
        yield Server("bare handler", target, lambda _: bare.DIGEST, pid)


@contextmanager
def _stock(folder: Path, issued: Issued, ca: Path, control_plane: ControlPlane) -> Iterator[Server]:
    (port,) = free_ports(1)
    kopf = Path(sys.executable).with_name("kopf")
    file = Path(__file__).with_name("stock.py")
    command = (kopf, "run", "--standalone", "--all-namespaces", file)
    environment = {
        "KUBECONFIG": str(control_plane.admin),
        "BENCH_PORT": str(port),
        "BENCH_CERTIFICATE": str(issued.certificate),
        "BENCH_KEY": str(issued.key),
        "BENCH_DIGEST": bare.DIGEST,
    }
    with _running("stock", command, folder, port, environment) as pid:
        target = Target(f"https://{LOOPBACK}:{port}/pin", ca)
        yield Server("stock kopf", target, lambda _: bare.DIGEST, pid)


@contextmanager
def _running(
    name: str,
    command: Sequence[str | Path],
    folder: Path,
    port: int,
    environment: Mapping[str, str],
) -> Iterator[int]:
    """A server on the core of those that are measured, once its port answers."""
    running = Running(
        name, command, log=folder / f"{name}.log", environ={**os.environ, **environment}
    )
    try:
        running.wait_until(lambda: accepts(LOOPBACK, port), seconds=30)
        machine.stay_on(machine.SERVERS, [running.pid])
        yield running.pid
    finally:
        running.stop()


def _serving(issued: Issued) -> ssl.SSLContext:
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(*issued)
    return tls


def _tests() -> str:
    return str(Path(__file__).parents[1])
