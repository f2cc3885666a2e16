"""Revisions: what a pod may claim, and what the cluster must bear out."""

import re
import sys
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tagpin import workload
from tagpin.errors import Unproven
from tagpin.revision import (
    HASH_LABELS,
    MAX_NAME,
    Claim,
    Kind,
    Kinds,
    Proof,
    Revision,
    claim,
    counts_pods,
    created,
    kinds,
    proven,
)
from tagpin.workload import Owner

KNOWN = kinds()
MANAGER = "system:kube-controller-manager"
KUBE_SYSTEM = "system:serviceaccount:kube-system:"
TEMPLATE, ROLLOUTS, CONTROLLER = HASH_LABELS
CLONE_SET = Kind(
    "apps.kruise.io/v1alpha1",
    "CloneSet",
    "clonesets",
    ("system:serviceaccount:kruise-system:kruise-manager",),
    Proof.REQUESTER,
    (CONTROLLER,),
)
TASK_RUN = Kind(
    "tekton.dev/v1", "TaskRun", "taskruns", ("system:serviceaccount:tekton:*",), Proof.OBJECT
)
# RFC 1123: the name of an object is a DNS subdomain.
SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")


def reference(owner: Owner) -> dict[str, Any]:
    return {**owner.to_reference(), "controller": True}


def pod_of(owner: Owner | None, **labels: Any) -> dict[str, Any]:
    owners = [] if owner is None else [reference(owner)]
    named = {key.replace("_", "-"): value for key, value in labels.items()}
    return {"metadata": {"ownerReferences": owners, "labels": named}}


def claim_of(pod: Any, user: str = MANAGER, known: Kinds = KNOWN) -> Claim | None:
    return claim(pod, namespace="shop", user=user, known=known)


def claimed(owner: Owner, known: Kinds = KNOWN, user: str = MANAGER, **labels: Any) -> Claim:
    made = claim_of(pod_of(owner, **labels), user, known)
    assert made is not None
    return made


def the_object(
    uid: str, controller: Owner | None = None, labels: dict[str, str] | None = None
) -> dict[str, Any]:
    """An object as the API server has it."""
    owners = [] if controller is None else [reference(controller)]
    return {"metadata": {"uid": uid, "labels": labels or {}, "ownerReferences": owners}}


DEPLOYMENT = Owner("apps/v1", "Deployment", "web", "uid-deployment")
ROLLOUT = Owner("argoproj.io/v1alpha1", "Rollout", "web", "uid-rollout")
REPLICA_SET = Owner("apps/v1", "ReplicaSet", "web-5d4f", "uid-rs")
STATEFUL_SET = Owner("apps/v1", "StatefulSet", "db", "uid-sts")
DAEMON_SET = Owner("apps/v1", "DaemonSet", "log", "uid-ds")
JOB = Owner("batch/v1", "Job", "backup-2917", "6c1f2a0e-1111-4222-8333-444455556666")
CRON_JOB = Owner("batch/v1", "CronJob", "backup", "uid-cron")
CLONES = Owner("apps.kruise.io/v1alpha1", "CloneSet", "shop", "uid-clones")


# --- which revision a pod is of ---------------------------------------------------------------


@pytest.mark.parametrize("above", [DEPLOYMENT, ROLLOUT, None], ids=str)
@pytest.mark.parametrize("label", [TEMPLATE, ROLLOUTS])
def test_a_replica_set_is_a_revision_of_whatever_controls_it(
    above: Owner | None, label: str
) -> None:
    """The record must outlive the ReplicaSet; one that nobody controls is its own workload."""
    made = claim_of(pod_of(REPLICA_SET, **{label: "5d4f"}))
    assert made is not None

    revision = proven(made, the_object("uid-rs", above, {label: "5d4f"}))

    assert revision == Revision("shop", above or REPLICA_SET, "ReplicaSet", "web-5d4f", "5d4f")
    assert made.history is None
    assert made.selector == f"{label}=5d4f"


def test_the_label_of_deployments_comes_before_that_of_rollouts() -> None:
    made = claimed(REPLICA_SET, pod_template_hash="a", rollouts_pod_template_hash="b")

    assert (made.label, made.hash) == (TEMPLATE, "a")


