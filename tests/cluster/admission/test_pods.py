"""Which pods are pinned, and which are left alone."""

import json

import pytest

from cluster.controlplane import ControlPlane
from cluster.installation import Installation
from cluster.namespaces import Namespace, NewNamespace, Object, deployment, images, pod, record
from cluster.registries import Pushed, Registries

GIVEN = f"registry.test/web@sha256:{'0' * 64}"
MIRROR = {"kubernetes.io/config.mirror": "abc"}
OPTED_OUT = {"tagpin.dev/pin": "disabled"}
# What Pod Security asks of a pod in tagpin's own namespace.
UNPRIVILEGED = {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
CONFINED = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}

pytestmark = pytest.mark.usefixtures("installation")


@pytest.fixture(scope="module")
def app(registries: Registries) -> Pushed:
    return registries.public.push("pods/app:1")


class TestWorkloads:
    def test_all_pods_of_a_deployment_are_pinned_and_its_templates_are_not(
        self, new_namespace: NewNamespace, registries: Registries
    ) -> None:
        namespace = new_namespace("pin")
        app = registries.public.push("deployment:1")

        namespace.create(deployment("web", {"app": app.text}, replicas=3))
        namespace.kubectl("rollout", "status", "deployment/web", "--timeout=60s")

        pods = namespace.pods("app=web")
        assert [images(each) for each in pods] == [{"app": app.pinned}] * 3
        for each in pods:
            entry = record(each)["app"]
            assert entry.pop("source") in ("registry", "ledger")
            assert entry.pop("resolvedAt").endswith("Z")
            assert entry == {"image": app.text, "digest": app.digest}
        for kind in ("deployments", "replicasets"):
            (found,) = namespace.find(kind, "apis/apps/v1")
            assert images(found["spec"]["template"]) == {"app": app.text}
            assert "tagpin.dev/" not in json.dumps(found)

    def test_pods_that_come_at_once_cost_one_question(
        self, new_namespace: NewNamespace, registries: Registries
    ) -> None:
        namespace = new_namespace("pin")
        app = registries.public.push("burst:1")
        namespace.create(*(pod(f"web-{n}", {"app": app.text}) for n in range(10)))
        assert registries.public.questions("burst") == ["1"]
        assert {images(namespace.pod(f"web-{n}"))["app"] for n in range(10)} == {app.pinned}


class TestNamespaces:
    @pytest.mark.parametrize(
        ("labels", "mode"),
        [
            pytest.param({"digest-resolution": "enabled"}, "pin", id="digester's label"),
            pytest.param({"tagpin.dev/mode": "pin"}, "pin", id="our label"),
            pytest.param(
                {"tagpin.dev/mode": "enforce", "digest-resolution": "enabled"},
                "enforce",
                id="our label goes first",
            ),
            pytest.param({"tagpin.dev/mode": "pin", "digest-resolution": "no"}, "pin", id="alone"),
        ],
    )
    def test_a_label_on_the_namespace_has_its_pods_pinned(
        self,
        installation: Installation,
        new_namespace: NewNamespace,
        app: Pushed,
        labels: dict[str, str],
        mode: str,
    ) -> None:
        namespace = new_namespace(labels=labels)
        before = installation.counts()
        namespace.create(pod("web", {"app": app.text}))
        assert images(namespace.pod("web")) == {"app": app.pinned}
        counted = installation.counts() - before
        assert counted[f'tagpin_admissions_total{{mode="{mode}",result="pinned"}}'] == 1

    def test_audit_goes_before_the_label_of_digester(
        self, new_namespace: NewNamespace, app: Pushed
    ) -> None:
        both = {"tagpin.dev/mode": "audit", "digest-resolution": "enabled"}
        namespace = new_namespace(labels=both)
        namespace.create(pod("web", {"app": app.text}))
        assert images(namespace.pod("web")) == {"app": app.text}
        assert record(namespace.pod("web"))["app"]["digest"] == app.digest

    @pytest.mark.parametrize("labels", [{}, {"digest-resolution": "disabled"}])
    def test_without_a_label_nothing_is_touched_and_nobody_is_asked(
        self,
        installation: Installation,
        new_namespace: NewNamespace,
        app: Pushed,
        labels: dict[str, str],
    ) -> None:
        namespace = new_namespace(labels=labels)
        before = installation.counts()
        namespace.create(pod("web", {"app": app.text}))
        assert images(namespace.pod("web")) == {"app": app.text}
        assert record(namespace.pod("web")) is None
        assert installation.counts() == before

    @pytest.mark.parametrize("name", ["kube-system", "tagpin-system"])
    def test_pods_of_the_system_are_not_touched_though_it_is_labelled(
        self, installation: Installation, control_plane: ControlPlane, app: Pushed, name: str
    ) -> None:
        written = pod("untouched", {"app": app.text}, securityContext=UNPRIVILEGED)
        written["spec"]["containers"][0]["securityContext"] = CONFINED
        before = installation.counts()
        here = ("-n", name)
        control_plane.kubectl("label", "namespace", name, "tagpin.dev/mode=enforce")
        try:
            control_plane.kubectl("create", *here, "-f", "-", input=json.dumps(written))
            answer = control_plane.kubectl("get", "pod", "untouched", *here, "-o", "json")
        finally:
            control_plane.kubectl("label", "namespace", name, "tagpin.dev/mode-")
            control_plane.kubectl("delete", "pod", "untouched", *here, "--ignore-not-found")
        assert images(json.loads(answer.stdout)) == {"app": app.text}
        assert installation.counts() == before


