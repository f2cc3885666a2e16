"""Which digest an answer to a request for a manifest stands for."""

import gzip
import hashlib
import json
from typing import Any

import pytest

from fakes.conversation import (
    DIGEST,
    DOCKER_IMAGE,
    DOCKER_LIST,
    HEX,
    IMAGE,
    INDEX,
    OCI_IMAGE,
    OCI_INDEX,
    SCHEMA_1,
    found,
    manifest,
    response,
)
from tagpin.errors import Reason
from tagpin.reference import Digest
from tagpin.registry.flow import Failure, Response
from tagpin.registry.manifest import Oddity, digest_by_body, digest_by_head


def by_head(head: Response) -> tuple[Digest | None, list[Oddity]]:
    oddities: list[Oddity] = []
    return digest_by_head(head, oddities.append), oddities


def by_body(get: Response, *, strict: bool = False) -> tuple[Digest, list[Oddity]]:
    oddities: list[Oddity] = []
    return digest_by_body(get, oddities.append, strict=strict), oddities


def refused(get: Response) -> Reason:
    with pytest.raises(Failure) as caught:
        by_body(get)
    return caught.value.reason


def sha256(body: bytes) -> Digest:
    return Digest("sha256", hashlib.sha256(body).hexdigest())


# HEAD


@pytest.mark.parametrize("algorithm", ["sha256", "sha384", "sha512"])
def test_every_registered_algorithm_is_a_digest(algorithm: str) -> None:
    digest = f"{algorithm}:{hashlib.new(algorithm, b'').hexdigest()}"
    assert by_head(found(digest)) == (Digest.parse(digest), [])


@pytest.mark.parametrize(
    "content_type",
    [
        OCI_INDEX,
        OCI_IMAGE,
        DOCKER_LIST,
        DOCKER_IMAGE,
        f"{OCI_IMAGE}; charset=utf-8",
        f"{OCI_INDEX.upper()};q=1;x",
        f" {DOCKER_LIST} ; charset=utf-8",
    ],
)
def test_a_media_type_is_compared_without_case_and_parameters(content_type: str) -> None:
    assert by_head(found(content_type=content_type)) == (DIGEST, [])


@pytest.mark.parametrize(
    "content_type", ["application/octet-stream", "application/json", "text/plain", "text/html", ""]
)
def test_a_head_of_another_media_type_settles_nothing(content_type: str) -> None:
    assert by_head(found(content_type=content_type)) == (None, [])


def test_a_head_without_a_media_type_settles_nothing() -> None:
    assert by_head(response(200, docker_content_digest=str(DIGEST))) == (None, [])


def test_a_head_without_a_digest_settles_nothing_and_is_not_odd() -> None:
    assert by_head(response(200, content_type=OCI_IMAGE)) == (None, [])


MALFORMED = {
    "garbled": "sha256:xyz",
    "empty": "",
    "too short": f"sha256:{HEX[:-1]}",
    "too long": f"sha256:{HEX}0",
    "upper case": f"sha256:{HEX.upper()}",
    "newline": f"{DIGEST}\n",
    "two in one": f"{DIGEST}, {DIGEST}",
    "another algorithm": "md5:" + "0" * 32,
    "wrong length for its algorithm": f"sha512:{HEX}",
    "without algorithm": HEX,
    "quoted": f'"{DIGEST}"',
    "a path": f"../{DIGEST}",
    "repeated": [str(DIGEST)] * 2,
    "two of them": [str(DIGEST), "sha256:" + "0" * 64],
}