@pytest.mark.parametrize("absent", ["", None, 5, ["5d4f"]])
def test_a_label_without_a_hash_leaves_the_word_to_the_next(absent: Any) -> None:
    made = claimed(REPLICA_SET, pod_template_hash=absent, rollouts_pod_template_hash="b")

    assert (made.label, made.hash) == (ROLLOUTS, "b")


@pytest.mark.parametrize(
    ("owner", "template_hash", "history"),
    [
        (STATEFUL_SET, "db-7c9b", "db-7c9b"),  # its pods are labelled with the whole name
        (DAEMON_SET, "7c9b", "log-7c9b"),  # its pods, with what follows the DaemonSet's
        (replace(DAEMON_SET, name="log-7c9b"), "7c9b", "log-7c9b-7c9b"),
        (replace(DAEMON_SET, name="7c"), "7c9b", "7c-7c9b"),
    ],
    ids=str,
)
def test_a_revision_that_is_kept_in_history_is_named_after_it(
    owner: Owner, template_hash: str, history: str
) -> None:
    made = claimed(owner, controller_revision_hash=template_hash)

    revision = proven(made, the_object(owner.uid), the_object("uid-cr", owner))

    assert made.history == history
    assert made.selector == f"{CONTROLLER}={template_hash}"
    assert revision == Revision("shop", owner, "ControllerRevision", history, template_hash)


def test_whatever_controls_a_stateful_set_its_revisions_are_its_own() -> None:
    """Its template may change without a change of what is above it."""
    made = claimed(STATEFUL_SET, controller_revision_hash="db-7c9b")
    above = Owner("db.example.com/v1", "Database", "db", "uid-db")

    revision = proven(made, the_object("uid-sts", above), the_object("uid-cr", STATEFUL_SET))

    assert revision.workload == STATEFUL_SET


@pytest.mark.parametrize(
    "above", [None, CRON_JOB, Owner("example.com/v1", "Pipeline", "p", "uid-p")], ids=str
)
def test_a_job_is_the_revision_itself(above: Owner | None) -> None:
    made = claimed(JOB, pod_template_hash="ignored")

    revision = proven(made, the_object(JOB.uid, above))

    assert revision == Revision("shop", above or JOB, "Job", "backup-2917", JOB.uid)
    assert made.history is None
    assert made.selector == f"batch.kubernetes.io/controller-uid={JOB.uid}"


def test_a_kind_that_is_opted_in_is_borne_out_by_who_sends_its_pods() -> None:
    (user,) = CLONE_SET.requesters
    made = claimed(CLONES, kinds(opted_in=[CLONE_SET]), user, controller_revision_hash="shop-1a")

    revision = proven(made, the_object("uid-clones", DEPLOYMENT))

    assert revision == Revision("shop", CLONES, "CloneSet", "shop", "shop-1a")


def test_a_kind_that_is_opted_in_without_a_label_never_changes_its_template() -> None:
    run = Owner("tekton.dev/v1", "TaskRun", "build-1", "uid-run")
    user = "system:serviceaccount:tekton:controller"

    made = claimed(run, kinds(opted_in=[TASK_RUN]), user)

    assert (made.hash, made.label) == ("uid-run", "")
    assert proven(made, the_object("uid-run")).name == "build-1"


@pytest.mark.parametrize(
    "pod",
    [
        {},
        pod_of(None),
        pod_of(None, pod_template_hash="5d4f"),
        pod_of(REPLICA_SET),
        pod_of(REPLICA_SET, controller_revision_hash="5d4f"),
        pod_of(REPLICA_SET, pod_template_hash=""),
        pod_of(REPLICA_SET, pod_template_hash=7),
        pod_of(STATEFUL_SET, pod_template_hash="5d4f"),
        pod_of(replace(JOB, uid="")),
        pod_of(Owner("v1", "ReplicationController", "web", "uid-rc"), app="web"),
        pod_of(Owner("postgresql.cnpg.io/v1", "Cluster", "pg", "uid-pg"), app="pg"),
        pod_of(Owner("v1", "Node", "node-1", "uid-node")),
        pod_of(CLONES, app="shop"),
    ],
    ids=str,
)
@pytest.mark.parametrize("user", [MANAGER, "ann"])
def test_a_pod_without_a_known_hash_is_its_own_revision(pod: Any, user: str) -> None:
    """Else a mutable tag would be frozen for as long as its controller lives."""
    assert claim_of(pod, user) is None