class TestPlaces:
    def test_init_containers_sidecars_and_image_volumes_are_pinned(
        self, new_namespace: NewNamespace, registries: Registries
    ) -> None:
        namespace = new_namespace("enforce")
        app, setup, proxy, models = (
            registries.public.push(f"places/{name}:1") for name in ("app", "setup", "proxy", "m")
        )
        written = pod(
            "web",
            {"app": app.text},
            init={"setup": setup.text, "proxy": proxy.text},
            volumes=[{"name": "models", "image": {"reference": models.text}}],
        )
        written["spec"]["initContainers"][1]["restartPolicy"] = "Always"

        namespace.create(written)

        stored = namespace.pod("web")
        assert images(stored) == {
            "app": app.pinned,
            "setup": setup.pinned,
            "proxy": proxy.pinned,
        }
        volumes = {each["name"]: each for each in stored["spec"]["volumes"]}
        assert volumes["models"]["image"]["reference"] == models.pinned
        assert {name: entry["digest"] for name, entry in record(stored).items()} == {
            "app": app.digest,
            "setup": setup.digest,
            "proxy": proxy.digest,
            "volume/models": models.digest,
        }

    def test_an_index_is_pinned_and_none_of_its_platforms(
        self, new_namespace: NewNamespace, registries: Registries
    ) -> None:
        namespace = new_namespace("pin")
        index = registries.public.push_index("places/index:1")
        namespace.create(pod("web", {"app": index.text}))
        assert images(namespace.pod("web")) == {"app": index.pinned}

    @pytest.mark.parametrize("mode", ["audit", "pin"])
    def test_a_pod_of_digests_does_not_reach_us(
        self, installation: Installation, new_namespace: NewNamespace, mode: str
    ) -> None:
        namespace = new_namespace(mode)
        before = installation.counts()
        namespace.create(pod("web", {"app": GIVEN}))
        assert images(namespace.pod("web")) == {"app": GIVEN}
        assert record(namespace.pod("web")) is None
        assert installation.counts() == before

    def test_a_digest_is_recorded_as_given_in_enforce_and_no_registry_is_asked(
        self, new_namespace: NewNamespace, registries: Registries
    ) -> None:
        namespace = new_namespace("enforce")
        app = registries.public.push("places/given:1")

        answer = namespace.create(pod("web", {"app": app.pinned}))

        assert answer.warnings == ()
        assert images(namespace.pod("web")) == {"app": app.pinned}
        assert record(namespace.pod("web")) == {
            "app": {"image": app.pinned, "digest": app.digest, "source": "given"}
        }
        assert registries.public.questions("places/given") == []


