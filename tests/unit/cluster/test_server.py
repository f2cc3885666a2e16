"""The webhook server over real TLS, in front of kopf's real admission function."""

import asyncio
import base64
import io
import json
import logging
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from typing import Any

import aiohttp
import jsonpatch
import kopf
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kopf._cogs.structs.ephemera import AnyMemo
from kopf._cogs.structs.references import Insights
from kopf._core.engines.admission import serve_admission_request

from fakes.ledger import FakeLedger
from tagpin.app.serve import PODS, NoMemories
from tagpin.certificates import issue_ca, issue_serving
from tagpin.cluster import admission
from tagpin.cluster.context import LiveContext
from tagpin.cluster.server import MAX_BODY, WebhookServer
from tagpin.errors import Reason, Unresolvable
from tagpin.keychain import Keychain
from tagpin.pinning import Access, Pinner, Resolution
from tagpin.pins import Source
from tagpin.policy import Rules
from tagpin.reference import Digest, Reference
from tagpin.verdict import Admission, Verdict

DIGEST = Digest.parse("sha256:" + "1" * 64)
WHEN = datetime(2026, 11, 24, 9, 0, tzinfo=UTC)
NAMES = ["127.0.0.1"]


class OneDigest:
    """A Resolver that knows one digest, and no tag called `missing` or `broken`."""

    async def resolve(
        self, ref: Reference, keychain: Keychain, *, namespace: str, max_age: float, within: float
    ) -> Resolution:
        match ref.tag:
            case "missing":
                raise Unresolvable(Reason.NOT_FOUND, f"{ref} does not exist")
            case "broken":
                raise ZeroDivisionError("a fault of ours")
            case "slow":
                await asyncio.sleep(within)
                raise Unresolvable(Reason.TIMEOUT, f"{ref.domain} did not answer in time")
        return Resolution(DIGEST, Source.REGISTRY, WHEN)

    def last_known(self, ref: Reference, keychain: Keychain) -> Resolution | None:
        return None


class NoSecrets:
    """A reader of pull secrets for pods that have none."""

    async def read(self, *_: object) -> Access:
        return Access(Keychain())


class Certificate:
    """A certificate that is there already."""

    def __init__(self) -> None:
        now = datetime.now(UTC)
        ca = issue_ca(now)
        live = LiveContext()
        live.load(issue_serving(ca, NAMES, now))
        self._live = live
        self.ready = asyncio.Event()
        self.ready.set()
        self.trust = ssl.create_default_context(cadata=ca.certificate_pem.decode())

    @property
    def context(self) -> ssl.SSLContext:
        return self._live.current


class Webhook:
    """A running server, and a client that trusts it."""

    def __init__(
        self, server: WebhookServer, session: aiohttp.ClientSession, certificate: Certificate
    ) -> None:
        self.server = server
        self.session = session
        self.certificate = certificate
        self.refused: list[int] = []
        self.decisions: list[tuple[Admission, Verdict]] = []
        self.port = 0

    async def post(
        self, path: str, body: bytes | dict[str, Any], **options: Any
    ) -> tuple[int, str, aiohttp.ClientResponse]:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        options = {"headers": {"Content-Type": "application/json"}, "method": "POST"} | options
        url = f"https://127.0.0.1:{self.port}{path}"
        async with self.session.request(
            url=url, data=io.BytesIO(data), ssl=self.certificate.trust, **options
        ) as response:
            return response.status, await response.text(), response

    async def review(self, path: str, **fields: Any) -> dict[str, Any]:
        status, text, _ = await self.post(path, review(**fields))
        assert status == 200, text
        answer: dict[str, Any] = json.loads(text)
        return answer["response"]  # type: ignore[no-any-return]


