"""The registries that tests of admission pull from, each with a fate of its own."""

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Self

from cluster.controlplane import ControlPlane
from cluster.images import Pusher
from cluster.programs import LOOPBACK, Distribution

USER = "jane"
PASSWORD = "correct-horse-battery"
WRONG_PASSWORD = "tr0ub4dor-and-3"
PASSWORDS = (PASSWORD, WRONG_PASSWORD)

_QUESTION = re.compile(r"/v2/(?P<repository>.+)/manifests/(?P<tag>[^/?]+)")


@dataclass(frozen=True, slots=True)
class Pushed:
    """An image as a pod's author writes it, and the digest of the bytes that were pushed."""

    text: str
    digest: str

    @property
    def pinned(self) -> str:
        """What a pod must run."""
        return f"{self.text}@{self.digest}"


class Store:
    """A registry, and how to push to it."""

    def __init__(self, registry: Distribution, pusher: Pusher) -> None:
        self.registry = registry
        self.pusher = pusher

    @property
    def host(self) -> str:
        return self.registry.host

    def push(self, image: str, content: str = "") -> Pushed:
        """Push `repository:tag`, an image that differs by its name and by `content`."""
        repository, _, tag = image.partition(":")
        digest = self.pusher.push(repository, tag, f"{image} {content}")
        return Pushed(f"{self.host}/{image}", digest)

    def push_index(self, image: str, platforms: int = 2) -> Pushed:
        """Push an index of so many platforms as `repository:tag`."""
        repository, _, tag = image.partition(":")
        digest = self.pusher.push_index(repository, tag, [f"{image} {n}" for n in range(platforms)])
        return Pushed(f"{self.host}/{image}", digest)

    @contextmanager
    def away(self) -> Iterator[None]:
        """The registry does not run for as long as a context lasts; its images stay."""
        self.registry.stop()
        try:
            yield
        finally:
            self.registry.start()

    def questions(self, repository: str) -> list[str]:
        """Which tags of a repository were asked for, in a request each."""
        asked = [
            (match["repository"], match["tag"])
            for request in self.registry.requests()
            if request.method in ("HEAD", "GET") and (match := _QUESTION.match(request.path))
        ]
        return [tag for name, tag in asked if name == repository]


@dataclass(frozen=True, slots=True)
class Registries:
    """What tagpin's settings list: all but the unlisted one, which runs as well."""

    public: Store
    private: Store
    """On TLS, for USER with PASSWORD."""
    lost: Store
    """It was there once, and is not running."""
    unlisted: Store
    settings: dict[str, Any]

    @classmethod
    @contextmanager
    def start(cls, control_plane: ControlPlane) -> Iterator[Self]:
        certificate = control_plane.authority.issue("registry", hosts=[LOOPBACK])
        ca = control_plane.ca_file
        with ExitStack() as stack:
            public, lost, unlisted = (stack.enter_context(Distribution()) for _ in range(3))
            private = stack.enter_context(
                Distribution(users={USER: PASSWORD}, certificate=certificate)
            )
            lost.stop()
            yield cls(
                public=Store(public, Pusher(public.url)),
                private=Store(private, Pusher(private.url, user=(USER, PASSWORD), ca=ca)),
                lost=Store(lost, Pusher(lost.url)),
                unlisted=Store(unlisted, Pusher(unlisted.url)),
                settings={
                    "registries": [
                        {"host": public.host, "http": True},
                        {"host": lost.host, "http": True},
                        {"host": private.host, "caFile": str(ca)},
                    ],
                    "exempt": [f"{public.host}/exempt/"],
                    "logLevel": "debug",
                },
            )
