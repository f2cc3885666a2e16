"""The demo, where nothing but Python is there: it shows the main job, and notices a lie."""

import contextlib
import io
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
from rich.console import Console

import demo
from cluster.programs import ProgramError
from fakes.faults import answering, with_header
from stages.narrator import Narrator
from stages.played import PlayedStage, played
from stages.process import DemoProcess, Ended


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Ended:
    folder, cache = (tmp_path_factory.mktemp(name) for name in ("demo", "empty"))
    return DemoProcess(folder, COLUMNS="80", TAGPIN_CACHE=str(cache)).wait()


def test_it_ends_well(ended: Ended) -> None:
    assert ended.status == 0, ended.output
    assert "all 10 checks passed" in ended.output


def test_it_leaves_no_process_and_no_file(ended: Ended) -> None:
    assert ended.left_behind == []


def test_without_the_programs_it_is_played_and_says_how_to_get_the_real_thing(ended: Ended) -> None:
    assert "The API server is played here" in ended.output
    assert "`make tools`" in ended.output


def test_it_shows_before_and_after_what_is_recorded_the_move_and_a_refusal(ended: Ended) -> None:
    output = ended.output
    assert "before: as the Deployment says" in output
    assert re.search(r'"digest": ?\n? +"sha256:[0-9a-f]{64}"', output)
    assert "pin.tagpin.dev/pins:" in output
    shown = dict(re.findall(r"(kept|old|new|undo): (sha256:\w{64})", output))
    assert shown["old"] == shown["kept"] == shown["undo"] != shown["new"]
    of_old, of_new = re.findall(r"web-\w{10}-\w{8}   (sha256:\w+)…", output)
    assert shown["old"].startswith(of_old)
    assert shown["new"].startswith(of_new)
    assert 'admission webhook "enforce.tagpin.dev" denied the request' in output


def test_its_lines_fit_a_small_terminal(ended: Ended) -> None:
    assert [line for line in ended.output.splitlines() if len(line) > 80] == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_demo_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    process = DemoProcess(tmp_path, "--played")
    process.read_until("tagpin serve")
    process.signal(number)
    ended = process.wait()
    assert ended.status == 128 + number
    assert ended.left_behind == []


def test_neither_a_proxy_nor_an_old_terminal_matters(tmp_path: Path) -> None:
    environment = {"http_proxy": "http://127.0.0.1:1", "PYTHONIOENCODING": "ascii"}
    ended = DemoProcess(tmp_path, "--played", **environment).wait()
    assert ended.status == 0, ended.output
    assert ended.output.isascii()


def test_two_demos_do_not_disturb_each_other(tmp_path: Path) -> None:
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        folder.mkdir()
    processes = [DemoProcess(folder, "--played") for folder in folders]
    assert [process.wait().status for process in processes] == [0, 0]


def test_the_real_one_cannot_be_had_without_the_programs(tmp_path: Path) -> None:
    ended = DemoProcess(tmp_path, "--real", TAGPIN_CACHE=str(tmp_path / "empty")).wait()
    assert ended.status == 2
    assert "kube-apiserver is missing: not built; run `make tools`" in ended.output


class Forgetful(dict[str, Any]):
    """Takes what is recorded, and has nothing."""

    def __setitem__(self, _path: str, _imagepin: object) -> None:
        pass


def lie(stage: PlayedStage) -> None:
    digest = f"sha256:{'0' * 64}"
    stage.registry.fault(with_header("Docker-Content-Digest", digest), method="HEAD")


def be_down(stage: PlayedStage) -> None:
    stage.registry.fault(answering(503))


def forget(stage: PlayedStage) -> None:
    stage.api_server.imagepins = Forgetful()


@pytest.mark.parametrize(
    ("misbehave", "claims"),
    [
        (lie, ["the new pod has the digest that was pushed last"]),
        (be_down, ["the new pod has the digest that was pushed last"]),
        (
            forget,
            [
                "the pod that takes its place runs the same bytes",
                "the registry was not asked",
                "the records have the digests of both builds",
                "the new pod runs the bytes of the first",
            ],
        ),
    ],
    ids=["lie", "be_down", "forget"],
)
def test_what_is_wrong_is_noticed(
    misbehave: Callable[[PlayedStage], None], claims: list[str]
) -> None:
    @contextlib.contextmanager
    def with_misbehaviour(narrator: Narrator) -> Iterator[PlayedStage]:
        # Or the cache would remember for a while what was forgotten.
        with played(narrator, freshness="0s") as stage:
            misbehave(stage)
            yield stage

    out = io.StringIO()
    assert demo.show(with_misbehaviour, "", Console(file=out, width=100)) == 1
    assert "checks failed" in out.getvalue()
    assert [claim for claim in claims if f"✗ {claim}" not in out.getvalue()] == []


def test_a_demo_that_cannot_go_on_says_why() -> None:
    def without_an_api_server(_: Narrator) -> NoReturn:
        raise ProgramError("kube-apiserver ended with 1")

    out = io.StringIO()
    assert demo.show(without_an_api_server, "", Console(file=out, width=100)) == 1
    assert "the demo broke off: kube-apiserver ended with 1" in out.getvalue()
