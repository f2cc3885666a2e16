"""The Secret and the caBundle on a real API server, with the rights of tagpin's own account."""

import asyncio
import base64
import contextlib
import itertools
import json
import logging
import re
import shlex
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import pytest
from cryptography import x509
from kubernetes.aio.client import AdmissionregistrationV1Api, ApiClient, Configuration

from cluster.callers import Callers, MountedSecret, write_volume
from cluster.controlplane import PROGRAMS, ControlPlane
from cluster.programs import LOOPBACK, free_ports
from cluster.requirement import require_programs
from conftest import Figure
from tagpin.certificates import (
    CA_CERTIFICATE,
    CA_KEY,
    CERTIFICATE,
    KEY,
    Pair,
    issue_ca,
    issue_serving,
    parse_certificates,
    renewed,
    to_pem,
)
from tagpin.cluster.api import connect, disconnect
from tagpin.cluster.server import WebhookServer, exchange
from tagpin.cluster.tls import CERTIFICATE_NAME, CertificateKeeper
from tagpin.verdict import Result, Verdict

NOW = datetime.now(UTC).replace(microsecond=0)
NAMES = ("tagpin.tagpin-system.svc", "127.0.0.1")
BASE = Path(__file__).parents[2] / "manifests" / "base"
CONFIGURATION = BASE / "mutatingwebhookconfiguration.yaml"
WEBHOOKS = 4

Authorities = frozenset[x509.Certificate]


class Cluster:
    """A control plane with tagpin's manifests, and what tests do to the two objects."""

    def __init__(self, control_plane: ControlPlane) -> None:
        self.kubectl = control_plane.kubectl
        self.admin = control_plane.admin
        self._audit_events = control_plane.audit_events
        self.kubectl("apply", "-k", str(BASE))
        self.kubeconfig = control_plane.kubeconfig_for_token(
            control_plane.token("tagpin-system", "tagpin")
        )

    def reset(self) -> None:
        """The two objects as they are right after installation."""
        self.kubectl("delete", "-f", str(CONFIGURATION), "--ignore-not-found")
        self.kubectl("-n", "tagpin-system", "delete", "secret", "tagpin-tls", "--ignore-not-found")
        self.kubectl("apply", "-f", str(CONFIGURATION), "-f", str(BASE / "secret.yaml"))

    @property
    def secret(self) -> dict[str, bytes]:
        text = self.kubectl("-n", "tagpin-system", "get", "secret", "tagpin-tls", "-ojson").stdout
        data = json.loads(text).get("data", {})
        return {name: base64.b64decode(value) for name, value in data.items()}

    def write_secret(self, data: dict[str, bytes] | None) -> None:
        """Replace all of its data; None empties it, as an administrator would for a new CA."""
        encoded = {name: base64.b64encode(value).decode() for name, value in (data or {}).items()}
        patch = json.dumps([{"op": "add", "path": "/data", "value": encoded}])
        self.kubectl(
            *("-n", "tagpin-system", "patch", "secret", "tagpin-tls", "--type=json", "-p", patch)
        )

    @property
    def bundles(self) -> list[Authorities]:
        """The caBundle of each webhook."""
        text = self.kubectl("get", "mutatingwebhookconfiguration", "tagpin", "-ojson").stdout
        encoded = [each["clientConfig"].get("caBundle") for each in json.loads(text)["webhooks"]]
        return [
            frozenset(parse_certificates(base64.b64decode(each))) if each else frozenset()
            for each in encoded
        ]

    def write_bundle(self, webhook: int, authorities: Authorities) -> None:
        """What a person with rights does by mistake."""
        value = base64.b64encode(to_pem(authorities)).decode()
        path = f"/webhooks/{webhook}/clientConfig/caBundle"
        patch = json.dumps([{"op": "add", "path": path, "value": value}])
        self.kubectl("patch", "mutatingwebhookconfiguration", "tagpin", "--type=json", "-p", patch)

    def are_exactly(self, secret: dict[str, bytes]) -> bool:
        """Whether every caBundle holds the CAs of the Secret and nothing else."""
        return self.bundles == [frozenset(parse_certificates(secret[CA_CERTIFICATE]))] * WEBHOOKS

    def answers_to_writes(self, resource: str = "secrets") -> list[int]:
        """The status of each of tagpin's own attempts to write the Secret, or another resource."""
        return [
            event["responseStatus"]["code"]
            for event in self._audit_events()
            if event["verb"] == "patch"
            and event["user"]["username"] == "system:serviceaccount:tagpin-system:tagpin"
            and event["objectRef"]["resource"] == resource
        ]

    def is_published(self) -> bool:
        return self.are_exactly(self.secret)

    def run_documented(self, line: str) -> None:
        """Run a command that stands in a comment of the Secret's manifest; `line` begins it."""
        text = (BASE / "secret.yaml").read_text()
        (command,) = re.findall(rf"^# +kubectl ({re.escape(line)}.*)$", text, re.MULTILINE)
        self.kubectl(*shlex.split(command))


