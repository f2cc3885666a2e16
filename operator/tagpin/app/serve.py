"""Running the operator: kopf on our own entry point, around our own webhook server."""

import asyncio
import gc
import logging
import signal
from asyncio.sslproto import SSLProtocol
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any

import kopf
from kopf._cogs.structs.credentials import Vault
from kopf._cogs.structs.references import Insights, Resource
from kopf._core.reactor.inventory import ResourceMemories

from tagpin.app.health import serve_health
from tagpin.app.wiring import Operator, assemble
from tagpin.errors import ConfigurationError
from tagpin.settings import Settings

PODS = Resource("", "v1", "pods", kind="Pod", singular="pod", namespaced=True)

TLS_BUFFER = 16 * 1024
"""Bytes for what arrives on one TLS connection; a record of TLS has 16 KiB (RFC 8446 §5.1)."""

COLLECTIONS = (3000, 5, 5)
"""When Python looks for cycles. A review leaves some, and at every 700 new objects, as is usual,
the looking takes 6 % of the time; at 10,000, the longest answers take longer."""

log = logging.getLogger(__name__)


class NoMemories(ResourceMemories):
    """kopf keeps a record for every admitted UPDATE, for ever; this keeps none."""

    async def recall_memo(self, raw_body: Any, *, memobase: Any = None, **_: Any) -> Any:  # noqa: ARG002 - its name is kopf's
        """Give all of them the same one: our handlers never look at it."""
        return memobase


class NoCredentials(Vault):
    """Keeps kopf from the API server: whoever asks for credentials waits for the end.

    We have no handlers that watch, so all that kopf would ask for is what resources there are.
    Any answer to that but the right one (401 for an old token, 404 from a proxy) would end the
    operator, or take `pods` out of what it admits.
    """

    def __init__(self, end: asyncio.Event) -> None:
        super().__init__()
        self._end = end

    async def wait_for_emptiness(self) -> None:
        """Never give the cue to log in."""
        await asyncio.Event().wait()

    async def _items(self) -> AsyncIterator[Any]:
        await self._end.wait()
        raise asyncio.CancelledError
        yield  # type: ignore[unreachable] # makes it an iterator


class AllTasks(frozenset[asyncio.Task[Any]]):
    """Every task there is, for kopf to leave alone when it ends.

    It takes whatever began after it for its own, waits five seconds for that, and cancels it:
    connections to the health port, or the work of the leader.
    """

    def __contains__(self, _task: object) -> bool:
        return True


def serve(settings: Settings) -> None:
    """Run until SIGTERM or SIGINT, then drain; raises ConfigurationError."""
    # asyncio would take 256 KiB for each connection, from its beginning: 128 MiB for API servers
    # alone, as many as may be connected.
    SSLProtocol.max_size = TLS_BUFFER
    # Not uvloop: a TLS connection that fails while it is made, or is given up, has it close a file
    # descriptor twice, which ends the process or is another connection's (aio-libs/aiohttp#10506).
    with asyncio.Runner() as runner:
        runner.run(_serve(settings))


async def _serve(settings: Settings) -> None:
    stop = asyncio.Event()
    _on_signals(
        stop.set
    )  # at once: the first process of a container ignores what it doesn't handle
    async with assemble(settings) as operator:
        # What is there by now stays; a full collection would look through all of it, and hold up
        # reviews for as long as that takes.
        gc.collect()
        gc.freeze()
        gc.set_threshold(*COLLECTIONS)
        background = [
            asyncio.create_task(operator.certificate.run()),
            asyncio.create_task(operator.events.run()),
            asyncio.create_task(operator.election.run()),
            asyncio.create_task(operator.metrics.measure_delay()),
        ]
        try:
            health = serve_health(
                address=settings.address,
                port=settings.health_port,
                not_ready=operator.not_ready,
                metrics=operator.metrics,
            )
            async with health:
                kopf_task = asyncio.create_task(_run_kopf(operator, stop))
                await asyncio.wait([kopf_task, *background], return_when=asyncio.FIRST_COMPLETED)
                kopf_task.cancel()
                for task in (kopf_task, *background):
                    if task.done() and not task.cancelled():
                        task.result()
        except OSError as error:
            raise ConfigurationError(f"cannot listen: {error}") from error
        finally:
            for task in background:
                task.cancel()
            await asyncio.gather(*background, return_exceptions=True)


async def _run_kopf(operator: Operator, stop: asyncio.Event) -> None:
    """Run kopf's side until `stop`: it hands reviews from our server to our handlers."""
    settings = kopf.OperatorSettings()
    settings.scanning.disabled = True
    settings.admission.server = operator.server  # and no `managed`: the manifests are ours
    insights = Insights()
    insights.webhook_resources.add(PODS)
    insights.ready_resources.set()  # listen now, whatever the API server does
    spawned = await kopf.spawn_tasks(
        registry=operator.handlers,
        settings=settings,
        insights=insights,
        memories=NoMemories(),
        clusterwide=True,
        standalone=True,
        vault=NoCredentials(stop),
        stop_flag=stop,
    )
    _on_signals(partial(_drain, operator, stop))  # in place of kopf's own, which closes at once
    await kopf.run_tasks(spawned, ignored=AllTasks())


def _drain(operator: Operator, stop: asyncio.Event) -> None:
    """Serve on until nobody is sent here, then set `stop`; asked again, it changes nothing."""
    if not operator.server.is_listening:
        stop.set()
    elif not operator.server.is_draining:
        log.info("draining for %g s", operator.settings.drain)
        operator.server.drain()
        asyncio.get_running_loop().call_later(operator.settings.drain, stop.set)


def _on_signals(act: Callable[[], object]) -> None:
    """Let SIGTERM and SIGINT do this, and nothing else."""
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, act)
