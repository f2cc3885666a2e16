"""Where a chaos run takes place: a control plane, two registries, tagpin, and namespaces."""

import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack, contextmanager
from dataclasses import dataclass, field

from cluster.controlplane import ControlPlane
from cluster.images import Pusher
from cluster.installation import Installation, Replica
from cluster.namespaces import Namespace
from cluster.programs import Distribution
from fakes.registry import FakeRegistry
from stages.played import LoopThread

REPLICAS = 3
NAMESPACES = {"strict-1": "enforce", "strict-2": "enforce", "lenient": "pin", "watched": "audit"}
HOT = 4
"""Tags of each registry that all pods use, and that move."""
RARE = 60
"""Tags of each registry that nobody has asked for yet."""


@dataclass(frozen=True, slots=True)
class World:
    """What there is. `background` runs what is asynchronous: the fake registry, and the load."""

    control_plane: ControlPlane
    installation: Installation
    real: Distribution
    fake: FakeRegistry
    background: LoopThread
    namespaces: Sequence[Namespace]
    forgotten: set[tuple[str, str]] = field(default_factory=set)
    """Records that were deleted: namespace and name."""

    @property
    def survivor(self) -> Replica:
        """The replica that is never ended: what it holds at the end is compared."""
        return self.installation.replicas[0]

    @property
    def others(self) -> Sequence[Replica]:
        return self.installation.replicas[1:]

    def move(self, which: int, content: str) -> None:
        """Let a tag that all pods use name another image, in both registries."""
        Pusher(self.real.url).push("hot", str(which), content)
        self.fake.push_image("hot", str(which), content.encode())

    def all_serve(self) -> bool:
        """Whether the Service sends to every replica."""
        service = self.installation.service
        assert service is not None
        return all(service.sends_to(each.endpoint) for each in self.installation.replicas)

    def wait_until_all_serve(self, *, seconds: float) -> bool:
        """Whether they do, within so many seconds."""
        deadline = time.monotonic() + seconds
        while not self.all_serve():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.1)
        return True


@contextmanager
def world() -> Iterator[World]:
    """Start all of it, and end it."""
    with ExitStack() as stack:
        background = stack.enter_context(LoopThread())
        servers = AsyncExitStack()
        stack.callback(lambda: background.run(servers.aclose()))
        fake = background.run(servers.enter_async_context(FakeRegistry()))
        real = stack.enter_context(Distribution())
        control_plane = stack.enter_context(ControlPlane(audit_new_pods=True))
        known = [{"host": each, "http": True} for each in (real.host, fake.host)]
        installation = Installation(
            control_plane, settings={"registries": known}, replicas=REPLICAS
        )
        stack.enter_context(installation)
        stack.callback(lambda: _thaw(installation))
        namespaces = [
            Namespace(control_plane, name, {"tagpin.dev/mode": mode})
            for name, mode in NAMESPACES.items()
        ]
        here = World(control_plane, installation, real, fake, background, namespaces)
        for number in range(HOT):
            here.move(number, f"first {number}")
        pusher = Pusher(real.url)
        for number in range(RARE):
            pusher.push("rare", str(number), f"rare {number % 10}")
            fake.push_image("rare", str(number), b"rare")
        yield here


def _thaw(installation: Installation) -> None:
    for each in installation.replicas:
        if each._running is not None:
            each.signal(signal.SIGCONT)
