"""A resolver and a reader of pull secrets that answer from tables."""

import asyncio
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import Enum

from fakes.clock import FakeClock
from tagpin.errors import Reason, Unresolvable
from tagpin.keychain import Keychain
from tagpin.pinning import Access, Resolution
from tagpin.pins import Source
from tagpin.reference import Digest, Reference


class Never(Enum):
    """An answer that does not come."""

    HANGS = "hangs"


HANGS = Never.HANGS


def digest_of(name: str) -> Digest:
    """The digest that a normalised `repository:tag` has, unless a test says otherwise."""
    return Digest("sha256", hashlib.sha256(name.encode()).hexdigest())


@dataclass(slots=True)
class FakeResolver:
    """Every tag exists, but for what `answers` says, by normalised `repository:tag`.

    Answers are remembered by keychain, as the real resolver does, and stand in for a registry
    that is down.
    """

    answers: dict[str, Digest | Exception | Never] = field(default_factory=dict)
    clock: FakeClock = field(default_factory=FakeClock)
    asked: list[str] = field(default_factory=list)
    """The references that registries were asked for, or the cache, in order."""
    max_ages: list[float] = field(default_factory=list)
    limits: list[float] = field(default_factory=list)
    """How many seconds each question was given."""
    keychains: list[Keychain] = field(default_factory=list)
    most_at_once: int = 0
    _at_once: int = 0
    _known: dict[tuple[str, Keychain], Resolution] = field(default_factory=dict)

    async def resolve(
        self, ref: Reference, keychain: Keychain, *, namespace: str, max_age: float, within: float
    ) -> Resolution:
        self.asked.append(ref.text)
        self.max_ages.append(max_age)
        self.limits.append(within)
        self.keychains.append(keychain)
        self._at_once += 1
        self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            async with asyncio.timeout(within):
                return await self._resolve(_name(ref), keychain, max_age)
        except TimeoutError:
            reason, message = Reason.TIMEOUT, f"{ref.domain} did not answer in time"
            return self._stand_in(ref, keychain, Unresolvable(reason, message))
        except Unresolvable as error:
            return self._stand_in(ref, keychain, error)
        finally:
            self._at_once -= 1

    def last_known(self, ref: Reference, keychain: Keychain) -> Resolution | None:
        known = self._known.get((_name(ref), keychain))
        return None if known is None else replace(known, source=Source.STALE)

    def remember(self, image: str, digest: Digest, keychain: Keychain | None = None) -> Resolution:
        """As if `image` had been asked for now."""
        resolution = Resolution(digest, Source.REGISTRY, self.clock.now())
        self._known[_name(Reference.parse(image)), keychain or Keychain()] = resolution
        return resolution

    async def _resolve(self, name: str, keychain: Keychain, max_age: float) -> Resolution:
        known = self._known.get((name, keychain))
        if known and (self.clock.now() - known.resolved_at).total_seconds() <= max_age:
            return replace(known, source=Source.CACHE)
        await asyncio.sleep(0)  # others may ask meanwhile
        answer = self.answers.get(name, digest_of(name))
        if isinstance(answer, Never):
            await asyncio.Event().wait()
        if isinstance(answer, Digest):
            resolution = Resolution(answer, Source.REGISTRY, self.clock.now())
            self._known[name, keychain] = resolution
            return resolution
        assert isinstance(answer, Exception)
        raise answer

    def _stand_in(self, ref: Reference, keychain: Keychain, error: Unresolvable) -> Resolution:
        known = self.last_known(ref, keychain)
        if known is None or not error.reason.is_outage:
            raise error
        return known


@dataclass(slots=True)
class FakePullSecrets:
    """Every pod has the same access, or the reader hangs, or fails."""

    answer: Access | Exception | Never = field(default_factory=lambda: Access(Keychain()))
    asked: list[tuple[str, tuple[str, ...], str]] = field(default_factory=list)

    async def read(self, namespace: str, names: Sequence[str], service_account: str) -> Access:
        self.asked.append((namespace, tuple(names), service_account))
        if isinstance(self.answer, Never):
            await asyncio.Event().wait()
        if isinstance(self.answer, Access):
            return self.answer
        assert isinstance(self.answer, Exception)
        raise self.answer


def _name(ref: Reference) -> str:
    return f"{ref.repository}:{ref.effective_tag}"
