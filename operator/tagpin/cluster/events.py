"""Events on workloads: nobody sees the warnings about a Deployment's pods."""

import asyncio
import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime
from enum import StrEnum
from http import HTTPStatus

from cachetools import TTLCache
from kubernetes.aio.client import ApiClient

from tagpin import workload
from tagpin.cluster.api import asking
from tagpin.cluster.objects import EVENTS, Object, Objects
from tagpin.errors import ClusterError
from tagpin.verdict import Admission, Verdict

QUIET = 300.0
"""Seconds for which the same Event on the same object is not written again."""
MAX_PER_NAMESPACE = 100
"""Events in one namespace within `QUIET`: whoever can create pods can make up workloads."""
MAX_QUIET = 4096
MAX_WAITING = 256
"""Events that wait to be written; more are dropped and counted."""
MAX_NOTE = 1024
"""Characters of an Event's message (API: Event.message)."""
NOT_PINNED = "ImageNotPinned"
NOT_RECORDED = "ImageNotRecorded"
PINNED = "ImagePinned"

_TERMINATING = "NamespaceTerminating"

log = logging.getLogger(__name__)


class Fate(StrEnum):
    """What became of an Event: a closed set, for metrics."""

    WRITTEN = "written"
    LIMITED = "limited"
    """Its namespace had `MAX_PER_NAMESPACE` already."""
    CROWDED = "crowded"
    """`MAX_WAITING` others waited to be written."""
    GONE = "gone"
    """Its namespace goes away, and takes no Events any more: no fault of anybody's."""
    FAILED = "failed"
    """The API server refused it, or did not answer."""


class EventRecorder:
    """Writes the notices and facts of verdicts as Events, behind the answers' back."""

    def __init__(
        self,
        client: ApiClient,
        *,
        instance: str,
        observe: Callable[[Fate], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._objects = Objects(client)
        self._instance = instance
        self._observe = observe
        self._waiting: asyncio.Queue[tuple[str, Object]] = asyncio.Queue(MAX_WAITING)
        self._written: TTLCache[tuple[str, ...], bool] = TTLCache(MAX_QUIET, QUIET, timer=clock)
        self._spent: TTLCache[str, int] = TTLCache(MAX_QUIET, QUIET, timer=clock)

    def record(self, admission: Admission, verdict: Verdict, _seconds: float) -> None:
        """Queue what one decision has to tell (`tagpin.cluster.admission.Observer`)."""
        standing = verdict.standing
        if admission.dry_run or not (verdict.notices or verdict.facts or standing.is_fault):
            return
        involved = _workload(admission, verdict)
        for notice in verdict.notices:
            self._queue(self._event(involved, "Warning", NOT_PINNED, notice))
        if notice := standing.notice:
            self._queue(self._event(involved, "Warning", NOT_RECORDED, notice))
        for fact in verdict.facts:
            self._queue(self._event(_pod(admission), "Normal", PINNED, fact))

    def _queue(self, event: Object) -> None:
        involved = event["involvedObject"]
        namespace = involved["namespace"]
        key = (namespace, involved["kind"], involved["name"], event["message"])
        spent = self._spent.get(namespace, 0)
        if key in self._written:
            return
        if spent >= MAX_PER_NAMESPACE:
            self._observe(Fate.LIMITED)
            return
        try:
            self._waiting.put_nowait((namespace, event))
        except asyncio.QueueFull:
            self._observe(Fate.CROWDED)
        else:
            self._written[key] = True
            self._spent[namespace] = spent + 1

    async def run(self) -> None:
        """Write what is queued, one at a time, until cancelled."""
        while True:
            namespace, event = await self._waiting.get()
            try:
                async with asking(f"write an Event in {namespace}"):
                    await self._objects.create(EVENTS, namespace, event)
            except ClusterError as error:
                self._observe(Fate.GONE if _is_going_away(error) else Fate.FAILED)
                log.debug("an Event is lost", extra={"error": str(error)})
            else:
                self._observe(Fate.WRITTEN)

    def _event(self, involved: dict[str, str], kind: str, reason: str, note: str) -> Object:
        # Whole seconds, as the API has them (apimachinery: meta/v1.Time).
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        message = note if len(note) <= MAX_NOTE else note[: MAX_NOTE - 1] + "…"
        return {
            "metadata": {"generateName": "tagpin-", "namespace": involved["namespace"]},
            "involvedObject": involved,
            "type": kind,
            "reason": reason,
            "message": message,
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
            "source": {"component": "tagpin", "host": self._instance},
            "reportingComponent": "tagpin.dev/webhook",
            "reportingInstance": self._instance,
        }


def _is_going_away(error: ClusterError) -> bool:
    return error.status == HTTPStatus.NOT_FOUND or _TERMINATING in error.causes


def _workload(admission: Admission, verdict: Verdict) -> dict[str, str]:
    """What people look at: the Deployment, else the pod's controller, else the pod itself."""
    revision = verdict.standing.revision
    owner = revision.workload if revision else workload.controller(admission.pod)
    if owner is None:
        return _pod(admission)
    return {**owner.to_reference(), "namespace": admission.namespace}


def _pod(admission: Admission) -> dict[str, str]:
    """The pod, which has no uid before it is created."""
    reference = {
        "apiVersion": "v1",
        "kind": "Pod",
        "name": workload.display_name(admission.pod),
        "namespace": admission.namespace,
    }
    uid = workload.uid(admission.pod)
    return {**reference, "uid": uid} if uid else reference
