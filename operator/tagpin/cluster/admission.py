"""kopf ⇄ pinning: a review becomes an Admission, a Verdict becomes kopf's answer. Nothing else."""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import kopf

from tagpin.cluster.server import exchange
from tagpin.pinning import Pinner
from tagpin.policy import Mode
from tagpin.verdict import Admission, Verdict, broken, overdue

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
        limit = asyncio.timeout(mine.limit)
        try:
            async with limit:
                verdict = await pinner.admit(admission, budget=mine.budget)
        except Exception as error:  # noqa: BLE001 - the mode decides, not a fault of ours
            if limit.expired():
                log.warning(
                    "a decision was cut after %.2f s: was the process stopped, or short of CPU? "
                    "If not, please report this",
                    mine.limit,
                )
                verdict = overdue(mode)
            else:
                verdict = replace(broken(mode), faults=(error,))
        mine.verdict = verdict
        for fault in verdict.faults:
            log.error("a decision failed; please report this", exc_info=fault)
        for observe in observers:
            try:
                observe(admission, verdict, time.perf_counter() - started)
            except Exception:  # nor must one in telling of it
                log.exception("a decision could not be told of; please report this")
        warnings.extend(verdict.warnings)
        if not verdict.allowed:
            raise kopf.AdmissionError(verdict.message, code=403)

    return admit


def _admission(mode: Mode, request: Any, *, dry_run: bool) -> Admission:
    user = request["userInfo"]
    groups = user.get("groups")
    return Admission(
        mode=mode,
        operation=request["operation"],
        namespace=request.get("namespace") or "",
        pod=request["object"],
        old=request.get("oldObject") or {},
        subresource=request.get("subResource") or "",
        user=str(user.get("username") or ""),
        groups=tuple(map(str, groups)) if isinstance(groups, list) else (),
        dry_run=dry_run,
    )
