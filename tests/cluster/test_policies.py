"""The second lines: no image without a digest in `enforce`, and no mode but those there are."""

import json
import random
import re
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from cluster.admission.injector import CONTAINER, Injector
from cluster.controlplane import ControlPlane
from cluster.installation import (
    BASE,
    BINDINGS,
    SYSTEM,
    Install,
    Installation,
    kustomized,
    wait_until_unbound,
)
from cluster.namespaces import (
    Answer,
    Namespace,
    NewNamespace,
    Object,
    cron_job,
    daemon_set,
    deployment,
    eventually,
    images,
    job,
    pod,
    replica_set,
    stateful_set,
)
from tagpin.errors import InvalidReference
from tagpin.policy import Decision, Rules, decide, exempt_patterns
from tagpin.reference import Reference

POLICY = "tagpin-require-digest"
DIGEST = f"sha256:{'a' * 64}"
TAG = "registry.test/web:1"
PINNED = f"registry.test/web:1@{DIGEST}"
HOLD = "tagpin.test/hold"
FREE = '{"metadata":{"finalizers":null}}'
BINDING = BASE / "validatingadmissionpolicybinding-require-digest.yaml"


class Policies:
    """The policies in force, without tagpin and its webhooks."""

    def __init__(self, control_plane: ControlPlane, probe: Namespace) -> None:
        self._control_plane = control_plane
        self._probe = probe

    def exempt(self, text: str | None) -> None:
        """Let this be the list of exempt images (None: no list), and wait until it is known."""
        sentinel = f"sentinel.test/{uuid.uuid4().hex}"
        written = None if text is None else f"{text}\n{sentinel}"
        self._write({"exempt": written})
        eventually(lambda: self.refuses(f"{sentinel}:1"), lambda it: it is (text is None))

    def without_configmap(self) -> None:
        """Delete the ConfigMap, and wait until that is known."""
        self._control_plane.kubectl("delete", "configmap/tagpin", "-n", SYSTEM)
        eventually(lambda: self.refuses(TAG), lambda it: not it)

    def apply(self) -> None:
        """Put everything back, and wait until it is in force."""
        kinds = ("Namespace", "ConfigMap", "ValidatingAdmission")
        objects = [
            each for each in kustomized(self._control_plane) if each["kind"].startswith(kinds)
        ]
        self._control_plane.kubectl("apply", "-f", "-", input=yaml.safe_dump_all(objects))
        eventually(lambda: self.refuses(TAG), bool)

    def refuses(self, image: str) -> bool:
        """Whether a pod with this image may not be created."""
        return bool(refused(self._probe, [image]))

    def _write(self, data: dict[str, str | None]) -> None:
        patch = ("patch", "configmap/tagpin", "-n", SYSTEM, "--type=merge", "-p")
        self._control_plane.kubectl(*patch, json.dumps({"data": data}))


@pytest.fixture(scope="module")
def enforce(new_namespace: NewNamespace) -> Namespace:
    return new_namespace("enforce")


@pytest.fixture(scope="module")
def mistaken(control_plane: ControlPlane, new_namespace: NewNamespace) -> Namespace:
    """A namespace that had a wrong mode before there was a policy."""
    wait_until_unbound(control_plane)
    return new_namespace("enfroce")


@pytest.fixture(scope="module")
def policies(
    control_plane: ControlPlane, enforce: Namespace, mistaken: Namespace
) -> Iterator[Policies]:
    """In force until the end of this file."""
    made = Policies(control_plane, enforce)
    try:
        made.apply()
        yield made
    finally:
        control_plane.kubectl("delete", *BINDINGS, "--ignore-not-found")


@pytest.fixture
def own_list(policies: Policies) -> Iterator[Policies]:
    """For a test that changes the list of exempt images."""
    yield policies
    policies.exempt("")


def would_create(namespace: Namespace, made: Object, **options: Any) -> Answer:
    """What comes of creating a pod, which is not stored."""
    flags = ("--dry-run=server", "--validate=ignore")
    return namespace.create(made, flags=flags, check=False, **options)


def refused(namespace: Namespace, texts: Sequence[str]) -> list[str]:
    """Those of the images that the policy names when a pod with all of them is created."""
    made = pod("probe", {f"c{n}": text for n, text in enumerate(texts)})
    answer = would_create(namespace, made)
    assert answer.succeeded or POLICY in answer.error, answer.error
    return [texts[int(n)] for n in re.findall(r'container "c(\d+)": ', answer.error)]


