"""What happens to a pod: every image becomes a digest, or says why not."""

import copy
import json
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jsonpatch
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fakes.clock import FakeClock
from fakes.ledger import FakeLedger
from fakes.resolver import HANGS, FakePullSecrets, FakeResolver, digest_of
from tagpin import workload
from tagpin.errors import Reason, Unresolvable
from tagpin.imagepin import ImagePin
from tagpin.keychain import Credential, Keychain
from tagpin.pinning import MAX_IMAGES, Access, Pinner
from tagpin.pins import PINS_ANNOTATION, Failure, Pin, Source, from_annotation, to_annotation
from tagpin.policy import Mode, Rules
from tagpin.reference import Digest
from tagpin.revision import Revision, kinds
from tagpin.verdict import MAX_TOLD, Admission, Result, Verdict, broken
from tagpin.workload import Owner

NGINX = digest_of("docker.io/library/nginx:1.25")
REDIS = digest_of("docker.io/library/redis:7")
OTHER = Digest.parse("sha256:" + "a" * 64)
BOB = Keychain((("docker.io", Credential("bob", "pw")),))
RULES = Rules.from_settings(("registry.example.com/mesh/",), ("kube-system", "tagpin-system"))
WRITING = [Mode.PIN, Mode.ENFORCE]
MANAGER = "system:kube-controller-manager"


def pinner(
    resolver: FakeResolver,
    secrets: FakePullSecrets | None = None,
    ledger: FakeLedger | None = None,
    **limits: Any,
) -> Pinner:
    return Pinner(
        resolver,
        secrets or FakePullSecrets(),
        ledger or FakeLedger(),
        rules=RULES,
        kinds=kinds(),
        now=resolver.clock.now,
        **limits,
    )


def missing(image: str, reason: Reason = Reason.NOT_FOUND) -> Unresolvable:
    return Unresolvable(reason, f"{image} does not exist")


def pod_of(
    images: Mapping[str, str], annotations: Mapping[str, Any] | None = None, **spec: Any
) -> dict[str, Any]:
    containers = [{"name": name, "image": image} for name, image in images.items()]
    pod: dict[str, Any] = {"metadata": {}, "spec": {"containers": containers, **spec}}
    if annotations is not None:
        pod["metadata"]["annotations"] = dict(annotations)
    return pod


def create(pod: Any, mode: Mode = Mode.PIN, **fields: Any) -> Admission:
    return Admission(mode=mode, operation="CREATE", namespace="shop", pod=pod, **fields)


def update(old: Any, pod: Any, mode: Mode = Mode.PIN, **fields: Any) -> Admission:
    return Admission(mode=mode, operation="UPDATE", namespace="shop", pod=pod, old=old, **fields)


def patched(admission: Admission, verdict: Verdict) -> Any:
    """The pod as the API server goes on with it."""
    changes = json.loads(json.dumps(verdict.operations))
    return jsonpatch.apply_patch(copy.deepcopy(admission.pod), changes)


def texts(pod: Any) -> dict[str, str]:
    return {image.name: image.text for image in workload.images(pod)}


def record_of(pod: Any) -> dict[str, Pin | Failure]:
    return from_annotation(workload.annotations(pod).get(PINS_ANNOTATION))


def annotated(**pins: Pin | Failure) -> dict[str, str]:
    return {PINS_ANNOTATION: to_annotation(pins)}


# --- images -----------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", WRITING)
async def test_an_image_becomes_its_own_text_and_the_digest(mode: Mode) -> None:
    admission = create(pod_of({"app": "nginx:1.25", "db": "docker.io/redis:7"}), mode)

    verdict = await pinner(FakeResolver()).admit(admission)

    assert verdict.result is Result.PINNED
    assert verdict.allowed
    assert texts(patched(admission, verdict)) == {
        "app": f"nginx:1.25@{NGINX}",
        "db": f"docker.io/redis:7@{REDIS}",
    }
    assert verdict.warnings == verdict.notices == ()


@pytest.mark.parametrize(
    "image",
    ["nginx", "nginx:latest", "index.docker.io/nginx", "ACME/app", "a.test:5000/b/c:v1.2-3_x"],
)
async def test_the_text_is_never_normalised(image: str) -> None:
    admission = create(pod_of({"app": image}))

    verdict = await pinner(FakeResolver()).admit(admission)

    assert texts(patched(admission, verdict))["app"].partition("@")[0] == image


async def test_images_are_pinned_wherever_a_pod_has_them() -> None:
    admission = create(
        {
            "spec": {
                "containers": [{"name": "app", "image": "app:1"}],
                "initContainers": [{"name": "init", "image": "init:1"}],
                "ephemeralContainers": [{"name": "debug", "image": "debug:1"}],
                "volumes": [{"name": "models", "image": {"reference": "models:1"}}],
            }
        }
    )

    verdict = await pinner(FakeResolver()).admit(admission)

    after = patched(admission, verdict)
    assert set(record_of(after)) == {"app", "init", "debug", "volume/models"}
    for text in texts(after).values():
        name, _, digest = text.partition("@")
        assert digest == str(digest_of(f"docker.io/library/{name}"))


async def test_the_record_says_where_a_digest_came_from_and_when() -> None:
    resolver = FakeResolver()
    admission = create(pod_of({"app": "nginx:1.25"}))

    first = await pinner(resolver).admit(admission)
    resolver.clock.advance(3)
    second = await pinner(resolver, freshness=5).admit(admission)
    resolver.clock.advance(3)
    third = await pinner(resolver, freshness=5).admit(admission)

    sources = [
        (entry["source"], entry["resolvedAt"])
        for verdict in (first, second, third)
        for entry in [record_of(patched(admission, verdict))["app"].to_json()]
    ]
    assert sources == [
        ("registry", "2026-01-01T00:16:40Z"),
        ("cache", "2026-01-01T00:16:40Z"),
        ("registry", "2026-01-01T00:16:46Z"),
    ]


async def test_an_answer_serves_others_for_as_long_as_it_is_fresh() -> None:
    resolver = FakeResolver()

    await pinner(resolver, freshness=7.5).admit(create(pod_of({"app": "nginx"})))

    assert resolver.max_ages == [7.5]


