"""How each fault is done, and undone: a context manager that lasts as long as the fault.

`target` is any number: it says which of several.
"""

import contextlib
import json
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TypeVar

from chaos.seen import Fault
from chaos.world import World
from cluster.controlplane import KubectlError
from cluster.installation import SYSTEM, Replica
from fakes import faults as of_registries

T = TypeVar("T")
Do = Callable[[World, int], AbstractContextManager[object]]


@contextmanager
def killed(world: World, target: int) -> Iterator[None]:
    """It comes back as with a kubelet: a new process, in the same pod."""
    replica = _one_of(world.others, target)
    replica.kill()
    yield
    _launch(replica)


@contextmanager
def terminated(world: World, target: int) -> Iterator[None]:
    replica = _one_of(world.others, target)
    replica.stop()
    yield
    _launch(replica)


@contextmanager
def frozen(world: World, target: int) -> Iterator[None]:
    replica = _one_of(world.installation.replicas, target)
    replica.signal(signal.SIGSTOP)
    yield
    replica.signal(signal.SIGCONT)


def faulty(fault: of_registries.Fault) -> Do:
    """The fake registry answers everything so."""

    @contextmanager
    def do(world: World, _target: int) -> Iterator[None]:
        world.fake.fault(fault)
        yield
        world.fake.heal()

    return do


@contextmanager
def ended(world: World, _target: int) -> Iterator[None]:
    world.real.stop()
    yield
    world.real.start()


@contextmanager
def without_leaf(world: World, _target: int) -> Iterator[None]:
    _take_from_secret(world, "/data/tls.crt", "/data/tls.key")
    yield


@contextmanager
def without_ca(world: World, _target: int) -> Iterator[None]:
    """As manifests/base/secret.yaml tells whoever wants a new one."""
    _take_from_secret(world, "/data")
    yield


@contextmanager
def without_bundle(world: World, _target: int) -> Iterator[None]:
    name = ("mutatingwebhookconfiguration", "tagpin")
    found = json.loads(world.control_plane.kubectl("get", *name, "-o", "json").stdout)
    numbers = range(len(found["webhooks"]))
    _patch(world, name, [f"/webhooks/{each}/clientConfig/caBundle" for each in numbers])
    yield


def restarted(*, kill: bool) -> Do:
    """It is back when the context begins, since nothing else can be done meanwhile."""

    @contextmanager
    def do(world: World, _target: int) -> Iterator[None]:
        # It would answer what it has begun for longer than a run has time.
        world.control_plane.stop_api_server(kill=kill, patience=4)
        world.control_plane.start_api_server(until_ready=False)
        yield

    return do


@contextmanager
def forgotten(world: World, target: int) -> Iterator[None]:
    namespace = _one_of(world.namespaces, target % 2)
    found = namespace.kubectl("get", "imagepins", "-o", "name").output.split()
    chosen = [each.rpartition("/")[2] for each in found[target % 7 :: 7][:5]]
    if chosen:
        world.forgotten.update((namespace.name, each) for each in chosen)
        namespace.kubectl("delete", "imagepin", *chosen, "--ignore-not-found")
    yield


@contextmanager
def cut(world: World, _target: int) -> Iterator[None]:
    assert world.installation.service is not None
    world.installation.service.cut()
    yield


FAULTS: dict[Fault, Do] = {
    Fault.KILL: killed,
    Fault.TERM: terminated,
    Fault.FREEZE: frozen,
    Fault.SILENT: faulty(of_registries.hanging()),
    Fault.BROKEN: faulty(of_registries.answering(503)),
    Fault.LIMITED: faulty(of_registries.answering(429, {"Retry-After": "1"})),
    Fault.RESETTING: faulty(of_registries.resetting()),
    Fault.ENDED: ended,
    Fault.NEW_LEAF: without_leaf,
    Fault.NEW_CA: without_ca,
    Fault.NO_BUNDLE: without_bundle,
    Fault.API_STOP: restarted(kill=False),
    Fault.API_KILL: restarted(kill=True),
    Fault.FORGET: forgotten,
    Fault.CUT: cut,
}
INSTANT = frozenset(
    {
        *(Fault.NEW_LEAF, Fault.NEW_CA, Fault.NO_BUNDLE),
        *(Fault.API_STOP, Fault.API_KILL, Fault.FORGET, Fault.CUT),
    }
)
"""What is done at once, and not undone."""
OF_REPLICAS = frozenset({Fault.KILL, Fault.TERM, Fault.FREEZE})
"""What makes one replica less; there must be others."""
OF_REGISTRIES = frozenset({Fault.SILENT, Fault.BROKEN, Fault.LIMITED, Fault.RESETTING, Fault.ENDED})


def _launch(replica: Replica) -> None:
    """Start it, as soon as the API server has a token for it."""
    for _ in range(20):
        with contextlib.suppress(KubectlError):
            replica.launch()
            break
        time.sleep(0.5)


def _one_of(several: Sequence[T], target: int) -> T:
    return several[target % len(several)]


def _take_from_secret(world: World, *paths: str) -> None:
    _patch(world, ("secret", "tagpin-tls", "-n", SYSTEM), paths)


def _patch(world: World, name: Sequence[str], paths: Sequence[str]) -> None:
    patch = json.dumps([{"op": "remove", "path": each} for each in paths])
    world.control_plane.kubectl("patch", *name, "--type=json", "-p", patch)
