"""What strangers say to us is repeated to nobody, and neither is what we know.

Neither in what a pod's author is told, nor in a log of any level, nor in an exception that somebody
may print one day.
"""

import base64
import traceback
from collections.abc import AsyncIterator, Iterator

import pytest

from fakes.raw import RawRegistry
from tagpin.app.logs import JsonLines, Text
from tagpin.errors import Unresolvable
from tagpin.keychain import Credential, Keychain
from tagpin.reference import Reference
from tagpin.registry.client import RegistryClient
from tagpin.registry.conversation import resolve_tag
from tagpin.registry.flow import Failure
from tagpin.registry.resolver import RegistryResolver

from .conftest import ADDRESSES, Net

MARK = "m4rk"
OURS = ("tagpin", "aiohttp.client", "aiohttp.internal", "aiohttp.websocket", "asyncio", "root")

NAME, PASSWORD, IDENTITY = "alice", "s3cr3t-password", "s3cr3t-identity"
BASIC = base64.b64encode(f"{NAME}:{PASSWORD}".encode()).decode()
TOKEN = "s3cr3t-token"
SECRETS = ("s3cr3t", BASIC.rstrip("="), base64.b64encode(IDENTITY.encode()).decode().rstrip("="))
REALM = "https://public.test:PORT/token"


def raw(*lines: str, body: str = "", status: str = f"200 {MARK}") -> bytes:
    """An answer, as it is on the wire."""
    length = f"Content-Length: {len(body)}"
    head = "\r\n".join([f"HTTP/1.1 {status}", length, "Connection: close", *lines])
    return f"{head}\r\n\r\n{body}".encode()


ANSWERS = {
    f"status {status}": raw(f"X-{MARK}: {MARK}", body=f'{{"errors":"{MARK}"}}', status=status)
    for status in map(f"{{}} {MARK}".format, (200, 204, 400, 401, 403, 404, 408, 429, 500, 799))
} | {
    "cookie": raw(f"Set-Cookie: {MARK}[]={MARK}; Path={MARK}; Expires={MARK}"),
    "bad cookie": raw(f"Set-Cookie: {MARK} {MARK}=x"),
    "cookies": raw(f"Set-Cookie: {MARK}", f"Set-Cookie: ={MARK};;", f'Set-Cookie: a="\\{MARK}'),
    "digest": raw(f"Docker-Content-Digest: {MARK}", f"Content-Type: {MARK}/{MARK}"),
    "encoding": raw(f"Content-Encoding: {MARK}", f"Content-Type: {MARK}", body=MARK),
    "retry": raw(f"Retry-After: {MARK}", f"RateLimit: {MARK}", status=f"429 {MARK}"),
    "redirect": raw(f"Location: https://public.test/{MARK}?{MARK}=1", status=f"307 {MARK}"),
    "redirect to nowhere": raw(f"Location: https://{MARK}@[::1", status=f"307 {MARK}"),
    "redirect in plain": raw(f"Location: http://public.test/{MARK}", status=f"307 {MARK}"),
    "redirect with a name": raw(f"Location: https://{MARK}:{MARK}@public.test/", status="307 x"),
    "basic": raw(f'WWW-Authenticate: Basic realm="{MARK}"', status=f"401 {MARK}"),
    "unknown scheme": raw(f"WWW-Authenticate: {MARK} {MARK}={MARK}", status=f"401 {MARK}"),
    "malformed": raw(f'WWW-Authenticate: Bearer realm="{MARK}', status=f"401 {MARK}"),
    "no realm": raw(f'WWW-Authenticate: Bearer realm="{MARK}"', status=f"401 {MARK}"),
    "realm": raw(
        f'WWW-Authenticate: Bearer realm="https://public.test:PORT/{MARK}?{MARK}={MARK}",'
        f'service="{MARK}",scope="{MARK}",error="{MARK}",error_description="{MARK}"',
        status=f"401 {MARK}",
    ),
    "realm in plain": raw(
        f'WWW-Authenticate: Bearer realm="http://public.test/{MARK}"', status=f"401 {MARK}"
    ),
    "status line": f"{MARK} {MARK} {MARK}\r\n\r\n{MARK}".encode(),
    "version": f"HTTP/{MARK} 200 OK\r\n\r\n".encode(),
    "number": f"HTTP/1.1 {MARK} OK\r\n\r\n".encode(),
    "header": f"HTTP/1.1 200 OK\r\n{MARK}\r\n\r\n".encode(),
    "header name": f"HTTP/1.1 200 OK\r\n{MARK} {MARK}: {MARK}\r\n\r\n".encode(),
    "header value": f"HTTP/1.1 200 OK\r\nX: {MARK}\0\r\n\r\n".encode(),
    "long header": f"HTTP/1.1 200 OK\r\nX: {MARK * 4000}\r\n\r\n".encode(),
    "length": f"HTTP/1.1 200 OK\r\nContent-Length: {MARK}\r\n\r\n{MARK}".encode(),
    "lengths": f"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\n{MARK}".encode(),
    "transfer": f"HTTP/1.1 200 OK\r\nTransfer-Encoding: {MARK}\r\n\r\n{MARK}".encode(),
    "chunk": f"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{MARK}\r\n{MARK}".encode(),
    "short": f"HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n{MARK}".encode(),
    "upgrade": raw(f"Upgrade: {MARK}", "Connection: upgrade", status=f"101 {MARK}"),
    "no http": f"\0\0{MARK}".encode(),
}


