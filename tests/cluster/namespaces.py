"""A namespace of a test's own: what people do there, and what is then found recorded."""

import base64
import json
import subprocess
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

import jsonpatch

from cluster.controlplane import ControlPlane, KubectlError

PINS = "tagpin.dev/pins"

# Whoever creates the pods of Deployments, in this control plane the controller's own account.
CONTROLLER_MANAGER = {
    "username": "system:serviceaccount:kube-system:replicaset-controller",
    "groups": [
        "system:serviceaccounts",
        "system:serviceaccounts:kube-system",
        "system:authenticated",
    ],
}

T = TypeVar("T")
Object = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Answer:
    """What the API server answered to a kubectl command."""

    succeeded: bool
    output: str
    warnings: tuple[str, ...]
    error: str

    @classmethod
    def of(cls, done: subprocess.CompletedProcess[str]) -> Self:
        lines = done.stderr.splitlines()
        warnings = tuple(
            line.removeprefix("Warning: ") for line in lines if line.startswith("Warning: ")
        )
        error = "\n".join(line for line in lines if not line.startswith("Warning: "))
        return cls(done.returncode == 0, done.stdout, warnings, error)


class Namespace:
    """A namespace with `labels`, in which pods can be created."""

    def __init__(
        self, control_plane: ControlPlane, name: str, labels: Mapping[str, str] | None = None
    ) -> None:
        self.name = name
        self._control_plane = control_plane
        self._created_at = control_plane.audit_mark()
        metadata = {"name": name, "labels": dict(labels or {})}
        made = {"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}
        control_plane.kubectl("create", "-f", "-", input=json.dumps(made))
        eventually(lambda: self.get("serviceaccounts/default"), bool)

    # What people do

    def kubectl(
        self,
        *arguments: str,
        input: str | None = None,  # noqa: A002 - as ControlPlane.kubectl calls it
        kubeconfig: Path | None = None,
        check: bool = True,
    ) -> Answer:
        """Run kubectl here. KubectlError: it failed, unless `check` is false."""
        done = self._control_plane.kubectl(
            *("-n", self.name, *arguments), input=input, kubeconfig=kubeconfig, check=False
        )
        answer = Answer.of(done)
        if check and not answer.succeeded:
            raise KubectlError(f"kubectl {' '.join(arguments)}: {answer.error}")
        return answer

    def create(self, *objects: Object, flags: Sequence[str] = (), **options: Any) -> Answer:
        """`kubectl create` the objects; `options` are those of `self.kubectl`."""
        return self.kubectl("create", "-f", "-", *flags, input=_list_of(objects), **options)

    def apply(self, *objects: Object, flags: Sequence[str] = (), **options: Any) -> Answer:
        """`kubectl apply` the objects; `options` are those of `self.kubectl`."""
        return self.kubectl("apply", "-f", "-", *flags, input=_list_of(objects), **options)

    def create_pull_secret(self, name: str, host: str, user: str, password: str) -> None:
        """A Secret that holds the credentials for one registry."""
        login = (f"--docker-server={host}", f"--docker-username={user}")
        secret = ("create", "secret", "docker-registry", name)
        self.kubectl(*secret, *login, f"--docker-password={password}")

    def wait_for_rollout(self, workload: str, *, seconds: float = 60) -> None:
        """Return when all pods of a workload, such as "deployment/web", are new and ready."""
        self.kubectl("rollout", "status", workload, f"--timeout={seconds}s")

    # What kubelets do, beyond what kwok does by itself

    def report_image_ids(self, pod: str, image_ids: Mapping[str, str]) -> None:
        """Report what the containers (name → imageID) of a running pod run, init containers too.

        kwok reports no imageID, and leaves one that it finds. Containers that `image_ids` does
        not name keep what they have.
        """
        running = eventually(
            lambda: self.pod(pod), lambda found: found["status"]["phase"] == "Running"
        )
        kinds = ("containerStatuses", "initContainerStatuses")
        statuses = {kind: running["status"].get(kind, []) for kind in kinds}
        unknown = set(image_ids) - {each["name"] for kind in kinds for each in statuses[kind]}
        assert not unknown, f"{pod} has no container {unknown}"
        reported = {
            kind: [each | {"imageID": image_ids.get(each["name"], each["imageID"])} for each in of]
            for kind, of in statuses.items()
        }
        self._patch_status(pod, reported)

    def fail_pod(self, name: str) -> None:
        """Report that a pod has ended, and badly.

        kwok completes the pods of a Job a second after they begin: to be sure to be first, give
        them a scheduling gate. The Job makes another pod ten seconds later.
        """
        self._patch_status(name, {"phase": "Failed"})

    def _patch_status(self, pod: str, status: Object) -> None:
        # A merge patch replaces the list, as a kubelet would.
        patch = json.dumps({"status": status})
        self.kubectl("patch", "pod", pod, "--subresource=status", "--type=merge", "-p", patch)

    # What is found

    def pod(self, name: str) -> Object:
        """The pod as it is stored; empty if there is none."""
        return self.get(f"pods/{name}")

    def pods(self, selector: str) -> list[Object]:
        """The pods that have the label `selector` (key=value)."""
        return self.find(f"pods?labelSelector={selector}")

    def get(self, path: str, group: str = "api/v1") -> Object:
        """An object as it is stored, or a list of them; empty if there is none."""
        _, body = self._control_plane.get(f"/{group}/namespaces/{self.name}/{path}")
        found: Object = json.loads(body)
        return {} if found["kind"] == "Status" else found

    def find(self, path: str, group: str = "api/v1") -> list[Object]:
        """The objects of a kind, such as find("replicasets", "apis/apps/v1")."""
        found: list[Object] = self.get(path, group)["items"]
        return found

    def image_pins(self) -> list[Object]:
        """The records of revisions."""
        return self.find("imagepins", "apis/tagpin.dev/v1alpha1")

    def events(self, kind: str, name: str, *, reason: str = "ImageNotPinned") -> list[str]:
        """The messages of the Events of ours on an object, at least one."""
        path = f"events?fieldSelector=involvedObject.kind={kind},involvedObject.name={name}"
        found = eventually(lambda: self._told(path, reason), bool)
        return [event["message"] for event in found]

    def has_events(self, name: str) -> bool:
        """Whether there is an Event of ours on anything called `name` by now."""
        return bool(
            self._told(f"events?fieldSelector=involvedObject.name={name}", "ImageNotPinned")
        )

    def audit(self, name: str, verb: str = "create", subresource: str = "") -> dict[str, str]:
        """What the last such request for the pod has in the audit log from tagpin's webhooks."""
        wanted = ("pods", self.name, name, subresource)
        fields = ("resource", "namespace", "name", "subresource")
        annotations = [
            event.get("annotations", {})
            for event in self._control_plane.audit_events(self._created_at)
            if event["verb"] == verb
            and tuple(event.get("objectRef", {}).get(field, "") for field in fields) == wanted
        ][-1]
        return {
            key: value
            for key, value in annotations.items()
            if key.partition("/")[0].endswith(".tagpin.dev")
        }

    def _told(self, path: str, reason: str) -> list[Object]:
        ours = ("tagpin", reason)
        return [
            event
            for event in self.find(path)
            if (event["source"].get("component"), event["reason"]) == ours
        ]


NewNamespace = Callable[..., Namespace]
"""Makes one that no other test has: `(mode, labels={…})`, both optional."""


def pod(
    name: str,
    containers: Mapping[str, str],
    *,
    init: Mapping[str, str] | None = None,
    annotations: Mapping[str, str] | None = None,
    labels: Mapping[str, str] | None = None,
    **spec: Any,
) -> Object:
    """A pod whose `containers` (name → image) are these."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "annotations": dict(annotations or {}),
            "labels": dict(labels or {}),
        },
        "spec": {
            "containers": _containers(containers),
            "initContainers": _containers(init or {}),
            "terminationGracePeriodSeconds": 0,
            **spec,
        },
    }


def deployment(name: str, containers: Mapping[str, str], **options: Any) -> Object:
    """A Deployment, with the `options` of `stateful_set`."""
    return _replicated("Deployment", name, containers, **options)


def stateful_set(
    name: str,
    containers: Mapping[str, str],
    *,
    replicas: int = 1,
    pod_spec: Mapping[str, Any] | None = None,
    **spec: Any,
) -> Object:
    """A StatefulSet whose pods have the label app=NAME.

    `spec` is added to the workload's, such as podManagementPolicy="Parallel"; `pod_spec` to that
    of its template.
    """
    own = {"serviceName": name} | spec
    return _replicated("StatefulSet", name, containers, replicas=replicas, pod_spec=pod_spec, **own)


def replica_set(
    name: str,
    containers: Mapping[str, str],
    *,
    labels: Mapping[str, str] | None = None,
    owner: Object | None = None,
    **options: Any,
) -> Object:
    """A ReplicaSet without a Deployment, with the options of `stateful_set`.

    With the `labels` on itself, its selector and its pods, and a stored object as its `owner`,
    it is what a controller like that of Argo Rollouts makes.
    """
    made = _replicated("ReplicaSet", name, containers, **options)
    made["metadata"]["labels"] = dict(labels or {})
    made["spec"]["selector"]["matchLabels"] |= labels or {}
    made["spec"]["template"]["metadata"]["labels"] |= labels or {}
    if owner is not None:
        made["metadata"]["ownerReferences"] = [controller_reference(owner)]
    return made


def daemon_set(
    name: str,
    containers: Mapping[str, str],
    *,
    pod_spec: Mapping[str, Any] | None = None,
    **spec: Any,
) -> Object:
    """A DaemonSet, with a pod on each node; the rest as `stateful_set`."""
    return _workload("apps/v1", "DaemonSet", name, _selecting(name, containers, pod_spec) | spec)


def job(
    name: str,
    containers: Mapping[str, str],
    *,
    pod_spec: Mapping[str, Any] | None = None,
    **spec: Any,
) -> Object:
    """A Job whose pods are not started again; kwok completes them a second after they begin.

    With completions=2 a second pod follows the first at once; after a pod that failed, only ten
    seconds later.
    """
    return _workload("batch/v1", "Job", name, _job_spec(name, containers, pod_spec) | spec)


def cron_job(
    name: str,
    containers: Mapping[str, str],
    *,
    pod_spec: Mapping[str, Any] | None = None,
    **spec: Any,
) -> Object:
    """A CronJob that is suspended: `kubectl create job NAME-1 --from=cronjob/NAME` runs it."""
    job_template = {"spec": _job_spec(name, containers, pod_spec)}
    own = {"schedule": "@yearly", "suspend": True, "jobTemplate": job_template}
    return _workload("batch/v1", "CronJob", name, own | spec)


def controller_reference(owner: Object) -> Object:
    """What the metadata of an object say whose controller is the stored `owner`."""
    metadata = owner["metadata"]
    return {
        "apiVersion": owner["apiVersion"],
        "kind": owner["kind"],
        "name": metadata["name"],
        "uid": metadata["uid"],
        "controller": True,
        "blockOwnerDeletion": True,
    }


def admission_review(
    namespace: str,
    pod: Object,
    *,
    old: Object | None = None,
    user: Mapping[str, Any] | None = None,
    dry_run: bool = False,
) -> Object:
    """What the API server asks of a webhook when a pod is created; with `old`, when it is updated.

    `user` is the controller manager unless told: {"username": …, "groups": […]}.
    https://kubernetes.io/docs/reference/access-authn-authz/extensible-admission-controllers/
    """
    kind = {"group": "", "version": "v1", "kind": "Pod"}
    resource = {"group": "", "version": "v1", "resource": "pods"}
    options = {"apiVersion": "meta.k8s.io/v1", "kind": "UpdateOptions" if old else "CreateOptions"}
    request = {
        "uid": str(uuid.uuid4()),
        "kind": kind,
        "resource": resource,
        "requestKind": kind,
        "requestResource": resource,
        "name": pod["metadata"].get("name", ""),
        "namespace": namespace,
        "operation": "UPDATE" if old else "CREATE",
        "userInfo": dict(user or CONTROLLER_MANAGER),
        "object": pod,
        "oldObject": old,
        "dryRun": dry_run,
        "options": options,
    }
    return {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request}


def patched(pod: Object, review: Object) -> Object:
    """A pod, changed as the answered `review` asks."""
    patch = review["response"].get("patch")
    if patch is None:
        return pod
    changed: Object = jsonpatch.apply_patch(pod, base64.b64decode(patch).decode())
    return changed


def images(pod: Object) -> dict[str, str]:
    """Container name → image, of a stored pod or of a template."""
    spec = pod["spec"]
    kinds = ("containers", "initContainers", "ephemeralContainers")
    return {each["name"]: each["image"] for kind in kinds for each in spec.get(kind, [])}


def record(pod: Object) -> Any:
    """What `tagpin.dev/pins` says on a stored pod; None where it has no such annotation."""
    text = pod["metadata"].get("annotations", {}).get(PINS)
    return None if text is None else json.loads(text)


def eventually(read: Callable[[], T], holds: Callable[[T], bool], *, seconds: float = 20) -> T:
    """Read until it holds, and return what was read last."""
    deadline = time.monotonic() + seconds
    while not holds(found := read()):
        assert time.monotonic() < deadline, f"still {found!r} after {seconds} s"
        time.sleep(0.02)
    return found


def _replicated(
    kind: str,
    name: str,
    containers: Mapping[str, str],
    *,
    replicas: int = 1,
    pod_spec: Mapping[str, Any] | None = None,
    **spec: Any,
) -> Object:
    own = _selecting(name, containers, pod_spec) | {"replicas": replicas}
    return _workload("apps/v1", kind, name, own | spec)


def _workload(api_version: str, kind: str, name: str, spec: Object) -> Object:
    return {"apiVersion": api_version, "kind": kind, "metadata": {"name": name}, "spec": spec}


def _selecting(
    name: str, containers: Mapping[str, str], pod_spec: Mapping[str, Any] | None
) -> Object:
    """The parts of a spec that name the pods, and say what they are."""
    template = _template(name, containers, pod_spec)
    return {"selector": {"matchLabels": {"app": name}}, "template": template}


def _job_spec(
    name: str, containers: Mapping[str, str], pod_spec: Mapping[str, Any] | None
) -> Object:
    once = {"restartPolicy": "Never"}
    return {"template": _template(name, containers, once | dict(pod_spec or {}))}


def _template(
    name: str, containers: Mapping[str, str], pod_spec: Mapping[str, Any] | None
) -> Object:
    return {
        "metadata": {"labels": {"app": name}},
        "spec": {
            "containers": _containers(containers),
            "terminationGracePeriodSeconds": 0,
            **(pod_spec or {}),
        },
    }


def _containers(images: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"name": name, "image": image} for name, image in images.items()]


def _list_of(objects: Sequence[Object]) -> str:
    if len(objects) == 1:
        return json.dumps(objects[0])
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)})
