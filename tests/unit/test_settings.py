"""Settings: safe defaults, and no key or value that is wrong in silence."""

import dataclasses
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tagpin.errors import ConfigurationError
from tagpin.revision import CONTROLLER_MANAGER
from tagpin.settings import CredentialProgram, Mirror, Registry, Settings, WorkloadKind


def setting(key: str, value: Any) -> Any:
    """The value of a field, read from the file's key."""
    field = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", key).lower()
    return getattr(Settings.from_mapping({key: value}), field)


def test_without_a_word_every_setting_has_a_safe_default() -> None:
    assert Settings.from_mapping({}) == Settings()
    assert Settings().budget < 5
    assert Settings().exempt == ()
    assert Settings().registries == ()
    assert Settings().workload_kinds == ()
    assert Settings().controllers == CONTROLLER_MANAGER
    assert Settings().record_ttl <= 60  # within which a deleted record is obeyed
    assert not Registry("registry.test").http
    assert not Registry("registry.test").credentials_over_http


def test_settings_do_not_change() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Settings().budget = 1.0  # type: ignore[misc]  # what is tested


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("namespace", "pins", "pins"),
        ("address", "", ""),
        ("webhookPort", 8443, 8443),
        ("webhookPort", "8443", 8443),
        ("healthPort", 65535, 65535),
        ("healthPort", 1, 1),
        ("cacheSize", 1, 1),
        ("cacheSize", "100000", 100_000),
        ("budget", 3, 3.0),
        ("budget", 2.5, 2.5),
        ("budget", "3", 3.0),
        ("budget", "3s", 3.0),
        ("budget", "2.5s", 2.5),
        ("budget", "500ms", 0.5),
        ("staleIfError", "2m", 120.0),
        ("staleIfError", "1h", 3600.0),
        ("staleIfError", 0, 0.0),
        ("freshness", "0s", 0.0),
        ("drain", 0, 0.0),
        ("cacheTTL", "90s", 90.0),
        ("cacheTTL", 0, 0.0),
        ("recordTTL", "500ms", 0.5),
        ("recordsPerWorkload", "3", 3),
        ("controllers", ["ann", "system:*"], ("ann", "system:*")),
        ("controllers", "ann, bob", ("ann", "bob")),
        ("controllers", [], ()),
        ("workloadKinds", [], ()),
        ("logLevel", "debug", "debug"),
        ("logLevel", "error", "error"),
        ("logFormat", "text", "text"),
        ("deniedRegistries", [], ()),
        ("deniedRegistries", "a.test, b.test ,", ("a.test", "b.test")),
        ("deniedRegistries", "", ()),
        ("blockedNetworks", ["10.0.0.0/8"], ("10.0.0.0/8",)),
        ("certificateNames", "a.test,10.0.0.1", ("a.test", "10.0.0.1")),
        ("allowedRegistries", "docker.io, *.corp.example", ("docker.io", "*.corp.example")),
        (
            "deniedRegistries",
            ["r[0-9].test:5000", "[::1]:5000"],
            ("r[0-9].test:5000", "[::1]:5000"),
        ),
        ("allowedNetworks", "10.0.0.0/8", ("10.0.0.0/8",)),
        ("blockPrivate", "true", True),
        ("podAddresses", "10.1.2.3,fd00::1", ("10.1.2.3", "fd00::1")),
        ("lookupsPerNamespace", "8", 8),
        ("requestsPerNamespace", "4", 4),
        ("cloudIdentities", "ecr,acr", ("ecr", "acr")),
        ("credentialPrograms", [], ()),
        ("credentialsFile", "", ""),
        ("credentialsNamespaces", ["team-*", "[a-c]?"], ("team-*", "[a-c]?")),
        ("noProxy", [".corp.example", "10.0.0.0/8"], ".corp.example,10.0.0.0/8"),
        ("registries", [], ()),
    ],
)
def test_a_good_value_is_read(key: str, value: Any, expected: Any) -> None:
    assert setting(key, value) == expected


