"""The main job of tagpin, shown and checked: `make demo`.

The story happens on one of two stages: a real control plane where `make tools` has built it, or
one that Python plays. The digests that must come out are computed from what was pushed, and any
difference makes the exit code 1.
"""

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from types import FrameType
from typing import NoReturn

from rich.console import Console

from cluster.controlplane import KubectlError
from cluster.programs import LOOPBACK, ProgramError
from stages import played, real
from stages.narrator import Narrator, pinned
from stages.stage import RECORD_TTL, Admitted, Refused, Stage, StageError
from tools.build import missing

WIDEST = 120
"""Columns: longer lines are hard to read."""
WIDTH_OF_LOGS = 100
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

OpenStage = Callable[[Narrator], AbstractContextManager[Stage]]


# The story


def tell(stage: Stage, narrator: Narrator) -> None:
    """What happens, in seven acts; each ends with what must have come out."""
    web, proxy = f"{stage.host}/shop/web:1.4", f"{stage.host}/shop/proxy"

    narrator.heading("1  A Deployment names its images by tag")
    monday = push(stage, narrator, "shop/web", "1.4", "Monday's build")
    other = push(stage, narrator, "shop/proxy", "latest", "the only build")
    old = {"web": f"{web}@{monday}", "proxy": f"{proxy}@{other}"}
    stage.create_namespace("shop", "pin")
    first = stage.create_deployment("shop", "web", [web, proxy])
    show_images({"web": web, "proxy": proxy}, first, narrator)
    narrator.check(
        "each image is what was written, and the digest of the bytes that were pushed",
        expected=old,
        found=first.images,
    )

    narrator.heading("2  The pod says what was done: annotation tagpin.dev/pins")
    narrator.document(first.record)
    narrator.check(
        "the annotation has the same images and digests",
        expected=old,
        found=recorded(first.record),
    )

    narrator.heading("3  So does the cluster's audit log, which users cannot write")
    narrator.pairs(first.audit)
    narrator.check(
        "the audit log has them too",
        expected=old,
        found=recorded(first.audit.get("pin.tagpin.dev/pins", "")),
    )

    narrator.heading("4  The tag moves, and the revision keeps its build")
    tuesday = push(stage, narrator, "shop/web", "1.4", "Tuesday's build")
    new = {"web": f"{web}@{tuesday}", "proxy": f"{proxy}@{other}"}
    asked = stage.questions()
    again = stage.replace_pod("shop", "web")
    narrator.say(f"{again.name}, a new pod of the same revision:")
    narrator.pairs({"kept": digest_in(again)})
    narrator.check(
        "the pod that takes its place runs the same bytes", expected=old, found=again.images
    )
    narrator.check(
        "the registry was not asked",
        expected={"questions": "0"},
        found={"questions": str(stage.questions() - asked)},
    )

    narrator.heading("5  A restart is a new revision, and gets the new build")
    second = stage.restart_deployment("shop", "web")
    narrator.say(f"{web} in the first pod, and in {second.name}:")
    narrator.pairs({"old": digest_in(first), "new": digest_in(second)})
    narrator.say(
        "However fresh an answer of the registry is (tagpin's `freshness`): a new revision takes "
        "none from before it was created."
    )
    narrator.check(
        "the new pod has the digest that was pushed last", expected=new, found=second.images
    )
    narrator.say("Each revision has a record in the cluster:")
    records = stage.show_imagepins("shop")
    narrator.check(
        "the records have the digests of both builds",
        expected={"old": monday, "new": tuesday},
        found={
            name: records.get(pod.imagepin, {}).get(web, "no digest")
            for name, pod in {"old": first, "new": second}.items()
        },
    )

    narrator.heading("6  A rollback brings back the very bytes, without a registry")
    with stage.without_registry():
        third = stage.undo_deployment("shop", "web")
        narrator.say(f"{third.name}, a new pod of the first revision:")
        narrator.pairs({"undo": digest_in(third)})
        narrator.say(
            "tagpin remembers a record for a while, its `recordTTL`: 60s unless configured, "
            f"{RECORD_TTL} here, so that this one was read from the cluster."
        )
        narrator.check("the new pod runs the bytes of the first", expected=old, found=third.images)

    narrator.heading("7  In `enforce`, what cannot be pinned does not enter")
    typo = f"{stage.host}/shop/web:1.44"
    stage.create_namespace("bank", "enforce")
    good = stage.run_pod("bank", "good", web)
    narrator.check(
        "a tag that exists is pinned",
        expected={"good": f"{web}@{tuesday}"},
        found=good.images if isinstance(good, Admitted) else {"good": good.message},
    )
    bad = stage.run_pod("bank", "typo", typo)
    if isinstance(bad, Refused):
        narrator.message(bad.message)
    narrator.check(
        "one that does not is refused, and the message names the container and the image",
        expected={"typo": "refused", "container": "named", "image": "named"},
        found=named(bad, container='container "typo"', image=f"{typo} does not exist"),
    )


