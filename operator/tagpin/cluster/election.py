"""Which replica does the work that only one may do: the one that holds the Lease.

What makes the Lease ours is decided by `kubernetes.aio.leaderelection`; the loop is our own. The
library's asks an API server that has fallen silent for ever, tries again for longer than the
Lease lasts, does not notice that the work has failed, and leaves it behind when it is cancelled.
"""

import asyncio
import logging
import math
from collections.abc import Callable, Coroutine
from datetime import datetime
from http import HTTPStatus
from typing import Any

from kubernetes.aio.client import ApiClient, ApiException, V1Lease
from kubernetes.aio.leaderelection.electionconfig import Config
from kubernetes.aio.leaderelection.leaderelection import LeaderElection
from kubernetes.aio.leaderelection.leaderelectionrecord import LeaderElectionRecord
from kubernetes.aio.leaderelection.resourcelock.leaselock import LeaseLock

from tagpin.cluster.api import asking
from tagpin.cluster.tls import REMEDY
from tagpin.errors import ClusterError

LONGEST_WAIT = 60.0
"""Seconds between two attempts at work that fails."""
FAREWELL = 2.0
"""Seconds to give the Lease back in; what fails then is what its end is for."""

log = logging.getLogger(__name__)


class Election:
    """Runs `lead` while this replica holds the Lease, which must exist.

    Needs `get` and `update` on the Lease. The work is cancelled once the Lease could not be
    renewed for two thirds of its duration, so it has the last third to end before another
    replica begins. It must bear a second one beside it all the same: a process can be suspended
    for any time, and candidates wait by their wall clocks.
    """

    def __init__(
        self,
        client: ApiClient,
        *,
        lead: Callable[[], Coroutine[Any, Any, None]],
        identity: str,
        namespace: str = "tagpin-system",
        name: str = "tagpin",
        lease_duration: float = 15.0,
        longest_wait: float = LONGEST_WAIT,
    ) -> None:
        """Prepare one; nothing is asked before `run`. Raises ValueError for a shorter Lease.

        Args:
            client: the connection to the Kubernetes API.
            lead: the work; it ends only when it is cancelled, and then soon.
            identity: the name of this replica, which no other one may have.
            namespace: where the Lease is.
            name: its name.
            lease_duration: seconds (2 or more) that others wait for a holder who is silent.
            longest_wait: seconds at most until work that failed is tried again.
        """
        self._told = f"Lease {namespace}/{name}"
        self._lead = lead
        self._longest_wait = longest_wait
        self._deadline = lease_duration * 2 / 3
        self._retry = lease_duration / 7.5
        self._lock = _Lock(name, namespace, identity, client)
        # All but the first two are for the library's own loop, which does not run.
        config = Config(self._lock, math.ceil(lease_duration), self._deadline, 1.0, lead, lead)
        self._candidate = LeaderElection(config)
        self._is_leader = False
        self._held_until = 0.0
        self._problem = _Problem()

    @property
    def is_leader(self) -> bool:
        """Whether the Lease is ours, and so `lead` at work."""
        return self._is_leader

    async def run(self) -> None:
        """Stand for election until cancelled, whatever the API and the work do."""
        failures = 0
        while True:
            wait = self._retry
            if await self._hold():
                failures = 0 if await self._serve() else failures + 1
                wait = min(self._longest_wait, wait * 2.0 ** min(failures, 10))
            await asyncio.sleep(wait)

    async def _serve(self) -> bool:
        """Lead for as long as the Lease is ours; return whether the work did not fail."""
        log.info("leading: %s holds %s", self._lock.identity, self._told)
        self._is_leader = True
        work = asyncio.create_task(self._lead())
        try:
            await self._hold_during(work)
        finally:
            self._is_leader = False
            failure = await _ended(work)
            await self._give_back()
        if failure is not None:
            log.error("the work of the leader failed, and is tried again", exc_info=failure)
        return failure is None

    async def _hold_during(self, work: asyncio.Task[None]) -> None:
        """Return when the work has ended, or the Lease is not ours for certain any more."""
        try:
            async with asyncio.timeout_at(self._held_until) as deadline:
                while True:
                    await asyncio.wait([work], timeout=self._retry)
                    if work.done():
                        return
                    if await self._hold():
                        deadline.reschedule(self._held_until)
                    elif self._holder not in (None, self._lock.identity):
                        log.warning("%s has been taken by %s", self._told, self._holder)
                        return
        except TimeoutError:
            log.warning("%s was not renewed for %.1f s", self._told, self._deadline)

    async def _hold(self) -> bool:
        """Take the Lease or renew it, if it is free or ours; return whether it is ours now."""
        # From before it is written: others wait from when they see it written.
        begun = asyncio.get_running_loop().time()
        try:
            async with asking(f"hold {self._told}", seconds=self._deadline / 3):
                held: bool = await self._candidate.try_acquire_or_renew()
        except ClusterError as error:
            self._problem.found(self._advice(error))
            return False
        except Exception as error:  # noqa: BLE001 - a fault in the library must not end the process
            self._problem.found(f"cannot hold {self._told}: {error!r}", error)
            return False
        self._problem.solved()
        if held:
            self._held_until = begun + self._deadline
        return held

    async def _give_back(self) -> None:
        """Let another replica have the Lease at once, if it is still ours."""
        try:
            async with asking(f"give back {self._told}", seconds=FAREWELL):
                await self._lock.give_back()
        except Exception as error:  # noqa: BLE001 - as above
            log.debug("%s was not given back, and ends by itself: %r", self._told, error)

    @property
    def _holder(self) -> str | None:
        record = self._candidate.observed_record
        return record.holder_identity if record else None

    def _advice(self, error: ClusterError) -> str:
        if error.is_absence_of(self._lock.name):
            return f"{self._told} is missing: {REMEDY}"
        return f"{error}: {REMEDY}" if error.status == HTTPStatus.FORBIDDEN else str(error)


