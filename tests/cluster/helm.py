"""helm, called as people call it, on the chart of this repository."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from cluster.installation import BASE, CRD, MANIFESTS
from cluster.programs import LOOPBACK, executable

CHART = MANIFESTS / "helm" / "tagpin"
COMPONENTS = MANIFESTS / "components"

Object = dict[str, Any]


class Key(NamedTuple):
    """What an object is found by."""

    kind: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"


class HelmError(Exception):
    """helm ended with an error; the message is what it said."""


class Helm:
    """helm with an empty configuration of its own, in `folder`, and a cluster if it is told one."""

    def __init__(self, folder: Path, *, kubeconfig: Path | None = None) -> None:
        self._folder = folder
        homes = ("HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME")
        self._environ = {name: str(folder / name.lower()) for name in homes} | {
            "HELM_PLUGINS": str(folder / "plugins"),
            "KUBECONFIG": str(kubeconfig or os.devnull),
            "HOME": str(folder),
            "PATH": os.environ["PATH"],
        }

    def __call__(self, *arguments: str, values: Object | None = None) -> str:
        """What helm prints, with `values` in a file. HelmError: it ended with an error."""
        flags = []
        if values is not None:
            file = self._folder / "values.json"
            file.write_text(json.dumps(values))  # JSON is YAML
            flags = ["--values", str(file)]
        done = subprocess.run(
            [executable("helm"), *arguments, *flags],
            env=self._environ,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise HelmError(done.stderr.strip())
        return done.stdout

    def template(
        self,
        *flags: str,
        namespace: str = "tagpin-system",
        values: Object | None = None,
        chart: Path = CHART,
    ) -> dict[Key, Object]:
        """The objects of the release `tagpin`."""
        where = ("template", "tagpin", str(chart), "--namespace", namespace)
        return objects(self(*where, *flags, values=values))

    def send_webhooks_to(self, port: int) -> tuple[str, ...]:
        """Flags that make the API server call a loopback port: there are no Services here."""
        plugin = self._folder / "plugins" / "loopback"
        plugin.mkdir(parents=True, exist_ok=True)
        script = plugin / "loopback.py"
        script.write_text(_LOOPBACK)
        command = {"command": sys.executable, "args": [str(script), LOOPBACK]}
        description = {
            "apiVersion": "v1",
            "name": "loopback",
            "version": "1.0.0",
            "type": "postrenderer/v1",
            "runtime": "subprocess",
            "runtimeConfig": {"platformCommand": [command]},
        }
        (plugin / "plugin.yaml").write_text(yaml.safe_dump(description))
        return ("--post-renderer", "loopback", "--post-renderer-args", str(port))


# A plugin of helm: rendered objects in, objects out. Their text stays as it is otherwise.
_LOOPBACK = r"""
import re, sys
address, port = sys.argv[1:]
service = re.compile(
    r"^( +)service:\n(?:\1  (?:name|namespace|port): .*\n)*\1  path: (\S+)\n"
    r"(?:\1  (?:name|namespace|port): .*\n)*",
    re.MULTILINE,
)
print(service.sub(rf"\1url: https://{address}:{port}\2\n", sys.stdin.read()), end="")
"""


def objects(text: str) -> dict[Key, Object]:
    """The objects in a text of many; none may be there twice."""
    found: dict[Key, Object] = {}
    for each in yaml.safe_load_all(text):
        if each:
            key = Key(each["kind"], each["metadata"]["name"])
            assert key not in found, f"{key} is there twice"
            found[key] = each
    return found


def kustomize(folder: Path) -> dict[Key, Object]:
    """The objects of a kustomization."""
    done = subprocess.run(
        [executable("kubectl"), "kustomize", folder], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return objects(done.stdout)


def base_with(components: Sequence[str] = ()) -> dict[Key, Object]:
    """The objects of manifests/crd and manifests/base, with components of manifests/components."""
    with tempfile.TemporaryDirectory() as folder:
        overlay = {
            "resources": [os.path.relpath(place, folder) for place in (CRD, BASE)],
            "components": [os.path.relpath(COMPONENTS / each, folder) for each in components],
        }
        Path(folder, "kustomization.yaml").write_text(yaml.safe_dump(overlay))
        return kustomize(Path(folder))
