"""Objects made through the real API server, by raw requests over connections that are kept."""

import asyncio
import json
import re
import time
from array import array
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from bench import load
from bench.load import Answered, Connection, Target, WrongAnswerError
from cluster.controlplane import ControlPlane

CREATED, OK = 201, 200

_IMAGE = re.compile(rb'"image":"([^"]*)"')


class ApiServer(Target):
    """A control plane's API server, asked by one who may do everything.

    It is the name of the controller manager, so the pods may speak for revisions.
    """

    def __init__(self, control_plane: ControlPlane) -> None:
        super().__init__(control_plane.url, control_plane.ca_file)
        issued = control_plane.authority.issue(
            "system:kube-controller-manager", groups=["system:masters"]
        )
        self.tls.load_cert_chain(issued.certificate, issued.key)

    def ask(self, method: str, path: str, body: bytes = b"") -> bytes:
        """A request, as bytes."""
        return (
            f"{method} {path} HTTP/1.1\r\nHost: {self.host}:{self.port}\r\n"
            "Accept: application/json\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        ).encode() + body


@dataclass(frozen=True, slots=True)
class Order:
    """A request, the status that must come, and who looks at the body (WrongAnswerError)."""

    request: bytes
    status: int = CREATED
    check: Callable[[bytes], None] = lambda _: None


class _AnyStatus(Connection):
    takes_any_status = True


def carry_out(server: ApiServer, orders: Iterable[Order], *, clients: int = 16) -> Answered:
    """Each client sends the next order as soon as it is answered, until none are left.

    The clock starts once all connections are made.
    """
    return load.run(_carry_out(server, orders, clients))


async def _carry_out(server: ApiServer, orders: Iterable[Order], clients: int) -> Answered:
    made = [await _AnyStatus.to(server) for _ in range(clients)]
    taken = array("d")
    left = iter(orders)

    async def client(connection: _AnyStatus) -> None:
        for order in left:
            asked = time.perf_counter()
            body = await connection.answer(order.request)
            taken.append(time.perf_counter() - asked)
            if connection.status != order.status:
                raise WrongAnswerError(f"{connection.status}: {body[:500]!r}")
            order.check(body)

    try:
        began = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for each in made:
                group.create_task(client(each))
        return Answered(taken, time.perf_counter() - began)
    finally:
        for each in made:
            each.close()


def created(
    server: ApiServer, path: str, objects: Iterable[Any], *, clients: int = 16
) -> list[Any]:
    """Create objects, and return them as they are stored, in this order."""
    stored: dict[int, Any] = {}

    def keep(number: int) -> Callable[[bytes], None]:
        return lambda body: stored.__setitem__(number, json.loads(body))

    orders = (
        Order(server.ask("POST", path, json.dumps(each).encode()), check=keep(number))
        for number, each in enumerate(objects)
    )
    carry_out(server, orders, clients=clients)
    return [stored[number] for number in range(len(stored))]


def images(pod: bytes) -> list[str]:
    """Those of the containers of a pod, as an API server answers it."""
    return [each.decode() for each in _IMAGE.findall(pod)]
