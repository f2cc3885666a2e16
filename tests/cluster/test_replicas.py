"""What it costs when a replica ends, and when it does not even end.

Eight clients create pods in `enforce` all the time, through the API server and the played Service.
What they see follows from how the API server calls a webhook (net/http, k8s.io/client-go):

- It keeps its connections (25 that are idle, at most), takes the one that it used last, and closes
  one that was idle for 90 s. A request that meets a dead connection is sent again only if not a
  byte of it was written: it is a POST. So a connection to a replica that is no more costs one pod
  at most, and once.
- A replica that is killed has its connections closed by its kernel, so only what is under way is
  lost, and what opens a connection before the endpoints change. One that hangs, or whose node has
  gone, closes nothing: who has such a connection waits for `timeoutSeconds`, and is refused. Most
  are taken up at once, but one that is seldom needed may lie in wait for those 90 s.

Time is played short: the Service looks every 0.1 s, for 1 s, and one look is enough. In
manifests/base it is every 2 s, for 2 s, and twice, so a replica that drains or was killed is out of
the endpoints 4 s later (here 0.1 s), and one that hangs 6 s later (here 1.1 s); until all nodes
know takes a moment more. `timeoutSeconds` is that of manifests/base. How many pods are refused does
not depend on these times, but on how many connections there are.
"""

import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from cluster.controlplane import ControlPlane
from cluster.installation import Install, Installation, Replica
from cluster.load import Created, Load
from cluster.namespaces import NewNamespace, eventually
from cluster.registries import Registries
from conftest import Figure

TIMEOUT = 5.0
"""`timeoutSeconds` of the webhooks in manifests/base."""
SLOWNESS = 5.0
"""Seconds that a slow machine may need for what takes none."""
CLIENTS = 8
DRAIN = 2.0
LAG = 0.5
"""Seconds after which the nodes know of a replica that drains."""


@pytest.fixture(scope="module")
def installation(install: Install) -> Iterator[Installation]:
    with install(replicas=2, drain=f"{DRAIN}s") as running:
        yield running


@pytest.fixture
def load(
    installation: Installation,
    control_plane: ControlPlane,
    new_namespace: NewNamespace,
    registries: Registries,
) -> Iterator[Load]:
    """Pods are created in `enforce`, over connections to both replicas; all become pinned."""
    namespace = new_namespace("enforce")
    app = registries.public.push(f"{namespace.name}/app:1")
    assert installation.service is not None
    installation.service.cut()
    time.sleep(0.5)  # for the API server to see it
    load = Load(control_plane, namespace.name, app.text, clients=CLIENTS)
    with load:
        load.run_for(pods=60)
        yield load
    assert {each.image for each in load.created if not each.is_refused} == {app.pinned}
    assert len(load.created) >= 200