@pytest.fixture(scope="module")
def installed() -> Iterator[Cluster]:
    """A control plane of its own: other tests use the same names."""
    require_programs(*PROGRAMS)
    with ControlPlane(scheduler=False, nodes=0) as control_plane:
        yield Cluster(control_plane)


@pytest.fixture
def cluster(installed: Cluster) -> Cluster:
    installed.reset()
    return installed


class Racer(ApiClient):
    """A client that, after its first answer, waits for the others at the barrier."""

    def __init__(self, configuration: Configuration, barrier: asyncio.Barrier) -> None:
        super().__init__(configuration)
        self._barrier: asyncio.Barrier | None = barrier

    async def call_api(self, *arguments: Any, **options: Any) -> Any:
        answer: Any = await super().call_api(*arguments, **options)
        if self._barrier is not None and "/secrets/" in arguments[1]:
            barrier, self._barrier = self._barrier, None
            await answer.read()
            await barrier.wait()
        return answer


@contextlib.asynccontextmanager
async def replica(
    kubeconfig: Path,
    *,
    directory: Path | None = None,
    clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    volume_interval: float = 0.05,
    api_interval: float = 0.3,
    settling: float = 0.2,
    together: asyncio.Barrier | None = None,
) -> AsyncIterator[CertificateKeeper]:
    client = await connect(kubeconfig)
    if together is not None:
        client = Racer(client.configuration, together)
    keeper = CertificateKeeper(
        client,
        names=NAMES,
        directory=directory,
        volume_interval=volume_interval,
        api_interval=api_interval,
        settling=settling,
        clock=clock,
    )
    task = asyncio.create_task(keeper.run())
    try:
        yield keeper
        assert not task.done()
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        await disconnect(client)


async def until(is_so: Callable[[], bool], seconds: float = 20, every: float = 0.02) -> None:
    """Ask, in a thread, until it is so."""
    async with asyncio.timeout(seconds):
        while not await asyncio.to_thread(is_so):  # noqa: ASYNC110 - nothing signals it
            await asyncio.sleep(every)


async def ready(*keepers: CertificateKeeper) -> None:
    async with asyncio.timeout(20):
        for keeper in keepers:
            await keeper.ready.wait()


def served(keeper: CertificateKeeper, trusted: Authorities) -> x509.Certificate:
    """What a strict client that trusts these CAs is served; raises ssl.SSLError if it refuses."""
    client_side = ssl.create_default_context(cadata=to_pem(trusted).decode())
    client_side.verify_flags |= ssl.VERIFY_X509_STRICT
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_side.wrap_bio(to_client, to_server, server_hostname=NAMES[0])
    server = keeper.context.wrap_bio(to_server, to_client, server_side=True)
    for side in (client, server, client, server):
        with contextlib.suppress(ssl.SSLWantReadError):
            side.do_handshake()
    der = client.getpeercert(binary_form=True)
    assert der is not None
    return x509.load_der_x509_certificate(der)


def pair_of(secret: dict[str, bytes]) -> Pair:
    return Pair.parse(secret[CERTIFICATE], secret[KEY])


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.levelno >= logging.ERROR]


