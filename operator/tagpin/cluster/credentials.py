"""Pull secrets of a pod, read by name when needed and held for seconds."""

import asyncio
import base64
import binascii
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from kubernetes.aio.client import ApiClient

from tagpin import workload
from tagpin.cache import Cache
from tagpin.cluster.api import asking
from tagpin.cluster.objects import SECRETS, SERVICE_ACCOUNTS, Object, Objects, text
from tagpin.errors import ClusterError
from tagpin.keychain import MAX_REMARKS, Credential, InvalidDockerConfig, Keychain
from tagpin.pinning import Access

HELD = 10.0
"""Seconds for which a Secret or a ServiceAccount is held."""
MISSING = 2.0
"""Seconds for which one that could not be read is not asked for again."""
MAX_HELD = 1000
MAX_NAMES = 20
"""Pull secrets of one pod: each is a call to the API."""
ATTEMPT = 3.0
"""Seconds for one call to the API."""

_FORMATS = {
    "kubernetes.io/dockerconfigjson": (".dockerconfigjson", Keychain.from_docker_config),
    "kubernetes.io/dockercfg": (".dockercfg", Keychain.from_dockercfg),
}


class OwnCredentials(Protocol):
    """Credentials that tagpin has itself."""

    def keychain(self, namespace: str) -> Keychain:
        """Those that pods of a namespace may be resolved with now, without waiting for anything."""
        ...


class ClusterPullSecrets:
    """Implements `tagpin.pinning.PullSecrets`. Secrets are only ever read by name, with `get`.

    `own` are credentials that are tried after the pod's, as a node would try its own.
    """

    def __init__(
        self,
        client: ApiClient,
        *,
        own: OwnCredentials | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._objects = Objects(client)
        self._own = own
        self._secrets: Cache[tuple[str, str], Access] = _held(clock)
        self._accounts: Cache[tuple[str, str], tuple[str, ...]] = _held(clock)

    async def read(self, namespace: str, names: Sequence[str], service_account: str) -> Access:
        """The pod's pull secrets, else those of its ServiceAccount, in their order; then our own.

        As for a kubelet, a Secret that is missing or of another type is none.
        """
        remarks: list[str] = []
        if not names:
            try:
                names = await self._names(namespace, service_account)
            except ClusterError as error:
                remarks.append(str(error))
        if len(names) > MAX_NAMES:
            remarks.append(f"only the first {MAX_NAMES} pull secrets were read")
        accesses = await asyncio.gather(
            *(self._secret(namespace, name) for name in names[:MAX_NAMES])
        )
        return Access(
            Keychain.merged(
                (access.keychain for access in accesses),
                then=self._own.keychain(namespace) if self._own else None,
            ),
            (*remarks, *(remark for access in accesses for remark in access.remarks)),
        )

    async def close(self) -> None:
        """End what is under way."""
        await self._secrets.aclose()
        await self._accounts.aclose()

    async def _names(self, namespace: str, service_account: str) -> tuple[str, ...]:
        async def load() -> tuple[str, ...]:
            request = f"read ServiceAccount {_checked(service_account)}"
            async with asking(request, seconds=ATTEMPT):
                return _names_in(
                    await self._objects.get(SERVICE_ACCOUNTS, namespace, service_account)
                )

        return (await self._accounts.get((namespace, service_account), load)).value

    async def _secret(self, namespace: str, name: str) -> Access:
        async def load() -> Access:
            async with asking(f"read pull secret {_checked(name)}", seconds=ATTEMPT):
                kind, data = _content(await self._objects.get(SECRETS, namespace, name))
            return parse_secret(name, kind, data)

        try:
            return (await self._secrets.get((namespace, name), load)).value
        except ClusterError as error:
            return Access(Keychain(), (str(error),))


def _held(clock: Callable[[], float]) -> Cache[tuple[str, str], Any]:
    return Cache(
        maxsize=MAX_HELD, clock=clock, lifetime=lambda _: HELD, error_age=lambda _: MISSING
    )


def _checked(name: str) -> str:
    """A name fit for a path of the API: nobody has validated the pod yet."""
    if not workload.is_object_name(name):
        raise ClusterError(f"{workload.shown(name)} is no name of a Kubernetes object")
    return name


def _names_in(account: Object) -> tuple[str, ...]:
    """The pull secrets of a ServiceAccount. Raises ValueError."""
    try:
        names = [reference.get("name") for reference in account.get("imagePullSecrets") or ()]
        return tuple(text(name) for name in names if name)
    except (TypeError, AttributeError) as error:
        raise ValueError("no ServiceAccount") from error


def _content(secret: Object) -> tuple[str, dict[str, str]]:
    """The type and the data of a Secret, as base64. Raises ValueError."""
    try:
        data = (secret.get("data") or {}).items()
        return text(secret.get("type") or ""), {key: text(value) for key, value in data}
    except (TypeError, AttributeError) as error:
        raise ValueError("no Secret") from error


def parse_secret(name: str, kind: str, data: Mapping[str, str]) -> Access:
    """Read a Secret's base64 data; what is wrong with it becomes a remark that names it.

    So does what only resolves an image and cannot pull it.
    """
    key, read = _FORMATS.get(kind, ("", Keychain.from_docker_config))
    if not data.get(key):
        return Access(Keychain(), (f"pull secret {name} holds no docker config",))
    try:
        keychain = read(base64.b64decode(data[key].encode(), validate=True))
    except (InvalidDockerConfig, binascii.Error) as error:
        return Access(Keychain(), (f"pull secret {name} is of no use: {error}",))
    unusable = [
        f"{key!r}: nodes cannot use its identitytoken"
        for key, each in keychain.entries
        if isinstance(each, Credential) and each.identity_token
    ]
    remarks = (*keychain.remarks, *unusable)[:MAX_REMARKS]
    return Access(keychain, tuple(f"pull secret {name}: {remark}" for remark in remarks))
