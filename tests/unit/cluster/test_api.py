"""How the failures of the Kubernetes API are told, against a server that misbehaves."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from kubernetes.aio.client import AdmissionregistrationV1Api, ApiClient, CoreV1Api

from tagpin import __version__
from tagpin.cluster.api import Event, asking, connect, disconnect, watch
from tagpin.errors import ClusterError, ConfigurationError

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


def kubeconfig(folder: Path, server: str) -> Path:
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "test",
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        "clusters": [{"name": "test", "cluster": {"server": server}}],
        "users": [{"name": "test", "user": {"token": "sesame"}}],
    }
    path = folder / "kubeconfig"
    path.write_text(json.dumps(config))
    return path


@contextlib.asynccontextmanager
async def server(folder: Path, answer: Answer) -> AsyncIterator[ApiClient]:
    """A client of an API server that answers everything the same way."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    client = await connect(kubeconfig(folder, f"http://{host}:{port}"))
    try:
        yield client
    finally:
        await disconnect(client)
        await runner.cleanup()


async def read(client: ApiClient, seconds: float = 5) -> None:
    async with asking("read Secret a/b", seconds=seconds):
        await CoreV1Api(client).read_namespaced_secret("b", "a")


def answering(status: int, body: Any) -> Answer:
    async def answer(_: web.Request) -> web.StreamResponse:
        return web.json_response(body, status=status)

    return answer


class TestConnecting:
    async def test_the_client_says_who_it_is(self, tmp_path: Path) -> None:
        seen: dict[str, str] = {}

        async def answer(request: web.Request) -> web.StreamResponse:
            seen.update(request.headers)
            return web.json_response({"kind": "Secret", "apiVersion": "v1"})

        async with server(tmp_path, answer) as client:
            await read(client)
        assert seen["User-Agent"] == f"tagpin/{__version__}"
        assert seen["Authorization"] == "Bearer sesame"

    @pytest.mark.parametrize("variable", ["HTTP_PROXY", "http_proxy"])
    async def test_a_proxy_in_the_environment_is_not_for_the_api_server(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
    ) -> None:
        monkeypatch.setenv(variable, "http://127.0.0.1:1")
        answer = answering(200, {"kind": "Secret", "apiVersion": "v1"})
        async with server(tmp_path, answer) as client:
            await read(client)

    async def test_a_kubeconfig_that_is_missing_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigurationError, match="absent is of no use"):
            await connect(tmp_path / "absent")

    async def test_a_kubeconfig_that_is_malformed_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "broken").write_text("{")
        with pytest.raises(ConfigurationError, match="broken is of no use"):
            await connect(tmp_path / "broken")

    async def test_outside_of_a_cluster_one_is_needed(self) -> None:
        with pytest.raises(ConfigurationError, match="cluster's own configuration is of no use"):
            await connect()


