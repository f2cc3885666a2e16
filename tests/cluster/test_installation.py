"""What other tests are built on: replicas, the Service before them, registries that go away."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from urllib.error import URLError
from urllib.request import Request, urlopen

import pytest

from cluster.controlplane import ControlPlane
from cluster.images import MANIFEST, digest
from cluster.installation import SERVICE_ACCOUNT, Install, Installation
from cluster.namespaces import (
    NewNamespace,
    admission_review,
    deployment,
    eventually,
    images,
    patched,
    pod,
)
from cluster.programs import LOOPBACK
from cluster.registries import Registries
from cluster.service import Endpoint, Service

RECORD = {
    "apiVersion": "tagpin.dev/v1alpha1",
    "kind": "ImagePin",
    "metadata": {"name": "web-1"},
    "spec": {
        "workload": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web", "uid": "1"},
        "revision": {"kind": "ReplicaSet", "name": "web-1", "hash": "1"},
        "images": [
            {
                "reference": "registry.test/web:1",
                "digest": f"sha256:{'a' * 64}",
                "source": "registry",
            }
        ],
    },
}


@pytest.fixture(scope="module")
def installation(install: Install) -> Iterator[Installation]:
    """Two replicas, of which each asks the registry again for nearly every image."""
    with install(replicas=2, freshness="10ms") as running:
        yield running


class TestReplicas:
    def test_both_serve(
        self, installation: Installation, new_namespace: NewNamespace, registries: Registries
    ) -> None:
        namespace = new_namespace("enforce")
        app = registries.public.push("replicas/both:1")
        before = [each.counts() for each in installation.replicas]

        namespace.create(deployment("web", {"app": app.text}, replicas=20))
        namespace.wait_for_rollout("deployment/web")

        pods = namespace.pods("app=web")
        assert [images(each) for each in pods] == [{"app": app.pinned}] * 20
        after = [each.counts() for each in installation.replicas]
        pinned = 'tagpin_admissions_total{mode="enforce",result="pinned"}'
        served = [new[pinned] - old[pinned] for new, old in zip(after, before, strict=True)]
        assert all(served)
        assert sum(served) == installation.counts()[pinned] - sum(each[pinned] for each in before)

    def test_each_answers_reviews_as_the_api_server_sends_them(
        self, installation: Installation, new_namespace: NewNamespace, registries: Registries
    ) -> None:
        namespace = new_namespace("pin")
        app = registries.public.push("replicas/review:1")
        written = pod("web", {"app": app.text})
        review = admission_review(namespace.name, written)
        for replica in installation.replicas:
            answered = replica.review("/pin", review)
            assert answered["response"]["uid"] == review["request"]["uid"]
            assert images(patched(written, answered)) == {"app": app.pinned}

    def test_no_pod_is_refused_while_they_are_restarted_one_by_one(
        self, installation: Installation, new_namespace: NewNamespace, registries: Registries
    ) -> None:
        namespace = new_namespace("enforce")
        app = registries.public.push("replicas/restart:1")
        pids = [each.pid for each in installation.replicas]
        with repeatedly(lambda: namespace.create(pod_with_any_name(app.text))) as created:
            for replica in installation.replicas:
                replica.stop()
                replica.start()
        assert len(created) > 10
        assert all(
            before != each.pid for before, each in zip(pids, installation.replicas, strict=True)
        )

    def test_what_they_ask_of_the_api_is_told(
        self, installation: Installation, control_plane: ControlPlane
    ) -> None:
        asked = control_plane.requests_of(SERVICE_ACCOUNT, resource="secrets")
        assert ("get", "tagpin-system", "tagpin-tls") in {
            (each.verb, each.namespace, each.name) for each in asked
        }

    def test_records_are_found(
        self, installation: Installation, new_namespace: NewNamespace
    ) -> None:
        namespace, other = new_namespace(), new_namespace()
        namespace.create(RECORD)
        (found,) = namespace.image_pins()
        assert found["spec"] == RECORD["spec"]
        assert other.image_pins() == []


def test_a_registry_that_was_away_has_its_images_and_knows_what_it_was_asked(
    registries: Registries,
) -> None:
    store = registries.public
    app = store.push("away:1")
    with store.away(), pytest.raises(URLError):
        store.push("away:1")
    url = f"{store.registry.url}/v2/away/manifests/{app.digest}"
    asked = Request(url, headers={"Accept": MANIFEST})  # noqa: S310 - the URL is the test's own
    with urlopen(asked) as answer:  # noqa: S310 - the same
        assert digest(answer.read()) == app.digest
    assert store.questions("away") == [app.digest]


def pod_with_any_name(image: str) -> dict[str, object]:
    made = pod("", {"app": image})
    made["metadata"] |= {"name": None, "generateName": "web-"}
    return made


@contextmanager
def repeatedly(act: Callable[[], object]) -> Iterator[list[object]]:
    """Act again and again in a thread; what failed there fails here."""
    done: list[object] = []
    failed: list[Exception] = []
    over = threading.Event()

    def loop() -> None:
        try:
            while not over.is_set():
                done.append(act())
        except Exception as error:  # noqa: BLE001 - it is raised again in the test's own thread
            failed.append(error)

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        yield done
    finally:
        over.set()
        thread.join()
    if failed:
        raise failed[0]


class Backend:
    """Tells each connection its name, and then what it was sent, once all has been sent."""

    def __init__(self, name: str) -> None:
        self.is_ready = True
        self._name = name
        self._listener = socket.create_server((LOOPBACK, 0))
        self._health = HTTPServer((LOOPBACK, 0), self._handler())
        self._threads = [
            threading.Thread(target=self._answer),
            threading.Thread(target=self._health.serve_forever, kwargs={"poll_interval": 0.05}),
        ]
        for each in self._threads:
            each.start()

    @property
    def endpoint(self) -> Endpoint:
        return Endpoint(self._listener.getsockname()[1], self._health.server_port)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._health.shutdown()
        self._health.server_close()
        for each in self._threads:
            each.join()

    def _answer(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                connection.sendall(f"{self._name} ".encode())
                connection.sendall(read_all(connection))

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        backend = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200 if backend.is_ready else 503)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        return Handler


def read_all(connection: socket.socket) -> bytes:
    return b"".join(iter(lambda: connection.recv(4096), b""))


class TestService:
    @pytest.fixture
    def backends(self) -> Iterator[list[Backend]]:
        with ExitStack() as stack:
            made = [Backend(name) for name in ("one", "two")]
            for each in made:
                stack.callback(each.close)
            yield made

    @pytest.fixture
    def service(self, backends: list[Backend]) -> Iterator[Service]:
        with Service([each.endpoint for each in backends]) as service:
            eventually(lambda: sent_to(service, backends), all)
            yield service

    def test_connections_go_to_each_in_turn_and_a_half_may_close_first(
        self, service: Service
    ) -> None:
        answers = [ask(service, f"{number}") for number in range(4)]
        assert sorted(answers[:2]) in (["one 0", "two 1"], ["one 1", "two 0"])
        assert [each[:3] for each in answers[:2]] == [each[:3] for each in answers[2:]]

    def test_no_connection_goes_to_one_that_is_not_ready(
        self, backends: list[Backend], service: Service
    ) -> None:
        backends[0].is_ready = False
        eventually(lambda: sent_to(service, backends), lambda sends: sends == [False, True])
        assert {ask(service, "?") for _ in range(3)} == {"two ?"}
        backends[0].is_ready = True
        eventually(lambda: sent_to(service, backends), all)
        assert {ask(service, "?") for _ in range(2)} == {"one ?", "two ?"}

    def test_a_connection_is_closed_when_none_is_ready(
        self, backends: list[Backend], service: Service
    ) -> None:
        for each in backends:
            each.is_ready = False
        eventually(lambda: sent_to(service, backends), lambda sends: not any(sends))
        with connect(service) as connection:
            assert read_all(connection) == b""

    def test_connections_can_be_cut(self, service: Service) -> None:
        with connect(service) as idle:
            assert idle.recv(4) in (b"one ", b"two ")
            service.cut()
            assert read_all(idle) == b""
        assert ask(service, "?").endswith("?")


def sent_to(service: Service, backends: list[Backend]) -> list[bool]:
    return [service.sends_to(each.endpoint) for each in backends]


def connect(service: Service) -> socket.socket:
    return socket.create_connection((LOOPBACK, service.port), timeout=5)


def ask(service: Service, question: str) -> str:
    with connect(service) as connection:
        connection.sendall(question.encode())
        connection.shutdown(socket.SHUT_WR)
        return read_all(connection).decode()
