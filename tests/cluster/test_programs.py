"""The registries and the child processes do what the other tests rely on."""

import hashlib
import http.client
import json
import os
import select
import signal
import ssl
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.authority import Authority
from cluster.programs import (
    LOOPBACK,
    CraneRegistry,
    Distribution,
    ProgramError,
    Registry,
    Request,
    Running,
    TokenAuth,
    free_ports,
)
from cluster.requirement import require_programs

INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
EMPTY_INDEX = json.dumps({"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": []}).encode()
EMPTY_INDEX_DIGEST = f"sha256:{hashlib.sha256(EMPTY_INDEX).hexdigest()}"


def ask(
    registry: Registry,
    method: str,
    path: str,
    *,
    body: bytes | None = None,
    headers: dict[str, str] | None = None,
    trusting: Path | None = None,
) -> http.client.HTTPResponse:
    if trusting:
        context = ssl.create_default_context(cafile=trusting)
        connection: http.client.HTTPConnection = http.client.HTTPSConnection(
            registry.host, context=context, timeout=10
        )
    else:
        connection = http.client.HTTPConnection(registry.host, timeout=10)
    try:
        connection.request(method, path, body, headers or {})
        response = connection.getresponse()
        response.read()
        return response
    finally:
        connection.close()


def push(registry: Registry) -> None:
    response = ask(
        registry,
        "PUT",
        "/v2/app/manifests/v1",
        body=EMPTY_INDEX,
        headers={"Content-Type": INDEX_TYPE},
    )
    assert response.status == 201


def digest(registry: Registry) -> str | None:
    response = ask(registry, "HEAD", "/v2/app/manifests/v1", headers={"Accept": INDEX_TYPE})
    return response.headers["Docker-Content-Digest"]


def test_distribution_stores_and_counts(distribution: Distribution) -> None:
    push(distribution)
    distribution.forget_requests()
    assert digest(distribution) == EMPTY_INDEX_DIGEST
    assert distribution.requests() == [Request("HEAD", "/v2/app/manifests/v1", 200)]


def test_distribution_comes_back_with_its_address_and_content(distribution: Distribution) -> None:
    push(distribution)
    url = distribution.url
    distribution.stop()
    with pytest.raises(ConnectionRefusedError):
        digest(distribution)
    distribution.start()
    assert distribution.url == url
    assert digest(distribution) == EMPTY_INDEX_DIGEST


def test_crane_serves_a_second_implementation(crane_registry: CraneRegistry) -> None:
    push(crane_registry)
    assert digest(crane_registry) == EMPTY_INDEX_DIGEST


def test_distribution_asks_for_a_password() -> None:
    require_programs("registry")
    with Distribution(users={"alice": "pw"}) as registry:
        refused = ask(registry, "GET", "/v2/")
        assert (refused.status, refused.headers["WWW-Authenticate"]) == (
            401,
            'Basic realm="registry"',
        )
        admitted = ask(registry, "GET", "/v2/", headers={"Authorization": "Basic YWxpY2U6cHc="})
        assert admitted.status == 200


def test_distribution_asks_for_a_token_over_tls(tmp_path: Path) -> None:
    require_programs("registry")
    authority = Authority(tmp_path)
    token = TokenAuth(
        realm="https://auth.test/token",
        service="registry.test",
        issuer="auth.test",
        certificates=authority.certificate,
    )
    certificate = authority.issue("registry", hosts=[LOOPBACK])
    with Distribution(certificate=certificate, token=token) as registry:
        refused = ask(registry, "GET", "/v2/", trusting=authority.certificate)
    assert refused.headers["WWW-Authenticate"] == (
        'Bearer realm="https://auth.test/token",service="registry.test"'
    )


def test_a_program_that_ends_is_quoted(tmp_path: Path) -> None:
    running = Running("sh", ["sh", "-c", "echo no such flag >&2; exit 3"], log=tmp_path / "log")
    with pytest.raises(ProgramError, match=r"(?s)sh ended with 3:.*no such flag"):
        running.wait_until(lambda: False, seconds=10)


def test_a_program_that_ignores_the_polite_signal_ends_too(tmp_path: Path) -> None:
    log = tmp_path / "log"
    running = Running(
        "sh", ["sh", "-c", "trap '' TERM; echo up; while :; do sleep 0.1; done"], log=log
    )
    running.wait_until(lambda: "up" in log.read_text(), seconds=10)
    running.stop(patience=0.1)
    with pytest.raises(ProgramError, match="ended with -9"):
        running.must_run()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends children with their parent")
def test_children_die_with_their_parent(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from cluster.programs import Running;"
        "child = Running('sleep', ['sleep', '60'], log=Path(sys.argv[1]));"
        "print(child.pid, flush=True); input()"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "log")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
    )
    assert parent.stdout is not None
    child = os.pidfd_open(int(parent.stdout.readline()))
    os.kill(parent.pid, signal.SIGKILL)
    parent.communicate()
    readable, _, _ = select.select(
        [child], [], [], 10
    )  # a pidfd is readable when its process ended
    os.close(child)
    assert readable


def test_free_ports_are_distinct() -> None:
    assert len(set(free_ports(20))) == 20
