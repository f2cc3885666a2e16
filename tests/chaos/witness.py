"""The witness: looks at processes, logs and the audit log, and writes down what is there."""

import itertools
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from chaos.judge import fits
from chaos.seen import Complaint, Creation, Sample
from chaos.world import NAMESPACES, World
from cluster.installation import Replica
from cluster.namespaces import Object, images, pod

MIB = 1024.0
ESTABLISHED = "01"


def creations(events: Sequence[Object]) -> list[Creation]:
    """What the audit log has of pods that somebody wanted to create in our namespaces."""
    return [
        _creation(event)
        for event in events
        if event["verb"] == "create"
        and event.get("objectRef", {}).get("resource") == "pods"
        and not event["objectRef"].get("subresource")
        and event["objectRef"].get("namespace") in NAMESPACES
        and event["stage"] == "ResponseComplete"
    ]


def _creation(event: Object) -> Creation:
    asked, answer = event["objectRef"], event.get("responseObject", {})
    is_pod = answer.get("kind") == "Pod"
    metadata = answer.get("metadata", {}) if is_pod else {}
    annotations = metadata.get("annotations", {})
    owners = [each["uid"] for each in metadata.get("ownerReferences", []) if each.get("controller")]
    return Creation(
        namespace=asked["namespace"],
        mode=NAMESPACES[asked["namespace"]],
        name=metadata.get("name") or asked.get("name", ""),
        began=_time(event["requestReceivedTimestamp"]),
        ended=_time(event["stageTimestamp"]),
        code=event["responseStatus"]["code"],
        message=event["responseStatus"].get("message", ""),
        images=images(answer) if is_pod else {},
        owner=owners[0] if owners else "",
        record=annotations.get("tagpin.dev/revision", ""),
        unrecorded=annotations.get("tagpin.dev/unrecorded", ""),
    )


def _time(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def stored_in_enforce(world: World) -> dict[str, Mapping[str, str]]:
    """Every pod that is there."""
    return {
        f"{namespace.name}/{each['metadata']['name']}": images(each)
        for namespace in world.namespaces
        if NAMESPACES[namespace.name] == "enforce"
        for each in namespace.find("pods")
    }


def sample(replica: Replica, api_server: str) -> Sample:
    """What the process of a replica holds now.

    Without the connections that the API server has to it, and their tasks: it keeps for 90 s as
    many as it once needed.
    """
    process = Path("/proc", str(replica.pid))
    status = (process / "status").read_text()
    resident = re.search(r"^VmRSS:\s+(\d+) kB$", status, re.MULTILINE)
    _, metrics = replica.get("/metrics")
    tasks = re.search(r"^tagpin_tasks (\S+)$", metrics, re.MULTILINE)
    assert resident
    assert tasks
    files = list(_files(process))
    connections = [
        fields[1:3]
        for fields in map(str.split, (process / "net/tcp").read_text().splitlines())
        if fields[3] == ESTABLISHED and f"socket:[{fields[9]}]" in files
    ]
    from_it = sum(ours.endswith(f":{replica.port:04X}") for ours, _ in connections)
    to_it = sum(theirs.endswith(f":{urlsplit(api_server).port:04X}") for _, theirs in connections)
    return Sample(
        int(resident[1]) / MIB, len(files) - from_it, int(float(tasks[1])) - from_it, to_it
    )


def _files(process: Path) -> Iterator[str]:
    """What each open file is."""
    for each in (process / "fd").iterdir():
        try:
            yield str(each.readlink())
        except FileNotFoundError:
            continue  # closed meanwhile


def settled(take: Callable[[], Sample], before: Sample, *, seconds: float) -> Sample:
    """A sample that fits to the one before, or the last one in so many seconds."""
    deadline = time.monotonic() + seconds
    while True:
        now = take()
        if fits(before, now) or time.monotonic() > deadline:
            return now
        time.sleep(0.5)


def complaints(world: World) -> list[Complaint]:
    """What the replicas logged that nobody should read."""
    return [
        Complaint(at, f"replica {number}: {text[:4000]}")
        for number, replica in enumerate(world.installation.replicas, 1)
        for at, text in _entries(replica.log_text())
        if "raceback" in text or "please report" in text
    ]


def _entries(log: str) -> Iterator[tuple[float, str]]:
    """Lines of JSON; what is none is taken to be of the time of the line before."""
    at = 0.0
    for is_json, lines in itertools.groupby(log.splitlines(), lambda line: line.startswith("{")):
        if not is_json:
            yield at, "\n".join(lines)
            continue
        for line in lines:
            at = _time(json.loads(line)["time"])
            yield at, line


def unhealed(world: World, *, seconds: float) -> list[str]:
    """What does not work though nothing is amiss: all replicas, and a pod in each namespace."""
    if not world.wait_until_all_serve(seconds=seconds):
        return [
            f"replica {number} does not serve: {_ready(replica)}"
            for number, replica in enumerate(world.installation.replicas, 1)
        ]
    deadline = time.monotonic() + seconds
    while wrong := list(_wrong_now(world)):
        if time.monotonic() > deadline:
            break
        time.sleep(0.5)
    return wrong


def _ready(replica: Replica) -> Any:
    try:
        return replica.get("/readyz")
    except OSError as error:
        return error


def _wrong_now(world: World) -> Iterator[str]:
    """A tag that moved just now is pinned to what it names now."""
    content = str(time.time_ns())
    world.move(0, content)
    wanted = {"real": f"{world.real.host}/hot:0", "fake": f"{world.fake.host}/hot:0"}
    for namespace in world.namespaces:
        if NAMESPACES[namespace.name] == "audit":
            continue
        name = f"probe-{content}"
        answer = namespace.create(pod(name, wanted), check=False)
        found = images(namespace.pod(name)) if answer.succeeded else {}
        unpinned = [each for each in found.values() if "@sha256:" not in each]
        if unpinned or not answer.succeeded:
            yield f"{namespace.name}: {answer.error or unpinned}"
