"""What whoever is on call has to go by, of a tagpin that has seen everything that can happen.

One installation serves pods of every mode and outcome, with registries that fail in every way.
Then it stops, and the API server misses it. What it exported, what the API server exported, and
what it logged is looked at by the tests.
"""

import asyncio
import base64
import http.client
import json
import os
import re
import shutil
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml
from aiohttp import web

from cluster.controlplane import ControlPlane
from cluster.installation import SYSTEM, Installation, Replica
from cluster.namespaces import (
    Namespace,
    NewNamespace,
    admission_review,
    deployment,
    eventually,
    pod,
)
from cluster.programs import LOOPBACK
from cluster.registries import PASSWORD, USER, WRONG_PASSWORD, Registries
from conftest import Figure
from fakes.faults import Fault, answering, hanging, with_header
from fakes.raw import RawRegistry
from fakes.registry import FakeRegistry
from monitoring import Series, expressions, flaws, scraped
from stages.played import LoopThread
from tagpin.app.metrics import Metrics
from tagpin.cluster.calls import told_to

pytestmark = pytest.mark.timeout(300)  # the first one waits until all pods have been served

ROOT = Path(__file__).parents[2]
MANIFESTS = ROOT / "manifests"
OPERATIONS = (ROOT / "docs" / "operations.md").read_text()
MODES = ("audit", "pin", "enforce")


def section(head: str) -> str:
    """A part of docs/operations.md."""
    _, _, after = OPERATIONS.partition(f"\n## {head}\n")
    assert after, head
    return after.partition("\n## ")[0]


FAILING: Mapping[str, Fault] = {
    "is down": answering(503),
    "has had enough": answering(429, {"Retry-After": "50"}),
    "is slow": hanging(),
    "is odd": with_header("Docker-Content-Digest", "sha256:0"),
    "is slower than it may be": hanging(),
}
ALWAYS = {
    "time",
    "level",
    "logger",
    "message",
    "mode",
    "operation",
    "namespace",
    "pod",
    "result",
    "pins",
    "milliseconds",
}
"""The fields of every decision's line."""
SOMETIMES = {"workload", "revision", "unrecorded", "dry_run", "failures", "more_pins"}


FLOOD = 200
"""Pods that come all at once, with an image of a registry that is away."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What is left of an installation that has served, and is gone."""

    tagpin: list[Series]
    api_server: list[Series]
    log: list[dict[str, Any]]
    flood: list[dict[str, Any]]
    """What was logged while the many pods came."""
    text: str
    secrets: Mapping[str, str]
    """What must be in no log, by what it is."""
    namespaces: Mapping[str, Namespace]


async def _nonsense(_method: str) -> AsyncIterator[bytes]:
    yield b"SMTP 220 welcome\r\n\r\n"


@pytest.fixture(scope="module")
def failing() -> Iterator[dict[str, str]]:
    """What is wrong with a registry → its host."""
    with LoopThread() as loop:
        hosts = {}
        made = {name: FakeRegistry() for name in FAILING}
        for name, each in made.items():
            loop.run(each.start())
            each.push_image("app", "1", b"an app")
            each.fault(FAILING[name])
            hosts[name] = each.host
        raw = RawRegistry(_nonsense, host=LOOPBACK)
        loop.run(raw.__aenter__())
        hosts["is none"] = f"{LOOPBACK}:{raw.port}"
        yield hosts
        loop.run(raw.__aexit__())
        for each in made.values():
            loop.run(each.stop())


