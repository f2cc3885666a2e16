"""One bad registry, and one bad tenant, cost nobody else anything."""

import asyncio
import logging
import socket
import statistics
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Self

import pytest
from aiohttp import web

from fakes.faults import Fault, Handler, answering, hanging, redirecting, resetting
from fakes.registry import FakeRegistry
from tagpin.errors import Reason, Unresolvable
from tagpin.pinning import Resolution
from tagpin.reference import Reference
from tagpin.registry.conversation import resolve_tag
from tagpin.registry.flow import Failure
from tagpin.registry.places import RegistrySettings
from tagpin.registry.resolver import RegistryResolver
from tagpin.registry.transport import Unconnected

from .conftest import ADDRESSES, Net, digest, reason, settle, until


class Stuck:
    """Questions that have no answer yet; leaving ends them."""

    def __init__(self) -> None:
        self.tasks: list[asyncio.Task[Resolution | Unresolvable]] = []

    def ask(self, resolver: RegistryResolver, image: str, namespace: str = "team") -> None:
        asking = settle(resolver, image, namespace=namespace)
        self.tasks.append(asyncio.create_task(asking))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


# Black holes


@asynccontextmanager
async def accepting_and_silent(address: str, port: int) -> AsyncIterator[None]:
    """A server that accepts connections and says nothing, not even in TLS."""

    async def wait(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            writer.transport.abort()

    server = await asyncio.start_server(wait, address, port)
    try:
        yield
    finally:
        server.close()


@asynccontextmanager
async def dropping_packets(address: str, port: int) -> AsyncIterator[None]:
    """An address that answers no SYN: the queue of those to be accepted is full."""
    with socket.socket() as server:
        server.bind((address, port))
        server.listen(0)
        async with AsyncExitStack() as stack:
            for _ in range(4):
                client = stack.enter_context(socket.socket())
                client.setblocking(False)
                client.connect_ex((address, port))
            await asyncio.sleep(0.02)
            yield


@pytest.mark.parametrize(
    "black_hole", [accepting_and_silent, dropping_packets], ids=["silent", "dropping"]
)
async def test_a_black_hole_costs_the_pods_of_other_registries_nothing(
    net: Net, black_hole: Callable[[str, int], AbstractAsyncContextManager[None]]
) -> None:
    registry = await net.registry("public.test")
    for number in range(200):
        registry.push_image("demo/app", str(number))
    resolver = await net.resolver(connect_timeout=10.0, read_timeout=10.0)

    async def ask(tags: range) -> float:
        """The median time of one look-up after the other, in two namespaces."""
        times = []
        for tag in tags:
            started = time.perf_counter()
            image = net.image("public.test", tag=str(tag))
            digest(await settle(resolver, image, namespace=f"team-{tag % 2}"))
            times.append(time.perf_counter() - started)
        return statistics.median(times)

    await ask(range(20))
    without = await ask(range(20, 110))
    async with black_hole(ADDRESSES["other.test"], net.port), Stuck() as stuck:
        for number in range(80):
            image = net.image("other.test", tag=str(number))
            stuck.ask(resolver, image, namespace=f"team-{number % 2}")
        await asyncio.sleep(0.05)
        beside = await ask(range(110, 200))
        assert not any(task.done() for task in stuck.tasks)
    assert beside < 5 * without
    assert len(registry.requests) == 200


async def test_pods_of_a_black_hole_fail_at_once_when_it_is_known_to_be_one(net: Net) -> None:
    await net.registry("public.test")
    resolver = await net.resolver(connect_timeout=0.1, per_host=2)
    async with dropping_packets(ADDRESSES["other.test"], net.port):
        questions = [
            settle(resolver, net.image("other.test", tag=str(number)), namespace=f"team-{number}")
            for number in range(50)
        ]
        outcomes = await asyncio.gather(*questions)
        tried = len(net.exchanges)
        late = await settle(resolver, net.image("other.test", tag="late"))
    assert [reason(each) for each in outcomes].count(Reason.UNREACHABLE) >= 44
    assert reason(late) is Reason.UNREACHABLE
    assert len(net.exchanges) == tried <= 6  # of 150; the sixth was under way with the fifth


async def test_a_black_hole_is_known_to_be_one_however_many_addresses_it_has(net: Net) -> None:
    registry = await net.registry("public.test")
    addresses = [f"127.1.1.{number}" for number in range(8)]
    net.names.add("other.test", addresses)
    client = await net.client(connect_timeout=0.1)
    asked = client.registry(f"other.test:{registry.port}")
    async with AsyncExitStack() as stack:
        for address in addresses:
            await stack.enter_async_context(dropping_packets(address, net.port))
        for _ in range(2):
            flow = resolve_tag(asked, Reference.parse(net.image("other.test")), ())
            with pytest.raises(Failure) as caught:
                await client.run(flow, asked, within=0.6)
            assert caught.value.reason is Reason.TIMEOUT
    assert isinstance(caught.value, Unconnected)
    assert client.open_circuits() == (f"other.test:{net.port}",)


async def test_to_wait_for_a_connection_of_ours_says_nothing_of_a_registry(net: Net) -> None:
    registry = await net.registry("public.test")
    registry.fault(hanging(), path="/slow/")
    await net.registry("other.test")
    client = await net.client(connect_timeout=0.05, total=1)

    async def ask(name: str, repository: str, within: float) -> Failure:
        asked, ref = client.registry(f"{name}:{net.port}"), net.image(name, repository)
        with pytest.raises(Failure) as caught:
            await client.run(resolve_tag(asked, Reference.parse(ref), ()), asked, within=within)
        return caught.value

    slow = asyncio.create_task(ask("public.test", "slow/app", 1.0))
    await until(registry, 1)
    failure = await ask("other.test", "demo/app", 0.3)
    assert not isinstance(failure, Unconnected)
    assert [each.registry for each in net.exchanges] == [f"other.test:{net.port}"]
    await slow


# Circuits: a place that nobody can connect to


async def test_a_place_that_refuses_connections_is_left_alone_and_asked_again(
    net: Net, caplog: pytest.LogCaptureFixture
) -> None:
    registry = await net.registry("public.test")
    pushed = registry.push_image("demo/app", "v1")
    client = await net.client(clock=net.clock, draw=lambda: 0.0)
    resolver = RegistryResolver(client, clock=net.clock, now=net.clock.now)
    net.stack.push_async_callback(resolver.aclose)
    await registry.stop()
    with caplog.at_level(logging.INFO, logger="tagpin.registry.client"):
        for number in range(10):
            image = net.image("public.test", tag=str(number))
            assert reason(await settle(resolver, image)) is Reason.UNREACHABLE
        assert len(net.exchanges) == 5
        assert len(net.pauses) == 3  # and none before asking what is not asked any more
        assert client.open_circuits() == (f"public.test:{net.port}",)
        await registry.start()
        net.clock.advance(1.9)
        assert reason(await settle(resolver, net.image("public.test"))) is Reason.UNREACHABLE
        assert registry.requests == []
        net.clock.advance(0.1)
        assert digest(await settle(resolver, net.image("public.test"))) == pushed
        assert client.open_circuits() == ()
    told = [record.getMessage() for record in caplog.records]
    host = f"public.test:{net.port}"
    assert told == [
        f"nobody can connect to {host}: it is left alone for a while",
        f"{host} can be connected to again",
    ]


async def test_the_port_of_https_is_not_shown(net: Net) -> None:
    client = await net.client()
    resolver = RegistryResolver(client)
    net.stack.push_async_callback(resolver.aclose)
    for number in range(2):
        await settle(resolver, f"absent.test/demo/app:{number}")
    assert client.open_circuits() == ("absent.test",)


@pytest.mark.parametrize("fault", [answering(404), answering(503), answering(418), resetting()])
async def test_what_a_tenant_can_ask_for_closes_no_registry_to_others(
    net: Net, fault: Fault
) -> None:
    registry = await net.registry("public.test")
    pushed = registry.push_image("demo/app", "v1")
    registry.fault(fault, path="/bad/")
    resolver = await net.resolver(clock=net.clock)
    for number in range(12):
        image = net.image("public.test", f"bad/image{number}")
        assert isinstance(await settle(resolver, image, namespace="mallory"), Unresolvable)
    assert digest(await settle(resolver, net.image("public.test"), namespace="team")) == pushed


async def test_a_redirect_to_where_nobody_listens_closes_that_place_to_nobody_else(
    net: Net,
) -> None:
    evil, registry = await net.registry("other.test"), await net.registry("public.test")
    evil.fault(redirecting(f"https://public.test:{net.port}{{path}}"))
    pushed = registry.push_image("demo/app", "v1")
    resolver = await net.resolver(clock=net.clock)
    await registry.stop()
    for number in range(5):
        await settle(resolver, net.image("other.test", tag=str(number)), namespace="mallory")
    await registry.start()
    asked = len(evil.requests)
    late = await settle(resolver, net.image("other.test", tag="late"), namespace="mallory")
    assert reason(late) is Reason.UNREACHABLE
    assert (len(evil.requests), registry.requests) == (asked + 1, [])
    assert digest(await settle(resolver, net.image("public.test"), namespace="team")) == pushed


@pytest.mark.parametrize("name", ["public.test", "other.test"])
async def test_redirects_to_slow_paths_take_no_connection_of_others(net: Net, name: str) -> None:
    """Not of those who ask there, nor of those whom their own registry leads there."""
    registry, leading = await net.registry("public.test"), await net.registry("other.test")
    pushed = registry.push_image("demo/app", "v1")
    registry.fault(hanging(), path="/slow/")

    async def lead(request: web.Request, handle: Handler) -> web.StreamResponse:
        path = "/v2/slow/manifests/v1" if request.host.startswith("evil") else "{path}"
        return await redirecting(f"https://public.test:{net.port}{path}")(request, handle)

    leading.fault(lead)
    resolver = await net.resolver(per_host=4, read_timeout=30.0)
    async with Stuck() as stuck:
        for host in (f"evil{number}.wild.test" for number in range(3)):
            net.names.add(host, [ADDRESSES["other.test"]])
            for tag in range(10):
                stuck.ask(resolver, net.image(host, tag=str(tag)), namespace=f"mallory-{host}")
        await until(registry, 9)
        question = settle(resolver, net.image(name), namespace="team", within=5)
        assert digest(await question) == pushed


async def test_a_token_server_has_a_circuit_of_its_own(net: Net) -> None:
    registry = await net.registry("public.test", tokens=True)
    registry.realm = f"https://other.test:{net.port}/token"  # where nobody listens
    client = await net.client(clock=net.clock, draw=lambda: 0.0)
    resolver = RegistryResolver(client)
    net.stack.push_async_callback(resolver.aclose)

    async def ask(number: int) -> int:
        """How many times the token server was tried to connect to, so far."""
        image = net.image("public.test", f"demo/app{number}")
        assert reason(await settle(resolver, image, max_age=-1)) is Reason.UNREACHABLE
        return [each.code for each in net.exchanges].count("unreachable")

    assert [await ask(number) for number in range(4)] == [3, 5, 5, 5]
    assert client.open_circuits() == (f"other.test:{net.port}",)
    net.clock.advance(1.9)
    assert await ask(5) == 5
    net.clock.advance(0.1)
    assert await ask(5) == 6  # that it was not asked before was no failure of it
    registry.tokens = False
    pushed = registry.push_image("demo/app", "v1")
    assert digest(await settle(resolver, net.image("public.test"))) == pushed


# Circuits: a registry that is silent about what one namespace asks for


async def silence(net: Net, registry: FakeRegistry, namespace: str) -> RegistryResolver:
    """A resolver of which `namespace` has asked for five images without an answer."""
    registry.fault(hanging(), path="/slow/")
    resolver = await net.resolver(read_timeout=0.1, retries=0, clock=net.clock)
    for number in range(5):
        image = net.image("public.test", f"slow/image{number}")
        assert reason(await settle(resolver, image, namespace=namespace)) is Reason.TIMEOUT
    return resolver


async def test_silence_about_what_a_tenant_asks_for_is_held_against_that_tenant(
    net: Net, caplog: pytest.LogCaptureFixture
) -> None:
    registry = await net.registry("public.test")
    pushed = registry.push_image("demo/app", "v1")
    with caplog.at_level(logging.INFO, logger="tagpin.registry.resolver"):
        resolver = await silence(net, registry, "mallory")
        asked = len(registry.requests)
        refused = await settle(resolver, net.image("public.test"), namespace="mallory")
        assert reason(refused) is Reason.UNREACHABLE
        assert len(registry.requests) == asked
        # Of the very same image, nothing was remembered that others would hear.
        other = await settle(resolver, net.image("public.test"), namespace="team")
        assert digest(other) == pushed
        net.clock.advance(2)
        for _ in range(2):
            outcome = await settle(
                resolver, net.image("public.test"), namespace="mallory", max_age=-1
            )
            assert digest(outcome) == pushed
    host = f"https://public.test:{net.port}"
    told = [record.getMessage() for record in caplog.records]
    assert [line for line in told if line.startswith("namespace")] == [
        f"namespace mallory asks for what {host} is silent about: it waits for a while",
        f"namespace mallory has answers of {host} again",
    ]


async def test_who_shares_the_question_of_a_tenant_that_is_refused_asks_itself(net: Net) -> None:
    registry = await net.registry("public.test")
    pushed = registry.push_image("demo/app", "v1")
    resolver = await silence(net, registry, "mallory")
    namespaces = ["mallory", "team", "team", "mallory", "other"]
    questions = [
        settle(resolver, net.image("public.test"), namespace=namespace) for namespace in namespaces
    ]
    outcomes = await asyncio.gather(*questions)
    assert [digest(outcomes[number]) for number in (1, 2, 4)] == [pushed] * 3
    assert reason(outcomes[0]) is Reason.UNREACHABLE


@pytest.mark.parametrize("status", [404, 503])
async def test_any_answer_ends_the_silence(net: Net, status: int) -> None:
    registry = await net.registry("public.test")
    pushed = registry.push_image("demo/app", "v1")
    registry.fault(answering(status), path="/bad/")
    registry.fault(hanging(), path="/slow/")
    resolver = await net.resolver(read_timeout=0.2, retries=0, clock=net.clock)
    for number in range(6):
        path = "bad/image" if number == 4 else f"slow/image{number}"
        await settle(resolver, net.image("public.test", path))
    assert digest(await settle(resolver, net.image("public.test"))) == pushed


async def test_at_the_deadline_of_a_question_a_registry_counts_as_silent_too(net: Net) -> None:
    registry = await net.registry("public.test")
    registry.fault(hanging(), path="/slow/")
    resolver = await net.resolver(load_timeout=0.05, clock=net.clock)
    for number in range(5):
        await settle(resolver, net.image("public.test", f"slow/image{number}"))
    refused = await settle(resolver, net.image("public.test"))
    assert (reason(refused), len(net.exchanges)) == (Reason.UNREACHABLE, 5)


async def test_a_place_that_refuses_connections_is_held_against_no_tenant(
    net: Net, caplog: pytest.LogCaptureFixture
) -> None:
    registry = await net.registry("public.test")
    await registry.stop()
    resolver = await net.resolver(retries=0)
    for number in range(6):
        await settle(resolver, net.image("public.test", tag=str(number)))
    assert [record.name for record in caplog.records] == ["tagpin.registry.client"]


async def test_what_was_not_asked_is_neither_an_answer_nor_silence(net: Net) -> None:
    registry = await net.registry("public.test")
    registry.fault(hanging())
    paced = [RegistrySettings(f"public.test:{net.port}", requests_per_second=4)]
    resolver = await net.resolver(
        registries=paced, clock=net.clock, read_timeout=0.05, retries=0, load_timeout=0.2
    )
    reasons = []
    for number in range(9):
        if number == 6:
            net.clock.advance(10)
        outcome = await settle(resolver, net.image("public.test", tag=str(number)))
        reasons.append(reason(outcome))
    timeout, limited, unreachable = Reason.TIMEOUT, Reason.RATE_LIMITED, Reason.UNREACHABLE
    assert reasons == [timeout] * 4 + [limited] * 2 + [timeout] + [unreachable] * 2


# Limits of a namespace


async def test_a_tenant_that_asks_for_500_hanging_images_keeps_nobody_waiting(net: Net) -> None:
    """Not even who wants an image that stands in the tenant's own line."""
    bad, good = await net.registry("other.test"), await net.registry("public.test")
    bad.fault(hanging())
    pushed = good.push_image("demo/app", "v1")
    resolver = await net.resolver(per_namespace=20)
    hosts = [f"evil{number}.wild.test" for number in range(10)]
    async with Stuck() as stuck:
        for host in hosts:
            net.names.add(host, [ADDRESSES["other.test"]])
            for tag in range(50):
                stuck.ask(resolver, net.image(host, tag=str(tag)), namespace="mallory")
        await until(bad, 20)
        stuck.ask(resolver, net.image("public.test"), namespace="mallory")
        await asyncio.sleep(0.02)
        question = settle(resolver, net.image("public.test"), namespace="team", within=5)
        assert digest(await question) == pushed
        assert len(bad.requests) == 20
        assert sum(task.done() for task in stuck.tasks) == 0


async def test_a_namespace_has_64_questions_under_way_at_most(net: Net) -> None:
    registry = await net.registry("public.test")
    registry.fault(hanging())
    hosts = [f"h{number}.wild.test" for number in range(10)]
    resolver = await net.resolver()
    for host in hosts:
        net.names.add(host, [ADDRESSES["public.test"]])
    async with Stuck() as stuck:
        for tag in range(10):
            for host in hosts:
                stuck.ask(resolver, net.image(host, tag=str(tag)))
        await until(registry, 64)
        await asyncio.sleep(0.1)
        assert len(registry.requests) == 64


async def test_one_silent_registry_has_only_its_share_of_a_namespaces_questions(net: Net) -> None:
    bad, good = await net.registry("other.test"), await net.registry("public.test")
    bad.fault(hanging())
    pushed = good.push_image("demo/app", "v1")
    resolver = await net.resolver(per_host=8, per_namespace=10)
    async with Stuck() as stuck:
        for tag in range(50):
            stuck.ask(resolver, net.image("other.test", tag=str(tag)))
        await until(bad, 6)
        assert digest(await settle(resolver, net.image("public.test"), within=5)) == pushed
        assert len(bad.requests) == 6


async def test_two_namespaces_cannot_be_kept_from_a_registry_by_a_third(net: Net) -> None:
    registry = await net.registry("public.test")
    registry.fault(hanging(), path="/slow/")
    pushed = registry.push_image("demo/app", "v1")
    resolver = await net.resolver(per_host=4)
    async with Stuck() as stuck:
        for number in range(50):
            stuck.ask(resolver, net.image("public.test", f"slow/{number}"), namespace="mallory")
        await until(registry, 3)
        for namespace in ("one", "two"):
            question = settle(
                resolver, net.image("public.test"), namespace=namespace, max_age=-1, within=5
            )
            assert digest(await question) == pushed


async def test_a_question_keeps_its_slot_when_its_caller_gives_up(net: Net) -> None:
    registry = await net.registry("public.test")
    registry.fault(hanging(), path="/slow/")
    pushed = registry.push_image("demo/app", "v1")
    resolver = await net.resolver(per_namespace=2, load_timeout=0.5)
    for number in range(2):
        await settle(resolver, net.image("public.test", f"slow/image{number}"), within=0.02)
    waited = await settle(resolver, net.image("public.test"), within=0.02)
    assert reason(waited) is Reason.TIMEOUT
    assert str(waited) == (
        f"namespace team has 2 look-ups under way, so {net.image('public.test')} had to wait"
    )
    assert len(registry.requests) == 2
    # The slots come back when the questions have ended.
    assert digest(await settle(resolver, net.image("public.test"), within=5)) == pushed


async def test_who_waits_for_a_share_is_told_of_which_registry(net: Net) -> None:
    registry = await net.registry("public.test")
    registry.fault(hanging())
    resolver = await net.resolver(per_host=1)
    async with Stuck() as stuck:
        stuck.ask(resolver, net.image("public.test", tag="slow"))
        await until(registry, 1)
        waited = await settle(resolver, net.image("public.test"), within=0.02)
    host = f"public.test:{net.port}"
    assert str(waited) == (
        f"namespace team has 1 look-ups under way at {host}, so {host}/demo/app:v1 had to wait"
    )


async def test_a_known_answer_needs_no_slot(net: Net) -> None:
    registry = await net.registry("public.test")
    pushed = registry.push_image("demo/app", "v1")
    registry.fault(hanging(), path="/slow/")
    resolver = await net.resolver(per_namespace=1)
    await settle(resolver, net.image("public.test"))
    missing = await settle(resolver, net.image("public.test", tag="missing"))
    async with Stuck() as stuck:
        stuck.ask(resolver, net.image("public.test", "slow/image"))
        await until(registry, 4)
        assert digest(await settle(resolver, net.image("public.test"), within=0)) == pushed
        again = await settle(resolver, net.image("public.test", tag="missing"), within=0)
        assert str(again) == str(missing)


async def test_while_a_namespace_waits_for_a_slot_the_last_known_digest_stands_in(
    net: Net,
) -> None:
    registry = await net.registry("public.test")
    pushed = registry.push_image("demo/app", "v1")
    resolver = await net.resolver(per_namespace=1)
    await settle(resolver, net.image("public.test"))
    net.clock.advance(60)
    registry.fault(hanging(), path="/slow/")
    async with Stuck() as stuck:
        stuck.ask(resolver, net.image("public.test", "slow/image"))
        await until(registry, 2)
        known = await settle(resolver, net.image("public.test"), max_age=5, within=0.02)
    assert digest(known) == pushed


async def test_many_pods_of_one_image_are_one_question(net: Net) -> None:
    registry = await net.registry("public.test")
    pushed = registry.push_image("demo/app", "v1")
    gate = asyncio.Event()

    async def gated(request: web.Request, handle: Handler) -> web.StreamResponse:
        await gate.wait()
        return await handle(request)

    registry.fault(gated)
    resolver = await net.resolver(per_namespace=1)
    asking = [asyncio.create_task(settle(resolver, net.image("public.test"))) for _ in range(100)]
    await until(registry, 1)
    gate.set()
    assert {digest(each) for each in await asyncio.gather(*asking)} == {pushed}
    assert len(registry.requests) == 1


async def test_those_in_line_for_one_image_need_no_slot_each(net: Net) -> None:
    registry = await net.registry("public.test")
    pushed = registry.push_image("demo/app", "v1")
    gate = asyncio.Event()

    async def gated(request: web.Request, handle: Handler) -> web.StreamResponse:
        await gate.wait()
        return await handle(request)

    registry.fault(gated, path="/first/")
    resolver = await net.resolver(per_namespace=1)
    async with Stuck() as stuck:
        stuck.ask(resolver, net.image("public.test", "first/image"))
        await until(registry, 1)
        for _ in range(100):
            stuck.ask(resolver, net.image("public.test"))
        await asyncio.sleep(0.02)
        gate.set()
        async with asyncio.timeout(5):
            _, *outcomes = await asyncio.gather(*stuck.tasks)
    assert {digest(each) for each in outcomes} == {pushed}
    assert len([seen for seen in registry.requests if "/demo/" in seen.path]) == 1


# A pace


async def test_a_registry_is_asked_no_faster_than_the_operator_says(net: Net) -> None:
    registry = await net.registry("public.test")
    for tag in range(12):
        registry.push_image("demo/app", str(tag))
    paced = [RegistrySettings(f"public.test:{net.port}", requests_per_second=10)]
    resolver = await net.resolver(registries=paced, clock=net.clock)
    images = [net.image("public.test", tag=str(tag)) for tag in range(12)]
    for image in images:
        digest(await settle(resolver, image))
    pauses = [each for each in net.pauses if each > 1e-6]
    assert pauses == pytest.approx([0.1, 0.2])


async def test_a_turn_that_comes_too_late_is_refused_at_once_and_forgotten(net: Net) -> None:
    registry = await net.registry("public.test")
    pushed = registry.push_image("demo/app", "v1")
    paced = [RegistrySettings(f"public.test:{net.port}", requests_per_second=1)]
    resolver = await net.resolver(registries=paced, clock=net.clock, load_timeout=0.9)
    await settle(resolver, net.image("public.test", tag="missing"))
    for _ in range(3):
        refused = await settle(resolver, net.image("public.test"))
        assert reason(refused) is Reason.RATE_LIMITED
    assert net.pauses == []
    net.clock.advance(2)
    assert digest(await settle(resolver, net.image("public.test"))) == pushed


async def test_a_tenant_has_the_turns_of_one_second_in_line_at_most(net: Net) -> None:
    registry = await net.registry("public.test")
    registry.fault(hanging(), path="/slow/")
    pushed = registry.push_image("demo/app", "v1")
    paced = [RegistrySettings(f"public.test:{net.port}", requests_per_second=2)]
    resolver = await net.resolver(registries=paced, clock=net.clock, read_timeout=30.0)
    async with Stuck() as stuck:
        for number in range(10):
            stuck.ask(resolver, net.image("public.test", f"slow/{number}"), namespace="mallory")
        await until(registry, 2)
        assert digest(await settle(resolver, net.image("public.test"))) == pushed
    assert net.pauses == pytest.approx([0.5])


async def test_nobody_waits_for_a_turn_at_a_place_that_is_left_alone(net: Net) -> None:
    registry = await net.registry("public.test")
    await registry.stop()
    paced = [RegistrySettings(f"public.test:{net.port}", requests_per_second=8)]
    resolver = await net.resolver(registries=paced, clock=net.clock, retries=0)
    for tag in range(20):
        refused = await settle(resolver, net.image("public.test", tag=str(tag)))
        assert reason(refused) is Reason.UNREACHABLE
    assert (len(net.exchanges), net.pauses) == (5, [])


async def test_a_strangers_redirect_makes_nobody_wait_for_a_turn(net: Net) -> None:
    registry, evil = await net.registry("public.test"), await net.registry("other.test")
    pushed = registry.push_image("demo/app", "v1")
    evil.fault(redirecting(f"https://public.test:{net.port}{{path}}"))
    paced = [RegistrySettings(f"public.test:{net.port}", requests_per_second=2)]
    resolver = await net.resolver(registries=paced, clock=net.clock)
    for tag in range(20):
        await settle(resolver, net.image("other.test", tag=str(tag)), namespace="mallory")
    assert len(registry.requests) == 2
    assert digest(await settle(resolver, net.image("public.test"))) == pushed
    assert net.pauses == pytest.approx([0.5])
