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
    assert "all 10 checks passed" in ended.output


def test_it_leaves_no_process_and_no_file(ended: Ended) -> None:
    assert ended.left_behind == []


def test_it_shows_what_a_person_would_type_and_see(ended: Ended) -> None:
    assert "On a real control plane" in ended.output
    assert "$ kubectl label namespace shop tagpin.dev/mode=pin" in ended.output
    assert "$ kubectl delete pod --selector=app=web" in ended.output
    assert "$ kubectl rollout restart deployment/web" in ended.output
    assert "$ kubectl rollout undo deployment/web" in ended.output
    assert 'Error from server: admission webhook "enforce.tagpin.dev" denied' in ended.output
    assert "pin.tagpin.dev/pins:" in ended.output


def test_it_shows_one_record_for_each_revision(ended: Ended) -> None:
    _, _, shown = ended.output.partition("$ kubectl get imagepins --namespace=shop\n")
    columns, *records = (line.split() for line in shown.splitlines()[:3])
    assert columns[:4] == ["NAME", "KIND", "WORKLOAD", "REVISION"]
    assert [record[1:3] for record in records] == [["Deployment", "web"]] * 2
    assert all(record[0].startswith(f"{record[3]}-") for record in records)
    assert records[0] != records[1]


@pytest.mark.parametrize("moment", ["etcd", "rollout restart"])
def test_an_interrupted_demo_leaves_nothing(tmp_path: Path, moment: str) -> None:
    require_programs(*PROGRAMS)
    process = DemoProcess(tmp_path, "--real")
    process.read_until(moment)
    process.signal(signal.SIGINT)
    ended = process.wait()
    assert ended.status == 128 + signal.SIGINT
    assert ended.left_behind == []