@pytest.fixture(scope="module")
def seen(
    control_plane: ControlPlane,
    registries: Registries,
    failing: Mapping[str, str],
    new_namespace: NewNamespace,
) -> Seen:
    """Serve everything, at level debug."""
    public, private = registries.public, registries.private
    untrusted = private.host.replace(LOOPBACK, "localhost")  # a name whose CA nobody gave
    listed = [*registries.settings["registries"], {"host": untrusted}]
    listed += [{"host": host, "http": True} for host in failing.values()]
    listed[-2]["timeout"] = "300ms"  # instead of what `budget` leaves
    settings = registries.settings | {
        "registries": listed,
        "credentialPrograms": [{"host": private.host, "path": shutil.which("false")}],
        "budget": "1s",
    }
    app, secret = public.push("operations/app:1"), private.push("operations/secret:1")
    hosts = [*failing.values(), registries.lost.host, untrusted, "nowhere.invalid"]
    bad = [*(f"{host}/app:1" for host in hosts), f"{app.text}-nope"]
    namespaces = {mode: new_namespace(mode) for mode in MODES}

    def serve(namespace: Namespace) -> None:
        namespace.create_pull_secret("pull", private.host, USER, PASSWORD)
        namespace.create_pull_secret("wrong", private.host, USER, WRONG_PASSWORD)
        namespace.create(
            deployment("web", {"app": app.text}, replicas=2),
            pod("good", {"app": app.text}),
            pod("exempt", {"app": f"{public.host}/exempt/app:1"}),
            pod("secret", {"app": secret.text}, imagePullSecrets=[{"name": "pull"}]),
        )
        namespace.create(pod("dry", {"app": app.text}), flags=("--dry-run=server",))
        namespace.create(
            *(pod(f"bad-{number}", {"app": image}) for number, image in enumerate(bad)),
            pod("denied", {"app": secret.text}, imagePullSecrets=[{"name": "wrong"}]),
            check=False,
        )
        namespace.wait_for_rollout("deployment/web")
        _, owner = namespace.pods("app=web")
        claimed = pod("claimed", {"app": app.text}, labels=owner["metadata"]["labels"])
        claimed["metadata"]["ownerReferences"] = owner["metadata"]["ownerReferences"]
        namespace.create(claimed, check=False)

    with Installation(control_plane, settings=settings) as running:
        eventually(lambda: control_plane.get("/apis/tagpin.dev/v1alpha1/imagepins")[0] == 200, bool)
        with ThreadPoolExecutor(len(MODES)) as pool:
            list(pool.map(serve, namespaces.values()))
        mistaken = f"namespace/{namespaces['pin'].name}"
        control_plane.kubectl("label", "--overwrite", mistaken, "tagpin.dev/mode=pim", check=False)
        _post_nonsense(control_plane, running.replicas[0])
        before = len(running.log_lines())
        _flood(running.replicas[0], namespaces["pin"].name, f"{registries.lost.host}/app:2")
        flood = running.log_lines()[before:]
        series = eventually(
            lambda: scraped(running.get("/metrics")[1]),
            lambda found: value(found, "tagpin_events_total", result="written") > 0,
        )
        secrets = dict(_secrets(control_plane, running))
        running.stop()
        for namespace in namespaces.values():
            namespace.create(pod("missed", {"app": app.text}), check=False)
        log, text = running.log_lines(), running.log_text()
    _, exposition = control_plane.get("/metrics")
    there = scraped(exposition.decode())
    return Seen(series, there, log, flood, text, secrets, namespaces)


def _post_nonsense(control_plane: ControlPlane, replica: Replica) -> None:
    """What a stranger sends."""
    context = ssl.create_default_context(cadata=_certificates(control_plane)["ca.crt"])
    connection = http.client.HTTPSConnection(LOOPBACK, replica.port, timeout=5, context=context)
    connection.request("POST", "/pin", "{}", {"Content-Type": "application/json"})
    assert connection.getresponse().status == http.HTTPStatus.BAD_REQUEST
    connection.close()


def _flood(replica: Replica, namespace: str, image: str) -> None:
    def send(number: int) -> None:
        replica.review("/pin", admission_review(namespace, pod(f"flood-{number}", {"app": image})))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(send, range(FLOOD)))


def _certificates(control_plane: ControlPlane) -> dict[str, str]:
    _, body = control_plane.get(f"/api/v1/namespaces/{SYSTEM}/secrets/tagpin-tls")
    data = json.loads(body)["data"]
    return {name: base64.b64decode(content).decode() for name, content in data.items()}