# What is exempt

CASES = json.loads((Path(__file__).parents[1] / "data" / "references.json").read_text())
MORE = [
    "Docker.io/nginx",
    "Docker.io/library/nginx",
    "INDEX.docker.io/nginx",
    "docker.io:443/nginx",
    "localhost/nginx",
    "LOCALHOST/nginx",
    "localhost:5000",
    "Registry.Test/Mesh/proxy",
    "REGISTRY.test/mesh/proxy:1",
    "registry.test/mesh/proxy:1:2",
    "registry.test/mesh//proxy",
    "registry.test/mesh/",
    "registry.test/mesh/../web",
    "registry.test./mesh/proxy",
    "-registry.test/mesh/proxy",
    "registry.test:/mesh/proxy",
    "registry.test/mesh/proxy@",
    f"registry.test/mesh/proxy@sha256:{'a' * 63}",
    f"registry.test/mesh/proxy@sha256:{'a' * 65}",
    f"registry.test/mesh/proxy@sha256:{'A' * 64}",
    f"registry.test/mesh/proxy@sha512:{'a' * 64}",
    f"registry.test/mesh/proxy@{DIGEST}:1",
    f"registry.test/mesh/proxy:{'t' * 128}",
    f"registry.test/mesh/proxy:{'t' * 129}",
    f"registry.test/mesh/{'p' * 250}",
    f"registry.test/mesh/{'p' * 251}",
    f"{'f' * 64}",
    f"{'f' * 64}:1",
    f"docker.io/{'f' * 64}",
    "[2001:DB8::1]:5000/mesh/proxy:1",
    "registry.test/mesh/proxy\nx",
    "nginx:1\n2",
]
# Of hosts that only their capitals tell from a part of a path, nothing can be exempt.
REPOSITORIES = sorted(
    {
        f"{case['domain'].lower()}/{case['path']}"
        for case in CASES
        if "err" not in case and re.search(r"[.:]|^localhost$", case["domain"])
    }
)
LISTS = {
    "nothing": "",
    "each repository": "\n".join(REPOSITORIES),
    "prefixes": """
        docker.io/            # Docker Hub
        registry.test/mesh/
        localhost/
        [2001:db8::1]:5000/
        127.0.0.1:8000/
        test:5000/
    """,
}


def mutants(texts: Sequence[str]) -> list[str]:
    """The same, each with one character more, less, or another one."""
    chance = random.Random(6)  # noqa: S311 not for secrets
    made = []
    for text in texts:
        at, cut = chance.randrange(len(text)), chance.randrange(2)
        made.append(text[:at] + chance.choice([*"./:@-_A1[]f", ""]) + text[at + cut :])
    return made


def batches(texts: Sequence[str]) -> Iterator[list[str]]:
    """As many at a time as fit into a message."""
    batch: list[str] = []
    for text in texts:
        if sum(len(each) + 20 for each in [*batch, text]) > 3900:
            yield batch
            batch = []
        batch.append(text)
    yield batch


def may_enter(text: str, rules: Rules) -> bool:
    """Whether tagpin lets an image enter `enforce` as it is written.

    Of what ends with a digest it says more than the policy: whether all of it is a reference.
    """
    if re.search(r"@(sha256:[0-9a-f]{64}|sha384:[0-9a-f]{96}|sha512:[0-9a-f]{128})\Z", text):
        return True
    try:
        return decide(Reference.parse(text), rules) is Decision.LEAVE
    except InvalidReference:
        return False


@pytest.mark.parametrize("name", LISTS)
def test_the_policy_lets_in_as_written_what_tagpin_leaves_as_written(
    own_list: Policies, enforce: Namespace, name: str
) -> None:
    rules = Rules.from_settings(exempt_patterns(LISTS[name]), [])
    own_list.exempt(LISTS[name])
    known = [*(case["input"] for case in CASES if case["input"]), *MORE]
    # No image has spaces around it: that is refused before.
    texts = [each for each in [*known, *mutants(known)] if each and each == each.strip()]

    found = [text for batch in batches(texts) for text in refused(enforce, batch)]

    assert sorted(found) == sorted(text for text in texts if not may_enter(text, rules))