@pytest.mark.parametrize("mode", Mode)
async def test_a_digest_is_left_as_it_is_and_nobody_is_asked(mode: Mode) -> None:
    resolver, secrets = FakeResolver(), FakePullSecrets()
    admission = create(pod_of({"app": f"nginx:1.25@{OTHER}", "db": f"redis@{OTHER}"}), mode)

    verdict = await pinner(resolver, secrets).admit(admission)

    assert resolver.asked == []
    assert secrets.asked == []
    assert texts(patched(admission, verdict)) == texts(admission.pod)
    assert verdict.pins == {
        "app": Pin(f"nginx:1.25@{OTHER}", OTHER, Source.GIVEN),
        "db": Pin(f"redis@{OTHER}", OTHER, Source.GIVEN),
    }
    assert record_of(patched(admission, verdict)) == verdict.pins
    assert verdict.warnings == ()
    assert verdict.result is (Result.AUDITED if mode is Mode.AUDIT else Result.UNTOUCHED)


@pytest.mark.parametrize("mode", Mode)
async def test_an_exempt_image_is_left_as_written_and_not_recorded(mode: Mode) -> None:
    resolver = FakeResolver()
    admission = create(
        pod_of({"app": "nginx:1.25", "proxy": "registry.example.com/mesh/proxy:1"}), mode
    )

    verdict = await pinner(resolver).admit(admission)

    assert resolver.asked == ["nginx:1.25"]
    assert texts(patched(admission, verdict))["proxy"] == "registry.example.com/mesh/proxy:1"
    assert set(verdict.pins) == set(record_of(patched(admission, verdict))) == {"app"}


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize("pod", [{}, {"spec": None}, pod_of({}), pod_of({"app": ""})], ids=str)
async def test_a_pod_without_images_needs_nothing(mode: Mode, pod: Any) -> None:
    secrets = FakePullSecrets()

    verdict = await pinner(FakeResolver(), secrets).admit(create(pod, mode))

    assert verdict.allowed
    assert list(verdict.operations) == []
    assert secrets.asked == []


@pytest.mark.parametrize(
    "fields",
    [
        {"pod": {"metadata": {"deletionTimestamp": "now"}}},
        {"pod": {"metadata": {"labels": {"tagpin.dev/pin": "disabled"}}}},
        {
            "pod": {"metadata": {"annotations": {workload.MIRROR_ANNOTATION: ""}}},
            "groups": ("system:nodes",),
        },
        {"pod": {"metadata": {}}, "namespace": "kube-system"},
    ],
    ids=["deleted", "opted out", "mirror", "kube-system"],
)
async def test_a_pod_that_is_left_alone_gets_no_word(fields: dict[str, Any]) -> None:
    resolver, secrets = FakeResolver(), FakePullSecrets()
    admission = create(pod_of({"app": "nginx"}))
    admission = replace(admission, **{**fields, "pod": {**admission.pod, **fields["pod"]}})

    verdict = await pinner(resolver, secrets).admit(admission)

    assert verdict == Verdict(Result.UNTOUCHED)
    assert resolver.asked == []
    assert secrets.asked == []


async def test_enforce_knows_no_opt_out() -> None:
    pod = pod_of({"app": "nginx"})
    pod["metadata"]["labels"] = {"tagpin.dev/pin": "disabled"}

    verdict = await pinner(FakeResolver()).admit(create(pod, Mode.ENFORCE))

    assert verdict.result is Result.PINNED


# --- modes ------------------------------------------------------------------------------------


async def test_audit_changes_no_image_and_says_what_it_would_do() -> None:
    admission = create(pod_of({"app": "nginx:1.25", "db": f"redis@{OTHER}"}), Mode.AUDIT)

    verdict = await pinner(FakeResolver()).admit(admission)

    after = patched(admission, verdict)
    assert verdict.result is Result.AUDITED
    assert after["spec"] == admission.pod["spec"]
    assert set(record_of(after)) == {"app", "db"}
    assert verdict.warnings == (f'container "app": nginx:1.25 would be pinned to {NGINX}',)
    assert verdict.notices == ()


REASONS = [reason for reason in Reason if reason is not Reason.INVALID_REFERENCE]


@pytest.mark.parametrize("reason", REASONS)
async def test_audit_warns_of_an_image_without_a_digest(reason: Reason) -> None:
    resolver = FakeResolver({"docker.io/library/gone:1": missing("gone:1", reason)})
    admission = create(pod_of({"app": "gone:1", "web": "nginx:1.25"}), Mode.AUDIT)

    verdict = await pinner(resolver).admit(admission)

    problem = f'container "app": gone:1 does not exist ({reason}): it could not be pinned'
    after = patched(admission, verdict)
    assert verdict.result is Result.AUDITED
    assert after["spec"] == admission.pod["spec"]
    assert record_of(after)["app"] == Failure("gone:1", reason)
    assert verdict.notices == (problem,)
    assert verdict.warnings == (
        problem,
        f'container "web": nginx:1.25 would be pinned to {NGINX}',
    )


@pytest.mark.parametrize("reason", REASONS)
async def test_pin_admits_an_image_without_a_digest_and_pins_the_others(reason: Reason) -> None:
    resolver = FakeResolver({"docker.io/library/gone:1": missing("gone:1", reason)})
    admission = create(pod_of({"app": "gone:1", "web": "nginx:1.25"}))

    verdict = await pinner(resolver).admit(admission)

    problem = f'container "app": gone:1 does not exist ({reason}): it runs as written, unpinned'
    after = patched(admission, verdict)
    assert verdict.result is Result.UNPINNED
    assert verdict.allowed
    assert texts(after) == {"app": "gone:1", "web": f"nginx:1.25@{NGINX}"}
    assert record_of(after)["app"] == Failure("gone:1", reason)
    assert record_of(after)["web"] == verdict.pins["web"]
    assert verdict.warnings == verdict.notices == (problem,)


@pytest.mark.parametrize("reason", REASONS)
async def test_enforce_refuses_an_image_without_a_digest(reason: Reason) -> None:
    resolver = FakeResolver({"docker.io/library/gone:1": missing("gone:1", reason)})
    admission = create(pod_of({"app": "gone:1", "web": "nginx:1.25"}), Mode.ENFORCE)

    verdict = await pinner(resolver).admit(admission)

    message = f'1 image cannot be pinned: container "app": gone:1 does not exist ({reason})'
    assert verdict.result is Result.REFUSED
    assert not verdict.allowed
    assert verdict.message == message
    assert verdict.notices == (message,)
    assert list(verdict.operations) == []
    assert verdict.warnings == ()