def test_an_owner_that_does_not_control_the_pod_names_no_revision() -> None:
    pod = pod_of(REPLICA_SET, pod_template_hash="5d4f")
    pod["metadata"]["ownerReferences"][0]["controller"] = False

    assert claim_of(pod) is None


# --- kinds that are not what they are called ---------------------------------------------------


@pytest.mark.parametrize(
    ("owner", "label"),
    [
        (CLONES, CONTROLLER),
        (replace(REPLICA_SET, api_version="apps.example.com/v1"), TEMPLATE),
        (replace(REPLICA_SET, api_version="apps/v1beta2"), TEMPLATE),
        (replace(REPLICA_SET, api_version="v1"), TEMPLATE),
        (replace(REPLICA_SET, api_version=""), TEMPLATE),
        (replace(REPLICA_SET, api_version="apps/v1/x"), TEMPLATE),
        (replace(REPLICA_SET, kind="replicaset"), TEMPLATE),
        (replace(REPLICA_SET, kind="ReplicaSet "), TEMPLATE),
        (replace(STATEFUL_SET, api_version="apps.kruise.io/v1beta1"), CONTROLLER),
        (replace(JOB, api_version="batch.volcano.sh/v1alpha1"), ROLLOUTS),
        (Owner("v1", "ReplicationController", "web", "uid-rc"), TEMPLATE),
    ],
    ids=lambda each: f"{each.api_version}/{each.kind}" if isinstance(each, Owner) else each,
)
def test_a_hash_of_an_unknown_kind_is_told(owner: Owner, label: str) -> None:
    with pytest.raises(Unproven) as error:
        claim_of(pod_of(owner, **{label: "5d4f"}))

    assert str(error.value) == (
        f"'{owner.kind} ({owner.api_version})' is not among the kinds whose revisions are recorded"
    )


def test_a_kind_that_nobody_knows_is_told_in_few_words() -> None:
    owner = Owner("example.com/v1", "K" * 10_000 + "\n", "web", "uid")

    with pytest.raises(Unproven) as error:
        claim_of(pod_of(owner, pod_template_hash="5d4f"))

    assert len(str(error.value)) < 200


def test_equal_kinds_of_different_groups_are_different_kinds() -> None:
    """Each has its own requesters, and its own way to bear out a hash."""
    imitation = Kind(
        "apps.example.com/v1", "ReplicaSet", "replicasets", ("ann",), Proof.REQUESTER, (TEMPLATE,)
    )
    known = kinds(opted_in=[imitation])
    imitated = replace(REPLICA_SET, api_version="apps.example.com/v1")

    ours = claimed(REPLICA_SET, known, pod_template_hash="5d4f")
    theirs = claimed(imitated, known, "ann", pod_template_hash="5d4f")

    assert (ours.kind.proof, theirs.kind) == (Proof.LABEL, imitation)
    for owner, user in ((REPLICA_SET, "ann"), (imitated, MANAGER)):
        with pytest.raises(Unproven):
            claim_of(pod_of(owner, pod_template_hash="5d4f"), user, known)
    names = {
        proven(made, the_object("uid-rs", None, {TEMPLATE: "5d4f"})).record_name
        for made in (ours, theirs)
    }
    assert len(names) == 2


def test_nobody_can_opt_in_a_kind_of_kubernetes_under_other_terms() -> None:
    lax = Kind("apps/v1", "ReplicaSet", "replicasets", ("*",), Proof.REQUESTER, ("app",))

    assert kinds(opted_in=[lax]) == kinds()


# --- who may speak for a revision --------------------------------------------------------------