@asynccontextmanager
async def running(free_port: int) -> AsyncIterator[Webhook]:
    certificate = Certificate()
    async with aiohttp.ClientSession() as session:
        refused: list[int] = []
        server = WebhookServer(
            certificate,
            paths=admission.PATHS,
            address="127.0.0.1",
            port=free_port,
            refused=refused.append,
        )
        webhook = Webhook(server, session, certificate)
        webhook.refused = refused
        webhook.port = free_port
        handlers = kopf.OperatorRegistry()
        pinner = Pinner(
            OneDigest(),
            NoSecrets(),
            FakeLedger(),
            rules=Rules(),
            kinds={},
            now=lambda: datetime.now(UTC),
            budget=5,
        )
        observe = [lambda one, two, _seconds: webhook.decisions.append((one, two))]
        admission.register(handlers, pinner, observe)
        insights = Insights()
        insights.webhook_resources.add(PODS)
        dispatch = partial(
            serve_admission_request,
            settings=kopf.OperatorSettings(),
            memories=NoMemories(),
            memobase=AnyMemo(kopf.Memo()),
            registry=handlers,
            insights=insights,
            indices={},
        )
        serving = asyncio.create_task(_serve(server, dispatch))
        while not server.is_listening:
            await asyncio.sleep(0.01)
            assert not serving.done(), serving
        yield webhook
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)


async def _serve(server: WebhookServer, dispatch: Any) -> None:
    async for _ in server(dispatch):
        pass


@pytest.fixture
async def webhook(unused_tcp_port: int) -> AsyncIterator[Webhook]:
    async with running(unused_tcp_port) as running_webhook:
        yield running_webhook


def pod(*images: str, **metadata: Any) -> dict[str, Any]:
    containers = [{"name": f"c{i}", "image": image} for i, image in enumerate(images)]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "web", **metadata},
        "spec": {"containers": containers},
    }


def review(**fields: Any) -> dict[str, Any]:
    request = {
        "uid": "705ab4f5-6393-11e8-b7cc-42010a800002",
        "kind": {"group": "", "version": "v1", "kind": "Pod"},
        "resource": {"group": "", "version": "v1", "resource": "pods"},
        "namespace": "shop",
        "operation": "CREATE",
        "userInfo": {"username": "ann", "groups": ["system:authenticated"]},
        "object": pod("nginx:1"),
        "oldObject": None,
        "dryRun": False,
        "options": {"apiVersion": "meta.k8s.io/v1", "kind": "CreateOptions"},
    } | fields
    return {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request}


def patch(response: dict[str, Any]) -> Any:
    assert response["patchType"] == "JSONPatch"
    return json.loads(base64.b64decode(response["patch"]))


async def test_a_pod_is_answered_with_a_patch_and_an_audit_annotation(webhook: Webhook) -> None:
    response = await webhook.review("/pin")

    assert response["uid"] == "705ab4f5-6393-11e8-b7cc-42010a800002"
    assert response["allowed"] is True
    image, annotations = patch(response)
    assert image == {
        "op": "replace",
        "path": "/spec/containers/0/image",
        "value": f"nginx:1@{DIGEST}",
    }
    assert annotations["path"] == "/metadata/annotations"
    assert response["auditAnnotations"]["result"] == "pinned"
    assert str(DIGEST) in response["auditAnnotations"]["pins"]


async def test_the_path_is_the_mode(webhook: Webhook) -> None:
    for path in ("/audit", "/pin", "/enforce"):
        await webhook.review(path)

    assert [one.mode.value for one, _ in webhook.decisions] == ["audit", "pin", "enforce"]


async def test_a_refusal_carries_its_reason_and_no_patch(webhook: Webhook) -> None:
    response = await webhook.review("/enforce", object=pod("nginx:1", "nginx:missing"))

    assert response["allowed"] is False
    assert response["status"]["code"] == 403
    assert (
        'container "c1": nginx:missing does not exist (not_found)' in response["status"]["message"]
    )
    assert "patch" not in response


async def test_warnings_reach_the_caller(webhook: Webhook) -> None:
    response = await webhook.review("/pin", object=pod("nginx:missing"))

    assert response["allowed"] is True
    assert any("nginx:missing does not exist" in each for each in response["warnings"])


