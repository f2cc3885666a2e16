"""Which images must become digests, and which pods are nobody's business."""

from typing import Any

import pytest

from tagpin.errors import ConfigurationError
from tagpin.policy import Decision, Mode, Rules, decide, exempt_patterns, leaves_alone
from tagpin.reference import Reference
from tagpin.workload import MIRROR_ANNOTATION

RULES = Rules.from_settings((), ("kube-system", "tagpin-system"))


def exempts(pattern: str, image: str) -> bool:
    rules = Rules.from_settings((pattern,), ())
    return decide(Reference.parse(image), rules) is Decision.LEAVE


def leaves(
    pod: dict[str, Any],
    mode: Mode = Mode.PIN,
    namespace: str = "shop",
    groups: tuple[str, ...] = (),
) -> bool:
    return leaves_alone(pod, mode=mode, namespace=namespace, groups=groups, rules=RULES)


@pytest.mark.parametrize(
    ("mode", "writes_images", "refuses", "knows_opt_out"),
    [
        (Mode.AUDIT, False, False, True),
        (Mode.PIN, True, False, True),
        (Mode.ENFORCE, True, True, False),
    ],
)
def test_a_mode_says_what_it_does(
    mode: Mode, writes_images: bool, refuses: bool, knows_opt_out: bool
) -> None:
    assert mode.writes_images is writes_images
    assert mode.refuses is refuses
    assert mode.knows_opt_out is knows_opt_out


def test_every_image_is_pinned_unless_it_is_exempt() -> None:
    assert decide(Reference.parse("nginx"), RULES) is Decision.PIN


HUB_NGINX = "docker.io/library/nginx"


@pytest.mark.parametrize(
    ("pattern", "image"),
    [
        (HUB_NGINX, "nginx"),
        (HUB_NGINX, "nginx:1.25"),
        (HUB_NGINX, "docker.io/library/nginx:1.25"),
        (HUB_NGINX, "docker.io/nginx"),
        (HUB_NGINX, "index.docker.io/nginx"),
        (HUB_NGINX, "index.docker.io/library/nginx"),
        ("docker.io/acme/app", "acme/app:1"),
        ("docker.io/acme/app", "docker.io/acme/app@sha256:" + "a" * 64),
        ("registry.example.com/mesh/proxy", "registry.example.com/mesh/proxy:1"),
        ("registry.example.com/mesh/", "registry.example.com/mesh/proxy:1"),
        ("registry.example.com/mesh/", "registry.example.com/mesh/a/b/c:1"),
        ("registry.example.com/", "registry.example.com/mesh/proxy:1"),
        ("registry.example.com:5000/", "registry.example.com:5000/app"),
        ("[2001:db8::1]:5000/", "[2001:db8::1]:5000/app"),
        ("localhost/", "localhost/app"),
        ("localhost:5000/", "localhost:5000/app"),
        ("docker.io/", "nginx"),
        ("docker.io/", "acme/app"),
        ("docker.io/library/", "nginx:1.25"),
        ("docker.io/acme/", "acme/app"),
        ("docker.io/acme/", "acme/app/worker"),
        ("registry.example.com/mesh/proxy", "REGISTRY.example.com/mesh/proxy:1"),
        ("registry.example.com/", "registry.EXAMPLE.com/app"),
        ("[2001:db8::1]/", "[2001:DB8::1]/app"),
    ],
)
def test_a_pattern_exempts_an_image(pattern: str, image: str) -> None:
    assert exempts(pattern, image)


@pytest.mark.parametrize(
    ("pattern", "image"),
    [
        (HUB_NGINX, "nginx-extras"),
        (HUB_NGINX, "acme/nginx"),
        (HUB_NGINX, "registry.example.com/library/nginx"),
        (HUB_NGINX + "/", "nginx"),
        ("docker.io/acme/app", "acme/app2"),
        ("docker.io/acme/app", "acme/app/worker"),
        ("docker.io/acme/", "acme2/app"),
        ("docker.io/library/", "registry.example.com/library/nginx"),
        ("registry.example.com/", "registry.example.com.evil.test/app"),
        ("registry.example.com/", "registry.example.com:5000/app"),
        ("registry.example.com:5000/", "registry.example.com/app"),
        ("registry.example.com/mesh", "registry.example.com/mesh/proxy"),
        ("registry.example.com/mesh/", "registry.example.com/meshed/proxy"),
        ("registry.example.com/mesh/", "registry.example.com/mesh"),
        ("docker.io/", "registry.example.com/app"),
        ("registry-1.docker.io/", "nginx"),
    ],
)
def test_a_pattern_exempts_no_other_image(pattern: str, image: str) -> None:
    assert not exempts(pattern, image)


@pytest.mark.parametrize(
    ("pattern", "full"),
    [
        ("nginx", HUB_NGINX),
        ("library/nginx", HUB_NGINX),
        ("docker.io/nginx", HUB_NGINX),
        ("index.docker.io/library/nginx", HUB_NGINX),
        ("nginx/", "docker.io/nginx/"),
        ("acme/app", "docker.io/acme/app"),
        ("acme/", "docker.io/acme/"),
        ("index.docker.io/", "docker.io/"),
        ("Registry.Example.COM/mesh/proxy", "registry.example.com/mesh/proxy"),
        ("REGISTRY.example.com/", "registry.example.com/"),
        ("[2001:DB8::1]/", "[2001:db8::1]/"),
    ],
)
def test_a_pattern_is_written_in_full(pattern: str, full: str) -> None:
    with pytest.raises(ConfigurationError) as error:
        Rules.from_settings((pattern,), ())

    assert str(error.value) == f"exempt: {pattern!r} is not in full: write {full!r}"
    Rules.from_settings((full,), ())


