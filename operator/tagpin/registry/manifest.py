"""What the answer to a request for a manifest says: which digest, if it may be believed.

(opencontainers/distribution-spec: Pulling manifests; opencontainers/image-spec)
"""

import hashlib

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


def digest_by_head(response: Response) -> Digest | None:
    """The digest that a HEAD vouches for, None where the bytes must be seen.

    Content-Length is not asked for: proxies that chunk strip it.
    """
    if response.media_type in _SCHEMA_1:
        raise Failure(Reason.UNSUPPORTED, "the manifest is schema 1")
    if response.media_type not in INDEXES | IMAGES:
        return None
    return _stated_digest(response)


def _stated_digest(response: Response) -> Digest | None:
    stated = response.values("docker-content-digest")
    try:
        return Digest.parse(stated[0]) if len(stated) == 1 else None
    except InvalidReference:
        return None


def digest_by_body(response: Response) -> Digest:
    """The hash of the bytes as received, if they are a manifest that a runtime can read."""
    if any(each.strip().lower() != "identity" for each in response.values("content-encoding")):
        raise Failure(Reason.BAD_ANSWER, "the manifest is encoded though that was not accepted")
    _check_manifest(response)
    stated = _stated_digest(response)
    algorithm = stated.algorithm if stated else "sha256"
    digest = Digest(algorithm, hashlib.new(algorithm, response.body).hexdigest())
    if stated is not None and stated != digest:
        raise Failure(Reason.BAD_ANSWER, "the manifest is not the one that its header names")
    return digest


def _check_manifest(response: Response) -> None:
    """Refuse what two readers could take for two things (CVE-2021-41190), and schema 1."""
    manifest = json_object(response.body, "the manifest")
    if response.media_type in _SCHEMA_1 or manifest.get("schemaVersion") == 1:
        raise Failure(Reason.UNSUPPORTED, "the manifest is schema 1")
    is_index = "manifests" in manifest
    if is_index == ("layers" in manifest or "config" in manifest):
        raise Failure(Reason.BAD_ANSWER, "the manifest is neither an index nor an image, or both")
    fitting = INDEXES if is_index else IMAGES
    inner = manifest.get("mediaType")
    if not isinstance(inner, str | None):
        raise Failure(Reason.BAD_ANSWER, "the manifest's type is no text")
    outer = response.media_type if response.media_type in INDEXES | IMAGES else inner
    # OCI lets the body leave its type out; generic types outside it are those of static hosting.
    if (inner is not None and inner != outer) or (outer is not None and outer not in fitting):
        raise Failure(Reason.BAD_ANSWER, "the manifest is not of the type that it claims")
