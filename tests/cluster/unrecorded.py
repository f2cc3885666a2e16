"""Who is told when the digests of a pod are not in a record of its revision."""

import json
import re
from dataclasses import dataclass
from typing import Any, Self

from cluster.controlplane import ControlPlane
from cluster.installation import Installation
from cluster.namespaces import (
    Namespace,
    Object,
    controller_reference,
    deployment,
    eventually,
)

UNRECORDED = "tagpin.dev/unrecorded"
REVISION = "tagpin.dev/revision"

_SERIES = re.compile(r'tagpin_pods_unrecorded_total\{mode="(?P<mode>\w+)"\} (?P<value>\S+)')


@dataclass(frozen=True, slots=True)
class Mark:
    """How far everything was told of before something happened."""

    namespace: Namespace
    control_plane: ControlPlane
    installation: Installation
    counted: int
    logged: tuple[int, ...]
    audited: int

    @classmethod
    def now(
        cls, namespace: Namespace, control_plane: ControlPlane, installation: Installation
    ) -> Self:
        return cls(
            namespace,
            control_plane,
            installation,
            pods_unrecorded(installation),
            tuple(len(each.log_lines()) for each in installation.replicas),
            control_plane.audit_mark(),
        )

    def audit_annotations(self) -> list[dict[str, str]]:
        """What tagpin has said since about each pod, `pin.tagpin.dev/result` and so on."""
        annotations = [
            event.get("annotations", {})
            for event in self.control_plane.audit_events(self.audited)
            if event["verb"] == "create"
            and (asked := event.get("objectRef", {})).get("resource") == "pods"
            and "subresource" not in asked
            and asked.get("namespace") == self.namespace.name
        ]
        return [
            {key: text for key, text in each.items() if ".tagpin.dev/" in key}
            for each in annotations
        ]

    def decisions(self) -> list[dict[str, Any]]:
        """The log lines about the namespace's pods since."""
        return [
            line
            for before, replica in zip(self.logged, self.installation.replicas, strict=True)
            for line in replica.log_lines()[before:]
            if line.get("namespace") == self.namespace.name and line["logger"] == "tagpin.decisions"
        ]

    def counted_since(self) -> int:
        """How many pods more are counted as unrecorded."""
        return pods_unrecorded(self.installation) - self.counted

    def assert_told(self, pod: Object, workload: str, *words: str, pods: int = 1) -> None:
        """Everybody is told that so many pods of a Deployment are not recorded, and why."""
        said = annotation(pod, UNRECORDED)
        assert said is not None
        assert all(word in said for word in words), said
        told = self.namespace.events("Deployment", workload, reason="ImageNotRecorded")
        assert f"{said}: the next pod may get another digest" in told
        assert said in [each.get("pin.tagpin.dev/unrecorded") for each in self.audit_annotations()]
        lines = [line for line in self.decisions() if line.get("unrecorded") == said]
        assert {line["level"] for line in lines} == {"warning"}
        assert self.counted_since() == pods

    def assert_nobody_told(self) -> None:
        """Nothing is wrong, as far as anybody hears."""
        assert self.counted_since() == 0
        assert [line for line in self.decisions() if line["level"] != "info"] == []
        assert our_events(self.namespace) == []


def pods_unrecorded(installation: Installation, mode: str = "pin") -> int:
    """The metric of a mode, of all replicas."""
    texts = [each.get("/metrics")[1] for each in installation.replicas]
    found = [match for text in texts for match in _SERIES.finditer(text)]
    return sum(int(float(match["value"])) for match in found if match["mode"] == mode)


def our_events(namespace: Namespace) -> list[Object]:
    """All Events of tagpin's in a namespace by now."""
    return [
        event for event in namespace.find("events") if event["source"].get("component") == "tagpin"
    ]


def annotation(pod: Object, key: str) -> str | None:
    found: str | None = pod["metadata"].get("annotations", {}).get(key)
    return found


def digests(image_pin: Object) -> dict[str, str]:
    """What a record says: reference → digest."""
    return {each["reference"]: each["digest"] for each in image_pin["spec"]["images"]}


def idle_deployment(namespace: Namespace, name: str, containers: dict[str, str]) -> Object:
    """A Deployment without pods; its ReplicaSet."""
    namespace.create(deployment(name, containers, replicas=0))
    return replica_set_of(namespace, name)


def replica_set_of(namespace: Namespace, name: str) -> Object:
    """The one ReplicaSet of a Deployment, when its controller has seen it."""
    (found,) = eventually(
        lambda: [
            each
            for each in namespace.find(f"replicasets?labelSelector=app={name}", "apis/apps/v1")
            if "observedGeneration" in each["status"]
        ],
        bool,
    )
    return namespace.get(f"replicasets/{found['metadata']['name']}", "apis/apps/v1")


def pod_of(owner: Object, containers: dict[str, str] | None = None) -> Object:
    """The pod that the controller of a ReplicaSet or a Job would make, or with other containers."""
    template = owner["spec"]["template"]
    spec = json.loads(json.dumps(template["spec"]))
    if containers is not None:
        spec["containers"] = [{"name": name, "image": each} for name, each in containers.items()]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "generateName": f"{owner['metadata']['name']}-",
            "labels": dict(template["metadata"]["labels"]),
            "annotations": dict(template["metadata"].get("annotations", {})),
            "ownerReferences": [controller_reference(owner)],
        },
        "spec": spec,
    }


def scale(namespace: Namespace, name: str, replicas: int, *, ready: bool = True) -> list[Object]:
    """Have a Deployment so many pods, and return them, the oldest first."""
    namespace.kubectl("scale", f"deployment/{name}", f"--replicas={replicas}")
    if ready and replicas:
        namespace.wait_for_rollout(f"deployment/{name}")
    pods = eventually(
        lambda: namespace.pods(f"app={name}"), lambda found: len(found) == replicas, seconds=60
    )
    return sorted(pods, key=_created)


def _created(pod: Object) -> tuple[str, str]:
    return (pod["metadata"]["creationTimestamp"], pod["metadata"]["resourceVersion"])
