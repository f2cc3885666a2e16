"""Docker configs of our own: what the operator mounts, or `docker login` left at home.

Unlike a pull secret, such a config may name credential programs.
(docker/cli: cli/config/configfile/file.go)
"""

import logging
import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from tagpin.identity.programs import PREFIX
from tagpin.keychain import (
    MAX_REMARKS,
    Identity,
    InvalidDockerConfig,
    Keychain,
    glob_matches,
    json_object,
)

log = logging.getLogger(__name__)

MAX_SIZE = 1024 * 1024
"""Bytes of a docker config; those of a Secret, which is where it comes from."""
RECHECK = 5.0
"""Seconds after which a file is looked at again."""


@dataclass(frozen=True, slots=True)
class DockerConfig:
    """What a docker config says of credentials.

    `keychain` has those that it holds, and its remarks. `helpers` are names of credential programs
    (`ecr-login` is docker-credential-ecr-login) by the key of the registry that they are for;
    `store` is the one that docker asks for every other registry.
    """

    keychain: Keychain = field(default_factory=Keychain)
    helpers: Mapping[str, str] = field(default_factory=dict)
    store: str = ""

    @classmethod
    def parse(cls, text: str | bytes) -> Self:
        """Read `auths`, `credHelpers` and `credsStore`; raises InvalidDockerConfig.

        What docker leaves empty in `auths`, because a program has it, is no flaw; those that the
        store has are helpers too.
        """
        document = json_object(text)
        auths, helpers = document.get("auths") or {}, document.get("credHelpers") or {}
        store = document.get("credsStore") or ""
        if not isinstance(auths, dict) or not isinstance(helpers, dict):
            raise InvalidDockerConfig("auths or credHelpers is no map of registries")
        named = {key: name for key, name in helpers.items() if _is_name(name)}
        remarks = [
            f"credHelpers: {key[:255]!r}: no name of a credential program"
            for key in helpers
            if key not in named
        ]
        if store and not _is_name(store):
            remarks.append("credsStore: no name of a credential program")
            store = ""
        stored = {
            key: store
            for key, entry in auths.items()
            if _is_empty(entry) and (store or key in helpers)
        }
        held = {key: entry for key, entry in auths.items() if key not in stored}
        keychain = Keychain.from_auths(held)
        return cls(
            replace(keychain, remarks=(*keychain.remarks, *remarks)),
            stored | named if store else named,
            store,
        )


class OwnCredentials:
    """Implements `tagpin.cluster.credentials.OwnCredentials`: the operator's, within its limits.

    They are those in the docker config `file`, which may change, come and go; those that `programs`
    have, absolute paths by the registry that they are for; and the `identities` that somebody has
    for a registry. A program that the file names is only run if it is one of `programs`. All are
    for `registries` alone, and for pods in `namespaces` (without any, in all). Registries are
    `host[:port]` as in references; they and namespaces may be globs.
    """

    def __init__(
        self,
        *,
        registries: Iterable[str],
        file: Path | None = None,
        programs: Mapping[str, str] | None = None,
        identities: Callable[[str], tuple[Identity, ...]] = lambda _: (),
        namespaces: Iterable[str] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._registries = tuple(registries)
        self._file = file
        self._programs = dict(programs or {})
        self._identities = identities
        self._namespaces = tuple(namespaces)
        self._clock = clock
        self._due = clock()
        self._stamp: tuple[int, ...] | None = None
        self._trouble = ""
        self._keychain = self._made_of(DockerConfig())

    def keychain(self, namespace: str) -> Keychain:
        """Those that pods of a namespace may be resolved with now."""
        if self._namespaces and not any(glob_matches(each, namespace) for each in self._namespaces):
            return Keychain()
        now = self._clock()
        if self._file is not None and now >= self._due:
            self._due = now + RECHECK
            self._reread(self._file)
        return self._keychain

    @property
    def is_broken(self) -> bool:
        """Whether the file is of no use now."""
        return bool(self._trouble)

    def _reread(self, file: Path) -> None:
        """Take the file as it is now; one that is of no use leaves everything as it was."""
        try:
            stamp = _stamp(file)
            if stamp == self._stamp:
                self._trouble = ""
                return
            config = DockerConfig() if stamp is None else DockerConfig.parse(_content(file))
        except (OSError, InvalidDockerConfig) as error:
            trouble = str(error.strerror if isinstance(error, OSError) else error)
            if trouble != self._trouble:
                log.warning("%s is of no use, what it had before is kept: %s", file, trouble)
            self._trouble = trouble
        else:
            log.info("%s: %s", file, "gone" if stamp is None else "credentials read")
            self._stamp, self._trouble = stamp, ""
            self._keychain = self._made_of(config)

    def _made_of(self, config: DockerConfig) -> Keychain:
        by_name = {Path(path).name.removeprefix(PREFIX): path for path in self._programs.values()}
        helpers = {key: by_name[name] for key, name in config.helpers.items() if name in by_name}
        for key in sorted(config.helpers.keys() - helpers.keys()):
            program = PREFIX + config.helpers[key]
            log.warning("%s: %r: %s is not among credentialPrograms", self._file, key, program)
        if config.store and config.store not in config.helpers.values():
            log.warning("%s: credsStore serves what auths names, which is nothing", self._file)
        merged = Keychain.merged(
            (
                Keychain(tuple((h, Identity(path, h)) for h, path in self._programs.items())),
                Keychain.of_identities(helpers),
                config.keychain,
            )
        )
        own = replace(merged, identities=self._identities, hosts=self._registries)
        for remark in own.remarks:
            log.warning("credentials of tagpin's own: %s", remark)
        for key in own.idle_keys()[:MAX_REMARKS]:
            log.warning("credentials of tagpin's own: %r: not used, since not in registries", key)
        return own


def _is_name(name: Any) -> bool:
    """Whether this could be what follows `docker-credential-`: no path, and no option."""
    return isinstance(name, str) and re.fullmatch(r"[A-Za-z0-9_.-]{1,100}", name) is not None


def _is_empty(entry: Any) -> bool:
    return isinstance(entry, dict) and not entry.keys() - {"email"}


def _stamp(file: Path) -> tuple[int, ...] | None:
    """What changes whenever a file does; None where there is none."""
    try:
        found = file.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_size


def _content(file: Path) -> bytes:
    with file.open("rb") as opened:
        content = opened.read(MAX_SIZE + 1)
    if len(content) > MAX_SIZE:
        raise InvalidDockerConfig(f"it has more than {MAX_SIZE} bytes")
    return content
