"""A request goes where it may, by the way that the operator chose, and no further."""

import asyncio
import logging
import ssl
import traceback
from typing import Any

import pytest
from aiohttp import web
from yarl import URL

from cluster.authority import Authority
from fakes.faults import Fault, Handler, answering, hanging, redirecting, with_header
from fakes.proxy import FakeProxy
from fakes.raw import RawRegistry, saying
from fakes.registry import FakeRegistry
from tagpin.errors import Reason
from tagpin.pinning import Resolution
from tagpin.reference import Reference
from tagpin.registry.conversation import resolve_tag
from tagpin.registry.flow import Failure, Request, Response
from tagpin.registry.places import Places, RegistryPolicy, RegistrySettings
from tagpin.registry.proxies import Proxies
from tagpin.registry.transport import Transport, Unconnected, Visit

from .conftest import ADDRESSES, RULES, Net, digest, reason, settle

INNER = "10.1.2.3"
"""A private address that a proxy reaches: what is on loopback never goes through one."""

ALICE = ("alice", "pa55word")


async def proxy_of(net: Net, **settings: Any) -> FakeProxy:
    """A proxy at a blocked address, which resolves names itself."""
    names = ADDRESSES | {INNER: ADDRESSES["private.test"], "169.254.1.1": ADDRESSES["blocked.test"]}
    return await net.stack.enter_async_context(FakeProxy(names, **settings))


def through(proxy: FakeProxy, no_proxy: str = "", login: str = "") -> Proxies:
    url = f"http://{login}{'@' if login else ''}{proxy.name}"
    return Proxies.parse(https=url, http=url, no_proxy=no_proxy)


async def failure_of(net: Net, image: str, **settings: Any) -> Failure:
    """What the operator gets to know of a question that has no answer."""
    client = await net.client(**({"retries": 0} | settings))
    ref = Reference.parse(image)
    registry = client.registry(ref.domain)
    with pytest.raises(Failure) as failure:
        await client.run(resolve_tag(registry, ref, ()), registry, within=10)
    return failure.value


async def exchange(net: Net, url: str, **settings: Any) -> Response:
    """The answer to one GET."""
    places = Places(settings.pop("registries", ()))
    values: dict[str, Any] = {"rules": RULES, "ca": net.ca, "names": net.names} | settings
    async with Transport(places, **values) as transport:
        registry = places.registry(URL(url).authority)
        request = Request("GET", URL(url), {}, 1000)
        return await transport.exchange(request, Visit(registry, RULES))


# Through a proxy


async def test_a_registry_is_reached_by_a_tunnel_through_the_proxy(net: Net) -> None:
    registry, proxy = await net.registry("public.test"), await proxy_of(net)
    pushed = registry.push_image("demo/app", "v1")
    assert digest(await net.ask(net.image("public.test"), proxies=through(proxy))) == pushed
    assert [each.method for each in proxy.requests] == ["CONNECT"]
    assert proxy.targets == [f"public.test:{net.port}"]
    assert net.names.asked == []


async def test_a_tunnel_serves_more_than_one_request(net: Net) -> None:
    registry, proxy = await net.registry("public.test", tokens=True), await proxy_of(net)
    for tag in ("one", "two"):
        registry.push_image("demo/app", tag)
    resolver = await net.resolver(proxies=through(proxy))
    for tag in ("one", "two"):
        digest(await settle(resolver, net.image("public.test", tag=tag)))
    assert len(registry.requests) > 3
    assert len(proxy.requests) == 1


async def test_neither_the_proxy_nor_the_registry_hears_the_others_login(net: Net) -> None:
    registry = await net.registry("public.test", users=dict([ALICE]))
    proxy = await proxy_of(net, login="proxyuser:pr0xy")
    pushed = registry.push_image("demo/app", "v1")
    proxies = through(proxy, login="proxyuser:pr0xy")
    assert digest(await net.ask(net.image("public.test"), ALICE, proxies=proxies)) == pushed
    assert all("authorization" not in asked.headers for asked in proxy.requests)
    assert all("proxy-authorization" in asked.headers for asked in proxy.requests)
    assert any(seen.authorization for seen in registry.requests)
    assert all("proxy-authorization" not in seen.headers for seen in registry.requests)