@pytest.mark.parametrize(
    ("user", "may"),
    [
        (MANAGER, True),
        (f"{KUBE_SYSTEM}replicaset-controller", True),
        (f"{KUBE_SYSTEM}job-controller", True),
        ("ann", False),
        ("", False),
        ("*", False),
        ("system:kube-controller-manager-2", False),
        ("system:kube-controller-manage", False),
        ("my-system:kube-controller-manager", False),
        ("SYSTEM:KUBE-CONTROLLER-MANAGER", False),
        ("system:serviceaccount:kube-system", False),
        ("system:serviceaccount:kube-system-evil:x", False),
        ("system:serviceaccount:kube-systemx:x", False),
        ("system:serviceaccount:shop:kube-system:x", False),
        ("system:serviceaccount:shop:replicaset-controller", False),
        ("system:node:node-1", False),
    ],
)
@pytest.mark.parametrize(
    "pod",
    [
        pod_of(REPLICA_SET, pod_template_hash="5d4f"),
        pod_of(STATEFUL_SET, controller_revision_hash="db-7c9b"),
        pod_of(DAEMON_SET, controller_revision_hash="7c9b"),
        pod_of(JOB),
    ],
    ids=["ReplicaSet", "StatefulSet", "DaemonSet", "Job"],
)
def test_only_the_controller_manager_speaks_for_workloads_of_kubernetes(
    pod: Any, user: str, *, may: bool
) -> None:
    if may:
        assert claim_of(pod, user) is not None
        return
    with pytest.raises(Unproven) as error:
        claim_of(pod, user)

    kind = pod["metadata"]["ownerReferences"][0]["kind"]
    assert str(error.value) == f"the pods of a {kind} are not created by {user!r}"


def test_others_can_be_named_who_create_the_pods_of_workloads() -> None:
    known = kinds(("system:serviceaccount:vcluster:*", "ann"))
    pod = pod_of(REPLICA_SET, pod_template_hash="5d4f")

    assert claim_of(pod, "ann", known)
    assert claim_of(pod, "system:serviceaccount:vcluster:vc", known)
    for user in (MANAGER, "anna", "system:serviceaccount:vcluster2:vc"):
        with pytest.raises(Unproven):
            claim_of(pod, user, known)


def test_a_kind_that_is_opted_in_has_requesters_of_its_own() -> None:
    known, pod = kinds(opted_in=[CLONE_SET]), pod_of(CLONES, controller_revision_hash="shop-1a")

    assert claim_of(pod, "system:serviceaccount:kruise-system:kruise-manager", known)
    for user in (MANAGER, "system:serviceaccount:kruise-system:kruise-manager-2"):
        with pytest.raises(Unproven):
            claim_of(pod, user, known)


# --- names that are none -----------------------------------------------------------------------

NO_NAMES = [
    *("..", ".", "a/b", "../secrets/x", "a%2f", "a?b", "a#b", "Web", "", "-a", "a-", "a\n", "ä"),
    *("a b", "x,app=y", "a\x00", "a" * 254),
]


@pytest.mark.parametrize("name", NO_NAMES, ids=repr)
@pytest.mark.parametrize("owner", [REPLICA_SET, DAEMON_SET, JOB], ids=str)
def test_an_owners_name_that_is_none_leads_nowhere(owner: Owner, name: str) -> None:
    pod = pod_of(
        replace(owner, name=name), pod_template_hash="5d4f", controller_revision_hash="7c9b"
    )

    with pytest.raises(Unproven, match="by what is no name in Kubernetes"):
        claim_of(pod)


def test_no_name_of_a_claim_is_interned() -> None:
    """Some versions of Python never let go of that, and whoever can post a review makes it up."""
    pod = pod_of(REPLICA_SET, pod_template_hash="5d4f")
    namespaces = [f"{beginning}-up" for beginning in ("made", "made")]
    made = claim(pod, namespace=namespaces[0], user=MANAGER, known=KNOWN)
    assert made is not None
    assert made.namespace is not sys.intern(namespaces[1])


@pytest.mark.parametrize("namespace", ["", "..", "a/b", "Shop"])
def test_a_namespace_that_is_none_leads_nowhere(namespace: str) -> None:
    pod = pod_of(REPLICA_SET, pod_template_hash="5d4f")

    with pytest.raises(Unproven):
        claim(pod, namespace=namespace, user=MANAGER, known=KNOWN)


@pytest.mark.parametrize(
    "template_hash",
    [
        *("..", "a/b", "a%2f", "x,app=y", "x,app!=y", "a=b", "a b", "-a", "a-", "a\n", "!a", "ä"),
        *("\u0663", "a" * 64, "a" * 100_000),
    ],
    ids=lambda text: repr(text)[:20],
)
@pytest.mark.parametrize("owner", [REPLICA_SET, STATEFUL_SET, DAEMON_SET], ids=str)
def test_a_hash_that_is_no_value_of_a_label_selects_nothing(
    owner: Owner, template_hash: str
) -> None:
    pod = pod_of(owner, **dict.fromkeys((TEMPLATE, CONTROLLER), template_hash))

    with pytest.raises(Unproven, match="by what is no name in Kubernetes"):
        claim_of(pod)


