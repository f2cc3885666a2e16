"""Our own answer comes before the API server's time-out of one second, whatever is slow."""

import asyncio
import json
import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http import HTTPStatus
from http.client import HTTPSConnection
from pathlib import Path
from threading import Event, Thread
from typing import Any, cast

import pytest

from cluster.controlplane import ControlPlane
from cluster.installation import Installation
from cluster.namespaces import Namespace, NewNamespace, deployment, eventually, images, pod, record
from cluster.programs import LOOPBACK
from cluster.registries import Pushed, Registries
from conftest import Figure
from fakes.faults import hanging, redirecting, streaming
from fakes.registry import FakeRegistry
from tagpin.cluster.server import _timeout

SECONDS = 1
LATENCY = "apiserver.latency.k8s.io/mutating-webhook"
SLOW = ("silent", "trickling", "flooding", "circling", "nameless")
CROWD = 4
NOBODY = "registry.nowhere.test"


class Detour:
    """A way to the API server that can be blocked: connections stay, and nothing gets through."""

    def __init__(self, port: int) -> None:
        self._to = port
        self._open = Event()
        self._open.set()
        self._loop = asyncio.new_event_loop()
        self.port = 0

    @contextmanager
    def running(self) -> Iterator["Detour"]:
        thread = Thread(target=self._loop.run_forever)
        thread.start()
        server = asyncio.run_coroutine_threadsafe(self._serve(), self._loop).result()
        try:
            yield self
        finally:
            self._loop.call_soon_threadsafe(server.close)
            asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
            self._loop.call_soon_threadsafe(self._loop.stop)
            thread.join()
            self._loop.close()

    @contextmanager
    def blocked(self) -> Iterator[None]:
        self._open.clear()
        try:
            yield
        finally:
            self._open.set()

    async def _serve(self) -> asyncio.Server:
        server = await asyncio.start_server(self._forward, LOOPBACK)
        self.port = server.sockets[0].getsockname()[1]
        return server

    async def _end(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answers, there = await asyncio.open_connection(LOOPBACK, self._to)
        try:
            await asyncio.gather(self._pump(reader, there), self._pump(answers, writer))
        except OSError:
            pass
        finally:
            for each in (writer, there):
                each.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while chunk := await reader.read(65536):
            while not self._open.is_set():  # noqa: ASYNC110 - it is set in another thread
                await asyncio.sleep(0.01)
            writer.write(chunk)
            await writer.drain()
        raise ConnectionResetError  # whoever ends it, the other side hears of it


class Detoured:
    """The control plane, as one who has to take the detour finds it."""

    def __init__(self, control_plane: ControlPlane, detour: Detour) -> None:
        self._control_plane = control_plane
        self._detour = detour

    def __getattr__(self, name: str) -> Any:
        return getattr(self._control_plane, name)

    def kubeconfig_for_token(self, token: str) -> Path:
        path = self._control_plane.kubeconfig_for_token(token)
        config = json.loads(path.read_text())
        config["clusters"][0]["cluster"]["server"] = f"https://{LOOPBACK}:{self._detour.port}"
        path.write_text(json.dumps(config))
        return path


@pytest.fixture(scope="module")
def detour(control_plane: ControlPlane) -> Iterator[Detour]:
    with Detour(int(control_plane.url.rpartition(":")[2])).running() as running:
        yield running


@pytest.fixture(scope="module")
def slow() -> Iterator[str]:
    """A registry whose repositories have each a fault; its host."""
    registry = FakeRegistry()
    registry.fault(hanging(), path="silent/")
    registry.fault(streaming(b" ", pause=0.05), path="trickling/")
    registry.fault(streaming(b" " * 65536), path="flooding/")
    registry.fault(redirecting("{path}"), path="circling/")
    loop = asyncio.new_event_loop()
    thread = Thread(target=loop.run_forever)
    thread.start()
    asyncio.run_coroutine_threadsafe(registry.__aenter__(), loop).result()
    try:
        yield registry.host
    finally:
        asyncio.run_coroutine_threadsafe(registry.__aexit__(None, None, None), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@pytest.fixture(scope="module")
def installation(
    control_plane: ControlPlane, detour: Detour, registries: Registries, slow: str
) -> Iterator[Installation]:
    known = [*registries.settings["registries"], {"host": slow, "http": True}]
    with Installation(
        cast("ControlPlane", Detoured(control_plane, detour)),
        settings={"registries": known, "requestsPerNamespace": CROWD, "freshness": "10ms"},
    ) as running:
        webhooks = range(len(running.replicas[0]._webhooks()))
        patch = [
            {"op": "replace", "path": f"/webhooks/{i}/timeoutSeconds", "value": SECONDS}
            for i in webhooks
        ]
        name = ("mutatingwebhookconfiguration", "tagpin")
        control_plane.kubectl("patch", *name, "--type=json", "-p", json.dumps(patch))
        yield running
        running.stop()
        assert "Traceback" not in running.log_text()
        assert "please report" not in running.log_text()


@pytest.fixture(scope="module")
def longest() -> list[float]:
    """Seconds that the API server waited for us, where it says."""
    return []


def image_of(fault: str, host: str) -> str:
    return f"{NOBODY}/app:1" if fault == "nameless" else f"{host}/{fault}/app:1"


def waited(control_plane: ControlPlane, since: int) -> list[float]:
    """How long webhooks took, as the audit log has it of slow requests."""
    found = [each.get("annotations", {}) for each in control_plane.audit_events(since)]
    return [_timeout(each[LATENCY]) for each in found if LATENCY in each]


@pytest.mark.parametrize("fault", SLOW)
def test_a_registry_that_is_slow_in_any_way_is_answered_for_in_time(
    *,
    installation: Installation,
    control_plane: ControlPlane,
    new_namespace: NewNamespace,
    slow: str,
    longest: list[float],
    fault: str,
) -> None:
    image = image_of(fault, slow)
    enforced, pinned = new_namespace("enforce"), new_namespace("pin")
    mark = control_plane.audit_mark()

    refused = enforced.create(pod("a", {"app": image}), check=False)
    admitted = pinned.create(pod("a", {"app": image}))

    assert "1 image cannot be pinned" in refused.error
    assert "failed calling webhook" not in refused.error
    assert any("it runs as written, unpinned" in each for each in admitted.warnings)
    stored = pinned.pod("a")
    assert images(stored) == {"app": image}
    assert record(stored)["app"]["reason"] in ("timeout", "unreachable", "bad_answer")
    longest += waited(control_plane, mark)


def test_pull_secrets_that_cannot_be_read_in_time_cost_public_images_nothing_but_time(
    *,
    installation: Installation,
    control_plane: ControlPlane,
    new_namespace: NewNamespace,
    registries: Registries,
    detour: Detour,
    longest: list[float],
) -> None:
    namespace = new_namespace("enforce")
    app = registries.public.push("budget/secrets:1")
    mark = control_plane.audit_mark()

    with detour.blocked():
        namespace.create(pod("a", {"app": app.text}, imagePullSecrets=[{"name": "login"}]))

    assert images(namespace.pod("a")) == {"app": app.pinned}
    longest += waited(control_plane, mark)


def test_a_ledger_that_cannot_be_read_in_time_is_told_of_by_us(
    *,
    installation: Installation,
    control_plane: ControlPlane,
    new_namespace: NewNamespace,
    registries: Registries,
    detour: Detour,
    longest: list[float],
    figure: Figure,
) -> None:
    namespace = new_namespace("enforce")
    app = registries.public.push("budget/ledger:1")
    mark = control_plane.audit_mark()

    with detour.blocked():
        namespace.create(deployment("web", {"app": app.text}))
        (message, *_) = eventually(lambda: failures(namespace), bool)

    assert "(ledger)" in message
    assert "failed calling webhook" not in message
    (created,) = eventually(lambda: namespace.pods("app=web"), bool)
    assert images(created) == {"app": app.pinned}
    longest += waited(control_plane, mark)
    assert 0 < max(longest) < SECONDS
    figure(
        f"longest that an API server with a time-out of {SECONDS} s waited for a slow registry, "
        "pull secret or record (s)",
        round(max(longest), 2),
    )


def failures(namespace: Namespace) -> list[str]:
    """What the controller was told when it could not create pods."""
    found = namespace.find("events?fieldSelector=reason=FailedCreate")
    return [event["message"] for event in found]


def series(installation: Installation, name: str) -> float:
    """What the first replica has counted."""
    _, text = installation.get("/metrics")
    (value,) = [line.removeprefix(name) for line in text.splitlines() if line.startswith(name)]
    return float(value)


def test_one_namespaces_flood_costs_others_nothing(
    *,
    installation: Installation,
    control_plane: ControlPlane,
    new_namespace: NewNamespace,
    registries: Registries,
    slow: str,
    figure: Figure,
) -> None:
    crowded, other = new_namespace("enforce"), new_namespace("enforce")
    late = 'tagpin_admissions_late_total{cause="crowded",mode="enforce"} '
    were_late = series(installation, late)
    app = registries.public.push("budget/other:1")
    before = statistics.median(creations(control_plane, other, "before", app))
    ended = Event()

    def flood(number: int) -> list[str]:
        answers, image = [], f"{slow}/silent/app:1"
        while not ended.is_set():
            answers.append(post(control_plane, crowded, pod(f"f{number}", {"app": image}))[1])
        return answers

    with ThreadPoolExecutor(24) as pool:
        floods = [pool.submit(flood, number) for number in range(24)]
        time.sleep(0.3)
        during = statistics.median(creations(control_plane, other, "during", app))
        ended.set()
        answers = [answer for each in floods for answer in each.result()]

    assert any(
        f"namespace {crowded.name} has {CROWD} pods under way (requestsPerNamespace)" in each
        for each in answers
    )
    assert not [each for each in answers if "failed calling webhook" in each]
    assert during < 5 * before + 0.2
    assert series(installation, late) > were_late
    figure(
        "creating a pod during the flood of another namespace, against before (medians)",
        round(during / before, 2),
    )


def creations(
    control_plane: ControlPlane, namespace: Namespace, name: str, app: Pushed
) -> list[float]:
    """How long it takes to create pods, one after the other."""
    seconds = []
    for number in range(15):
        started = time.perf_counter()
        status, answer = post(control_plane, namespace, pod(f"{name}-{number}", {"app": app.text}))
        seconds.append(time.perf_counter() - started)
        assert status == HTTPStatus.CREATED, answer
        assert images(json.loads(answer)) == {"app": app.pinned}
    return seconds


def post(control_plane: ControlPlane, namespace: Namespace, made: Any) -> tuple[int, str]:
    """Create a pod without kubectl, which takes longer than everything else."""
    port = int(control_plane.url.rpartition(":")[2])
    connection = HTTPSConnection(LOOPBACK, port, timeout=20, context=control_plane._admin_tls)
    try:
        path = f"/api/v1/namespaces/{namespace.name}/pods"
        connection.request("POST", path, json.dumps(made), {"Content-Type": "application/json"})
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()
