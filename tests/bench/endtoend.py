"""What a webhook costs where pods are made: a thousand of them, through the real API server.

The controllers stand still meanwhile: they would delete pods that their ReplicaSets did not ask
for. Everybody has both cores, as on a small machine.
"""

import json
import os
import re
import signal
import ssl
import statistics
from base64 import b64encode
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from bench import bodies, creating, machine
from bench.creating import ApiServer, Order
from bench.load import WrongAnswerError
from bench.rows import Bar, Figures, Found, Row, medians
from bench.world import Server, World
from cluster.installation import SERVICE_ACCOUNT, kustomized
from cluster.namespaces import Namespace, Object, eventually, replica_set

PODS = 1000
CLIENTS = 16
REVISIONS = (1, 100)
NEAR = (0.0,)
DISTANCES = (*NEAR, 0.02)
"""Seconds of a round trip to the registry."""
ROUNDS = 3
BOUND = 1.3
"""Times as long as with the bare handler, as was promised."""

OURS = "tagpin"


@dataclass(frozen=True, slots=True)
class Case:
    """A namespace whose pods a `server` sees, or nobody, and what their images must become."""

    name: str
    namespace: Namespace
    becomes: Callable[[str], str]
    server: Server | None = None
    distances: tuple[float, ...] = DISTANCES
    """To the registry: who does not ask it is measured once."""


Run = tuple[str, int, float]
"""Case, revisions, round trip."""


def measure(world: World, scale: float = 1.0) -> Found:
    """Rounds of all cases, one after the other; the ratios are those of the same round."""
    pods, rounds = max(32, int(PODS * scale)), ROUNDS if scale >= 1 else 1
    images = [world.registry.push(f"endtoend/app-{number}:v1") for number in range(max(REVISIONS))]
    images.append(world.registry.push("endtoend/sidecar:v1"))
    found: dict[Run, list[Figures]] = {}
    with on_both_cores(world), _webhooks(world) as cases:
        api_server = ApiServer(world.control_plane)
        bench = _Bench(world, api_server, images, pods)
        for each in cases:
            bench.wait_for(each)
        with standing_still(world):
            for number in range(rounds):
                for revisions in REVISIONS:
                    for case in _turned(cases, number):
                        for distance in case.distances:
                            figures = bench.run(case, f"{number}", revisions, distance)
                            found.setdefault((case.name, revisions, distance), []).append(figures)
    return Found([*_rows(found)], [*_bars(found)])