USELESS = [
    "# registry.test/",
    "registry.test",
    "registry.test/web:1",
    "registry.test/we",
    "registry.test/web/",
    "/",
    "registry.*/",
    "- registry.test/",
    "registry.test/ registry.test/web",
    "other.test/\rregistry.test/",
    "\uffff\0" * 1000,
]


@pytest.mark.parametrize("text", [None, "", "\n".join(USELESS)], ids=["none", "empty", "useless"])
def test_a_list_of_no_use_exempts_nothing_and_disturbs_nobody(
    own_list: Policies, enforce: Namespace, text: str | None
) -> None:
    own_list.exempt(text)
    assert refused(enforce, [TAG, PINNED]) == [TAG]


def test_lists_are_read_with_their_comments_and_ends_of_lines(
    own_list: Policies, enforce: Namespace
) -> None:
    own_list.exempt("# ours\r\n\r\n\tregistry.test/  # all of it\r\nother.test/web\r\n")
    assert refused(enforce, [TAG, "other.test/web", "other.test/web2"]) == ["other.test/web2"]


def test_the_audit_log_has_what_entered_without_a_digest(
    own_list: Policies, enforce: Namespace, control_plane: ControlPlane
) -> None:
    own_list.exempt("registry.test/")
    mark = control_plane.audit_mark()
    would_create(enforce, pod("audited", {"web": TAG, "side": PINNED}))
    would_create(enforce, pod("refused", {"web": "other.test/web:1"}))
    key = f"{POLICY}/exempt"
    found = [each.get("annotations", {}) for each in control_plane.audit_events(mark)]
    assert [each[key] for each in found if key in each] == [f'container "web": {TAG}']


class TestTheConfigMap:
    @pytest.fixture
    def away(self, policies: Policies) -> Iterator[Policies]:
        """There is none."""
        policies.without_configmap()
        yield policies
        policies.apply()

    @pytest.fixture
    def web(self, enforce: Namespace) -> None:
        """A pod that was there before."""
        enforce.create(pod("old", {"web": PINNED}))

    @pytest.mark.usefixtures("web", "away")
    def test_without_it_the_webhook_alone_decides_and_nothing_is_in_the_way(
        self, enforce: Namespace
    ) -> None:
        enforce.kubectl("label", "pod/old", "team=shop")
        enforce.kubectl("set", "image", "pod/old", f"web={TAG}")
        enforce.kubectl("delete", "pod/old", "--timeout=30s")

    def test_a_new_one_is_read(self, away: Policies, enforce: Namespace) -> None:
        away.apply()
        away.exempt("registry.test/")
        assert refused(enforce, [TAG, "other.test/web:1"]) == ["other.test/web:1"]


def test_after_the_binding_was_deleted_and_applied_again_the_list_is_the_current_one(
    own_list: Policies, control_plane: ControlPlane, enforce: Namespace
) -> None:
    """Kubernetes forgets ConfigMaps that no binding refers to (kubernetes/kubernetes#130887)."""
    own_list.exempt("registry.test/")
    control_plane.kubectl("delete", "-f", str(BINDING))
    eventually(lambda: own_list.refuses("other.test/web:1"), lambda it: not it)
    control_plane.kubectl("apply", "-f", str(BINDING))
    eventually(lambda: own_list.refuses("other.test/web:1"), bool)
    assert not own_list.refuses(TAG)

    own_list.exempt("other.test/")

    assert refused(enforce, [TAG, "other.test/web:1"]) == [TAG]


# What it costs

LONG = f"{'a.' * 100}test/{'p' * 150}:{'t' * 60}"