async def test_the_tokens_of_a_registry_come_through_the_proxy_too(net: Net) -> None:
    registry = await net.registry("public.test", users=dict([ALICE]), tokens=True)
    server = await net.registry("other.test")
    server.fault(lambda request, _: registry._answer(request), path="/token")
    registry.realm = f"https://other.test:{net.port}/token"
    proxy = await proxy_of(net)
    pushed = registry.push_image("demo/app", "v1")
    outcome = await net.ask(net.image("public.test"), ALICE, proxies=through(proxy))
    assert digest(outcome) == pushed
    assert set(proxy.targets) == {f"public.test:{net.port}", f"other.test:{net.port}"}
    assert net.names.asked == []


async def test_a_final_dot_is_no_part_of_the_name_that_a_certificate_is_for(net: Net) -> None:
    registry, other = await net.registry("public.test"), await net.registry("other.test")
    pushed = other.push_image("demo/app", "v1")
    registry.fault(redirecting(f"https://other.test.:{net.port}{{path}}"))
    proxy = await net.stack.enter_async_context(
        FakeProxy(ADDRESSES | {"other.test.": ADDRESSES["other.test"]})
    )
    assert digest(await net.ask(net.image("public.test"), proxies=through(proxy))) == pushed


# Which proxy


async def test_a_registry_may_have_a_proxy_of_its_own(net: Net) -> None:
    for name in ("public.test", "other.test", "private.test"):
        (await net.registry(name)).push_image("demo/app", "v1")
    common, special = await proxy_of(net), await proxy_of(net)
    resolver = await net.resolver(
        proxies=through(common, no_proxy="other.test"),
        registries=[
            RegistrySettings(f"other.test:{net.port}", proxy=special.url),
            RegistrySettings(f"pr*.test:{net.port}", proxy=""),
        ],
    )
    for name in ("public.test", "other.test", "private.test"):
        digest(await settle(resolver, net.image(name)))
    assert common.targets == [f"public.test:{net.port}"]
    assert special.targets == [f"other.test:{net.port}"]
    assert net.names.asked == ["private.test"]


async def test_a_proxy_is_found_by_its_name(net: Net) -> None:
    registry, proxy = await net.registry("public.test"), await proxy_of(net)
    pushed = registry.push_image("demo/app", "v1")
    net.names.add("proxy.corp.test", ["127.0.0.1"])
    proxies = Proxies.parse(https=f"http://proxy.corp.test:{proxy.port}")
    assert digest(await net.ask(net.image("public.test"), proxies=proxies)) == pushed
    assert net.names.asked == ["proxy.corp.test"]  # as the operator wrote it: it may be a Service


# A proxy that fails


