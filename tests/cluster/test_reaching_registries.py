"""What the operator says of registries, heeded by a whole tagpin: mirrors, proxies, credentials."""

import asyncio
import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from cluster.controlplane import ControlPlane
from cluster.images import Pusher
from cluster.installation import Install, Installation
from cluster.namespaces import Namespace, NewNamespace, images, pod
from cluster.programs import LOOPBACK, Distribution
from cluster.registries import PASSWORD, USER, Registries, Store
from fakes.proxy import FakeProxy

HIDDEN = "registry.hidden.test"
MIRRORED = "registry.mirrored.test"
NO_MIRROR = "registry.unmarked.test"
DENIED = "registry.denied.test"

PROGRAM = f"""#!/bin/sh
read host
printf '{{"ServerURL":"%s","Username":"{USER}","Secret":"{PASSWORD}"}}' "$host"
"""


@pytest.fixture(scope="module")
def hidden(control_plane: ControlPlane) -> Iterator[Store]:
    """A registry whose name only the proxy knows."""
    certificate = control_plane.authority.issue("hidden", hosts=[LOOPBACK, HIDDEN])
    with Distribution(certificate=certificate) as registry:
        yield Store(registry, Pusher(registry.url, ca=control_plane.ca_file))


@pytest.fixture(scope="module")
def proxy() -> Iterator[FakeProxy]:
    with _running(FakeProxy({HIDDEN: LOOPBACK}, login="tagpin:sesame")) as proxy:
        yield proxy


@contextmanager
def _running(proxy: FakeProxy) -> Iterator[FakeProxy]:
    """The proxy, on an event loop of its own."""
    loop = asyncio.new_event_loop()
    thread = Thread(target=loop.run_forever)
    thread.start()
    try:
        asyncio.run_coroutine_threadsafe(proxy.__aenter__(), loop).result()
        yield proxy
        asyncio.run_coroutine_threadsafe(proxy.stop(), loop).result()
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@pytest.fixture(scope="module")
def by_program(control_plane: ControlPlane) -> Iterator[Store]:
    """A private registry, whose password a credential program knows."""
    certificate = control_plane.authority.issue("by-program", hosts=[LOOPBACK])
    with Distribution(users={USER: PASSWORD}, certificate=certificate) as registry:
        ca = control_plane.ca_file
        yield Store(registry, Pusher(registry.url, user=(USER, PASSWORD), ca=ca))


@pytest.fixture(scope="module")
def known(
    control_plane: ControlPlane,
    registries: Registries,
    hidden: Store,
    proxy: FakeProxy,
    by_program: Store,
) -> list[dict[str, Any]]:
    """What the operator says of registries."""
    ca = str(control_plane.ca_file)
    mirror = {"endpoint": f"{registries.public.registry.url}/copies"}
    by_proxy = proxy.url.replace("://", "://tagpin:sesame@")
    return [
        {"host": registries.public.host, "http": True},
        {"host": registries.private.host, "caFile": ca},
        {"host": by_program.host, "caFile": ca},
        {"host": MIRRORED, "mirrors": [mirror | {"resolve": True}]},
        {"host": NO_MIRROR, "mirrors": [mirror]},
        {"host": by_name(hidden), "caFile": ca, "proxy": by_proxy},
    ]


def by_name(hidden: Store) -> str:
    return hidden.host.replace(LOOPBACK, HIDDEN)


@pytest.fixture(scope="module")
def installation(
    install: Install,
    known: list[dict[str, Any]],
    registries: Registries,
    by_program: Store,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Installation]:
    folder = tmp_path_factory.mktemp("own")
    with install(
        registries=known,
        deniedRegistries=["*.denied.test"],
        credentialsFile=str(_docker_config(folder, registries.private.host)),
        credentialPrograms=[{"host": by_program.host, "path": str(_program(folder))}],
        credentialsNamespaces=["shop-*"],
    ) as running:
        yield running


def _docker_config(folder: Path, host: str) -> Path:
    auth = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
    path = folder / ".dockerconfigjson"
    path.write_text(json.dumps({"auths": {host: {"auth": auth}}}))
    return path


def _program(folder: Path) -> Path:
    path = folder / "docker-credential-test"
    path.write_text(PROGRAM)
    path.chmod(0o755)
    return path


@pytest.fixture(scope="module")
def shop(installation: Installation, new_namespace: NewNamespace) -> Namespace:
    return new_namespace("enforce")


def test_a_mirror_that_is_marked_says_what_a_tag_names(
    shop: Namespace, registries: Registries
) -> None:
    pushed = registries.public.push("copies/team/app:v1")
    image = f"{MIRRORED}/team/app:v1"

    shop.create(pod("mirrored", {"app": image}))

    assert images(shop.pod("mirrored")) == {"app": f"{image}@{pushed.digest}"}


def test_a_mirror_that_is_not_marked_is_never_asked(
    shop: Namespace, registries: Registries
) -> None:
    registries.public.push("copies/other/app:v1")

    answer = shop.create(pod("unmarked", {"app": f"{NO_MIRROR}/other/app:v1"}), check=False)

    assert "(unreachable)" in answer.error
    assert registries.public.questions("copies/other/app") == []


def test_a_registry_is_reached_through_its_proxy(
    shop: Namespace, hidden: Store, proxy: FakeProxy
) -> None:
    pushed = hidden.push("team/app:v1")
    image = f"{by_name(hidden)}/team/app:v1"

    shop.create(pod("proxied", {"app": image}))

    assert images(shop.pod("proxied")) == {"app": f"{image}@{pushed.digest}"}
    assert set(proxy.targets) == {by_name(hidden)}


def test_a_registry_that_was_denied_is_not_asked_and_the_refusal_says_so(shop: Namespace) -> None:
    image = f"{DENIED}/team/app:v1"

    answer = shop.create(pod("denied", {"app": image}), check=False)

    assert not answer.succeeded
    assert f"{image} is not resolved (blocked)" in answer.error


def test_the_operators_own_docker_config_resolves_what_no_pull_secret_can(
    shop: Namespace, registries: Registries
) -> None:
    pushed = registries.private.push("own/app:v1")

    shop.create(pod("own", {"app": pushed.text}))

    assert images(shop.pod("own")) == {"app": pushed.pinned}


def test_a_credential_program_is_asked_for_the_registry_that_it_is_for(
    shop: Namespace, by_program: Store
) -> None:
    pushed = by_program.push("own/app:v1")

    shop.create(pod("program", {"app": pushed.text}))

    assert images(shop.pod("program")) == {"app": pushed.pinned}


def test_no_credential_of_the_operators_serves_a_namespace_that_was_not_named(
    installation: Installation, control_plane: ControlPlane, registries: Registries
) -> None:
    pushed = registries.private.push("own/other:v1")
    other = Namespace(control_plane, "not-a-shop", {"tagpin.dev/mode": "enforce"})

    answer = other.create(pod("own", {"app": pushed.text}), check=False)

    assert "(unauthorized)" in answer.error
