"""Clients that create pods all the time, fast enough to see what a moment costs.

Nothing here knows pytest.
"""

import http.client
import json
import ssl
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Self

from cluster.controlplane import ControlPlane
from cluster.programs import LOOPBACK

# Seconds: above every time-out of the API server.
PATIENCE = 40.0


@dataclass(frozen=True, slots=True)
class Created:
    """What became of one pod; the times are of time.monotonic."""

    begun: float
    ended: float
    status: int
    image: str
    """Of its container, as it was stored; empty if the pod was refused."""
    message: str
    """Why it was refused; empty if it was not."""

    @property
    def is_refused(self) -> bool:
        return self.status != HTTPStatus.CREATED


class Load:
    """Pods of one `image`, created in a `namespace` by so many `clients` while a context lasts.

    Each client has a connection of its own, which it keeps, and `pause` seconds of rest after
    each pod. The pods are never scheduled.
    """

    def __init__(
        self,
        control_plane: ControlPlane,
        namespace: str,
        image: str,
        *,
        clients: int = 8,
        pause: float = 0.2,
    ) -> None:
        self._where = control_plane, namespace, image
        issued = control_plane.authority.issue("load", groups=["system:masters"])
        self._tls = ssl.create_default_context(cafile=control_plane.ca_file)
        self._tls.load_cert_chain(issued.certificate, issued.key)
        self._port = int(control_plane.url.rpartition(":")[2])
        self._path = f"/api/v1/namespaces/{namespace}/pods"
        self._body = json.dumps(_pod(image))
        self._pause = pause
        self._created: list[Created] = []
        self._broken: list[Exception] = []
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(clients)]

    def rush(self, *, clients: int) -> "Load":
        """So many more of the kind, who do not rest: they need connections that are not there."""
        return Load(*self._where, clients=clients, pause=0)

    def __enter__(self) -> Self:
        for each in self._threads:
            each.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for each in self._threads:
            each.join()
        if self._broken:
            raise self._broken[0]

    @property
    def created(self) -> Sequence[Created]:
        """All pods by now, in the order of the answers."""
        return tuple(self._created)

    @property
    def refused(self) -> Sequence[Created]:
        """Those that there are not."""
        return [each for each in self.created if each.is_refused]

    def run_for(self, *, pods: int = 0, seconds: float = 0) -> None:
        """Return when so many more pods were admitted, and so much time has gone."""
        began, before = time.monotonic(), self._admitted()
        while time.monotonic() < began + seconds or self._admitted() < before + pods:
            assert time.monotonic() < began + seconds + PATIENCE, self.refused[-3:]
            assert not self._broken, self._broken
            time.sleep(0.005)

    def _admitted(self) -> int:
        return sum(not each.is_refused for each in self.created)

    def _run(self) -> None:
        connection = http.client.HTTPSConnection(
            LOOPBACK, self._port, timeout=PATIENCE, context=self._tls
        )
        try:
            while not self._over.is_set():
                self._created.append(self._create(connection))
                self._over.wait(self._pause)
        except Exception as error:  # noqa: BLE001 - it is raised again in the test's own thread
            self._broken.append(error)
        finally:
            connection.close()

    def _create(self, connection: http.client.HTTPSConnection) -> Created:
        begun = time.monotonic()
        connection.request("POST", self._path, self._body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        answer: dict[str, Any] = json.loads(response.read())
        ended = time.monotonic()
        if response.status == HTTPStatus.CREATED:
            (container,) = answer["spec"]["containers"]
            return Created(begun, ended, response.status, container["image"], "")
        return Created(begun, ended, response.status, "", answer["message"])


def _pod(image: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"generateName": "web-"},
        "spec": {
            "containers": [{"name": "app", "image": image}],
            "schedulerName": "nobody",  # what is admitted is looked at, not what runs
        },
    }