class TestFirstStart:
    @pytest.mark.parametrize("number", [2, 5])
    async def test_replicas_that_race_end_with_one_ca(self, cluster: Cluster, number: int) -> None:
        before = len(cluster.answers_to_writes())
        all_saw_it_empty = asyncio.Barrier(number)
        async with contextlib.AsyncExitStack() as stack:
            keepers = [
                await stack.enter_async_context(
                    replica(cluster.kubeconfig, together=all_saw_it_empty)
                )
                for _ in range(number)
            ]
            await ready(*keepers)
            await until(cluster.is_published)
            secret = cluster.secret
            assert len(parse_certificates(secret[CA_CERTIFICATE])) == 1
            for keeper in keepers:
                certificate = served(keeper, cluster.bundles[0])
                assert certificate == pair_of(secret).certificate
            answers = [200, *[409] * (number - 1)]
            assert sorted(cluster.answers_to_writes()[before:]) == answers

    async def test_nothing_is_written_where_nothing_is_due(self, cluster: Cluster) -> None:
        async with replica(cluster.kubeconfig) as one, replica(cluster.kubeconfig) as two:
            await ready(one, two)
            await until(cluster.is_published)
            before = versions(cluster)
            await asyncio.sleep(1)
            assert versions(cluster) == before

    async def test_a_missing_secret_is_told_and_awaited(
        self, cluster: Cluster, caplog: pytest.LogCaptureFixture
    ) -> None:
        cluster.kubectl("-n", "tagpin-system", "delete", "secret", "tagpin-tls")
        async with replica(cluster.kubeconfig) as keeper:
            await until(lambda: bool(errors(caplog)))
            (told,) = errors(caplog)
            assert told == (
                "Secret tagpin-system/tagpin-tls does not exist: apply tagpin's manifests again"
                " (kubectl apply -k manifests/base); if cert-manager makes it, see its"
                " Certificates there"
            )
            assert not keeper.ready.is_set()
            cluster.kubectl("apply", "-f", str(BASE / "secret.yaml"))
            await ready(keeper)


def versions(cluster: Cluster) -> list[str]:
    return [
        cluster.kubectl(*get, "-o", "jsonpath={.metadata.resourceVersion}").stdout
        for get in (
            ("get", "mutatingwebhookconfiguration", "tagpin"),
            ("-n", "tagpin-system", "get", "secret", "tagpin-tls"),
        )
    ]


