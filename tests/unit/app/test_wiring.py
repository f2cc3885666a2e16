"""From files and environment to a process: every mistake is told before anything begins."""

from ipaddress import ip_address
from pathlib import Path

import pytest
from yarl import URL

from tagpin.app.metrics import Metrics
from tagpin.app.proxies import proxies
from tagpin.app.wiring import _address_rules, _listed, _registries, assemble, read_settings
from tagpin.errors import ConfigurationError
from tagpin.registry.transport import Exchange


def test_the_environment_overrides_the_file(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("logLevel: debug\nbudget: 2s\n")

    settings = read_settings(file, {"TAGPIN_BUDGET": "3s", "PATH": "/bin"})

    assert (settings.log_level, settings.budget) == ("debug", 3.0)


def test_an_empty_file_says_nothing(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("# nothing yet\n")

    assert read_settings(file, {}) == read_settings(None, {})


@pytest.mark.parametrize(
    ("config", "environment", "message"),
    [
        (
            "[",
            {},
            "is no readable YAML: expected the node content, but found '<stream end>', in line 1",
        ),
        ("- a", {}, "expected keys and values"),
        ("a: 2001-13-45", {}, "is no readable YAML: month must be in 1..12"),
        ("[" * 2000, {}, "is no readable YAML: "),
        (
            "budget: 2s\nregistries: []\nbudget: 3s",
            {},
            "the key budget stands there twice, in line 3",
        ),
        ("registries: [{host: a.test, http: true, http: false}]", {}, "the key http stands there"),
        ("httpsProxy: http://u:s3cret@p: 1", {}, "mapping values are not allowed here, in line 1"),
        ("a: \x00", {}, "is no readable YAML"),
        ("", {"TAGPIN_LOG_LEVL": "info"}, "TAGPIN_LOG_LEVL: unknown variable"),
        ("", {"TAGPIN_BUDGET": "soon"}, "budget: 'soon' is no duration"),
    ],
)
def test_a_file_or_a_variable_of_no_use_is_named(
    tmp_path: Path, config: str, environment: dict[str, str], message: str
) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(config)

    with pytest.raises(ConfigurationError) as failure:
        read_settings(file, environment)

    assert message in str(failure.value)
    assert "\n" not in str(failure.value)
    assert "s3cret" not in str(failure.value)


def test_what_is_exempt_is_read_from_the_file_beside(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("logLevel: debug\n")
    assert read_settings(file, {}).exempt == ()
    (tmp_path / "exempt").write_text("# ours\ndocker.io/acme/\n")

    settings = read_settings(file, {})

    assert (settings.log_level, settings.exempt) == ("debug", ("docker.io/acme/",))


def test_a_list_of_exempt_images_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("")
    (tmp_path / "exempt").write_bytes(b"\xff")
    with pytest.raises(ConfigurationError, match="exempt is no readable text: 'utf-8' codec"):
        read_settings(file, {})


async def test_an_exempt_pattern_of_no_use_is_named(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("")
    (tmp_path / "exempt").write_text("a b\n")
    with pytest.raises(ConfigurationError, match="exempt: invalid image reference 'a b'"):
        async with assemble(read_settings(file, {}), {}):
            pass


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("registries: [{host: a.test, caFile: /nowhere}]", "caFile of a.test: '/nowhere'"),
        ("registries: [{host: a.test, caFile: %(here)s}]", "a.test"),
        ("registries: [{host: '*.a.test', http: true}]", "*.a.test: plain http is for a host"),
        (
            "registries: [{host: a.test, mirrors: [{endpoint: b, resolve: true}]}]",
            "mirrors[0].endpoint: what stands there is no https:",
        ),
        ("registries: [{host: a.test, proxy: 'ftp://x'}]", "a.test: the proxy 'ftp://x' is not"),
        ("httpsProxy: socks5://x", "httpsProxy: the proxy 'socks5://x' is not http://"),
        ("httpProxy: 'https://u:s3cret@x'", "httpProxy: the proxy 'x' is not http://"),
        ("deniedRegistries: ['a[.test']", "deniedRegistries"),
        ("credentialPrograms: [{host: a.test, path: /nowhere}]", "path of a.test: '/nowhere' cann"),
        (
            "credentialPrograms: [{host: a.test, path: /etc}]",
            "path of a.test: '/etc' cannot be run",
        ),
        ("credentialPrograms: [{host: a.test, path: %(here)s}]", "path of a.test: '/"),
        ("cloudIdentities: [acr]\nacrHosts: ['*.test']", "acrHosts: '*.test' is no name of a host"),
        ("", "the cluster's own configuration is of no use"),
    ],
)
async def test_what_cannot_be_built_is_named(tmp_path: Path, config: str, message: str) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(config % {"here": file})

    with pytest.raises(ConfigurationError) as failure:
        async with assemble(read_settings(file, {}), {}):
            pass

    assert message in str(failure.value)
    assert "s3cret" not in str(failure.value)


@pytest.mark.parametrize(
    ("config", "warnings"),
    [
        ("", []),
        ("cloudIdentities: [ecr]", ["cloudIdentities: ecr: not used, since registries lists none"]),
        (
            "cloudIdentities: [google, acr]\nregistries: [{host: gcr.io}, {host: a.test}]",
            ["cloudIdentities: acr: not used, since registries lists none of its"],
        ),
        ("cloudIdentities: [acr]\nregistries: [{host: '*.azurecr.io'}]", []),
        (
            "allowedRegistries: [b.test]\nregistries: [{host: b.test}, {host: a.test}]",
            ["registries: a.test: refused by allowedRegistries or deniedRegistries, so at most a"],
        ),
        ("allowedRegistries: [b.test]\nregistries: [{host: '*.a.test'}]", []),
        ("deniedRegistries: [m.test]\nregistries: [{host: a.test, mirrors: [%(m.test)s]}]", []),
        (
            "credentialPrograms: [%(a.test)s, %(b.test)s]\nregistries: [{host: b.test}]",
            ["credentials of tagpin's own: 'a.test': not used, since not in registries"],
        ),
    ],
)
async def test_what_has_no_effect_is_told_at_the_start(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, config: str, warnings: list[str]
) -> None:
    file = tmp_path / "config.yaml"
    entries = {host: f"{{host: {host}, path: /bin/sh}}" for host in ("a.test", "b.test")}
    entries["m.test"] = "{endpoint: 'https://m.test', resolve: true}"
    file.write_text(config % entries)

    settings = read_settings(file, {})
    async with _registries(settings, _listed(settings), {}, Metrics()):
        pass

    told = [record.getMessage() for record in caplog.records]
    assert len(told) == len(warnings)
    assert all(map(str.startswith, told, warnings))


def test_mirrors_are_counted_under_their_own_names_too(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    mirror = "{endpoint: 'https://m.test:5000/hub', resolve: true}"
    file.write_text(f"registries: [{{host: a.test, mirrors: [{mirror}]}}]")
    metrics = Metrics(each.host for each in _listed(read_settings(file, {})))

    metrics.observe_registry(Exchange("m.test:5000", "HEAD", "200", 0.01))

    assert 'registry="m.test:5000"' in metrics.exposition().decode()


async def test_a_broken_file_of_credentials_is_seen_in_the_metrics(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text("{")
    metrics = Metrics()
    settings = read_settings(None, {"TAGPIN_CREDENTIALS_FILE": str(file)})

    async with _registries(settings, (), {}, metrics) as (_, own):
        own.keychain("shop")

        assert b"tagpin_credentials_file_broken 1.0" in metrics.exposition()


@pytest.mark.parametrize("variable", ["HTTPS_PROXY", "http_proxy"])
def test_a_variable_that_names_no_proxy_is_named(variable: str) -> None:
    with pytest.raises(ConfigurationError, match=f"{variable}: the proxy 'p' is not"):
        proxies({variable: "https://u:s3cret@p"})


def test_the_api_servers_address_is_no_registry() -> None:
    rules = _address_rules(read_settings(None, {}), {"KUBERNETES_SERVICE_HOST": "10.96.0.1"})

    assert [str(network) for network in rules.denied][-1] == "10.96.0.1/32"


def test_nor_are_our_own_addresses_whatever_is_allowed() -> None:
    settings = read_settings(
        None, {"TAGPIN_POD_ADDRESSES": "10.1.2.3,fd00::1", "TAGPIN_ALLOWED_NETWORKS": "10.0.0.0/8"}
    )

    rules = _address_rules(settings, {})

    assert rules.blocks(ip_address("10.1.2.3"))
    assert rules.blocks(ip_address("fd00::1"))
    assert not rules.blocks(ip_address("10.1.2.4"))


def test_private_addresses_can_be_blocked_but_for_some() -> None:
    environment = {"TAGPIN_BLOCK_PRIVATE": "true", "TAGPIN_ALLOWED_NETWORKS": "10.1.0.0/16"}

    rules = _address_rules(read_settings(None, environment), {})

    assert rules.blocks(ip_address("10.2.0.1"))
    assert not rules.blocks(ip_address("10.1.0.1"))


@pytest.mark.parametrize(
    ("variables", "proxied"),
    [
        ({}, None),
        ({"HTTPS_PROXY": "http://one:3128"}, "one:3128"),
        ({"https_proxy": "http://one:3128"}, "one:3128"),
        ({"HTTPS_PROXY": "", "https_proxy": " one:3128 "}, "one:3128"),
        ({"HTTPS_PROXY": "one:3128", "https_proxy": "two:3128"}, "one:3128"),
        ({"HTTPS_PROXY": "http://one:3128", "NO_PROXY": ".test"}, None),
        ({"HTTPS_PROXY": "http://one:3128", "TAGPIN_HTTPS_PROXY": "http://two:3128"}, "two:3128"),
        ({"HTTPS_PROXY": "http://one:3128", "TAGPIN_NO_PROXY": "a.test"}, None),
        ({"HTTP_PROXY": "http://one:3128"}, None),
    ],
)
def test_a_proxy_is_the_settings_or_else_the_environments(
    variables: dict[str, str], proxied: str | None
) -> None:
    settings = read_settings(None, variables)
    found = proxies(variables, https=settings.https_proxy, no_proxy=settings.no_proxy)

    proxy = found.leading_to(URL("https://a.test"))

    assert (proxy.name if proxy else None) == proxied
