"""What the operator said of a registry is found by its host, or by a glob of it."""

from typing import Any

import pytest
from yarl import URL

from tagpin.errors import ConfigurationError
from tagpin.registry.flow import Registry
from tagpin.registry.places import Places, RegistryPolicy, RegistrySettings


def listed(*hosts: str) -> Places:
    return Places(RegistrySettings(host) for host in hosts)


def found(places: Places, domain: str) -> str | None:
    settings = places.settings(domain)
    return settings.host if settings else None


# Hosts and globs


@pytest.mark.parametrize(
    ("pattern", "domain"),
    [
        ("*.corp.example", "r.corp.example"),
        ("*.corp.example", "R.Corp.Example"),
        ("*.CORP.example", "r.corp.example"),
        ("r.*.example", "r.corp.example"),
        ("r.corp.*", "r.corp.example"),
        ("*-good.corp.example", "very-good.corp.example"),
        ("r?.corp.example", "r1.corp.example"),
        ("r[0-9a].corp.example", "ra.corp.example"),
        ("r[^0-9].corp.example", "ra.corp.example"),
        ("*.corp.example:5000", "r.corp.example:5000"),
        ("*.corp.example", "r.corp.example:443"),
        ("*.corp.example:443", "r.corp.example"),
        ("10.0.0.*", "10.0.0.7"),
        ("*.docker.io", "docker.io"),
        ("reg*:5000", "registry:5000"),
    ],
)
def test_a_glob_is_for_the_hosts_that_it_matches_label_by_label(pattern: str, domain: str) -> None:
    assert found(listed(pattern), domain) == pattern
    assert listed(pattern).registry(domain).listed


@pytest.mark.parametrize(
    ("pattern", "domain"),
    [
        ("*.corp.example", "corp.example"),
        ("*.corp.example", "a.b.corp.example"),
        ("*.example", "r.corp.example"),
        ("*.corp.example", "r.corp.example:5000"),
        ("*.corp.example:5000", "r.corp.example"),
        ("*.corp.example:5000", "r.corp.example:5001"),
        ("r?.corp.example", "r.corp.example"),
        ("*.corp.example", "r.corp.example.evil.example"),
        ("*.corp.example", "evil.example"),
        ("?*:5000", "[::1]:5000"),
    ],
)
def test_a_glob_is_for_no_other_host(pattern: str, domain: str) -> None:
    assert found(listed(pattern), domain) is None
    assert not listed(pattern).registry(domain).listed


def test_a_host_in_full_counts_before_any_glob() -> None:
    places = listed("*.corp.example", "r.corp.example", "?.corp.example")
    assert found(places, "r.corp.example") == "r.corp.example"


def test_of_several_globs_the_more_specific_one_counts() -> None:
    hosts = ["*.*.example", "*.corp.example", "r.*.example", "r*.corp.example", "r1.*.example"]
    for order in (hosts, hosts[::-1]):
        places = listed(*order)
        assert found(places, "x.team.example") == "*.*.example"
        assert found(places, "x.corp.example") == "*.corp.example"
        assert found(places, "r.team.example") == "r.*.example"
        assert found(places, "r2.corp.example") == "r*.corp.example"
        assert found(places, "r1.corp.example") == "r1.*.example"


def test_nothing_that_was_said_is_inherited_from_another_entry() -> None:
    places = Places(
        [RegistrySettings("*.corp.example", timeout=2), RegistrySettings("r.corp.example")]
    )
    settings = places.settings("r.corp.example")
    assert settings is not None
    assert settings.timeout is None


@pytest.mark.parametrize("host", ["docker.io", "registry-1.docker.io"])
def test_docker_hub_has_two_names(host: str) -> None:
    places = listed(host)
    assert found(places, "docker.io") == host
    assert found(places, "registry-1.docker.io") == host
    assert places.settings(URL("https://registry-1.docker.io/v2/")) is not None
    assert str(places.registry("docker.io").origin) == "https://registry-1.docker.io"


@pytest.mark.parametrize(
    ("listing", "url"),
    [
        ("r.example", "https://r.example/v2/"),
        ("r.example", "https://R.Example.:443/v2/"),
        ("[::1]:5000", "https://[0:0::1]:5000/v2/"),
        ("*.corp.example", "https://r.corp.example./token"),
    ],
)
def test_a_place_is_known_by_any_spelling_of_its_url(listing: str, url: str) -> None:
    assert listed(listing).settings(URL(url)) is not None


@pytest.mark.parametrize("domain", ["r.example:443", "r.example:0443", "R.EXAMPLE"])
def test_a_registry_is_one_however_its_place_is_spelled(domain: str) -> None:
    assert listed().registry(domain).origin == listed().registry("r.example").origin


def test_plain_http_of_a_host_in_full_counts_before_a_glob() -> None:
    places = Places(
        [RegistrySettings("r.corp.example", http=True), RegistrySettings("*.corp.example")]
    )
    assert str(places.registry("r.corp.example").origin) == "http://r.corp.example"
    assert str(places.registry("s.corp.example").origin) == "https://s.corp.example"


