"""What the answer to a request for a manifest says: which digest, if it may be believed.

(opencontainers/distribution-spec: Pulling manifests; opencontainers/image-spec)
"""

import hashlib
from collections.abc import Callable
from enum import StrEnum

from tagpin.errors import InvalidReference, Reason
from tagpin.reference import Digest
from tagpin.registry.flow import Failure, Response, json_object

INDEXES = frozenset(
    {
        "application/vnd.oci.image.index.v1+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
    }
)
IMAGES = frozenset(
    {
        "application/vnd.oci.image.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.v2+json",
    }
)
_SCHEMA_1 = frozenset(
    {
        "application/vnd.docker.distribution.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.v1+prettyjws",
    }
)
ACCEPT = ", ".join((*sorted(INDEXES, reverse=True), *sorted(IMAGES, reverse=True)))
"""All four in one header: without the indexes a registry answers for one platform, or 404."""

MAX_MANIFEST = 4 * 1024 * 1024


class Oddity(StrEnum):
    """What a registry did against the specification, though it could be put up with."""

    DIGEST_MALFORMED = "digest_malformed"
    """Its digest header is no digest, or there are several."""
    DIGEST_MISMATCH = "digest_mismatch"
    """Its digest header names other bytes than it sent."""


Remark = Callable[[Oddity], None]


def digest_by_head(response: Response, remark: Remark) -> Digest | None:
    """The digest that a HEAD vouches for, None where the bytes must be seen.

    Content-Length is not asked for: proxies that chunk strip it.
    """
    if response.media_type in _SCHEMA_1:
        raise _schema_1()
    stated = _stated_digest(response, remark)
    return stated if response.media_type in INDEXES | IMAGES else None


def digest_by_body(response: Response, remark: Remark, *, strict: bool) -> Digest:
    """The hash of the bytes, if they are a manifest that a runtime can read.

    It stands even where the header names another one, unless `strict`: registries are known to
    send the digest of what they made the manifest from.
    """
    body = response.content(MAX_MANIFEST, "the manifest")
    _check_manifest(body, response.media_type)
    stated = _stated_digest(response, remark)
    if stated is not None and stated == _hash(body, stated.algorithm):
        return stated
    if stated is not None:
        remark(Oddity.DIGEST_MISMATCH)
        if strict:
            raise Failure(Reason.BAD_ANSWER, "the manifest is not the one that its header names")
    return _hash(body, "sha256")


def _hash(body: bytes, algorithm: str) -> Digest:
    return Digest(algorithm, hashlib.new(algorithm, body).hexdigest())


def _stated_digest(response: Response, remark: Remark) -> Digest | None:
    stated = response.values("docker-content-digest")
    if not stated:
        return None
    try:
        (only,) = stated
        return Digest.parse(only)
    except (ValueError, InvalidReference):
        remark(Oddity.DIGEST_MALFORMED)
        return None


def _schema_1() -> Failure:
    return Failure(Reason.UNSUPPORTED, "the manifest is schema 1")


def _check_manifest(body: bytes, media_type: str) -> None:
    """Refuse what two readers could take for two things (CVE-2021-41190), and schema 1."""
    manifest = json_object(body, "the manifest")
    if media_type in _SCHEMA_1 or manifest.get("schemaVersion") == 1:
        raise _schema_1()
    is_index = "manifests" in manifest
    if is_index == ("layers" in manifest or "config" in manifest):
        raise Failure(Reason.BAD_ANSWER, "the manifest is neither an index nor an image, or both")
    fitting = INDEXES if is_index else IMAGES
    inner = manifest.get("mediaType")
    if not isinstance(inner, str | None):
        raise Failure(Reason.BAD_ANSWER, "the manifest's type is no text")
    outer = media_type if media_type in INDEXES | IMAGES else inner
    # OCI lets the body leave its type out; generic types outside it are those of static hosting.
    if (inner is not None and inner != outer) or (outer is not None and outer not in fitting):
        raise Failure(Reason.BAD_ANSWER, "the manifest is not of the type that it claims")
