"""What a replica serves TLS with, kept current, and the caBundle by which API servers know it.

The certificate lives in one Secret. Whichever replica first finds the Secret empty or due issues
(`tagpin.certificates`) and writes by compare-and-swap on the resourceVersion; the others read
what it wrote. The Secret is also mounted, so that a replica can start while the API is away.

A certificate of other CAs than those served under so far is loaded only once the webhook
configuration has had these in every caBundle for a while.

Where cert-manager keeps the Secret or the caBundle, which its annotations say, nothing is written
there.
"""

from __future__ import annotations

import asyncio
import base64
import logging
import random
import ssl
from collections.abc import AsyncGenerator, Callable, Collection, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Self

from cryptography import x509
from kubernetes.aio.client import ApiClient

from tagpin.certificates import (
    CA_CERTIFICATE,
    CA_KEY,
    CERTIFICATE,
    KEY,
    Material,
    parse_certificates,
    renewed,
    to_pem,
)
from tagpin.cluster.api import Event, asking, watch
from tagpin.cluster.clients import Clients
from tagpin.cluster.context import LiveContext
from tagpin.cluster.objects import (
    MERGE,
    MUTATING_WEBHOOK_CONFIGURATIONS,
    SECRETS,
    Object,
    Objects,
    text,
)
from tagpin.errors import ClusterError, ConfigurationError

ATTEMPTS = 5
"""How often to start again when another writer was faster, before waiting."""
LONGEST_WAIT = 30.0
"""Seconds between two attempts while something is wrong."""
LONGEST_BLINDNESS = 5.0
"""The same while nothing tells of changes: a caBundle that was emptied refuses pods meanwhile."""
FIELD_MANAGER = "tagpin"
REMEDY = "apply tagpin's manifests again (kubectl apply -k manifests/base)"
CERTIFICATE_NAME = "cert-manager.io/certificate-name"
"""cert-manager annotates so the Secrets that it fills; a ca.key in there is a left-over of ours."""
INJECTED = ("cert-manager.io/inject-ca-from", "cert-manager.io/inject-ca-from-secret")
"""The annotations of a configuration whose caBundle cert-manager's cainjector writes."""

log = logging.getLogger(__name__)

Authorities = frozenset[x509.Certificate]


@dataclass(frozen=True, slots=True)
class _Secret:
    """What concerns us of a Secret."""

    version: str
    is_kept: bool
    """Whether cert-manager fills it."""
    data: Mapping[str, bytes]

    @classmethod
    def from_object(cls, found: Object) -> Self:
        """Read a Secret of the API; raises ValueError where it is none."""
        try:
            metadata, data = found["metadata"], found.get("data") or {}
            return cls(
                text(metadata["resourceVersion"]),
                not (metadata.get("annotations") or {}).keys().isdisjoint({CERTIFICATE_NAME}),
                {key: base64.b64decode(text(value)) for key, value in data.items()},
            )
        except (LookupError, TypeError, AttributeError) as error:
            raise ValueError("no Secret") from error


@dataclass(frozen=True, slots=True)
class _Configuration:
    """What concerns us of a MutatingWebhookConfiguration."""

    version: str
    is_injected: bool
    """Whether cert-manager writes the caBundles."""
    bundles: Mapping[str, Authorities]
    """The caBundle of each webhook, by its name."""

    @classmethod
    def from_object(cls, found: Object) -> Self:
        """Read a configuration of the API; raises ValueError where it is none."""
        try:
            metadata = found["metadata"]
            return cls(
                text(metadata["resourceVersion"]),
                not (metadata.get("annotations") or {}).keys().isdisjoint(INJECTED),
                {
                    text(webhook["name"]): _authorities(webhook["clientConfig"].get("caBundle"))
                    for webhook in found.get("webhooks") or ()
                },
            )
        except (LookupError, TypeError, AttributeError) as error:
            raise ValueError("no webhook configuration") from error