def test_nor_is_a_jobs_uid_more_than_a_value_of_a_label() -> None:
    with pytest.raises(Unproven):
        claim_of(pod_of(replace(JOB, uid="x,app=y")))


@pytest.mark.parametrize("uid", ["a" * 64, "a" * 100_000], ids=len)
def test_a_uid_that_is_longer_than_any_is_not_looked_into(uid: str) -> None:
    with pytest.raises(Unproven, match="by what is no name in Kubernetes"):
        claim_of(pod_of(replace(REPLICA_SET, uid=uid), pod_template_hash="5d4f"))


@pytest.mark.parametrize("template_hash", ["A_b", "7C9B", "a_b"])
def test_a_hash_that_fits_a_label_but_no_name_is_in_no_history(template_hash: str) -> None:
    assert claimed(REPLICA_SET, pod_template_hash=template_hash).hash == template_hash
    with pytest.raises(Unproven):
        claim_of(pod_of(DAEMON_SET, controller_revision_hash=template_hash))


def test_a_history_whose_name_would_be_too_long_is_not_asked_for() -> None:
    with pytest.raises(Unproven):
        claim_of(pod_of(replace(DAEMON_SET, name="a" * 250), controller_revision_hash="7c9b"))


# --- what the cluster must bear out ------------------------------------------------------------

OF_A_REPLICA_SET = claimed(REPLICA_SET, pod_template_hash="5d4f")
OF_A_DAEMON_SET = claimed(DAEMON_SET, controller_revision_hash="7c9b")
GOOD = the_object("uid-rs", DEPLOYMENT, {TEMPLATE: "5d4f"})


@pytest.mark.parametrize(
    ("made", "owner", "history", "complaint"),
    [
        (
            OF_A_REPLICA_SET,
            the_object("uid-2", DEPLOYMENT, {TEMPLATE: "5d4f"}),
            None,
            "the ReplicaSet web-5d4f that the pod names is another one",
        ),
        (OF_A_REPLICA_SET, {}, None, "the ReplicaSet web-5d4f that the pod names is another one"),
        (
            claimed(replace(REPLICA_SET, uid=""), pod_template_hash="5d4f"),
            {"metadata": {"labels": {TEMPLATE: "5d4f"}}},
            None,
            "the ReplicaSet web-5d4f that the pod names is another one",
        ),
        (
            OF_A_REPLICA_SET,
            the_object("uid-rs", DEPLOYMENT, {TEMPLATE: "other"}),
            None,
            "the pod-template-hash of ReplicaSet web-5d4f is another one than the pod's",
        ),
        (
            OF_A_REPLICA_SET,
            the_object("uid-rs", DEPLOYMENT),
            None,
            "the pod-template-hash of ReplicaSet web-5d4f is another one than the pod's",
        ),
        (
            OF_A_REPLICA_SET,  # the hash stands in another label
            the_object("uid-rs", ROLLOUT, {ROLLOUTS: "5d4f"}),
            None,
            "the pod-template-hash of ReplicaSet web-5d4f is another one than the pod's",
        ),
        (
            claimed(JOB),
            the_object("uid-2", CRON_JOB),
            None,
            "the Job backup-2917 that the pod names is another one",
        ),
        (
            OF_A_DAEMON_SET,
            the_object("uid-2"),
            the_object("uid-cr", DAEMON_SET),
            "the DaemonSet log that the pod names is another one",
        ),
        (
            OF_A_DAEMON_SET,
            the_object("uid-ds"),
            the_object("uid-cr", STATEFUL_SET),
            "ControllerRevision log-7c9b is not of DaemonSet log",
        ),
        (
            OF_A_DAEMON_SET,  # the same name, an older DaemonSet
            the_object("uid-ds"),
            the_object("uid-cr", replace(DAEMON_SET, uid="uid-before")),
            "ControllerRevision log-7c9b is not of DaemonSet log",
        ),
        (
            OF_A_DAEMON_SET,
            the_object("uid-ds"),
            the_object("uid-cr"),
            "ControllerRevision log-7c9b is not of DaemonSet log",
        ),
        (
            OF_A_DAEMON_SET,
            the_object("uid-ds"),
            None,
            "ControllerRevision log-7c9b is not of DaemonSet log",
        ),
    ],
)
def test_a_claim_that_the_cluster_does_not_bear_out_is_told(
    made: Claim, owner: Any, history: Any, complaint: str
) -> None:
    with pytest.raises(Unproven) as error:
        proven(made, owner, history)

    assert str(error.value) == complaint


