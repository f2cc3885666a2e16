"""The command line as a person uses it: a child process, its output and its exit code."""

import asyncio
import base64
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import pytest
from aiohttp import web

from fakes.proxy import FakeProxy
from tagpin.app.cli.credentials import credentials
from tagpin.identity.config import DockerConfig
from tagpin.keychain import Credential
from tagpin.reference import Reference

TAGPIN = Path(sys.executable).with_name("tagpin")
DIGEST = "sha256:" + "1" * 64


def tagpin(
    *arguments: str, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    clean = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("TAGPIN_") and not name.lower().endswith("_proxy")
    }
    return subprocess.run(
        [TAGPIN, *arguments],
        capture_output=True,
        text=True,
        env=clean | dict(environment or {}),
        timeout=30,
        check=False,
    )


def test_help_names_the_commands() -> None:
    done = tagpin("--help")

    assert done.returncode == 0
    assert "resolve" in done.stdout
    assert "serve" in done.stdout


@pytest.mark.parametrize(
    ("config", "environment", "message"),
    [
        ("logLevl: info", {}, "logLevl: unknown key; the nearest known one is logLevel"),
        ("", {"KUBECONFIG": "/nowhere"}, "/nowhere is of no use"),
        ("clientNames: [a]", {}, "clientNames: of no use without clientCaFile"),
    ],
)
def test_a_wrong_configuration_stops_the_start_with_one_line(
    tmp_path: Path, config: str, environment: dict[str, str], message: str
) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(config)

    done = tagpin("serve", "--config", str(file), environment=environment)

    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("tagpin: ")
    assert message in line


def test_a_configuration_that_is_not_there_is_named(tmp_path: Path) -> None:
    done = tagpin("serve", "--config", str(tmp_path / "nowhere.yaml"))

    assert done.returncode == 1
    assert "nowhere.yaml" in done.stderr
    assert "Traceback" not in done.stderr


def test_resolve_needs_no_network_for_a_digest() -> None:
    done = tagpin("resolve", f"nginx@{DIGEST}", "-o", "json")

    assert done.returncode == 0
    assert json.loads(done.stdout) == [
        {"image": f"nginx@{DIGEST}", "digest": DIGEST, "source": "given"}
    ]


def test_resolve_names_every_bad_image_and_prints_the_others() -> None:
    images = (f"nginx@{DIGEST}", "Bad/Image", "127.0.0.1:1/app:1", "registry.test:99999/app:1")

    done = tagpin("resolve", *images)

    assert done.returncode == 1
    assert done.stdout == f"nginx@{DIGEST}\n"
    first, second, third = done.stderr.splitlines()
    assert first.startswith("tagpin: invalid image reference 'Bad/Image'")
    assert second.endswith("(unreachable)")
    assert "registry.test:99999 is no host that could be connected to" in third


