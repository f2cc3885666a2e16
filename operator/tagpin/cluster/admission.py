"""The request of a review becomes an Admission, and gets a Verdict: at once, or by way of kopf."""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
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


class Reviewer:
    """Answers reviews: at once where all is `known`, or as the handlers that kopf dispatches to."""

    def __init__(self, pinner: Pinner, observers: Sequence[Observer] = ()) -> None:
        self._pinner = pinner
        self._observers = observers

    def known(self, path: str, request: Mapping[str, Any]) -> Verdict | None:
        """The verdict where nobody need be asked for it (`tagpin.cluster.server.Known`).

        So it is for most pods, and dispatching would take kopf longer than the decision takes us.
        """
        started = time.perf_counter()
        mode = Mode(path)
        admission = _admission(mode, request)
        try:
            verdict = self._pinner.known(admission)
        except Exception as error:  # noqa: BLE001 - the mode decides, not a fault of ours
            verdict = replace(broken(mode), faults=(error,))
        if verdict is not None:
            self._tell(admission, verdict, time.perf_counter() - started)
        return verdict

    def register(self, registry: kopf.OperatorRegistry) -> None:
        """Add one handler for each mode to kopf's registry."""
        for mode in Mode:
            kopf.on.mutate("v1", "pods", id=mode.value, subresource="*", registry=registry)(
                self._handler(mode)
            )

    def _handler(self, mode: Mode) -> Any:
        async def admit(**_: Any) -> None:
            started = time.perf_counter()
            mine = exchange.get()
            admission = _admission(mode, mine.request)
            limit = asyncio.timeout(mine.limit)
            try:
                async with limit:
                    verdict = await self._pinner.admit(admission, budget=mine.budget)
            except Exception as error:  # noqa: BLE001 - the mode decides, not a fault of ours
                if limit.expired():
                    log.warning(
                        "a decision was cut after %.2f s: was the process stopped, or short of "
                        "CPU? If not, please report this",
                        mine.limit,
                    )
                    verdict = overdue(mode)
                else:
                    verdict = replace(broken(mode), faults=(error,))
            mine.verdict = verdict
            self._tell(admission, verdict, time.perf_counter() - started)

        return admit

    def _tell(self, admission: Admission, verdict: Verdict, seconds: float) -> None:
        for fault in verdict.faults:
            log.error("a decision failed; please report this", exc_info=fault)
        for observe in self._observers:
            try:
                observe(admission, verdict, seconds)
            except Exception:  # a fault in telling of it must not end the decision
                log.exception("a decision could not be told of; please report this")


def _admission(mode: Mode, request: Mapping[str, Any]) -> Admission:
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
        dry_run=bool(request.get("dryRun")),
    )