FAULTS = {
    "refused": None,
    "407": b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n",
    "403": b"HTTP/1.1 403 Forbidden\r\nContent-Length: 6\r\n\r\nsecret",
    "502": b"HTTP/1.1 502 Bad Gateway\r\n\r\n",
    "302": b"HTTP/1.1 302 Found\r\nLocation: https://127.3.0.1/\r\n\r\n",
    "garbage": b"SSH-2.0-OpenSSH\r\n\r\n",
    "closed": b"",
    "large": b"HTTP/1.1 200 OK\r\nX: " + b"x" * 10_000 + b"\r\n\r\n",
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
@pytest.mark.parametrize("listed", [True, False])
async def test_where_the_proxy_fails_its_registries_are_unreachable(
    net: Net, fault: bytes | None, *, listed: bool
) -> None:
    registry, proxy = await net.registry("public.test"), await proxy_of(net)
    if fault is None:
        await proxy.stop()
    proxy.fault = fault
    settings = [RegistrySettings(f"public.test:{net.port}")] if listed else []
    failure = await failure_of(
        net,
        net.image("public.test"),
        proxies=through(proxy, login="proxyuser:pr0xy"),
        registries=settings,
    )
    assert failure.reason is Reason.UNREACHABLE
    assert failure.concealed is not listed
    assert proxy.name in str(failure)
    shown = "".join(traceback.format_exception(failure))
    for secret in ("pr0xy", "proxyuser", "cHJveHl1c2VyOnByMHh5", "secret"):
        assert secret not in shown
    assert registry.requests == []


async def test_a_proxy_whose_name_is_unknown_is_named(net: Net) -> None:
    proxies = Proxies.parse(https="http://proxy.absent.test:3128")
    failure = await failure_of(net, "public.test/demo/app:v1", proxies=proxies)
    assert failure.reason is Reason.UNREACHABLE
    assert "proxy.absent.test:3128" in str(failure)


async def test_a_proxy_that_is_silent_is_not_waited_for_for_ever(net: Net) -> None:
    proxy = await proxy_of(net)
    proxy.silent = True
    failure = await failure_of(
        net,
        "public.test/demo/app:v1",
        proxies=through(proxy),
        connect_timeout=0.02,
        read_timeout=0.02,
    )
    assert failure.reason is Reason.TIMEOUT
    assert failure.concealed
    assert proxy.name in str(failure)


async def test_a_proxy_that_may_recover_is_told_from_one_that_wants_something(net: Net) -> None:
    proxy = await proxy_of(net)
    for fault, is_passing in (("502", True), ("closed", True), ("407", False), ("403", False)):
        proxy.fault = FAULTS[fault]
        with pytest.raises(Failure) as failure:
            await exchange(net, "https://public.test/v2/", proxies=through(proxy))
        assert isinstance(failure.value, Unconnected) is is_passing


async def test_no_password_is_logged(net: Net, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    proxy = await proxy_of(net, login="proxyuser:other")
    outcome = await net.ask("public.test/a:v1", proxies=through(proxy, login="proxyuser:pr0xy"))
    assert reason(outcome) is Reason.UNREACHABLE
    assert proxy.name in caplog.text
    assert "pr0xy" not in caplog.text
    assert "pr0xy" not in str(outcome)


# What strangers may do to whom a proxy reaches


@pytest.mark.parametrize(
    "host",
    [
        "127.3.0.1",
        "169.254.169.254",
        "[::ffff:7f03:1]",
        "[64:ff9b::7f03:1]",
        "[64:ff9b::a9fe:a9fe]",
        "[2002:7f03:1::]",
        "[::7f03:1]",
        "[2001:0:7f03:1::]",
        "[fe80::1]",
        "[fd00:ec2::254]",
        "metadata.google.internal",
        "kubernetes.default.svc",
        "localhost",
        "127.1",
        "0x7f.1",
        "2130706433.0x0",
        "127.3.0.0x1",
    ],
)
async def test_a_proxy_is_not_asked_for_what_is_blocked(net: Net, host: str) -> None:
    proxy = await proxy_of(net)
    outcome = await net.ask(f"{host}:{proxy.port}/demo/app:v1", proxies=through(proxy))
    assert reason(outcome) is Reason.BLOCKED
    assert proxy.requests == []


@pytest.mark.parametrize("way", ["realm", "redirect"])
@pytest.mark.parametrize(
    "host",
    [
        "127.2.0.1",
        "10.1.2.3",
        "[::ffff:127.2.0.1]",
        "[64:ff9b::7f02:1]",
        "[2002:7f02:1::]",
        "[fd12::1]",
        "127.3.0.1",
        "169.254.169.254",
        "2130706433",
        "0x7f000001",
        "127.1",
        "169.254.169.254.",
        "metadata",
        "kubernetes.default.svc",
    ],
)
async def test_a_registry_behind_a_proxy_may_not_lead_to_an_inner_address(
    net: Net, way: str, host: str
) -> None:
    registry, proxy = await net.registry("public.test", tokens=way == "realm"), await proxy_of(net)
    if way == "realm":
        registry.realm = f"https://{host}:{net.port}/token"
    else:
        registry.fault(redirecting(f"https://{host}:{net.port}{{path}}"))
    failure = await failure_of(net, net.image("public.test"), proxies=through(proxy))
    assert failure.reason is Reason.BLOCKED
    assert set(proxy.targets) == {f"public.test:{net.port}"}


async def test_an_odd_port_is_not_reached_through_a_proxy_either(net: Net) -> None:
    registry, proxy = await net.registry("public.test"), await proxy_of(net)
    registry.fault(redirecting("https://other.test:22/"))
    failure = await failure_of(net, net.image("public.test"), proxies=through(proxy))
    assert failure.reason is Reason.BLOCKED
    assert set(proxy.targets) == {f"public.test:{net.port}"}


@pytest.mark.parametrize("name", ["private.test", "blocked.test"])
async def test_what_needs_no_proxy_is_guarded_directly(net: Net, name: str) -> None:
    registry = await net.registry(name)
    proxy = await proxy_of(net)
    proxies = through(proxy, no_proxy=".test,127.0.0.0/8")
    outcome = await net.ask(net.image(name), proxies=proxies)
    assert reason(outcome) is (Reason.BLOCKED if name == "blocked.test" else Reason.UNREACHABLE)
    assert bool(registry.requests) is (name == "private.test")
    literal = await net.ask(net.image(ADDRESSES[name]), proxies=proxies)
    assert reason(literal) is reason(outcome)
    assert proxy.requests == []


@pytest.mark.parametrize("way", ["realm", "redirect"])
async def test_a_registry_behind_a_proxy_may_not_lead_to_a_private_place_that_needs_none(
    net: Net, way: str
) -> None:
    registry, proxy = await net.registry("public.test", tokens=way == "realm"), await proxy_of(net)
    inner = await net.registry("private.test", tokens=True)
    registry.realm = f"https://private.test:{net.port}/token"
    if way == "redirect":
        registry.fault(redirecting(f"https://private.test:{net.port}{{path}}"))
    proxies = through(proxy, no_proxy="private.test")
    outcome = await net.ask(net.image("public.test"), proxies=proxies)
    assert reason(outcome) is Reason.UNREACHABLE
    assert inner.requests == []


async def test_a_private_registry_that_needs_no_proxy_leads_on_through_it(net: Net) -> None:
    registry, target = await net.registry("private.test"), await net.registry("other.test")
    pushed = target.push_image("demo/app", "v1")
    proxy = await proxy_of(net)
    registry.fault(redirecting(f"https://other.test:{net.port}{{path}}"))
    proxies = through(proxy, no_proxy="private.test")
    assert digest(await net.ask(net.image("private.test"), proxies=proxies)) == pushed
    assert set(proxy.targets) == {f"other.test:{net.port}"}


async def test_a_stranger_may_not_lead_a_proxy_to_a_place_that_the_operator_listed(
    net: Net,
) -> None:
    registry, proxy = await net.registry("public.test"), await proxy_of(net)
    listed = await net.registry("private.test")
    registry.fault(redirecting(f"https://{INNER}:{net.port}{{path}}"))
    settings = [RegistrySettings(f"{INNER}:{net.port}")]
    outcome = await net.ask(net.image("public.test"), proxies=through(proxy), registries=settings)
    assert reason(outcome) is Reason.BLOCKED
    assert listed.requests == []


async def test_a_listed_registry_may_lie_anywhere_behind_a_proxy(net: Net) -> None:
    registry, proxy = await net.registry("blocked.test"), await proxy_of(net)
    pushed = registry.push_image("demo/app", "v1")
    image = net.image("169.254.1.1")
    settings = [RegistrySettings(f"169.254.1.1:{net.port}", ca=net.ca)]
    assert digest(await net.ask(image, proxies=through(proxy), registries=settings)) == pushed
    assert proxy.targets == [f"169.254.1.1:{net.port}"]


# What strangers get to know of whom a proxy reaches


async def test_of_a_host_behind_a_proxy_strangers_learn_only_what_it_answers(net: Net) -> None:
    registry, proxy = await net.registry("public.test"), await proxy_of(net)
    image = net.image("public.test", tag="absent")
    hidden = [await net.ask(image, proxies=through(proxy), ca=None)]  # no trusted TLS
    registry.fault(hanging())
    hidden.append(
        await net.ask(image, proxies=through(proxy), read_timeout=0.05, retries=0)
    )  # no answer
    hidden.append(await net.ask(image, proxies=through(proxy), load_timeout=0.1))  # no time left
    await registry.stop()
    hidden.append(await net.ask(image, proxies=through(proxy)))  # nobody listens
    plain = await net.registry("public.test", tls=False)
    hidden.append(await net.ask(image, proxies=through(proxy)))  # no TLS
    await plain.stop()
    for fault in (FAULTS["403"], FAULTS["garbage"]):
        proxy.fault = fault
        hidden.append(await net.ask(image, proxies=through(proxy)))
    assert {reason(outcome) for outcome in hidden} == {Reason.UNREACHABLE}
    assert len({str(outcome) for outcome in hidden}) == 1


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (answering(404), Reason.NOT_FOUND),
        (answering(403), Reason.UNAUTHORIZED),
        (answering(429), Reason.RATE_LIMITED),
        (
            answering(200, {"Content-Type": "text/html"}, b"<title>portal</title>"),
            Reason.BAD_ANSWER,
        ),
    ],
)
async def test_an_answer_in_http_is_told(net: Net, fault: Fault, expected: Reason) -> None:
    registry, proxy = await net.registry("public.test"), await proxy_of(net)
    registry.fault(fault)
    outcome = await net.ask(net.image("public.test"), proxies=through(proxy), retries=0)
    assert reason(outcome) is expected