class _Lock(LeaseLock):
    """The library's, but what fails is raised.

    Where there is no Lease the library would try to create one, which is not among our rights.
    It logs a failure with a traceback each time, and a failed write is none if another replica
    was faster.
    """

    async def get(self, name: str, namespace: str) -> tuple[bool, LeaderElectionRecord]:
        lease = await self.api_instance.read_namespaced_lease(name, namespace)
        self.lease_reference = lease
        return True, self.election_record(lease)

    async def update(self, name: str, namespace: str, updated_record: LeaderElectionRecord) -> bool:
        lease = self.lease_reference or V1Lease()  # there is one: `get` comes first
        lease.spec = self.update_lease(updated_record, lease.spec)
        try:
            await self.api_instance.replace_namespaced_lease(name, namespace, lease)
        except ApiException as error:
            if error.status != HTTPStatus.CONFLICT:
                raise
            return False
        return True

    def time_str_to_iso(self, str_time: str) -> str:
        """As the library does, but no whole seconds: the client leaves out their fraction.

        The API server refuses a Lease without it, and so would each renewal be refused.
        """
        moment = datetime.fromisoformat(str_time)
        return moment.replace(microsecond=moment.microsecond or 1).isoformat() + "Z"

    async def give_back(self) -> None:
        """Remove the holder, if that is us."""
        lease = await self.api_instance.read_namespaced_lease(self.name, self.namespace)
        if lease.spec and lease.spec.holder_identity == self.identity:
            lease.spec.holder_identity = None
            await self.api_instance.replace_namespaced_lease(self.name, self.namespace, lease)


async def _ended(work: asyncio.Task[None]) -> BaseException | None:
    """Cancel the work, wait for its end, and return what it failed with."""
    work.cancel()
    await asyncio.wait([work])
    return None if work.cancelled() else work.exception()


class _Problem:
    """Logged when it appears, and when it is over."""

    def __init__(self) -> None:
        self._message = ""

    def found(self, message: str, error: BaseException | None = None) -> None:
        if message != self._message:
            log.error("%s", message, exc_info=error)
        self._message = message

    def solved(self) -> None:
        if self._message:
            log.info("solved: %s", self._message)
        self._message = ""