class _Bench:
    def __init__(
        self, world: World, api_server: ApiServer, images: Sequence[str], pods: int
    ) -> None:
        self._world = world
        self._api_server = api_server
        self._images = images
        self._pods = pods

    def wait_for(self, case: Case) -> None:
        """Return once the API server knows of the case's webhook, and it answers."""
        image = self._images[-1]
        pod = bodies.pod("probe", [image], namespace=case.namespace.name)
        path = f"{self._path(case)}?dryRun=All"
        request = self._api_server.ask("POST", path, json.dumps(pod).encode())
        answers: list[bytes] = []

        def ask() -> list[str]:
            creating.carry_out(self._api_server, [Order(request, check=answers.append)], clients=1)
            return creating.images(answers[-1])

        eventually(ask, lambda found: found == [case.becomes(image)])

    def run(self, case: Case, name: str, revisions: int, distance: float) -> Figures:
        """Create the pods of so many new revisions, and delete all of it again."""
        world, namespace = self._world, case.namespace.name
        sets = self._replica_sets(case, f"{name}-{revisions}-{distance * 1000:g}", revisions)
        pods = [
            self._pod(case, sets[number % revisions], number, revisions)
            for number in range(self._pods)
        ]
        programs = _programs(world, case)
        registry, mark = world.registry.away.registry, world.control_plane.audit_mark()
        asked = len(registry.requests)
        _collect_garbage(world)
        world.registry.away.round_trip = distance
        before = {name: machine.cpu_seconds(pid) for name, pid in programs.items()}
        try:
            done = creating.carry_out(self._api_server, pods, clients=CLIENTS)
        finally:
            world.registry.away.round_trip = 0.0
        used = {name: machine.cpu_seconds(pid) - before[name] for name, pid in programs.items()}
        ours = world.control_plane.requests_of(SERVICE_ACCOUNT, since=mark)
        figures = {
            "seconds": done.elapsed,
            "per_second": done.per_second,
            "p50_ms": done.percentile(50) * 1e3,
            "p99_ms": done.percentile(99) * 1e3,
            "registry_requests": float(len(registry.requests) - asked),
            "api_requests": float(sum(each.namespace == namespace for each in ours)),
        } | {f"{name}_cpu_us": seconds / self._pods * 1e6 for name, seconds in used.items()}
        self._delete(case)
        return figures

    def _replica_sets(self, case: Case, name: str, count: int) -> list[Object]:
        path = f"/apis/apps/v1/namespaces/{case.namespace.name}/replicasets"
        made = [
            replica_set(
                f"web-{name}-{number}".replace(".", "-"),
                {"app": self._images[number], "sidecar": self._images[-1]},
                labels={"pod-template-hash": f"{name}-{number}"},
                replicas=0,
            )
            for number in range(count)
        ]
        return creating.created(self._api_server, path, made)

    def _pod(self, case: Case, owner: Object, number: int, revisions: int) -> Order:
        images = [self._images[number % revisions], self._images[-1]]
        wanted = [case.becomes(each) for each in images]
        pod = bodies.pod(
            f"web-{number}",
            images,
            owner=owner,
            template_hash=owner["metadata"]["labels"]["pod-template-hash"],
            namespace=case.namespace.name,
        )

        def check(answer: bytes) -> None:
            if (found := creating.images(answer)) != wanted:
                raise WrongAnswerError(f"{case.name}: wanted {wanted}, got {found}")

        request = self._api_server.ask("POST", self._path(case), json.dumps(pod).encode())
        return Order(request, check=check)

    def _delete(self, case: Case) -> None:
        sets = f"/apis/apps/v1/namespaces/{case.namespace.name}/replicasets"
        orders = [
            Order(self._api_server.ask("DELETE", f"{path}?gracePeriodSeconds=0"), creating.OK)
            for path in (self._path(case), sets)
        ]
        creating.carry_out(self._api_server, orders, clients=1)

    def _path(self, case: Case) -> str:
        return f"/api/v1/namespaces/{case.namespace.name}/pods"


def _collect_garbage(world: World) -> None:
    """Let the API server begin as it did for the others.

    A cycle of its collector takes about a third of the time that is measured, so it would matter
    most who is asked in the middle of one. Go collects before it tells of its heap.
    """
    status, _ = world.control_plane.get("/debug/pprof/heap?gc=1")
    if status != HTTPStatus.OK:
        raise WrongAnswerError(f"no profile of the API server: {status}")


def _programs(world: World, case: Case) -> dict[str, int]:
    """Whose time is taken; the client has the registry in its process."""
    pids = world.control_plane.pids
    found = {"api_server": pids["kube-apiserver"], "etcd": pids["etcd"], "client": os.getpid()}
    if case.server is not None and case.server.pid is not None:
        found["server"] = case.server.pid
    return found


