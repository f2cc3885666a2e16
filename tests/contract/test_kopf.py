"""What we rely on of kopf beyond its public interface: one test for each private name."""

from typing import Any

import kopf
import pytest
from kopf._cogs.structs.ephemera import AnyMemo
from kopf._cogs.structs.ids import HandlerId
from kopf._cogs.structs.references import Insights
from kopf._core.engines.admission import WebhookError, serve_admission_request

from tagpin.app.serve import PODS, NoMemories
from tagpin.cluster.server import Exchange, exchange

UPDATE: dict[str, Any] = {
    "apiVersion": "admission.k8s.io/v1",
    "kind": "AdmissionReview",
    "request": {
        "uid": "1",
        "operation": "UPDATE",
        "resource": {"group": "", "version": "v1", "resource": "pods"},
        "subResource": "ephemeralcontainers",
        "userInfo": {"username": "ann"},
        "object": {"metadata": {"name": "web", "uid": "2"}, "spec": {}},
        "oldObject": {"metadata": {"name": "web", "uid": "2"}, "spec": {}},
    },
}


async def dispatch(handlers: kopf.OperatorRegistry, review: Any, memories: NoMemories) -> Any:
    insights = Insights()
    insights.webhook_resources.add(PODS)
    return await serve_admission_request(
        review,
        webhook=HandlerId("pin"),
        settings=kopf.OperatorSettings(),
        memories=memories,
        memobase=AnyMemo(kopf.Memo()),
        registry=handlers,
        insights=insights,
        indices={},
    )


async def test_a_handler_sees_the_exchange_of_its_own_request() -> None:
    handlers = kopf.OperatorRegistry()
    seen = []

    @kopf.on.mutate("v1", "pods", id="pin", subresource="*", registry=handlers)
    async def pin(**_: Any) -> None:
        seen.append(exchange.get())

    mine = Exchange(UPDATE["request"], budget=4, limit=5)
    exchange.set(mine)
    await dispatch(handlers, UPDATE, NoMemories())

    assert seen == [mine]


async def test_an_unknown_resource_is_a_webhook_error() -> None:
    other = {"group": "apps", "version": "v1", "resource": "deployments"}
    review = UPDATE | {"request": UPDATE["request"] | {"resource": other}}

    with pytest.raises(WebhookError):
        await dispatch(kopf.OperatorRegistry(), review, NoMemories())


async def test_updates_leave_no_memories() -> None:
    memories = NoMemories()

    for number in range(100):
        pod = {"metadata": {"name": "web", "uid": str(number)}, "spec": {}}
        request = UPDATE["request"] | {"object": pod, "oldObject": pod}
        await dispatch(kopf.OperatorRegistry(), UPDATE | {"request": request}, memories)

    assert len(list(memories.iter_all_memories())) == 0