@pytest.mark.usefixtures("policies")
class TestLargePods:
    def test_hundreds_of_long_digests_enter(self, enforce: Namespace) -> None:
        text = f"{LONG}@{DIGEST}"
        volumes = [{"name": f"v{n}", "image": {"reference": text}} for n in range(150)]
        made = pod("large", {f"c{n}": text for n in range(200)}, volumes=volumes)
        answer = would_create(enforce, made)
        assert answer.succeeded, answer.error

    def test_hundreds_of_exempt_images_enter_by_the_last_of_hundreds_of_patterns(
        self, own_list: Policies, enforce: Namespace
    ) -> None:
        own_list.exempt("\n".join(f"registry-{n}.example.com/team/app-{n}" for n in range(200)))
        made = pod(
            "large", {f"c{n}": "registry-199.example.com/team/app-199:1" for n in range(200)}
        )
        answer = would_create(enforce, made)
        assert answer.succeeded, answer.error

    @pytest.mark.parametrize(
        "texts",
        [
            pytest.param([TAG] * 300, id="300 tags"),
            pytest.param([f"{LONG}@{DIGEST}"] * 300 + [TAG], id="a tag after 300 digests"),
            pytest.param([LONG] * 500, id="500 long tags"),
            pytest.param(["a" * 700_000, TAG], id="a very long image"),
            pytest.param([f"{'a' * 700_000}@{DIGEST}", TAG], id="a very long image with a digest"),
            pytest.param(["\u00e9" * 4000], id="letters of many bytes"),
        ],
    )
    def test_no_size_hides_a_tag(
        self, own_list: Policies, enforce: Namespace, texts: list[str]
    ) -> None:
        own_list.exempt("\n".join(f"registry-{n}.example.com/" for n in range(200)))
        answer = would_create(
            enforce, pod("large", {f"c{n}": each for n, each in enumerate(texts)})
        )
        assert POLICY in answer.error
        assert len(answer.error) < 6000


# By which ways an image comes into a pod


@pytest.mark.usefixtures("policies")
class TestCreates:
    """Nobody has pinned anything: the webhooks are gone, or were not asked."""

    @pytest.mark.parametrize(
        ("made", "place"),
        [
            (pod("p", {"web": TAG}), 'container "web"'),
            (pod("p", {"web": PINNED, "side": TAG}), 'container "side"'),
            (pod("p", {"web": PINNED}, init={"first": TAG}), 'container "first"'),
            (
                pod("p", {"web": PINNED}, volumes=[{"name": "v", "image": {"reference": TAG}}]),
                'volume "v"',
            ),
            (pod("p", {"web": TAG}, labels={"tagpin.dev/pin": "disabled"}), 'container "web"'),
            (
                pod(
                    "p",
                    {"web": TAG},
                    annotations={"kubernetes.io/config.mirror": "x"},
                    nodeName="n",
                ),
                'container "web"',
            ),
        ],
        ids=["a container", "another", "an init container", "a volume", "opted out", "no mirror"],
    )
    def test_a_pod_with_a_tag_is_refused(
        self, enforce: Namespace, made: Object, place: str
    ) -> None:
        answer = would_create(enforce, made)
        assert f"denied request: 1 image has no digest: {place}: {TAG}; " in answer.error

    def test_a_pod_of_digests_enters(self, enforce: Namespace) -> None:
        volumes = [{"name": "v", "image": {"reference": PINNED}}]
        made = pod("p", {"web": PINNED}, init={"first": PINNED}, volumes=volumes)
        assert would_create(enforce, made).succeeded

    def test_every_bad_image_is_named_and_what_may_have_happened(self, enforce: Namespace) -> None:
        made = pod("p", {"web": TAG, "side": PINNED}, init={"first": "nginx"})
        answer = would_create(enforce, made)
        assert answer.error.endswith(
            f'2 images have no digest: container "web": {TAG}; container "first": nginx; in this '
            "namespace tagpin pins them, but it was not asked (is there a "
            "mutatingwebhookconfiguration tagpin?), or something has changed the pod after it"
        )

    def test_a_kubelet_may_mirror_a_static_pod(
        self, enforce: Namespace, control_plane: ControlPlane
    ) -> None:
        kubelet = control_plane.kubeconfig("system:node:node-1", ["system:nodes", "system:masters"])
        mirror = pod("p", {"web": TAG}, annotations={"kubernetes.io/config.mirror": "x"})
        mirror["spec"]["nodeName"] = "node-1"
        answer = would_create(enforce, mirror, kubeconfig=kubelet)
        assert answer.succeeded, answer.error

    @pytest.mark.parametrize("mode", ["audit", "pin", ""])
    def test_other_modes_are_not_judged(self, new_namespace: NewNamespace, mode: str) -> None:
        namespace = new_namespace(mode)
        namespace.create(pod("web", {"web": TAG}))
        namespace.kubectl("set", "image", "pod/web", f"web={TAG}2")
        namespace.kubectl("debug", "web", f"--image={TAG}", "--container=d", "--profile=general")
        assert images(namespace.pod("web")) == {"web": f"{TAG}2", "d": TAG}

    def test_no_controller_gets_a_pod_in(self, new_namespace: NewNamespace) -> None:
        namespace = new_namespace("enforce")
        web = {"web": TAG}
        controller = replica_set("rc", web) | {"apiVersion": "v1", "kind": "ReplicationController"}
        controller["spec"] |= {"selector": {"app": "rc"}}
        namespace.create(
            deployment("deployment", web),
            replica_set("rs", web),
            controller,
            stateful_set("sts", web),
            daemon_set("ds", web),
            job("job", web),
            cron_job("cron", web),
        )
        namespace.kubectl("create", "job", "cron-1", "--from=cronjob/cron")

        def refusals() -> set[str]:
            return {
                each["involvedObject"]["kind"] + "/" + each["involvedObject"]["name"].split("-")[0]
                for each in namespace.find("events")
                if POLICY in each["message"]
            }

        everybody = {
            "ReplicaSet/deployment",
            "ReplicaSet/rs",
            "ReplicationController/rc",
            "StatefulSet/sts",
            "DaemonSet/ds",
            "Job/job",
            "Job/cron",
        }
        eventually(refusals, lambda found: found == everybody)
        assert namespace.find("pods") == []
        namespace.kubectl("delete", "all", "--all", "--wait=false")

    def test_what_another_webhook_adds_is_judged(
        self, enforce: Namespace, control_plane: ControlPlane
    ) -> None:
        with Injector(control_plane, enforce, PINNED) as injector:
            injector.image = TAG
            answer = would_create(enforce, pod("p", {"web": PINNED}))
        assert f'1 image has no digest: container "{CONTAINER}": {TAG}; ' in answer.error