def test_https_of_a_host_in_full_counts_before_its_plain_http() -> None:
    places = Places([RegistrySettings("r.example:80", http=True), RegistrySettings("r.example")])
    assert str(places.registry("r.example").origin) == "https://r.example"


def test_an_address_in_brackets_is_no_glob() -> None:
    assert not RegistrySettings("[::1]:5000").is_glob
    assert not RegistrySettings("[fd00::a]").is_glob


def test_a_glob_says_nothing_of_plain_http() -> None:
    places = listed("*.corp.example:80")
    assert str(places.registry("r.corp.example").origin) == "https://r.corp.example"
    assert places.settings(URL("http://r.corp.example/")) is not None
    assert not places.registry("r.corp.example").listed


def test_conversations_hear_what_they_must_heed() -> None:
    settings = RegistrySettings(
        "*.corp.example",
        token_hosts=("auth.corp.example",),
        strict=True,
        get_after_404=False,
    )
    assert Places([settings]).registry("r.corp.example") == Registry(
        "r.corp.example",
        URL("https://r.corp.example"),
        listed=True,
        token_hosts=("auth.corp.example",),
        strict=True,
        get_after_404=False,
    )


@pytest.mark.parametrize("domain", ["r.example:0", "r.example:65536", "a" * 254])
def test_what_is_no_place_is_no_registry(domain: str) -> None:
    with pytest.raises(ValueError):
        listed("*.example").registry(domain)


# Mistakes


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"host": "*.x.example", "http": True}, "plain http is for a host that is listed in full"),
        ({"host": "*.x.example", "http": True, "credentials_over_http": True}, "listed in full"),
        ({"host": "*.x.example", "credentials_over_http": True}, "listed in full"),
        ({"credentials_over_http": True}, "not spoken to in http"),
        ({"host": "*"}, "one label"),
        ({"host": "*:5000"}, "one label"),
        ({"host": "*..example"}, "no glob"),
        ({"host": "*.x.example:"}, "no glob"),
        ({"host": "*.x.example:0"}, "no glob"),
        ({"host": "*.x.example:65536"}, "no glob"),
        ({"host": "*.x.example/path"}, "no glob"),
        ({"host": "https://*.x.example"}, "no glob"),
        ({"host": "[a.x.example"}, "no glob"),
        ({"host": "[].x.example"}, "no glob"),
        ({"host": "\\a.x.example"}, "no glob"),
        ({"connections": 0}, "connections is 0"),
        ({"requests_per_second": -1.0}, "requests_per_second is -1"),
        ({"connect_timeout": 0.0}, "connect_timeout is 0"),
        ({"timeout": float("nan")}, "timeout is nan"),
        ({"timeout": float("inf")}, "timeout is inf"),
        ({"mirrors": ("mirror.example",)}, "'mirror.example' is not https"),
        ({"mirrors": ("ftp://mirror.example",)}, "is not https"),
        ({"mirrors": ("https://",)}, "is not https"),
        ({"mirrors": ("https://mirror.example:0",)}, "is not https"),
        ({"mirrors": ("https://mirror.example/?a=b",)}, "is not https"),
        ({"mirrors": ("https://mirror.example/#a",)}, "is not https"),
        ({"mirrors": ("https://mirror.example/Upper",)}, "is not https"),
        ({"mirrors": ("https://mirror.example/a:b",)}, "is not https"),
        ({"mirrors": ("https://mirror.example/a@sha256:" + "a" * 64,)}, "is not https"),
        ({"mirrors": ("https://mirror.example/a%2fb",)}, "is not https"),
        ({"proxy": "proxy.example:3128"}, "'proxy.example:3128' is not http"),
        ({"proxy": "https://proxy.example"}, "is not http"),
    ],
)
def test_a_mistake_is_named_with_its_registry(values: dict[str, Any], message: str) -> None:
    values = {"host": "r.example"} | values
    with pytest.raises(ConfigurationError) as failure:
        RegistrySettings(**values)
    assert message in str(failure.value)
    assert values["host"].removeprefix("\\") in str(failure.value)


@pytest.mark.parametrize(
    "values",
    [
        {"proxy": "ftp://alice:pa55word@proxy.example"},
        {"proxy": "http://alice:pa55word@"},
        {"mirrors": ("https://alice:pa55word@mirror.example",)},
    ],
)
def test_no_mistake_and_no_value_shows_a_password(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError) as failure:
        RegistrySettings("r.example", **values)
    assert "pa55word" not in str(failure.value)
    good = RegistrySettings("r.example", proxy="http://alice:pa55word@proxy.example")
    assert "pa55word" not in repr(good)


# Mirrors