async def test_of_a_private_address_behind_a_proxy_strangers_learn_nothing(net: Net) -> None:
    await net.registry("private.test")
    proxy = await proxy_of(net)
    failure = await failure_of(net, net.image(INNER), proxies=through(proxy))
    assert failure.reason is Reason.NOT_FOUND
    assert failure.concealed
    listed = [RegistrySettings(f"{INNER}:{net.port}")]
    outcome = await net.ask(net.image(INNER), proxies=through(proxy), registries=listed)
    assert reason(outcome) is Reason.NOT_FOUND


@pytest.mark.parametrize("host", ["public.test", "pub*.test"])
async def test_of_a_listed_host_behind_a_proxy_users_learn_what_is_wrong(
    net: Net, host: str
) -> None:
    await net.registry("public.test")
    proxy = await proxy_of(net)
    settings = [RegistrySettings(f"{host}:{net.port}")]
    outcome = await net.ask(
        net.image("public.test"), proxies=through(proxy), registries=settings, ca=None
    )
    assert reason(outcome) is Reason.TLS


@pytest.mark.parametrize(
    ("answer", "expected"),
    [(b"SSH-2.0-OpenSSH\r\n\r\n", Reason.BAD_ANSWER), (b"", Reason.UNREACHABLE)],
)
async def test_what_fails_behind_the_proxy_is_told_from_what_fails_before(
    net: Net, answer: bytes, expected: Reason
) -> None:
    proxy = await proxy_of(net)
    raw = RawRegistry(saying(answer), host=ADDRESSES["public.test"], tls=net.tls)
    async with raw:
        host = f"public.test:{raw.port}"
        failure = await failure_of(
            net,
            f"{host}/demo/app:v1",
            proxies=through(proxy),
            registries=[RegistrySettings(host)],
        )
    assert failure.reason is expected
    assert not isinstance(failure, Unconnected)
    assert proxy.name not in str(failure)