def json_patch(path: str, value: object) -> str:
    return json.dumps([{"op": "add", "path": path, "value": value}])


class Change(NamedTuple):
    """A kubectl command on the pod `web`."""

    arguments: Sequence[str]
    place: str = 'container "web"'


@pytest.mark.usefixtures("policies")
class TestUpdates:
    @pytest.fixture
    def web(self, policies: Policies, enforce: Namespace) -> Iterator[Object]:
        """A running pod of digests."""
        enforce.create(pod("web", {"web": PINNED, "side": PINNED}, init={"first": PINNED}))
        yield enforce.pod("web")
        enforce.kubectl("delete", "pod/web", "--timeout=30s")

    @pytest.mark.parametrize(
        "change",
        [
            Change(["set", "image", "pod/web", f"web={TAG}"]),
            Change(["set", "image", "pod/web", f"first={TAG}"], 'container "first"'),
            Change(
                [
                    "patch",
                    "pod/web",
                    "-p",
                    json.dumps({"spec": {"containers": [{"name": "web", "image": TAG}]}}),
                ]
            ),
            Change(
                [
                    "patch",
                    "pod/web",
                    "--type=json",
                    "-p",
                    json_patch("/spec/containers/0/image", TAG),
                ]
            ),
            Change(
                ["debug", "web", f"--image={TAG}", "--container=d", "--profile=general"],
                'container "d"',
            ),
        ],
        ids=["set image", "of an init container", "a patch", "a json patch", "kubectl debug"],
    )
    def test_a_tag_is_refused(self, enforce: Namespace, web: Object, change: Change) -> None:
        answer = enforce.kubectl(*change.arguments, check=False)
        assert f"denied request: 1 image has no digest: {change.place}: {TAG}; " in answer.error
        assert images(enforce.pod("web")) == images(web)

    @pytest.mark.parametrize(
        "how", [["replace"], ["apply"], ["apply", "--server-side", "--force-conflicts"]]
    )
    def test_a_tag_is_refused_in_a_whole_manifest(
        self, enforce: Namespace, web: Object, how: list[str]
    ) -> None:
        written = pod("web", {"web": TAG, "side": PINNED}, init={"first": PINNED})
        if how == ["replace"]:
            written = json.loads(json.dumps(web).replace(PINNED, TAG))
            del written["metadata"]["resourceVersion"]
        answer = eventually(
            lambda: enforce.kubectl(*how, "-f", "-", input=json.dumps(written), check=False),
            lambda answer: "(Conflict)" not in answer.error,  # its status is still being written
        )
        assert POLICY in answer.error
        assert f'container "web": {TAG}' in answer.error
        assert images(enforce.pod("web")) == images(web)

    @pytest.mark.parametrize("subresource", ["status", "resize"])
    def test_by_no_other_subresource_an_image_can_be_changed(
        self, enforce: Namespace, web: Object, subresource: str
    ) -> None:
        patch = json_patch("/spec/containers/0/image", TAG)
        change = ("patch", "pod/web", f"--subresource={subresource}", "--type=json", "-p", patch)
        enforce.kubectl(*change, check=False)
        assert images(enforce.pod("web")) == images(web)

    def test_a_digest_may_be_changed_for_another(self, enforce: Namespace, web: Object) -> None:
        other = PINNED.replace("a" * 64, "b" * 64)
        enforce.kubectl("set", "image", "pod/web", f"web={other}")
        enforce.kubectl("debug", "web", f"--image={other}", "--container=d", "--profile=general")
        assert images(enforce.pod("web")) == images(web) | {"web": other, "d": other}