class TestExemptions:
    @pytest.mark.parametrize(
        ("mode", "is_pinned"), [("audit", False), ("pin", False), ("enforce", True)]
    )
    def test_a_label_takes_a_pod_out_of_all_modes_but_enforce(
        self,
        new_namespace: NewNamespace,
        app: Pushed,
        *,
        mode: str,
        is_pinned: bool,
    ) -> None:
        namespace = new_namespace(mode)
        namespace.create(pod("web", {"app": app.text}, labels=OPTED_OUT))
        assert images(namespace.pod("web")) == {"app": app.pinned if is_pinned else app.text}
        assert (record(namespace.pod("web")) is not None) == is_pinned

    def test_what_the_operator_exempts_is_left_as_written_even_in_enforce(
        self,
        new_namespace: NewNamespace,
        registries: Registries,
        app: Pushed,
    ) -> None:
        namespace = new_namespace("enforce")
        mesh = registries.public.push("exempt/mesh:1")
        namespace.create(pod("web", {"app": app.text, "mesh": mesh.text}))
        assert images(namespace.pod("web")) == {"app": app.pinned, "mesh": mesh.text}
        assert list(record(namespace.pod("web"))) == ["app"]
        assert registries.public.questions("exempt/mesh") == []

    def test_whoever_only_claims_to_mirror_a_static_pod_has_it_pinned(
        self,
        new_namespace: NewNamespace,
        control_plane: ControlPlane,
        app: Pushed,
    ) -> None:
        namespace = new_namespace("pin")
        namespace.kubectl("create", "rolebinding", "jane", "--clusterrole=edit", "--user=jane")
        claim = pod("claim", {"app": app.text}, annotations=MIRROR, nodeName="node-1")
        namespace.create(claim, kubeconfig=control_plane.kubeconfig("jane"))
        assert images(namespace.pod("claim")) == {"app": app.pinned}

    def test_a_pod_that_a_kubelet_mirrors_is_left_alone(
        self,
        new_namespace: NewNamespace,
        control_plane: ControlPlane,
        app: Pushed,
    ) -> None:
        namespace = new_namespace("enforce")
        groups = ("system:nodes", "system:masters")
        kubelet = control_plane.kubeconfig("system:node:node-1", groups)
        mirror = pod("mirror", {"app": app.text}, annotations=MIRROR, nodeName="node-1")
        namespace.create(mirror, kubeconfig=kubelet)
        assert images(namespace.pod("mirror")) == {"app": app.text}


class TestDryRun:
    def test_it_answers_the_same_and_writes_nothing(
        self, new_namespace: NewNamespace, registries: Registries
    ) -> None:
        namespace = new_namespace("pin")
        app = registries.public.push("dry-run:1")
        missing = f"{registries.public.host}/dry-run:9"
        containers = {"app": app.text, "bad": missing}

        tried = namespace.apply(pod("tried", containers), flags=("--dry-run=server", "-o", "json"))
        made = namespace.apply(pod("made", containers))

        assert images(json.loads(tried.output)) == {"app": app.pinned, "bad": missing}
        assert images(namespace.pod("made")) == {"app": app.pinned, "bad": missing}
        assert set(record(json.loads(tried.output))) == {"app", "bad"}
        assert tried.warnings == made.warnings
        assert len(made.warnings) == 1
        assert namespace.pod("tried") == {}
        # Events are written in the order of the decisions.
        assert namespace.events("Pod", "made") == list(made.warnings)
        assert not namespace.has_events("tried")

    def test_enforce_refuses_it_like_any_other(
        self, new_namespace: NewNamespace, registries: Registries
    ) -> None:
        namespace = new_namespace("enforce")
        bad = pod("tried", {"app": f"{registries.public.host}/dry-run:9"})
        answer = namespace.apply(bad, flags=("--dry-run=server",), check=False)
        assert "1 image cannot be pinned" in answer.error


@pytest.fixture(scope="module")
def by_mode(new_namespace: NewNamespace) -> dict[str, Namespace]:
    """For pods that are never stored."""
    return {mode: new_namespace(mode) for mode in ("audit", "pin", "enforce")}