@pytest.mark.parametrize(
    ("path", "allowed"), [("/audit", True), ("/pin", True), ("/enforce", False)]
)
async def test_a_fault_of_ours_is_decided_by_the_mode(
    webhook: Webhook, caplog: pytest.LogCaptureFixture, path: str, allowed: bool
) -> None:
    response = await webhook.review(path, object=pod("nginx:broken"))

    assert response["allowed"] is allowed
    assert "its log says why" in json.dumps(response)
    assert "a decision failed; please report this" in caplog.text


async def test_an_ephemeral_container_reaches_the_handler(webhook: Webhook) -> None:
    debugged = pod("nginx@" + str(DIGEST))
    debugged["spec"]["ephemeralContainers"] = [{"name": "debug", "image": "busybox"}]

    response = await webhook.review(
        "/pin",
        operation="UPDATE",
        subResource="ephemeralcontainers",
        object=debugged,
        oldObject=pod("nginx@" + str(DIGEST)),
    )

    (image,) = patch(response)
    assert image["path"] == "/spec/ephemeralContainers/0/image"


async def test_dry_run_and_the_requesters_groups_are_passed_on(webhook: Webhook) -> None:
    await webhook.review("/pin", dryRun=True)

    ((admission_, _),) = webhook.decisions
    assert admission_.dry_run is True
    assert admission_.groups == ("system:authenticated",)
    assert admission_.namespace == "shop"


async def test_the_answer_comes_before_the_time_out_that_the_caller_names(
    webhook: Webhook,
) -> None:
    loop = asyncio.get_running_loop()
    started = loop.time()

    status, text, _ = await webhook.post("/pin?timeout=1s", review(object=pod("nginx:slow")))

    assert status == 200
    assert "in time (timeout)" in text
    assert loop.time() - started < 1


