"""From files and environment to a process: every mistake is told before anything begins."""

from pathlib import Path

import pytest

from tagpin.app.wiring import _address_rules, assemble, read_settings
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
