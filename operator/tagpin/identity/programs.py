"""Credential programs: `docker-credential-…`, which ask a keychain or a cloud for a password.

Which program is run is the operator's choice, or that of whoever types a command, and of nobody
else. The registry that it is asked for may be anybody's, so it goes to its standard input, never
among its arguments.

(docker/docker-credential-helpers: client/client.go, credentials/credentials.go)
"""

import asyncio
import contextlib
import json
import os
import re
import signal
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, cast

from tagpin.cache import Cache
from tagpin.errors import ConfigurationError, Unobtainable
from tagpin.keychain import Credential, Identity
from tagpin.reference import DOCKER_HUB, shortened

PREFIX = "docker-credential-"
MAX_OUTPUT = 64 * 1024
MAX_KEPT = 1000
"""Answers that are kept: where a glob is configured, pods choose how many registries there are."""
SHORTLY = 5.0
"""Seconds for which a program that had nothing is not asked again."""
REAPING = 1.0
"""Seconds that a killed program may take to be gone."""

_DOCKER_HUB_KEY = "https://index.docker.io/v1/"
_NOT_FOUND = "credentials not found in native keychain"
_TOKEN_USER = "<token>"  # noqa: S105 - says that the secret is an identity token


class Programs:
    """Implements `tagpin.registry.client.Identities`; an identity's provider is a program's path.

    No others than those at `paths`, which are absolute, are ever run: with `environment` and no
    more, `at_once` at a time, for `timeout` seconds each, waiting included. A credential is kept
    for `held` seconds.
    """

    def __init__(
        self,
        paths: Iterable[str],
        *,
        environment: Mapping[str, str],
        timeout: float = 5.0,
        held: float = 60.0,
        at_once: int = 4,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._paths = frozenset(paths)
        for path in self._paths:
            if not Path(path).is_absolute():
                raise ConfigurationError(f"credential program {path!r}: no absolute path")
        self._environment = dict(environment)
        self._timeout = timeout
        self._free = asyncio.Semaphore(at_once)
        self._answers: Cache[tuple[str, str], Credential | None] = Cache(
            maxsize=MAX_KEPT,
            clock=clock,
            lifetime=lambda found: SHORTLY if found is None else held,
            error_age=lambda error: SHORTLY if isinstance(error, Unobtainable) else 0.0,
        )

    async def obtain(self, identity: Identity) -> Credential:
        """The credential that the program has for a registry; Unobtainable where it has none."""
        found = await self.find(identity)
        if found is None:
            raise Unobtainable(f"{identity.provider} has none for {shortened(identity.host)}")
        return found

    async def find(self, identity: Identity) -> Credential | None:
        """As `obtain`, but None where the program says that it has no credential."""
        path, host = identity.provider, identity.host
        if path not in self._paths:
            raise Unobtainable(f"{shortened(path)} is not among the credential programs")
        if not re.fullmatch(r"[A-Za-z0-9.:\[\]-]+", host):
            raise Unobtainable(f"{shortened(host)} is no host to ask {path} for")

        async def load() -> Credential | None:
            try:
                async with asyncio.timeout(self._timeout), self._free:
                    return _credential(path, host, *await self._run(path, host))
            except TimeoutError:
                late = f"{path} gave no answer for {shortened(host)} within {self._timeout:g} s"
                raise Unobtainable(late, is_outage=True) from None

        return (await self._answers.get((path, host), load)).value

    async def aclose(self) -> None:
        """End the programs that are running."""
        await self._answers.aclose()

    async def _run(self, path: str, host: str) -> tuple[int, bytes]:
        """Exit code and output of a program, which has ended then, with all that it started."""
        starting = asyncio.ensure_future(
            asyncio.get_running_loop().subprocess_exec(
                _Answer,
                path,
                "get",
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
                env=self._environment,
                cwd="/",
                start_new_session=True,
            )
        )
        try:
            await asyncio.wait([starting])
        except asyncio.CancelledError:
            # Cancelled half-way, asyncio would wait for all that the program has started.
            await asyncio.wait([starting])
            if not starting.exception():
                await _end(*starting.result())
            raise
        try:
            transport, answer = starting.result()
        except OSError as error:
            raise Unobtainable(f"{path} cannot be run: {error.strerror or 'no program'}") from error
        try:
            stdin = cast("asyncio.WriteTransport", transport.get_pipe_transport(0))
            if not stdin.is_closing():  # the program may have ended without reading
                stdin.write((_DOCKER_HUB_KEY if host == DOCKER_HUB else host).encode())
                stdin.close()
            await answer.ended.wait()
        finally:
            await _end(transport, answer)
        if not answer.is_complete:
            raise Unobtainable(f"{path} wrote more than {MAX_OUTPUT} bytes")
        return transport.get_returncode() or 0, bytes(answer.output)


class _Answer(asyncio.SubprocessProtocol):
    """What a program writes, until it and whoever shares its output has ended, or it is enough."""

    def __init__(self) -> None:
        self.output = bytearray()
        self.is_complete = False
        self.ended = asyncio.Event()
        self.exited = asyncio.Event()

    def pipe_data_received(self, _fd: int, data: Any) -> None:
        self.output += data[: MAX_OUTPUT + 1 - len(self.output)]
        if len(self.output) > MAX_OUTPUT:
            self.ended.set()

    def process_exited(self) -> None:
        self.exited.set()

    def connection_lost(self, _exc: Exception | None) -> None:
        self.is_complete = not self.ended.is_set()
        self.ended.set()


async def _end(transport: asyncio.SubprocessTransport, answer: _Answer) -> None:
    """See that a program has ended, and whatever it started in its session."""
    if not answer.is_complete:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(transport.get_pid(), signal.SIGKILL)
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(answer.exited.wait(), REAPING)
    transport.close()


def _credential(path: str, host: str, code: int, output: bytes) -> Credential | None:
    """What a program's answer means; nothing of it is repeated."""
    if code != 0:
        if output.strip() == _NOT_FOUND.encode():
            return None
        how = f"failed with exit code {code}" if code > 0 else f"was ended by signal {-code}"
        text = f"{path} {how}: see what `{path} get` says to {shortened(host)}"
        raise Unobtainable(text, is_outage=True)
    try:
        answer = json.loads(output)
    except (ValueError, RecursionError):
        raise Unobtainable(f"{path} wrote no JSON") from None
    fields = answer if isinstance(answer, dict) else {}
    username, secret = fields.get("Username"), fields.get("Secret")
    if not isinstance(username, str) or not isinstance(secret, str):
        raise Unobtainable(f"{path} wrote no JSON with texts as Username and Secret")
    if not username and not secret:
        return None
    try:
        if username == _TOKEN_USER:
            return Credential("", "", identity_token=secret)
        return Credential(username, secret)
    except ValueError as error:
        raise Unobtainable(f"{path} gave what is no credential: {error}") from None
