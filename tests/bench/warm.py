"""Pods that everything is known about: what a review costs by itself."""

from collections.abc import Callable, Sequence

from bench import bodies, load, machine
from bench.bodies import NAMESPACE
from bench.load import Question
from bench.rows import Bar, Figures, Found, Row, medians
from bench.world import Server, World
from cluster.namespaces import Namespace, Object, replica_set

ROUNDS = 5
SECONDS = 1.0
CONNECTIONS = (1, 16)
TEMPLATE = "5d4f8c7b9"

Ask = Callable[[Server], Sequence[Question]]
"""The questions to a server, one for each connection."""


def measure(world: World, *, scale: float = 1.0) -> Found:
    """All servers in turn, round by round; the ratios are those of the medians."""
    namespace = Namespace(world.control_plane, NAMESPACE, {"tagpin.dev/mode": "pin"})
    images = [world.registry.push(f"team/app-{number}:v1") for number in range(20)]
    name = f"web-{TEMPLATE}"
    owner = replica_set(
        name, {"app": images[0]}, labels={"pod-template-hash": TEMPLATE}, replicas=0
    )
    namespace.create(owner)
    owner = namespace.get(f"replicasets/{name}", "apis/apps/v1")
    everybody, own = world.servers, (world.tagpin, *world.peers)

    def pods(count: int, *, owned: bool = True, digests: bool = False) -> list[Object]:
        texts = images[:count]
        if digests:
            texts = [bodies.pinned(each, world.registry.digests.__getitem__) for each in texts]
        return [
            bodies.pod(
                f"{name}-{number}",
                texts,
                owner=owner if owned else None,
                template_hash=TEMPLATE if owned else "",
            )
            for number in range(max(CONNECTIONS))
        ]

    two, twenty, alone, pinned = pods(2), pods(20), pods(2, owned=False), pods(2, digests=True)
    cells: list[tuple[str, tuple[Server, ...], int, Ask]] = [
        (f"warm, from the ledger, {_told(connections)}", everybody, connections, _creating(two))
        for connections in CONNECTIONS
    ]
    most = max(CONNECTIONS)
    cells += [
        (f"warm, from the cache, {_told(most)}", own, most, _creating(alone)),
        (f"warm, 20 containers (40 KiB), {_told(most)}", everybody, most, _creating(twenty)),
        (f"warm, UPDATE with both objects, {_told(most)}", everybody, most, _updating(two)),
        (f"nothing to do, all digests, {_told(most)}", own, most, _creating(pinned)),
    ]
    taken: dict[tuple[str, str], list[Figures]] = {}
    for _ in range(max(1, round(ROUNDS * scale))):
        for scenario, servers, connections, ask in cells:
            for server in servers:
                figures = _measured(server, ask(server), connections, SECONDS * min(1.0, scale))
                taken.setdefault((scenario, server.name), []).append(figures)
    found = {key: medians(rounds) for key, rounds in taken.items()}
    return Found([Row(*key, figures) for key, figures in found.items()], _bars(world, found))


def _bars(world: World, found: dict[tuple[str, str], Figures]) -> list[Bar]:
    one, many = (f"warm, from the ledger, {_told(each)}" for each in CONNECTIONS)

    def share(scenario: str, figure: str, of: Server) -> float:
        mine = found[scenario, world.tagpin.name][figure]
        return mine / found[scenario, of.name][figure]

    return [
        Bar(
            f"{many}: throughput, times stock kopf's",
            share(many, "per_second", world.stock),
            at_least=3.3,
        ),
        Bar(
            f"{many}: throughput, share of the bare handler's",
            share(many, "per_second", world.bare),
            at_least=0.20,
        ),
        Bar(
            f"{one}: p50, times the bare handler's",
            share(one, "p50_ms", world.bare),
            at_most=2.5,
        ),
    ]


def _told(connections: int) -> str:
    return f"{connections} connection{'s' if connections > 1 else ''}"


def _creating(pods: Sequence[Object]) -> Ask:
    return lambda server: [bodies.create(each, server.digests) for each in pods]


def _updating(pods: Sequence[Object]) -> Ask:
    return lambda server: [bodies.update(each, server.digests) for each in pods]


def _measured(
    server: Server, questions: Sequence[Question], connections: int, seconds: float
) -> Figures:
    load.run(load.closed(server.target, questions, connections=connections, seconds=0.1))
    before = machine.cpu_seconds(server.pid) if server.pid else 0.0
    answered = load.run(
        load.closed(server.target, questions, connections=connections, seconds=seconds)
    )
    figures = {
        "per_second": answered.per_second,
        "p50_ms": answered.percentile(50) * 1000,
        "p99_ms": answered.percentile(99) * 1000,
    }
    if server.pid:
        used = machine.cpu_seconds(server.pid) - before
        figures["cpu_us"] = used / len(answered.seconds) * 1e6
        figures["busy_percent"] = used / answered.elapsed * 100
    return figures