JSON = {"Content-Type": "application/json"}
NO_REVIEWS: dict[str, tuple[str, dict[str, Any], bytes | dict[str, Any], int]] = {
    "no JSON": ("/pin", {}, b"{", 400),
    "an empty body": ("/pin", {}, b"", 400),
    "bytes that are no UTF-8": ("/pin", {}, b'{"kind": "\xff"}', 400),
    "JSON that is no object": ("/pin", {}, b"[]", 400),
    "no request": (
        "/pin",
        {},
        {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview"},
        400,
    ),
    "another kind": ("/pin", {}, review() | {"kind": "ConversionReview"}, 400),
    "another version": ("/pin", {}, review() | {"apiVersion": "admission.k8s.io/v1beta1"}, 400),
    "another resource": (
        "/pin",
        {},
        review(resource={"group": "apps", "version": "v1", "resource": "deployments"}),
        400,
    ),
    "a deletion": ("/pin", {}, review(operation="DELETE"), 400),
    "a null object": ("/pin", {}, review(object=None), 400),
    "a pod without metadata": ("/pin", {}, review(object={"spec": {}}), 400),
    "an update without the old pod": ("/pin", {}, review(operation="UPDATE"), 400),
    "nobody's request": ("/pin", {}, review(userInfo=None), 400),
    "a number for a uid": ("/pin", {}, review(uid=7), 400),
    "too much": ("/pin", {}, b" " * (MAX_BODY + 1), 413),
    "an unknown path": ("/pins", {}, review(), 404),
    "the root": ("/", {}, review(), 404),
    "a path below a known one": ("/pin/x", {}, review(), 404),
    "another method": ("/pin", {"method": "PUT"}, review(), 405),
    "another content type": ("/pin", {"headers": {"Content-Type": "text/plain"}}, review(), 415),
}


@pytest.mark.parametrize("what", NO_REVIEWS)
async def test_what_is_no_review_is_refused_and_logged(
    webhook: Webhook, caplog: pytest.LogCaptureFixture, what: str
) -> None:
    path, options, body, expected = NO_REVIEWS[what]

    with caplog.at_level(logging.WARNING, logger="tagpin.cluster.server"):
        status, text, _ = await webhook.post(path, body, **options)

    assert status == expected, text
    assert '"allowed"' not in text
    assert webhook.refused == [expected]
    assert [record.message for record in caplog.records] != []
    assert (await webhook.review("/pin"))["allowed"] is True


async def test_a_large_pod_is_no_problem(webhook: Webhook) -> None:
    large = pod("nginx:1", annotations={"note": "x" * 1_400_000})

    response = await webhook.review("/pin", object=large)

    assert len(patch(response)) == 2


async def test_a_pod_of_odd_nesting_costs_nothing(webhook: Webhook) -> None:
    nested = b"[" * 1000 + b"]" * 1000
    body = json.dumps(review()).encode().replace(b'"web"', nested)
    wide = json.dumps(review()).encode().replace(b'"web"', b"[" + b"[]," * 2_000_000 + b"[]]")
    started = asyncio.get_running_loop().time()

    answers = [(await webhook.post("/pin", each))[0] for each in (body, wide)]

    assert answers == [200, 200]
    assert asyncio.get_running_loop().time() - started < 10  # kopf alone would take minutes


async def test_large_reviews_are_taken_in_a_few_at_a_time(webhook: Webhook) -> None:
    slow = pod("nginx:slow", annotations={"note": "x" * 1_400_000})
    posts = [
        asyncio.create_task(webhook.post(f"/pin?timeout={timeout}s", review(object=slow)))
        for timeout in (2, 2, 6)
    ]
    await asyncio.sleep(0.5)

    assert (await webhook.review("/pin"))["allowed"] is True
    assert not any(post.done() for post in posts)
    assert webhook.server._large.locked()

    assert [status for status, _, _ in await asyncio.gather(*posts)] == [200] * 3
    assert len(webhook.decisions) == 4


async def test_a_draining_replica_answers_and_asks_to_come_back_elsewhere(
    webhook: Webhook,
) -> None:
    webhook.server.drain()

    status, text, response = await webhook.post("/pin", review())

    assert status == 200
    assert json.loads(text)["response"]["allowed"] is True
    assert response.headers["Connection"] == "close"


async def test_a_body_that_never_ends_does_not_hold_up_others(webhook: Webhook) -> None:
    async def endless() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.sleep(60)

    url = f"https://127.0.0.1:{webhook.port}/pin"
    hanging = asyncio.create_task(
        webhook.session.post(url, data=endless(), ssl=webhook.certificate.trust, headers=JSON)
    )
    await asyncio.sleep(0)

    assert (await webhook.review("/pin"))["allowed"] is True

    hanging.cancel()
    await asyncio.gather(hanging, return_exceptions=True)


TEXT = st.text(max_size=20)
VALUE = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
CONTAINER = st.fixed_dictionaries({}, optional={"name": VALUE, "image": VALUE | st.just("a:1")})
SPEC = st.fixed_dictionaries(
    {},
    optional={
        "containers": VALUE | st.lists(CONTAINER, max_size=3),
        "initContainers": VALUE | st.lists(CONTAINER, max_size=2),
        "volumes": VALUE | st.lists(st.fixed_dictionaries({"image": VALUE}), max_size=2),
        "imagePullSecrets": VALUE,
        "serviceAccountName": VALUE,
    },
)
METADATA = st.fixed_dictionaries(
    {},
    optional={
        "name": VALUE,
        "labels": VALUE,
        "annotations": VALUE | st.dictionaries(st.just("tagpin.dev/pins"), VALUE),
        "ownerReferences": VALUE,
        "deletionTimestamp": VALUE,
    },
)
POD = st.fixed_dictionaries({"metadata": METADATA}, optional={"spec": VALUE | SPEC})


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(new=POD, old=POD, path=st.sampled_from(["/audit", "/pin", "/enforce"]))
async def test_a_pod_that_the_api_server_would_reject_is_answered_all_the_same(
    webhook: Webhook, new: Any, old: Any, path: str
) -> None:
    for fields in ({"object": new}, {"operation": "UPDATE", "object": new, "oldObject": old}):
        response = await webhook.review(path, **fields)

        assert "tagpin failed" not in json.dumps(response)
        if "patch" in response:
            jsonpatch.apply_patch(new, patch(response))
