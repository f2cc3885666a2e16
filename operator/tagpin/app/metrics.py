"""What `/metrics` tells. Labels are small closed sets, and registries up to a bound.

Every series whose labels are known beforehand is there from the start, at zero: Prometheus sees
no increase in a series that begins at one.
"""

import asyncio
import itertools
import math
import time
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)

from tagpin import __version__
from tagpin.cache import Use
from tagpin.cluster.calls import Call
from tagpin.cluster.events import Fate
from tagpin.cluster.ledger import Write
from tagpin.cluster.listener import Rejection
from tagpin.errors import Reason
from tagpin.pins import Failure, Source
from tagpin.policy import Mode
from tagpin.registry.manifest import Oddity
from tagpin.registry.transport import Exchange
from tagpin.verdict import Admission, Late, Result, Verdict

KNOWN = (
    "docker.io",
    "gcr.io",
    "ghcr.io",
    "mcr.microsoft.com",
    "public.ecr.aws",
    "quay.io",
    "registry.k8s.io",
)
"""Registries with a label value of their own, besides the listed ones.

Whoever creates pods can make up any number of others.
"""
OTHER = "other"

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)

DELAY_PERIOD = 1.0
"""Seconds between two measurements of the event loop's delay."""
MEMORY_LIMIT = Path("/sys/fs/cgroup/memory.max")
"""Where a container of Linux finds its own limit (cgroup v2)."""


def memory_limit(file: Path = MEMORY_LIMIT) -> float:
    """How many bytes this process may have; infinity where nobody says."""
    try:
        return float(file.read_text())
    except (OSError, ValueError):  # "max", among others
        return math.inf


