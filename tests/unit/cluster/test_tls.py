"""Serving from the mounted Secret while the API server is away, over real sockets."""

import asyncio
import base64
import contextlib
import json
import logging
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Self

import pytest
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from kubernetes.aio.client import ApiClient, Configuration

from tagpin.certificates import (
    CA_CERTIFICATE,
    CERTIFICATE,
    KEY,
    Pair,
    issue_ca,
    issue_serving,
    parse_certificates,
    to_pem,
)
from tagpin.cluster.api import disconnect
from tagpin.cluster.context import LiveContext
from tagpin.cluster.tls import CertificateKeeper, read_volume

NOW = datetime.now(UTC).replace(microsecond=0)
NAME = "tagpin.tagpin-system.svc"
NAMES = (NAME, "127.0.0.1")
VERSION = {"resourceVersion": "1"}
CA = issue_ca(NOW - timedelta(days=100))


def issue(*, age: float = 0, names: tuple[str, ...] = NAMES) -> Pair:
    return issue_serving(CA, names, NOW - timedelta(days=age))


def files_of(pair: Pair) -> dict[str, bytes]:
    return {
        CA_CERTIFICATE: to_pem(CA.chain),
        CERTIFICATE: pair.certificate_pem,
        KEY: pair.key_pem,
    }


def write(directory: Path, files: Mapping[str, bytes]) -> None:
    for name, content in files.items():
        (directory / name).write_bytes(content)


async def until(is_so: Callable[[], bool], seconds: float = 5) -> None:
    async with asyncio.timeout(seconds):
        while not is_so():  # noqa: ASYNC110 - nothing signals what is waited for
            await asyncio.sleep(0.005)


@pytest.fixture
async def away() -> AsyncIterator[ApiClient]:
    """A client of an API server that is not there."""
    client = ApiClient(Configuration(host="http://127.0.0.1:9"))
    yield client
    await disconnect(client)


@contextlib.asynccontextmanager
async def running(client: ApiClient, directory: Path) -> AsyncIterator[CertificateKeeper]:
    keeper = CertificateKeeper(
        client, names=NAMES, directory=directory, volume_interval=0.01, api_interval=0.05
    )
    task = asyncio.create_task(keeper.run())
    try:
        yield keeper
        assert not task.done()
    finally:
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