class TestEndingOne:
    def test_that_is_told_to_end_refuses_no_pod(
        self, installation: Installation, load: Load, figure: Figure
    ) -> None:
        replica, *_ = installation.replicas
        began = time.monotonic()
        with behind_the_times(installation):
            replica.signal(signal.SIGTERM)
            with load.rush(clients=16) as rush:  # some of their connections still lead there
                rush.run_for(pods=80)
            replica.stop()
        ended = time.monotonic()
        load.run_for(pods=60)
        replica.start()

        assert [pod for pod in load.created if began < pod.begun < ended]
        assert load.refused == rush.refused == []
        figure(f"replica ended politely, {CLIENTS} clients", f"0 refused of {len(load.created)}")

    def test_that_is_killed_costs_a_pod_per_connection_and_no_time(
        self, installation: Installation, load: Load, figure: Figure
    ) -> None:
        replica, *_ = installation.replicas
        with counting(installation, replica) as lost:
            replica.kill()
            until_out(installation, replica)
            load.run_for(pods=100)
        replica.start()
        load.run_for(pods=60)

        assert len(load.refused) <= lost.connections
        assert_cause(load.refused, "EOF", "connection reset by peer", "broken pipe")
        assert lost.over(load.refused) < SLOWNESS
        lost.tell(figure, "replica killed", load.refused)

    def test_that_hangs_costs_a_pod_and_a_time_out_per_connection(
        self, installation: Installation, load: Load, figure: Figure
    ) -> None:
        replica, *_ = installation.replicas
        with counting(installation, replica) as lost:
            replica.signal(signal.SIGSTOP)
            until_out(installation, replica)
            load.run_for(pods=100, seconds=TIMEOUT + 1)
        replica.signal(signal.SIGCONT)
        replica.wait_until_in_service()
        load.run_for(pods=60)

        assert len(load.refused) <= lost.connections
        assert_cause(load.refused, "context deadline exceeded")
        assert_waited(load.refused)
        lost.tell(figure, "replica frozen", load.refused)

    def test_whose_node_has_gone_costs_a_pod_and_a_time_out_per_connection(
        self, installation: Installation, load: Load, figure: Figure
    ) -> None:
        replica, *_ = installation.replicas
        service = installation.service
        assert service is not None
        with counting(installation, replica) as lost:
            service.lose(replica.endpoint)
            replica.kill()
            load.run_for(pods=100, seconds=1)
            service.remove(replica.endpoint)
            load.run_for(seconds=TIMEOUT + 1)
        installation.add_replica().start()
        installation.remove_replica(replica)
        load.run_for(pods=60)

        assert len(load.refused) <= lost.connections
        assert_cause(load.refused, "context deadline exceeded")
        assert_waited(load.refused)
        lost.tell(figure, "node gone", load.refused)


def test_a_rolling_update_refuses_no_pod(
    installation: Installation, load: Load, figure: Figure
) -> None:
    for old in tuple(installation.replicas):
        installation.add_replica().start()  # one more than there are to be, as the Deployment says
        load.run_for(pods=20)
        with behind_the_times(installation):
            installation.remove_replica(old)
    load.run_for(pods=60)

    assert load.refused == []
    figure(f"rolling update, {CLIENTS} clients", f"0 refused of {len(load.created)}")


@contextmanager
def behind_the_times(installation: Installation) -> Iterator[None]:
    """For as long as the Service is late to notice what is not ready any more."""
    assert installation.service is not None
    installation.service.lag = LAG
    yield
    installation.service.lag = 0.0


@dataclass(slots=True)
class Lost:
    """What there was of a replica when it went, and what was tried later."""

    began: float
    connections: int = 0

    def over(self, refused: Sequence[Created]) -> float:
        """Seconds from its end until the last pod was refused."""
        return max((pod.ended - self.began for pod in refused), default=0.0)

    def tell(self, figure: Figure, what: str, refused: Sequence[Created]) -> None:
        seconds = f"{self.over(refused):.1f} s"
        figure(
            f"{what}, {CLIENTS} clients",
            f"{len(refused)} refused of {self.connections} connections, the last after {seconds}",
        )


@contextmanager
def counting(installation: Installation, replica: Replica) -> Iterator[Lost]:
    """Count the connections to a replica that ends now."""
    service, endpoint = installation.service, replica.endpoint
    assert service is not None
    before = service.opened(endpoint)
    there = service.connections(endpoint)
    assert there, "the replica is not used, so it is not missed"
    lost = Lost(time.monotonic())
    yield lost
    lost.connections = there + service.opened(endpoint) - before


def until_out(installation: Installation, replica: Replica) -> None:
    """Return when the Service sends no new connections there."""
    service = installation.service
    assert service is not None
    eventually(lambda: service.sends_to(replica.endpoint), lambda sends: not sends)


def assert_cause(refused: Sequence[Created], *causes: str) -> None:
    assert [pod for pod in refused if not pod.message.endswith(causes)] == []


def assert_waited(refused: Sequence[Created]) -> None:
    """For as long as the API server waits, and no longer."""
    waits = [pod.ended - pod.begun for pod in refused]
    assert all(TIMEOUT - 0.1 < each < TIMEOUT + SLOWNESS for each in waits), waits
