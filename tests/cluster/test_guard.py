"""Pods whose images lead to where nobody may go, created through the real API server.

The operator runs with the address rules that it is shipped with: loopback is blocked, so that each
of its addresses is a bait, except for the one registry that is listed and leads on to the others.
"""

import json
import socket
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Self

import pytest

from cluster.installation import Install, Installation
from cluster.namespaces import Namespace, NewNamespace, eventually, images, pod, record
from cluster.programs import LOOPBACK

ELSEWHERE = "127.0.0.2"
MARK = "m4rk"

Answer = tuple[int, dict[str, str]]
"""Status and headers."""


class Recorder:
    """An HTTP server that keeps what it is asked, and counts who connects at all."""

    def __init__(self, address: str, port: int = 0) -> None:
        self.connections = 0
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.answer: Callable[[str], Answer] = lambda _path: (404, {})
        recorder = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                headers = {name.lower(): value for name, value in self.headers.items()}
                recorder.requests.append((self.path, headers))
                status, told = recorder.answer(self.path)
                self.send_response(status)
                for name, value in told.items():
                    self.send_header(name, value)
                self.send_header("content-length", "0")
                self.end_headers()

            do_HEAD = do_GET  # noqa: N815 - as http.server calls it
            do_POST = do_GET  # noqa: N815

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            block_on_close = False

            def get_request(self) -> tuple[socket.socket, object]:
                recorder.connections += 1
                return super().get_request()

        self._server = Server((address, port), Handler)
        self._thread = Thread(target=self._server.serve_forever, daemon=True)
        self.host = f"{address}:{self._server.server_address[1]}"
        self.port = int(self._server.server_address[1])

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture(scope="module")
def listed() -> Iterator[Recorder]:
    """The registry that may be asked though it is at a blocked address."""
    with Recorder(LOOPBACK) as recorder:
        yield recorder


@pytest.fixture(scope="module")
def bait(listed: Recorder) -> Iterator[Recorder]:
    """Where nobody may go: on the port of the registry, so that only the address speaks against."""
    with Recorder(ELSEWHERE, listed.port) as recorder:
        socket.create_connection((ELSEWHERE, recorder.port)).close()
        eventually(lambda: recorder.connections, lambda count: count == 1)  # it would notice
        recorder.connections = 0
        yield recorder


@pytest.fixture(scope="module")
def installation(install: Install, listed: Recorder) -> Iterator[Installation]:
    with install(registries=[{"host": listed.host, "http": True}]) as running:
        yield running


@pytest.fixture(scope="module")
def enforce(installation: Installation, new_namespace: NewNamespace) -> Namespace:
    return new_namespace("enforce")


@pytest.fixture(scope="module")
def pin(installation: Installation, new_namespace: NewNamespace) -> Namespace:
    return new_namespace("pin")


def spellings(port: int) -> dict[str, str]:
    """Images whose registry is not listed, by the name of their container."""
    hosts = {
        "plain": ELSEWHERE,
        "mapped": "[::ffff:7f00:2]",
        "nat64": "[64:ff9b::7f00:2]",
        "sixtofour": "[2002:7f00:2::]",
        "name": "localhost",
    }
    return {name: f"{host}:{port}/demo/app:v1" for name, host in hosts.items()}


def test_a_pod_whose_registry_is_at_a_blocked_address_is_refused(
    enforce: Namespace, listed: Recorder, bait: Recorder
) -> None:
    written = spellings(bait.port)
    before = listed.connections  # which `localhost` would reach
    answer = enforce.create(pod("blocked", written), check=False)

    assert not answer.succeeded
    assert enforce.pod("blocked") == {}
    _, _, refusal = answer.error.partition("denied the request: ")
    assert refusal.startswith(f"{len(written)} images cannot be pinned: ")
    for name, image in written.items():
        (about,) = [each for each in refusal.split("; ") if f'container "{name}"' in each]
        assert image in about
        assert about.endswith(
            f"an address that is not allowed, so {image} is not resolved (blocked)"
        )
    assert (bait.connections, listed.connections) == (0, before)