@pytest.mark.parametrize(
    ("text", "patterns"),
    [
        ("", ()),
        ("# nothing yet\n", ()),
        ("docker.io/acme/\n", ("docker.io/acme/",)),
        ("docker.io/acme/", ("docker.io/acme/",)),
        (
            "docker.io/acme/  # ours\n\n \t\nregistry.test/mesh/",
            ("docker.io/acme/", "registry.test/mesh/"),
        ),
        ("  docker.io/acme/\r\n#registry.test/\r\n", ("docker.io/acme/",)),
        ("docker.io/acme/ registry.test/", ("docker.io/acme/ registry.test/",)),
        ("docker.io/acme/\vregistry.test/", ("docker.io/acme/\vregistry.test/",)),
        ("docker.io/acme/\rregistry.test/", ("docker.io/acme/\rregistry.test/",)),
    ],
)
def test_the_file_has_a_pattern_a_line(text: str, patterns: tuple[str, ...]) -> None:
    assert exempt_patterns(text) == patterns


def test_one_of_many_patterns_is_enough() -> None:
    rules = Rules.from_settings(("docker.io/acme/", HUB_NGINX, "registry.example.com/mesh/"), ())

    decisions = [
        decide(Reference.parse(image), rules)
        for image in ("acme/app", "nginx", "registry.example.com/mesh/proxy", "redis")
    ]

    assert decisions == [Decision.LEAVE, Decision.LEAVE, Decision.LEAVE, Decision.PIN]


@pytest.mark.parametrize(
    ("pattern", "complaint"),
    [
        ("nginx:1.25", "has a tag or a digest"),
        ("registry.test", "for all of a registry write 'registry.test/'"),
        ("registry:5000", "has a tag or a digest"),
        ("nginx@sha256:" + "a" * 64, "has a tag or a digest"),
        ("acme/app:1", "has a tag or a digest"),
        ("", "expected"),
        ("/", "expected"),
        ("//", "expected"),
        (":/", "expected"),
        ("a b./", "expected"),
        ("*.example.com/", "expected"),
        ("registry.example.com/*", "expected"),
        ("registry.example.com/mesh//", "expected"),
        ("https://registry.example.com/", "expected"),
        ("acme/app:1/", "expected"),
        ("acme/app@sha256:" + "a" * 64 + "/", "expected"),
        ("nginx:latest/", "expected"),
        ("acme/App", "expected"),
        ("Nginx", "expected"),
        ("nginx\n", "expected"),
        ("a" * 64, "expected"),
    ],
)
def test_a_pattern_that_would_never_match_is_a_mistake(pattern: str, complaint: str) -> None:
    with pytest.raises(ConfigurationError, match="exempt: ") as error:
        Rules.from_settings((pattern,), ())

    assert complaint in str(error.value)
    assert repr(pattern) in str(error.value)


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize("namespace", ["kube-system", "tagpin-system"])
def test_untouched_namespaces_are_left_alone_in_every_mode(mode: Mode, namespace: str) -> None:
    assert leaves({}, mode, namespace)


@pytest.mark.parametrize("namespace", ["shop", "", "kube-system2"])
def test_other_namespaces_are_not(namespace: str) -> None:
    assert not leaves({}, namespace=namespace)


@pytest.mark.parametrize(
    ("mode", "alone"), [(Mode.AUDIT, True), (Mode.PIN, True), (Mode.ENFORCE, False)]
)
def test_a_label_takes_a_pod_out_unless_enforced(mode: Mode, alone: bool) -> None:
    assert leaves({"metadata": {"labels": {"tagpin.dev/pin": "disabled"}}}, mode) is alone


@pytest.mark.parametrize(
    "metadata",
    [
        {"labels": {"tagpin.dev/pin": "enabled"}},
        {"labels": {"tagpin.dev/pin": "Disabled"}},
        {"labels": {"tagpin.dev/pin": ["disabled"]}},
        {"annotations": {"tagpin.dev/pin": "disabled"}},
        {"labels": None},
        None,
    ],
)
def test_nothing_else_takes_a_pod_out(metadata: Any) -> None:
    assert not leaves({"metadata": metadata})


@pytest.mark.parametrize("mode", Mode)
def test_a_mirror_pod_is_left_alone_if_a_node_says_so(mode: Mode) -> None:
    pod = {"metadata": {"annotations": {MIRROR_ANNOTATION: "hash"}}}

    assert leaves(pod, mode, groups=("system:nodes",))
    assert not leaves(pod, mode, groups=("system:authenticated",))


@pytest.mark.parametrize("mode", Mode)
def test_a_pod_that_is_being_deleted_is_left_alone(mode: Mode) -> None:
    assert leaves({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}, mode)