@pytest.mark.parametrize(
    ("key", "value", "complaint"),
    [
        ("namespace", 5, "no text"),
        ("namespace", None, "no text"),
        ("namespace", ["a"], "no text"),
        ("webhookPort", 0, "no number from 1"),
        ("webhookPort", -1, "no number from 1"),
        ("webhookPort", 65536, "no port"),
        ("webhookPort", "65536", "no port"),
        ("healthPort", "8080/tcp", "no number from 1"),
        ("healthPort", "tcp://10.0.0.1:8080", "no number from 1"),
        ("healthPort", 8080.0, "no number from 1"),
        ("cacheSize", True, "no number from 1"),
        ("cacheSize", "", "no number from 1"),
        ("cacheSize", "\u0661", "no number from 1"),
        ("cacheSize", "1\n", "no number from 1"),
        ("cacheSize", None, "no number from 1"),
        ("budget", "soon", "no duration"),
        ("budget", "-1s", "no duration"),
        ("budget", -1, "no duration"),
        ("budget", "1d", "no duration"),
        ("budget", "1 s", "no duration"),
        ("budget", "1s\n", "no duration"),
        ("budget", ".5s", "no duration"),
        ("budget", "", "no duration"),
        ("budget", True, "no duration"),
        ("budget", None, "no duration"),
        ("budget", [1], "no duration"),
        ("budget", float("nan"), "no duration"),
        ("budget", float("inf"), "no duration"),
        ("budget", 0, "no duration above zero"),
        ("budget", "0ms", "no duration above zero"),
        ("logLevel", "verbose", "none of debug, info, warning, error"),
        ("logLevel", "DEBUG", "none of debug, info, warning, error"),
        ("logLevel", None, "none of debug, info, warning, error"),
        ("logFormat", "xml", "none of json, text"),
        ("controllers", None, "no list of texts"),
        ("controllers", ["ann", 5], "no list of texts"),
        ("controllers", {"ann": True}, "no list of texts"),
        ("blockedNetworks", ["10.0.0.1/8"], "no list of networks: 10.0.0.1/8 has host bits set"),
        ("blockedNetworks", "nowhere", "no list of networks"),
        ("certificateNames", ["m\u00fcnchen.test"], "no list of names and addresses"),
        ("certificateNames", [""], "no list of names and addresses"),
        ("certificateNames", ["*.test"], "no list of names and addresses"),
        ("allowedRegistries", ["https://a.test"], "no list of hosts: 'https://a.test' is no host"),
        (
            "allowedRegistries",
            ["*"],
            "no list of hosts: '*' is no host: a star stands for one label",
        ),
        ("allowedRegistries", ["*.a.test:0"], "no list of hosts: '*.a.test:0' is no host:port"),
        ("deniedRegistries", ["[$].a.test"], "no list of hosts: '[$].a.test' is no host"),
        ("credentialsNamespaces", ["shop", "[a"], "no list of namespaces or globs of them: '[a'"),
        ("credentialsNamespaces", ["Shop"], "no list of namespaces or globs of them: 'Shop'"),
        ("credentialsFile", "config.json", "no absolute path"),
        ("noProxy", 7, "no list of texts"),
        ("deniedRegistries", ["registry"], "no list of hosts: 'registry' is no host as references"),
        ("podAddresses", "me", "no list of networks"),
        ("cloudIdentities", ["ecr", "aws"], "no list of ecr, google, acr: 'aws'"),
        ("cacheTTL", "1d", "no duration"),
        ("recordTTL", None, "no duration"),
        ("recordTTL", -1, "no duration"),
        ("recordsPerWorkload", 0, "no number from 1"),
        ("controllers", 5, "no list of texts"),
        ("controllers", ["ann", None], "no list of texts"),
        ("workloadKinds", "CloneSet", "no list"),
        ("workloadKinds", None, "no list"),
        ("workloadKinds", {"kind": "CloneSet"}, "no list"),
        ("registries", "docker.io", "no list"),
        ("registries", None, "no list"),
        ("registries", {"host": "docker.io"}, "no list"),
    ],
)
def test_a_bad_value_is_named_with_its_key(key: str, value: Any, complaint: str) -> None:
    with pytest.raises(ConfigurationError) as error:
        Settings.from_mapping({key: value})

    assert str(error.value).startswith(f"{key}: {value!r} is {complaint}")


def test_names_of_clients_need_their_cas() -> None:
    with pytest.raises(ConfigurationError, match="clientNames: of no use without clientCaFile"):
        Settings.from_mapping({"clientNames": ["kube-apiserver"]})

    settings = Settings.from_mapping({"clientNames": ["a", "b"], "clientCaFile": "/ca.crt"})
    assert (settings.client_names, settings.client_ca_file) == (("a", "b"), "/ca.crt")