async def everything_said(client: RegistryClient, image: str) -> str:
    """What a conversation about an image leads to, in every form that it could be read in."""
    ref = Reference.parse(image)
    credential = Credential(NAME, PASSWORD, IDENTITY)
    registry = client.registry(ref.domain)
    said: list[str] = []
    try:
        flow = resolve_tag(registry, ref, [credential])
        said.append(repr(await client.run(flow, registry, within=20)))
    except Failure as failure:
        said.extend(forms(failure))
    resolver = RegistryResolver(client)
    keychain = Keychain(((ref.domain, credential),))
    try:
        resolution = await resolver.resolve(ref, keychain, namespace="team", max_age=60, within=20)
        said.append(repr(resolution))
    except Unresolvable as error:
        said.extend(forms(error))
    await resolver.aclose()
    return "\n".join(said)


def forms(error: BaseException) -> Iterator[str]:
    """An exception and all that is printed with it, as a log and as a debugger show them."""
    yield "".join(traceback.format_exception(error))
    seen: BaseException | None = error
    while seen is not None:
        yield f"{seen} {seen!r} {seen.args!r}"
        seen = seen.__cause__ if seen.__suppress_context__ else seen.__context__


def lines(caplog: pytest.LogCaptureFixture) -> str:
    """What we and the libraries that work for us have logged; not what the fakes' servers have."""
    ours = [each for each in caplog.records if each.name.startswith(OURS)]
    return "\n".join(form.format(each) for each in ours for form in (JsonLines(), Text()))


OPENINGS = {
    "basic": [raw('WWW-Authenticate: Basic realm="r"', status="401 x")],
    "bearer": [
        raw(f'WWW-Authenticate: Bearer realm="{REALM}"', status="401 x"),
        raw(body=f'{{"token": "{TOKEN}"}}', status="200 OK"),
    ],
}
"""What is answered first, so that the registry has a secret of ours when it goes wrong."""


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)
async def test_neither_what_a_registry_says_nor_what_it_is_told_is_shown(
    net: Net, answer: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[bytes] = []

    async def script(method: str) -> AsyncIterator[bytes]:
        saying = (told.pop(0) if told else answer).replace(b"PORT", str(net.port).encode())
        head, blank, body = saying.partition(b"\r\n\r\n")
        yield head + blank + (b"" if method == "HEAD" else body)

    async with RawRegistry(script, host=ADDRESSES["public.test"], tls=net.tls) as registry:
        net.port = registry.port
        for name, opening in OPENINGS.items():
            client = await net.client(read_timeout=1, ca=net.ca)
            told[:], before = opening, len(registry.requests)
            with caplog.at_level(1):
                said = await everything_said(client, net.image("public.test"))
            assert len(registry.requests) > before + len(opening), name
            for unspeakable in (MARK, *SECRETS):
                assert unspeakable not in said, name
                assert unspeakable not in lines(caplog), name


async def test_a_place_that_a_registry_names_is_for_the_operators_eyes(
    net: Net, caplog: pytest.LogCaptureFixture
) -> None:
    """The host alone, and not in what a pod's author is told."""
    registry = await net.registry("public.test", tokens=True)
    registry.realm = f"https://{MARK}.test/path-{MARK}?query-{MARK}"
    with caplog.at_level(1):
        outcome = await net.ask(net.image("public.test"))
    assert isinstance(outcome, Unresolvable)
    assert MARK not in str(outcome)
    logged = lines(caplog)
    assert f"{MARK}.test" in logged
    assert MARK not in logged.replace(f"{MARK}.test", "")


@pytest.mark.parametrize(
    "host", [f"{MARK}%0aINFO", f"{MARK}%1b[2J", f"{MARK}\u2028x", f"{MARK}%00"]
)
async def test_a_place_that_a_registry_names_forges_no_line_of_a_log(
    net: Net, host: str, caplog: pytest.LogCaptureFixture
) -> None:
    registry = await net.registry("public.test", tokens=True)
    registry.realm = f"https://{host}.test/token"
    with caplog.at_level(1):
        assert isinstance(await net.ask(net.image("public.test")), Unresolvable)
    assert all(each.getMessage().isprintable() for each in caplog.records)