@pytest.mark.parametrize(
    ("mode", "allowed"), [(Mode.AUDIT, True), (Mode.PIN, True), (Mode.ENFORCE, False)]
)
async def test_an_invalid_image_fails_without_a_question(mode: Mode, allowed: bool) -> None:
    resolver, secrets = FakeResolver(), FakePullSecrets()
    admission = create(pod_of({"app": "nginx@latest"}), mode)

    verdict = await pinner(resolver, secrets).admit(admission)

    failure = verdict.pins["app"]
    assert isinstance(failure, Failure)
    assert failure.reason is Reason.INVALID_REFERENCE
    assert "nginx@latest" in failure.message
    assert verdict.allowed is allowed
    assert texts(patched(admission, verdict)) == texts(admission.pod)
    assert resolver.asked == []
    assert secrets.asked == []


async def test_every_unknown_image_is_named_in_the_refusal() -> None:
    resolver = FakeResolver(
        {
            "docker.io/library/gone:1": missing("gone:1"),
            "private.test/app:2": missing("private.test/app:2", Reason.UNAUTHORIZED),
            "docker.io/library/models:3": missing("models:3", Reason.TLS),
        }
    )
    admission = create(
        pod_of(
            {"app": "gone:1", "web": "nginx:1.25", "side": "private.test/app:2", "bad": "A B"},
            volumes=[{"name": "models", "image": {"reference": "models:3"}}],
        ),
        Mode.ENFORCE,
    )

    verdict = await pinner(resolver).admit(admission)

    assert verdict.message == (
        "4 images cannot be pinned: "
        'container "app": gone:1 does not exist (not_found); '
        'container "side": private.test/app:2 does not exist (unauthorized); '
        "container \"bad\": invalid image reference 'A B': "
        "a repository name is written in lower case (invalid_reference); "
        'volume "models": models:3 does not exist (tls)'
    )


@pytest.mark.parametrize("mode", Mode)
async def test_a_stale_digest_is_used_and_told(mode: Mode) -> None:
    resolver = FakeResolver(
        {"docker.io/library/nginx:1.25": missing("nginx:1.25", Reason.UNREACHABLE)}
    )
    resolver.remember("nginx:1.25", OTHER)
    resolver.clock.advance(600)
    admission = create(pod_of({"app": "nginx:1.25"}), mode)

    verdict = await pinner(resolver).admit(admission)

    notice = (
        'container "app": the registry of nginx:1.25 is down: the digest known since '
        "2026-01-01T00:16:40Z is used"
    )
    image = texts(patched(admission, verdict))["app"]
    assert image == ("nginx:1.25" if mode is Mode.AUDIT else f"nginx:1.25@{OTHER}")
    assert verdict.pins == record_of(patched(admission, verdict))
    assert isinstance(verdict.pins["app"], Pin)
    assert verdict.pins["app"].source is Source.STALE
    assert verdict.notices == (notice,)
    assert verdict.warnings[0] == notice


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize("images", [{"app": "nginx:1.25"}, {"app": "gone:1", "web": "nginx:1.25"}])
async def test_a_dry_run_gets_the_same_answer(mode: Mode, images: dict[str, str]) -> None:
    answers = {"docker.io/library/gone:1": missing("gone:1")}
    admission = create(pod_of(images), mode)

    wet = await pinner(FakeResolver({**answers})).admit(admission)
    dry = await pinner(FakeResolver({**answers})).admit(replace(admission, dry_run=True))

    assert dry == wet


async def test_the_audit_log_hears_what_this_call_did() -> None:
    verdict = await pinner(FakeResolver()).admit(create(pod_of({"app": "nginx:1.25"})))

    assert verdict.audit == {
        "mode": "pin",
        "result": "pinned",
        "pins": to_annotation(verdict.pins),
    }


@pytest.mark.parametrize(
    ("mode", "result"),
    [(Mode.AUDIT, "audited"), (Mode.PIN, "unpinned"), (Mode.ENFORCE, "refused")],
)
async def test_the_audit_log_hears_of_failures(mode: Mode, result: str) -> None:
    resolver = FakeResolver({"docker.io/library/gone:1": missing("gone:1")})

    verdict = await pinner(resolver).admit(create(pod_of({"app": "gone:1"}), mode))

    assert verdict.audit == {
        "mode": mode.value,
        "result": result,
        "pins": '{"app":{"image":"gone:1","reason":"not_found"}}',
    }


@pytest.mark.parametrize("mode", Mode)
def test_where_tagpin_is_broken_the_mode_decides(mode: Mode) -> None:
    verdict = broken(mode)

    assert verdict.allowed is (mode is not Mode.ENFORCE)
    assert list(verdict.operations) == []
    notice = "tagpin failed to decide about this pod; its log says why"
    if mode is Mode.ENFORCE:
        assert verdict.result is Result.REFUSED
        assert verdict.message == notice
        assert verdict.notices == (notice,)
        assert verdict.warnings == ()
    else:
        assert verdict.result is Result.BROKEN
        assert verdict.warnings == verdict.notices == (f"{notice}; it runs as written",)


async def test_a_fault_of_ours_ends_no_other_image_and_is_not_swallowed() -> None:
    fault = ZeroDivisionError()
    resolver = FakeResolver({"docker.io/library/nginx:1.25": fault})

    verdict = await pinner(resolver).admit(create(pod_of({"app": "nginx:1.25", "db": "redis:7"})))

    assert verdict.faults == (fault,)
    assert isinstance(verdict.pins["db"], Pin)
    assert verdict.pins["app"].to_json() == {"image": "nginx:1.25", "reason": "bad_answer"}


async def test_nor_is_one_of_the_reader_of_pull_secrets() -> None:
    secrets = FakePullSecrets(ZeroDivisionError())

    with pytest.raises(ZeroDivisionError):
        await pinner(FakeResolver(), secrets).admit(create(pod_of({"app": "nginx"})))


# --- credentials ------------------------------------------------------------------------------


async def test_images_are_resolved_with_the_pull_secrets_of_the_pod() -> None:
    resolver, secrets = FakeResolver(), FakePullSecrets(Access(BOB))
    pod = pod_of(
        {"app": "nginx:1.25", "db": "redis:7"},
        imagePullSecrets=[{"name": "b"}, {"name": "a"}],
        serviceAccountName="builder",
    )

    await pinner(resolver, secrets).admit(create(pod))

    assert secrets.asked == [("shop", ("b", "a"), "builder")]
    assert resolver.keychains == [BOB, BOB]


