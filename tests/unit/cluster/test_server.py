"""The webhook server over real TLS, in front of kopf's real admission function."""

import asyncio
import base64
import gc
import gzip
import io
import json
import logging
import re
import ssl
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
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

from cluster.authority import Authority
from fakes.clock import FakeClock
from fakes.ledger import FakeLedger
from tagpin.app.serve import PODS, NoMemories
from tagpin.certificates import issue_ca, issue_serving
from tagpin.cluster.admission import PATHS, Observer, Reviewer
from tagpin.cluster.clients import RECHECK, Clients
from tagpin.cluster.context import LiveContext
from tagpin.cluster.listener import USUAL, Caller, Limits, Rejection
from tagpin.cluster.server import MAX_BODY, MAX_OF_ONE, TIMEOUT, WebhookServer, _timeout
from tagpin.errors import Reason, Unresolvable
from tagpin.keychain import Keychain
from tagpin.pinning import Access, Pinner, Resolution
from tagpin.pins import Source
from tagpin.policy import Rules
from tagpin.reference import Digest, Reference
from tagpin.revision import CONTROLLER_MANAGER, kinds
from tagpin.verdict import Admission, Late, Verdict

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

    def __init__(self, clients: Clients | None = None) -> None:
        now = datetime.now(UTC)
        ca = issue_ca(now)
        live = LiveContext(clients)
        live.load(issue_serving(ca, NAMES, now))
        self._ca = ca
        self._live = live
        self.ready = asyncio.Event()
        self.ready.set()
        self.trust = ssl.create_default_context(cadata=ca.certificate_pem.decode())

    def ca_file(self, folder: Path) -> Path:
        file = folder / "serving-ca.crt"
        file.write_bytes(self._ca.certificate_pem)
        return file

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
        self.rejected: list[Rejection] = []
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
async def running(
    free_port: int,
    *,
    clients: Clients | None = None,
    pinner: Pinner | None = None,
    per_namespace: int = 32,
    limits: Limits = USUAL,
    paths: Sequence[str] = PATHS,
    knows: bool = True,
    dispatch: Any = None,
    observers: Sequence[Observer] = (),
) -> AsyncIterator[Webhook]:
    certificate = Certificate(clients)
    async with aiohttp.ClientSession() as session:
        refused: list[int] = []
        rejected: list[Rejection] = []
        pinner = pinner or Pinner(
            OneDigest(),
            NoSecrets(),
            FakeLedger(),
            rules=Rules(),
            kinds={},
            now=lambda: datetime.now(UTC),
            budget=5,
            per_namespace=per_namespace,
        )
        decisions: list[tuple[Admission, Verdict]] = []

        def observe(one: Admission, two: Verdict, _seconds: float) -> None:
            decisions.append((one, two))

        reviewer = Reviewer(pinner, [*observers, observe])
        server = WebhookServer(
            certificate,
            paths=paths,
            known=reviewer.known if knows else lambda *_: None,
            address="127.0.0.1",
            port=free_port,
            clients=clients,
            refused=refused.append,
            rejected=rejected.append,
            limits=limits,
        )
        webhook = Webhook(server, session, certificate)
        webhook.rejected = rejected
        webhook.refused = refused
        webhook.port = free_port
        webhook.decisions = decisions
        handlers = kopf.OperatorRegistry()
        reviewer.register(handlers)
        insights = Insights()
        insights.webhook_resources.add(PODS)
        dispatch = dispatch or partial(
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
        try:
            yield webhook
        finally:
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


async def test_what_no_handler_has_looked_at_is_not_let_in(unused_tcp_port: int) -> None:
    async with running(unused_tcp_port, paths=["pin", "sign"], knows=False) as webhook:
        status, text, _ = await webhook.post("/sign", review())

    assert (status, text) == (400, "nobody has decided\n")


OF_A_REVISION = pod(
    "nginx:1",
    labels={"pod-template-hash": "5d4f"},
    ownerReferences=[
        {
            "apiVersion": "apps/v1",
            "kind": "ReplicaSet",
            "name": "web-5d4f",
            "uid": "uid-of-web-5d4f",
            "controller": True,
        }
    ],
)
KNOWN: dict[str, dict[str, Any]] = {
    "recorded": {"object": OF_A_REVISION, "userInfo": {"username": CONTROLLER_MANAGER[0]}},
    "digests": {"object": pod(f"nginx:1@{DIGEST}", f"redis@{DIGEST}")},
    "dry run": {"object": pod(f"nginx:1@{DIGEST}"), "dryRun": True},
    "no reference": {"object": pod("Nginx", f"redis@{DIGEST}")},
    "no container": {"object": {"metadata": {}}},
    "going away": {"object": pod("nginx:1", deletionTimestamp="2026-11-24T09:00:00Z")},
    "exempt": {"object": pod("nginx:1"), "namespace": "kube-system"},
    "update": {
        "object": pod(f"redis@{DIGEST}", labels={"a": "b"}),
        "operation": "UPDATE",
        "oldObject": pod(f"nginx@{DIGEST}"),
    },
}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", KNOWN)
async def test_what_is_known_is_answered_without_kopf_as_by_way_of_it(
    unused_tcp_port_factory: Callable[[], int], path: str, name: str
) -> None:
    asked, pinner = review(**KNOWN[name]), remembering()
    async with running(unused_tcp_port_factory(), pinner=pinner, knows=False) as webhook:
        await webhook.post("/pin", asked)  # there is a record from then on
        by_kopf = await webhook.post(f"/{path}", asked)
        decided = webhook.decisions[-1]

    async with running(unused_tcp_port_factory(), pinner=pinner, dispatch=no_kopf) as webhook:
        at_once = await webhook.post(f"/{path}", asked)

    assert at_once[:2] == by_kopf[:2]
    assert webhook.decisions == [decided]


async def test_a_pod_of_a_recorded_revision_gets_what_is_recorded(unused_tcp_port: int) -> None:
    asked = KNOWN["recorded"]
    async with running(unused_tcp_port, pinner=remembering()) as webhook:
        first = await webhook.review("/pin", **asked)
        second = await webhook.review("/pin", **asked)

    image, added = patch(second)
    assert image["value"] == f"nginx:1@{DIGEST}"
    assert json.loads(added["value"]["tagpin.dev/pins"])["c0"]["source"] == "ledger"
    assert first["auditAnnotations"]["revision"] == second["auditAnnotations"]["revision"]
    assert "warnings" not in second


def remembering() -> Pinner:
    return Pinner(
        OneDigest(),
        NoSecrets(),
        FakeLedger(remembers=True),
        rules=Rules(untouched=frozenset({"kube-system"})),
        kinds=kinds(),
        now=lambda: datetime.now(UTC),
    )


async def no_kopf(*_: object, **__: object) -> Any:
    raise AssertionError("this must not get to kopf")


async def test_a_known_refusal_carries_its_reason(webhook: Webhook) -> None:
    response = await webhook.review("/enforce", object=pod("Nginx"))

    assert response["allowed"] is False
    assert response["status"]["code"] == 403
    assert "(invalid_reference)" in response["status"]["message"]


class Faulty(Pinner):
    """It has a fault in what need not be asked for."""

    def __init__(self) -> None:
        pass  # and gets no further

    def known(self, admission: Admission) -> Verdict | None:
        raise ZeroDivisionError(admission.namespace)


@pytest.mark.parametrize(
    ("path", "allowed"), [("/audit", True), ("/pin", True), ("/enforce", False)]
)
async def test_a_fault_in_what_is_known_is_decided_by_the_mode(
    unused_tcp_port: int, caplog: pytest.LogCaptureFixture, path: str, allowed: bool
) -> None:
    async with running(unused_tcp_port, pinner=Faulty()) as webhook:
        response = await webhook.review(path, object=pod(f"nginx@{DIGEST}"))

    assert response["allowed"] is allowed
    assert caplog.text.count("a decision failed; please report this") == 1
    assert len(webhook.decisions) == 1


@pytest.mark.parametrize("image", ["nginx:1", f"nginx@{DIGEST}"])
async def test_a_decision_stands_that_could_not_be_told_of(
    unused_tcp_port: int, caplog: pytest.LogCaptureFixture, image: str
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError

    async with running(unused_tcp_port, observers=[fail]) as webhook:
        response = await webhook.review("/pin", object=pod(image))

    assert response["allowed"] is True
    assert str(DIGEST) in json.dumps(response["auditAnnotations"])
    assert "a decision could not be told of" in caplog.text
    assert len(webhook.decisions) == 1


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
    "an old pod that is none": ("/pin", {}, review(oldObject="web"), 400),
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


async def test_a_packed_review_is_not_unpacked(webhook: Webhook) -> None:
    packed = gzip.compress(json.dumps(review()).encode())
    headers = JSON | {"Content-Encoding": "gzip"}

    status, text, _ = await webhook.post("/pin", packed, headers=headers)

    assert status == 400
    assert "the body is no JSON" in text


async def test_large_reviews_are_taken_in_a_few_at_a_time(webhook: Webhook) -> None:
    slow = pod("nginx:slow", annotations={"note": "x" * 1_400_000})
    posts = [
        asyncio.create_task(webhook.post(f"/pin?timeout={timeout}s", review(object=slow)))
        for timeout in (2, 2, 3)
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


# Time


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("5s", 5),
        ("500ms", 0.5),
        ("1.5s", 1.5),
        ("1m30s", 90),
        ("1h0m0s", 3600),
        ("1h", 3600),
        (".5s", 0.5),
        ("2.s", 2),
        ("250us", 0.00025),
        ("250µs", 0.00025),
        ("1ns", 1e-9),
    ],
)
def test_a_time_out_is_read_as_go_writes_it(text: str, seconds: float) -> None:
    assert _timeout(text) == pytest.approx(seconds)


NO_DURATIONS = [
    *("", "0", "0s", "-5s", "+5s", "5", "s", "5 s", "5s ", "1.5", "5S", "nan", "inf", "1e3s"),
    *("5s5", "..5s", "5s\n", "\u0665s", "9" * 400 + "h"),
]


@pytest.mark.parametrize("text", NO_DURATIONS)
def test_a_time_out_that_makes_no_sense_is_the_usual_one(text: str) -> None:
    assert _timeout(text) == TIMEOUT


@pytest.mark.parametrize("text", ["1s", "500ms", "300ms", "999999999h"])
async def test_the_answer_comes_in_time_whatever_time_there_is(webhook: Webhook, text: str) -> None:
    loop = asyncio.get_running_loop()
    image = "nginx:1" if text.endswith("h") else "nginx:slow"
    started = loop.time()

    status, answer, _ = await webhook.post(f"/pin?timeout={text}", review(object=pod(image)))

    assert status == 200
    assert image == "nginx:1" or "in time (timeout)" in answer
    assert loop.time() - started < _timeout(text)


class Endless(Pinner):
    """Takes no notice of its budget."""

    def __init__(self) -> None:
        self.was_cancelled = False

    def known(self, admission: Admission) -> Verdict | None:
        return None

    async def admit(self, admission: Admission, *, budget: float | None = None) -> Verdict:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.was_cancelled = True
            raise
        raise AssertionError("nobody sets this event")


@pytest.mark.parametrize(
    ("path", "allowed"), [("/audit", True), ("/pin", True), ("/enforce", False)]
)
async def test_a_decision_that_overruns_is_cut_and_the_mode_decides(
    unused_tcp_port: int, caplog: pytest.LogCaptureFixture, path: str, allowed: bool
) -> None:
    endless = Endless()
    async with running(unused_tcp_port, pinner=endless) as webhook:
        loop = asyncio.get_running_loop()
        started = loop.time()

        status, text, _ = await webhook.post(f"{path}?timeout=1s", review())

        assert status == 200
        assert 0.5 < loop.time() - started < 1
        response = json.loads(text)["response"]
        assert response["allowed"] is allowed
        assert "images could not be pinned in time" in text
        assert endless.was_cancelled
        ((_, verdict),) = webhook.decisions
        assert verdict.late is Late.OVERDUE
        assert verdict.notices
        # 0.75 s after the request began to arrive
        assert re.search(r"a decision was cut after 0\.[67]\d s", caplog.text)


# Crowds


async def test_one_namespaces_flood_costs_others_nothing(unused_tcp_port: int) -> None:
    async with running(unused_tcp_port, per_namespace=2) as webhook:
        flood = [
            asyncio.create_task(
                webhook.post("/enforce?timeout=2s", review(object=pod("nginx:slow")))
            )
            for _ in range(20)
        ]
        await until(lambda: webhook.server.reviews == 20)
        started = asyncio.get_running_loop().time()

        response = await webhook.review("/enforce", namespace="other")

        assert response["allowed"] is True
        assert asyncio.get_running_loop().time() - started < 1  # the flood lasts for longer
        assert not any(each.done() for each in flood)
        answers = [text for _, text, _ in await asyncio.gather(*flood)]
        crowded = "namespace shop has 2 pods under way (requestsPerNamespace), so nginx:slow had"
        assert sum(crowded in text for text in answers) == 18
        assert webhook.server.reviews == 0
        assert not webhook.server._in_hand


async def test_a_namespace_has_only_so_many_bytes_under_way(webhook: Webhook) -> None:
    heavy = pod("nginx:slow", annotations={"note": "x" * 200_000})
    number = MAX_OF_ONE // 200_000
    flood = [
        asyncio.create_task(webhook.post("/pin?timeout=2s", review(object=heavy)))
        for _ in range(number + 5)
    ]
    await until(lambda: len(webhook.refused) >= 5)

    assert (await webhook.review("/pin", namespace="other"))["allowed"] is True
    answers = await asyncio.gather(*flood)
    assert [status for status, *_ in answers].count(200) <= number
    assert any("namespace shop has too many bytes" in text for _, text, _ in answers)
    assert not webhook.server._in_hand


async def test_made_up_namespaces_are_forgotten(webhook: Webhook) -> None:
    for number in range(50):
        await webhook.review("/pin", namespace=f"made-up-{number}")

    assert len(webhook.server._in_hand) == 0


async def test_a_large_review_waits_for_others_for_as_long_as_its_caller_does(
    webhook: Webhook,
) -> None:
    slow = pod("nginx:slow", annotations={"note": "x" * 400_000})
    before = [
        asyncio.create_task(webhook.post("/pin?timeout=2s", review(object=slow))) for _ in range(2)
    ]
    await until(webhook.server._large.locked)

    status, text, _ = await webhook.post("/pin?timeout=400ms", review(object=slow))

    assert status == 503
    assert "had to wait for others for too long" in text
    for each in before:
        each.cancel()
    await asyncio.gather(*before, return_exceptions=True)


# Who may call


async def test_a_client_whose_certificate_has_another_name_is_told_so(
    unused_tcp_port: int, tmp_path: Path
) -> None:
    authority = Authority(tmp_path)
    async with running(
        unused_tcp_port, clients=Clients(authority.certificate, ["kube-apiserver"])
    ) as webhook:
        webhook.certificate.trust.load_cert_chain(*authority.issue("system:node:node-1"))

        status, text, response = await webhook.post("/pin", review())

        assert status == 403
        assert text == "the client certificate bears none of the names in clientNames\n"
        assert response.headers["Connection"] == "close"
        assert webhook.decisions == []


async def test_a_connection_from_before_the_cas_changed_is_closed_with_its_answer(
    unused_tcp_port: int, tmp_path: Path
) -> None:
    clock = FakeClock()
    authority = Authority(tmp_path)
    file = tmp_path / "clients.crt"
    _copy(authority.certificate, to=file)
    async with running(unused_tcp_port, clients=Clients(file, clock=clock)) as webhook:
        webhook.certificate.trust.load_cert_chain(*authority.issue("kube-apiserver"))
        _, _, before = await webhook.post("/pin", review())
        _copy(webhook.certificate.ca_file(tmp_path), to=file)
        clock.advance(RECHECK)

        status, _, after = await webhook.post("/pin", review())

        assert status == 200
        assert "Connection" not in before.headers
        assert after.headers["Connection"] == "close"
        with pytest.raises(aiohttp.ClientError):
            await webhook.post("/pin", review())


def _copy(file: Path, *, to: Path) -> None:
    to.write_bytes(file.read_bytes())


# Attacks on the port

BRIEF = Limits(connections=4, handshake=0.3, first_request=0.3)
HEAD = b"POST /pin HTTP/1.1\r\nHost: tagpin\r\nContent-Type: application/json\r\n"


@pytest.fixture
async def attacked(unused_tcp_port: int) -> AsyncIterator[Webhook]:
    """A webhook that loses patience soon."""
    async with running(unused_tcp_port, limits=BRIEF) as webhook:
        yield webhook


async def plain(webhook: Webhook) -> asyncio.StreamWriter:
    """A connection that has said nothing."""
    return (await asyncio.open_connection("127.0.0.1", webhook.port))[1]


async def secured(webhook: Webhook) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", webhook.port, ssl=webhook.certificate.trust)


async def is_closed(reader: asyncio.StreamReader) -> bool:
    """Whether the other side ends the connection, soon."""
    try:
        async with asyncio.timeout(5):
            while await reader.read(1000):
                pass
    except ConnectionError:
        return True
    except TimeoutError:
        return False
    return True


async def hang_up(*writers: asyncio.StreamWriter) -> None:
    for each in writers:
        each.close()
        with suppress(OSError):
            await each.wait_closed()


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not is_so():  # noqa: ASYNC110 - nothing signals what is waited for
            await asyncio.sleep(0.005)


async def test_a_handshake_that_never_begins_is_ended(attacked: Webhook) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", attacked.port)

    assert await is_closed(reader)

    assert attacked.rejected == [Rejection.SILENCE]
    await hang_up(writer)


async def test_what_is_no_handshake_is_ended(attacked: Webhook) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", attacked.port)
    writer.write(HEAD + b"\r\n")

    assert await is_closed(reader)

    await until(lambda: attacked.rejected == [Rejection.HANDSHAKE])
    await hang_up(writer)


async def test_a_connection_that_asks_nothing_is_ended(attacked: Webhook) -> None:
    reader, writer = await secured(attacked)

    assert await is_closed(reader)

    assert attacked.rejected == [Rejection.SILENCE]
    await hang_up(writer)


async def test_a_head_that_trickles_in_is_ended(attacked: Webhook) -> None:
    reader, writer = await secured(attacked)

    async def trickle() -> None:
        with suppress(ConnectionError):
            writer.write(HEAD)
            while not writer.is_closing():
                writer.write(b"X-More: 1\r\n")
                await asyncio.sleep(0.02)

    trickling = asyncio.create_task(trickle())

    assert await is_closed(reader)

    assert attacked.rejected == [Rejection.SILENCE]
    await hang_up(writer)
    await trickling


async def test_a_body_that_trickles_in_is_refused_when_there_is_no_time_left(
    attacked: Webhook,
) -> None:
    reader, writer = await secured(attacked)
    writer.write(HEAD.replace(b"/pin", b"/pin?timeout=400ms") + b"Content-Length: 1000\r\n\r\n{")

    assert b"408" in await reader.readline()

    assert attacked.refused == [408]
    assert await is_closed(reader)
    await hang_up(writer)


async def test_a_head_of_any_length_is_refused(attacked: Webhook) -> None:
    reader, writer = await secured(attacked)
    writer.write(HEAD + b"X: " + b"x" * 100_000 + b"\r\n\r\n")

    assert b"400" in await reader.readline()

    await hang_up(writer)


async def test_a_connection_that_is_kept_stays(attacked: Webhook) -> None:
    body = json.dumps(review()).encode()
    request = HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body
    reader, writer = await secured(attacked)
    for _ in range(3):
        writer.write(request)
        assert b"200" in await reader.readuntil(b"\r\n\r\n")
        await reader.readuntil(b"}}")
        await asyncio.sleep(2 * BRIEF.first_request)

    assert attacked.rejected == []
    await hang_up(writer)


async def test_connections_that_are_opened_and_closed_are_not_worth_a_word(
    attacked: Webhook, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(10):
        await hang_up(await plain(attacked))
        await hang_up((await secured(attacked))[1])
    await until(lambda: len(attacked.server._listener) == 0)

    assert attacked.rejected == []
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_who_asks_for_nothing_gives_way(unused_tcp_port: int) -> None:
    limits = Limits(connections=4, handshake=30, first_request=30)
    async with running(unused_tcp_port, limits=limits) as webhook:
        assert (await webhook.review("/pin"))["allowed"] is True  # by a connection that is kept
        idle = [await plain(webhook) for _ in range(10)]
        silent = [(await secured(webhook))[1] for _ in range(10)]

        assert (await webhook.review("/pin"))["allowed"] is True
        assert len(webhook.server._listener) <= 4
        await until(lambda: len(webhook.rejected) == 17)
        assert set(webhook.rejected) == {Rejection.CROWDED}
        # The one that was of use is still there: no new one was made for the second review.
        assert len(webhook.server._listener._known) == 1
        await hang_up(*idle, *silent)


async def test_no_request_in_hand_gives_way(unused_tcp_port: int) -> None:
    limits = Limits(connections=2, handshake=30, first_request=30)
    async with running(unused_tcp_port, limits=limits) as webhook:
        slow = [
            asyncio.create_task(webhook.post("/pin?timeout=2s", review(object=pod("nginx:slow"))))
            for _ in range(2)
        ]
        await until(lambda: webhook.server.reviews == 2)

        reader, writer = await asyncio.open_connection("127.0.0.1", webhook.port)

        assert await is_closed(reader)
        assert webhook.rejected == [Rejection.CROWDED]
        assert [status for status, *_ in await asyncio.gather(*slow)] == [200, 200]
        await hang_up(writer)


@pytest.mark.parametrize("length", [b"100", b"300000"])
async def test_a_review_that_has_not_arrived_gives_way(unused_tcp_port: int, length: bytes) -> None:
    limits = Limits(connections=4, handshake=30, first_request=30)
    async with running(unused_tcp_port, limits=limits) as webhook:
        trickling = [(await secured(webhook))[1] for _ in range(4)]
        for writer in trickling:
            writer.write(HEAD + b"Content-Length: " + length + b"\r\n\r\n{")
        await until(lambda: all(each.has_asked for each in webhook.server._listener._strangers))

        assert (await webhook.review("/pin"))["allowed"] is True

        assert webhook.rejected == [Rejection.CROWDED]
        await hang_up(*trickling)


async def test_who_hangs_up_in_the_middle_of_a_review_is_no_fault_of_ours(
    webhook: Webhook, caplog: pytest.LogCaptureFixture
) -> None:
    _, writer = await secured(webhook)
    writer.write(HEAD + b"Content-Length: 100\r\n\r\n{")
    await until(lambda: any(each.has_asked for each in webhook.server._listener._strangers))
    await hang_up(writer)

    await until(lambda: webhook.refused == [400])
    assert [record.levelname for record in caplog.records] == ["WARNING"]


async def test_a_caller_that_hangs_up_leaves_nothing_behind(unused_tcp_port: int) -> None:
    async with running(unused_tcp_port, per_namespace=1) as webhook:
        body = json.dumps(review(object=pod("nginx:slow"))).encode()
        for _ in range(3):
            _, writer = await secured(webhook)
            writer.write(HEAD.replace(b"/pin", b"/pin?timeout=500ms"))
            writer.write(b"Content-Length: %d\r\n\r\n" % len(body) + body)
            await until(lambda: webhook.server.reviews > 0)
            await hang_up(writer)

        await until(lambda: webhook.server.reviews == 0)
        assert len(webhook.server._listener) == 0


async def test_the_same_refusal_of_the_same_peer_is_logged_once(
    webhook: Webhook, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(5):
        await webhook.post("/nowhere", review())
    await webhook.post("/pin", b"{")

    assert [vars(record)["status"] for record in caplog.records] == [404, 400]
    assert webhook.refused == [404] * 5 + [400]


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


async def test_a_connection_that_has_gone_leaves_nothing_behind(webhook: Webhook) -> None:
    """With its buffers, it would be in memory for as long as its first request was expected."""

    def callers() -> int:
        gc.collect()
        return sum(isinstance(each, Caller) for each in gc.get_objects())

    before = callers()
    for _ in range(5):
        _, writer = await asyncio.open_connection(
            "127.0.0.1", webhook.port, ssl=webhook.certificate.trust
        )
        writer.close()
        await writer.wait_closed()
    await asyncio.sleep(0.1)
    assert callers() <= before + 1  # the one that the loop looked at last