class Connection:
    """A client that speaks with an echoing server."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    async def echoes(self) -> bool:
        self._writer.write(b"hello\n")
        return await self._reader.readline() == b"hello\n"

    @property
    def certificate(self) -> x509.Certificate:
        der = self._writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        return x509.load_der_x509_certificate(der)

    async def close(self) -> None:
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()


class Listener:
    """An echoing server on loopback, with the context under test."""

    def __init__(self, current: Callable[[], ssl.SSLContext]) -> None:
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        # OpenSSL calls this in every handshake, also where the client names no server.
        self._context.sni_callback = lambda side, *_: setattr(side, "context", current())
        self._connections: list[Connection] = []

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._echo, "127.0.0.1", ssl=self._context)
        self._port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        for connection in self._connections:
            await connection.close()
        self._server.close()
        await self._server.wait_closed()

    async def connect(self, *, name: str = NAME) -> Connection:
        client = ssl.create_default_context(cadata=to_pem(CA.chain).decode())
        client.verify_flags |= ssl.VERIFY_X509_STRICT
        opened = await asyncio.open_connection(
            "127.0.0.1", self._port, ssl=client, server_hostname=name
        )
        self._connections.append(Connection(*opened))
        return self._connections[-1]

    @staticmethod
    async def _echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while line := await reader.readline():
                writer.write(line)
            writer.close()
            await writer.wait_closed()


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.levelno >= logging.ERROR]


class TestVolume:
    def test_what_is_there_is_read(self, tmp_path: Path) -> None:
        assert read_volume(tmp_path) == {}
        write(tmp_path, {CERTIFICATE: b"1", "unrelated": b"2"})
        assert read_volume(tmp_path) == {CERTIFICATE: b"1"}

    def test_a_directory_that_is_missing_is_empty(self, tmp_path: Path) -> None:
        assert read_volume(tmp_path / "absent") == {}

    def test_the_files_are_those_of_the_version_that_kubelet_linked(self, tmp_path: Path) -> None:
        pair = issue()
        (tmp_path / "..1").mkdir()
        write(tmp_path / "..1", files_of(pair))
        (tmp_path / "..data").symlink_to("..1")
        for name in files_of(pair):
            (tmp_path / name).symlink_to(f"..data/{name}")
        assert read_volume(tmp_path) == files_of(pair)


class TestWithoutApi:
    async def test_the_mounted_certificate_is_served(self, away: ApiClient, tmp_path: Path) -> None:
        pair = issue()
        write(tmp_path, files_of(pair))
        async with running(away, tmp_path) as keeper, Listener(lambda: keeper.context) as listener:
            await asyncio.wait_for(keeper.ready.wait(), 5)
            for name in NAMES:  # the client names no server where it is an address
                connection = await listener.connect(name=name)
                assert connection.certificate == pair.certificate
                assert await connection.echoes()
            assert keeper.expires == pair.expires
            assert keeper.is_valid(NOW)
            assert not keeper.is_valid(NOW + timedelta(days=91))

    async def test_handshakes_are_refused_until_there_is_one(
        self, away: ApiClient, tmp_path: Path
    ) -> None:
        async with running(away, tmp_path) as keeper, Listener(lambda: keeper.context) as listener:
            assert await is_refused(listener.connect())
            assert not keeper.ready.is_set()
            assert keeper.expires is None
            assert not keeper.is_valid(NOW)

            write(tmp_path, files_of(issue()))
            await asyncio.wait_for(keeper.ready.wait(), 5)
            assert await (await listener.connect()).echoes()

    async def test_a_new_certificate_is_served_and_open_connections_stay(
        self, away: ApiClient, tmp_path: Path
    ) -> None:
        old, new = issue(age=60), issue()
        write(tmp_path, files_of(old))
        async with running(away, tmp_path) as keeper, Listener(lambda: keeper.context) as listener:
            await asyncio.wait_for(keeper.ready.wait(), 5)
            opened_before = await listener.connect()
            write(tmp_path, files_of(new))
            await until(lambda: keeper.expires == new.expires)
            assert (await listener.connect()).certificate == new.certificate
            assert opened_before.certificate == old.certificate
            assert await opened_before.echoes()

    async def test_a_half_written_pair_is_never_served(
        self, away: ApiClient, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        old, new = issue(age=60), issue()
        write(tmp_path, files_of(old))
        async with running(away, tmp_path) as keeper, Listener(lambda: keeper.context) as listener:
            await asyncio.wait_for(keeper.ready.wait(), 5)
            write(tmp_path, {CERTIFICATE: new.certificate_pem})
            await until(lambda: any("does not belong" in each for each in errors(caplog)))
            assert (await listener.connect()).certificate == old.certificate

            write(tmp_path, {KEY: new.key_pem})
            await until(lambda: keeper.expires == new.expires)
            assert (await listener.connect()).certificate == new.certificate

    async def test_a_certificate_outside_of_its_life_does_not_replace_a_valid_one(
        self, away: ApiClient, tmp_path: Path
    ) -> None:
        valid, not_yet_valid = issue(), issue(age=-1)
        write(tmp_path, files_of(valid))
        async with running(away, tmp_path) as keeper:
            await asyncio.wait_for(keeper.ready.wait(), 5)
            write(tmp_path, files_of(not_yet_valid))
            await asyncio.sleep(0.1)
            assert keeper.expires == valid.expires

    async def test_a_certificate_of_an_unpublished_ca_waits(
        self, away: ApiClient, tmp_path: Path
    ) -> None:
        known = issue()
        write(tmp_path, files_of(known))
        async with running(away, tmp_path) as keeper:
            await asyncio.wait_for(keeper.ready.wait(), 5)
            strange = issue_ca(NOW)
            serving = issue_serving(strange, NAMES, NOW + timedelta(minutes=1))
            write(tmp_path, files_of(serving) | {CA_CERTIFICATE: to_pem(strange.chain)})
            await asyncio.sleep(0.1)
            assert keeper.expires == known.expires

    async def test_each_problem_is_told_once(
        self, away: ApiClient, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        write(tmp_path, files_of(issue()) | {KEY: b"junk"})
        async with running(away, tmp_path):
            await until(lambda: len(errors(caplog)) == 3)
            await asyncio.sleep(0.3)
        assert sorted(message.partition(":")[0] for message in errors(caplog)) == [
            f"{tmp_path} is of no use",
            "cannot read MutatingWebhookConfiguration tagpin",
            "cannot read Secret tagpin-system/tagpin-tls",
        ]

    async def test_no_private_key_is_ever_told(
        self, away: ApiClient, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.DEBUG)
        pair = issue()
        write(tmp_path, files_of(pair) | {KEY: pair.key_pem[:-60]})
        async with running(away, tmp_path):
            await until(lambda: any("private key" in each for each in errors(caplog)))
        assert pair.key_pem.splitlines()[1].decode() not in caplog.text


class Api:
    """An API server with tagpin's Secret and configuration, as a test makes them."""

    def __init__(self) -> None:
        self.secret: Any = {"metadata": VERSION}
        self.configuration: Any = {"metadata": VERSION, "webhooks": [hook("a")]}
        self.patches: list[Any] = []
        self.events: list[Any] = []

    async def answer(self, request: web.Request) -> web.StreamResponse:
        if request.query.get("watch"):
            lines = "".join(json.dumps(event) + "\n" for event in self.events)
            return web.Response(text=lines)
        if request.method == "PATCH":
            self.patches.append(await request.json())
        is_secret = request.path == "/api/v1/namespaces/tagpin-system/secrets/tagpin-tls"
        return web.json_response(self.secret if is_secret else self.configuration)


