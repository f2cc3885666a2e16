"""Real programs as child processes: started, watched, ended; and the two real registries.

Nothing here knows pytest: the demo and the benchmarks use the same classes.
"""

import contextlib
import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

import bcrypt

from tools.build import missing, program

LOOPBACK = "127.0.0.1"


class ProgramError(Exception):
    """A program did not start, or ended too early; the message ends with its last log lines."""


def executable(name: str) -> Path:
    """The path of a program that `make tools` builds. ProgramError: it is not there, and why."""
    path = program(name)
    if path is None:
        raise ProgramError(missing(name))
    return path


class Running:
    """A child process whose output goes to a file.

    On Linux it dies with the thread that started it, so start it where the caller stays: in the
    main thread, or in a fixture.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str | Path],
        *,
        log: Path,
        errors: Path | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self.log = errors or log
        with log.open("ab") as output, self.log.open("ab") as error_output:
            self._process = subprocess.Popen(
                _dying_with_us(command),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=error_output,
                env=environ,
                start_new_session=True,  # Ctrl-C is for the parent, which then ends this
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait_until(self, ready: Callable[[], bool], *, seconds: float) -> None:
        """Return when `ready` says so. ProgramError: the program ended before, or took longer."""
        deadline = time.monotonic() + seconds
        while True:
            # In this order: whoever answers on our port is not us if we have ended.
            answered = ready()
            self.must_run()
            if answered:
                return
            if time.monotonic() > deadline:
                raise ProgramError(
                    f"{self.name} was not ready after {seconds:.0f} s:\n{self.last_words()}"
                )
            time.sleep(0.05)

    def must_run(self) -> None:
        """ProgramError: the program has ended."""
        if (status := self._process.poll()) is not None:
            raise ProgramError(f"{self.name} ended with {status}:\n{self.last_words()}")

    def stop(self, *, patience: float = 5) -> None:
        """End the process: politely, and after `patience` seconds for certain."""
        self._process.terminate()
        try:
            self._process.wait(patience)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def kill(self) -> None:
        """End the process at once, as SIGKILL does."""
        self._process.kill()
        self._process.wait()

    def last_words(self, lines: int = 15) -> str:
        """The end of the log."""
        text = self.log.read_text(errors="replace")
        return "\n".join(f"    {line}" for line in text.splitlines()[-lines:])


# Run before the command, and turning into it under the same process id. (Not a preexec_fn: that
# must not be used where threads run.)
_LEASH = """
import ctypes, os, signal, sys
parent, command = int(sys.argv[1]), sys.argv[2:]
PR_SET_PDEATHSIG = 1
ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
if os.getppid() != parent:
    sys.exit("the parent ended first")
os.execvp(command[0], command)
"""


def _dying_with_us(command: Sequence[str | Path]) -> list[str]:
    leash = [sys.executable, "-IS", "-c", _LEASH, str(os.getpid())]
    return [*(leash if sys.platform == "linux" else []), *map(str, command)]


def free_ports(count: int) -> list[int]:
    """Ports of the loopback address that were free, and distinct, a moment ago."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind((LOOPBACK, 0))
        return [each.getsockname()[1] for each in sockets]


def lost_the_port(error: ProgramError) -> bool:
    """Whether a program failed because somebody took its port first, so trying again may help."""
    return "address already in use" in str(error)


# Registries


class Request(NamedTuple):
    """One line of a registry's access log."""

    method: str
    path: str
    """With the query string."""
    status: int


@dataclass(frozen=True, slots=True)
class TokenAuth:
    """Who issues the tokens that a registry accepts."""

    realm: str
    service: str
    issuer: str
    certificates: Path
    """PEM file: the certificate of the key that signs the tokens, or its authority's."""