class Metrics:
    """The metrics of one process; `registries` are the listed ones, as references name them."""

    def __init__(self, registries: Iterable[str] = (), *, memory_limit: float = math.inf) -> None:
        disable_created_metrics()  # a second series for each
        self._registry = CollectorRegistry()
        self._registries = {*KNOWN, *registries}
        self._of: Callable[..., Any] = cache(_labelled)
        """A metric with labels, which prometheus_client looks up under a lock each time."""
        self.admissions = Counter(
            "tagpin_admissions",
            "Reviews answered; a pod that another webhook changes meanwhile is reviewed twice.",
            ["mode", "result"],
            registry=self._registry,
        )
        self.admission_seconds = Histogram(
            "tagpin_admission_duration_seconds",
            "Time from review to decision.",
            ["mode"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self.images_pinned = Counter(
            "tagpin_images_pinned",
            "Images with a digest, by where it came from.",
            ["mode", "source"],
            registry=self._registry,
        )
        self.images_unpinned = Counter(
            "tagpin_images_unpinned",
            "Images without a digest, by reason.",
            ["mode", "reason"],
            registry=self._registry,
        )
        self.faults = Counter(
            "tagpin_faults",
            "Faults of tagpin's own in decisions; the log has a traceback of each.",
            ["mode"],
            registry=self._registry,
        )
        self.refused_requests = Counter(
            "tagpin_refused_requests",
            "Requests that are no review of a pod.",
            ["code"],
            registry=self._registry,
        )
        self.rejected_connections = Counter(
            "tagpin_rejected_connections",
            "Connections to the webhook port that came to nothing.",
            ["reason"],
            registry=self._registry,
        )
        for rejection in Rejection:
            self.rejected_connections.labels(rejection.value)
        self.admissions_late = Counter(
            "tagpin_admissions_late",
            "Pods not decided about in time: the namespace was crowded, or it took too long.",
            ["mode", "cause"],
            registry=self._registry,
        )
        for mode in Mode:
            for late in Late:
                self.admissions_late.labels(mode.value, late.value)
        self.reviews = Gauge(
            "tagpin_reviews_in_hand",
            "Reviews that are being answered, or wait for their turn.",
            registry=self._registry,
        )
        self.client_ca_file_broken = Gauge(
            "tagpin_client_ca_file_broken",
            "Whether `clientCaFile` is of no use now; the CAs that it had before still count.",
            registry=self._registry,
        )
        self.registry_requests = Counter(
            "tagpin_registry_requests",
            "Requests to registries; code is a status or its class, or why none came.",
            ["registry", "method", "code"],
            registry=self._registry,
        )
        self.registry_seconds = Histogram(
            "tagpin_registry_request_duration_seconds",
            "Time of a request to a registry.",
            ["registry"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self.registry_oddities = Counter(
            "tagpin_registry_oddities",
            "Manifests whose digest header was malformed, or not that of their bytes.",
            ["registry", "oddity"],
            registry=self._registry,
        )
        self.circuits_open = Gauge(
            "tagpin_registry_circuits_open",
            "Registries, and token servers, that are left alone since nobody answers there.",
            registry=self._registry,
        )
        self.credentials_failed = Counter(
            "tagpin_credentials_failed",
            "Credentials of tagpin's own that a cloud or a program should have had.",
            ["provider"],
            registry=self._registry,
        )
        self.credentials_file_broken = Gauge(
            "tagpin_credentials_file_broken",
            "Whether `credentialsFile` is of no use now; what it had before still serves.",
            registry=self._registry,
        )
        self.cache_uses = Counter(
            "tagpin_cache_uses",
            "Look-ups of tags in the cache.",
            ["use"],
            registry=self._registry,
        )
        self.ledger_reads = Counter(
            "tagpin_ledger_reads",
            "Look-ups of records of revisions: in memory, or (miss, shared) from the API.",
            ["use"],
            registry=self._registry,
        )
        self.ledger_writes = Counter(
            "tagpin_ledger_writes",
            "Writes of records; after a conflict, what another replica wrote stands.",
            ["result"],
            registry=self._registry,
        )
        self.pods_unrecorded = Counter(
            "tagpin_pods_unrecorded",
            "Pods whose digests should be in a record of their revision, and are not.",
            ["mode"],
            registry=self._registry,
        )
        self.pods_unproven = Counter(
            "tagpin_pods_unproven",
            "Pods that name a revision and may not speak for it; if all do, look at `controllers`.",
            ["mode"],
            registry=self._registry,
        )
        self.records = Gauge(
            "tagpin_imagepins",
            "Records in the cluster; counted by the replica that prunes them, 0 elsewhere.",
            registry=self._registry,
        )
        self.records_pruned = Counter(
            "tagpin_imagepins_pruned",
            "Records that were deleted since nobody needed them any more.",
            registry=self._registry,
        )
        self.prunings_failed = Counter(
            "tagpin_prunings_failed",
            "Rounds of pruning that could not be completed.",
            registry=self._registry,
        )
        self.leader = Gauge(
            "tagpin_leader", "Whether this replica prunes records.", registry=self._registry
        )
        self.events = Counter(
            "tagpin_events",
            "Events on workloads and pods, by what became of them.",
            ["result"],
            registry=self._registry,
        )
        self.api_requests = Counter(
            "tagpin_kubernetes_requests",
            "Requests to the Kubernetes API; code is a status or its class, or why none came.",
            ["verb", "resource", "code"],
            registry=self._registry,
        )
        self.api_seconds = Histogram(
            "tagpin_kubernetes_request_duration_seconds",
            "Time until the Kubernetes API began to answer.",
            ["verb"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self.loop_delay = Histogram(
            "tagpin_event_loop_delay_seconds",
            "How long what was due had to wait for its turn; measured once a second.",
            buckets=_SECONDS,
            registry=self._registry,
        )
        Gauge(
            "tagpin_tasks", "Tasks that are under way in the event loop.", registry=self._registry
        ).set_function(_tasks)
        Gauge(
            "tagpin_memory_limit_bytes",
            "What this process may have (its container's limit); infinite if nobody says.",
            registry=self._registry,
        ).set(memory_limit)
        ProcessCollector(registry=self._registry)
        self.certificate_expiry = Gauge(
            "tagpin_certificate_expiry_timestamp_seconds",
            "When the serving certificate expires, in Unix time.",
            registry=self._registry,
        )
        self.ca_certificate_expiry = Gauge(
            "tagpin_ca_certificate_expiry_timestamp_seconds",
            "When the CA of the serving certificate expires, in Unix time; 0 if it is not known.",
            registry=self._registry,
        )
        self.ca_bundle_is_current = Gauge(
            "tagpin_ca_bundle_is_current",
            "Whether every caBundle, as last seen, has the CA of the serving certificate.",
            registry=self._registry,
        )
        self.ready = Gauge(
            "tagpin_ready", "Whether this replica takes reviews.", registry=self._registry
        )
        Gauge("tagpin_build_info", "The version.", ["version"], registry=self._registry).labels(
            __version__
        ).set(1)
        self._begin_at_zero()

    def _begin_at_zero(self) -> None:
        known: dict[Counter | Histogram, tuple[Iterable[str], ...]] = {
            self.admissions: (Mode, Result),
            self.admission_seconds: (Mode,),
            self.images_pinned: (Mode, Source),
            self.images_unpinned: (Mode, Reason),
            self.faults: (Mode,),
            self.cache_uses: (Use,),
            self.ledger_reads: ((Use.HIT, Use.MISS, Use.SHARED),),
            self.ledger_writes: (Write,),
            self.pods_unrecorded: (Mode,),
            self.pods_unproven: (Mode,),
            self.events: (Fate,),
        }
        for metric, values in known.items():
            for labels in itertools.product(*values):
                metric.labels(*labels)

    def observe_admission(self, admission: Admission, verdict: Verdict, seconds: float) -> None:
        """Count one decision (`tagpin.cluster.admission.Observer`)."""
        mode, of = admission.mode, self._of
        of(self.admissions, mode, verdict.result).inc()
        of(self.admission_seconds, mode).observe(seconds)
        if verdict.faults:
            of(self.faults, mode).inc(len(verdict.faults))
        if verdict.late is not None:
            of(self.admissions_late, mode, verdict.late).inc()
        standing = verdict.standing
        if standing.is_fault:
            of(self.pods_unrecorded, mode).inc()
        elif standing.unrecorded and standing.revision is None:
            of(self.pods_unproven, mode).inc()
        for pin in verdict.pins.values():
            if isinstance(pin, Failure):
                of(self.images_unpinned, mode, pin.reason).inc()
            else:
                of(self.images_pinned, mode, pin.source).inc()

    def observe_registry(self, exchange: Exchange) -> None:
        """Count one request to a registry."""
        registry = self._bounded(exchange.registry)
        self._of(self.registry_requests, registry, exchange.method, exchange.code).inc()
        self._of(self.registry_seconds, registry).observe(exchange.seconds)

    def observe_oddity(self, registry: str, oddity: Oddity) -> None:
        """Count what was odd about a registry's answer."""
        self.registry_oddities.labels(self._bounded(registry), oddity.value).inc()

    def _bounded(self, registry: str) -> str:
        return registry if registry in self._registries else OTHER

    def observe_cache(self, use: Use) -> None:
        """Count one use of the cache of digests."""
        self._of(self.cache_uses, use).inc()

    def observe_ledger_read(self, use: Use) -> None:
        """Count one look-up of a record."""
        self._of(self.ledger_reads, use).inc()

    def observe_ledger_write(self, result: Write) -> None:
        """Count one write of a record."""
        self._of(self.ledger_writes, result).inc()

    def observe_event(self, fate: Fate) -> None:
        """Count what became of one Event."""
        self.events.labels(fate.value).inc()

    def observe_call(self, call: Call) -> None:
        """Count one request to the Kubernetes API."""
        self._of(self.api_requests, call.verb, call.resource, call.code).inc()
        self._of(self.api_seconds, call.verb).observe(call.seconds)

    async def measure_delay(
        self, period: float = DELAY_PERIOD, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Measure again and again how late the event loop is, until cancelled."""
        while True:
            due = clock() + period
            await asyncio.sleep(period)
            self.loop_delay.observe(max(0.0, clock() - due))

    def exposition(self) -> bytes:
        """The text that Prometheus scrapes."""
        return generate_latest(self._registry)


def _labelled(metric: Counter | Histogram, *labels: str) -> Counter | Histogram:
    return metric.labels(*labels)


def _tasks() -> int:
    try:
        return len(asyncio.all_tasks())
    except RuntimeError:  # no event loop: somebody only looks at the names
        return 0
