"""From files and environment to a process: every mistake is told before anything begins."""

from ipaddress import ip_address
from pathlib import Path

import pytest
from yarl import URL

from tagpin.app.wiring import _address_rules, _proxies, assemble, read_settings
from tagpin.errors import ConfigurationError


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
        ("[", {}, "is no readable YAML: while parsing a flow node"),
        ("- a", {}, "expected keys and values"),
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


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("exempt: ['a b']", "exempt: invalid image reference 'a b'"),
        ("registries: [{host: a.test, caFile: /nowhere}]", "caFile of a.test: '/nowhere'"),
        ("registries: [{host: a.test, caFile: %(here)s}]", "a.test"),
        ("registries: [{host: '*.a.test', http: true}]", "*.a.test: plain http is for a host"),
        ("registries: [{host: a.test, mirrors: [{endpoint: b, resolve: true}]}]", "a.test: the mi"),
        ("registries: [{host: a.test, proxy: 'ftp://x'}]", "a.test: the proxy 'ftp://x' is not"),
        ("httpsProxy: socks5://x", "the proxy 'socks5://x' is not http://"),
        ("deniedRegistries: ['a[.test']", "deniedRegistries"),
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
        ({"HTTPS_PROXY": "http://one:3128", "NO_PROXY": ".test"}, None),
        ({"HTTPS_PROXY": "http://one:3128", "TAGPIN_HTTPS_PROXY": "http://two:3128"}, "two:3128"),
        ({"HTTPS_PROXY": "http://one:3128", "TAGPIN_NO_PROXY": "a.test"}, None),
        ({"HTTP_PROXY": "http://one:3128"}, None),
    ],
)
def test_a_proxy_is_the_settings_or_else_the_environments(
    variables: dict[str, str], proxied: str | None
) -> None:
    proxies = _proxies(read_settings(None, variables), variables)

    proxy = proxies.leading_to(URL("https://a.test"))

    assert (proxy.name if proxy else None) == proxied
