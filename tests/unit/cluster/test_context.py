"""Who gets through a handshake: clients of certain CAs alone, in every version of TLS."""

import asyncio
import logging
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import pytest
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fakes.clock import FakeClock
from tagpin.certificates import Pair, issue_ca, issue_serving, to_pem
from tagpin.cluster.clients import RECHECK, Clients
from tagpin.cluster.context import LiveContext
from tagpin.cluster.listener import Limits, Listener, Rejection
from tagpin.errors import ConfigurationError

NOW = datetime.now(UTC).replace(microsecond=0)
NAME = "tagpin.tagpin-system.svc"
CA, CLIENT_CA, OTHER_CA = (issue_ca(NOW - timedelta(days=days)) for days in range(3))
CLIENT, SERVER = ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH
VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]


def issue(
    ca: Pair = CLIENT_CA,
    *,
    common: str = "kube-apiserver",
    dns: Sequence[str] = (),
    usages: Sequence[x509.ObjectIdentifier] = (CLIENT,),
    ends: timedelta = timedelta(days=1),
    is_ca: bool = False,
) -> Pair:
    """A certificate for a client, unless it is said otherwise."""
    assert isinstance(ca.key, ec.EllipticCurvePrivateKey)
    key = ec.generate_private_key(ec.SECP256R1())
    builder = (
        x509.CertificateBuilder()
        .public_key(key.public_key())
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)]))
        .issuer_name(ca.certificate.subject)
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW - timedelta(days=2))
        .not_valid_after(NOW + ends)
        .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
    )
    if dns:
        names = [x509.DNSName(name) for name in dns]
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    if usages:
        builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
    return Pair((builder.sign(ca.key, hashes.SHA256()),), key)


class Outcome(NamedTuple):
    """What came of a request."""

    answer: str
    session: ssl.SSLSession | None = None
    is_resumed: bool = False


class Door:
    """A listener in front of a server that answers everything."""

    def __init__(self, live: LiveContext, port: int) -> None:
        self.live = live
        self.port = port
        self.rejected: list[Rejection] = []

    async def call(
        self,
        pair: Pair | None,
        folder: Path,
        *,
        version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3,
        name: str = NAME,
    ) -> str:
        """What came of a request: its status, or what the alert said."""
        return (await self.ask(trusting(pair, folder, version), name=name)).answer

    async def ask(
        self, trust: ssl.SSLContext, *, name: str = NAME, session: ssl.SSLSession | None = None
    ) -> Outcome:
        return await asyncio.to_thread(_request, self.port, trust, name, session)


def trusting(pair: Pair | None, folder: Path, version: ssl.TLSVersion) -> ssl.SSLContext:
    """A client's side, which has `pair` if anything."""
    trust = ssl.create_default_context(cadata=to_pem(CA.chain).decode())
    trust.minimum_version = trust.maximum_version = version
    if pair is not None:
        (folder / "client.pem").write_bytes(pair.certificate_pem + pair.key_pem)
        trust.load_cert_chain(folder / "client.pem")
    return trust


def _request(
    port: int, trust: ssl.SSLContext, name: str, session: ssl.SSLSession | None
) -> Outcome:
    try:
        with (
            socket.create_connection(("127.0.0.1", port), timeout=20) as plain,
            trust.wrap_socket(plain, server_hostname=name, session=session) as secured,
        ):
            secured.sendall(b"GET / HTTP/1.1\r\nHost: tagpin\r\n\r\n")
            status = secured.recv(1000).decode().partition("\r\n")[0]
            answer = status.removeprefix("HTTP/1.1 ")
            outcome = Outcome(answer, secured.session, is_resumed=bool(secured.session_reused))
            secured.unwrap()  # or the server would forget the session
            return outcome
    except ssl.SSLError as error:
        return Outcome(str(error.reason))


@asynccontextmanager
async def opened(clients: Clients | None, port: int) -> AsyncIterator[Door]:
    async def handler(_: web.BaseRequest) -> web.StreamResponse:
        return web.Response()

    live = LiveContext(clients)
    live.load(issue_serving(CA, [NAME, "127.0.0.1"], NOW))
    door = Door(live, port)
    server = web.Server(handler)
    listener = Listener(
        server, lambda: live.current, rejected=door.rejected.append, limits=Limits()
    )
    await listener.start("127.0.0.1", port)
    try:
        yield door
    finally:
        await listener.close()
        await server.shutdown(1)


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not is_so():  # noqa: ASYNC110 - nothing signals what is waited for
            await asyncio.sleep(0.005)