# Plain http through a proxy


@pytest.mark.parametrize("allowed", [False, True])
async def test_a_proxy_sees_credentials_only_where_all_on_the_way_may(
    net: Net, *, allowed: bool
) -> None:
    registry = await net.registry("public.test", tls=False, users=dict([ALICE]))
    proxy = await proxy_of(net, login="proxyuser:pr0xy")
    registry.push_image("demo/app", "v1")
    host = f"public.test:{net.port}"
    outcome = await net.ask(
        net.image("public.test"),
        ALICE,
        proxies=through(proxy, login="proxyuser:pr0xy"),
        registries=[RegistrySettings(host, http=True, credentials_over_http=allowed)],
    )
    assert isinstance(outcome, Resolution) is allowed
    assert proxy.requests[0].target == f"http://{host}/v2/demo/app/manifests/v1"
    assert all("proxy-authorization" in asked.headers for asked in proxy.requests)
    assert any("authorization" in asked.headers for asked in proxy.requests) is allowed
    assert all("proxy-authorization" not in seen.headers for seen in registry.requests)


@pytest.mark.parametrize(
    "request_", [{"headers": {"Authorization": "Basic x"}}, {"headers": {}, "body": b"secret"}]
)
async def test_no_secret_goes_out_in_plain_http_whoever_wants_it_sent(
    net: Net, request_: dict[str, Any]
) -> None:
    registry = await net.registry("public.test", tls=False)
    settings = RegistrySettings(f"public.test:{net.port}", http=True)
    places = Places([settings])
    url = URL(f"http://public.test:{net.port}/token")
    async with Transport(places, rules=RULES, names=net.names) as transport:
        visit = Visit(places.registry(settings.host), RULES)
        with pytest.raises(Failure, match="no credentials over plain http"):
            await transport.exchange(Request("POST", url, max_body=10, **request_), visit)
    assert registry.requests == []