class TestBundle:
    async def test_apply_changes_neither_bundle_nor_secret(self, cluster: Cluster) -> None:
        async with replica(cluster.kubeconfig) as keeper:
            await ready(keeper)
            await until(cluster.is_published)
            secret = cluster.secret
            cluster.kubectl("apply", "-k", str(BASE))
            assert cluster.secret == secret
            assert cluster.is_published()
            cluster.kubectl("apply", "--server-side", "--force-conflicts", "-k", str(BASE))
            assert cluster.secret == secret
            assert cluster.is_published()

    async def test_an_edit_is_repaired_at_once(self, cluster: Cluster) -> None:
        # The long interval leaves it to the watch.
        async with replica(cluster.kubeconfig, api_interval=600) as keeper:
            await ready(keeper)
            await until(cluster.is_published)
            (ours,) = {*cluster.bundles}
            cluster.write_bundle(2, frozenset(issue_ca(NOW).chain))
            await until(lambda: all(ours <= bundle for bundle in cluster.bundles))

    async def test_a_strange_ca_is_removed(self, cluster: Cluster) -> None:
        async with replica(cluster.kubeconfig) as keeper:
            await ready(keeper)
            await until(cluster.is_published)
            cluster.write_bundle(1, cluster.bundles[1] | {*issue_ca(NOW).chain})
            assert not cluster.is_published()
            await until(cluster.is_published)

    async def test_a_configuration_made_again_gets_it_back(
        self, cluster: Cluster, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with replica(cluster.kubeconfig, api_interval=600) as keeper:
            await ready(keeper)
            await until(cluster.is_published)
            cluster.kubectl("delete", "mutatingwebhookconfiguration", "tagpin")
            await until(lambda: any("MutatingWebhookConfig" in each for each in errors(caplog)))
            cluster.kubectl("apply", "-f", str(CONFIGURATION))
            await until(cluster.is_published)

    async def test_a_configuration_that_comes_later_gets_it(self, cluster: Cluster) -> None:
        cluster.kubectl("delete", "mutatingwebhookconfiguration", "tagpin")
        async with replica(cluster.kubeconfig, api_interval=600) as keeper:
            await ready(keeper)
            await asyncio.sleep(0.3)
            cluster.kubectl("apply", "-f", str(CONFIGURATION))
            await until(cluster.is_published)


class TestRenewal:
    async def test_a_due_certificate_is_renewed_once_for_all(self, cluster: Cluster) -> None:
        late = timedelta()

        def clock() -> datetime:
            return datetime.now(UTC) + late

        async with (
            replica(cluster.kubeconfig, clock=clock) as one,
            replica(cluster.kubeconfig, clock=clock) as two,
        ):
            await ready(one, two)
            before = cluster.secret
            late = timedelta(days=61)
            await until(lambda: cluster.secret[CERTIFICATE] != before[CERTIFICATE])
            after = cluster.secret
            assert after[CA_CERTIFICATE] == before[CA_CERTIFICATE]
            await until(lambda: {one.expires, two.expires} == {pair_of(after).expires})
            await asyncio.sleep(0.7)
            assert cluster.secret == after

    async def test_clients_trust_what_is_served_at_all_times_while_the_ca_changes(
        self, cluster: Cluster
    ) -> None:
        before = old_ca()
        (old,) = parse_certificates(before[CA_CERTIFICATE])
        serving = pair_of(before)
        cluster.write_secret(before)
        for webhook in range(WEBHOOKS):
            cluster.write_bundle(webhook, frozenset({old}))
        async with replica(cluster.kubeconfig) as one, replica(cluster.kubeconfig) as two:
            await ready(one, two)
            seen = set()
            async with asyncio.timeout(20):
                while True:
                    trusted = frozenset.intersection(
                        *await asyncio.to_thread(lambda: cluster.bundles)
                    )
                    now_served = {served(keeper, trusted) for keeper in (one, two)}
                    seen |= now_served
                    if len(now_served) == 1 and serving.certificate not in now_served:
                        break
            assert serving.certificate in seen
            assert len(seen) == 2
            secret = cluster.secret
            assert parse_certificates(secret[CA_CERTIFICATE])[0] == old
            assert cluster.is_published()

    async def test_an_emptied_secret_gets_a_new_ca_and_clients_never_notice(
        self, cluster: Cluster
    ) -> None:
        # `slow` would sleep through all of it, were it not for the watch.
        async with replica(cluster.kubeconfig, api_interval=2) as slow:
            await ready(slow)
            await until(cluster.is_published)
            before = cluster.secret
            cluster.write_secret(None)
            async with replica(cluster.kubeconfig, api_interval=2) as fresh:
                await ready(fresh)
                await until(lambda: len(cluster.bundles[0]) == 2)
                old, new = (pair_of(each).certificate for each in (before, cluster.secret))
                assert served(fresh, cluster.bundles[0]) == new
                await until(lambda: served(slow, cluster.bundles[0]) != old)
                assert served(slow, cluster.bundles[0]) == new
                await until(cluster.is_published)
                assert len(cluster.bundles[0]) == 1

    async def test_broken_content_of_ours_is_issued_again(self, cluster: Cluster) -> None:
        async with replica(cluster.kubeconfig) as keeper:
            await ready(keeper)
            before = cluster.secret
            cluster.write_secret(before | {KEY: b"junk"})
            await until(lambda: cluster.secret[KEY] != b"junk")
            after = cluster.secret
            assert after[CA_CERTIFICATE] == before[CA_CERTIFICATE]
            await until(lambda: keeper.expires == pair_of(after).expires)


class TestSomeoneElsesCertificate:
    def foreign(self) -> dict[str, bytes]:
        ca = issue_ca(NOW)
        serving = issue_serving(ca, NAMES, NOW - timedelta(days=70))
        return {
            CA_CERTIFICATE: ca.certificate_pem,
            CERTIFICATE: serving.certificate_pem,
            KEY: serving.key_pem,
        }

    async def test_it_is_served_and_never_rewritten(self, cluster: Cluster) -> None:
        foreign = self.foreign()
        cluster.write_secret(foreign)
        async with replica(cluster.kubeconfig) as keeper:
            await ready(keeper)
            await until(cluster.is_published)
            assert served(keeper, cluster.bundles[0]) == pair_of(foreign).certificate
            await asyncio.sleep(0.7)
            assert cluster.secret == foreign

    async def test_clients_trust_what_is_served_at_all_times_while_its_ca_changes(
        self, cluster: Cluster
    ) -> None:
        first, second = self.foreign(), self.foreign()
        cluster.write_secret(first)
        async with replica(cluster.kubeconfig) as one, replica(cluster.kubeconfig) as two:
            await ready(one, two)
            await until(cluster.is_published)
            cluster.write_secret(second)
            async with asyncio.timeout(20):
                while True:
                    trusted = await asyncio.to_thread(lambda: cluster.bundles[0])
                    now_served = {served(keeper, trusted) for keeper in (one, two)}
                    if now_served == {pair_of(second).certificate}:
                        break
            await until(cluster.is_published)

    async def test_a_bundle_wiped_while_the_ca_changes_gets_both_cas(
        self, cluster: Cluster
    ) -> None:
        first, second = self.foreign(), self.foreign()
        cluster.write_secret(first)
        # The API servers are given for ever to notice, so the old certificate stays.
        async with replica(cluster.kubeconfig, settling=3600) as keeper:
            await ready(keeper)
            await until(cluster.is_published)
            both = frozenset(parse_certificates(first[CA_CERTIFICATE] + second[CA_CERTIFICATE]))
            cluster.write_secret(second)
            await until(lambda: cluster.bundles == [both] * WEBHOOKS)
            cluster.write_bundle(0, frozenset())
            await until(lambda: cluster.bundles == [both] * WEBHOOKS)
            assert served(keeper, both) == pair_of(first).certificate

    async def test_broken_content_leaves_the_old_certificate_in_service(
        self, cluster: Cluster, caplog: pytest.LogCaptureFixture
    ) -> None:
        foreign = self.foreign()
        cluster.write_secret(foreign)
        async with replica(cluster.kubeconfig) as keeper:
            await ready(keeper)
            broken = foreign | {KEY: b"junk"}
            cluster.write_secret(broken)
            await until(lambda: any("not an unencrypted PEM" in each for each in errors(caplog)))
            assert keeper.is_valid(NOW)
            assert cluster.secret == broken
            cluster.write_bundle(0, frozenset())
            await until(lambda: cluster.are_exactly(foreign))


class Gate:
    """A way to the API server that can be shut."""

    def __init__(self, kubeconfig: Path, folder: Path) -> None:
        config = json.loads(kubeconfig.read_text())
        self._cluster = config["clusters"][0]["cluster"]
        self._target = urlsplit(self._cluster["server"])
        self._config = config
        self._folder = folder
        self._port = 0
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._passes = asyncio.Event()
        self._passes.set()
        self.kubeconfig = folder / "gate.kubeconfig"

    async def __aenter__(self) -> Self:
        await self.open()
        self._cluster["server"] = f"https://127.0.0.1:{self._port}"
        self.kubeconfig.write_text(json.dumps(self._config))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.shut()

    async def open(self) -> None:
        self._server = await asyncio.start_server(self._pass, "127.0.0.1", self._port)
        self._port = self._server.sockets[0].getsockname()[1]

    async def shut(self) -> None:
        """Refuse connections, and cut those that are open."""
        if self._server is not None:
            self._server.close()
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    def hold(self) -> None:
        """Take connections in, and let nothing through."""
        self._passes.clear()

    def release(self) -> None:
        self._passes.set()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self._passes.wait()
        there = await asyncio.open_connection(self._target.hostname, self._target.port)
        self._writers |= {writer, there[1]}
        with contextlib.suppress(OSError):
            await asyncio.gather(_pump(reader, there[1]), _pump(there[0], writer))


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while chunk := await reader.read(65536):
            writer.write(chunk)
            await writer.drain()
    finally:
        writer.close()


@pytest.fixture
async def gate(cluster: Cluster, tmp_path: Path) -> AsyncIterator[Gate]:
    async with Gate(cluster.kubeconfig, tmp_path) as gate:
        yield gate


class TestCertManager:
    """What cert-manager does, played; test_cert_manager.py has the real one."""

    async def test_what_it_keeps_is_never_written(self, cluster: Cluster) -> None:
        ours, theirs = dict(issued()), issued()
        theirs[CA_KEY] = ours[CA_KEY]  # left over from before
        cluster.write_secret(theirs)
        cluster.kubectl(*ANNOTATE, "secret", "tagpin-tls", f"{CERTIFICATE_NAME}=tagpin")
        cluster.kubectl(*ANNOTATE, "mutatingwebhookconfiguration", "tagpin", INJECTED)
        async with replica(cluster.kubeconfig) as keeper:
            await ready(keeper)
            before = versions(cluster)
            await asyncio.sleep(1)
            assert versions(cluster) == before
            assert cluster.secret == theirs
            assert cluster.bundles == [frozenset()] * WEBHOOKS
            assert not keeper.is_trusted
            (ca,) = parse_certificates(theirs[CA_CERTIFICATE])
            assert keeper.ca_expires == ca.not_valid_after_utc
            for webhook in range(WEBHOOKS):
                cluster.write_bundle(webhook, frozenset({ca}))
            await until(lambda: keeper.is_trusted)

    async def test_where_it_has_replaced_the_ca_the_new_certificate_is_served_at_once(
        self, cluster: Cluster
    ) -> None:
        first, second = issued(), issued()
        for each in (first, second):
            del each[CA_KEY]
        cluster.write_secret(first)
        cluster.kubectl(*ANNOTATE, "mutatingwebhookconfiguration", "tagpin", INJECTED)
        # Neither the interval nor the settling time would do it.
        async with replica(cluster.kubeconfig, api_interval=600, settling=600) as keeper:
            await ready(keeper)
            cluster.write_secret(second)
            (ca,) = parse_certificates(second[CA_CERTIFICATE])
            for webhook in range(WEBHOOKS):
                cluster.write_bundle(webhook, frozenset({ca}))
            await until(lambda: keeper.expires == pair_of(second).expires)
            assert served(keeper, cluster.bundles[0]) == pair_of(second).certificate


ANNOTATE = ("-n", "tagpin-system", "annotate")
INJECTED = "cert-manager.io/inject-ca-from=tagpin-system/tagpin"


def issued() -> dict[str, bytes]:
    renewal = renewed({}, NAMES, NOW - timedelta(days=next(_days)), trusted=())
    assert renewal is not None
    return dict(renewal.data)


_days = itertools.count(1)


class TestVolume:
    async def test_it_is_read_first_and_what_the_api_has_counts(
        self, cluster: Cluster, gate: Gate, tmp_path: Path
    ) -> None:
        older, newer = two_of_one_ca()
        for on_volume, in_api in ((older, newer), (newer, older)):
            cluster.reset()
            cluster.write_secret(in_api)
            volume = tmp_path / pair_of(on_volume).expires.date().isoformat()
            volume.mkdir()
            write_volume(volume, on_volume)
            gate.hold()
            async with replica(gate.kubeconfig, directory=volume) as keeper:
                await ready(keeper)
                assert keeper.expires == pair_of(on_volume).expires
                gate.release()
                await until(lambda: keeper.expires == pair_of(in_api).expires)  # noqa: B023
                await until(cluster.is_published)

    async def test_one_that_lags_behind_the_api_takes_nothing_back(
        self, cluster: Cluster, tmp_path: Path
    ) -> None:
        older, newer = two_of_one_ca()
        cluster.write_secret(newer)
        tmp_path.joinpath("volume").mkdir()
        async with replica(cluster.kubeconfig, directory=tmp_path / "volume") as keeper:
            await ready(keeper)
            write_volume(tmp_path / "volume", older)
            seen = set()
            for _ in range(500):
                seen.add(keeper.expires)
                await asyncio.sleep(0.001)
            assert seen == {pair_of(newer).expires}

    async def test_a_change_there_is_a_reason_to_look_at_the_secret(
        self, cluster: Cluster, tmp_path: Path
    ) -> None:
        tmp_path.joinpath("volume").mkdir()
        async with replica(
            cluster.kubeconfig, directory=tmp_path / "volume", api_interval=600
        ) as keeper:
            await ready(keeper)
            write_volume(tmp_path / "volume", before := cluster.secret)
            await asyncio.sleep(0.5)
            cluster.write_secret(None)
            write_volume(tmp_path / "volume", {}, version="..2")
            await until(lambda: cluster.secret.get(CERTIFICATE) not in (None, before[CERTIFICATE]))


def two_of_one_ca() -> tuple[dict[str, bytes], dict[str, bytes]]:
    """An older certificate, and a newer one."""
    newer = issued()
    ca = Pair.parse(newer[CA_CERTIFICATE], newer[CA_KEY])
    pair = issue_serving(ca, NAMES, NOW - timedelta(days=30))
    return newer | {CERTIFICATE: pair.certificate_pem, KEY: pair.key_pem}, newer


class TestInsistence:
    async def test_whoever_resets_the_bundle_again_and_again_is_answered_at_a_pace(
        self, cluster: Cluster
    ) -> None:
        async with replica(cluster.kubeconfig, api_interval=600) as keeper:
            await ready(keeper)
            await until(cluster.is_published)
            (ours,) = {*cluster.bundles}
            written = "mutatingwebhookconfigurations"
            before = len(cluster.answers_to_writes(written))
            time = asyncio.get_running_loop().time
            began = time()
            admin = await connect(cluster.admin)
            wipe = [{"op": "add", "path": "/webhooks/0/clientConfig/caBundle", "value": ""}]
            while time() < began + 3:
                await AdmissionregistrationV1Api(admin).patch_mutating_webhook_configuration(
                    "tagpin", wipe, _content_type="application/json-patch+json"
                )
                await asyncio.sleep(0.02)
            await disconnect(admin)
            await until(lambda: cluster.bundles == [ours] * WEBHOOKS)
            repairs = len(cluster.answers_to_writes(written)) - before
            assert 1 <= repairs <= 2 + (time() - began)


@contextlib.asynccontextmanager
async def serving(keeper: CertificateKeeper) -> AsyncIterator[int]:
    """The webhook server with the certificate of a keeper, which allows everything: its port."""
    (port,) = free_ports(1)

    async def allow(request: Any, **_: object) -> Any:
        exchange.get().verdict = Verdict(Result.UNTOUCHED)
        response = {"uid": request["request"]["uid"], "allowed": True}
        return request | {"response": response}

    server = WebhookServer(
        keeper, paths=["enforce"], known=lambda *_: None, address=LOOPBACK, port=port
    )
    running = asyncio.create_task(_run(server(allow)))
    try:
        async with asyncio.timeout(20):
            while not server.is_listening:  # noqa: ASYNC110 - nothing signals it
                await asyncio.sleep(0.02)
        yield port
    finally:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running


async def _run(server: AsyncIterator[object]) -> None:
    async for _ in server:
        pass


class Loaded:
    """Two replicas with volumes of their own that lag, in front of API servers that do."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self.cluster = cluster
        self.keepers: list[CertificateKeeper] = []
        self.callers: Callers
        self._folder = folder
        self._stack = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Self:
        enter = self._stack.enter_async_context
        ports = []
        for lag in (0.3, 0.9):
            folder = self._folder / f"late by {lag} s"
            await enter(MountedSecret(self.cluster.admin, folder, period=0.1, lag=lag))
            self.keepers.append(await enter(self.replica(folder)))
            ports.append(await enter(serving(self.keepers[-1])))
        self.callers = await enter(Callers(self.cluster.admin, ports))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    def replica(
        self, folder: Path | None = None
    ) -> contextlib.AbstractAsyncContextManager[CertificateKeeper]:
        return replica(
            self.cluster.kubeconfig,
            directory=folder,
            volume_interval=0.1,
            api_interval=2,
            settling=1.5,
        )

    async def all_serve_another_than(self, before: dict[str, bytes]) -> None:
        """Return when all serve a new certificate, and clients trust its CA and no other."""

        def has_changed() -> bool:
            secret = self.cluster.secret
            return (
                secret.get(CERTIFICATE) not in (None, before[CERTIFICATE])
                and self.cluster.is_published()
                and self._served() == {pair_of(secret).certificate}
            )

        await until(has_changed, seconds=60, every=0.3)

    def _served(self) -> set[x509.Certificate]:
        return {served(each, self.cluster.bundles[0]) for each in self.keepers}


NEW_CERTIFICATE = "-n tagpin-system patch secret tagpin-tls -p"
NEW_CA = "-n tagpin-system patch secret tagpin-tls --type=json"


class TestUnderLoad:
    """Volumes and API servers lag; what tagpin waits for is shortened to less than a fifth."""

    async def test_no_request_fails_while_certificate_and_ca_change(
        self, cluster: Cluster, tmp_path: Path, figure: Figure
    ) -> None:
        cluster.write_secret(old_ca())
        async with Loaded(cluster, tmp_path) as loaded:
            before = cluster.secret
            await loaded.all_serve_another_than(before)  # its CA is due

            before = cluster.secret
            cluster.run_documented(NEW_CERTIFICATE)
            await loaded.all_serve_another_than(before)
            assert cluster.secret[CA_CERTIFICATE] == before[CA_CERTIFICATE]

            before = cluster.secret
            cluster.run_documented(NEW_CA)
            await loaded.all_serve_another_than(before)
            (old, new) = (
                parse_certificates(each[CA_CERTIFICATE]) for each in (before, cluster.secret)
            )
            assert {*old}.isdisjoint(new)

        callers = loaded.callers
        figure("requests while two CAs and a certificate changed", callers.told)
        assert callers.failures == []
        assert min(callers.answered["new"], callers.answered["kept"]) > 50

    async def test_no_request_fails_where_a_fresh_replica_issues_another_ca(
        self, cluster: Cluster, tmp_path: Path
    ) -> None:
        async with Loaded(cluster, tmp_path) as loaded:
            before = cluster.secret
            cluster.write_secret(None)
            async with loaded.replica() as fresh, serving(fresh) as port:
                loaded.callers.call(port)
                await loaded.all_serve_another_than(before)
                assert served(fresh, cluster.bundles[0]) == pair_of(cluster.secret).certificate
                await loaded.callers.leave(port)
        assert loaded.callers.failures == []


def old_ca() -> dict[str, bytes]:
    """A CA in the last third of its life, and a certificate of it that is not due."""
    ca = issue_ca(NOW - timedelta(days=2500))
    pair = issue_serving(ca, NAMES, NOW - timedelta(days=10))
    return {
        CA_CERTIFICATE: ca.certificate_pem,
        CA_KEY: ca.key_pem,
        CERTIFICATE: pair.certificate_pem,
        KEY: pair.key_pem,
    }


class TestApiAway:
    async def test_the_volume_serves_and_the_rest_follows_when_it_is_back(
        self, cluster: Cluster, gate: Gate, tmp_path: Path
    ) -> None:
        async with replica(cluster.kubeconfig) as earlier:
            await ready(earlier)
        cluster.write_bundle(0, frozenset(issue_ca(NOW).chain))
        secret = cluster.secret
        volume = tmp_path / "volume"
        volume.mkdir()
        for name, content in secret.items():
            (volume / name).write_bytes(content)

        await gate.shut()
        async with replica(gate.kubeconfig, directory=volume) as keeper:
            await ready(keeper)
            assert keeper.expires == pair_of(secret).expires
            await asyncio.sleep(0.3)
            assert not cluster.is_published()
            await gate.open()
            await until(cluster.is_published)
            assert cluster.secret == secret

    async def test_what_was_edited_meanwhile_is_repaired(
        self, cluster: Cluster, gate: Gate
    ) -> None:
        async with replica(gate.kubeconfig, api_interval=600) as keeper:
            await ready(keeper)
            await until(cluster.is_published)
            await gate.shut()
            cluster.write_bundle(0, frozenset(issue_ca(NOW).chain))
            (ours,) = {*cluster.bundles[1:]}
            await gate.open()
            await until(lambda: all(ours <= bundle for bundle in cluster.bundles))