def test_two_listeners_cannot_have_one_port() -> None:
    with pytest.raises(ConfigurationError, match="healthPort: 9443 is webhookPort too"):
        Settings.from_mapping({"healthPort": 9443})


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("bugdet", "budget"),
        ("log_level", "logLevel"),
        ("loglevel", "logLevel"),
        ("registry", "registries"),
        ("exempts", "exempt"),
        ("staleIfErr", "staleIfError"),
        ("cacheTtl", "cacheTTL"),
        ("record_ttl", "recordTTL"),
        ("workloadKind", "workloadKinds"),
        ("controller", "controllers"),
    ],
)
def test_an_unknown_key_is_an_error_that_names_the_nearest_known_one(
    key: str, nearest: str
) -> None:
    with pytest.raises(ConfigurationError) as error:
        Settings.from_mapping({key: "x"})

    assert str(error.value) == f"{key}: unknown key; the nearest known one is {nearest}"


@pytest.mark.parametrize("key", [5, None, True, "", ("a",)])
def test_a_key_that_is_no_name_is_an_unknown_key(key: Any) -> None:
    with pytest.raises(ConfigurationError, match="unknown key"):
        Settings.from_mapping({key: "x"})


@pytest.mark.parametrize("values", [None, [], "budget: 3", 5])
def test_what_is_no_mapping_is_no_configuration(values: Any) -> None:
    with pytest.raises(ConfigurationError, match="expected keys and values"):
        Settings.from_mapping(values)


def test_a_registry_entry_says_how_to_reach_it() -> None:
    entries = [
        {"host": "registry:5000", "http": True, "credentialsOverHttp": "true"},
        {"host": "harbor.test", "caFile": "/etc/ca.pem", "http": "False"},
        {"host": "[2001:db8::1]:5000"},
        {"host": "localhost"},
    ]

    assert setting("registries", entries) == (
        Registry("registry:5000", http=True, credentials_over_http=True),
        Registry("harbor.test", ca_file="/etc/ca.pem"),
        Registry("[2001:db8::1]:5000"),
        Registry("localhost"),
    )


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"host": "https://a.test"}, "registries[1].host: 'https://a.test' is no host"),
        ({"host": "a.test/"}, "registries[1].host: 'a.test/' is no host"),
        ({"host": "a.test/team"}, "registries[1].host: 'a.test/team' is no host"),
        ({"host": "index.docker.io"}, "registries[1].host: 'index.docker.io' is no host"),
        ({"host": "registry"}, "registries[1].host: 'registry' is no host"),
        ({"host": "*"}, "registries[1].host: '*' is no host"),
        ({"host": "*.b.test/team"}, "registries[1].host: '*.b.test/team' is no host"),
        ({"host": ""}, "registries[1].host: '' is no host"),
        ({"host": 5}, "registries[1].host: 5 is no text"),
        ({"host": "b.test", "http": "yes"}, "registries[1].http: 'yes' is neither true nor false"),
        ({"host": "b.test", "http": 1}, "registries[1].http: 1 is neither true nor false"),
        ({"host": "b.test", "https": True}, "registries[1].https: unknown key; the nearest"),
        ({"host": "b.test", "caFile": 1}, "registries[1].caFile: 1 is no text"),
        ({"host": "b.test", "requestsPerSecond": -1}, "registries[1].requestsPerSecond: -1 is no"),
        (
            {"host": "b.test", "requestsPerSecond": "many"},
            "registries[1].requestsPerSecond: 'many'",
        ),
        ({"host": "b.test", "connections": 0}, "registries[1].connections: 0 is no number from 1"),
        ({"host": "b.test", "timeout": "soon"}, "registries[1].timeout: 'soon' is no duration"),
        (
            {"host": "b.test", "tokenHosts": ["/"]},
            "registries[1].tokenHosts: ['/'] is no list of hosts",
        ),
        ({"host": "b.test:0"}, "registries[1].host: 'b.test:0' is no host:port with a port of"),
        ({"host": "b.test", "mirrors": "m.test"}, "registries[1].mirrors: 'm.test' is no list"),
        (
            {"host": "b.test", "mirrors": [{"endpoint": "https://m.test"}, {"resolve": True}]},
            "registries[1].mirrors[1]: the key endpoint is missing",
        ),
        ({"http": True}, "registries[1]: the key host is missing"),
        ({}, "registries[1]: the key host is missing"),
        ("b.test", "registries[1]: expected keys and values, such as host: …"),
        (None, "registries[1]: expected keys and values"),
    ],
)
def test_a_bad_registry_entry_is_named_with_its_place(entry: Any, message: str) -> None:
    with pytest.raises(ConfigurationError) as error:
        Settings.from_mapping({"registries": [{"host": "a.test"}, entry]})

    assert str(error.value).startswith(message)