@contextmanager
def _webhooks(world: World) -> Iterator[list[Case]]:
    """The cases. Whoever is not tagpin gets a webhook that is called just as tagpin's is."""

    def case(name: str, labels: dict[str, str] | None = None, **options: Any) -> Case:
        namespace = Namespace(world.control_plane, f"endtoend-{_slug(name)}", labels)
        return Case(name, namespace, **options)

    def by(server: Server) -> Callable[[str], str]:
        return lambda image: bodies.pinned(image, server.digests)

    tagpin = world.tagpin
    cases = [
        case("no webhook", becomes=lambda image: image, distances=NEAR),
        case(world.bare.name, becomes=by(world.bare), server=world.bare, distances=NEAR),
        *(case(each.name, becomes=by(each), server=each) for each in world.peers),
        case(OURS, {"tagpin.dev/mode": "pin"}, becomes=by(tagpin), server=tagpin),
        case(
            f"{OURS}, enforce",
            {"tagpin.dev/mode": "enforce"},
            becomes=by(tagpin),
            server=tagpin,
            distances=NEAR,  # which the policies don't depend on
        ),
    ]
    objects = kustomized(world.control_plane)
    (ours,) = [each for each in objects if each["kind"] == "MutatingWebhookConfiguration"]
    (pin,) = [each for each in ours["webhooks"] if each["name"] == "pin.tagpin.dev"]
    theirs = [
        _configuration(pin, each, each.server)
        for each in cases
        if each.server not in (None, tagpin)
    ]
    made = json.dumps({"apiVersion": "v1", "kind": "List", "items": theirs})
    world.control_plane.kubectl("create", "-f", "-", input=made)
    try:
        yield cases
    finally:
        world.control_plane.kubectl("delete", "-f", "-", input=made)


def _configuration(pin: Object, case: Case, server: Server | None) -> Object:
    """tagpin's webhook for `pin`, with somebody else behind it."""
    assert server is not None
    name, target = case.namespace.name, server.target
    authorities = map(ssl.DER_cert_to_PEM_cert, target.tls.get_ca_certs(binary_form=True))
    webhook = pin | {
        "name": f"{name}.tagpin.dev",
        "clientConfig": {
            "url": target.url.partition("?")[0],  # the API server adds its own
            "caBundle": b64encode("".join(authorities).encode()).decode(),
        },
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": name}},
    }
    return {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "MutatingWebhookConfiguration",
        "metadata": {"name": name},
        "webhooks": [webhook],
    }


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


@contextmanager
def on_both_cores(world: World) -> Iterator[None]:
    """Nobody has a core of its own meanwhile."""
    servers = [each.pid for each in world.servers if each.pid is not None]
    others = [*world.control_plane.pids.values(), os.getpid()]
    machine.stay_on(machine.BOTH, servers + others)
    try:
        yield
    finally:
        machine.stay_on(machine.SERVERS, servers)
        machine.stay_on(machine.CLIENTS, others)


@contextmanager
def standing_still(world: World) -> Iterator[None]:
    """The controllers do nothing meanwhile: they would delete the pods of ReplicaSets."""
    pid = world.control_plane.pids["kube-controller-manager"]
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def _turned(cases: Sequence[Case], number: int) -> list[Case]:
    """Another one is the first in each round."""
    number %= len(cases)
    return [*cases[number:], *cases[:number]]


def _rows(found: dict[Run, list[Figures]]) -> Iterator[Row]:
    for (name, revisions, distance), rounds in sorted(found.items(), key=lambda each: each[0][1:]):
        figures = dict(medians(rounds))
        for other, key in (("no webhook", "times_none"), ("bare handler", "times_bare")):
            figures[key] = _ratio(rounds, found[other, revisions, *NEAR])
        yield Row(_scenario(revisions, distance), name, figures)


def _bars(found: dict[Run, list[Figures]]) -> Iterator[Bar]:
    for revisions in REVISIONS:
        for distance in DISTANCES:
            ratio = _ratio(
                found[OURS, revisions, distance], found["bare handler", revisions, *NEAR]
            )
            what = f"{_scenario(revisions, distance)}, times as long as with the bare handler"
            yield Bar(what, ratio, at_most=BOUND)


def _scenario(revisions: int, distance: float) -> str:
    of = "1 revision" if revisions == 1 else f"{revisions} revisions"
    return f"pods of {of} through the API server, registry {distance * 1000:g} ms away"


def _ratio(rounds: Sequence[Figures], others: Sequence[Figures]) -> float:
    return statistics.median(
        a["seconds"] / b["seconds"] for a, b in zip(rounds, others, strict=True)
    )