def push(stage: Stage, narrator: Narrator, repository: str, tag: str, content: str) -> str:
    """Push an image, say so, and return the digest of what was pushed."""
    digest = stage.push(repository, tag, content)
    narrator.say(
        f"pushed {stage.host}/{repository}:{tag} ({content}), manifest digest:\n  {digest}"
    )
    return digest


def show_images(written: dict[str, str], admitted: Admitted, narrator: Narrator) -> None:
    """Before and after, side by side."""
    narrator.table(
        ["before: as the Deployment says", f"after: in pod {admitted.name}"],
        [[image, pinned(admitted.images.get(name, ""))] for name, image in written.items()],
    )


def digest_in(admitted: Admitted) -> str:
    """What a pod's container `web` is pinned to."""
    return admitted.images["web"].partition("@")[2] or "no digest"


def recorded(record: str) -> dict[str, str]:
    """Container → image@digest, as a record of tagpin has them."""
    pins = json.loads(record or "{}")
    return {
        name: f"{pin['image']}@{pin['digest']}" if "digest" in pin else pin["reason"]
        for name, pin in pins.items()
    }


def named(outcome: Admitted | Refused, **parts: str) -> dict[str, str]:
    """Whether a pod was refused, and which parts its message has."""
    if isinstance(outcome, Admitted):
        return {"typo": "admitted"}
    return {"typo": "refused"} | {
        what: "named" if text in outcome.message else "missing" for what, text in parts.items()
    }


# The command


def main(arguments: Sequence[str]) -> int:
    """Choose a stage, tell the story there, and end everything."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--real", action="store_true", help="on a real control plane")
    choice.add_argument("--played", action="store_true", help="with nothing but Python")
    chosen = parser.parse_args(arguments)
    reasons = [reason for name in real.PROGRAMS if (reason := missing(name))]
    if chosen.real and reasons:
        parser.error("\n".join(reasons))
    is_real = chosen.real or not (chosen.played or reasons)

    os.environ["no_proxy"] = LOOPBACK  # a proxy that is set is for elsewhere
    for number in SIGNALS:
        signal.signal(number, _interrupted)
    with tempfile.TemporaryDirectory(prefix="tagpin-demo-") as folder:
        os.environ["TMPDIR"] = folder  # so that nothing stays behind, whatever happens
        tempfile.tempdir = None
        if is_real:
            return show(real.real, real.NOTICE, console())
        return show(played.played, played.NOTICE, console())


def show(open_stage: OpenStage, notice: str, out: Console) -> int:
    """Tell the story on a stage; the exit code: 0, or 1 if anything was not as it should be."""
    narrator, started = Narrator(out), time.monotonic()
    narrator.heading("tagpin: tags become digests at admission")
    narrator.say(notice)
    narrator.blank()
    try:
        with open_stage(narrator) as stage:
            tell(stage, narrator)
    except (StageError, ProgramError, KubectlError) as error:
        narrator.broke_off(str(error))
        return 1
    return narrator.conclude(time.monotonic() - started)


def console() -> Console:
    """As wide as the terminal, within reason; logs have no width of their own."""
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr] # a text file, always
    out = Console(highlight=False)
    if not sys.stdout.isatty() and "COLUMNS" not in os.environ:
        out.width = WIDTH_OF_LOGS
    out.width = min(out.width, WIDEST)
    return out


def _interrupted(number: int, _frame: FrameType | None) -> NoReturn:
    """End everything, and let nothing interrupt that."""
    for each in SIGNALS:
        signal.signal(each, signal.SIG_IGN)
    print("\nending everything …", file=sys.stderr)
    sys.exit(128 + number)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