# Hosts by glob


async def test_a_glob_exempts_no_address_from_the_guard(net: Net) -> None:
    registry = await net.registry("blocked.test")
    settings = [RegistrySettings(f"*.test:{net.port}")]
    outcome = await net.ask(net.image("blocked.test"), registries=settings)
    assert reason(outcome) is Reason.BLOCKED
    assert registry.requests == []


async def test_a_glob_exempts_no_name_from_the_guard(net: Net) -> None:
    settings = [RegistrySettings("metadata.google.*"), RegistrySettings("local*")]
    for host in ("metadata.google.internal", "localhost"):
        outcome = await net.ask(f"{host}/demo/app:v1", registries=settings)
        assert reason(outcome) is Reason.BLOCKED
    assert net.names.asked == []


async def test_of_a_private_host_that_a_glob_names_users_learn_what_is_wrong(net: Net) -> None:
    await net.registry("private.test")
    settings = [RegistrySettings(f"*.test:{net.port}")]
    outcome = await net.ask(net.image("private.test"), registries=settings)
    assert reason(outcome) is Reason.NOT_FOUND


async def test_a_public_registry_that_a_glob_names_leads_to_no_private_address(net: Net) -> None:
    registry, inner = await net.registry("public.test"), await net.registry("private.test")
    registry.fault(redirecting(f"https://private.test:{net.port}{{path}}"))
    settings = [RegistrySettings(f"*.test:{net.port}")]
    outcome = await net.ask(net.image("public.test"), registries=settings)
    assert reason(outcome) is Reason.BLOCKED
    assert inner.requests == []


async def test_a_registry_that_a_glob_names_cannot_call_on_a_place_listed_in_full(
    net: Net,
) -> None:
    registry, listed = await net.registry("public.test"), await net.registry("blocked.test")
    registry.fault(redirecting(f"https://blocked.test:{net.port}{{path}}"))
    settings = [
        RegistrySettings(f"*.test:{net.port}"),
        RegistrySettings(f"blocked.test:{net.port}"),
    ]
    outcome = await net.ask(net.image("public.test"), registries=settings)
    assert reason(outcome) is Reason.BLOCKED
    assert listed.requests == []


async def test_an_authority_may_be_trusted_for_a_glob(net: Net) -> None:
    registry = await net.registry("public.test")
    pushed = registry.push_image("demo/app", "v1")
    settings = [RegistrySettings(f"pub*.test:{net.port}", ca=net.ca)]
    image = net.image("public.test")
    assert digest(await net.ask(image, ca=None, registries=settings)) == pushed
    await net.registry("other.test")
    other = await net.ask(net.image("other.test"), ca=None, registries=settings)
    assert reason(other) is Reason.TLS


@pytest.mark.parametrize(
    ("hung", "free"),
    [
        ("public.test", "other.test"),
        ("public.test", "private.test"),
        ("other.test", "private.test"),
        ("other.test", "public.test"),
        ("private.test", "public.test"),
    ],
)
async def test_whoever_uses_up_the_connections_of_one_class_leaves_those_of_the_others(
    net: Net, hung: str, free: str
) -> None:
    """Of strangers, of a glob, and of what was listed in full."""
    registries = {name: await net.registry(name) for name in (hung, free)}
    settings = [
        RegistrySettings(f"other.*:{net.port}"),
        RegistrySettings(f"private.test:{net.port}"),
    ]
    await use_up(net, registries[hung], net.image(hung), net.image(free), registries=settings)


