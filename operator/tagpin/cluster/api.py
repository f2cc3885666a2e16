"""The connection to the Kubernetes API, and how its failures are told.

Everything that speaks to the API does so inside `asking`, so that nothing of the client's
exceptions, nor of aiohttp's, crosses this edge.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import aiohttp
import orjson
import yaml
from kubernetes.aio.client import ApiClient, ApiException, Configuration
from kubernetes.aio.config import ConfigException, load_incluster_config, load_kube_config

from tagpin import __version__
from tagpin.cluster.calls import Observer, told_to
from tagpin.errors import ClusterError, ConfigurationError

TLS_GOODBYE = 0.25
"""Seconds that cut-off connections get to close."""

MAX_TOLD = 500
"""Characters of a refusal that are repeated: admission webhooks of others may write it."""


async def connect(
    kubeconfig: Path | None = None,
    *,
    connections: int = 64,
    observe: Observer = lambda _: None,
) -> ApiClient:
    """A client of the cluster that the kubeconfig names, else of the one that we run in.

    Asks nothing of the API yet, so it works while that is away. In a cluster, the token is read
    again as it rotates. `observe` is told of every request. Raises ConfigurationError. Close the
    client with `disconnect`.
    """
    configuration = Configuration(
        connection_pool_maxsize=connections,
        # A proxy that the environment names leads to registries; NO_PROXY as aiohttp reads it has
        # no ranges, so the API server's address would not be excepted.
        client_session_kwargs={"trust_env": False, "trace_configs": [told_to(observe)]},
    )
    try:
        if kubeconfig is None:
            load_incluster_config(configuration)
        else:
            kubeconfig.read_bytes()  # noqa: ASYNC240 - at start; a missing one would count as empty
            await load_kube_config(
                str(kubeconfig), client_configuration=configuration, persist_config=False
            )
        client = ApiClient(configuration)
    except (ConfigException, OSError, ValueError, yaml.YAMLError) as error:
        where = "the cluster's own configuration" if kubeconfig is None else str(kubeconfig)
        raise ConfigurationError(f"{where} is of no use: {error}") from error
    client.user_agent = f"tagpin/{__version__}"
    return client


async def disconnect(client: ApiClient) -> None:
    """Close the connections of a client, those of requests that were cancelled too."""
    await client.close()
    # TLS says goodbye in the background, and aiohttp has nothing to wait for:
    # https://docs.aiohttp.org/en/stable/client_advanced.html#graceful-shutdown
    await asyncio.sleep(TLS_GOODBYE)


@asynccontextmanager
async def asking(request: str, *, seconds: float = 10.0) -> AsyncIterator[None]:
    """Bound how long the body may ask the Kubernetes API, and translate how that fails.

    `request` completes the sentence "cannot …": `read Secret tagpin-system/tagpin-tls`. Raises
    ClusterError, whose status is the API server's, or 0 where it did not answer.
    """
    try:
        async with asyncio.timeout(seconds):
            yield
    except ApiException as error:
        message, subject, causes = _status(error)
        raise ClusterError(
            f"cannot {request}: {message}", error.status or 0, subject=subject, causes=causes
        ) from error
    except TimeoutError as error:
        raise ClusterError(f"cannot {request}: the API server took too long") from error
    # A ValueError is an answer that does not parse: of a proxy, for example.
    except (aiohttp.ClientError, OSError, ConfigException, ValueError) as error:
        raise ClusterError(f"cannot {request}: {error or type(error).__name__}") from error


class Event(NamedTuple):
    """What a watch tells of one object, as JSON."""

    type: Literal["ADDED", "MODIFIED", "DELETED", "BOOKMARK"]
    object: dict[str, Any]


async def watch(
    request: str,
    open_list: Callable[..., Awaitable[aiohttp.ClientResponse]],
    selection: Mapping[str, str],
    *,
    seconds: int = 240,
    grace: float = 10.0,
) -> AsyncGenerator[Event, None]:
    """Follow a list until the server, asked for so many seconds, ends it.

    A server that has not done so `grace` seconds later counts as silent, which is an error.
    `open_list` is `Objects.open_watch` of a collection, or a method of the client's own that does
    the same (`list_…_without_preload_content`), `selection` its arguments. Raises ClusterError,
    with status 410 where the events since `resource_version` are gone.
    Iterate within `contextlib.aclosing`, which ends the connection.

    The client's own `Watch` is not used: it builds a client with a TLS context each time, hides
    a 410, and waits without end for a server that has fallen silent.
    """
    async with asking(request):
        response = await open_list(
            watch=True,
            timeout_seconds=seconds,
            _request_timeout=seconds + grace,
            **selection,
        )
    try:
        if not response.ok:
            async with asking(request):
                body = await response.text()
                raise ApiException(status=response.status, reason=response.reason, body=body)
        while True:
            async with asking(request, seconds=seconds + grace):
                line = await response.content.readline()
                if not line:
                    return
                event = _event(line)
            yield event
    finally:
        response.close()


def _event(line: bytes) -> Event:
    """Read a line of a watch; raises ApiException for an error, ValueError for what is no event."""
    try:
        event = orjson.loads(line)
        kind, resource = event["type"], event["object"]
        if kind == "ERROR":
            raise ApiException(status=resource.get("code"), reason=resource.get("message"))
    except (LookupError, TypeError, AttributeError) as error:
        raise ValueError("no watch event") from error
    return Event(kind, resource)


def _status(error: ApiException) -> tuple[str, str, tuple[str, ...]]:
    """What the API server says of its refusal: message, the object's name, and causes."""
    try:
        status = orjson.loads(error.body or "")
        details = status.get("details") or {}
        causes = tuple(str(cause.get("reason", "")) for cause in details.get("causes") or ())
        return str(status["message"])[:MAX_TOLD], str(details.get("name") or ""), causes
    except (orjson.JSONDecodeError, LookupError, TypeError, AttributeError):
        return error.reason or "no reason given", "", ()
