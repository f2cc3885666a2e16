"""Plays a conversation: the replies of a registry, without a server or an event loop."""

import base64
import json
from collections.abc import Sequence
from typing import Any, TypeAlias, TypeVar

from yarl import URL

from tagpin.keychain import Credential
from tagpin.reference import Digest, Reference
from tagpin.registry.flow import Failure, Flow, Login, Obtain, Registry, Request, Response

T = TypeVar("T")
Step: TypeAlias = Request | Login | Obtain
Reply: TypeAlias = Response | str | Credential | Failure

APP = Reference.parse("r.example/acme/app:v1")
REGISTRY = Registry("r.example", URL("https://r.example"))
ALICE, BOB = Credential("alice", "a"), Credential("bob", "b")

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_IMAGE = "application/vnd.oci.image.manifest.v1+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_IMAGE = "application/vnd.docker.distribution.manifest.v2+json"
SCHEMA_1 = "application/vnd.docker.distribution.manifest.v1+prettyjws"

HEX = "0123456789abcdef" * 4
DIGEST = Digest("sha256", HEX)
BEARER = 'Bearer realm="https://r.example/token",service="r",scope="repository:acme/app:pull"'

IMAGE = {"schemaVersion": 2, "mediaType": OCI_IMAGE, "config": {}, "layers": []}
INDEX = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []}


def play(flow: Flow[T], *replies: Reply) -> tuple[list[Step], T]:
    """What the flow asked, and what it came to; every reply must be wanted, and no more."""
    steps: list[Step] = [next(flow)]
    for number, reply in enumerate(replies, 1):
        try:
            step = flow.throw(reply) if isinstance(reply, Failure) else flow.send(reply)
        except StopIteration as end:
            assert number == len(replies), f"{replies[number:]} are not wanted"
            return steps, end.value
        steps.append(step)
    raise AssertionError(f"the flow goes on: {steps[-1]}")


def fail(flow: Flow[Any], *replies: Reply) -> Failure:
    """How the flow failed; every reply must be wanted, and no more."""
    next(flow)
    for number, reply in enumerate(replies, 1):
        try:
            _ = flow.throw(reply) if isinstance(reply, Failure) else flow.send(reply)
        except Failure as failure:
            assert number == len(replies), f"{replies[number:]} are not wanted"
            return failure
    raise AssertionError("the flow goes on")


def response(status: int, body: bytes = b"", **headers: str | Sequence[str]) -> Response:
    """`content_type="x"` is the header content-type; several values make several headers."""
    pairs: list[tuple[str, str]] = []
    for name, value in headers.items():
        values = [value] if isinstance(value, str) else value
        pairs += [(name.replace("_", "-"), each) for each in values]
    return Response(status, tuple(pairs), body)


def found(digest: str = str(DIGEST), content_type: str = OCI_IMAGE) -> Response:
    """An answer to HEAD."""
    return response(200, docker_content_digest=digest, content_type=content_type)


def manifest(content: dict[str, Any], content_type: str = OCI_IMAGE, **headers: str) -> Response:
    """An answer to GET."""
    return response(200, json.dumps(content).encode(), content_type=content_type, **headers)


def denied(challenge: str = BEARER) -> Response:
    """An answer to whoever should log in."""
    return response(401, www_authenticate=challenge)


def errors(status: int, *codes: str) -> Response:
    """An answer with an error body (distribution-spec: Error Codes)."""
    body = {"errors": [{"code": code, "message": "m3ssage"} for code in codes]}
    return response(status, json.dumps(body).encode(), content_type="application/json")


def basic(credential: Credential) -> str:
    """The Authorization header that a credential makes."""
    pair = f"{credential.username}:{credential.password}"
    return "Basic " + base64.b64encode(pair.encode()).decode()


def authorization(step: Step) -> str | None:
    """The Authorization header of a request."""
    assert isinstance(step, Request)
    return step.headers.get("Authorization")


def methods(steps: list[Step]) -> list[str]:
    """What each step is: HEAD, GET, POST, or the name of another one, in lower case."""
    return [
        step.method if isinstance(step, Request) else type(step).__name__.lower() for step in steps
    ]


def url(step: Step) -> str:
    """Where a request goes."""
    assert isinstance(step, Request)
    return str(step.url)
