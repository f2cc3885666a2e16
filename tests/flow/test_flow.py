"""An API server with few seats, and a crowd that wants them all."""

import json
from collections.abc import Iterator
from datetime import datetime
from typing import Any, NamedTuple

import pytest

from cluster.controlplane import ControlPlane
from cluster.images import Pusher
from cluster.installation import SERVICE_ACCOUNT, Installation
from cluster.namespaces import Namespace, images
from cluster.programs import Distribution
from cluster.requirement import require_programs
from conftest import Figure
from flow.crowd import Crowd, Result

PROGRAMS = ("etcd", "kube-apiserver", "kube-controller-manager", "kubectl", "registry")
SEATS = ("--max-requests-inflight=16", "--max-mutating-requests-inflight=8")
CLIENTS = 100
GIVEN_UP = 2.9
"""Seconds: tagpin gives up a call of its own after 3, and the API server notices in time."""
UNANSWERED = 'tagpin_images_unpinned_total{mode="enforce",reason="ledger"}'
ENOUGH, ENDLESS = 5, 1000
"""Refused pods that will do to show that there are some; so many pods nobody waits for."""


class Calls(NamedTuple):
    """What tagpin asked of the API server while the crowd was at work."""

    number: int
    given_up: int
    """Calls that took longer than tagpin waits for them."""
    slowest: float
    """In seconds, the wait for a seat included."""

    def __str__(self) -> str:
        told = f"{self.number}, of which {self.given_up} timed out"
        return f"{told}, the slowest {self.slowest:.2f} s"


class Setting(NamedTuple):
    """A small API server, with tagpin in it."""

    control_plane: ControlPlane
    installation: Installation
    namespace: Namespace
    image: str
    pinned: str

    def crowd(self, home: str = "ci") -> Crowd:
        """A hundred service accounts of a namespace."""
        namespace = self.namespace.name
        return Crowd(
            self.control_plane, home=home, namespace=namespace, image=self.image, size=CLIENTS
        )

    def calls(self, since: int) -> Calls:
        """What tagpin asked for from a mark of the audit log on, but for watches."""
        lasted = [
            _seconds(event)
            for event in self.control_plane.audit_events(since)
            if event["user"]["username"] == SERVICE_ACCOUNT and event["verb"] != "watch"
        ]
        given_up = sum(seconds >= GIVEN_UP for seconds in lasted)
        return Calls(len(lasted), given_up, max(lasted))

    def told_of_calls(self) -> dict[str, float]:
        """What the API server counts for the FlowSchema `tagpin`: metric → sum of its series."""
        _, body = self.control_plane.get("/metrics")
        sums: dict[str, float] = {}
        for line in body.decode().splitlines():
            series, _, value = line.rpartition(" ")
            if 'flow_schema="tagpin"' in series:
                metric = series.partition("{")[0].removeprefix("apiserver_flowcontrol_")
                sums[metric] = sums.get(metric, 0) + float(value)
        return sums


@pytest.fixture(scope="module")
def setting() -> Iterator[Setting]:
    require_programs(*PROGRAMS)
    with (
        ControlPlane(scheduler=False, nodes=0, api_server_flags=SEATS) as control_plane,
        Distribution() as registry,
    ):
        digest = Pusher(registry.url).push("app", "1", "app")
        settings = {
            "registries": [{"host": registry.host, "http": True}],
            "controllers": ["system:serviceaccount:*"],
        }
        namespace = Namespace(control_plane, "busy", {"tagpin.dev/mode": "enforce"})
        may = ("--clusterrole=cluster-admin", "--group=system:serviceaccounts")
        namespace.kubectl("create", "rolebinding", "crowd", *may)
        with Installation(control_plane, settings=settings) as installation:
            image = f"{registry.host}/app:1"
            yield Setting(control_plane, installation, namespace, image, f"{image}@{digest}")


def refused(results: list[Result]) -> list[str]:
    return [each.refusal for each in results if each.refusal]


def _seconds(event: dict[str, Any]) -> float:
    """How long a request took, the time in the queue included."""
    end, begin = (
        datetime.fromisoformat(event[key]) for key in ("stageTimestamp", "requestReceivedTimestamp")
    )
    return (end - begin).total_seconds()


async def test_no_call_of_ours_times_out_however_many_pods_wait_for_seats(
    setting: Setting, figure: Figure
) -> None:
    since = setting.control_plane.audit_mark()

    async with setting.crowd() as crowd:
        results = await crowd.create(each=2)

    assert refused(results) == []
    made = setting.namespace.find("pods")
    assert [images(each)["app"] for each in made] == [setting.pinned] * len(results)
    assert len(setting.namespace.image_pins()) == len(results)
    calls, told = setting.calls(since), setting.told_of_calls()
    assert calls.number >= 4 * len(results)
    assert calls.given_up == 0
    assert setting.installation.counts()[UNANSWERED] == 0
    assert told["dispatched_requests_total"] >= calls.number
    assert told.get("rejected_requests_total", 0) == 0
    waited = told["request_wait_duration_seconds_sum"] / told["dispatched_requests_total"]
    figure(f"{CLIENTS} clients, 24 seats, calls of tagpin's", calls)
    figure("… each waited for its seat, by the API server", f"{1000 * waited:.1f} ms on average")


@pytest.mark.parametrize(
    ("level", "home"), [("workload-high", "kube-system"), ("workload-low", "ci")]
)
async def test_elsewhere_they_wait_for_pods_that_wait_for_them(
    setting: Setting, figure: Figure, level: str, home: str
) -> None:
    """In the level of the pods' creators, that is. Without a FlowSchema it is `workload-low`."""
    if level == "workload-low":
        setting.control_plane.kubectl("delete", "flowschema", "tagpin")
    else:
        patch = json.dumps({"spec": {"priorityLevelConfiguration": {"name": level}}})
        setting.control_plane.kubectl("patch", "flowschema", "tagpin", "--type=merge", "-p", patch)
    since, before = setting.control_plane.audit_mark(), setting.installation.counts()

    async with setting.crowd(home) as crowd:
        results = await crowd.create(each=ENDLESS, bearable=ENOUGH)

    assert len(refused(results)) >= ENOUGH
    calls = setting.calls(since)
    assert calls.given_up > 0
    assert (setting.installation.counts() - before)[UNANSWERED] > 0
    figure(f"the same in {level}", calls)