def _secrets(control_plane: ControlPlane, running: Installation) -> Iterator[tuple[str, str]]:
    """Secret texts, and such that no neighbour in base64 changes."""
    environment = Path(f"/proc/{running.pid}/environ").read_text().split("\0")
    (kubeconfig,) = [each for each in environment if each.startswith("KUBECONFIG=")]
    config = yaml.safe_load(Path(kubeconfig.partition("=")[2]).read_text())
    yield "token", config["users"][0]["user"]["token"].rpartition(".")[2]
    for name, content in _certificates(control_plane).items():
        if name.endswith(".key"):
            yield name, content.splitlines()[1]
            yield f"{name} in base64", base64.b64encode(content.encode()).decode()[200:240]
    for password in (PASSWORD, WRONG_PASSWORD):
        yield password, password
        login = base64.b64encode(f"{USER}:{password}".encode()).decode()
        yield f"{password} as Basic", login[:-4]
        yield f"{password} as a pull secret", base64.b64encode(login[:24].encode()).decode()[:28]


def value(series: list[Series], metric: str, **labels: str) -> float:
    """The sum of a metric with these labels."""
    found = [
        each.value
        for each in series
        if each.metric == metric and labels.items() <= each.labels.items()
    ]
    return sum(found)


# Metrics


@pytest.mark.parametrize(
    ("metric", "labels"),
    [
        *(("tagpin_admissions_total", {"mode": mode}) for mode in MODES),
        *(
            ("tagpin_admissions_total", {"result": result})
            for result in ("audited", "pinned", "refused", "unpinned", "untouched")
        ),
        *(
            ("tagpin_images_unpinned_total", {"mode": "enforce", "reason": reason})
            for reason in (
                *("not_found", "unauthorized", "rate_limited", "timeout", "unreachable", "tls"),
                "bad_answer",
            )
        ),
        ("tagpin_ledger_writes_total", {"result": "created"}),
        ("tagpin_pods_unproven_total", {"mode": "pin"}),
        ("tagpin_credentials_failed_total", {"provider": "false"}),
        ("tagpin_registry_oddities_total", {"oddity": "digest_malformed"}),
        ("tagpin_refused_requests_total", {"code": "400"}),
        ("tagpin_kubernetes_requests_total", {"verb": "create", "resource": "events"}),
        ("tagpin_kubernetes_requests_total", {"verb": "get", "resource": "secrets", "code": "2xx"}),
        ("tagpin_kubernetes_requests_total", {"verb": "watch"}),
        ("tagpin_cache_uses_total", {"use": "hit"}),
        ("tagpin_registry_circuits_open", {}),
        ("tagpin_event_loop_delay_seconds_count", {}),
        ("tagpin_tasks", {}),
        ("tagpin_leader", {}),
    ],
)
def test_what_has_happened_is_counted(seen: Seen, metric: str, labels: dict[str, str]) -> None:
    assert value(seen.tagpin, metric, **labels) > 0


@pytest.fixture(scope="module")
def starved() -> list[Series]:
    """What is exported when the API server fails: here it answers badly, or not at all."""
    metrics = Metrics()
    asyncio.run(_starve(metrics))
    return scraped(metrics.exposition().decode())


async def _starve(metrics: Metrics) -> None:
    async def answer(request: web.Request) -> web.Response:
        if "slow" in request.path:
            await asyncio.sleep(60)
        return web.Response(status=int(request.path.rpartition("/")[2]))

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, LOOPBACK, 0).start()
    url = "http://{}:{}/api/v1/namespaces/shop/secrets".format(*runner.addresses[0])
    async with aiohttp.ClientSession(trace_configs=[told_to(metrics.observe_call)]) as client:
        for code in (200, 401, 429, 503):
            async with client.get(f"{url}/{code}"):
                pass
        with suppress(TimeoutError):
            async with asyncio.timeout(0.1), client.get(f"{url}/slow"):
                pass
        await runner.cleanup()
        with suppress(aiohttp.ClientError):
            await client.get(f"{url}/200")