@pytest.mark.parametrize("content", [None, b"\xff\xfe", b"no PEM"])
def test_resolve_reports_a_ca_file_of_no_use(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "ca.der"
    if content is not None:
        file.write_bytes(content)

    done = tagpin("resolve", f"nginx@{DIGEST}", "--ca-file", str(file))

    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("tagpin: ")


def test_resolve_reports_a_broken_docker_config(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")

    done = tagpin("resolve", "nginx", environment={"DOCKER_CONFIG": str(tmp_path)})

    assert done.returncode == 1
    assert "config.json is of no use" in done.stderr
    assert "Traceback" not in done.stderr


PROGRAM = """#!/bin/sh
read server
echo "$server" >> '{folder}/asked'
{script}
"""


class Docker:
    """A docker config and credential programs, and a registry that says who came."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.registry = ""
        self.came: list[str] = []
        """User and password of each request for a manifest; empty for nobody."""

    def configure(self, config: object) -> None:
        text = json.dumps(config).replace("REGISTRY", self.registry)
        (self.folder / "config.json").write_text(text)

    def install(self, name: str, script: str) -> None:
        program = self.folder / "bin" / f"docker-credential-{name}"
        program.parent.mkdir(exist_ok=True)
        program.write_text(PROGRAM.format(folder=self.folder, script=script))
        program.chmod(0o700)

    @property
    def asked(self) -> list[str]:
        """The servers that programs were asked for."""
        file = self.folder / "asked"
        return file.read_text().split() if file.exists() else []

    async def resolve(
        self, *images: str, path: str = "", **environment: str
    ) -> subprocess.CompletedProcess[str]:
        environment |= {
            "DOCKER_CONFIG": str(self.folder),
            "PATH": path or f"{self.folder / 'bin'}:/usr/bin:/bin",
        }
        here = [each.replace("REGISTRY", self.registry) for each in images or ("REGISTRY/app:1",)]
        options = ("--http", self.registry, "--timeout", "3")
        return await asyncio.to_thread(tagpin, "resolve", *options, *here, environment=environment)

    async def answer(self, request: web.Request) -> web.Response:
        sent = request.headers.get("Authorization", "")
        self.came.append(base64.b64decode(sent.removeprefix("Basic ")).decode())
        if not sent and "private" in request.path:
            return web.Response(status=401, headers={"WWW-Authenticate": 'Basic realm="x"'})
        kind = "application/vnd.oci.image.index.v1+json"
        return web.Response(content_type=kind, headers={"Docker-Content-Digest": DIGEST})


@pytest.fixture
async def docker(tmp_path: Path) -> AsyncIterator[Docker]:
    docker = Docker(tmp_path)
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", docker.answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    docker.registry = f"{host}:{port}"
    yield docker
    await runner.cleanup()


GOOD = """echo '{"ServerURL": "", "Username": "bot", "Secret": "s3cret"}'"""
NONE = "echo credentials not found in native keychain; exit 1"


@pytest.mark.parametrize(
    ("config", "asked", "user"),
    [
        ({"auths": {"REGISTRY": {"username": "ann", "password": "pw"}}}, [], "ann:pw"),
        ({"credHelpers": {"REGISTRY": "good"}}, ["REGISTRY"], "bot:s3cret"),
        ({"auths": {"REGISTRY": {}}, "credsStore": "good"}, ["REGISTRY"], "bot:s3cret"),
        ({"credsStore": "good"}, ["REGISTRY"], "bot:s3cret"),
        ({"credsStore": "none", "credHelpers": {"REGISTRY": "good"}}, ["REGISTRY"], "bot:s3cret"),
        (
            {
                "credsStore": "good",
                "auths": {"REGISTRY": {"username": "ann", "password": "pw"}},
            },
            ["REGISTRY"],
            "bot:s3cret",
        ),
        (
            {
                "credHelpers": {"REGISTRY": "none"},
                "auths": {"REGISTRY": {"username": "ann", "password": "pw"}},
            },
            ["REGISTRY"],
            "ann:pw",
        ),
        ({"credHelpers": {"other.test": "good"}}, [], None),
    ],
)
async def test_resolve_uses_the_credentials_that_docker_would(
    docker: Docker, config: object, asked: list[str], user: str | None
) -> None:
    docker.install("good", GOOD)
    docker.install("none", NONE)
    docker.configure(config)

    done = await docker.resolve("REGISTRY/private/app:1", "REGISTRY/private/app:2")

    assert docker.asked == [docker.registry for _ in asked]
    assert done.returncode == (1 if user is None else 0)
    assert {each for each in docker.came if each} == ({user} if user else set())
    if user:
        assert done.stderr == ""


async def test_resolve_goes_on_as_nobody_where_a_program_has_nothing(docker: Docker) -> None:
    docker.install("none", NONE)
    docker.configure({"credsStore": "none"})

    done = await docker.resolve()

    assert (done.returncode, done.stderr) == (0, "")
    assert set(docker.came) == {""}
    assert docker.asked == [docker.registry]


@pytest.mark.parametrize(
    ("script", "message"),
    [
        (None, "docker-credential-x is not on PATH: install it, or take it out of docker's config"),
        ("echo s3cret; echo s3cret >&2; exit 1", "bin/docker-credential-x failed with exit code 1"),
        ("echo s3cret", "bin/docker-credential-x wrote no JSON"),
    ],
)
async def test_resolve_says_what_is_wrong_with_a_program_and_goes_on(
    docker: Docker, script: str | None, message: str
) -> None:
    if script is not None:
        docker.install("x", script)
    docker.configure({"credHelpers": {"REGISTRY": "x"}})

    done = await docker.resolve("REGISTRY/app:1", "REGISTRY/private/app:1")

    assert done.returncode == 1
    assert done.stdout.endswith(f"/app:1@{DIGEST}\n")
    first, second = done.stderr.splitlines()
    assert message in first
    assert "private/app:1" in second
    assert "s3cret" not in done.stdout + done.stderr


async def test_resolve_runs_no_program_from_the_current_folder(docker: Docker) -> None:
    docker.install("x", GOOD)
    docker.configure({"credsStore": "x"})
    up = "../" * len(Path.cwd().parts)

    done = await docker.resolve(path=f"{up}{docker.folder}/bin:/usr/bin")

    assert "docker-credential-x is not on PATH" in done.stderr
    assert docker.asked == []


async def test_resolve_goes_through_the_proxy_that_the_environment_names(docker: Docker) -> None:
    address, _, port = docker.registry.rpartition(":")
    docker.registry = f"registry.hidden.test:{port}"
    async with FakeProxy({"registry.hidden.test": address}, login="ann:pw") as proxy:
        known = {"HTTP_PROXY": proxy.url.replace("//", "//ann:pw@")}

        through = await docker.resolve(**known)
        past = await docker.resolve(**known, NO_PROXY=".hidden.test")

    assert through.stdout == f"{docker.registry}/app:1@{DIGEST}\n"
    assert [each.method for each in proxy.requests] == ["HEAD"]
    assert "(unreachable)" in past.stderr


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        (["--http", "*.a.test"], {}, "--http *.a.test: not host[:port], in full"),
        (["--http", "http://a.test"], {}, "--http http://a.test: not host[:port], in full"),
        (["--timeout", "0"], {}, "Invalid value for '--timeout'"),
        (
            [],
            {"HTTPS_PROXY": "socks5://u:s3cret@p:1"},
            "tagpin: HTTPS_PROXY: the proxy 'p:1' is no",
        ),
    ],
)
def test_resolve_names_the_option_or_variable_that_is_wrong(
    arguments: list[str], environment: dict[str, str], message: str
) -> None:
    done = tagpin("resolve", "a.test/app:1", *arguments, environment=environment)

    assert done.returncode in (1, 2)
    assert message in done.stderr
    assert "s3cret" not in done.stderr
    assert "Traceback" not in done.stderr


async def test_programs_know_docker_hub_by_another_name_and_are_asked_for_no_digests(
    docker: Docker,
) -> None:
    docker.install("x", GOOD)
    config = DockerConfig(helpers={"https://index.docker.io/v1/": "x"}, store="x")
    texts = ("nginx", "acme/app:1", f"other.test/app@{DIGEST}")
    refs = [Reference.parse(text) for text in texts]

    keychain = await credentials(config, refs, {"PATH": f"{docker.folder / 'bin'}"}, timeout=3)

    assert docker.asked == ["https://index.docker.io/v1/"]
    candidates = [keychain.candidates(ref) for ref in refs]
    assert candidates == [(Credential("bot", "s3cret"),)] * 2 + [()]


def test_resolve_names_the_flaws_of_a_docker_config(tmp_path: Path) -> None:
    flawed = {"auths": {"r.test": {"auth": "s3cret!"}}, "credHelpers": {"a.test": "../s3cret"}}
    (tmp_path / "config.json").write_text(json.dumps(flawed))

    done = tagpin("resolve", f"nginx@{DIGEST}", environment={"DOCKER_CONFIG": str(tmp_path)})

    assert done.returncode == 0
    assert done.stderr.splitlines() == [
        f"tagpin: {tmp_path}/config.json: 'r.test': auth is not base64 of text",
        f"tagpin: {tmp_path}/config.json: credHelpers: 'a.test': no name of a credential program",
    ]