async def test_remarks_on_pull_secrets_are_told_only_where_an_image_fails() -> None:
    remark = "pull secret regcred does not exist"
    resolver = FakeResolver({"docker.io/library/gone:1": missing("gone:1")})
    good, bad = create(pod_of({"app": "nginx:1.25"})), create(pod_of({"app": "gone:1"}))
    operator = pinner(resolver, FakePullSecrets(Access(Keychain(), (remark,))))

    fine = await operator.admit(good)
    warned = await operator.admit(bad)
    refused = await operator.admit(replace(bad, mode=Mode.ENFORCE))

    assert fine.warnings == ()
    assert warned.warnings[1:] == warned.notices[1:] == (remark,)
    assert refused.message.endswith(f"(not_found); {remark}")


# --- time -------------------------------------------------------------------------------------


async def test_all_images_of_a_pod_are_resolved_at_once() -> None:
    resolver = FakeResolver()
    images = {f"c{i}": f"app-{i}:1" for i in range(20)}

    await pinner(resolver).admit(create(pod_of(images)))

    assert resolver.most_at_once == 20


async def test_an_image_that_hangs_times_out_alone() -> None:
    resolver = FakeResolver({"slow.test/app:1": HANGS})
    admission = create(pod_of({"slow": "slow.test/app:1", "web": "nginx:1.25"}))

    verdict = await pinner(resolver, budget=0.5).admit(admission)

    assert texts(patched(admission, verdict)) == {
        "slow": "slow.test/app:1",
        "web": f"nginx:1.25@{NGINX}",
    }
    (warning,) = verdict.warnings
    assert warning.startswith('container "slow": slow.test did not answer in time (timeout): ')


async def test_there_is_one_deadline_for_all_images() -> None:
    resolver = FakeResolver({f"slow.test/app-{i}:1": HANGS for i in range(20)})
    images = {f"c{i}": f"slow.test/app-{i}:1" for i in range(20)}
    started = time.monotonic()

    verdict = await pinner(resolver, budget=0.1).admit(create(pod_of(images), Mode.ENFORCE))

    assert 0.1 <= time.monotonic() - started < 5
    assert all(0 < limit <= 0.1 for limit in resolver.limits)
    assert verdict.message.startswith("20 images cannot be pinned: ")


@pytest.mark.parametrize(("own", "callers"), [(0.05, 60.0), (60.0, 0.05)])
async def test_the_shorter_budget_counts(own: float, callers: float) -> None:
    resolver = FakeResolver({"slow.test/app:1": HANGS})
    started = time.monotonic()

    await pinner(resolver, budget=own).admit(
        create(pod_of({"slow": "slow.test/app:1"})), budget=callers
    )

    assert time.monotonic() - started < 5


async def test_the_last_known_digest_stands_in_for_an_answer_that_is_late() -> None:
    resolver = FakeResolver({"slow.test/app:1": HANGS})
    known = resolver.remember("slow.test/app:1", OTHER)
    resolver.clock.advance(60)
    admission = create(pod_of({"slow": "slow.test/app:1"}), Mode.ENFORCE)

    verdict = await pinner(resolver, budget=0.05).admit(admission)

    assert texts(patched(admission, verdict)) == {"slow": f"slow.test/app:1@{OTHER}"}
    assert verdict.pins == {"slow": Pin("slow.test/app:1", OTHER, Source.STALE, known.resolved_at)}
    assert len(verdict.notices) == 1


async def test_pull_secrets_that_hang_leave_half_of_the_time_to_public_images() -> None:
    resolver = FakeResolver({"slow.test/app:1": HANGS})
    started = time.monotonic()

    verdict = await pinner(resolver, FakePullSecrets(HANGS), budget=0.1).admit(
        create(pod_of({"app": "slow.test/app:1", "public": "nginx:1.25"}), Mode.ENFORCE)
    )

    assert time.monotonic() - started < 5
    assert 0 < resolver.limits[0] <= 0.05
    assert isinstance(verdict.pins["public"], Pin)
    assert verdict.message.startswith("1 image cannot be pinned: ")
    assert verdict.message.endswith("; the pull secrets could not be read in time")


# --- updates ----------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", WRITING)
async def test_an_update_asks_only_for_images_that_change(mode: Mode) -> None:
    resolver = FakeResolver()
    old = pod_of({"app": "old:1", "db": "redis:7"})
    admission = update(old, pod_of({"app": "nginx:1.25", "db": "redis:7"}), mode)

    verdict = await pinner(resolver).admit(admission)

    assert resolver.asked == ["nginx:1.25"]
    assert set(verdict.pins) == {"app"}
    assert texts(patched(admission, verdict)) == {"app": f"nginx:1.25@{NGINX}", "db": "redis:7"}


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize(
    "record",
    ["{}", "garbage", '{"app": {"image": "nginx:1.25", "reason": "timeout"}, "new": {"x": 1}}'],
)
async def test_an_unrelated_update_changes_nothing(mode: Mode, record: str) -> None:
    resolver, secrets = FakeResolver(), FakePullSecrets()
    old = pod_of({"app": "nginx:1.25"}, {PINS_ANNOTATION: record, "tagpin.dev/x": "y"})
    new = pod_of({"app": "nginx:1.25"}, {**old["metadata"]["annotations"], "note": "hello"})

    verdict = await pinner(resolver, secrets).admit(update(old, new, mode))

    assert verdict.allowed
    assert list(verdict.operations) == []
    assert resolver.asked == []
    assert secrets.asked == []


async def test_an_update_keeps_the_record_of_what_does_not_change() -> None:
    resolver = FakeResolver()
    log = Pin("log:1", OTHER, Source.REGISTRY, FakeClock().now())
    app = Failure("old:1", Reason.TIMEOUT)
    old = pod_of({"log": f"log:1@{OTHER}", "app": "old:1"}, annotated(log=log, app=app))
    new = pod_of({"log": f"log:1@{OTHER}", "app": "nginx:1.25"}, annotated(log=log, app=app))
    admission = update(old, new)

    verdict = await pinner(resolver).admit(admission)

    record = record_of(patched(admission, verdict))
    assert record == {"log": log, "app": verdict.pins["app"]}


@pytest.mark.parametrize("annotations", [None, {}, {PINS_ANNOTATION: "forged"}])
async def test_the_record_of_the_old_pod_outlives_an_update(annotations: Any) -> None:
    log = Pin("log:1", OTHER, Source.REGISTRY, FakeClock().now())
    old = pod_of({"log": f"log:1@{OTHER}"}, annotated(log=log))
    forged = annotations and {**annotations, "tagpin.dev/revision": "forged", "note": "kept"}
    admission = update(old, pod_of({"log": f"log:1@{OTHER}"}, forged))

    verdict = await pinner(FakeResolver()).admit(admission)

    after = workload.annotations(patched(admission, verdict))
    assert {key: value for key, value in after.items() if key != "note"} == annotated(log=log)


