"""Credential programs: real ones, which answer well, badly, slowly or not at all."""

import asyncio
import base64
import contextlib
import json
import logging
import os
import re
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from fakes.clock import FakeClock
from tagpin.errors import ConfigurationError, Unobtainable
from tagpin.identity.config import OwnCredentials
from tagpin.identity.programs import MAX_OUTPUT, SHORTLY, Programs
from tagpin.identity.providers import Providers
from tagpin.keychain import Credential, Identity
from tagpin.reference import Reference
from tagpin.registry.client import RegistryClient
from tagpin.registry.places import RegistrySettings
from tagpin.registry.resolver import RegistryResolver

ENVIRONMENT = {"PATH": "/usr/bin:/bin"}
GOOD = """read server; echo '{"ServerURL": "'"$server"'", "Username": "bot", "Secret": "pw"}'"""


class Shelf:
    """A folder of programs that are made for one test; counts how often each was run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.made: list[Programs] = []

    def put(self, script: str, name: str = "docker-credential-test") -> str:
        """A shell script; returns its path."""
        path = self.folder / name
        path.write_text(f"#!/bin/sh\necho run >> '{path}.log'\n{script}\n")
        path.chmod(0o700)
        return str(path)

    def runs(self, path: str) -> int:
        log = Path(f"{path}.log")
        return len(log.read_text().splitlines()) if log.exists() else 0

    def programs(self, *paths: str, **options: Any) -> Programs:
        environment = options.pop("environment", ENVIRONMENT)
        self.made.append(Programs(paths, environment=environment, **options))
        return self.made[-1]

    async def ask(self, script: str, host: str = "registry.test", **options: Any) -> Credential:
        path = self.put(script)
        return await self.programs(path, **options).obtain(Identity(path, host))


@pytest.fixture
async def shelf(tmp_path: Path) -> AsyncIterator[Shelf]:
    shelf = Shelf(tmp_path)
    yield shelf
    for programs in shelf.made:
        await programs.aclose()


def alive(file: Path) -> list[int]:
    """The processes that wrote their id into a file, as far as they still run."""
    ids = [int(line) for line in file.read_text().split()] if file.exists() else []
    return [each for each in ids if _stat(each)[:1] not in ([], ["Z"])]


def zombies() -> list[int]:
    """The children of ours that have ended, and that nobody has waited for."""
    ids = [int(folder.name) for folder in Path("/proc").iterdir() if folder.name.isdigit()]
    return [each for each in ids if _stat(each)[:2] == ["Z", str(os.getpid())]]


def _stat(pid: int) -> list[str]:
    """State, parent and more (proc(5): /proc/pid/stat); nothing of a process that is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []


