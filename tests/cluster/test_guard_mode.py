"""The component guard-mode: who may change the mode of a namespace, and write records."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.controlplane import ControlPlane
from cluster.installation import MANIFESTS, SYSTEM, Install, Installation
from cluster.namespaces import Answer, Namespace, NewNamespace, Object, deployment, eventually
from cluster.registries import Registries

COMPONENT = MANIFESTS / "components" / "guard-mode"
REFUSED = "tagpin-guard-mode"
JANE, ANN = "guard-jane", "guard-ann"
MODE, DIGESTER = "tagpin.dev/mode", "digest-resolution"
RECORDS = "/apis/tagpin.dev/v1alpha1/namespaces/{}/imagepins"


@pytest.fixture(scope="module", autouse=True)
def installation(
    install: Install, control_plane: ControlPlane, new_namespace: NewNamespace
) -> Iterator[Installation]:
    """With the component; of two users who may do anything, Ann is one of the admins."""
    probe = new_namespace("enforce")
    admins = ("clusterrolebinding", "guard-mode-test")
    control_plane.kubectl("create", *admins, "--clusterrole=cluster-admin", f"--user={JANE}")
    control_plane.kubectl(
        "patch",
        *admins,
        "--type=json",
        "-p",
        json.dumps(
            [
                {
                    "op": "add",
                    "path": "/subjects/-",
                    "value": {"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": ANN},
                }
            ]
        ),
    )
    with install(components=["guard-mode"]) as running:
        change = ("label", "namespace", probe.name, f"{MODE}-", "--dry-run=server")
        eventually(
            lambda: control_plane.kubectl(*change, user=JANE, check=False).stderr,
            lambda error: REFUSED in error,
        )
        yield running
    control_plane.kubectl("delete", *admins)


@pytest.fixture(scope="module")
def jane(control_plane: ControlPlane) -> Path:
    return control_plane.kubeconfig(JANE)


@pytest.fixture(scope="module")
def ann(control_plane: ControlPlane) -> Path:
    return control_plane.kubeconfig(ANN, ["tagpin:admins"])


@pytest.fixture(scope="module")
def shop(new_namespace: NewNamespace) -> Namespace:
    return new_namespace(labels={MODE: "enforce", DIGESTER: "enabled"})


def labels(control_plane: ControlPlane, namespace: Namespace) -> dict[str, str]:
    _, body = control_plane.get(f"/api/v1/namespaces/{namespace.name}")
    found: dict[str, str] = json.loads(body)["metadata"]["labels"]
    return found


def change_by(
    control_plane: ControlPlane, user: Path, namespace: Namespace, how: str, label: str
) -> Answer:
    """Set the mode, or digester's label, to another value, by one of many ways."""
    name, value = namespace.name, "audit" if label == MODE else "disabled"
    _, body = control_plane.get(f"/api/v1/namespaces/{name}")
    whole = json.loads(body)
    whole["metadata"]["labels"][label] = value
    plain: Object = {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": name, "labels": {label: value}},
    }
    raw = f"/api/v1/namespaces/{name}"
    patch = json.dumps({"metadata": {"labels": {label: value}}})
    commands: dict[str, tuple[list[str], Any]] = {
        "label": (["label", "namespace", name, f"{label}={value}", "--overwrite"], None),
        "remove": (["label", "namespace", name, f"{label}-"], None),
        "patch": (["patch", "namespace", name, "-p", patch], None),
        "replace": (["replace", "-f", "-"], whole),
        "apply": (["apply", "-f", "-"], plain),
        "server-side apply": (["apply", "--server-side", "--force-conflicts", "-f", "-"], plain),
        "status": (["replace", "--raw", f"{raw}/status", "-f", "-"], whole),
        "finalize": (["replace", "--raw", f"{raw}/finalize", "-f", "-"], whole),
    }
    arguments, text = commands[how]
    written = None if text is None else json.dumps(text)
    done = control_plane.kubectl(*arguments, kubeconfig=user, input=written, check=False)
    return Answer.of(done)


WAYS = [
    "label",
    "remove",
    "patch",
    "replace",
    "apply",
    "server-side apply",
    "status",
    "finalize",
]


class TestLabels:
    @pytest.mark.parametrize("label", [MODE, DIGESTER])
    @pytest.mark.parametrize("how", WAYS)
    def test_others_cannot_change_them(
        self, control_plane: ControlPlane, jane: Path, shop: Namespace, how: str, label: str
    ) -> None:
        answer = change_by(control_plane, jane, shop, how, label)
        assert answer.error.endswith(
            "denied request: tagpin.dev/mode and digest-resolution are changed by members of "
            "system:masters, tagpin:admins only"
        )
        found = labels(control_plane, shop)
        assert (found[MODE], found[DIGESTER]) == ("enforce", "enabled")

    @pytest.mark.parametrize("how", ["label", "remove", "status", "finalize"])
    def test_the_admins_can(
        self, control_plane: ControlPlane, ann: Path, new_namespace: NewNamespace, how: str
    ) -> None:
        namespace = new_namespace("enforce")
        answer = change_by(control_plane, ann, namespace, how, MODE)
        assert answer.succeeded, answer.error
        assert labels(control_plane, namespace).get(MODE) == (None if how == "remove" else "audit")

    def test_others_cannot_set_a_mode_where_there_is_none(
        self, control_plane: ControlPlane, jane: Path, new_namespace: NewNamespace
    ) -> None:
        namespace = new_namespace()
        assert REFUSED in change_by(control_plane, jane, namespace, "label", MODE).error

    def test_everybody_can_change_other_labels_and_delete_the_namespace(
        self, jane: Path, new_namespace: NewNamespace
    ) -> None:
        namespace = new_namespace("enforce")
        namespace.kubectl("label", "namespace", namespace.name, "team=shop", kubeconfig=jane)
        namespace.kubectl("delete", "namespace", namespace.name, "--timeout=60s", kubeconfig=jane)