async def test_strangers_behind_a_proxy_do_not_use_up_its_connections_for_others(net: Net) -> None:
    registry, _ = await net.registry("public.test"), await net.registry("other.test")
    settings = [RegistrySettings(f"other.test:{net.port}")]
    await use_up(
        net,
        registry,
        net.image("public.test"),
        net.image("other.test"),
        registries=settings,
        proxies=through(await proxy_of(net)),
    )


async def use_up(net: Net, registry: FakeRegistry, hung: str, free: str, **settings: Any) -> None:
    """Let a registry hang on the one connection that there is, and ask for `free` meanwhile."""
    asked = asyncio.Event()

    async def hang(request: web.Request, handle: Handler) -> web.StreamResponse:
        asked.set()
        return await hanging()(request, handle)

    registry.fault(hang)
    resolver = await net.resolver(total=1, **settings)
    waiting = asyncio.create_task(settle(resolver, hung))
    await asked.wait()
    more = asyncio.create_task(settle(resolver, hung.replace("v1", "v2")))
    assert reason(await settle(resolver, free, within=2)) is Reason.NOT_FOUND
    assert len(registry.requests) == 1
    for each in (waiting, more):
        each.cancel()
    await asyncio.gather(waiting, more, return_exceptions=True)


# Token servers that the operator named


async def test_a_public_registry_may_have_its_tokens_from_a_private_server_that_was_named(
    net: Net,
) -> None:
    registry = await net.registry("public.test", tokens=True)
    server = await net.registry("private.test")
    server.fault(lambda request, _: registry._answer(request), path="/token")
    registry.realm = f"https://private.test:{net.port}/token"
    registry.push_image("demo/app", "v1")
    for hosts, is_allowed in (
        (("private.test",), True),
        ((), False),
        (("priv*.test",), True),
        (("other.test",), False),
    ):
        settings = [RegistrySettings(f"public.test:{net.port}", token_hosts=hosts)]
        outcome = await net.ask(net.image("public.test"), registries=settings)
        assert isinstance(outcome, Resolution) is is_allowed


async def test_a_token_server_that_was_named_may_not_lie_at_a_blocked_address(net: Net) -> None:
    registry = await net.registry("public.test", tokens=True)
    server = await net.registry("blocked.test")
    registry.realm = f"https://blocked.test:{net.port}/token"
    settings = [RegistrySettings(f"public.test:{net.port}", token_hosts=("blocked.test",))]
    outcome = await net.ask(net.image("public.test"), registries=settings)
    assert reason(outcome) is Reason.BLOCKED
    assert server.requests == []


# Which registries


@pytest.mark.parametrize(
    "policy",
    [
        RegistryPolicy(denied=("public.test",)),
        RegistryPolicy(denied=("*.test",)),
        RegistryPolicy(allowed=("ghcr.io",)),
        RegistryPolicy(allowed=("public.test",)),  # on another port
    ],
)
@pytest.mark.parametrize("listed", [True, False])
async def test_a_registry_that_is_not_allowed_is_not_even_looked_up(
    net: Net, policy: RegistryPolicy, *, listed: bool
) -> None:
    registry, proxy = await net.registry("public.test"), await proxy_of(net)
    settings = [RegistrySettings(f"public.test:{net.port}")] if listed else []
    for proxies in (Proxies(), through(proxy)):
        outcome = await net.ask(
            net.image("public.test"), policy=policy, registries=settings, proxies=proxies
        )
        assert reason(outcome) is Reason.BLOCKED
        assert str(outcome).startswith(f"public.test:{net.port} is no registry that tagpin may ask")
    assert registry.requests == []
    assert proxy.requests == []
    assert net.names.asked == []