class TestPodsThatKubernetesRefuses:
    """We answer first, and must not hide what it has to say."""

    @pytest.mark.parametrize("mode", ["audit", "pin", "enforce"])
    @pytest.mark.parametrize(
        ("change", "complaint"),
        [
            pytest.param(
                {"containers": [{"name": "app"}]}, "spec.containers[0].image: Required", id="image"
            ),
            pytest.param({"containers": []}, "spec.containers: Required value", id="containers"),
            pytest.param({"containers": None}, "spec.containers: Required value", id="null"),
            pytest.param({"restartPolicy": "Sometimes"}, "spec.restartPolicy: Unsupp", id="policy"),
            pytest.param(
                {"serviceAccountName": "nobody"}, 'serviceaccount "nobody" not found', id="account"
            ),
            pytest.param(
                {"imagePullSecrets": [{"name": "../../secrets"}], "restartPolicy": "Sometimes"},
                "spec.restartPolicy: Unsupp",
                id="a path for a pull secret",
            ),
        ],
    )
    def test_its_error_is_the_answer(
        self,
        by_mode: dict[str, Namespace],
        app: Pushed,
        mode: str,
        change: Object,
        complaint: str,
    ) -> None:
        broken = pod("web", {"app": app.text})
        broken["spec"] |= change
        answer = by_mode[mode].create(broken, flags=("--validate=ignore",), check=False)
        assert complaint in answer.error
        assert "webhook" not in answer.error
        assert "tagpin" not in answer.error

    @pytest.mark.parametrize("mode", ["audit", "pin", "enforce"])
    def test_two_containers_of_one_name_are_its_business(
        self, by_mode: dict[str, Namespace], app: Pushed, mode: str
    ) -> None:
        twins = pod("web", {"app": app.text})
        twins["spec"]["containers"] *= 2
        answer = by_mode[mode].create(twins, check=False)
        assert "spec.containers[1].name: Duplicate value" in answer.error
        assert "webhook" not in answer.error


class TestDebugging:
    def test_an_ephemeral_container_is_pinned_and_the_audit_log_has_its_digest(
        self, new_namespace: NewNamespace, registries: Registries
    ) -> None:
        namespace = new_namespace("enforce")
        app, tools = registries.public.push("debug/app:1"), registries.public.push("debug/tools:1")
        namespace.create(pod("sick", {"app": app.text}))
        before = record(namespace.pod("sick"))

        namespace.kubectl(
            *("debug", "sick", f"--image={tools.text}", "--container=doctor", "--profile=general")
        )

        stored = namespace.pod("sick")
        assert images(stored) == {"app": app.pinned, "doctor": tools.pinned}
        said = namespace.audit("sick", "patch", "ephemeralcontainers")
        (entry,) = json.loads(said["enforce.tagpin.dev/pins"]).items()
        assert entry[0] == "doctor"
        assert (entry[1]["image"], entry[1]["digest"]) == (tools.text, tools.digest)
        assert record(stored) == before, "the API server keeps metadata out of this subresource"
        note = f'container "doctor": {tools.text} runs as {tools.digest} (registry)'
        assert namespace.events("Pod", "sick", reason="ImagePinned") == [note]

    def test_a_bad_one_is_refused_in_enforce(
        self, new_namespace: NewNamespace, registries: Registries
    ) -> None:
        namespace = new_namespace("enforce")
        app = registries.public.push("debug/app:1")
        namespace.create(pod("sick", {"app": app.text}))
        bad = f"--image={registries.public.host}/debug/tools:9"
        answer = namespace.kubectl(
            "debug", "sick", bad, "--container=doctor", "--profile=general", check=False
        )
        assert "does not exist" in answer.error
        assert images(namespace.pod("sick")) == {"app": app.pinned}

    def test_a_bad_one_leaves_an_event_in_pin(
        self, new_namespace: NewNamespace, registries: Registries
    ) -> None:
        namespace = new_namespace("pin")
        app = registries.public.push("debug/app:1")
        namespace.create(pod("sick", {"app": app.text}))
        bad = f"{registries.public.host}/debug/tools:9"
        namespace.kubectl(
            "debug", "sick", f"--image={bad}", "--container=doctor", "--profile=general"
        )
        assert images(namespace.pod("sick")) == {"app": app.pinned, "doctor": bad}
        (event,) = namespace.events("Pod", "sick")
        assert "does not exist (not_found)" in event
