"""The commands that pages in docs show, and a shell to run them in."""

import os
import re
import subprocess
from pathlib import Path

from cluster.controlplane import ControlPlane
from cluster.programs import executable

DOCS = Path(__file__).parents[2] / "docs"


def commands(page: str, section: str) -> list[str]:
    """What stands behind the prompts below a heading of a page, in its order, without comments.

    A line that ends with a pipe or a backslash goes on in the next one.
    """
    text = (DOCS / page).read_text()
    _, found, rest = text.partition(f"\n## {section}\n")
    assert found, f"{page} has no section {section!r}"
    of_section, _, _ = rest.partition("\n## ")
    shown: list[str] = re.findall(r"^\$ (.+(?:(?<=[|\\])\n.+)*)$", of_section, re.MULTILINE)
    return [re.sub(r" {2,}# .*", "", each) for each in shown]


class Shell:
    """Runs commands as whoever reads a page would, with `kubectl` as the admin of a cluster."""

    def __init__(self, control_plane: ControlPlane, folder: Path, *, root: Path) -> None:
        """`folder` is for what the shell needs; commands run in `root`."""
        self._root = root
        self._folder = folder
        wrapper = folder / "kubectl"
        wrapper.write_text(
            f'#!/bin/sh\nexec {executable("kubectl")} --kubeconfig {control_plane.admin} "$@"\n'
        )
        wrapper.chmod(0o755)

    def run(self, command: str, *, check: bool = True, **names: str) -> str:
        """What a command prints; `names` stand in for those of the page.

        It must end well, unless `check` is false: then its errors are printed as well.
        """
        for name, instead in names.items():
            command = re.sub(rf"\b{name}\b", lambda _, instead=instead: instead, command)  # type: ignore[misc]
        done = subprocess.run(
            ["bash", "-o", "errexit", "-c", command],
            cwd=self._root,
            env=os.environ
            | {
                "PATH": f"{self._folder}:{os.environ['PATH']}",
                "KUBECACHEDIR": str(self._folder / "cache"),
                "KUBERC": "off",
            },
            capture_output=True,
            text=True,
            check=False,
        )
        if not check:
            return done.stdout + done.stderr
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        return done.stdout