@pytest.mark.parametrize("stated", MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_digest_settles_nothing_and_is_odd(stated: str | list[str]) -> None:
    head = response(200, docker_content_digest=stated, content_type=OCI_IMAGE)
    assert by_head(head) == (None, [Oddity.DIGEST_MALFORMED])


# GET


def test_the_digest_is_over_the_bytes_as_they_came() -> None:
    body = b' {"schemaVersion" : 2,\n "layers": [], "config": {} }\n'
    assert by_body(response(200, body, content_type=OCI_IMAGE)) == (sha256(body), [])


def test_the_digest_of_an_index_is_its_own_never_that_of_a_child() -> None:
    get = manifest(INDEX | {"manifests": [{"digest": str(DIGEST), "mediaType": OCI_IMAGE}]})
    get = manifest(json.loads(get.body), OCI_INDEX)
    assert by_body(get) == (sha256(get.body), [])


def test_an_artifact_is_a_manifest_like_an_images() -> None:
    chart = IMAGE | {"config": {"mediaType": "application/vnd.cncf.helm.config.v1+json"}}
    get = manifest(chart | {"artifactType": "application/x"})
    assert by_body(get) == (sha256(get.body), [])


@pytest.mark.parametrize("algorithm", ["sha384", "sha512"])
def test_bytes_are_hashed_with_the_algorithm_that_the_registry_uses(algorithm: str) -> None:
    stated = f"{algorithm}:{hashlib.new(algorithm, json.dumps(IMAGE).encode()).hexdigest()}"
    get = manifest(IMAGE, docker_content_digest=stated)
    assert by_body(get) == (Digest.parse(stated), [])


@pytest.mark.parametrize("stated", [str(DIGEST), "sha512:" + "0" * 128])
def test_a_digest_of_other_bytes_is_odd_and_the_bytes_count(stated: str) -> None:
    get = manifest(IMAGE, docker_content_digest=stated)
    assert by_body(get) == (sha256(get.body), [Oddity.DIGEST_MISMATCH])


def test_where_the_operator_is_strict_a_digest_of_other_bytes_is_a_bad_answer() -> None:
    oddities: list[Oddity] = []
    get = manifest(IMAGE, docker_content_digest=str(DIGEST))
    with pytest.raises(Failure) as caught:
        digest_by_body(get, oddities.append, strict=True)
    assert caught.value.reason is Reason.BAD_ANSWER
    assert oddities == [Oddity.DIGEST_MISMATCH]
    honest = manifest(IMAGE, docker_content_digest=str(sha256(get.body)))
    assert by_body(honest, strict=True) == (sha256(get.body), [])


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("stated", MALFORMED.values(), ids=MALFORMED)
def test_with_a_malformed_digest_the_bytes_count(stated: str | list[str], *, strict: bool) -> None:
    body = json.dumps(IMAGE).encode()
    get = response(200, body, docker_content_digest=stated, content_type=OCI_IMAGE)
    assert by_body(get, strict=strict) == (sha256(body), [Oddity.DIGEST_MALFORMED])


@pytest.mark.parametrize("coding", ["gzip", "x-gzip"])
def test_a_manifest_in_gzip_is_hashed_unpacked(coding: str) -> None:
    body = json.dumps(IMAGE).encode()
    headers = {"content_encoding": coding, "content_type": OCI_IMAGE}
    get = response(200, gzip.compress(body), **headers, docker_content_digest=str(sha256(body)))
    assert by_body(get) == (sha256(body), [])


def test_a_manifest_may_not_unpack_to_more_than_4_mib() -> None:
    packed = gzip.compress(b" " * (4 * 1024 * 1024) + b"{}")
    assert refused(response(200, packed, content_encoding="gzip")) is Reason.BAD_ANSWER


@pytest.mark.parametrize("content_type", ["application/json", "text/plain", "text/html", ""])
@pytest.mark.parametrize("content", [IMAGE, INDEX, {"config": {}, "layers": []}, {"manifests": []}])
def test_static_hosting_may_not_know_media_types(
    content: dict[str, Any], content_type: str
) -> None:
    get = manifest(content, content_type)
    assert by_body(get) == (sha256(get.body), [])


AMBIGUOUS: dict[str, Response] = {
    "an image with manifests": manifest(IMAGE | {"manifests": []}),
    "an index with layers": manifest(INDEX | {"layers": []}, OCI_INDEX),
    "an index with a config": manifest(INDEX | {"config": {}}, OCI_INDEX),
    "both, of no type": manifest({"manifests": [], "layers": []}),
    "an index sent as image": manifest(INDEX, OCI_IMAGE),
    "an image sent as index": manifest(IMAGE, OCI_INDEX),
    "an image without type sent as index": manifest({"config": {}, "layers": []}, OCI_INDEX),
    "an index without type sent as image": manifest({"manifests": []}, DOCKER_IMAGE),
    "an image that says index": manifest(IMAGE | {"mediaType": OCI_INDEX}, "text/plain"),
    "an image that says something else": manifest(IMAGE | {"mediaType": "text/html"}, "text/plain"),
    "another image type inside": manifest(IMAGE | {"mediaType": DOCKER_IMAGE}),
    "a type that is no text": manifest(IMAGE | {"mediaType": ["a"]}),
    "no text, and nothing outside": manifest(IMAGE | {"mediaType": ["a"]}, "text/plain"),
    "neither": manifest({"schemaVersion": 2}),
    "a list": response(200, b"[]", content_type=OCI_IMAGE),
    "a page": response(200, b"<html>", content_type=OCI_IMAGE),
    "nothing": response(200, b"", content_type=OCI_IMAGE),
    "a deep hole": response(200, b"[" * 100_000, content_type=OCI_IMAGE),
    "gzip that says nothing of it": response(
        200, gzip.compress(json.dumps(IMAGE).encode()), content_type=OCI_IMAGE
    ),
    "no gzip though it says so": manifest(IMAGE, content_encoding="gzip"),
    "another encoding": manifest(IMAGE, content_encoding="br"),
}


@pytest.mark.parametrize("get", AMBIGUOUS.values(), ids=AMBIGUOUS)
def test_a_manifest_that_two_readers_could_take_for_two_things_is_refused(get: Response) -> None:
    assert refused(get) is Reason.BAD_ANSWER


# Schema 1


@pytest.mark.parametrize("content_type", [SCHEMA_1, SCHEMA_1.replace("prettyjws", "json")])
def test_schema_1_is_refused_by_its_head(content_type: str) -> None:
    with pytest.raises(Failure) as caught:
        by_head(found(content_type=content_type))
    assert caught.value.reason is Reason.UNSUPPORTED


@pytest.mark.parametrize("content_type", ["text/plain", "application/json", SCHEMA_1, OCI_IMAGE])
def test_schema_1_is_refused_by_its_bytes_whatever_it_is_sent_as(content_type: str) -> None:
    converted = {"schemaVersion": 1, "fsLayers": [], "signatures": []}
    get = manifest(converted, content_type, docker_content_digest=str(DIGEST))
    assert refused(get) is Reason.UNSUPPORTED


def test_what_is_sent_as_schema_1_is_refused_whatever_it_holds() -> None:
    assert refused(manifest({}, SCHEMA_1)) is Reason.UNSUPPORTED
