"""So many at a time, in order, and nothing kept of those who have gone."""

import asyncio

from tagpin.slots import Slots


async def test_no_more_than_so_many_have_a_slot_and_who_waits_is_served_in_order() -> None:
    slots: Slots[str] = Slots()
    served: list[int] = []
    now, most = 0, 0

    async def use(number: int) -> None:
        nonlocal now, most
        release = await slots.take("a", 2)
        served.append(number)
        now, most = now + 1, max(most, now + 1)
        await asyncio.sleep(0)
        now -= 1
        release()

    await asyncio.gather(*(use(number) for number in range(20)))
    assert (served, most) == (list(range(20)), 2)


async def test_one_keys_slots_are_not_anothers() -> None:
    slots: Slots[str] = Slots()
    await slots.take("a", 1)
    async with asyncio.timeout(1):
        await slots.take("b", 1)


async def test_who_gives_up_waiting_takes_no_slot() -> None:
    slots: Slots[str] = Slots()
    release = await slots.take("a", 1)
    waiting = asyncio.create_task(slots.take("a", 1))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    release()
    async with asyncio.timeout(1):
        await slots.take("a", 1)


async def test_who_is_served_in_the_moment_of_giving_up_takes_no_slot() -> None:
    slots: Slots[str] = Slots()
    release = await slots.take("a", 1)
    waiting = asyncio.create_task(slots.take("a", 1))
    await asyncio.sleep(0)
    release()
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    async with asyncio.timeout(1):
        await slots.take("a", 1)


async def test_a_key_that_nobody_uses_is_forgotten() -> None:
    slots: Slots[int] = Slots()
    releases = [await slots.take(number, 1) for number in range(100)]
    waiting = asyncio.create_task(slots.take(0, 1))
    await asyncio.sleep(0)
    assert len(slots) == 100
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    for release in releases:
        release()
    assert len(slots) == 0