def test_what_is_said_of_a_registry_is_read() -> None:
    entry = {
        "host": "*.corp.example",
        "mirrors": [{"endpoint": "https://m.test/hub", "resolve": True}],
        "requestsPerSecond": 2.5,
        "timeout": "2s",
        "tokenHosts": "sso.corp.example",
        "getAfter404": False,
    }
    (registry,) = Settings.from_mapping({"registries": [entry]}).registries

    assert registry == Registry(
        "*.corp.example",
        mirrors=(Mirror("https://m.test/hub", resolve=True),),
        requests_per_second=2.5,
        timeout=2.0,
        token_hosts=("sso.corp.example",),
        get_after_404=False,
    )


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"host": "a.test"}, {"host": "A.test"}),
        ({"host": "a.test"}, {"host": "a.test:443"}),
        ({"host": "a.test"}, {"host": "a.test", "http": True}),
        ({"host": "a.test", "http": True}, {"host": "a.test:80"}),
        ({"host": "*.a.test"}, {"host": "*.a.test"}),
        ({"host": "[::1]:5000"}, {"host": "[::1]:5000"}),
        ({"host": "docker.io"}, {"host": "registry-1.docker.io"}),
    ],
)
def test_what_is_said_of_one_registry_is_said_once(
    one: dict[str, Any], other: dict[str, Any]
) -> None:
    with pytest.raises(ConfigurationError) as error:
        Settings.from_mapping({"registries": [{"host": "b.test"}, one, other]})

    expected = f"registries[2].host: {other['host']} is registries[1], {one['host']}, too"
    assert str(error.value) == expected


def test_registries_at_several_ports_are_several() -> None:
    hosts = ["a.test", "a.test:5000", "b.a.test", "*.a.test", "*.a.test:5000", "[::1]", "[::1]:1"]

    entries = [*({"host": host} for host in hosts), {"host": "a.test:80", "http": True}]

    assert len(setting("registries", entries)) == len(hosts) + 1


def test_a_registry_has_one_credential_program() -> None:
    with pytest.raises(ConfigurationError, match=r"credentialPrograms\[1\].host: a.test is"):
        Settings.from_mapping(
            {"credentialPrograms": [{"host": "a.test", "path": f"/bin/{n}"} for n in "ab"]}
        )


@pytest.mark.parametrize(
    ("key", "value", "cloud"),
    [("acrHosts", ["registry.corp.example"], "acr"), ("awsInstanceRole", True, "ecr")],
)
def test_what_is_said_of_a_cloud_needs_the_cloud(key: str, value: Any, cloud: str) -> None:
    assert Settings.from_mapping({key: value, "cloudIdentities": ["ecr", "acr"]})
    with pytest.raises(ConfigurationError, match=f"{key}: of no use without {cloud} in cloudIden"):
        Settings.from_mapping({key: value})


@pytest.mark.parametrize(
    "config",
    [
        {"httpsProxy": "http://u:s3cret@p:1", "httpProxy": "http://u:s3cret@p:1"},
        {"registries": [{"host": "a.test", "proxy": "http://u:s3cret@p:1"}]},
        {"httpsProxy": ["http://u:s3cret@p:1"]},
        {"registries": [{"host": "a.test", "proxy": ["http://u:s3cret@p:1"]}]},
        {"registries": [{"host": "a.test", "mirrors": [{"endpoint": "https://u:s3cret@m.test"}]}]},
        {"registries": [{"host": "a.test", "mirrors": [{"endpoint": "https://m.test?a=s3cret"}]}]},
    ],
)
def test_no_password_is_shown(config: dict[str, Any]) -> None:
    try:
        shown = repr(Settings.from_mapping(config))
    except ConfigurationError as error:
        shown = str(error)

    assert "s3cret" not in shown


def test_a_mirror_is_asked_only_if_it_is_marked() -> None:
    assert not Mirror("https://m.test").resolve