@pytest.mark.parametrize("mode", WRITING)
async def test_an_image_put_back_gets_its_recorded_digest_back(mode: Mode) -> None:
    resolver, secrets = FakeResolver(), FakePullSecrets()
    app = Pin("nginx:1.25", OTHER, Source.REGISTRY, FakeClock().now())
    old = pod_of({"app": f"nginx:1.25@{OTHER}"}, annotated(app=app))
    admission = update(old, pod_of({"app": "nginx:1.25"}, annotated(app=app)), mode)

    verdict = await pinner(resolver, secrets).admit(admission)

    assert patched(admission, verdict) == old
    assert resolver.asked == []
    assert secrets.asked == []
    assert verdict.warnings == ()


FORGERIES = {
    "another digest ran": Pin("nginx:1.25", REDIS, Source.REGISTRY),
    "another image ran": Pin("redis:7", OTHER, Source.REGISTRY),
    "given": Pin("nginx:1.25", OTHER, Source.GIVEN),
    "a failure": Failure("nginx:1.25", Reason.TIMEOUT),
}


@pytest.mark.parametrize("forged", FORGERIES.values(), ids=FORGERIES.keys())
@pytest.mark.parametrize("mode", WRITING)
async def test_a_forged_record_pins_nothing(mode: Mode, forged: Pin | Failure) -> None:
    old = pod_of({"app": f"nginx:1.25@{OTHER}"}, annotated(app=forged))
    admission = update(old, pod_of({"app": "nginx:1.25"}, annotated(app=forged)), mode)

    verdict = await pinner(FakeResolver()).admit(admission)

    assert texts(patched(admission, verdict)) == {"app": f"nginx:1.25@{NGINX}"}


async def test_a_record_that_comes_with_the_update_itself_pins_nothing() -> None:
    forged = Pin("nginx:1.25", OTHER, Source.REGISTRY)
    old = pod_of({"app": f"nginx:1.25@{OTHER}"})
    admission = update(old, pod_of({"app": "nginx:1.25"}, annotated(app=forged)))

    verdict = await pinner(FakeResolver()).admit(admission)

    assert texts(patched(admission, verdict)) == {"app": f"nginx:1.25@{NGINX}"}


async def test_no_digest_is_put_behind_a_digest() -> None:
    given = f"nginx@{REDIS}"
    forged = Pin(given, OTHER, Source.REGISTRY)
    old = pod_of({"app": f"{given}@{OTHER}"}, annotated(app=forged))
    claim = Pin("nginx", REDIS, Source.REGISTRY)
    admission = update(old, pod_of({"app": given}, annotated(app=claim)))

    verdict = await pinner(FakeResolver()).admit(admission)

    assert texts(patched(admission, verdict)) == {"app": given}


async def test_a_record_is_not_restored_at_creation() -> None:
    forged = Pin("nginx:1.25", OTHER, Source.REGISTRY)
    admission = create(
        pod_of({"app": "nginx:1.25"}, annotated(app=forged)),
        old=pod_of({"app": f"nginx:1.25@{OTHER}"}, annotated(app=forged)),
    )

    verdict = await pinner(FakeResolver()).admit(admission)

    assert texts(patched(admission, verdict)) == {"app": f"nginx:1.25@{NGINX}"}


@pytest.mark.parametrize("mode", WRITING)
async def test_an_ephemeral_container_is_pinned_without_a_record(mode: Mode) -> None:
    log = Pin("log:1", OTHER, Source.REGISTRY, FakeClock().now())
    old = pod_of({"log": f"log:1@{OTHER}"}, annotated(log=log))
    new = pod_of({"log": f"log:1@{OTHER}"}, {"tagpin.dev/forged": "x"})
    new["spec"]["ephemeralContainers"] = [{"name": "debugger", "image": "nginx:1.25"}]
    admission = update(old, new, mode, subresource="ephemeralcontainers")

    verdict = await pinner(FakeResolver()).admit(admission)

    path = "/spec/ephemeralContainers/0/image"
    assert verdict.operations == [{"op": "replace", "path": path, "value": f"nginx:1.25@{NGINX}"}]
    assert "debugger" in verdict.audit["pins"]


# --- records that come with a pod -------------------------------------------------------------


@pytest.mark.parametrize("mode", Mode)
async def test_records_that_come_with_a_new_pod_are_dropped(mode: Mode) -> None:
    forged = {
        **annotated(gone=Pin("redis:7", OTHER, Source.LEDGER)),
        "tagpin.dev/revision": "web-12345678",
        "tagpin.dev/": "x",
        "tagpin.dev/a~b/c": "y",
        "example.com/tagpin.dev": "kept",
    }
    admission = create(pod_of({"app": f"nginx@{OTHER}"}, forged), mode)

    verdict = await pinner(FakeResolver()).admit(admission)

    after = patched(admission, verdict)
    assert workload.annotations(after).keys() == {PINS_ANNOTATION, "example.com/tagpin.dev"}
    assert record_of(after) == verdict.pins == {"app": Pin(f"nginx@{OTHER}", OTHER, Source.GIVEN)}


async def test_records_are_dropped_even_where_nothing_is_to_be_recorded() -> None:
    admission = create(pod_of({}, {PINS_ANNOTATION: "{}", "tagpin.dev/revision": "forged"}))

    verdict = await pinner(FakeResolver()).admit(admission)

    assert workload.annotations(patched(admission, verdict)) == {}


@pytest.mark.parametrize("source", Source)
async def test_a_record_that_the_cache_cannot_confirm_is_a_given_digest(source: Source) -> None:
    resolver = FakeResolver()
    resolver.remember("nginx:1.25", NGINX)
    forged = Pin("nginx:1.25", OTHER, source, resolver.clock.now())
    admission = create(pod_of({"app": f"nginx:1.25@{OTHER}"}, annotated(app=forged)))

    verdict = await pinner(resolver).admit(admission)

    assert resolver.asked == []
    assert verdict.pins == {"app": Pin(f"nginx:1.25@{OTHER}", OTHER, Source.GIVEN)}
    assert texts(patched(admission, verdict)) == texts(admission.pod)