class TestOldPods:
    """Pods that ran tags before their namespace was put into `enforce`."""

    @pytest.fixture
    def old(self, policies: Policies, new_namespace: NewNamespace) -> Namespace:
        """With workloads of all sorts, and pods that only finalizers or gates keep."""
        namespace = new_namespace()
        web = {"web": TAG, "side": TAG}
        held = pod("held", web)
        held["metadata"]["finalizers"] = [HOLD]
        namespace.create(
            pod("bare", web),
            held,
            deployment("deployment", web),
            stateful_set("sts", web),
            daemon_set("ds", web),
            job("job", web, pod_spec={"schedulingGates": [{"name": HOLD}]}),
        )
        for workload in ("deployment/deployment", "statefulset/sts", "daemonset/ds"):
            namespace.wait_for_rollout(workload)
        eventually(lambda: namespace.pods("job-name=job"), bool)
        namespace.kubectl("debug", "bare", f"--image={TAG}", "--container=d", "--profile=general")
        namespace.kubectl("label", "namespace", namespace.name, "tagpin.dev/mode=enforce")
        eventually(lambda: refused(namespace, [TAG]), bool)
        return namespace

    def test_they_live_and_go_as_before(self, old: Namespace, control_plane: ControlPlane) -> None:
        old.kubectl("label", "pods", "--all", "team=shop")
        old.kubectl("annotate", "pod/bare", "note=well")
        old.kubectl("patch", "pod/bare", "-p", '{"spec":{"activeDeadlineSeconds":999}}')

        (waiting,) = old.pods("job-name=job")
        name = waiting["metadata"]["name"]
        old.kubectl("patch", "pod", name, "-p", '{"spec":{"schedulingGates":null}}')
        old.kubectl("wait", "job/job", "--for=condition=complete", "--timeout=60s")
        assert "finalizers" not in old.pod(name)["metadata"]

        old.kubectl("delete", "pod/held", "--wait=false")
        old.kubectl("set", "image", "pod/held", f"web={TAG}2")
        old.kubectl("patch", "pod/held", "-p", FREE)
        old.kubectl("delete", "deployment,statefulset,daemonset,job,pod", "--all", "--timeout=60s")
        control_plane.kubectl("delete", "namespace", old.name, "--timeout=60s")

    def test_only_the_image_that_is_changed_is_judged(self, old: Namespace) -> None:
        old.kubectl("set", "image", "pod/bare", f"web={PINNED}")
        answer = old.kubectl("set", "image", "pod/bare", f"side={TAG}2", check=False)
        assert f'1 image has no digest: container "side": {TAG}2; ' in answer.error
        swapped = old.kubectl(
            "set", "image", "pod/bare", f"web={TAG}", f"side={PINNED}", check=False
        )
        assert f'1 image has no digest: container "web": {TAG}; ' in swapped.error
        added = ("debug", "bare", f"--image={PINNED}", "--container=e", "--profile=general")
        old.kubectl(*added)
        assert images(old.pod("bare")) == {"web": PINNED, "side": TAG, "d": TAG, "e": PINNED}
        old.kubectl("patch", "pod/held", "-p", FREE)

    def test_a_deployment_gets_no_new_pod(self, old: Namespace) -> None:
        before = {each["metadata"]["name"] for each in old.pods("app=deployment")}
        old.kubectl("scale", "deployment/deployment", "--replicas=2")
        eventually(lambda: [each for each in old.find("events") if POLICY in each["message"]], bool)
        assert {each["metadata"]["name"] for each in old.pods("app=deployment")} == before
        old.kubectl("patch", "pod/held", "-p", FREE)
        old.kubectl("delete", "deployment/deployment")


# Modes