def hook(name: str, **config: Any) -> dict[str, Any]:
    return {"name": name, "clientConfig": config}


@pytest.fixture
async def api() -> AsyncIterator[tuple[Api, ApiClient]]:
    api, app = Api(), web.Application()
    app.router.add_route("*", "/{path:.*}", api.answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    client = ApiClient(Configuration(host=f"http://127.0.0.1:{runner.addresses[0][1]}"))
    yield api, client
    await client.close()
    await runner.cleanup()


class TestAnswers:
    """What an API server may say, and anything that may answer in its place."""

    @pytest.mark.parametrize(
        ("secret", "told"),
        [
            ([], "no object"),
            ({}, "no Secret"),
            ({"metadata": None}, "no Secret"),
            ({"metadata": {}}, "no Secret"),
            ({"metadata": {"resourceVersion": 7}}, "no Secret"),
            ({"metadata": VERSION | {"annotations": "text"}}, "no Secret"),
            ({"metadata": VERSION, "data": "text"}, "no Secret"),
            ({"metadata": VERSION, "data": {CERTIFICATE: None}}, "no Secret"),
            ({"metadata": VERSION, "data": {CERTIFICATE: "ab"}}, "Incorrect padding"),
            ({"metadata": VERSION, "data": {CERTIFICATE: "é"}}, "ASCII"),
        ],
    )
    async def test_what_is_no_secret_is_told_and_never_written(
        self,
        api: tuple[Api, ApiClient],
        secret: Any,
        told: str,
        tmp_path: Path,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        server, client = api
        server.secret = secret
        async with running(client, tmp_path):
            await until(lambda: bool(errors(caplog)))
            await asyncio.sleep(0.1)

        assert {each.partition(": ")[0] for each in errors(caplog)} == {
            "cannot read Secret tagpin-system/tagpin-tls"
        }
        assert told in errors(caplog)[0]
        assert server.patches == []

    @pytest.mark.parametrize(
        "configuration",
        [
            {},
            {"metadata": None},
            {"metadata": {}},
            {"metadata": VERSION | {"annotations": ["a"]}},
            {"metadata": VERSION, "webhooks": 7},
            {"metadata": VERSION, "webhooks": [None]},
            {"metadata": VERSION, "webhooks": [{}]},
            {"metadata": VERSION, "webhooks": [{"name": "a"}]},
            {"metadata": VERSION, "webhooks": [{"name": 7, "clientConfig": {}}]},
            {"metadata": VERSION, "webhooks": [{"name": "a", "clientConfig": None}]},
            {"metadata": VERSION, "webhooks": [hook("a", caBundle=7)]},
        ],
    )
    async def test_what_is_no_configuration_is_told_and_never_written(
        self,
        api: tuple[Api, ApiClient],
        configuration: Any,
        tmp_path: Path,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        server, client = api
        server.configuration = configuration
        async with running(client, tmp_path) as keeper:
            await asyncio.wait_for(keeper.ready.wait(), 5)
            await until(lambda: bool(errors(caplog)))

        assert set(errors(caplog)) == {
            "cannot read MutatingWebhookConfiguration tagpin: no webhook configuration"
        }
        assert not any("webhooks" in patch for patch in server.patches)

    async def test_a_watch_that_tells_of_something_else_is_told(
        self, api: tuple[Api, ApiClient], tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        server, client = api
        server.events = [{"type": "MODIFIED", "object": 7}]
        async with running(client, tmp_path):
            await until(lambda: bool(errors(caplog)))

        assert set(errors(caplog)) == {
            "a watch told of no MutatingWebhookConfiguration: no webhook configuration"
        }

    @pytest.mark.parametrize("bundle", [None, "", "no base64!", "é", "bm8gUEVN"])
    async def test_what_says_null_holds_nothing_and_is_filled(
        self,
        api: tuple[Api, ApiClient],
        bundle: str | None,
        tmp_path: Path,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        server, client = api
        null = {"metadata": VERSION | {"annotations": None}}
        server.secret = null | {"data": None}
        server.configuration = null | {"webhooks": [hook("a", caBundle=bundle)]}
        async with running(client, tmp_path):
            await until(lambda: any("webhooks" in patch for patch in server.patches))

        assert errors(caplog) == []
        assert {patch["metadata"]["resourceVersion"] for patch in server.patches} == {"1"}
        written = next(patch for patch in server.patches if "webhooks" in patch)
        ((name, config),) = [each.values() for each in written["webhooks"]]
        assert name == "a"
        assert parse_certificates(base64.b64decode(config["caBundle"]))

    async def test_a_configuration_without_webhooks_wants_nothing(
        self, api: tuple[Api, ApiClient], tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        server, client = api
        server.configuration = {"metadata": VERSION, "webhooks": None}
        async with running(client, tmp_path) as keeper:
            await asyncio.wait_for(keeper.ready.wait(), 5)
            await asyncio.sleep(0.1)

        assert errors(caplog) == []
        assert not any("webhooks" in patch for patch in server.patches)


class TestLiveContext:
    @pytest.mark.parametrize("rsa_first", [True, False])
    async def test_a_change_of_key_type_leaves_nothing_of_the_old_certificate(
        self, *, rsa_first: bool
    ) -> None:
        pairs = [issue(), issue_rsa()]
        first, second = reversed(pairs) if rsa_first else pairs
        live = LiveContext()
        async with Listener(lambda: live.current) as listener:
            for pair in (first, second):
                live.load(pair)
                assert (await listener.connect()).certificate == pair.certificate

    async def test_tls_below_1_2_is_refused(self) -> None:
        assert LiveContext().current.minimum_version is ssl.TLSVersion.TLSv1_2

    async def test_a_chain_that_is_too_long_is_an_error_and_not_a_hang(self) -> None:
        pair = issue()
        with pytest.raises(OSError, match="without blocking"):
            LiveContext().load(Pair(pair.chain * 1000, pair.key))


async def is_refused(connecting: Awaitable[Connection]) -> bool:
    """In TLS 1.3 a client learns of its refusal only when it reads."""
    try:
        return not await (await connecting).echoes()
    except (ssl.SSLError, ConnectionError):
        return True


def issue_rsa() -> Pair:
    """What cert-manager issues where nobody asks for another algorithm."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    return _sign(key, CA, ExtendedKeyUsageOID.SERVER_AUTH)


def _sign(
    key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey, ca: Pair, usage: x509.ObjectIdentifier
) -> Pair:
    assert isinstance(ca.key, ec.EllipticCurvePrivateKey)
    public = key.public_key()
    issuer = ca.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "someone")]))
        .issuer_name(ca.certificate.subject)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW - timedelta(minutes=1))
        .not_valid_after(NOW + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(NAME)]), critical=False)
        .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(issuer), critical=False
        )
        .sign(ca.key, hashes.SHA256())
    )
    return Pair((certificate,), key)
