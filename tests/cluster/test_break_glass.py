"""The commands of docs/break-glass.md, typed while nobody answers for tagpin."""

import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.controlplane import ControlPlane
from cluster.images import digest
from cluster.installation import MANIFESTS, Install, Installation
from cluster.namespaces import (
    Namespace,
    NewNamespace,
    deployment,
    eventually,
    images,
    pod,
    record,
)
from cluster.pages import Shell, commands
from cluster.registries import Pushed, Registries

PAGE = "break-glass.md"


@pytest.fixture(scope="module")
def installation(install: Install) -> Iterator[Installation]:
    """The first tests find it up."""
    with install() as running:
        yield running


@pytest.fixture
def shell(control_plane: ControlPlane, tmp_path: Path) -> Shell:
    return Shell(control_plane, tmp_path, root=MANIFESTS.parent)


@pytest.fixture
def down(installation: Installation) -> Installation:
    """Nobody answers, until the test starts it."""
    installation.stop()
    return installation


@pytest.fixture
def app(registries: Registries, request: pytest.FixtureRequest) -> Pushed:
    return registries.public.push(f"glass/{request.function.__name__.replace('_', '-')}:1")


def test_a_workload_in_pin_is_taken_out_and_comes_back(
    installation: Installation, shell: Shell, new_namespace: NewNamespace, app: Pushed
) -> None:
    namespace = new_namespace("pin")
    namespace.create(deployment("web", {"app": app.text}))
    namespace.wait_for_rollout("deployment/web")
    out, _ = commands(PAGE, "A workload")

    shell.run(out, shop=namespace.name)
    namespace.wait_for_rollout("deployment/web")
    assert [images(each)["app"] for each in running(namespace)] == [app.text]

    shell.run(way_back("A workload"), shop=namespace.name)
    namespace.wait_for_rollout("deployment/web")
    assert [images(each)["app"] for each in running(namespace)] == [app.pinned]


def test_a_workload_in_enforce_gets_in_by_its_digest_while_the_registry_is_away(
    installation: Installation,
    shell: Shell,
    new_namespace: NewNamespace,
    registries: Registries,
) -> None:
    namespace = new_namespace("enforce")
    image = f"{registries.lost.host}/glass/app:1"
    namespace.create(deployment("web", {"app": image}))
    eventually(lambda: namespace.has_events("web"), bool)
    assert running(namespace) == []
    _, by_digest = commands(PAGE, "A workload")

    known = digest(b"known")
    (written,) = [word for word in shlex.split(by_digest) if "@sha256:" in word]
    shell.run(by_digest.replace(written, f"app={image}@{known}"), shop=namespace.name)

    namespace.wait_for_rollout("deployment/web")
    (made,) = running(namespace)
    assert images(made) == {"app": f"{image}@{known}"}
    assert record(made)["app"]["source"] == "given"


def test_the_first_look_says_whether_nobody_answers_or_an_image_has_no_digest(
    installation: Installation, shell: Shell, new_namespace: NewNamespace, app: Pushed
) -> None:
    namespace = new_namespace("enforce")
    namespace.create(deployment("bad", {"app": f"{app.text}-none"}))
    eventually(lambda: namespace.find("events"), bool)
    installation.stop()
    namespace.create(deployment("web", {"app": app.text}))

    events, ours = commands(PAGE, "Look first")
    told = eventually(
        lambda: shell.run(events, check=False),
        lambda said: all(f"replicaset/{name}-" in said for name in ("bad", "web")),
    )

    lines = [line for line in told.splitlines() if line.startswith(namespace.name)]
    assert [line for line in lines if 'failed calling webhook "enforce.tagpin.dev"' in line] != []
    assert [line for line in lines if "1 image cannot be pinned" in line] != []
    shell.run(ours)


def test_a_namespace_in_enforce_starts_pods_while_tagpin_is_down(
    down: Installation, shell: Shell, new_namespace: NewNamespace, app: Pushed
) -> None:
    namespace = new_namespace("enforce")
    assert not namespace.create(pod("web", {"app": app.text}), check=False).succeeded
    (free,) = commands(PAGE, "A namespace")

    shell.run(free, shop=namespace.name)

    namespace.create(pod("web", {"app": app.text}))
    assert images(namespace.pod("web")) == {"app": app.text}
    shell.run(way_back("A namespace"), shop=namespace.name)
    assert not namespace.create(pod("late", {"app": app.text}), check=False).succeeded
    down.start()
    namespace.create(pod("late", {"app": app.text}))
    assert images(namespace.pod("late")) == {"app": app.pinned}


def test_the_cluster_starts_pods_while_tagpin_is_down_and_what_came_in_is_found(
    installation: Installation, shell: Shell, new_namespace: NewNamespace, app: Pushed
) -> None:
    namespace = new_namespace("enforce")
    namespace.create(deployment("web", {"app": app.text}))
    namespace.wait_for_rollout("deployment/web")
    installation.stop()
    assert not namespace.create(pod("by-hand", {"app": app.text}), check=False).succeeded
    (free,) = commands(PAGE, "The cluster")

    shell.run(free)

    mixed = {"app": app.pinned, "tag": app.text}
    eventually(
        lambda: namespace.create(pod("by-hand", mixed), check=False), lambda done: done.succeeded
    )
    namespace.create(pod("first", {"app": app.pinned}, init={"init": app.text}))
    namespace.kubectl("scale", "deployment/web", "--replicas=2")
    namespace.wait_for_rollout("deployment/web")

    # In place of the command of the page: clientConfig must name a port of this machine.
    installation.apply()
    assert way_back("The cluster") == "kubectl apply -k manifests/base"
    installation.start()
    found, delete = commands(PAGE, "What came in meanwhile")
    names = came_in(shell, found, namespace)
    (of_web,) = [name for name in names if name.startswith("web-")]
    assert names == {"by-hand", "first", of_web}

    shell.run(delete, shop=namespace.name, NAME=of_web)

    namespace.wait_for_rollout("deployment/web")
    eventually(lambda: came_in(shell, found, namespace), lambda left: left == {"by-hand", "first"})
    assert {images(each)["app"] for each in running(namespace)} == {app.pinned}


def way_back(section: str) -> str:
    """The command behind the first **Back:** of a section."""
    _, _, rest = (MANIFESTS.parent / "docs" / PAGE).read_text().partition(f"\n## {section}\n")
    _, _, back = rest.partition("**Back:** `")
    return back.partition("`")[0]


def running(namespace: Namespace) -> list[dict[str, object]]:
    """The pods of the Deployment `web` that are not on their way out."""
    return [
        each for each in namespace.pods("app=web") if "deletionTimestamp" not in each["metadata"]
    ]


def came_in(shell: Shell, command: str, namespace: Namespace) -> set[str]:
    """The pods of a namespace that the command of the page prints."""
    lines = [line.split() for line in shell.run(command, check=False).splitlines()]
    return {name for where, name, *_ in lines if where == namespace.name}
