"""Tenants with credentials of their own, who ask for the same private images."""

from bench import bodies, load
from bench.bursts import asked_of, burst, percentiles
from bench.rows import Bar, Found, Row
from bench.world import TENANTS, World
from cluster.installation import SERVICE_ACCOUNT
from cluster.namespaces import Namespace, Object

IMAGES = 5
SECRET = "pull"
CONNECTIONS = 16
SECONDS = 12.0
"""Longer than Secrets are held (10 s), so that they are read again within it."""


def measure(world: World, *, scale: float = 1.0) -> Found:
    """Pods that name a pull secret, of all tenants: each tenant's first one, then warm ones.

    Nobody gets an answer that another one's credentials obtained, or none: so each tenant's first
    pod costs a HEAD and a token for each image. Somebody with a wrong password gets no digest,
    before and after others have it; if that is not so, WrongAnswerError is raised.
    """
    images = [world.private.push(f"tenants/app{number}:v1") for number in range(IMAGES)]
    for tenant, password in TENANTS.items():
        _namespace(world, tenant, tenant, password)
    _namespace(world, "intruder", next(iter(TENANTS)), "wrong")
    intruder = bodies.create_unpinned(_pod("intruder", images))
    questions = [
        bodies.create(_pod(tenant, images), world.private.digests.__getitem__) for tenant in TENANTS
    ]
    target = world.tagpin.target

    load.run(burst(target, [intruder], connections=1))
    world.private.away.registry.requests.clear()
    cold = load.run(burst(target, questions, connections=len(TENANTS)))
    asked = asked_of(world.private)
    load.run(burst(target, [intruder], connections=1))

    world.private.away.registry.requests.clear()
    mark = world.control_plane.audit_mark()
    warm = load.run(
        load.closed(target, questions, connections=CONNECTIONS, seconds=SECONDS * scale)
    )
    read = world.control_plane.requests_of(SERVICE_ACCOUNT, resource="secrets", since=mark)
    secrets = [each for each in read if each.namespace in TENANTS]
    again = asked_of(world.private)

    name = f"{len(TENANTS)} tenants, {IMAGES} private images"
    rows = [
        Row(f"{name}, first pods", world.tagpin.name, {**percentiles(cold), **asked}),
        Row(
            f"{name}, warm, {CONNECTIONS} connections",
            world.tagpin.name,
            {
                "per_second": warm.per_second,
                **percentiles(warm),
                **again,
                "secret_requests": len(secrets),
            },
        ),
    ]
    each_once = len(TENANTS) * IMAGES
    bars = [
        Bar(f"{name}: {figure}", asked[figure], at_most=each_once, at_least=each_once)
        for figure in ("head_requests", "token_requests")
    ]
    return Found(rows, [*bars, Bar(f"{name}, warm: requests", again["requests"], at_most=0)])


def _namespace(world: World, name: str, user: str, password: str) -> None:
    """A namespace with the pull secret of a user."""
    namespace = Namespace(world.control_plane, name, {"tagpin.dev/mode": "pin"})
    namespace.create_pull_secret(SECRET, world.private.host, user, password)


def _pod(namespace: str, images: list[str]) -> Object:
    secrets = {"imagePullSecrets": [{"name": SECRET}]}
    return bodies.pod("web", images, namespace=namespace, spec=secrets)
