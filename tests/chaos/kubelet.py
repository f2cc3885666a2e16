"""The kubelet, as far as it has to do with a mounted Secret."""

import base64
import json
import shutil
import time
from http import HTTPStatus
from http.client import HTTPException
from pathlib import Path

from chaos.world import World
from cluster.installation import SYSTEM

PERIOD = 1.0
"""Seconds between two looks at the Secret; a real one takes up to 60 or more."""


class Kubelet:
    """Keeps the volumes of all replicas as the Secret is."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._due = 0.0
        self._content: dict[str, bytes] = {}

    def work(self) -> None:
        """Do what is due; where the API server is away, the volumes stay."""
        if time.monotonic() < self._due:
            return
        self._due = time.monotonic() + PERIOD
        path = f"/api/v1/namespaces/{SYSTEM}/secrets/tagpin-tls"
        try:
            status, body = self._world.control_plane.get(path)
        except (OSError, HTTPException):
            return
        if status != HTTPStatus.OK:
            return
        encoded = json.loads(body).get("data") or {}
        content = {name: base64.b64decode(value) for name, value in encoded.items()}
        if content != self._content:
            self._content = content
            for each in self._world.installation.replicas:
                _swap(each.certificate_directory, content)


def _swap(volume: Path, content: dict[str, bytes]) -> None:
    """Change all files at once: a reader finds them through a link."""
    version = volume / f"..{time.time_ns()}"
    version.mkdir()
    for name, value in content.items():
        (version / name).write_bytes(value)
    link, new = volume / "..data", volume / "..data_tmp"
    old = link.resolve() if link.exists() else None
    new.symlink_to(version.name)
    new.replace(link)
    if old is not None:
        shutil.rmtree(old)