async def test_a_registry_that_is_allowed_may_have_its_tokens_elsewhere(net: Net) -> None:
    registry, other = await net.registry("public.test"), await net.registry("other.test")
    pushed = other.push_image("demo/app", "v1")
    registry.fault(redirecting(f"https://other.test:{net.port}{{path}}"))
    policy = RegistryPolicy(allowed=(f"public.test:{net.port}",))
    assert digest(await net.ask(net.image("public.test"), policy=policy)) == pushed


async def test_a_mirror_may_lie_at_a_blocked_address(net: Net) -> None:
    mirror = await net.registry("blocked.test")
    pushed = mirror.push_image("library/demo", "v1")
    hub = RegistrySettings("docker.io", mirrors=(f"https://blocked.test:{net.port}",))
    client = await net.client(registries=[hub])
    (registry,) = client.mirrors("docker.io")
    ref = Reference.parse("docker.io/library/demo:v1")
    found = await client.run(resolve_tag(registry, ref, ()), registry, within=10)
    assert str(found) == pushed


# Time, and connections


async def test_a_registry_may_have_a_time_of_its_own_to_connect(net: Net) -> None:
    async def mute(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_server(mute, "127.1.0.1", 0)  # accepts, and speaks no TLS
    async with server:
        host = f"public.test:{server.sockets[0].getsockname()[1]}"
        loop = asyncio.get_running_loop()
        began = loop.time()
        failure = await failure_of(
            net,
            f"{host}/demo/app:v1",
            registries=[RegistrySettings(host, connect_timeout=0.05)],
            connect_timeout=5,
        )
        assert loop.time() - began < 2
    assert failure.reason is Reason.TIMEOUT
    assert isinstance(failure, Unconnected)


async def test_a_connection_is_used_again_unless_its_server_closes_it(net: Net) -> None:
    for name, fault, connections in (
        ("public.test", with_header("X-None"), 1),
        ("other.test", with_header("Connection", "close"), 3),
    ):
        registry = await net.registry(name)
        registry.push_image("demo/app", "v1")
        registry.fault(fault)
        resolver = await net.resolver()
        for _ in range(3):
            digest(await settle(resolver, net.image(name), max_age=-1))
        assert len({seen.connection for seen in registry.requests}) == connections
    assert net.pauses == []


async def test_a_connection_that_was_closed_meanwhile_is_made_anew(net: Net) -> None:
    registry = await net.registry("public.test")
    registry.push_image("demo/app", "v1")
    resolver = await net.resolver()
    digest(await settle(resolver, net.image("public.test"), max_age=-1))
    await registry.stop()
    await registry.start()
    digest(await settle(resolver, net.image("public.test"), max_age=-1))
    assert len({seen.connection for seen in registry.requests}) == 2


@pytest.mark.parametrize("proxied", [False, True])
def test_no_more_connections_are_kept_than_may_be_used_at_once(
    authority: Authority,
    server_tls: ssl.SSLContext,
    *,
    proxied: bool,
) -> None:
    async def ask() -> list[int]:
        net = Net(server_tls, authority.certificate.read_text())
        async with net.stack:
            proxies = through(await proxy_of(net)) if proxied else Proxies()
            resolver = await net.resolver(total=2, proxies=proxies)
            connections = []
            for name in ("public.test", "other.test", "private.test"):
                registry = await net.registry(name)
                registry.push_image("demo/app", "v1")
                for _ in range(3):
                    digest(await settle(resolver, net.image(name), max_age=-1))
                connections.append(len({seen.connection for seen in registry.requests}))
            return connections

    with asyncio.Runner() as runner:
        first, second, third = runner.run(ask())
    assert first == 1
    assert (second, third) == (3, 3)


# Errors


@pytest.mark.parametrize(
    ("status", "size", "expected"),
    [(404, 20, 20), (404, 65536, 65536), (404, 65537, 0), (200, 1000, 1000), (503, 0, 0)],
)
async def test_the_body_of_an_error_is_read_up_to_64_kib(
    net: Net, status: int, size: int, expected: int
) -> None:
    registry = await net.registry("public.test")
    registry.fault(answering(status, body=b"x" * size))
    response = await exchange(net, f"https://public.test:{net.port}/v2/a/manifests/b")
    assert response.status == status
    assert response.body == b"x" * expected
    assert "xxx" not in repr(response)