def image_pin(name: str) -> Object:
    image = {
        "reference": "registry.test/web:1",
        "digest": f"sha256:{'0' * 64}",
        "source": "registry",
    }
    return {
        "apiVersion": "tagpin.dev/v1alpha1",
        "kind": "ImagePin",
        "metadata": {"name": name},
        "spec": {
            "workload": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web", "uid": "1"},
            "revision": {"kind": "ReplicaSet", "name": "web-1", "hash": "1"},
            "images": [image],
        },
    }


class TestRecords:
    @pytest.fixture
    def recorded(self, shop: Namespace) -> Iterator[Object]:
        """A record that is there."""
        shop.create(image_pin("web-1"))
        yield image_pin("web-1")
        shop.kubectl("delete", "imagepins", "--all")

    @pytest.mark.parametrize(
        "arguments",
        [
            pytest.param(["create", "-f", "-"], id="create"),
            pytest.param(["label", "imagepin/web-1", "team=shop"], id="patch"),
            pytest.param(
                [
                    "patch",
                    "imagepin/web-1",
                    "--subresource=status",
                    "--type=merge",
                    "-p",
                    '{"status":{"a":1}}',
                ],
                id="status",
            ),
            pytest.param(["delete", "imagepin/web-1"], id="delete"),
            pytest.param(["delete", "--raw", RECORDS], id="delete all"),
        ],
    )
    @pytest.mark.usefixtures("recorded")
    def test_others_cannot_write_them(
        self, shop: Namespace, jane: Path, arguments: list[str]
    ) -> None:
        before = shop.image_pins()
        words = [each.format(shop.name) if each == RECORDS else each for each in arguments]
        written = json.dumps(image_pin("web-2"))
        answer = shop.kubectl(*words, input=written, kubeconfig=jane, check=False)
        assert REFUSED in answer.error + answer.output
        assert shop.image_pins() == before

    def test_the_admins_and_tagpin_can(
        self, shop: Namespace, control_plane: ControlPlane, ann: Path
    ) -> None:
        token = control_plane.kubeconfig_for_token(control_plane.token(SYSTEM, "tagpin"))
        path = RECORDS.format(shop.name)
        for user in (ann, token):
            written = json.dumps(image_pin("web-3"))
            shop.kubectl("create", "--raw", path, "-f", "-", input=written, kubeconfig=user)
            shop.kubectl("delete", "--raw", f"{path}/web-3", kubeconfig=user)

    def test_they_are_written_and_collected_as_without_the_component(
        self,
        new_namespace: NewNamespace,
        registries: Registries,
        jane: Path,
    ) -> None:
        namespace = new_namespace("enforce")
        app = registries.public.push("guard/app:1")
        namespace.create(*(deployment(name, {"app": app.text}) for name in ("web", "api")))
        for workload in ("web", "api"):
            namespace.wait_for_rollout(f"deployment/{workload}")
        assert len(namespace.image_pins()) == 2

        namespace.kubectl("delete", "deployment/web", kubeconfig=jane)
        eventually(namespace.image_pins, lambda found: len(found) == 1)
        orphan = ("delete", "deployment/api", "--cascade=orphan")
        namespace.kubectl(*orphan, kubeconfig=jane)
        eventually(
            namespace.image_pins,
            lambda found: "ownerReferences" not in found[0]["metadata"],
        )
        namespace.kubectl("delete", "namespace", namespace.name, "--timeout=60s", kubeconfig=jane)


def test_the_groups_are_set_as_the_component_says(
    control_plane: ControlPlane, tmp_path: Path
) -> None:
    text = (COMPONENT / "kustomization.yaml").read_text()
    said = "".join(re.findall(r"^#   (.*\n)", text, re.MULTILINE))
    folder = tmp_path / "overlay"
    folder.mkdir()
    (tmp_path / "manifests").symlink_to(MANIFESTS)
    (folder / "kustomization.yaml").write_text(said.replace("<tagpin>", ".."))

    rendered = yaml.safe_load_all(control_plane.kubectl("kustomize", str(folder)).stdout)

    (policy,) = [
        each
        for each in rendered
        if each["metadata"]["name"] == REFUSED and "variables" in each["spec"]
    ]
    (groups, _) = policy["spec"]["variables"]
    assert groups == {
        "name": "groups",
        "expression": '["platform-team", "system:serviceaccounts:argocd"]',
    }
    dry = ("apply", "--dry-run=server", "--validate=strict", "-f", "-")
    control_plane.kubectl(*dry, input=yaml.safe_dump(policy))