def test_mirrors_are_registries_of_their_own() -> None:
    places = Places(
        [
            RegistrySettings(
                "docker.io",
                mirrors=("https://mirror.example", "https://harbor.example:8443/hub/proxied/"),
            ),
            RegistrySettings("mirror.example", strict=True),
        ]
    )
    first, second = places.mirrors("docker.io")
    assert first == Registry(
        "mirror.example",
        URL("https://mirror.example"),
        listed=True,
        ns="docker.io",
        strict=True,
    )
    assert second == Registry(
        "harbor.example:8443",
        URL("https://harbor.example:8443"),
        listed=True,
        prefix="hub/proxied",
        ns="docker.io",
    )


def test_a_registry_without_mirrors_has_none() -> None:
    assert listed("r.example").mirrors("r.example") == ()
    assert listed("r.example").mirrors("other.example") == ()


def test_the_mirrors_of_a_glob_are_for_each_of_its_hosts() -> None:
    places = Places([RegistrySettings("*.corp.example", mirrors=("https://mirror.example",))])
    assert [each.ns for each in places.mirrors("a.corp.example")] == ["a.corp.example"]
    assert [each.ns for each in places.mirrors("b.corp.example")] == ["b.corp.example"]


def test_a_mirror_counts_as_listed_with_what_a_glob_says_of_it() -> None:
    places = Places(
        [
            RegistrySettings("docker.io", mirrors=("https://m.corp.example",)),
            RegistrySettings("*.corp.example", connections=3),
        ]
    )
    settings = places.settings("m.corp.example")
    assert settings == RegistrySettings("m.corp.example", connections=3)


def test_a_mirror_in_plain_http_must_be_listed_so() -> None:
    hub = RegistrySettings("docker.io", mirrors=("http://mirror.example:5000",))
    for other in (
        RegistrySettings("mirror.example:5000"),
        RegistrySettings("mirror.example:5001", http=True),
        RegistrySettings("*.example:5000"),
    ):
        with pytest.raises(ConfigurationError, match=r"docker\.io: the mirror http://mirror"):
            Places([hub, other])
    plain = RegistrySettings("mirror.example:5000", http=True, credentials_over_http=True)
    (mirror,) = Places([hub, plain]).mirrors("docker.io")
    assert mirror.origin == URL("http://mirror.example:5000")
    assert mirror.credentials_over_http


def test_a_mirror_is_not_spoken_to_in_two_ways() -> None:
    hub = RegistrySettings("docker.io", mirrors=("https://mirror.example:5000",))
    with pytest.raises(ConfigurationError, match="is listed with http"):
        Places([hub, RegistrySettings("mirror.example:5000", http=True)])


# Policy


@pytest.mark.parametrize(
    ("pattern", "domain"),
    [
        ("ghcr.io", "ghcr.io"),
        ("ghcr.io", "GHCR.io"),
        ("GHCR.io", "ghcr.io"),
        ("ghcr.io", "ghcr.io:443"),
        ("ghcr.io:443", "ghcr.io"),
        ("ghcr.io:5000", "ghcr.io:5000"),
        ("*.corp.example", "r.corp.example"),
        ("*.corp.example:5000", "r.corp.example:5000"),
        ("docker.io", "docker.io"),
        ("docker.io", "registry-1.docker.io"),
        ("registry-1.docker.io", "docker.io"),
        ("[::1]:5000", "[0::1]:5000"),
    ],
)
def test_a_registry_is_permitted_or_denied_by_name(pattern: str, domain: str) -> None:
    assert RegistryPolicy(allowed=(pattern,)).permits(domain)
    assert not RegistryPolicy(denied=(pattern,)).permits(domain)


@pytest.mark.parametrize(
    ("pattern", "domain"),
    [
        ("ghcr.io", "ghcr.io.evil.example"),
        ("*.corp.example", "corp.example"),
        ("*.corp.example", "a.b.corp.example"),
        ("ghcr.io:5000", "ghcr.io"),
    ],
)
def test_another_name_is_neither(pattern: str, domain: str) -> None:
    assert not RegistryPolicy(allowed=(pattern,)).permits(domain)
    assert RegistryPolicy(denied=(pattern,)).permits(domain)


def test_without_a_port_one_port_is_allowed_and_every_port_is_denied() -> None:
    for pattern, domain in (("r.example", "r.example:8443"), ("*.example", "r.example:8443")):
        assert not RegistryPolicy(allowed=(pattern,)).permits(domain)
        assert not RegistryPolicy(denied=(pattern,)).permits(domain)


def test_what_is_denied_is_not_allowed() -> None:
    policy = RegistryPolicy(allowed=("*.corp.example",), denied=("old.corp.example",))
    assert policy.permits("new.corp.example")
    assert not policy.permits("old.corp.example")


def test_where_nothing_is_allowed_by_name_everything_is() -> None:
    assert RegistryPolicy().permits("anything.example:5000")


@pytest.mark.parametrize("pattern", ["*", "", "r.example/path", "https://r.example", "a..*"])
def test_a_policy_is_of_hosts(pattern: str) -> None:
    with pytest.raises(ConfigurationError):
        RegistryPolicy(allowed=(pattern,))
    with pytest.raises(ConfigurationError):
        RegistryPolicy(denied=(pattern,))
