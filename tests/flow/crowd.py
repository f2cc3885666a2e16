"""A crowd of service accounts that create pods, each of a new revision, all at once."""

import asyncio
import ssl
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Self

import aiohttp

from cluster.controlplane import ControlPlane
from cluster.namespaces import Object, controller_reference, job, pod


@dataclass(frozen=True, slots=True)
class Result:
    """What became of one pod."""

    pod: str
    refusal: str
    """Why there is none; else empty."""


class Crowd:
    """So many clients of a control plane, which create pods of an `image` in a namespace.

    They are the service accounts of `home`: a CI system's, or the controllers' of kube-system.
    Each pod belongs to a Job of its own, which no controller looks after, and has a pull secret
    of its own: it costs tagpin four calls.
    """

    def __init__(
        self, control_plane: ControlPlane, *, home: str, namespace: str, image: str, size: int
    ) -> None:
        self._control_plane = control_plane
        self._home = home
        self._namespace = namespace
        self._image = image
        self._size = size
        self._client: aiohttp.ClientSession

    async def __aenter__(self) -> Self:
        admin = self._control_plane.authority.issue("crowd", groups=["system:masters"])
        tls = ssl.create_default_context(cafile=self._control_plane.ca_file)
        tls.load_cert_chain(admin.certificate, admin.key)
        self._client = aiohttp.ClientSession(
            base_url=self._control_plane.url,
            connector=aiohttp.TCPConnector(limit=0, ssl=tls),
            timeout=aiohttp.ClientTimeout(total=100),
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.close()
        await asyncio.sleep(0)  # the connections see it

    async def create(self, each: int, *, bearable: int = 1_000_000) -> list[Result]:
        """Let every client create so many pods, one after the other.

        Return when all have done so, or as soon as `bearable` pods were refused: then it is over.
        """
        results: list[Result] = []
        working = [
            asyncio.create_task(self._work(number, each, results)) for number in range(self._size)
        ]
        late = set(working)
        while late and sum(bool(result.refusal) for result in results) < bearable:
            _, late = await asyncio.wait(late, timeout=0.1)
        if late:
            await self._client.close()  # a cancelled request would say goodbye first
            await asyncio.gather(*late, return_exceptions=True)
        for client in set(working) - late:
            client.result()
        return results

    async def _work(self, client: int, times: int, results: list[Result]) -> None:
        for _ in range(times):
            results += [await self._create_one(f"client-{client}")]

    async def _create_one(self, client: str) -> Result:
        wanted = job("", {"app": self._image}, managedBy="tagpin.dev/tests")
        wanted["metadata"] = {"generateName": "build-"}
        owner = await self._post(client, "apis/batch/v1", "jobs", wanted)
        name = owner["metadata"]["name"]
        mine = pod(name, {"app": self._image}, imagePullSecrets=[{"name": name}])
        mine["metadata"]["ownerReferences"] = [controller_reference(owner)]
        answer = await self._post(client, "api/v1", "pods", mine)
        return Result(name, answer["message"] if answer["kind"] == "Status" else "")

    async def _post(self, client: str, group: str, plural: str, wanted: Object) -> Any:
        """The answer; the API server is asked again where it says that it is too busy."""
        headers = [
            ("Impersonate-User", f"system:serviceaccount:{self._home}:{client}"),
            ("Impersonate-Group", "system:serviceaccounts"),
            ("Impersonate-Group", f"system:serviceaccounts:{self._home}"),
            ("Impersonate-Group", "system:authenticated"),
        ]
        path = f"/{group}/namespaces/{self._namespace}/{plural}"
        while True:
            async with self._client.post(path, json=wanted, headers=headers) as response:
                if response.status != HTTPStatus.TOO_MANY_REQUESTS:
                    return await response.json()
            await asyncio.sleep(0.2)