class CertificateKeeper:
    """Keeps `context` served with the newest certificate, and the caBundle with its CA.

    Needs `get` and `patch` on the Secret, and `get`, `patch` and `watch` on the
    MutatingWebhookConfiguration, by name. Neither is ever created here.
    """

    def __init__(
        self,
        client: ApiClient,
        *,
        names: Collection[str],
        directory: Path | None = None,
        namespace: str = "tagpin-system",
        secret: str = "tagpin-tls",  # noqa: S107 - the name of an object
        configuration: str = "tagpin",
        volume_interval: float = 10.0,
        api_interval: float = 300.0,
        settling: float = 10.0,
        clients: Clients | None = None,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """Prepare one; nothing is read or asked before `run`.

        Args:
            client: the connection to the Kubernetes API.
            names: DNS names and IP addresses that the API servers call the webhook by.
            directory: where the Secret is mounted, if it is.
            namespace: where the Secret is.
            secret: its name.
            configuration: the name of the MutatingWebhookConfiguration.
            volume_interval: seconds between two looks at the directory.
            api_interval: seconds between two looks at the Secret and the configuration.
            settling: seconds until all API servers have noticed a changed caBundle.
            clients: who may call; without, everybody.
            clock: tells the time, in UTC.
        """
        self._objects = Objects(client)
        self._names = tuple(names)
        self._directory = directory
        self._namespace = namespace
        self._secret = secret
        self._configuration = configuration
        self._volume_interval = volume_interval
        self._api_interval = api_interval
        self._settling = timedelta(seconds=settling)
        self._clock = clock

        self.ready = asyncio.Event()
        """Set once the first certificate is loaded."""
        self._tls = LiveContext(clients)
        self._problems = _Problems()
        self._lock = asyncio.Lock()
        self._on_volume: dict[str, bytes] = {}
        self._newest: Material | None = None
        self._served: Material | None = None
        self._published: dict[x509.Certificate, datetime] = {}
        """The CAs that every webhook's caBundle has, and since when as far as we saw."""
        self._superfluous: dict[x509.Certificate, datetime] = {}
        """The CAs in a caBundle that we don't need, and since when."""

    @property
    def context(self) -> ssl.SSLContext:
        """For the next handshake. Before `ready`, it is refused."""
        return self._tls.current

    @property
    def expires(self) -> datetime | None:
        """When the served certificate stops being valid, in UTC; None before `ready`."""
        return self._served.serving.expires if self._served else None

    @property
    def ca_expires(self) -> datetime | None:
        """The same of its CA; None where that is not known either."""
        return self._served.authority_expires if self._served else None

    @property
    def is_trusted(self) -> bool:
        """Whether every caBundle, as last seen, has the CA of the served certificate."""
        return self._served is not None and self._served.is_trusted_by(self._published)

    def is_valid(self, now: datetime) -> bool:
        """Whether a certificate is served that is valid at `now`."""
        return self._served is not None and self._served.serving.is_valid(now)

    async def run(self) -> None:
        """Work until cancelled, whatever the API and the files do; what is wrong is logged."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._keep_certificate())
            group.create_task(self._keep_bundle())

    # The two loops

    async def _keep_certificate(self) -> None:
        time = asyncio.get_running_loop().time
        failures, due = 0, 0.0
        while True:
            if self._look_at_volume():
                due = 0.0  # the Secret was written, and may want more
            if time() >= due:
                try:
                    await self._reconcile()
                except ClusterError as error:
                    self._problems.found("secret", str(error))
                    failures += 1
                    due = time() + _backoff(failures, self._api_interval)
                else:
                    self._problems.solved("secret")
                    failures = 0
                    due = time() + self._api_interval
            self._serve_newest()
            if self.ready.is_set() and not self.is_valid(self._clock()):
                self._problems.found("expiry", f"the served certificate expired: {self.expires}")
            else:
                self._problems.solved("expiry")
            await asyncio.sleep(min(self._volume_interval, max(0.0, due - time())))

    async def _keep_bundle(self) -> None:
        failures = 0
        while True:
            try:
                await self._follow_configuration()
            except ClusterError as error:
                if error.status != HTTPStatus.GONE:
                    self._problems.found("watch", str(error))
                failures += 1
            else:
                self._problems.solved("watch")
                failures = 0
            await asyncio.sleep(_backoff(failures, min(LONGEST_BLINDNESS, self._api_interval)))

    async def _follow_configuration(self) -> None:
        """Repair the configuration as it is now, then at each change, until the watch ends."""
        configuration = await self._read_configuration()
        if configuration is not None and self._is_amiss(configuration):
            await self._reconcile()
        async with aclosing(self._events(configuration)) as events:
            async for event in events:
                if event.type == "DELETED":
                    self._configuration_is_missing()
                elif self._is_amiss(_parsed(event)):
                    await self._reconcile()
                    # Should someone else insist on another caBundle, this is the pace.
                    await asyncio.sleep(min(1.0, self._api_interval))

    def _events(self, since: _Configuration | None) -> AsyncGenerator[Event, None]:
        selection = {"field_selector": f"metadata.name={self._configuration}"}
        if since is not None:
            selection["resource_version"] = since.version
        return watch(
            f"watch MutatingWebhookConfiguration {self._configuration}",
            partial(self._objects.open_watch, MUTATING_WEBHOOK_CONFIGURATIONS, None),
            selection,
        )

    # The Secret

    async def _reconcile(self) -> None:
        """Read the Secret, issue what is due, then repair the caBundle; raises ClusterError.

        In this order: the caBundle is never written from an older Secret than the newest.
        """
        async with self._lock:
            try:
                await self._renew_and_publish()
            finally:
                # Not before: whoever has just started is called as soon as it serves.
                self._serve_newest()

    async def _renew_and_publish(self) -> None:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                await self._renew_secret()
                await self._publish()
            except ClusterError as error:
                if error.status != HTTPStatus.CONFLICT or attempt == ATTEMPTS:
                    raise
            else:
                return

    async def _renew_secret(self) -> None:
        name = f"Secret {self._namespace}/{self._secret}"
        try:
            async with asking(f"read {name}"):
                found = await self._objects.get(SECRETS, self._namespace, self._secret)
                secret = _Secret.from_object(found)
        except ClusterError as error:
            if error.status == HTTPStatus.NOT_FOUND:
                remedy = f"{REMEDY}; if cert-manager makes it, see its Certificates there"
                raise ClusterError(f"{name} does not exist: {remedy}", error.status) from error
            raise
        renewal = None
        if not secret.is_kept:
            renewal = renewed(secret.data, self._names, self._clock(), self._settled())
        if renewal is None:
            self._take(secret.data, name)
            return
        try:
            async with asking(f"write {name}"):
                await self._objects.patch(
                    SECRETS,
                    self._namespace,
                    self._secret,
                    {
                        "metadata": {"resourceVersion": secret.version},
                        "data": {key: _base64(value) for key, value in renewal.data.items()},
                    },
                    content_type=MERGE,
                    field_manager=FIELD_MANAGER,
                )
        except ClusterError as error:
            if error.status != HTTPStatus.CONFLICT:
                self._take(secret.data, name)  # due, but better than nothing
            raise
        log.info("wrote %s, because %s", name, " and ".join(renewal.reasons))
        self._take(renewal.data, name)

    def _look_at_volume(self) -> bool:
        """Serve what is mounted, if that is new; whether anything in there has changed."""
        if self._directory is None:
            return False
        try:
            data = read_volume(self._directory)
        except OSError as error:
            self._problems.found("volume", f"cannot read {self._directory}: {error}")
            return False
        if data == self._on_volume:
            return False
        self._on_volume = data
        self._take(data, str(self._directory), may_lag=True)
        self._serve_newest()
        return True

    def _take(self, data: Mapping[str, bytes], origin: str, *, may_lag: bool = False) -> None:
        """Make this the newest material, if it is sound; a volume may lag behind the API."""
        if not any(data.get(name) for name in (CA_CERTIFICATE, CERTIFICATE, KEY)):
            return
        try:
            material = Material.parse(data)
        except ConfigurationError as error:
            self._problems.found(origin, f"{origin} is of no use: {error}")
            return
        self._problems.solved(origin)
        if may_lag and self._newest is not None and _issued(material) < _issued(self._newest):
            return
        self._newest = material

    # What is served

    def _serve_newest(self) -> None:
        """Load the newest certificate, unless a valid one is served that clients trust more."""
        old, new, now = self._served, self._newest, self._clock()
        if new is None or new == old:
            return
        if old is not None and old.serving == new.serving:
            self._served = new
            return
        if old is None:
            if self._is_news(new):
                return
        elif old.serving.is_valid(now) and not (
            new.serving.is_valid(now) and self._may_succeed(new, old)
        ):
            return
        try:
            self._tls.load(new.serving)
        except (ssl.SSLError, OSError) as error:
            self._problems.found("load", f"cannot load the certificate: {error}")
            return
        self._problems.solved("load")
        self._served = new
        self.ready.set()
        log.info("serving a certificate that expires at %s", new.serving.expires.isoformat())
        if not any(new.serving.is_for(name) for name in self._names):
            log.warning("the certificate is for none of %s", ", ".join(self._names))

    def _is_news(self, new: Material) -> bool:
        """Whether API servers, which trust others for now, are only just told of these CAs.

        Others serve meanwhile. Where nobody is trusted yet, or nobody was told, waiting is idle.
        """
        told = self._published.keys()
        return new.authorities < told and not new.authorities <= self._settled()

    def _may_succeed(self, new: Material, old: Material) -> bool:
        """Whether all API servers trust the new certificate, or all but those that lag behind.

        Nobody asks us before cert-manager replaces a CA in the caBundle.
        """
        if new.is_trusted_by(old.authorities) or new.authorities <= self._settled():
            return True
        return new.is_trusted_by(self._published) and not old.is_trusted_by(self._published)

    # The caBundle

    async def _publish(self) -> None:
        configuration = await self._read_configuration()
        if configuration is None:
            return
        differing = self._differing(configuration)
        if not differing:
            return
        name = f"MutatingWebhookConfiguration {self._configuration}"
        async with asking(f"write the caBundle of {name}"):
            written = await self._objects.patch(
                MUTATING_WEBHOOK_CONFIGURATIONS,
                None,
                self._configuration,
                {
                    # Without it, an entry removed meanwhile would be added, incomplete.
                    "metadata": {"resourceVersion": configuration.version},
                    "webhooks": [
                        {"name": each, "clientConfig": {"caBundle": _base64(to_pem(bundle))}}
                        for each, bundle in differing.items()
                    ],
                },
                content_type=MERGE,
                field_manager=FIELD_MANAGER,
            )
            configuration = _Configuration.from_object(written)
        self._differing(configuration)
        log.info("wrote the caBundle of %s: %s", name, ", ".join(differing))

    async def _read_configuration(self) -> _Configuration | None:
        """The configuration, or None where it does not exist; raises ClusterError."""
        try:
            async with asking(f"read MutatingWebhookConfiguration {self._configuration}"):
                found = await self._objects.get(
                    MUTATING_WEBHOOK_CONFIGURATIONS, None, self._configuration
                )
                return _Configuration.from_object(found)
        except ClusterError as error:
            if error.status != HTTPStatus.NOT_FOUND:
                raise
            self._configuration_is_missing()
            return None

    def _configuration_is_missing(self) -> None:
        self._published = {}
        self._problems.found(
            "configuration",
            f"MutatingWebhookConfiguration {self._configuration} does not exist: {REMEDY}",
        )

    def _is_amiss(self, configuration: _Configuration) -> bool:
        """Whether there is anything to write into it, or a Secret to read that it knows already."""
        return bool(self._differing(configuration)) or not self.is_trusted

    def _differing(self, configuration: _Configuration) -> dict[str, Authorities]:
        """Take note of the caBundles; webhook name → caBundle, for those that must change.

        A CA that we don't need is left in for a while: another replica, which has not seen the
        newest Secret yet, may still serve a certificate of it.
        """
        self._problems.solved("configuration")
        now = self._clock()
        bundles = configuration.bundles
        anywhere = frozenset[x509.Certificate]().union(*bundles.values())
        everywhere = anywhere.intersection(*bundles.values())
        self._published = {ca: self._published.get(ca, now) for ca in everywhere}

        required = self._required()
        if not required or configuration.is_injected:
            return {}
        superfluous = anywhere - required
        self._superfluous = {ca: self._superfluous.get(ca, now) for ca in superfluous}
        since = now - timedelta(seconds=2 * self._api_interval)
        tolerated = frozenset(ca for ca, seen in self._superfluous.items() if seen > since)
        wanted = {name: required | (bundle & tolerated) for name, bundle in bundles.items()}
        return {name: bundle for name, bundle in wanted.items() if bundle != bundles[name]}

    def _required(self) -> Authorities:
        """The CAs of what is served and of what is about to be; none where they are not ours."""
        if self._newest is None or not self._newest.authorities:
            return frozenset()
        served = self._served.authorities if self._served else frozenset()
        return self._newest.authorities | served

    def _settled(self) -> Authorities:
        """The CAs that all API servers trust by now."""
        until = self._clock() - self._settling
        return frozenset(ca for ca, since in self._published.items() if since <= until)


def read_volume(directory: Path) -> dict[str, bytes]:
    """The files of a mounted Secret, all of one version; those that are missing are left out.

    Kubelet swaps the link `..data` to change them all at once.
    """
    version = directory / "..data"
    folder = version.resolve() if version.exists() else directory
    data = {}
    for name in (CA_CERTIFICATE, CA_KEY, CERTIFICATE, KEY):
        try:
            data[name] = (folder / name).read_bytes()
        except FileNotFoundError:
            continue
    return data


class _Problems:
    """Logs each problem when it first appears, and when it is over."""

    def __init__(self) -> None:
        self._open: dict[str, str] = {}

    def found(self, topic: str, message: str) -> None:
        if message not in self._open.values():
            log.error("%s", message)
        self._open[topic] = message

    def solved(self, topic: str) -> None:
        message = self._open.pop(topic, None)
        if message is not None and message not in self._open.values():
            log.info("solved: %s", message)


def _backoff(failures: int, longest: float) -> float:
    longest = min(LONGEST_WAIT, longest)
    return min(longest, 0.5 * 2.0 ** min(failures, 10)) * random.uniform(0.5, 1.0)  # noqa: S311 - jitter


def _issued(material: Material) -> datetime:
    return material.serving.certificate.not_valid_before_utc


def _authorities(ca_bundle: str | None) -> Authorities:
    """The CAs of a caBundle as the API tells it; none if it is malformed."""
    try:
        return frozenset(parse_certificates(base64.b64decode(ca_bundle or "")))
    except (ValueError, ConfigurationError):
        return frozenset()


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()


def _parsed(event: Event) -> _Configuration:
    try:
        return _Configuration.from_object(event.object)
    except ValueError as error:
        raise ClusterError(f"a watch told of no MutatingWebhookConfiguration: {error}") from error
