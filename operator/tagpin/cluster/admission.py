"""kopf ⇄ pinning: a review becomes an Admission, a Verdict becomes kopf's answer. Nothing else."""

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

import kopf

from tagpin.cluster.server import exchange
from tagpin.pinning import Admission, Pinner, Verdict, broken
from tagpin.policy import Mode

PATHS = tuple(mode.value for mode in Mode)
"""Ids of the handlers, and so the paths that the API server calls: the path is the mode."""

Observer = Callable[[Admission, Verdict, float], None]
"""Told of every decision, and how many seconds it took."""

log = logging.getLogger(__name__)


def register(
    registry: kopf.OperatorRegistry, pinner: Pinner, observers: Sequence[Observer] = ()
) -> None:
    """Add one handler for each mode to kopf's registry."""
    for mode in Mode:
        kopf.on.mutate("v1", "pods", id=mode.value, subresource="*", registry=registry)(
            _handler(mode, pinner, observers)
        )


def _handler(mode: Mode, pinner: Pinner, observers: Sequence[Observer]) -> Any:
    async def admit(*, dryrun: bool, warnings: list[str], **_: Any) -> None:
        started = time.perf_counter()
        mine = exchange.get()
        admission = _admission(mode, mine.request, dry_run=dryrun)
        try:
            verdict = await pinner.admit(admission, budget=mine.budget)
        except Exception:  # a fault of ours must not decide about a pod: the mode does
            log.exception("a decision failed; please report this")
            verdict = broken(mode)
        mine.verdict = verdict
        for observe in observers:
            observe(admission, verdict, time.perf_counter() - started)
        warnings.extend(verdict.warnings)
        if not verdict.allowed:
            raise kopf.AdmissionError(verdict.message, code=403)

    return admit


def _admission(mode: Mode, request: Any, *, dry_run: bool) -> Admission:
    groups = request["userInfo"].get("groups") or ()
    return Admission(
        mode=mode,
        operation=request["operation"],
        namespace=request.get("namespace") or "",
        pod=request["object"],
        old=request.get("oldObject") or {},
        subresource=request.get("subResource") or "",
        groups=tuple(group for group in groups if isinstance(group, str)),
        dry_run=dry_run,
    )