async def wait_for(claim: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not claim():  # noqa: ASYNC110 - processes ring no bell
            await asyncio.sleep(0.005)


async def test_a_program_is_asked_for_a_registry_and_gives_its_credential(shelf: Shelf) -> None:
    assert await shelf.ask(GOOD) == Credential("bot", "pw")


@pytest.mark.parametrize(
    ("host", "asked"),
    [
        ("registry.test:5000", "registry.test:5000"),
        ("[::1]:5000", "[::1]:5000"),
        ("docker.io", "https://index.docker.io/v1/"),
        ("--help.test", "--help.test"),
    ],
)
async def test_the_registry_comes_by_standard_input_and_is_no_argument(
    shelf: Shelf, host: str, asked: str
) -> None:
    script = """printf '{"Username": "%s", "Secret": "%s"}' "$*" "$(cat | sed 's/:/;/g')" """
    assert await shelf.ask(script, host) == Credential("get", asked.replace(":", ";"))


@pytest.mark.parametrize(
    "host", ["a.test\nevil.test", "a.test\0", "a b", "", "$(id)", "a.test/x", "é", "a.test\n"]
)
async def test_what_is_no_host_is_never_asked_for(shelf: Shelf, host: str) -> None:
    with pytest.raises(Unobtainable, match="is no host to ask"):
        await shelf.ask(GOOD, host)
    assert shelf.runs(str(shelf.folder / "docker-credential-test")) == 0


async def test_a_program_that_is_not_configured_is_never_run(shelf: Shelf) -> None:
    listed, other = shelf.put(GOOD), shelf.put(GOOD, "docker-credential-other")
    programs = shelf.programs(listed)
    for path in (other, "docker-credential-test", listed + " ", f"{listed}/../{Path(other).name}"):
        with pytest.raises(Unobtainable, match="is not among the credential programs"):
            await programs.obtain(Identity(path, "registry.test"))
    assert shelf.runs(other) == shelf.runs(listed) == 0


@pytest.mark.parametrize("path", ["docker-credential-test", "./program", ""])
def test_a_program_is_named_by_an_absolute_path(path: str) -> None:
    with pytest.raises(ConfigurationError, match="no absolute path"):
        Programs([path], environment={})


async def test_a_program_gets_the_environment_that_is_given_and_no_more(shelf: Shelf) -> None:
    script = """/usr/bin/env | /usr/bin/sort > "$OUT"; echo '{"Username": "a", "Secret": "b"}'"""
    out = shelf.folder / "environment"
    await shelf.ask(script, environment={"OUT": str(out)})
    names = {line.partition("=")[0] for line in out.read_text().splitlines()}
    assert names - {"PWD", "SHLVL", "_"} == {"OUT"}


async def test_the_user_name_token_says_that_the_secret_is_an_identity_token(shelf: Shelf) -> None:
    script = """echo '{"Username": "<token>", "Secret": "refresh-me"}'"""
    assert await shelf.ask(script) == Credential("", "", identity_token="refresh-me")


@pytest.mark.parametrize(
    "script",
    [
        "echo credentials not found in native keychain; exit 1",
        """echo '{"ServerURL": "", "Username": "", "Secret": ""}'""",
    ],
)
async def test_a_program_may_have_nothing(shelf: Shelf, script: str) -> None:
    path = shelf.put(script)
    programs, identity = shelf.programs(path), Identity(path, "registry.test")

    assert await programs.find(identity) is None
    with pytest.raises(Unobtainable, match=f"{path} has none for registry.test"):
        await programs.obtain(identity)


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo s3cret; echo s3cret >&2; exit 1", "failed with exit code 1: see what"),
        ("echo credentials not found in native keychain: s3cret; exit 1", "exit code 1"),
        ("echo no credentials server URL; exit 3", "exit code 3"),
        ("kill -9 $$", "was ended by signal 9"),
        ("exit 0", "wrote no JSON"),
        ("echo s3cret", "wrote no JSON"),
        ("printf '\\377\\376s3cret'", "wrote no JSON"),
        ('echo \'{"Username": "a", "Secret": "s3cret"} more\'', "wrote no JSON"),
        ("""yes '[' | head -30000 | tr -d '\\n'""", "wrote no JSON"),
        ("""echo '["bot", "s3cret"]'""", "no JSON with texts"),
        ("echo 7", "no JSON with texts"),
        ("echo null", "no JSON with texts"),
        ("""echo '{"Username": "bot"}'""", "no JSON with texts"),
        ("""echo '{"Username": ["s3cret"], "Secret": "s3cret"}'""", "no JSON with texts"),
        ("""echo '{"Username": "bot", "Secret": {"s3cret": 1}}'""", "no JSON with texts"),
        ("""echo '{"Username": "a:b", "Secret": "s3cret"}'""", "no credential: the user name has"),
        ("""echo '{"Username": "<token>", "Secret": "s3cret\\\\n"}'""", "no credential: the ident"),
        ("""echo '{"Username": "a", "Secret": "s3cret\\\\ud800"}'""", "no credential: a secret or"),
    ],
)
async def test_what_a_program_did_wrong_is_said_without_repeating_it(
    shelf: Shelf,
    script: str,
    message: str,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level(logging.DEBUG)
    with pytest.raises(Unobtainable) as caught:
        await shelf.ask(script)
    text = str(caught.value)
    assert text.startswith(str(shelf.folder / "docker-credential-test"))
    assert message in text
    assert "s3cret" not in text + caplog.text + capfd.readouterr().err


@pytest.mark.parametrize(
    ("content", "mode", "message"),
    [
        (None, 0, "No such file or directory"),
        (b"#!/bin/sh\n", 0o600, "Permission denied"),
        (b"#!/no/such/interpreter\n", 0o700, "No such file or directory"),
        (b"\0\1\2", 0o700, "Exec format error"),
    ],
)
async def test_a_program_that_cannot_be_run_is_named(
    shelf: Shelf, content: bytes | None, mode: int, message: str
) -> None:
    path = shelf.folder / "docker-credential-test"
    if content is not None:
        path.write_bytes(content)
        path.chmod(mode)
    with pytest.raises(Unobtainable, match=re.escape(f"{path} cannot be run: {message}")):
        await shelf.programs(str(path)).obtain(Identity(str(path), "registry.test"))


@pytest.mark.parametrize(
    "script",
    [
        "sleep 60",
        "trap '' TERM HUP INT; while :; do sleep 1; done",
        "sleep 60 & echo $! >> pids; wait",
        "sleep 60 & echo $! >> pids; exit 0",  # it holds the output open
        "echo '{'; exec sleep 60",
    ],
)
async def test_a_program_that_hangs_is_ended_with_all_that_it_started(
    shelf: Shelf, script: str
) -> None:
    pids = shelf.folder / "pids"
    started = time.monotonic()
    with pytest.raises(Unobtainable, match=r"gave no answer for registry\.test within 0\.2 s"):
        await shelf.ask(f"echo $$ >> {pids}\n{script.replace('pids', str(pids))}", timeout=0.2)
    assert time.monotonic() - started < 10
    await wait_for(lambda: not alive(pids))


async def test_a_program_that_writes_without_end_is_ended(shelf: Shelf) -> None:
    pids = shelf.folder / "pids"
    started = time.monotonic()
    with pytest.raises(Unobtainable, match=f"wrote more than {MAX_OUTPUT} bytes"):
        await shelf.ask(f"echo $$ >> {pids}; exec yes")
    assert time.monotonic() - started < 10
    await wait_for(lambda: not alive(pids))


async def test_an_answer_of_just_the_limit_is_read(shelf: Shelf) -> None:
    answer = json.dumps({"Username": "a", "Secret": "b"})
    script = (
        f"""printf '%s' '{answer}'; yes ' ' | tr -d '\\n' | head -c {MAX_OUTPUT - len(answer)}"""
    )
    assert await shelf.ask(script) == Credential("a", "b")


async def test_a_program_that_does_not_read_is_no_trouble(shelf: Shelf) -> None:
    script = """exec 0<&-; sleep 0.05; echo '{"Username": "a", "Secret": "b"}'"""
    assert await shelf.ask(script) == Credential("a", "b")


async def test_no_child_is_left_behind(shelf: Shelf) -> None:
    for script in (GOOD, "exit 1", "exec yes"):
        path = shelf.put(script)
        identity = Identity(path, "registry.test")
        with contextlib.suppress(Unobtainable):
            await shelf.programs(path).obtain(identity)
    assert not zombies()


async def test_an_answer_is_kept_for_its_time(shelf: Shelf) -> None:
    clock, path = FakeClock(), shelf.put(GOOD)
    programs, identity = shelf.programs(path, held=60.0, clock=clock), Identity(path, "a.test")
    for seconds, runs in ((0, 1), (59, 1), (1, 2)):
        clock.advance(seconds)
        await programs.obtain(identity)
        assert shelf.runs(path) == runs
    await programs.obtain(Identity(path, "b.test"))
    assert shelf.runs(path) == 3


@pytest.mark.parametrize(
    "script", ["exit 1", "echo credentials not found in native keychain; exit 1"]
)
async def test_that_there_is_none_is_kept_shortly(shelf: Shelf, script: str) -> None:
    clock, path = FakeClock(), shelf.put(script)
    programs = shelf.programs(path, held=60.0, clock=clock)
    for seconds, runs in ((0.0, 1), (SHORTLY - 1, 1), (1.0, 2)):
        clock.advance(seconds)
        with pytest.raises(Unobtainable):
            await programs.obtain(Identity(path, "a.test"))
        assert shelf.runs(path) == runs


async def test_many_pods_run_a_program_once(shelf: Shelf) -> None:
    path = shelf.put(GOOD)
    programs = shelf.programs(path)
    asked = (programs.obtain(Identity(path, "a.test")) for _ in range(50))
    assert set(await asyncio.gather(*asked)) == {Credential("bot", "pw")}
    assert shelf.runs(path) == 1


async def test_only_so_many_programs_run_at_once(shelf: Shelf) -> None:
    running = shelf.folder / "running"
    running.mkdir()
    count = f"mkdir {running}/$$; ls {running} | wc -l >> {shelf.folder}/counts; sleep 0.05"
    path = shelf.put(f"{count}; rmdir {running}/$$; {GOOD}")
    programs = shelf.programs(path, at_once=2)
    hosts = [f"{number}.test" for number in range(7)]

    await asyncio.gather(*(programs.obtain(Identity(path, host)) for host in hosts))

    counts = [int(line) for line in (shelf.folder / "counts").read_text().split()]
    assert len(counts) == 7
    assert max(counts) == 2


async def test_waiting_for_a_turn_counts_as_time(shelf: Shelf) -> None:
    path = shelf.put("sleep 60")
    programs = shelf.programs(path, at_once=1, timeout=0.2)
    started = time.monotonic()
    asked = (programs.obtain(Identity(path, f"{number}.test")) for number in range(20))
    answers = await asyncio.gather(*asked, return_exceptions=True)
    assert all(isinstance(answer, Unobtainable) for answer in answers)
    assert shelf.runs(path) <= 2  # the second one may get its turn when its time is over
    assert time.monotonic() - started < 10


async def test_a_caller_that_goes_away_ends_no_program_that_others_wait_for(shelf: Shelf) -> None:
    path = shelf.put(f"sleep 0.1; {GOOD}")
    programs, identity = shelf.programs(path), Identity(path, "a.test")
    first = asyncio.create_task(programs.obtain(identity))
    second = asyncio.create_task(programs.obtain(identity))
    await wait_for(lambda: shelf.runs(path) == 1)
    first.cancel()
    assert await second == Credential("bot", "pw")


async def test_closing_ends_what_is_running(shelf: Shelf) -> None:
    pids = shelf.folder / "pids"
    path = shelf.put(f"echo $$ >> {pids}; exec sleep 60")
    programs = shelf.programs(path)
    asked = asyncio.create_task(programs.obtain(Identity(path, "a.test")))
    await wait_for(lambda: pids.exists() and pids.read_text().endswith("\n"))

    await programs.aclose()

    await wait_for(lambda: not alive(pids))
    asked.cancel()
    await asyncio.wait([asked])


@pytest.mark.parametrize("steps", range(8))
async def test_closing_ends_what_is_just_being_started(shelf: Shelf, steps: int) -> None:
    pids = shelf.folder / "pids"
    path = shelf.put(f"echo $$ >> {pids}; sleep 60 & echo $! >> {pids}; wait")
    programs = shelf.programs(path)
    asked = asyncio.create_task(programs.obtain(Identity(path, "a.test")))
    for _ in range(steps):
        await asyncio.sleep(0)
    time.sleep(0.02)  # noqa: ASYNC251 - the program goes on while the event loop does not

    async with asyncio.timeout(5):
        await programs.aclose()

    await wait_for(lambda: not alive(pids))
    assert not zombies()
    asked.cancel()
    await asyncio.wait([asked])


async def test_an_identity_is_obtained_from_its_own_provider(shelf: Shelf) -> None:
    path = shelf.put(GOOD)
    providers = Providers({path: shelf.programs(path)})
    assert await providers.obtain(Identity(path, "a.test")) == Credential("bot", "pw")
    with pytest.raises(Unobtainable, match="nobody knows how to become ecr"):
        await providers.obtain(Identity("ecr", "a.test"))


async def test_a_program_runs_only_where_a_registry_asks_who_we_are(shelf: Shelf) -> None:
    came: list[str] = []

    async def answer(request: web.Request) -> web.Response:
        came.append(request.headers.get("Authorization", ""))
        if "private" in request.path and not came[-1]:
            return web.Response(status=401, headers={"WWW-Authenticate": 'Basic realm="x"'})
        headers = {"Docker-Content-Digest": f"sha256:{'1' * 64}"}
        kind = "application/vnd.oci.image.index.v1+json"
        return web.Response(content_type=kind, headers=headers)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    address, port = runner.addresses[0][:2]
    host, path = f"{address}:{port}", shelf.put(GOOD)
    listed = RegistrySettings(host=host, http=True, credentials_over_http=True)
    keychain = OwnCredentials(registries=[host], programs={host: path}).keychain("shop")

    async with RegistryClient(registries=[listed], identities=shelf.programs(path)) as client:
        resolver = RegistryResolver(client)
        for image, runs in (("public", 0), ("private", 1)):
            ref = Reference.parse(f"{host}/{image}:1")
            await resolver.resolve(ref, keychain, namespace="shop", max_age=0, within=5)
            assert shelf.runs(path) == runs
        await resolver.aclose()
    await runner.cleanup()

    assert came == ["", "", f"Basic {base64.b64encode(b'bot:pw').decode()}"]