@pytest.mark.parametrize("asker", [Keychain(), BOB], ids=["anonymous", "bob"])
@pytest.mark.parametrize("knower", [Keychain(), BOB], ids=["anonymous", "bob"])
async def test_only_what_the_pods_own_credentials_were_told_confirms(
    asker: Keychain, knower: Keychain
) -> None:
    resolver = FakeResolver()
    known = resolver.remember("nginx:1.25", NGINX, knower)
    claim = Pin("nginx:1.25", NGINX, Source.REGISTRY, known.resolved_at)
    admission = create(pod_of({"app": f"nginx:1.25@{NGINX}"}, annotated(app=claim)))

    verdict = await pinner(resolver, FakePullSecrets(Access(asker))).admit(admission)

    unconfirmed = Pin(f"nginx:1.25@{NGINX}", NGINX, Source.GIVEN)
    assert verdict.pins == {"app": claim if asker == knower else unconfirmed}


@pytest.mark.parametrize(
    ("source", "recorded"),
    [
        (Source.REGISTRY, Source.REGISTRY),
        (Source.CACHE, Source.CACHE),
        (Source.STALE, Source.STALE),
        (Source.LEDGER, Source.CACHE),
        (Source.SIBLINGS, Source.CACHE),
        (Source.GIVEN, Source.CACHE),
    ],
)
async def test_a_record_is_believed_as_far_as_the_cache_knows(
    source: Source, recorded: Source
) -> None:
    resolver = FakeResolver()
    known = resolver.remember("nginx:1.25", NGINX)
    claim = Pin("nginx:1.25", NGINX, source, known.resolved_at)
    admission = create(pod_of({"app": f"nginx:1.25@{NGINX}"}, annotated(app=claim)))

    verdict = await pinner(resolver).admit(admission)

    assert verdict.pins == {"app": replace(claim, source=recorded)}
    assert resolver.asked == []


async def test_a_record_with_another_time_is_told_in_our_words() -> None:
    resolver = FakeResolver()
    claim = Pin("nginx:1.25", NGINX, Source.REGISTRY, resolver.clock.now())
    resolver.clock.advance(3)
    known = resolver.remember("nginx:1.25", NGINX)
    admission = create(pod_of({"app": f"nginx:1.25@{NGINX}"}, annotated(app=claim)))

    verdict = await pinner(resolver).admit(admission)

    assert verdict.pins == {"app": Pin("nginx:1.25", NGINX, Source.CACHE, known.resolved_at)}


# --- a second pass ----------------------------------------------------------------------------


def trouble() -> FakeResolver:
    """Registries of all kinds: fine, down with and without a memory, and without the image."""
    resolver = FakeResolver(
        {
            "docker.io/library/gone:1": missing("gone:1"),
            "down.test/app:1": missing("down.test/app:1", Reason.UNREACHABLE),
            "down.test/known:1": missing("down.test/known:1", Reason.UNREACHABLE),
            "slow.test/app:1": missing("slow.test/app:1", Reason.TIMEOUT),
            "slow.test/known:1": missing("slow.test/known:1", Reason.TIMEOUT),
        }
    )
    resolver.remember("down.test/known:1", OTHER)
    resolver.remember("slow.test/known:1", OTHER)
    resolver.clock.advance(60)
    resolver.remember("cached.test/app:1", OTHER)
    return resolver


IMAGES = [
    "nginx:1.25",
    "redis",
    f"redis@{OTHER}",
    "cached.test/app:1",
    "registry.example.com/mesh/proxy:1",
    "gone:1",
    "nginx@latest",
    "down.test/app:1",
    "down.test/known:1",
    "slow.test/app:1",
    "slow.test/known:1",
]


async def twice(
    resolver: FakeResolver, admission: Admission, ledger: FakeLedger | None = None
) -> tuple[Verdict, Verdict]:
    """The verdicts of two passes, as when another webhook changes the pod in between."""
    operator = pinner(resolver, ledger=ledger)
    first = await operator.admit(admission)
    again = replace(admission, pod=patched(admission, first))
    return first, await operator.admit(again)


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize("image", IMAGES)
async def test_a_second_pass_over_a_new_pod_is_empty(mode: Mode, image: str) -> None:
    admission = create(pod_of({"app": image, "log": "log:1"}, {PINS_ANNOTATION: "forged"}), mode)

    first, second = await twice(trouble(), admission)

    assert list(second.operations) == []
    assert second.allowed is first.allowed
    assert second.notices == first.notices


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize("image", IMAGES)
async def test_a_second_pass_over_an_update_is_empty(mode: Mode, image: str) -> None:
    log = Pin("log:1", OTHER, Source.STALE, FakeClock().now())
    before = {PINS_ANNOTATION: to_annotation({"log": log}).replace(",", ", ")}
    old = pod_of({"app": "old:1", "log": f"log:1@{OTHER}"}, before)
    admission = update(old, pod_of({"app": image, "log": "log:1"}, before), mode)

    first, second = await twice(trouble(), admission)

    assert first.allowed is second.allowed
    assert list(second.operations) == []


@pytest.mark.parametrize("mode", Mode)
async def test_a_second_pass_does_not_stumble_over_fractions_of_a_second(mode: Mode) -> None:
    resolver = FakeResolver(clock=FakeClock(seconds=1000.75))

    _, second = await twice(resolver, create(pod_of({"app": "nginx:1.25"}), mode))

    assert list(second.operations) == []
    assert {pin.to_json()["source"] for pin in second.pins.values()} == {"registry"}


async def test_a_container_that_is_injected_later_is_pinned_too() -> None:
    resolver = FakeResolver()
    admission = create(pod_of({"app": "nginx:1.25"}))
    first = await pinner(resolver).admit(admission)
    pod = patched(admission, first)
    pod["spec"]["containers"].insert(0, {"name": "proxy", "image": "redis:7"})
    again = replace(admission, pod=pod)

    second = await pinner(resolver).admit(again)

    after = patched(again, second)
    assert texts(after) == {"proxy": f"redis:7@{REDIS}", "app": f"nginx:1.25@{NGINX}"}
    assert record_of(after) == {**first.pins, **second.pins}
    assert record_of(after)["app"] == first.pins["app"]


async def test_a_second_pass_over_more_images_than_fit_into_the_record_is_empty() -> None:
    name = f"{'a.' * 100}test/{'x' * 200}"
    images = {f"container-{i}": f"{name}/{i}:{'t' * 100}" for i in range(MAX_IMAGES)}
    images["given"] = f"nginx@{OTHER}"

    first, second = await twice(FakeResolver(), create(pod_of(images)))

    assert first.result is Result.PINNED
    assert list(second.operations) == []


# --- what whoever creates a pod can ask for ----------------------------------------------------


