"""What is remembered takes no more memory than docs/performance.md says."""

import tracemalloc
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from yarl import URL

from conftest import Figure
from tagpin import reference
from tagpin.cache import Cache
from tagpin.imagepin import ImagePin
from tagpin.reference import MAX_REMEMBERED, MAX_REMEMBERED_LENGTH, Digest, Reference
from tagpin.registry.flow import Registry
from tagpin.registry.resolver import _Key, _Known

MANY = 2_000
"""Enough to measure; told of for five times as many."""
NOW = datetime(2026, 11, 24, tzinfo=UTC)


def test_ten_thousand_tags_take_ten_megabytes_at_most(figure: Figure) -> None:
    registry = Registry("registry.corp.example", URL("https://registry.corp.example"))

    def fill(cache: Cache[Any, Any], number: int) -> None:
        path = f"team-{number % 100}/app-{number}"
        key = _Key(registry, path, f"v1.{number}", f"{number:064x}")
        cache.keep(key, _Known(Digest.parse(f"sha256:{number:064x}"), NOW))

    taken = memory_of(fill)
    figure("memory of 10,000 remembered tags", f"{taken / 2**20:.1f} MiB")
    assert taken < 10 * 2**20


def test_ten_thousand_records_take_fifty_megabytes_at_most(figure: Figure) -> None:
    """Of three images each."""

    def fill(cache: Cache[Any, Any], number: int) -> None:
        images = [
            {
                "reference": f"registry.corp.example/team/app-{each}:v1.{number}",
                "digest": f"sha256:{number:063x}{each}",
                "source": "registry",
                "resolvedAt": "2026-11-24T12:31:54Z",
            }
            for each in range(3)
        ]
        workload = {"apiVersion": "apps/v1", "kind": "Deployment", "name": f"web-{number}"}
        revision = {"kind": "ReplicaSet", "name": f"web-{number}-{number:x}", "hash": f"{number:x}"}
        record = {
            "metadata": {"namespace": f"team-{number % 100}", "name": f"web-{number}"},
            "spec": {
                "workload": workload | {"uid": f"{number:032x}"},
                "revision": revision,
                "images": images,
            },
        }
        cache.keep((f"team-{number % 100}", f"web-{number}"), ImagePin.from_object(record))

    taken = memory_of(fill)
    figure("memory of 10,000 remembered records of 3 images", f"{taken / 2**20:.1f} MiB")
    assert taken < 50 * 2**20


def test_all_remembered_references_take_twenty_megabytes_at_most(figure: Figure) -> None:
    """Of the longest texts, and each with a host of its own: whoever creates pods chooses them."""

    def parse() -> None:
        for number in range(MANY):
            host = f"{number}.{'h' * 60}.example"
            Reference.parse(f"{host}/{'a' * 100}/{number}".ljust(MAX_REMEMBERED_LENGTH, "x"))

    reference._remembered.cache_clear()
    taken = traced(parse) * MAX_REMEMBERED / MANY
    assert reference._remembered.cache_info().currsize == MANY
    Reference.parse(f"{'a' * 200}:{'t' * 56}")  # one character too long
    assert reference._remembered.cache_info().currsize == MANY
    reference._remembered.cache_clear()
    figure(f"memory of {MAX_REMEMBERED} remembered references", f"{taken / 2**20:.1f} MiB")
    assert taken < 20 * 2**20


def memory_of(fill: Callable[[Cache[Any, Any], int], None]) -> int:
    """Bytes of 10,000 entries of a cache that is filled, one by one."""
    cache: Cache[Any, Any] = Cache(maxsize=MANY, clock=lambda: 0.0)

    def fill_all() -> None:
        for number in range(MANY):
            fill(cache, number)

    taken = traced(fill_all)
    assert len(cache) == MANY
    return 5 * taken


def traced(work: Callable[[], None]) -> int:
    """Bytes that are left of it."""
    tracemalloc.start()
    try:
        work()
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    return taken