@pytest.mark.usefixtures("policies")
class TestModes:
    @pytest.mark.parametrize("mode", ["audit", "pin", "enforce"])
    def test_those_that_there_are_can_be_set(self, new_namespace: NewNamespace, mode: str) -> None:
        namespace = new_namespace(mode)
        label = ("label", "namespace", namespace.name)
        namespace.kubectl(*label, "tagpin.dev/mode-")
        namespace.kubectl(*label, f"tagpin.dev/mode={mode}")

    @pytest.mark.parametrize("mode", ["Enforce", "enforced", "on", "true", "off", "disabled", ""])
    def test_others_cannot(
        self, control_plane: ControlPlane, enforce: Namespace, mode: str
    ) -> None:
        metadata = {"name": f"mode-{mode.lower()}x", "labels": {"tagpin.dev/mode": mode}}
        made = {"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}
        label = ("label", "namespace", enforce.name, f"tagpin.dev/mode={mode}", "--overwrite")
        for answer in (
            control_plane.kubectl("create", "-f", "-", input=json.dumps(made), check=False),
            control_plane.kubectl(*label, check=False),
        ):
            assert (
                f"tagpin.dev/mode: {mode} is no mode: write audit, pin or enforce" in answer.stderr
            )

    @pytest.mark.parametrize("subresource", ["status", "finalize"])
    def test_nor_by_a_subresource_that_can_change_labels(
        self, control_plane: ControlPlane, enforce: Namespace, subresource: str
    ) -> None:
        path = f"/api/v1/namespaces/{enforce.name}"
        _, body = control_plane.get(path)
        changed = json.loads(body)
        changed["metadata"]["labels"]["tagpin.dev/mode"] = "enforced"
        replace = ("replace", "--raw", f"{path}/{subresource}", "-f", "-")
        answer = control_plane.kubectl(*replace, input=json.dumps(changed), check=False)
        assert "tagpin.dev/mode: enforced is no mode" in answer.stderr

    def test_a_namespace_that_has_a_wrong_one_can_be_changed_corrected_and_deleted(
        self, control_plane: ControlPlane, mistaken: Namespace
    ) -> None:
        namespace = ("namespace", mistaken.name)
        control_plane.kubectl("label", *namespace, "team=shop")
        mistaken.create(pod("web", {"web": TAG}))
        hold = json.dumps({"metadata": {"finalizers": [HOLD]}})
        control_plane.kubectl("patch", *namespace, "-p", hold)
        control_plane.kubectl("delete", *namespace, "--wait=false")
        control_plane.kubectl("label", *namespace, "tagpin.dev/mode=another", "--overwrite")
        control_plane.kubectl("patch", *namespace, "-p", FREE)
        control_plane.kubectl("wait", *namespace, "--for=delete", "--timeout=60s")


# The way out

BREAK_GLASS = (
    "delete",
    "validatingadmissionpolicybinding/tagpin-require-digest",
    "mutatingwebhookconfiguration/tagpin",
)


@pytest.fixture(scope="class")
def stopped(install: Install) -> Iterator[Installation]:
    """All of tagpin, but it does not run."""
    with install() as running:
        running.stop()
        yield running


class TestBreakingTheGlass:
    """With an installation of its own, so it is the last of this file."""

    def test_one_label_does_it_for_a_namespace(
        self, stopped: Installation, new_namespace: NewNamespace
    ) -> None:
        namespace = new_namespace("enforce")
        assert not would_create(namespace, pod("web", {"web": TAG})).succeeded
        namespace.kubectl("label", "namespace", namespace.name, "tagpin.dev/mode-")
        eventually(lambda: would_create(namespace, pod("web", {"web": TAG})).succeeded, bool)

    def test_one_command_does_it_for_the_cluster_and_applying_takes_it_back(
        self, stopped: Installation, control_plane: ControlPlane, enforce: Namespace
    ) -> None:
        web = pod("web", {"web": TAG})
        assert 'failed calling webhook "enforce.tagpin.dev"' in would_create(enforce, web).error

        control_plane.kubectl(*BREAK_GLASS)

        eventually(lambda: would_create(enforce, web).succeeded, bool)
        stopped.apply()
        eventually(lambda: would_create(enforce, web).error, bool)

    def test_the_manifests_say_that_command(self) -> None:
        text = (BASE / "mutatingwebhookconfiguration.yaml").read_text()
        said = re.sub(r"\\\n# +", "", text)
        assert f"#   kubectl {' '.join(BREAK_GLASS)} " in said