def test_in_pin_it_enters_as_written_and_says_why(pin: Namespace, bait: Recorder) -> None:
    written = spellings(bait.port)
    answer = pin.create(pod("blocked", written))

    stored = pin.pod("blocked")
    assert images(stored) == written
    assert record(stored) == {
        name: {"image": image, "reason": "blocked"} for name, image in written.items()
    }
    assert len(answer.warnings) == len(written)
    assert all("(blocked)" in each for each in answer.warnings)
    assert bait.connections == 0


def leading(way: str, place: str) -> Answer:
    """An answer that leads to a place on another host."""
    if way == "redirect":
        return 307, {"location": f"{place}/{MARK}"}
    return 401, {"www-authenticate": f'Bearer realm="{place}/{MARK}",service="{MARK}"'}


EVERY_WAY = pytest.mark.parametrize("way", ["redirect", "realm"])


@EVERY_WAY
@pytest.mark.parametrize("host", [ELSEWHERE, "[::ffff:7f00:2]", "[64:ff9b::7f00:2]"])
def test_a_registry_leads_nobody_to_a_blocked_address(
    enforce: Namespace, listed: Recorder, bait: Recorder, way: str, host: str
) -> None:
    """A pivot: we are asked to go from where we may to where we may not."""
    listed.answer = lambda _path: leading(way, f"https://{host}:{bait.port}")
    listed.requests.clear()
    image = f"{listed.host}/{way}:{len(host)}"

    answer = enforce.create(pod("led", {"app": image}), check=False)

    assert not answer.succeeded
    _, _, refusal = answer.error.partition("denied the request: ")
    assert refusal == (
        f'1 image cannot be pinned: container "app": {listed.host} leads to an address that is '
        f"not allowed, so {image} is not resolved (blocked)"
    )
    assert {path for path, _ in listed.requests} == {f"/v2/{way}/manifests/{len(host)}"}
    assert bait.connections == 0


@EVERY_WAY
def test_a_registry_leads_nobody_to_a_blocked_address_in_plain_http(
    enforce: Namespace, listed: Recorder, bait: Recorder, way: str
) -> None:
    """Its own plain http was listed, that of nobody else."""
    listed.answer = lambda _path: leading(way, f"http://{ELSEWHERE}:{bait.port}")
    image = f"{listed.host}/plain-{way}:v1"

    answer = enforce.create(pod(f"plain-{way}", {"app": image}), check=False)

    assert answer.error.endswith(f"gives no valid answer for {image} (bad_answer)")
    assert bait.connections == 0


def test_a_pod_that_leads_astray_enters_pin_as_written(
    pin: Namespace, listed: Recorder, bait: Recorder
) -> None:
    listed.answer = lambda _path: leading("redirect", f"https://{ELSEWHERE}:{bait.port}")
    image = f"{listed.host}/astray:v1"

    answer = pin.create(pod("astray", {"app": image}))

    stored = pin.pod("astray")
    assert images(stored) == {"app": image}
    assert record(stored) == {"app": {"image": image, "reason": "blocked"}}
    (warning,) = answer.warnings
    assert warning.endswith("(blocked): it runs as written, unpinned")
    assert ELSEWHERE not in json.dumps(stored["metadata"]["annotations"])
    assert pin.events("Pod", "astray") == [warning]
    assert bait.connections == 0


def test_no_registry_hears_who_we_are_in_the_cluster(
    enforce: Namespace, listed: Recorder, installation: Installation
) -> None:
    """Its ServiceAccount's token is for the API server alone (CVE-2026-41323)."""
    listed.answer = lambda _path: (401, {"www-authenticate": f'Basic realm="{MARK}"'})
    enforce.create(pod("who", {"app": f"{listed.host}/who:v1"}), check=False)

    asked = [headers for path, headers in listed.requests if "/who/" in path]
    assert asked
    for headers in asked:
        assert headers.keys() <= {"host", "accept", "accept-encoding", "user-agent"}
    assert MARK not in installation.log_text()