@pytest.mark.parametrize("name", expressions())
def test_a_query_names_what_there_is(seen: Seen, starved: list[Series], name: str) -> None:
    there_is = [*seen.tagpin, *seen.api_server, *starved]
    assert list(flaws(expressions()[name], there_is)) == []


@pytest.mark.parametrize(
    ("misspelt", "flaw"),
    [
        ("sum(tagpin_redy) < 1", "no metric tagpin_redy"),
        ('tagpin_faults_total{mod="pin"} > 0', "tagpin_faults_total has no label mod"),
        (
            'rate(tagpin_images_unpinned_total{reason!~"tls|time_out"}[5m])',
            "tagpin_images_unpinned_total: no reason is time_out",
        ),
        ("sum by (moad) (tagpin_admissions_total)", "no label moad"),
        (
            'apiserver_admission_webhook_fail_open_count{name=~".+[.]tagpin[.]de"}',
            "apiserver_admission_webhook_fail_open_count: no name is .+[.]tagpin[.]de",
        ),
    ],
)
def test_a_misspelt_query_is_found(seen: Seen, misspelt: str, flaw: str) -> None:
    """Or the test above would say nothing."""
    assert list(flaws(misspelt, [*seen.tagpin, *seen.api_server])) == [flaw]


# Logs


