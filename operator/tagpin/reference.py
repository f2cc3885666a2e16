"""Image references by the grammar of distribution/reference, which container runtimes use.

What that grammar rejects, a kubelet reports as `InvalidImageName`; what it accepts must not
break a pod here. (distribution/reference: regexp.go, normalize.go, reference.go)
"""

import re
import sys
from dataclasses import dataclass
from functools import lru_cache
from typing import Self

from tagpin.errors import InvalidReference

DOCKER_HUB = "docker.io"
DEFAULT_TAG = "latest"
MAX_PATH = 255
"""Characters of a normalised path, without its domain (reference.go: NameTotalLengthMax)."""

MAX_REMEMBERED = 16 * 1024
"""References that are remembered: the same ones come again and again (docs/performance.md)."""
MAX_REMEMBERED_LENGTH = 256
"""Characters of a text whose reference is remembered."""
MAX_SHOWN = 300
"""Characters of a text that a message repeats."""

# ASCII classes are written out: Python's \w and \d know more letters and digits than Go's.
_HOST_PART = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
_DOMAIN = rf"(?:{_HOST_PART}(?:\.{_HOST_PART})*|\[[a-fA-F0-9:]+\])(?::[0-9]+)?"
_PATH_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_PATH = rf"{_PATH_PART}(?:/{_PATH_PART})*"
_TAG = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}"
_DIGEST = r"[A-Za-z][A-Za-z0-9]*(?:[-_+.][A-Za-z][A-Za-z0-9]*)*:[0-9a-fA-F]{32,}"
_REFERENCE = re.compile(
    rf"(?P<domain>{_DOMAIN})/(?P<path>{_PATH})(?::(?P<tag>{_TAG}))?(?:@(?P<digest>{_DIGEST}))?"
)
_IMAGE_ID = re.compile(r"[0-9a-f]{64}")
_HEX_LENGTHS = {"sha256": 64, "sha384": 96, "sha512": 128}


@dataclass(frozen=True, slots=True)
class Digest:
    """The name of some bytes: `algorithm:hex`, checked as go-digest does."""

    algorithm: str
    hex: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `sha256:…`, `sha384:…` or `sha512:…`; raise InvalidReference otherwise."""
        algorithm, _, hexadecimal = text.partition(":")
        if algorithm not in _HEX_LENGTHS:
            raise InvalidReference(
                "digest_algorithm", f"unknown digest algorithm {_quoted(algorithm)}"
            )
        if len(hexadecimal) != _HEX_LENGTHS[algorithm]:
            raise InvalidReference(
                "digest_length",
                f"a {algorithm} digest has {_HEX_LENGTHS[algorithm]} hexadecimal digits, "
                f"not {len(hexadecimal)}",
            )
        if not re.fullmatch(r"[0-9a-f]+", hexadecimal):
            raise InvalidReference("digest_format", "a digest is written in lower-case hexadecimal")
        return cls(sys.intern(algorithm), hexadecimal)

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.hex}"


@dataclass(frozen=True, slots=True)
class Reference:
    """`[domain/]path[:tag][@digest]`, normalised in its parts, byte for byte in its text.

    `domain` and `path` are never empty (`nginx` is `docker.io` and `library/nginx`); `tag` is
    None where none was written. With both, the digest decides what runs.
    """

    text: str
    domain: str
    path: str
    tag: str | None
    digest: Digest | None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read what a pod's author wrote; raise InvalidReference, which names the text."""
        try:
            return cls(text, *(_remembered if len(text) <= MAX_REMEMBERED_LENGTH else _parts)(text))
        except InvalidReference as error:
            raise InvalidReference(
                error.kind, f"invalid image reference {_quoted(text)}: {error}"
            ) from None

    @property
    def repository(self) -> str:
        """`domain/path`, normalised: `docker.io/library/nginx`."""
        return f"{self.domain}/{self.path}"

    @property
    def effective_tag(self) -> str:
        """The tag that a runtime would ask for: `latest` where none was written."""
        return self.tag or DEFAULT_TAG

    def __str__(self) -> str:
        return self.text


def _parts(text: str) -> tuple[str, str, str | None, Digest | None]:
    """Domain, path, tag and digest."""
    if _IMAGE_ID.fullmatch(text):
        raise InvalidReference("identifier", "64 hexadecimal digits are an image ID, no name")
    domain, rest = _split_domain(text)
    if re.search(r"[A-Z]", rest.partition(":")[0]):
        raise InvalidReference("uppercase", "a repository name is written in lower case")
    match = _REFERENCE.fullmatch(f"{domain}/{rest}")
    if match is None:
        raise InvalidReference("format", "expected [host/]repository[:tag][@digest]")
    if len(match["path"]) > MAX_PATH:
        raise InvalidReference("too_long", f"the name is longer than {MAX_PATH} characters")
    digest = Digest.parse(match["digest"]) if match["digest"] else None
    return match["domain"], match["path"], match["tag"], digest


_remembered = lru_cache(maxsize=MAX_REMEMBERED)(_parts)


def _split_domain(text: str) -> tuple[str, str]:
    """Domain and rest (normalize.go: splitDockerDomain)."""
    first, slash, rest = text.partition("/")
    if not slash:
        return DOCKER_HUB, f"library/{text}"
    if first != "localhost" and not re.search(r"[.:A-Z]", first):
        return DOCKER_HUB, text
    if first == "index.docker.io":
        first = DOCKER_HUB
    if first == DOCKER_HUB and "/" not in rest:
        rest = f"library/{rest}"
    return first, rest


def shortened(text: str) -> str:
    """`text` as a message repeats it: its beginning, where it is longer than MAX_SHOWN."""
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 1] + "…"


def _quoted(text: str) -> str:
    """`text` fit for a message: control characters visible, and short enough to read."""
    return shortened(repr(text if len(text) <= MAX_PATH else text[:MAX_PATH] + "…"))
