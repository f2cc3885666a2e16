"""Small images, pushed to a real registry over its API."""

import base64
import hashlib
import json
import ssl
import urllib.request
from collections.abc import Sequence
from pathlib import Path

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"


class Pusher:
    """Pushes to the registry at `url`, as `user` (name, password), trusting `ca`."""

    def __init__(
        self, url: str, *, user: tuple[str, str] | None = None, ca: Path | None = None
    ) -> None:
        self._url = url
        self._headers = {}
        if user:
            token = base64.b64encode(":".join(user).encode()).decode()
            self._headers["Authorization"] = f"Basic {token}"
        self._tls = ssl.create_default_context(cafile=ca) if ca else None

    def push(self, repository: str, tag: str, content: str) -> str:
        """Push an image that differs by `content`; return the digest of its manifest's bytes."""
        manifest = self._manifest(repository, content, "amd64")
        self._put_manifest(repository, tag, manifest, MANIFEST)
        return digest(manifest)

    def push_index(self, repository: str, tag: str, contents: Sequence[str]) -> str:
        """Push an index of images, one per platform; return the digest of the index's bytes."""
        manifests = []
        for number, content in enumerate(contents, 1):
            architecture = f"arm64v{number}"
            manifest = self._manifest(repository, content, architecture)
            self._put_manifest(repository, digest(manifest), manifest, MANIFEST)
            platform = {"architecture": architecture, "os": "linux"}
            manifests.append({**_descriptor(MANIFEST, manifest), "platform": platform})
        index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests}
        body = json.dumps(index).encode()
        self._put_manifest(repository, tag, body, INDEX)
        return digest(body)

    def delete(self, repository: str, name: str) -> None:
        """Delete the manifest of this digest, and every tag that names it."""
        self._send("DELETE", f"/v2/{repository}/manifests/{name}", b"")

    def _manifest(self, repository: str, content: str, architecture: str) -> bytes:
        """The bytes of a manifest whose blobs have been pushed."""
        platform = {"architecture": architecture, "os": "linux"}
        config = json.dumps({**platform, "content": content}).encode()
        layer = content.encode()
        for blob in (config, layer):
            self._upload(repository, blob)
        return json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": MANIFEST,
                "config": _descriptor("application/vnd.oci.image.config.v1+json", config),
                "layers": [_descriptor("application/vnd.oci.image.layer.v1.tar", layer)],
            }
        ).encode()

    def _put_manifest(self, repository: str, name: str, manifest: bytes, kind: str) -> None:
        self._send("PUT", f"/v2/{repository}/manifests/{name}", manifest, kind)

    def _upload(self, repository: str, blob: bytes) -> None:
        location = self._send("POST", f"/v2/{repository}/blobs/uploads/", b"")
        joint = "&" if "?" in location else "?"
        self._send("PUT", f"{location}{joint}digest={digest(blob)}", blob)

    def _send(
        self, method: str, path: str, body: bytes, kind: str = "application/octet-stream"
    ) -> str:
        url = path if path.startswith(("http://", "https://")) else self._url + path
        request = urllib.request.Request(  # noqa: S310 - the URL is the test's own
            url, body, self._headers | {"Content-Type": kind}, method=method
        )
        with urllib.request.urlopen(request, context=self._tls) as response:  # noqa: S310
            return str(response.headers.get("Location", ""))


def digest(content: bytes) -> str:
    """The digest of some bytes."""
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def _descriptor(media_type: str, content: bytes) -> dict[str, str | int]:
    return {"mediaType": media_type, "digest": digest(content), "size": len(content)}
