"""What is asked of an API server for objects, and what is made of its answers."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from datetime import UTC, datetime
from functools import partial
from typing import Any

import pytest
from aiohttp import web
from kubernetes.aio.client import ApiClient, Configuration
from yarl import URL

from tagpin.certificates import issue_ca, to_pem
from tagpin.cluster.api import asking, watch
from tagpin.cluster.objects import (
    EVENTS,
    IMAGE_PINS,
    MERGE,
    MUTATING_WEBHOOK_CONFIGURATIONS,
    PODS,
    Objects,
)
from tagpin.errors import ClusterError

# Nobody speaks TLS here, and the system's authorities take longer to load than a test.
CA = to_pem(issue_ca(datetime.now(UTC)).chain).decode()
CORE = "/api/v1/namespaces/shop"
RECORDS = "/apis/tagpin.dev/v1alpha1/namespaces/shop/imagepins"
CONFIGURATIONS = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations"
HOSTILE = ["../../nodes", "a/b", "a?b=c", "a#b", "a%2Fb", "%2e%2e", "..%2f", "a b", "é", "a\n", "+"]
"""Names that would lead elsewhere if they were not quoted."""


class Api:
    """An API server that notes what it is asked, and answers everything the same way."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []
        """Method, and path as it was sent."""
        self.headers: list[Mapping[str, str]] = []
        self.bodies: list[Any] = []
        self.status, self.text = 200, "{}"
        self.token = "sesame"
        self.objects: Objects

    def refresh(self, configuration: Configuration) -> None:
        """Give a client the token of now, as is done in a cluster."""
        configuration.api_key["BearerToken"] = f"Bearer {self.token}"

    @web.middleware
    async def answer(self, request: web.Request, handler: Any) -> web.StreamResponse:
        self.asked.append((request.method, request.raw_path))
        self.headers.append(request.headers)
        body = await request.text()
        self.bodies.append(json.loads(body) if body else None)
        return web.Response(
            status=self.status, text=self.text, content_type="application/json", reason="So"
        )


@pytest.fixture
async def api() -> AsyncIterator[Api]:
    api = Api()
    app = web.Application(middlewares=[api.answer])
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    configuration = Configuration(
        host=f"http://127.0.0.1:{runner.addresses[0][1]}",
        ca_cert_data=CA,
        api_key={"BearerToken": ""},
    )
    configuration.refresh_api_key_hook = api.refresh  # type: ignore[assignment] # inferred of None
    client = ApiClient(configuration)
    api.objects = Objects(client)
    yield api
    await client.close()
    await runner.cleanup()


Ask = Callable[[Objects], Awaitable[Any]]
ASKED: dict[str, tuple[Ask, str, str, Any]] = {
    "get": (lambda it: it.get(PODS, "shop", "a"), "GET", f"{CORE}/pods/a", None),
    "get of the cluster": (
        lambda it: it.get(MUTATING_WEBHOOK_CONFIGURATIONS, None, "tagpin"),
        "GET",
        f"{CONFIGURATIONS}/tagpin",
        None,
    ),
    "create": (lambda it: it.create(EVENTS, "shop", {"a": 1}), "POST", f"{CORE}/events", {"a": 1}),
    "replace": (
        lambda it: it.replace(IMAGE_PINS, "shop", "a", {"a": [None]}),
        "PUT",
        f"{RECORDS}/a",
        {"a": [None]},
    ),
    "patch": (
        lambda it: it.patch(
            IMAGE_PINS, "shop", "a", {"b": "é"}, content_type=MERGE, field_manager="me"
        ),
        "PATCH",
        f"{RECORDS}/a?fieldManager=me",
        {"b": "é"},
    ),
    "delete": (
        lambda it: it.delete(IMAGE_PINS, "shop", "a", uid="u", version="7"),
        "DELETE",
        f"{RECORDS}/a",
        {"preconditions": {"uid": "u", "resourceVersion": "7"}},
    ),
}


@pytest.mark.parametrize(("ask", "method", "path", "body"), ASKED.values(), ids=ASKED)
async def test_a_question_has_its_method_path_and_body(
    ask: Ask, method: str, path: str, body: Any, api: Api
) -> None:
    await ask(api.objects)

    assert (api.asked, api.bodies) == ([(method, path)], [body])
    headers = api.headers[0]
    assert headers["Accept"] == "application/json"
    assert headers["Content-Type"] == (MERGE if method == "PATCH" else "application/json")


@pytest.mark.parametrize(("ask", "method", "path", "body"), ASKED.values(), ids=ASKED)
async def test_a_refusal_is_told_with_its_status_and_the_servers_words(
    ask: Ask, method: str, path: str, body: Any, api: Api
) -> None:
    api.status, api.text = 409, '{"message": "no", "details": {"name": "a"}}'

    with pytest.raises(ClusterError, match=r"^cannot do it: no$") as got:
        async with asking("do it"):
            await ask(api.objects)

    assert (got.value.status, got.value.subject) == (409, "a")
    assert len(api.asked) == 1