def write(file: Path, content: bytes | None) -> None:
    if content is None:
        file.unlink()
    else:
        file.write_bytes(content)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "ca.crt"
    file.write_bytes(to_pem(CLIENT_CA.chain))
    return file


# Handshakes


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", [NAME, "127.0.0.1"])  # the second is no server name
async def test_a_client_of_the_right_ca_gets_through(
    file: Path, tmp_path: Path, unused_tcp_port: int, version: ssl.TLSVersion, name: str
) -> None:
    async with opened(Clients(file), unused_tcp_port) as door:
        status = await door.call(issue(), tmp_path, version=version, name=name)

        assert status == "200 OK"
        assert door.rejected == []


REFUSED: dict[str, tuple[Callable[[], Pair | None], Rejection, str, str]] = {
    "none": (
        lambda: None,
        Rejection.NO_CERTIFICATE,
        "SSLV3_ALERT_HANDSHAKE_FAILURE",
        "TLSV13_ALERT_CERTIFICATE_REQUIRED",
    ),
    "another CA": (
        lambda: issue(OTHER_CA),
        Rejection.BAD_CERTIFICATE,
        "TLSV1_ALERT_UNKNOWN_CA",
        "TLSV1_ALERT_UNKNOWN_CA",
    ),
    "one of a CA with the right name": (
        lambda: issue(issue(OTHER_CA, common=_common(CLIENT_CA), is_ca=True)),
        Rejection.BAD_CERTIFICATE,
        "TLSV1_ALERT_DECRYPT_ERROR",
        "TLSV1_ALERT_DECRYPT_ERROR",
    ),
    "an expired one": (
        lambda: issue(ends=timedelta(days=-1)),
        Rejection.BAD_CERTIFICATE,
        "SSLV3_ALERT_CERTIFICATE_EXPIRED",
        "SSLV3_ALERT_CERTIFICATE_EXPIRED",
    ),
    "one for servers": (
        lambda: issue(usages=[SERVER]),
        Rejection.BAD_CERTIFICATE,
        "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE",
        "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE",
    ),
}


def _common(ca: Pair) -> str:
    (name,) = ca.certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(name.value)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("what", REFUSED)
async def test_whoever_has_no_right_certificate_fails_and_hears_why(
    file: Path, tmp_path: Path, unused_tcp_port: int, version: ssl.TLSVersion, what: str
) -> None:
    make, rejection, *alerts = REFUSED[what]
    async with opened(Clients(file), unused_tcp_port) as door:
        alert = await door.call(make(), tmp_path, version=version)

        assert alert == alerts[VERSIONS.index(version)]
        await until(lambda: door.rejected == [rejection])


async def test_without_a_file_everybody_gets_through(tmp_path: Path, unused_tcp_port: int) -> None:
    async with opened(None, unused_tcp_port) as door:
        assert await door.call(None, tmp_path) == "200 OK"


async def test_a_ca_that_is_listed_need_be_no_root(tmp_path: Path, unused_tcp_port: int) -> None:
    between = issue(CLIENT_CA, common="between", usages=[], is_ca=True)
    file = tmp_path / "ca.crt"
    file.write_bytes(between.certificate_pem)
    async with opened(Clients(file), unused_tcp_port) as door:
        assert await door.call(issue(between), tmp_path) == "200 OK"
        assert await door.call(issue(), tmp_path) == "TLSV1_ALERT_UNKNOWN_CA"