def test_a_credential_program_is_named_by_its_absolute_path() -> None:
    program = {"host": "*.azurecr.io", "path": "/usr/bin/docker-credential-acr"}
    settings = Settings.from_mapping({"credentialPrograms": [program]})
    assert settings.credential_programs == (CredentialProgram(**program),)
    with pytest.raises(ConfigurationError) as error:
        Settings.from_mapping({"credentialPrograms": [program | {"path": "docker-credential-acr"}]})
    assert str(error.value).startswith(
        "credentialPrograms[0].path: 'docker-credential-acr' is no abs"
    )


CLONE_SET = {
    "apiVersion": "apps.kruise.io/v1alpha1",
    "kind": "CloneSet",
    "plural": "clonesets",
    "requesters": "system:serviceaccount:kruise-system:kruise-manager",
    "hashLabel": "controller-revision-hash",
}


def test_a_kind_of_workload_says_who_creates_its_pods_and_how_they_name_their_template() -> None:
    run = {
        "apiVersion": "tekton.dev/v1",
        "kind": "TaskRun",
        "plural": "taskruns",
        "requesters": ["system:serviceaccount:tekton:*"],
    }

    assert setting("workloadKinds", [CLONE_SET, run]) == (
        WorkloadKind(
            "apps.kruise.io/v1alpha1",
            "CloneSet",
            "clonesets",
            ("system:serviceaccount:kruise-system:kruise-manager",),
            "controller-revision-hash",
        ),
        WorkloadKind("tekton.dev/v1", "TaskRun", "taskruns", ("system:serviceaccount:tekton:*",)),
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"apiVersion": "v1"}, "apiVersion: 'v1' is no group/version"),
        ({"apiVersion": ""}, "apiVersion: '' is no group/version"),
        ({"apiVersion": "apps/v1\n"}, "apiVersion: 'apps/v1\\n' is no group/version"),
        ({"apiVersion": "Apps/v1"}, "apiVersion: 'Apps/v1' is no group/version"),
        ({"apiVersion": "apps/v1/x"}, "apiVersion: 'apps/v1/x' is no group/version"),
        ({"apiVersion": "a/b/v1"}, "apiVersion: 'a/b/v1' is no group/version"),
        ({"apiVersion": "apps"}, "apiVersion: 'apps' is no group/version"),
        ({"apiVersion": 1}, "apiVersion: 1 is no text"),
        ({"kind": None}, "kind: None is no text"),
        ({"kind": "cloneSet"}, "kind: 'cloneSet' is no kind, such as CloneSet"),
        ({"plural": "../pods"}, "plural: '../pods' is no plural of a kind, such as clonesets"),
        ({"hashLabel": "a,b=c"}, "hashLabel: 'a,b=c' is no label"),
        ({"plural": ["clonesets"]}, "plural: ['clonesets'] is no text"),
        ({"requesters": 5}, "requesters: 5 is no list of texts"),
        ({"requesters": ["ann", 5]}, "requesters: ['ann', 5] is no list of texts"),
        ({"hashLabel": 5}, "hashLabel: 5 is no text"),
        ({"hash_label": "x"}, "hash_label: unknown key; the nearest known one is hashLabel"),
    ],
)
def test_a_bad_kind_of_workload_is_named_with_its_place(
    change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigurationError) as error:
        Settings.from_mapping({"workloadKinds": [CLONE_SET, CLONE_SET | change]})

    assert str(error.value) == f"workloadKinds[1].{message}"


def test_a_kind_that_is_always_recorded_cannot_be_opted_in() -> None:
    own = CLONE_SET | {"apiVersion": "apps/v1", "kind": "ReplicaSet"}

    with pytest.raises(ConfigurationError) as error:
        Settings.from_mapping({"workloadKinds": [own]})

    assert str(error.value) == "workloadKinds[0]: ReplicaSet of apps/v1 is always recorded"


@pytest.mark.parametrize("key", ["apiVersion", "kind", "plural", "requesters"])
def test_nothing_about_a_kind_of_workload_is_guessed(key: str) -> None:
    entry = {field: value for field, value in CLONE_SET.items() if field != key}

    with pytest.raises(ConfigurationError, match=rf"workloadKinds\[0\]: the key {key} is missing"):
        Settings.from_mapping({"workloadKinds": [entry]})


@pytest.mark.parametrize("entry", ["CloneSet", None, []])
def test_a_kind_of_workload_is_more_than_its_name(entry: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"workloadKinds\[0\]: expected keys and values"):
        Settings.from_mapping({"workloadKinds": [entry]})


