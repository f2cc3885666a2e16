"""Name resolution by a table, for tests in which addresses matter."""

import socket
from collections.abc import Sequence
from ipaddress import ip_address

from aiohttp.abc import AbstractResolver, ResolveResult


class FakeNames(AbstractResolver):
    """Host names by a table; what is not in it does not exist.

    A name with several rows of addresses answers with one after the other, and then stays at the
    last one: so rebinding goes.
    """

    def __init__(self, **names: Sequence[str] | str) -> None:
        self.asked: list[str] = []
        self._rows: dict[str, list[list[str]]] = {}
        for name, row in names.items():
            self.add(name.replace("_", "."), [row] if isinstance(row, str) else row)

    def add(self, name: str, *rows: Sequence[str]) -> None:
        self._rows[name] = [list(row) for row in rows]

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        self.asked.append(host)
        rows = self._rows.get(host.rstrip("."))  # absolute or not
        if not rows:
            raise OSError(f"{host} does not exist")
        row = rows.pop(0) if len(rows) > 1 else rows[0]
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=socket.AF_INET if ip_address(address).version == 4 else socket.AF_INET6,
                proto=0,
                flags=socket.AI_NUMERICHOST,
            )
            for address in row
        ]

    async def close(self) -> None:
        pass