def decisions(log: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [line for line in log if line["logger"] == "tagpin.decisions"]


def test_every_decision_has_one_line(seen: Seen) -> None:
    told = Counter((line["mode"], line["result"]) for line in decisions(seen.log))
    counted = {
        (each.labels["mode"], each.labels["result"]): each.value
        for each in seen.tagpin
        if each.metric == "tagpin_admissions_total" and each.value
    }
    assert told == counted


def test_a_line_has_the_documented_fields_and_no_others(seen: Seen) -> None:
    fields = re.findall(r"^\| `(\w+)` \|", section("The log"), re.MULTILINE)
    assert set(fields) == ALWAYS | SOMETIMES
    for line in decisions(seen.log):
        assert ALWAYS <= line.keys() <= ALWAYS | SOMETIMES
    there_were = set[str]().union(*(line.keys() for line in decisions(seen.log)))
    assert there_were | {"more_pins"} == ALWAYS | SOMETIMES  # that takes fifty images


def test_the_example_in_the_docs_is_such_a_line(seen: Seen) -> None:
    (example,) = re.findall(r"^```json\n(.+?)^```", section("The log"), re.MULTILINE | re.DOTALL)
    shown = json.loads(example)
    (like_it, *_) = [
        line
        for line in decisions(seen.log)
        if (line["mode"], line["result"]) == (shown["mode"], shown["result"])
        and line.keys() == shown.keys()
        and line["pins"].keys() == shown["pins"].keys()
    ]
    for name, pin in like_it["pins"].items():
        assert pin.keys() == shown["pins"][name].keys()


def test_queries_of_the_log_name_fields_that_there_are(seen: Seen) -> None:
    queries = re.findall(r"jq -\w '([^']+)' tagpin.log", section("The log"))
    assert len(queries) > 3
    for query in queries:
        bare = re.sub(r'"[^"]*"', "", query)
        assert set(re.findall(r"(?<![\w.)\]])\.(\w+)", bare)) <= ALWAYS | SOMETIMES | {"reason"}


def test_no_secret_is_logged_even_at_debug(seen: Seen) -> None:
    assert any(line["level"] == "debug" for line in seen.log)
    assert len(seen.secrets) == 11
    assert [name for name, secret in seen.secrets.items() if secret in seen.text] == []
    assert "authorization" not in seen.text.lower()
    assert "PRIVATE KEY" not in seen.text


def test_a_registry_that_is_away_is_no_flood_of_warnings(seen: Seen, figure: Figure) -> None:
    others = [
        line
        for line in seen.flood
        if line not in decisions(seen.flood) and line["level"] != "debug"
    ]
    assert len(decisions(seen.flood)) == FLOOD
    assert len(others) <= FLOOD / 10  # questions that were under way before it was left alone
    told = f"{len(decisions(seen.flood))} lines of decisions, {len(others)} others"
    figure(f"log of {FLOOD} pods whose registry is away", told)


# The page


def test_the_audit_log_tells_who_changed_a_pod(seen: Seen, control_plane: ControlPlane) -> None:
    """The API server's own annotation, which the query on the page reads."""
    changed = Counter(
        event["objectRef"]["namespace"]
        for event in control_plane.audit_events()
        for key, annotation in event.get("annotations", {}).items()
        if key.startswith("mutation.webhook")
        and (told := json.loads(annotation))["configuration"] == "tagpin"
        and told["mutated"]
    )
    assert changed[seen.namespaces["pin"].name] > 3
    query = re.findall(r"jq -r '([^']+)' audit.log", section("Loops with other controllers"))
    assert all(word in query[0] for word in ("mutation.webhook", ".configuration", ".mutated"))


def kustomized(control_plane: ControlPlane, folder: Path, overlay: str) -> list[Any]:
    """An overlay of the page, as it stands there, beside the manifests."""
    base = Path(os.path.relpath(MANIFESTS, folder))
    (folder / "kustomization.yaml").write_text(overlay.replace("../..", str(base)))
    return list(yaml.safe_load_all(control_plane.kubectl("kustomize", str(folder)).stdout))


def test_patches_for_managed_clusters_are_admitted(
    control_plane: ControlPlane, tmp_path: Path
) -> None:
    (overlay,) = re.findall(
        r"^```yaml\n(.+?)^```", section("Managed clusters"), re.MULTILINE | re.DOTALL
    )
    objects = kustomized(control_plane, tmp_path, overlay)
    by_kind = {
        each["kind"]: each for each in objects if each["kind"] in ("Namespace", "Deployment")
    }
    control_plane.kubectl(
        "apply",
        "--dry-run=server",
        "--validate=strict",
        "-f",
        "-",
        input=yaml.safe_dump_all(objects),
    )

    template = by_kind["Deployment"]["spec"]["template"]
    (container,) = template["spec"]["containers"]
    ports = {each["name"]: str(each["containerPort"]) for each in container["ports"]}
    told = {each["name"]: each.get("value") for each in container["env"]}
    assert ports == {
        "webhook": told["TAGPIN_WEBHOOK_PORT"],
        "health": told["TAGPIN_HEALTH_PORT"],
    }
    # Pod security judges pods, not their Deployment.
    namespace = by_kind["Namespace"]
    namespace["metadata"]["name"] = "tagpin-on-nodes"
    control_plane.kubectl("create", "-f", "-", input=yaml.safe_dump(namespace))
    made = {"apiVersion": "v1", "kind": "Pod", "spec": template["spec"]}
    made["metadata"] = template["metadata"] | {"name": "tagpin", "namespace": "tagpin-on-nodes"}
    made["spec"] |= {"serviceAccountName": "default", "priorityClassName": ""}
    dry = ("create", "--dry-run=server", "-f", "-")
    try:
        eventually(
            lambda: control_plane.kubectl(*dry, input=yaml.safe_dump(made), check=False).returncode,
            lambda status: status == 0,
        )
    finally:
        control_plane.kubectl("delete", "namespace", "tagpin-on-nodes", "--wait=false")


def test_the_monitoring_overlay_of_the_page_renders(
    control_plane: ControlPlane, tmp_path: Path
) -> None:
    (overlay,) = re.findall(r"^```yaml\n(.+?)^```", section("Monitoring"), re.MULTILINE | re.DOTALL)
    kinds = {each["kind"] for each in kustomized(control_plane, tmp_path, overlay)}
    assert {"PodMonitor", "PrometheusRule", "Deployment"} <= kinds
