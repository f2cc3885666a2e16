"""Which images must become digests, and what happens where one can't."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from tagpin import workload
from tagpin.errors import ConfigurationError, InvalidReference
from tagpin.reference import Reference

OPT_OUT_LABEL = "tagpin.dev/pin"
OPT_OUT_VALUE = "disabled"


class Mode(StrEnum):
    """The value of a namespace's label `tagpin.dev/mode`, known from the path that was called."""

    AUDIT = "audit"
    PIN = "pin"
    ENFORCE = "enforce"

    @property
    def writes_images(self) -> bool:
        """Whether the pod's spec is changed."""
        return self is not Mode.AUDIT

    @property
    def refuses(self) -> bool:
        """Whether a pod with an image that can't be resolved is refused."""
        return self is Mode.ENFORCE

    @property
    def knows_opt_out(self) -> bool:
        """Whether a label on the pod takes it out."""
        return self is not Mode.ENFORCE


class Decision(StrEnum):
    """What is to be done about one image."""

    PIN = "pin"
    LEAVE = "leave"


@dataclass(frozen=True, slots=True)
class Rules:
    """What the operator of the cluster has exempted.

    `exempt` holds repositories (`docker.io/library/nginx`) and prefixes that end with a slash
    (`registry.example.com/mesh/`), both in full; `untouched` holds namespaces.
    """

    exempt: tuple[str, ...] = ()
    untouched: frozenset[str] = frozenset()

    @classmethod
    def from_settings(cls, exempt: Sequence[str], untouched: Sequence[str]) -> "Rules":
        """Check what the configuration says; raise ConfigurationError."""
        for pattern in exempt:
            _check(pattern)
        return cls(tuple(exempt), frozenset(untouched))


def exempt_patterns(text: str) -> tuple[str, ...]:
    """The patterns of the file `exempt`: one a line, with comments from `#` on.

    The policy `tagpin-require-digest` reads the same text, and must find the same in it.
    """
    lines = (line.partition("#")[0].strip(" \t\r") for line in text.split("\n"))
    return tuple(line for line in lines if line)


def decide(ref: Reference, rules: Rules) -> Decision:
    """Pin every image but those that the operator's own list exempts."""
    repository = _repository(ref)
    for pattern in rules.exempt:
        if repository == pattern or (pattern.endswith("/") and repository.startswith(pattern)):
            return Decision.LEAVE
    return Decision.PIN


def leaves_alone(
    pod: workload.Pod, *, mode: Mode, namespace: str, groups: tuple[str, ...], rules: Rules
) -> bool:
    """Whether nothing of this pod is our business."""
    return (
        namespace in rules.untouched
        or workload.is_being_deleted(pod)
        or workload.is_mirror(pod, groups)
        or (mode.knows_opt_out and workload.labels(pod).get(OPT_OUT_LABEL) == OPT_OUT_VALUE)
    )


def _check(pattern: str) -> None:
    """Raise ConfigurationError for what never matches, or is not written in full.

    In full, because the policy `tagpin-require-digest` compares patterns as they stand there.
    """
    # Two more parts make a prefix a reference, and keep `library/` out of it.
    rest = "x/x" if pattern.endswith("/") else ""
    try:
        ref = Reference.parse(pattern + rest)
    except InvalidReference:
        raise ConfigurationError(
            f"exempt: invalid image reference {pattern!r}: expected a repository in lower case, "
            "or a prefix that ends with a slash"
        ) from None
    if "/" not in pattern and "." in pattern.partition(":")[0]:
        raise ConfigurationError(
            f"exempt: {pattern!r} is an image of Docker Hub by the rules of references; "
            f"for all of a registry write {pattern + '/'!r}"
        )
    if ref.tag or ref.digest:
        raise ConfigurationError(
            f"exempt: {pattern!r} has a tag or a digest; name a repository, or a prefix that "
            "ends with a slash"
        )
    if (full := _repository(ref).removesuffix(rest)) != pattern:
        raise ConfigurationError(f"exempt: {pattern!r} is not in full: write {full!r}")


def _repository(ref: Reference) -> str:
    """The repository as patterns name it: hosts are the same in capitals."""
    return f"{ref.domain.lower()}/{ref.path}"