@given(
    st.dictionaries(
        st.sampled_from(
            ["budget", "exempt", "workloadKinds", "registries", "webhookPort", "logLevel"]
        )
        | st.text(),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.dates(),
            lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.just("host"), inner),
            max_leaves=4,
        ),
    )
)
def test_any_mapping_is_settings_or_a_configuration_error(values: dict[str, Any]) -> None:
    try:
        settings = Settings.from_mapping(values)
    except ConfigurationError as error:
        message = str(error)
    else:
        message = str(settings)
    assert message


def test_the_environment_sets_what_the_file_can() -> None:
    keys = Settings.from_environment(
        {
            "TAGPIN_LOG_LEVEL": "debug",
            "TAGPIN_STALE_IF_ERROR": "2h",
            "TAGPIN_ACR_HOSTS": "",
            "TAGPIN_WEBHOOK_PORT": "8443",
            "TAGPIN_RECORD_TTL": "10s",
            "TAGPIN_CONTROLLERS": "ann",
            "PATH": "/bin",
            "TAGPINX": "y",
        }
    )

    settings = Settings.from_mapping({"logLevel": "error", "cacheSize": 5, **keys})
    assert settings == Settings(
        log_level="debug",
        stale_if_error=7200.0,
        webhook_port=8443,
        record_ttl=10.0,
        controllers=("ann",),
        cache_size=5,
    )


@pytest.mark.parametrize(
    "values",
    [{"exempt": ["nginx"]}, {"exempt": []}, Settings.from_environment({"TAGPIN_EXEMPT": ""})],
)
def test_what_is_exempt_is_told_where_it_belongs(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=r"^exempt: .* the key exempt of the ConfigMap, "):
        Settings.from_mapping(values)


def test_every_setting_but_lists_of_records_has_a_variable() -> None:
    lists = {"registries", "workload_kinds", "credential_programs"}
    names = {field.name for field in dataclasses.fields(Settings)} - lists

    keys = Settings.from_environment({f"TAGPIN_{name.upper()}": "" for name in names})

    assert len(keys) == len(names)
    assert not {"registries", "workloadKinds", "credentialPrograms"} & set(keys)


SERVICE_LINKS = {
    "TAGPIN_SERVICE_HOST": "10.96.0.7",
    "TAGPIN_SERVICE_PORT": "443",
    "TAGPIN_SERVICE_PORT_HTTPS": "443",
    "TAGPIN_PORT": "tcp://10.96.0.7:443",
    "TAGPIN_PORT_443_TCP": "tcp://10.96.0.7:443",
    "TAGPIN_PORT_443_TCP_PROTO": "tcp",
    "TAGPIN_PORT_443_TCP_PORT": "443",
    "TAGPIN_PORT_443_TCP_ADDR": "10.96.0.7",
    "TAGPIN_METRICS_SERVICE_HOST": "10.96.0.8",
    "TAGPIN_METRICS_PORT": "tcp://10.96.0.8:80",
    "TAGPIN_WEBHOOK_PORT": "tcp://10.96.0.9:443",  # of a Service called tagpin-webhook
}


def test_what_kubernetes_sets_for_services_is_passed_over() -> None:
    assert Settings.from_environment(SERVICE_LINKS) == {}


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("TAGPIN_BUGDET", "TAGPIN_BUDGET"),
        ("TAGPIN_LOGLEVEL", "TAGPIN_LOG_LEVEL"),
        ("TAGPIN_log_level", "TAGPIN_LOG_LEVEL"),
        ("TAGPIN_REGISTRIES", "TAGPIN_"),
        ("TAGPIN_WORKLOAD_KINDS", "TAGPIN_"),
        ("TAGPIN_", "TAGPIN_"),
        ("TAGPIN_WEBHOK_PORT", "TAGPIN_WEBHOOK_PORT"),
    ],
)
def test_another_unknown_variable_is_an_error(name: str, nearest: str) -> None:
    with pytest.raises(ConfigurationError) as error:
        Settings.from_environment({name: "8443"})

    start = f"{name}: unknown variable; the nearest known one is {nearest}"
    assert str(error.value).startswith(start)


def test_a_bad_value_of_a_variable_is_named_with_its_key() -> None:
    keys = Settings.from_environment({"TAGPIN_BUDGET": "soon"})

    with pytest.raises(ConfigurationError, match="budget: 'soon' is no duration"):
        Settings.from_mapping(keys)