def test_a_replica_sets_word_is_not_enough_about_who_controls_it() -> None:
    """An owner that does not control it is not its workload."""
    helper = {**GOOD["metadata"], "ownerReferences": [DEPLOYMENT.to_reference()]}

    assert proven(OF_A_REPLICA_SET, {"metadata": helper}).workload == REPLICA_SET


# --- names of records --------------------------------------------------------------------------


def test_a_records_name_is_that_of_the_revision_and_a_short_hash() -> None:
    name = proven(OF_A_REPLICA_SET, GOOD).record_name

    assert re.fullmatch(r"web-5d4f-[0-9a-f]{8}", name)
    assert name == "web-5d4f-0c33fb61"  # it is in clusters: it must never become another one


def test_a_replica_set_that_is_made_again_finds_its_record() -> None:
    again = claimed(replace(REPLICA_SET, uid="uid-rs-2"), pod_template_hash="5d4f")

    revision = proven(again, the_object("uid-rs-2", DEPLOYMENT, {TEMPLATE: "5d4f"}))

    assert revision.record_name == proven(OF_A_REPLICA_SET, GOOD).record_name


@pytest.mark.parametrize(
    "above",
    [
        replace(DEPLOYMENT, uid="uid-deployment-2"),  # deleted, and made anew
        replace(DEPLOYMENT, kind="Rollout"),
        replace(DEPLOYMENT, api_version="apps.example.com/v1"),
    ],
)
def test_another_workload_has_another_record(above: Owner) -> None:
    other = proven(OF_A_REPLICA_SET, the_object("uid-rs", above, {TEMPLATE: "5d4f"}))

    assert other.record_name != proven(OF_A_REPLICA_SET, GOOD).record_name


def test_a_workload_that_is_read_by_another_version_has_the_same_record() -> None:
    next_version = replace(DEPLOYMENT, api_version="apps/v2")

    other = proven(OF_A_REPLICA_SET, the_object("uid-rs", next_version, {TEMPLATE: "5d4f"}))

    assert other.record_name == proven(OF_A_REPLICA_SET, GOOD).record_name


subdomains = st.from_regex(r"[a-z0-9]([-a-z0-9]{0,60}[a-z0-9])?", fullmatch=True)
object_names = (
    st.lists(subdomains, min_size=1, max_size=8).map(".".join)
    | st.builds("{}{}{}".format, st.just("a" * 239), st.text("-.a", max_size=13), st.just("z"))
).filter(lambda name: len(name) <= MAX_NAME and SUBDOMAIN.fullmatch(name) is not None)
parts = st.text(max_size=4) | st.text("a/0\x001", max_size=3)
owners = st.builds(Owner, st.builds("{}/v1".format, parts), parts, object_names, parts)
revisions = st.builds(Revision, st.just("shop"), owners, parts, object_names, parts)


@given(object_names, st.text(), st.text())
def test_whatever_a_revision_is_called_its_record_has_a_valid_and_readable_name(
    name: str, uid: str, template_hash: str
) -> None:
    revision = Revision("shop", replace(DEPLOYMENT, uid=uid), "ReplicaSet", name, template_hash)

    assert len(revision.record_name) <= MAX_NAME
    assert SUBDOMAIN.fullmatch(revision.record_name)
    readable, _, suffix = revision.record_name.rpartition("-")
    assert len(suffix) == 8
    assert name.startswith(readable)
    if len(f"{name}-{suffix}") <= MAX_NAME:
        assert readable == name


@pytest.mark.parametrize("end", [".", "-", "..", ".-", "a"])
def test_a_name_that_is_cut_ends_where_a_name_may_end(end: str) -> None:
    name = f"{'a' * (244 - len(end))}{end}{'b' * 9}"

    record_name = replace(proven(OF_A_REPLICA_SET, GOOD), name=name).record_name

    assert len(record_name) <= MAX_NAME
    assert SUBDOMAIN.fullmatch(record_name)


