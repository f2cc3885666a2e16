"""Deletes the records that nobody needs any more: the work of one replica (`election`)."""

import asyncio
import logging
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from http import HTTPStatus

from kubernetes.aio.client import ApiClient

from tagpin.cluster.api import asking
from tagpin.cluster.objects import IMAGE_PINS, Collection, Objects
from tagpin.errors import ClusterError
from tagpin.retention import YOUNG, Record, superfluous

PAGE = 100
"""Records of one answer: reading more at once would hold up reviews that come in meanwhile."""
ATTEMPTS = 3
"""How often a list is begun in one round: its pages are gone a few minutes after the first."""

log = logging.getLogger(__name__)


class Pruner:
    """Keeps the number of ImagePins bounded, by `tagpin.retention`.

    Needs `list` and `delete` on imagepins, and `get` on replicasets, controllerrevisions and
    jobs. What cannot be read is kept.
    """

    def __init__(
        self,
        client: ApiClient,
        *,
        keep: int = 10,
        interval: float = 600.0,
        page: int = PAGE,
        young: timedelta = YOUNG,
        seen: Callable[[int], None] = lambda _: None,
        pruned: Callable[[], None] = lambda: None,
        failed: Callable[[], None] = lambda: None,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """Prepare one; nothing is asked before `run`.

        Args:
            client: the connection to the Kubernetes API.
            keep: how many records of a workload stay, besides those in use.
            interval: seconds between two rounds.
            page: how many records the API is asked for at once.
            young: the age up to which no record goes.
            seen: told how many records there are, at each round; 0 when `run` ends.
            pruned: told of each record that was deleted.
            failed: told of each round that could not be completed.
            clock: tells the time, in UTC.
        """
        self._objects = Objects(client)
        self._keep = keep
        self._interval = interval
        self._page = page
        self._young = young
        self._seen = seen
        self._pruned = pruned
        self._failed = failed
        self._clock = clock

    async def run(self) -> None:
        """Prune at once and then at every interval, until cancelled."""
        try:
            while True:
                try:
                    await self.prune()
                except ClusterError as error:
                    self._failed()
                    log.warning("not all ImagePins could be pruned: %s", error)
                await asyncio.sleep(self._interval)
        finally:
            self._seen(0)  # another replica counts them from now on

    async def prune(self) -> int:
        """Delete what may go by now, and say how many records that was.

        Raises ClusterError where something could not be read or deleted, after whatever else
        could be done.
        """
        time = asyncio.get_running_loop().time
        begun, deleted = time(), 0
        forbidden: ClusterError | None = None
        candidates = superfluous(
            await self._records(), keep=self._keep, now=self._clock(), young=self._young
        )
        try:
            for record in candidates:
                try:
                    if not await self._is_in_use(record):
                        deleted += await self._delete(record)
                except ClusterError as error:
                    # A right may be missing for one kind or namespace. Anything else would fail,
                    # or wait, as often as there are records.
                    if error.status != HTTPStatus.FORBIDDEN:
                        raise
                    forbidden = error
        finally:
            if deleted:
                log.info("pruned %d ImagePins in %.1f s", deleted, time() - begun)
        if forbidden:
            raise forbidden
        return deleted

    async def _records(self) -> list[Record]:
        """All records of the cluster, as they were at one moment."""
        for _ in range(ATTEMPTS - 1):
            try:
                return await self._listed()
            except ClusterError as error:
                if error.status != HTTPStatus.GONE:
                    raise
        return await self._listed()

    async def _listed(self) -> list[Record]:
        records: list[Record] = []
        count, query = 0, dict[str, str | int](limit=self._page)
        while True:
            async with asking("list ImagePins"):
                page = await self._objects.list(IMAGE_PINS, None, query)
            count += len(page.items)
            for item in page.items:
                try:
                    records.append(Record.from_object(item))
                except ValueError as error:
                    log.debug("an ImagePin is kept, since it cannot be read: %s", error)
            if not page.following:
                self._seen(count)
                return records
            query["continue"] = page.following

    async def _is_in_use(self, record: Record) -> bool:
        """Whether the record's revision can still make pods. Raises ClusterError."""
        if record.resource is None:
            return False  # it goes by number alone
        _, group, version, plural = record.resource
        name, namespace = record.revision, record.namespace
        try:
            async with asking(f"read {plural} {namespace}/{name}"):
                found = await self._objects.get(Collection(group, version, plural), namespace, name)
                return record.is_stood_for_by(found)
        except ClusterError as error:
            if error.is_absence_of(name):
                return False
            raise

    async def _delete(self, record: Record) -> bool:
        """Delete the record as it was listed, and say whether it was still that one."""
        told = f"{record.namespace}/{record.name}"
        where = (IMAGE_PINS, record.namespace, record.name)
        try:
            async with asking(f"delete ImagePin {told}"):
                await self._objects.delete(*where, uid=record.uid, version=record.version)
        except ClusterError as error:
            if error.status in (HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT):
                return False
            raise
        self._pruned()
        log.debug("pruned ImagePin %s", told, extra={"revision": record.revision})
        return True