async def test_only_so_many_images_of_a_pod_are_asked_for() -> None:
    resolver = FakeResolver()
    images = {f"c{i}": f"nginx:{i}" for i in range(MAX_IMAGES + 50)}

    verdict = await pinner(resolver).admit(create(pod_of(images), Mode.ENFORCE))

    assert len(resolver.asked) == MAX_IMAGES
    assert verdict.message.startswith("50 images cannot be pinned: ")
    assert f"only {MAX_IMAGES} images of a pod are resolved (unsupported)" in verdict.message


@pytest.mark.parametrize(("count", "is_known"), [(MAX_IMAGES, True), (MAX_IMAGES + 1, False)])
async def test_pods_of_very_many_images_are_read_once(count: int, *, is_known: bool) -> None:
    """Whoever is in a hurry leaves them: what is not known is read by `admit`."""
    images = {f"c{i}": f"nginx@{digest_of('nginx')}" for i in range(count)}
    admission = create(pod_of(images))

    known = pinner(FakeResolver()).known(admission)

    assert (known is not None) is is_known
    assert (await pinner(FakeResolver()).admit(admission)).result is Result.UNTOUCHED


@pytest.mark.parametrize("mode", Mode)
async def test_messages_name_only_so_many_images(mode: Mode) -> None:
    images = {f"c{i}": "Bad" + "x" * 100_000 for i in range(MAX_TOLD + 5)}

    verdict = await pinner(FakeResolver()).admit(create(pod_of(images), mode))

    for messages in ((verdict.message,) if mode.refuses else (), verdict.warnings, verdict.notices):
        if messages:
            assert "and 5 more" in " ".join(messages)
            assert len(" ".join(messages)) < 100 * MAX_TOLD + MAX_TOLD * 400


# --- the audit log on a second pass ------------------------------------------------------------


@pytest.mark.parametrize("mode", Mode)
async def test_a_second_pass_has_keys_of_its_own_in_the_audit_log(mode: Mode) -> None:
    """The API server never overwrites an audit annotation."""
    first, second = await twice(FakeResolver(), create(pod_of({"app": "nginx:1.25"}), mode))

    assert set(first.audit) == {"mode", "result", "pins"}
    assert set(second.audit) == {f"reinvoked-{key}" for key in first.audit}


async def test_an_update_that_puts_an_image_back_is_no_second_pass() -> None:
    created = create(pod_of({"app": "nginx:1.25"}))
    old = patched(created, await pinner(FakeResolver()).admit(created))
    new = pod_of({"app": "nginx:1.25"})
    new["metadata"]["annotations"] = dict(old["metadata"]["annotations"])

    verdict = await pinner(FakeResolver()).admit(update(old, new))

    assert "result" in verdict.audit


async def test_an_ephemeral_container_is_told_of_by_an_event() -> None:
    """The API server keeps no annotations there."""
    old = pod_of({"app": "nginx:1.25"})
    new = pod_of({"app": "nginx:1.25"})
    new["spec"]["ephemeralContainers"] = [{"name": "debugger", "image": "busybox:1"}]
    admission = update(old, new, subresource="ephemeralcontainers")

    verdict = await pinner(FakeResolver()).admit(admission)

    digest = digest_of("docker.io/library/busybox:1")
    assert verdict.facts == (f'container "debugger": busybox:1 runs as {digest} (registry)',)


# --- any pod ----------------------------------------------------------------------------------

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=6), inner),
    max_leaves=5,
)
PINS_OF_ANY_KIND = st.builds(
    Pin,
    st.sampled_from(IMAGES),
    st.sampled_from([NGINX, OTHER, digest_of("docker.io/library/redis:latest")]),
    st.sampled_from(Source),
    st.none() | st.just(FakeClock().now()),
)
NAMES = ["a", "b", "c", "d", "volume/v"]
annotations = (
    st.none()
    | json_values
    | st.fixed_dictionaries(
        {},
        optional={
            PINS_ANNOTATION: st.text(max_size=10)
            | st.dictionaries(st.sampled_from(NAMES), PINS_OF_ANY_KIND).map(to_annotation),
            "tagpin.dev/a~b/c": st.text(max_size=3),
            "note": st.text(max_size=3),
        },
    )
)
images = (
    st.sampled_from(IMAGES)
    | st.builds("{}@{}".format, st.sampled_from(IMAGES), st.sampled_from([NGINX, OTHER]))
    | json_values
)
metadata = json_values | st.fixed_dictionaries({}, optional={"annotations": annotations})


@st.composite
def pods(draw: st.DrawFn) -> dict[str, Any]:
    """Pods whose containers have names of their own, as the API server wants it."""
    containers = [
        {"name": name, "image": draw(images)} for name in draw(st.sets(st.sampled_from("abcd")))
    ]
    middle = draw(st.integers(0, len(containers)))
    spec: dict[str, Any] = {
        "containers": draw(st.just(containers[:middle]) | json_values),
        "initContainers": containers[middle:],
    }
    if draw(st.booleans()):
        reference = draw(images)
        spec["volumes"] = [draw(json_values), {"name": "v", "image": {"reference": reference}}]
    pod = {"spec": draw(st.just(spec) | json_values)}
    return pod | draw(st.just({}) | st.builds(lambda value: {"metadata": value}, metadata))


admissions = st.builds(
    Admission,
    mode=st.sampled_from(Mode),
    operation=st.sampled_from(["CREATE", "UPDATE"]),
    namespace=st.just("shop"),
    pod=pods(),
    old=pods(),
    subresource=st.sampled_from(["", "", "ephemeralcontainers"]),
    dry_run=st.booleans(),
).map(lambda each: each if each.operation == "UPDATE" else replace(each, old={}, subresource=""))

REPLICA_SET = {
    "apiVersion": "apps/v1",
    "kind": "ReplicaSet",
    "name": "web-5d4f",
    "uid": "uid-rs",
    "controller": True,
}
OF_A_REVISION = {"ownerReferences": [REPLICA_SET], "labels": {"pod-template-hash": "5d4f"}}
REVISION = Revision(
    "shop", Owner("apps/v1", "Deployment", "web", "uid-web"), "ReplicaSet", "web-5d4f", "5d4f"
)
BEFORE = replace(REVISION, name="web-1", hash="1")


@st.composite
def pods_of_the_revision(draw: st.DrawFn) -> dict[str, Any]:
    """Pods as their controller makes them, and as they are when they come again."""
    tags = [image for image in IMAGES if "@sha256:" not in image]
    images = draw(st.lists(st.sampled_from(tags), unique=True, min_size=1, max_size=3))
    ends = st.sampled_from(["", "", f"@{NGINX}", f"@{OTHER}"])
    texts = {name: image + draw(ends) for name, image in zip("abc", images, strict=False)}
    claims = {
        name: Pin(image, Digest.parse(digest), draw(st.sampled_from(Source)), FakeClock().now())
        for name, text in texts.items()
        for image, at, digest in [text.rpartition("@")]
        if at and digest.startswith("sha256:") and draw(st.booleans())
    }
    pod = pod_of(texts, {**annotated(**claims), "note": "x"} if claims else None)
    pod["metadata"] |= OF_A_REVISION
    return pod


