"""Revisions: what a pod claims about its own, and what of that the cluster bears out.

A revision is a workload's template as its controller counts it. Pods are written by people,
owner references and labels included, so a claim is worth nothing until `proven` has compared it
with the objects that it names.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import Enum
from typing import Any

from tagpin import workload
from tagpin.errors import Unproven
from tagpin.workload import Owner, Pod

HASH_LABELS = ("pod-template-hash", "rollouts-pod-template-hash", "controller-revision-hash")
"""Labels by which workload controllers name the template of a pod."""

CONTROLLER_MANAGER = ("system:kube-controller-manager", "system:serviceaccount:kube-system:*")
"""Who creates the pods of the workloads in `apps` and `batch`."""

MAX_NAME = 253
"""Characters of an object's name (RFC 1123 subdomain, as Kubernetes limits it)."""
MAX_UID = 63
"""Characters of a uid that is looked into, as the CRD limits them: claims are remembered."""

_LABEL_VALUE = re.compile(r"[a-z0-9A-Z](?:[-_.a-zA-Z0-9]{0,61}[a-zA-Z0-9])?", re.ASCII)
_JOB_LABEL = "batch.kubernetes.io/controller-uid"
_COUNTS = ("replicas", "currentNumberScheduled", "active", "succeeded", "failed")


class Proof(Enum):
    """What bears out the hash that a pod claims."""

    LABEL = "label"
    """The controller's own label of that name."""
    HISTORY = "history"
    """A ControllerRevision of the controller's."""
    OBJECT = "object"
    """The controller's uid: it never changes its template, so it is the revision itself."""
    REQUESTER = "requester"
    """Only who sends the pod."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of controller whose revisions are recorded.

    `requesters` are the users that its pods come from; `*` at the end stands for any ending.
    `labels` are those by which its pods name their template, the first one wins.
    """

    api_version: str
    kind: str
    plural: str
    requesters: tuple[str, ...]
    proof: Proof
    labels: tuple[str, ...] = ()

    def may_request(self, user: str) -> bool:
        """Whether a pod of such a controller may come from `user`."""
        return any(
            user.startswith(name[:-1]) if name.endswith("*") else user == name
            for name in self.requesters
        )


Kinds = Mapping[tuple[str, str], Kind]
"""By apiVersion and kind, both exact: equal kinds of other groups are other kinds."""


def kinds(requesters: tuple[str, ...] = CONTROLLER_MANAGER, opted_in: Iterable[Kind] = ()) -> Kinds:
    """The kinds of Kubernetes itself, whose pods come from `requesters`, and those opted in."""
    built_in = (
        Kind("apps/v1", "ReplicaSet", "replicasets", requesters, Proof.LABEL, HASH_LABELS[:2]),
        Kind("apps/v1", "StatefulSet", "statefulsets", requesters, Proof.HISTORY, HASH_LABELS[2:]),
        Kind("apps/v1", "DaemonSet", "daemonsets", requesters, Proof.HISTORY, HASH_LABELS[2:]),
        Kind("batch/v1", "Job", "jobs", requesters, Proof.OBJECT),
    )
    return {(each.api_version, each.kind): each for each in (*opted_in, *built_in)}


@dataclass(frozen=True, slots=True)
class Claim:
    """What a pod says about its revision. Its names are fit for a path of the API."""

    namespace: str
    owner: Owner
    kind: Kind = field(compare=False)  # the owner's apiVersion and kind say it already
    label: str
    """The label that `hash` stands in; empty where the owner itself is the revision."""
    hash: str

    @property
    def history(self) -> str | None:
        """The name of the ControllerRevision that must bear out the hash, if one must.

        A StatefulSet's pods are labelled with its name, a DaemonSet's with what follows theirs.
        """
        if self.kind.proof is not Proof.HISTORY:
            return None
        prefix = f"{self.owner.name}-"
        return self.hash if self.hash.startswith(prefix) else prefix + self.hash

    @property
    def selector(self) -> str:
        """The label selector of the revision's pods; whose they are, it cannot say."""
        return f"{self.label or _JOB_LABEL}={self.hash}"


