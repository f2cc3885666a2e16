"""What is asked: reviews as API servers send them, and what a right answer does to the pod."""

import base64
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jsonpatch

from bench.load import Question, WrongAnswerError
from cluster.namespaces import Object, admission_review, controller_reference
from stages.played import REPLICASET_CONTROLLER as CONTROLLER

NAMESPACE = "bench"
MAX_VERIFIED = 64
"""Answers to one question that are remembered, word by word, as right."""

Digests = Callable[[str], str]
"""The digest that an image must get."""


def pod(
    name: str,
    images: Sequence[str],
    *,
    owner: Object | None = None,
    template_hash: str = "",
    namespace: str = NAMESPACE,
    spec: Mapping[str, Any] | None = None,
) -> Object:
    """A pod of a usual size: two containers are 4 KiB, twenty are 40 KiB.

    With an `owner`, a stored ReplicaSet, it is as its controller makes it.
    """
    labels = {"app": "web", "app.kubernetes.io/managed-by": "Helm", "team": "payments"}
    metadata: Object = {
        "name": name,
        "namespace": namespace,
        "labels": labels | ({"pod-template-hash": template_hash} if template_hash else {}),
        "annotations": {"prometheus.io/scrape": "true", "prometheus.io/port": "9090"},
    }
    if owner is not None:
        metadata["generateName"] = f"{owner['metadata']['name']}-"
        metadata["ownerReferences"] = [controller_reference(owner)]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": metadata,
        "spec": {
            "containers": [_container(number, image) for number, image in enumerate(images)],
            "volumes": [{"name": "config", "configMap": {"name": "web", "defaultMode": 420}}],
            "restartPolicy": "Always",
            "terminationGracePeriodSeconds": 30,
            "dnsPolicy": "ClusterFirst",
            "serviceAccountName": "default",
            "securityContext": {"runAsNonRoot": True, "fsGroup": 1000},
            "schedulerName": "nobody",
            "priority": 0,
            "enableServiceLinks": True,
        }
        | dict(spec or {}),
        "status": {},
    }


def _container(number: int, image: str) -> Object:
    probe = {"httpGet": {"path": "/healthz", "port": 8080, "scheme": "HTTP"}}
    times = {"timeoutSeconds": 1, "periodSeconds": 10, "successThreshold": 1, "failureThreshold": 3}
    return {
        "name": f"app-{number}",
        "image": image,
        "args": [f"--option-{each}=a-value-of-some-length" for each in range(8)],
        "ports": [{"name": "http", "containerPort": 8080, "protocol": "TCP"}],
        "env": [
            {
                "name": f"SETTING_{each}",
                "value": f"the value of setting {each}, as people have them",
            }
            for each in range(10)
        ],
        "resources": {
            "requests": {"cpu": "100m", "memory": "128Mi"},
            "limits": {"memory": "256Mi"},
        },
        "livenessProbe": probe | times,
        "readinessProbe": probe | times,
        "volumeMounts": [{"name": "config", "mountPath": "/etc/web", "readOnly": True}],
        "terminationMessagePath": "/dev/termination-log",
        "terminationMessagePolicy": "File",
        "imagePullPolicy": "IfNotPresent",
    }


def create(pod: Object, digests: Digests) -> Question:
    """The CREATE of a pod, by its controller; it must get a digest for every tag."""
    return _question(admission_review(_namespace(pod), pod, user=CONTROLLER), pod, digests)


def create_unpinned(pod: Object) -> Question:
    """The CREATE of a pod that must be admitted with its images as they are."""
    return _asked(admission_review(_namespace(pod), pod, user=CONTROLLER), pod, _images(pod))


def update(pod: Object, digests: Digests) -> Question:
    """The UPDATE of a pod to other images than it had, with both objects."""
    pinned = f"registry.example/before:1@sha256:{64 * 'a'}"
    old = json.loads(json.dumps(pod))
    for container in old["spec"]["containers"]:
        container["image"] = pinned
    review = admission_review(_namespace(pod), pod, old=old, user=CONTROLLER)
    return _question(review, pod, digests)


def _question(review: Object, pod: Object, digests: Digests) -> Question:
    return _asked(review, pod, [pinned(each, digests) for each in _images(pod)])


def _asked(review: Object, pod: Object, wanted: list[str]) -> Question:
    body = json.dumps(review, separators=(",", ":")).encode()
    return Question(body, _Check(review["request"]["uid"], pod, wanted))


def pinned(image: str, digests: Digests) -> str:
    """What must run for an image."""
    return image if "@" in image else f"{image}@{digests(image)}"


@dataclass(slots=True)
class _Check:
    """Whether an answer leads to the images that are wanted; the same bytes are looked at once."""

    uid: str
    pod: Object
    wanted: list[str]
    verified: set[bytes] = field(default_factory=set)

    def __call__(self, answer: bytes) -> None:
        if answer in self.verified:
            return
        try:
            response = json.loads(answer)["response"]
            found = self._found(response)
        except (ValueError, LookupError, TypeError) as error:
            raise WrongAnswerError(f"{error!r}: {answer[:500]!r}") from error
        if response["uid"] != self.uid or response["allowed"] is not True or found != self.wanted:
            raise WrongAnswerError(f"wanted {self.wanted[:2]}, got {found[:2]}: {answer[:500]!r}")
        if len(self.verified) < MAX_VERIFIED:
            self.verified.add(answer)

    def _found(self, response: Any) -> list[str]:
        changed = self.pod
        if patch := response.get("patch"):
            changed = jsonpatch.apply_patch(self.pod, base64.b64decode(patch).decode())
        return _images(changed)


def _namespace(pod: Object) -> str:
    name: str = pod["metadata"]["namespace"]
    return name


def _images(pod: Object) -> list[str]:
    return [each["image"] for each in pod["spec"]["containers"]]