of_the_revision = st.builds(
    Admission,
    mode=st.sampled_from(Mode),
    operation=st.just("CREATE"),
    namespace=st.just("shop"),
    pod=pods_of_the_revision(),
    user=st.sampled_from([MANAGER, MANAGER, MANAGER, "ann"]),
    dry_run=st.sampled_from([False, False, True]),
)
recorded_pins = st.builds(
    Pin,
    st.sampled_from(IMAGES),
    st.just(OTHER),
    st.sampled_from([Source.REGISTRY, Source.CACHE, Source.SIBLINGS, Source.STALE]),
    st.none() | st.just(FakeClock().now()),
    st.booleans(),
)
recorded = st.dictionaries(st.sampled_from(IMAGES), recorded_pins, max_size=4).map(
    lambda pins: {image: replace(pin, image=image) for image, pin in pins.items()}
)


@st.composite
def ledgers(draw: st.DrawFn) -> FakeLedger:
    """The ledger in any state, with all its digests being OTHER."""
    records: dict[str, ImagePin] = {}
    for revision in draw(st.sets(st.sampled_from([REVISION, BEFORE]))):
        of = draw(st.sampled_from([revision, revision, replace(revision, hash="forged")]))
        records[revision.record_name] = ImagePin(of, draw(recorded))
    overtaken = REVISION.record_name not in records and draw(st.booleans())
    fault = st.sampled_from([*[""] * 7, "it is so"])
    return FakeLedger(
        records=records,
        pods=draw(st.lists(pods_of_the_revision() | pods(), max_size=2)),
        unproven=draw(fault),
        unreadable=draw(fault),
        unlistable=draw(fault),
        unwritable="" if overtaken else draw(fault),
        is_fault=draw(st.booleans()),
        unanswered="" if overtaken else draw(fault),
        overtaken_by=ImagePin(REVISION, draw(recorded)) if overtaken else None,
    )


@settings(deadline=None)
@given(admissions | of_the_revision, ledgers())
async def test_no_image_becomes_anything_but_its_text_and_a_digest_that_is_vouched_for(
    admission: Admission, ledger: FakeLedger
) -> None:
    resolver = trouble()
    original = copy.deepcopy(admission)
    running = {image.text for pod in ledger.pods for image in workload.images(pod)}

    verdict = await pinner(resolver, ledger=ledger).admit(admission)

    assert admission == original
    before = {image.pointer: image.text for image in workload.images(admission.pod)}
    after = {image.pointer: image.text for image in workload.images(patched(admission, verdict))}
    ran = {image.pointer: image.text for image in workload.images(admission.old)}
    assert before.keys() == after.keys()
    for pointer, text in after.items():
        name, _, digest = text.rpartition("@")
        vouched = {str(OTHER), *(str(digest_of(_normalised(image))) for image in resolver.asked)}
        recorded = {pin.pinned for each in ledger.records.values() for pin in each.pins.values()}
        assert (
            text == before[pointer]
            or (name == before[pointer] and text in {ran.get(pointer), *running, *recorded})
            or (name == before[pointer] and name in resolver.asked and digest in vouched)
        )
    for pin in verdict.pins.values():
        known = isinstance(pin, Pin) and pin.source in (Source.LEDGER, Source.SIBLINGS)
        assert not known or admission.user == MANAGER
    if admission.mode is Mode.AUDIT or not verdict.allowed:
        assert after == before
    json.dumps(verdict.audit)
    assert all(isinstance(value, str) for value in verdict.audit.values())


def _normalised(image: str) -> str:
    return {"nginx:1.25": "docker.io/library/nginx:1.25"}.get(
        image, "docker.io/library/redis:latest"
    )


@settings(deadline=None)
@given(admissions | of_the_revision, ledgers())
async def test_whatever_the_pod_a_second_pass_is_empty(
    admission: Admission, ledger: FakeLedger
) -> None:
    # The first pass makes the record whose gaps the second one asks the siblings about.
    ledger = replace(ledger, unlistable="")
    is_overtaken = ledger.overtaken_by is not None

    first, second = await twice(trouble(), admission, ledger)

    changed = {each["path"] for each in second.operations}
    if ledger.unwritable:  # what is stale may not be written on a pod's word: a reason of its own
        assert bool(second.standing.unrecorded) is bool(first.standing.unrecorded)
        assert changed <= {"/metadata/annotations/tagpin.dev~1unrecorded"}
    elif not is_overtaken or all(isinstance(pin, Pin) for pin in first.pins.values()):
        assert changed == set()  # or the record of others serves an image that failed
    assert second.allowed is first.allowed


@settings(deadline=None)
@given(admissions | of_the_revision, ledgers())
async def test_nothing_is_recorded_but_for_a_new_pod_that_is_let_in_with_digests(
    admission: Admission, ledger: FakeLedger
) -> None:
    before = dict(ledger.records)

    verdict = await pinner(trouble(), ledger=ledger).admit(admission)

    for name, record in before.items():
        assert ledger.records[name].is_of(record.revision)
        assert ledger.records[name].pins.items() >= record.pins.items()
    if ledger.records != before:
        assert verdict.allowed
    if "write" in ledger.calls:
        assert admission.mode is not Mode.AUDIT
        assert not admission.dry_run
        assert (admission.operation, admission.subresource) == ("CREATE", "")
        assert admission.user == MANAGER


@settings(deadline=None)
@given(admissions | of_the_revision, ledgers())
async def test_in_enforce_no_tag_gets_in_but_an_exempt_one(
    admission: Admission, ledger: FakeLedger
) -> None:
    admission = replace(admission, mode=Mode.ENFORCE)

    verdict = await pinner(trouble(), ledger=ledger).admit(admission)

    if verdict.allowed:
        subjects = {
            image.pointer
            for image in (
                workload.changed_images(admission.pod, admission.old)
                if admission.operation == "UPDATE"
                else workload.images(admission.pod)
            )
        }
        entered = [
            image.text
            for image in workload.images(patched(admission, verdict))
            if image.pointer in subjects
        ]
        assert all("@sha256:" in text or "/mesh/" in text for text in entered)