@dataclass(frozen=True, slots=True)
class Revision:
    """A revision that the cluster has borne out: a workload, and one of its templates.

    `workload` is what outlives the revision: the controller of a ReplicaSet or Job, where it
    has one. `kind` and `name` are those of the object that stands for the template.
    """

    namespace: str
    workload: Owner
    kind: str
    name: str
    hash: str
    record_name: str = field(init=False, repr=False, compare=False)
    """The name of its ImagePin: readable, at most 253 characters, of no other revision."""

    def __post_init__(self) -> None:
        group = self.workload.api_version.rpartition("/")[0]
        identity = f"{group}\0{self.workload.kind}\0{self.workload.uid}\0{self.hash}"
        suffix = hashlib.sha256(identity.encode()).hexdigest()[:8]
        name = f"{self.name[: MAX_NAME - 1 - len(suffix)].rstrip('-.')}-{suffix}"
        object.__setattr__(self, "record_name", name)


def claim(pod: Pod, *, namespace: str, user: str, known: Kinds) -> Claim | None:
    """What a pod that `user` creates says about its revision; None where it is its own.

    A pod of a controller without a known hash is its own revision too, or a mutable tag would
    be frozen for as long as that controller lives. Raises Unproven where the pod speaks of a
    revision that it cannot speak for.
    """
    owner = workload.controller(pod)
    if owner is None:
        return None
    hashes = {key: text for key, text in workload.labels(pod).items() if isinstance(text, str)}
    kind = known.get((owner.api_version, owner.kind))
    if kind is None:
        if any(hashes.get(label) for label in HASH_LABELS):
            told = workload.shown(f"{owner.kind} ({owner.api_version})")
            raise Unproven(f"{told} is not among the kinds whose revisions are recorded")
        return None
    label, template_hash = "", owner.uid
    if kind.proof is not Proof.OBJECT:
        label = next((each for each in kind.labels if hashes.get(each)), "")
        template_hash = hashes.get(label, "")
    if not template_hash:
        return None
    if not kind.may_request(user):
        raise Unproven(f"the pods of a {owner.kind} are not created by {workload.shown(user)}")
    made = Claim(namespace, owner, kind, label, template_hash)
    names = (namespace, owner.name, made.history or owner.name)
    is_fit = all(map(workload.is_object_name, names)) and len(owner.uid) <= MAX_UID
    if not is_fit or not _LABEL_VALUE.fullmatch(template_hash):
        raise Unproven(f"the pod names its {owner.kind} by what is no name in Kubernetes")
    return made


def proven(
    claimed: Claim, owner: Mapping[str, Any], history: Mapping[str, Any] | None = None
) -> Revision:
    """The revision, borne out by its owner, and by the ControllerRevision where it needs one.

    Both are as the API server has them under the names that are claimed. Raises Unproven.
    """
    told = f"{claimed.owner.kind} {claimed.owner.name}"
    if workload.uid(owner) != claimed.owner.uid:
        raise Unproven(f"the {told} that the pod names is another one")
    proof = claimed.kind.proof
    if proof is Proof.LABEL and workload.labels(owner).get(claimed.label) != claimed.hash:
        raise Unproven(f"the {claimed.label} of {told} is another one than the pod's")
    name, kind = claimed.owner.name, claimed.owner.kind
    if proof is Proof.HISTORY:
        name, kind = str(claimed.history), "ControllerRevision"
        creator = workload.controller(history or {})
        if creator is None or creator.uid != claimed.owner.uid:
            raise Unproven(f"ControllerRevision {name} is not of {told}")
    return Revision(claimed.namespace, _workload(claimed, owner), kind, name, claimed.hash)


def created(revision: Mapping[str, Any]) -> datetime:
    """When an object was created (UTC): its timestamp, which leaves out parts of a second.

    Raises ValueError where it has none.
    """
    metadata = revision.get("metadata")
    text = metadata.get("creationTimestamp") if isinstance(metadata, Mapping) else None
    try:
        return datetime.fromisoformat(str(text)).astimezone(UTC)
    except OverflowError as error:
        raise ValueError(f"{text} is not in our calendar") from error


def counts_pods(owner: Mapping[str, Any]) -> bool:
    """Whether a controller's status says that it has, or had, pods."""
    status = owner.get("status")
    counts = [status.get(field) for field in _COUNTS] if isinstance(status, Mapping) else []
    return any(isinstance(count, int) and count > 0 for count in counts)


def _workload(claimed: Claim, owner: Mapping[str, Any]) -> Owner:
    """What the revision is one of: records must outlive ReplicaSets, and a CronJob's Jobs."""
    if claimed.kind.proof in (Proof.LABEL, Proof.OBJECT):
        return workload.controller(owner) or claimed.owner
    return claimed.owner
