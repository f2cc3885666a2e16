"""The commands of docs/install.md, typed in their order."""

import json
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from cluster.controlplane import ControlPlane
from cluster.installation import MANIFESTS, SYSTEM, Install
from cluster.namespaces import Namespace, NewNamespace, deployment, images, pod
from cluster.pages import DOCS, Shell, commands
from cluster.registries import Registries

PAGE = "install.md"


@pytest.fixture
def shell(control_plane: ControlPlane, tmp_path: Path) -> Shell:
    return Shell(control_plane, tmp_path, root=MANIFESTS.parent)


def test_the_commands_of_the_page_install_and_upgrade(
    control_plane: ControlPlane, shell: Shell, new_namespace: NewNamespace
) -> None:
    """There is no such image, and no kubelet that would mind."""
    namespace = new_namespace()
    try:
        for command in commands(PAGE, "Install"):
            shell.run(command, shop=namespace.name)
        labels = json.loads(
            control_plane.kubectl("get", "namespace", namespace.name, "-o", "json").stdout
        )["metadata"]["labels"]
        assert labels["tagpin.dev/mode"] == "audit"
        # What tagpin writes is not the manifests', so nothing is in the way of applying them again.
        bundle = [
            {"op": "add", "path": f"/webhooks/{n}/clientConfig/caBundle", "value": value}
            for n, value in enumerate([control_plane.ca_data] * 4)
        ]
        configuration = ("mutatingwebhookconfiguration", "tagpin")
        control_plane.kubectl("patch", *configuration, "--type=json", "-p", json.dumps(bundle))
        for command in commands(PAGE, "Upgrade"):
            shell.run(command)
        kept = json.loads(control_plane.kubectl("get", *configuration, "-o", "json").stdout)
        assert [each["clientConfig"]["caBundle"] for each in kept["webhooks"]] == [
            control_plane.ca_data
        ] * 4
    finally:
        control_plane.kubectl("delete", "mutatingwebhookconfiguration/tagpin")
        control_plane.kubectl("delete", "secret/tagpin-tls", "-n", SYSTEM)


def test_the_overlay_of_the_page_is_valid(control_plane: ControlPlane, tmp_path: Path) -> None:
    """With every component that the page names, too."""
    files = dict(re.findall(r"```yaml\n# (\S+)\n(.+?)```", (DOCS / PAGE).read_text(), re.DOTALL))
    assert set(files) == {"kustomization.yaml", "configmap.yaml"}
    for name, content in files.items():
        # As if the folder were one of manifests/overlays.
        (tmp_path / name).write_text(content.replace("../..", os.path.relpath(MANIFESTS, tmp_path)))
    text = control_plane.kubectl("kustomize", str(tmp_path)).stdout
    rendered = [each for each in yaml.safe_load_all(text) if each]
    (made,) = [each for each in rendered if each["kind"] == "Deployment"]
    (container,) = made["spec"]["template"]["spec"]["containers"]
    assert container["image"].startswith("registry.corp.example/tagpin@sha256:")
    (settings,) = [
        each
        for each in rendered
        if (each["kind"], each["metadata"]["name"]) == ("ConfigMap", "tagpin")
    ]
    assert yaml.safe_load(settings["data"]["config.yaml"]) == {
        "registries": [{"host": "registry.corp.example"}]
    }
    assert {"NetworkPolicy", "PrometheusRule"} < {each["kind"] for each in rendered}


def test_the_commands_of_the_page_uninstall_and_no_pod_is_refused_meanwhile(
    install: Install,
    shell: Shell,
    new_namespace: NewNamespace,
    registries: Registries,
) -> None:
    app = registries.public.push("uninstall/app:1")
    strict, shop = new_namespace("enforce"), new_namespace("pin")
    unlabel, delete, forget, restart = commands(PAGE, "Uninstall")
    with install() as running:
        for namespace in (strict, shop):
            namespace.create(deployment("web", {"app": app.text}))
            namespace.wait_for_rollout("deployment/web")
        (before,) = shop.image_pins()
        with pods_without_end(strict, app.text):
            shell.run(unlabel)
            running.stop()
            shell.run(delete)
        assert shop.image_pins() == [before]
        (left,) = shop.pods("app=web")
        assert images(left) == {"app": app.pinned}
        assert "tagpin.dev/pins" in left["metadata"]["annotations"]
        assert (
            "tagpin.dev/mode" not in shop.kubectl("get", f"namespace/{shop.name}", "-ojson").output
        )

        shell.run(forget)
        shell.run(restart, shop=shop.name)
        shop.wait_for_rollout("deployment/web")
        assert app.text in {images(each)["app"] for each in shop.pods("app=web")}
        running.apply()  # for the tests that come later
        running.start()


@contextmanager
def pods_without_end(namespace: Namespace, image: str) -> Iterator[None]:
    """Pods are created for as long as a context lasts, and none is refused."""
    over, refused, created = threading.Event(), list[str](), list[str]()

    def create() -> None:
        while not over.is_set():
            name = f"pod-{len(created) + len(refused)}"
            answer = namespace.create(pod(name, {"app": image}), check=False)
            (created if answer.succeeded else refused).append(answer.error or name)

    thread = threading.Thread(target=create)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    assert refused == []
    assert len(created) > 3
