"""Objects of the Kubernetes API, as the JSON that they are.

The client's own classes for them are not used: their models take tens of MiB and most of a
second to import, and validate each answer into values that would be taken apart again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple
from urllib.parse import quote

import aiohttp
import orjson
from kubernetes.aio.client import ApiClient, ApiException

from tagpin import imagepin

MERGE = "application/strategic-merge-patch+json"
"""Content type of a patch: lists merge by their key, where the kind declares one."""

Object = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Collection:
    """Where the API has the objects of one kind; the group of the core is empty."""

    group: str
    version: str
    plural: str


EVENTS = Collection("", "v1", "events")
IMAGE_PINS = Collection(imagepin.GROUP, imagepin.VERSION, imagepin.PLURAL)
MUTATING_WEBHOOK_CONFIGURATIONS = Collection(
    "admissionregistration.k8s.io", "v1", "mutatingwebhookconfigurations"
)
PODS = Collection("", "v1", "pods")
SECRETS = Collection("", "v1", "secrets")
SERVICE_ACCOUNTS = Collection("", "v1", "serviceaccounts")


class Page(NamedTuple):
    """Items of a list, and the token for what follows them; empty where nothing does."""

    items: list[Object]
    following: str


class Objects:
    """What is asked of the API, over the client's connections and with its credentials.

    To be called within `asking`: a refusal raises ApiException, whatever is no JSON object
    ValueError, and so does a name that could lead to another path. Nothing is tried again.
    The namespace of what has none is None.
    """

    def __init__(self, client: ApiClient) -> None:
        self._client = client

    async def get(self, collection: Collection, namespace: str | None, name: str) -> Object:
        """Read one object."""
        return await self._ask("GET", _path(collection, namespace, name))

    async def list(
        self,
        collection: Collection,
        namespace: str | None,
        query: Mapping[str, str | int],
        *,
        max_bytes: int | None = None,
    ) -> Page:
        """Read objects, or a page of them; of more than `max_bytes` no further than that."""
        async with await self._open("GET", _path(collection, namespace), query) as response:
            body = bytearray()
            async for chunk in response.content.iter_any():
                body += chunk
                if max_bytes is not None and len(body) > max_bytes:
                    raise ValueError(f"the list has more than {max_bytes} bytes")
        answer = _parsed(response, body)
        items, metadata = answer.get("items"), _json_object(answer.get("metadata") or {})
        if not isinstance(items, list):
            raise ValueError("no list")  # noqa: TRY004 all bad answers are one error
        return Page([_json_object(item) for item in items], str(metadata.get("continue") or ""))

    async def open_watch(
        self,
        collection: Collection,
        namespace: str | None,
        *,
        watch: bool = True,
        timeout_seconds: int,
        _request_timeout: float,
        field_selector: str,
        resource_version: str = "",
    ) -> aiohttp.ClientResponse:
        """Ask for a watch (`tagpin.cluster.api.watch`), whose answer may be a refusal.

        The server is asked to end it after `timeout_seconds`; nothing is read from it for longer
        than `_request_timeout` seconds.
        """
        query: dict[str, str | int] = {
            "watch": str(watch).lower(),
            "timeoutSeconds": timeout_seconds,
            "fieldSelector": field_selector,
        }
        if resource_version:
            query["resourceVersion"] = resource_version
        return await self._open(
            "GET", _path(collection, namespace), query, seconds=_request_timeout
        )

    async def create(self, collection: Collection, namespace: str | None, made: Object) -> Object:
        """Create an object, and return it as it was stored."""
        return await self._ask("POST", _path(collection, namespace), body=made)

    async def replace(
        self, collection: Collection, namespace: str | None, name: str, made: Object
    ) -> Object:
        """Store `made` in the place of an object, if that is of its resourceVersion still."""
        return await self._ask("PUT", _path(collection, namespace, name), body=made)

    async def patch(
        self,
        collection: Collection,
        namespace: str | None,
        name: str,
        change: Object,
        *,
        content_type: str,
        field_manager: str,
    ) -> Object:
        """Change an object, and return it as it is then."""
        return await self._ask(
            "PATCH",
            _path(collection, namespace, name),
            {"fieldManager": field_manager},
            body=change,
            content_type=content_type,
        )

    async def delete(
        self, collection: Collection, namespace: str | None, name: str, *, uid: str, version: str
    ) -> None:
        """Delete an object, if it is the one with that uid, and of that resourceVersion."""
        same = {"preconditions": {"uid": uid, "resourceVersion": version}}
        await self._ask("DELETE", _path(collection, namespace, name), body=same)

    async def _ask(
        self,
        method: str,
        path: str,
        query: Mapping[str, str | int] | None = None,
        *,
        body: Object | None = None,
        content_type: str = "application/json",
    ) -> Object:
        response = await self._open(method, path, query, body=body, content_type=content_type)
        return _parsed(response, await response.read())

    async def _open(
        self,
        method: str,
        path: str,
        query: Mapping[str, str | int] | None = None,
        *,
        body: Object | None = None,
        content_type: str = "application/json",
        seconds: float | None = None,
    ) -> aiohttp.ClientResponse:
        asked = await self._client.param_serialize(
            method,
            path,
            query_params=list(query.items()) if query else None,
            header_params={"Accept": "application/json", "Content-Type": content_type},
            body=body,
            # Reads the token again where that rotates.
            auth_settings=["BearerToken"],
        )
        answer = await self._client.call_api(*asked, _request_timeout=seconds)
        response: aiohttp.ClientResponse = answer.response
        return response


def _path(collection: Collection, namespace: str | None, name: str | None = None) -> str:
    group, version, plural = collection.group, collection.version, collection.plural
    parts = ["apis", group, version] if group else ["api", version]
    if namespace is not None:
        parts += ["namespaces", namespace]
    parts.append(plural)
    if name is not None:
        parts.append(name)
    return "/" + "/".join(map(_quoted, parts))


def _quoted(part: str) -> str:
    """One part of a path, whatever it is made of. Raises ValueError where no quoting helps."""
    if part in ("", ".", ".."):
        raise ValueError(f"{part!r} is no name")
    return quote(part, safe="")


def _parsed(response: aiohttp.ClientResponse, body: bytes | bytearray) -> Object:
    if not 200 <= response.status <= 299:  # noqa: PLR2004 - RFC 9110: 15.3
        text = body.decode(errors="replace")
        raise ApiException(status=response.status, reason=response.reason, body=text)
    try:
        answer = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise ValueError("no object") from error  # of a proxy, for example
    return _json_object(answer)


def _json_object(answer: Any) -> Object:
    if not isinstance(answer, dict):
        raise ValueError("no object")  # noqa: TRY004 all bad answers are one error
    return answer


def text(value: Any) -> str:
    """A field that must be text. Raises TypeError."""
    if not isinstance(value, str):
        raise TypeError("no text")
    return value