def _identity(revision: Revision) -> tuple[str, ...]:
    group = revision.workload.api_version.rpartition("/")[0]
    return group, revision.workload.kind, revision.workload.uid, revision.hash


@given(revisions, revisions)
def test_no_two_workloads_share_a_record(one: Revision, other: Revision) -> None:
    other = replace(other, name=one.name)

    if "\0" not in "".join((*_identity(one), *_identity(other))):  # in no name of Kubernetes
        assert (one.record_name == other.record_name) is (_identity(one) == _identity(other))


# --- what an owner says of itself --------------------------------------------------------------


@pytest.mark.parametrize("text", ["2026-03-01T12:00:05Z", "2026-03-01T13:00:05+01:00"])
def test_an_object_was_created_when_its_timestamp_says(text: str) -> None:
    moment = created({"metadata": {"creationTimestamp": text}})

    assert moment == datetime(2026, 3, 1, 12, 0, 5, tzinfo=UTC)
    assert moment.tzinfo is UTC


@pytest.mark.parametrize("found", [{}, {"metadata": None}, {"metadata": {}}])
def test_an_object_that_was_never_created_is_an_error(found: Any) -> None:
    with pytest.raises(ValueError, match="isoformat"):
        created(found)


def test_nor_was_one_before_all_time() -> None:
    with pytest.raises(ValueError, match="not in our calendar"):
        created({"metadata": {"creationTimestamp": "0001-01-01T00:00:00+14:00"}})


@pytest.mark.parametrize(
    ("status", "counts"),
    [
        ({"replicas": 1}, True),
        ({"currentNumberScheduled": 2}, True),
        ({"active": 1}, True),
        ({"active": 0, "succeeded": 3}, True),
        ({"failed": 1}, True),
        ({"replicas": 0, "readyReplicas": 0}, False),
        ({"observedGeneration": 7, "desiredNumberScheduled": 5}, False),
        ({"replicas": "3"}, False),
        ({"replicas": None}, False),
        ({}, False),
        (None, False),
        ("replicas", False),
    ],
)
def test_an_owner_counts_pods_where_its_status_says_so(status: Any, *, counts: bool) -> None:
    assert counts_pods({"status": status}) is counts


def test_an_owner_without_a_status_counts_none() -> None:
    assert not counts_pods({})


# --- whatever a pod holds ----------------------------------------------------------------------

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)
hashes = json_values | st.sampled_from(["5d4f", "db-7c9b", "..", "x,app=y", "a/b", "a" * 64])
references = st.fixed_dictionaries(
    {"controller": st.just(True) | json_values},
    optional={
        "apiVersion": st.sampled_from(sorted({version for version, _ in KNOWN})) | json_values,
        "kind": st.sampled_from(sorted({kind for _, kind in KNOWN})) | json_values,
        "name": st.sampled_from(["web", "db", "..", "a/b"]) | json_values,
        "uid": st.sampled_from(["uid-1", "x,app=y"]) | json_values,
    },
)
metadata = json_values | st.fixed_dictionaries(
    {},
    optional={
        "ownerReferences": json_values | st.lists(references | json_values, max_size=2),
        "labels": json_values | st.dictionaries(st.sampled_from(HASH_LABELS), hashes),
    },
)
pods = st.builds(lambda value: {"metadata": value}, metadata) | st.dictionaries(
    st.text(max_size=8), json_values
)


@given(pods, st.text(max_size=8) | st.sampled_from([MANAGER, f"{KUBE_SYSTEM}x"]))
def test_whatever_a_pod_holds_its_claim_is_safe_or_unproven(pod: Any, user: str) -> None:
    try:
        made = claim_of(pod, user)
    except Unproven:
        return
    if made is None:
        return
    assert user == MANAGER or user.startswith(KUBE_SYSTEM)
    assert workload.is_object_name(made.owner.name)
    assert workload.is_object_name(made.history or "none")
    assert re.fullmatch(r"[a-z./-]+=[-A-Za-z0-9_.]{1,63}", made.selector)


@given(pods, pods)
def test_whatever_the_cluster_answers_it_is_a_revision_or_unproven(owner: Any, other: Any) -> None:
    for made in (OF_A_REPLICA_SET, OF_A_DAEMON_SET, claimed(JOB)):
        try:
            revision = proven(made, owner, other)
        except Unproven:
            continue
        assert revision.hash == made.hash
    assert isinstance(counts_pods(owner), bool)