class Registry:
    """A registry program in a child process.

    `stop` and `start` may be called again and again; the port, and what is on disk, stay until
    `close`. As a context manager it starts and closes.
    """

    _scheme = "http"

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="tagpin-registry-"))
        self._log = self._folder / "log"
        self._running: Running | None = None
        self._port: int | None = None

    @property
    def host(self) -> str:
        """What references to this registry begin with: 127.0.0.1:port."""
        if self._port is None:
            raise RuntimeError("a registry has no address before its first start")
        return f"{LOOPBACK}:{self._port}"

    @property
    def url(self) -> str:
        return f"{self._scheme}://{self.host}"

    def start(self) -> Self:
        """Start, and return when the port answers. ProgramError carries the last log lines."""
        if self._port is not None:
            self._start_on(self._port)
            return self
        for attempts_left in (2, 1, 0):
            (port,) = free_ports(1)
            try:
                self._start_on(port)
            except ProgramError as error:
                if not (attempts_left and lost_the_port(error)):
                    raise
            else:
                self._port = port
                break
        return self

    def stop(self) -> None:
        """End the program; what it stores stays."""
        if self._running is not None:
            self._running.stop()
            self._running = None

    def close(self) -> None:
        """End the program and remove what it stored."""
        self.stop()
        shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start_on(self, port: int) -> None:
        if self._running is not None:
            raise RuntimeError("the registry runs already")
        self._log.write_text("")
        running = self._launch(port)
        try:
            running.wait_until(lambda: _accepts(port), seconds=20)
        except BaseException:
            running.stop()
            raise
        self._running = running

    def _launch(self, port: int) -> Running:
        raise NotImplementedError


class Distribution(Registry):
    """The CNCF distribution registry. It listens on TLS if it is given a certificate and a key.

    `users` (name → password) makes it ask for basic authentication, `token` for a bearer token.
    """

    def __init__(
        self,
        *,
        users: Mapping[str, str] | None = None,
        certificate: tuple[Path, Path] | None = None,
        token: TokenAuth | None = None,
    ) -> None:
        super().__init__()
        self._users = users
        self._certificate = certificate
        self._token = token
        self._access_log = self._folder / "access.log"
        self._scheme = "https" if certificate else "http"

    def requests(self) -> list[Request]:
        """Every request since the first start, in the order in which they ended.

        A response with a long body may reach its client a moment before it stands here.
        """
        if not self._access_log.exists():
            return []
        return [
            Request(line["method"], line["path"], int(line["status"]))
            for line in _ACCESS.finditer(self._access_log.read_text())
        ]

    def forget_requests(self) -> None:
        """Empty the access log."""
        self._access_log.write_text("")

    def _launch(self, port: int) -> Running:
        config = self._folder / "config.json"
        config.write_text(json.dumps(self._config(port)))  # JSON is YAML
        return Running(
            "registry",
            [executable("registry"), "serve", config],
            log=self._access_log,
            errors=self._log,
            environ={"OTEL_TRACES_EXPORTER": "none"},
        )

    def _config(self, port: int) -> dict[str, Any]:
        http: dict[str, Any] = {"addr": f"{LOOPBACK}:{port}", "secret": secrets.token_hex()}
        if self._certificate:
            certificate, key = self._certificate
            http["tls"] = {"certificate": str(certificate), "key": str(key)}
        return {
            "version": 0.1,
            "log": {"level": "warn", "accesslog": {"disabled": False}},
            "storage": {
                "filesystem": {"rootdirectory": str(self._folder / "storage")},
                "delete": {"enabled": True},
            },
            "http": http,
            "auth": self._auth(),
        }

    def _auth(self) -> dict[str, Any]:
        if self._token:
            return {
                "token": {
                    "realm": self._token.realm,
                    "service": self._token.service,
                    "issuer": self._token.issuer,
                    "rootcertbundle": str(self._token.certificates),
                }
            }
        if self._users:
            file = self._folder / "htpasswd"
            file.write_text("".join(map(_htpasswd_line, self._users.items())))
            return {"htpasswd": {"realm": "registry", "path": str(file)}}
        return {}


class CraneRegistry(Registry):
    """The registry of go-containerregistry, a second implementation of the protocol.

    It keeps blobs on disk but manifests in memory: after `stop`, every image is gone.
    """

    def _launch(self, port: int) -> Running:
        storage = self._folder / "storage"
        storage.mkdir(exist_ok=True)
        flags = [f"--address={LOOPBACK}:{port}", f"--disk={storage}"]
        return Running("crane", [executable("crane"), "registry", "serve", *flags], log=self._log)


_ACCESS = re.compile(r'"(?P<method>[A-Z]+) (?P<path>\S+) HTTP/[0-9.]+" (?P<status>\d{3}) ')


def _htpasswd_line(user: tuple[str, str]) -> str:
    name, password = user
    hashed = bcrypt.hashpw(password.encode(), bcrypt.gensalt(rounds=4))
    return f"{name}:{hashed.decode()}\n"


def _accepts(port: int) -> bool:
    try:
        socket.create_connection((LOOPBACK, port), timeout=1).close()
    except OSError:
        return False
    return True