@pytest.mark.parametrize("text", ["<html>", "", "null", "[{}]", '"{}"', "7", '{"a": ', "{}{}"])
async def test_an_answer_that_is_no_object_is_a_failure(text: str, api: Api) -> None:
    api.text = text

    for ask, *_ in ASKED.values():
        with pytest.raises(ClusterError, match="cannot do it: no object") as got:
            async with asking("do it"):
                await ask(api.objects)
        assert got.value.status == 0


async def test_a_redirection_that_leads_nowhere_is_no_answer(api: Api) -> None:
    api.status, api.text = 300, "{}"

    with pytest.raises(ClusterError, match="cannot do it: So") as got:
        async with asking("do it"):
            await api.objects.get(PODS, "shop", "a")

    assert got.value.status == 300


async def test_the_token_is_the_one_of_now(api: Api) -> None:
    await api.objects.get(PODS, "shop", "a")
    api.token = "open"
    await api.objects.get(PODS, "shop", "a")

    assert [each["Authorization"] for each in api.headers] == ["Bearer sesame", "Bearer open"]


@pytest.mark.parametrize("name", HOSTILE)
async def test_a_name_never_leaves_its_place_in_the_path(name: str, api: Api) -> None:
    for ask, before, after in (
        (api.objects.get(PODS, "shop", name), f"{CORE}/pods/", ""),
        (api.objects.get(PODS, name, "a"), "/api/v1/namespaces/", "/pods/a"),
        (api.objects.delete(PODS, "shop", name, uid="", version=""), f"{CORE}/pods/", ""),
    ):
        await ask
        _, path = api.asked[-1]
        assert path.startswith(before)
        assert path.endswith(after)
        part = path.removeprefix(before).removesuffix(after)
        assert part not in ("", ".", "..")
        assert set(part).isdisjoint("/?#\n ")


@pytest.mark.parametrize("name", ["", ".", "..", "\ud800"])
async def test_a_name_that_cannot_be_quoted_is_never_asked_for(name: str, api: Api) -> None:
    for ask in (
        api.objects.get(PODS, "shop", name),
        api.objects.get(PODS, name, "a"),
        api.objects.patch(PODS, "shop", name, {}, content_type=MERGE, field_manager="me"),
        api.objects.list(PODS, name, {}),
    ):
        with pytest.raises(ClusterError, match="cannot do it"):
            async with asking("do it"):
                await ask

    assert api.asked == []


class TestLists:
    async def test_a_selection_is_quoted(self, api: Api) -> None:
        api.text = '{"items": []}'

        await api.objects.list(
            PODS,
            "shop",
            {"labelSelector": "a=b&c=d,e in (f+g)", "limit": 5, "continue": "é/="},
        )

        query = "?labelSelector=a%3Db%26c%3Dd%2Ce%20in%20%28f%2Bg%29&limit=5&continue=%C3%A9/%3D"
        assert URL(api.asked[0][1]) == URL(f"{CORE}/pods{query}")

    @pytest.mark.parametrize(
        ("since", "query"),
        [({}, ""), ({"resource_version": "7"}, "&resourceVersion=7")],
    )
    async def test_a_list_can_be_watched(self, api: Api, since: dict[str, str], query: str) -> None:
        api.text = '{"type": "ADDED", "object": {"a": 1}}\n'
        opening = partial(api.objects.open_watch, MUTATING_WEBHOOK_CONFIGURATIONS, None)

        followed = watch("watch it", opening, {"field_selector": "a=b", **since}, seconds=9)

        assert [event async for event in followed] == [("ADDED", {"a": 1})]
        asked = f"{CONFIGURATIONS}?watch=true&timeoutSeconds=9&fieldSelector=a%3Db{query}"
        assert URL(api.asked[0][1]) == URL(asked)

    async def test_items_and_where_they_go_on_are_told(self, api: Api) -> None:
        api.text = '{"items": [{"a": 1}, {}], "metadata": {"continue": "there"}}'

        assert await api.objects.list(IMAGE_PINS, None, {}) == ([{"a": 1}, {}], "there")
        assert api.asked == [("GET", "/apis/tagpin.dev/v1alpha1/imagepins")]

    @pytest.mark.parametrize("metadata", ["", ', "metadata": null', ', "metadata": {}'])
    async def test_a_list_that_says_nothing_of_its_end_ends(self, api: Api, metadata: str) -> None:
        api.text = f'{{"items": []{metadata}}}'

        assert await api.objects.list(PODS, "shop", {}) == ([], "")

    @pytest.mark.parametrize(
        "text",
        [
            "{}",
            '{"items": null}',
            '{"items": {}}',
            '{"items": [1]}',
            '{"items": [], "metadata": 1}',
            "<html>",
            "[]",
        ],
    )
    async def test_what_is_no_list_is_a_failure(self, text: str, api: Api) -> None:
        api.text = text

        with pytest.raises(ClusterError, match=r"cannot do it: no (list|object)"):
            async with asking("do it"):
                await api.objects.list(PODS, "shop", {})
