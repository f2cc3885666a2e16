"""The command line as a person uses it: a child process, its output and its exit code."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

TAGPIN = Path(sys.executable).with_name("tagpin")
DIGEST = "sha256:" + "1" * 64


def tagpin(
    *arguments: str, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("TAGPIN_")}
    return subprocess.run(
        [TAGPIN, *arguments],
        capture_output=True,
        text=True,
        env=clean | dict(environment or {}),
        timeout=30,
        check=False,
    )


def test_help_names_the_commands() -> None:
    done = tagpin("--help")

    assert done.returncode == 0
    assert "resolve" in done.stdout
    assert "serve" in done.stdout


@pytest.mark.parametrize(
    ("config", "environment", "message"),
    [
        ("logLevl: info", {}, "logLevl: unknown key; the nearest known one is logLevel"),
        ("", {"KUBECONFIG": "/nowhere"}, "/nowhere is of no use"),
    ],
)
def test_a_wrong_configuration_stops_the_start_with_one_line(
    tmp_path: Path, config: str, environment: dict[str, str], message: str
) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(config)

    done = tagpin("serve", "--config", str(file), environment=environment)

    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("tagpin: ")
    assert message in line


def test_a_configuration_that_is_not_there_is_named(tmp_path: Path) -> None:
    done = tagpin("serve", "--config", str(tmp_path / "nowhere.yaml"))

    assert done.returncode == 1
    assert "nowhere.yaml" in done.stderr
    assert "Traceback" not in done.stderr


def test_resolve_needs_no_network_for_a_digest() -> None:
    done = tagpin("resolve", f"nginx@{DIGEST}", "-o", "json")

    assert done.returncode == 0
    assert json.loads(done.stdout) == [
        {"image": f"nginx@{DIGEST}", "digest": DIGEST, "source": "given"}
    ]


def test_resolve_names_every_bad_image_and_prints_the_others() -> None:
    images = (f"nginx@{DIGEST}", "Bad/Image", "127.0.0.1:1/app:1", "registry.test:99999/app:1")

    done = tagpin("resolve", *images)

    assert done.returncode == 1
    assert done.stdout == f"nginx@{DIGEST}\n"
    first, second, third = done.stderr.splitlines()
    assert first.startswith("tagpin: invalid image reference 'Bad/Image'")
    assert second.endswith("(unreachable)")
    assert "registry.test:99999 is no host that could be connected to" in third


@pytest.mark.parametrize("content", [None, b"\xff\xfe", b"no PEM"])
def test_resolve_reports_a_ca_file_of_no_use(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "ca.der"
    if content is not None:
        file.write_bytes(content)

    done = tagpin("resolve", f"nginx@{DIGEST}", "--ca-file", str(file))

    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("tagpin: ")


def test_resolve_reports_a_broken_docker_config(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")

    done = tagpin("resolve", "nginx", environment={"DOCKER_CONFIG": str(tmp_path)})

    assert done.returncode == 1
    assert "config.json is of no use" in done.stderr
    assert "Traceback" not in done.stderr
