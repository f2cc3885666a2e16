"""The demo on the real control plane."""

import signal
from pathlib import Path

import pytest

from cluster.requirement import require_programs
from stages.process import DemoProcess, Ended
from stages.real import PROGRAMS


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Ended:
    require_programs(*PROGRAMS)
    folder = tmp_path_factory.mktemp("demo")
    return DemoProcess(folder, COLUMNS="80", http_proxy="http://127.0.0.1:1").wait()


def test_it_ends_well(ended: Ended) -> None:
    assert ended.status == 0, ended.output
    assert "all 7 checks passed" in ended.output


def test_it_leaves_no_process_and_no_file(ended: Ended) -> None:
    assert ended.left_behind == []


def test_it_shows_what_a_person_would_type_and_see(ended: Ended) -> None:
    assert "On a real control plane" in ended.output
    assert "$ kubectl label namespace shop tagpin.dev/mode=pin" in ended.output
    assert "$ kubectl rollout restart deployment/web" in ended.output
    assert 'Error from server: admission webhook "enforce.tagpin.dev" denied' in ended.output
    assert "pin.tagpin.dev/pins:" in ended.output


@pytest.mark.parametrize("moment", ["etcd", "rollout restart"])
def test_an_interrupted_demo_leaves_nothing(tmp_path: Path, moment: str) -> None:
    require_programs(*PROGRAMS)
    process = DemoProcess(tmp_path, "--real")
    process.read_until(moment)
    process.signal(signal.SIGINT)
    ended = process.wait()
    assert ended.status == 128 + signal.SIGINT
    assert ended.left_behind == []