class TestAsking:
    async def test_a_refusal_is_told_in_the_servers_words(self, tmp_path: Path) -> None:
        status = {"kind": "Status", "message": 'secrets "b" is forbidden'}
        async with server(tmp_path, answering(403, status)) as client:
            with pytest.raises(ClusterError) as got:
                await read(client)
        assert str(got.value) == 'cannot read Secret a/b: secrets "b" is forbidden'
        assert got.value.status == 403

    async def test_a_proxy_that_answers_in_html_is_a_failure(self, tmp_path: Path) -> None:
        async def answer(_: web.Request) -> web.StreamResponse:
            return web.Response(status=502, text="<html>", content_type="text/html")

        async with server(tmp_path, answer) as client:
            with pytest.raises(ClusterError, match="read Secret a/b: Bad Gateway") as got:
                await read(client)
        assert got.value.status == 502

    @pytest.mark.parametrize("body", [[], {"data": "text"}, {"metadata": []}])
    async def test_an_answer_of_another_shape_is_a_failure(self, body: Any, tmp_path: Path) -> None:
        async with server(tmp_path, answering(200, body)) as client:
            with pytest.raises(ClusterError) as got:
                await read(client)
        assert got.value.status == 0

    async def test_silence_is_a_failure_in_time(self, tmp_path: Path) -> None:
        async def answer(_: web.Request) -> web.StreamResponse:
            await asyncio.Event().wait()
            raise AssertionError

        async with server(tmp_path, answer) as client:
            with pytest.raises(ClusterError, match="the API server took too long"):
                await read(client, seconds=0.1)

    async def test_nobody_there_is_a_failure(self, tmp_path: Path) -> None:
        client = await connect(kubeconfig(tmp_path, "http://127.0.0.1:9"))
        with pytest.raises(ClusterError, match="cannot read Secret a/b: Cannot connect") as got:
            await read(client)
        assert got.value.status == 0
        await disconnect(client)

    async def test_a_cancelled_caller_is_cancelled(self, tmp_path: Path) -> None:
        arrived = asyncio.Event()

        async def answer(_: web.Request) -> web.StreamResponse:
            arrived.set()
            await asyncio.Event().wait()
            raise AssertionError

        async with server(tmp_path, answer) as client:
            task = asyncio.create_task(read(client))
            await arrived.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task


def streaming(*lines: bytes, then_silence: bool = False) -> Answer:
    async def answer(request: web.Request) -> web.StreamResponse:
        assert request.query["watch"] == "true"
        assert request.query["fieldSelector"] == "metadata.name=tagpin"
        response = web.StreamResponse()
        await response.prepare(request)
        for line in lines:
            await response.write(line)
        if then_silence:
            await asyncio.Event().wait()
        return response

    return answer


async def followed(client: ApiClient, seconds: int = 60) -> list[Event]:
    events = watch(
        "watch tagpin",
        AdmissionregistrationV1Api(
            client
        ).list_mutating_webhook_configuration_without_preload_content,
        {"field_selector": "metadata.name=tagpin"},
        seconds=seconds,
        grace=0.1,
    )
    async with contextlib.aclosing(events):
        return [event async for event in events]


class TestWatch:
    async def test_events_are_told_until_the_server_ends_it(self, tmp_path: Path) -> None:
        lines = [
            b'{"type": "ADDED", "object": {"kind": "X"}}\n{"type": "MODI',
            b'FIED", "object": {}}\n',
        ]
        async with server(tmp_path, streaming(*lines)) as client:
            assert await followed(client) == [("ADDED", {"kind": "X"}), ("MODIFIED", {})]

    async def test_lost_events_have_their_status(self, tmp_path: Path) -> None:
        line = b'{"type": "ERROR", "object": {"code": 410, "message": "too old"}}\n'
        async with server(tmp_path, streaming(line)) as client:
            with pytest.raises(ClusterError, match="cannot watch tagpin: too old") as got:
                await followed(client)
        assert got.value.status == 410

    async def test_a_refusal_is_told_in_the_servers_words(self, tmp_path: Path) -> None:
        async with server(tmp_path, answering(403, {"message": "not you"})) as client:
            with pytest.raises(ClusterError, match="cannot watch tagpin: not you") as got:
                await followed(client)
        assert got.value.status == 403

    @pytest.mark.parametrize(
        "line",
        [b'{"type": "ADD', b'{"type": "ADDED"}\n', b"[]\n", b'{"type":"ERROR","object":1}\n'],
    )
    async def test_a_line_that_is_no_event_is_a_failure(self, line: bytes, tmp_path: Path) -> None:
        async with server(tmp_path, streaming(line)) as client:
            with pytest.raises(ClusterError, match="cannot watch tagpin"):
                await followed(client)

    async def test_a_server_that_falls_silent_is_a_failure(self, tmp_path: Path) -> None:
        line = b'{"type": "ADDED", "object": {}}\n'
        async with server(tmp_path, streaming(line, then_silence=True)) as client:
            with pytest.raises(ClusterError, match="the API server took too long"):
                await asyncio.wait_for(followed(client, seconds=1), 10)