async def test_the_peer_is_told_of_once(
    file: Path, tmp_path: Path, unused_tcp_port: int, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(Clients(file), unused_tcp_port) as door:
        for _ in range(3):
            await door.call(None, tmp_path)

        await until(lambda: len(door.rejected) == 3)
        (record,) = caplog.records
        assert record.message.endswith("the client has no certificate")
        assert vars(record)["peer"] == "127.0.0.1"


# A file that changes


async def test_cas_change_without_a_restart(
    file: Path, tmp_path: Path, unused_tcp_port: int
) -> None:
    clock = FakeClock()
    old, new = issue(), issue(OTHER_CA)
    async with opened(Clients(file, clock=clock), unused_tcp_port) as door:
        for content, expected in (
            (to_pem([*CLIENT_CA.chain, *OTHER_CA.chain]), ["200 OK", "200 OK"]),
            (to_pem(OTHER_CA.chain), ["TLSV1_ALERT_UNKNOWN_CA", "200 OK"]),
        ):
            write(file, content)
            clock.advance(RECHECK)
            assert [await door.call(each, tmp_path) for each in (old, new)] == expected


@pytest.mark.parametrize("version", VERSIONS)
async def test_no_session_outlives_the_ca_that_vouched_for_it(
    file: Path, tmp_path: Path, unused_tcp_port: int, version: ssl.TLSVersion
) -> None:
    clock = FakeClock()
    trust = trusting(issue(), tmp_path, version)
    async with opened(Clients(file, clock=clock), unused_tcp_port) as door:
        first = await door.ask(trust)
        second = await door.ask(trust, session=first.session)
        assert second.answer == "200 OK"
        # TLS 1.3 has tickets alone, and gets none. Sessions of 1.2 can be taken up again.
        assert second.is_resumed == (version is ssl.TLSVersion.TLSv1_2)

        write(file, to_pem(OTHER_CA.chain))
        clock.advance(RECHECK)

        third = await door.ask(trust, session=second.session)
        assert third.answer == "TLSV1_ALERT_UNKNOWN_CA"


@pytest.mark.parametrize("content", [None, b"", b"-----BEGIN CERTIFICATE-----\nAAAA\n", b"\xff"])
async def test_a_file_of_no_use_leaves_the_cas_as_they_were_and_is_told_of_once(
    file: Path,
    tmp_path: Path,
    unused_tcp_port: int,
    caplog: pytest.LogCaptureFixture,
    content: bytes | None,
) -> None:
    clock = FakeClock()
    clients = Clients(file, clock=clock)
    async with opened(clients, unused_tcp_port) as door:
        write(file, content)
        with caplog.at_level(logging.WARNING, logger="tagpin.cluster.clients"):
            for _ in range(3):
                clock.advance(RECHECK)
                assert await door.call(issue(), tmp_path) == "200 OK"
        assert clients.is_broken
        assert await door.call(None, tmp_path) == "TLSV13_ALERT_CERTIFICATE_REQUIRED"
        told = [record for record in caplog.records if record.name == "tagpin.cluster.clients"]
        assert len(told) == 1
        assert str(file) in told[0].message

        write(file, to_pem(CLIENT_CA.chain))
        clock.advance(RECHECK)
        assert await door.call(issue(), tmp_path) == "200 OK"
        assert not clients.is_broken


@pytest.mark.parametrize("content", [None, b"", b"no PEM"])
def test_a_file_of_no_use_at_the_start_is_an_error_that_names_it(
    tmp_path: Path, content: bytes | None
) -> None:
    file = tmp_path / "ca.crt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigurationError, match=f"clientCaFile: '{file}': "):
        Clients(file)


# What else a certificate needs


@pytest.mark.parametrize(
    ("names", "pair", "flaw"),
    [
        ((), issue(common="anybody"), None),
        (("kube-apiserver",), issue(), None),
        (("kube-apiserver",), issue(common="a", dns=["b.test", "kube-apiserver"]), None),
        (("x", "kube-apiserver"), issue(), None),
        (("kube-apiserver",), issue(common="kube-apiserver-2"), "none of the names in clientNames"),
        (("kube-apiserver",), issue(common="*"), "none of the names in clientNames"),
        ((), issue(usages=[]), "it lacks the usage clientAuth"),
        ((), issue(usages=[CLIENT, SERVER]), None),
        ((), issue(ends=timedelta(days=-1)), "has expired"),
    ],
)
def test_a_certificate_is_for_clients_and_bears_one_of_the_names(
    file: Path, names: tuple[str, ...], pair: Pair, flaw: str | None
) -> None:
    found = Clients(file, names).flaw(pair.certificate.public_bytes(Encoding.DER))

    assert found == flaw or (flaw is not None and flaw in str(found))


@pytest.mark.parametrize("certificate", [None, b"", b"\x30\x03\x02\x01\x00"])
def test_no_certificate_is_a_flaw(file: Path, certificate: bytes | None) -> None:
    assert Clients(file).flaw(certificate) is not None
