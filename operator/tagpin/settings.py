"""Settings: one frozen value, read from one mapping, every key checked."""

import dataclasses
import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from typing import Any, Self

from tagpin.errors import ConfigurationError, InvalidReference
from tagpin.reference import DOCKER_HUB, Reference
from tagpin.revision import CONTROLLER_MANAGER, kinds

ENVIRONMENT_PREFIX = "TAGPIN_"

# Kubernetes: "Environment variables for a Service", set unless enableServiceLinks is false.
_SERVICE_LINK = re.compile(
    r"\w+_(SERVICE_HOST=.*|SERVICE_PORT(_\w+)?=.*|PORT=\w+://.*|PORT_\d+_\w+=.*)",
    re.ASCII | re.DOTALL,
)

_DNS_LABEL = r"[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?"
_DNS_NAME = re.compile(rf"{_DNS_LABEL}(?:\.{_DNS_LABEL})*")

CLOUDS = ("ecr", "google", "acr")
"""Whose registries tagpin can log in to as its own service account."""

_GLOB = re.compile(r"[*?]|\[\^?(?:[a-z0-9](?:-[a-z0-9])?)+\]", re.IGNORECASE)
"""What stands for one or more letters of a host: `*`, `?` and `[a-z]`, but not `[::1]`."""

MAX_PORT = 65535

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "": 1.0}


@dataclass(frozen=True, slots=True)
class Mirror:
    """A place that has copies of a registry's repositories."""

    endpoint: str = field(repr=False)
    """Its URL, with the path that stands before a repository there."""
    resolve: bool = False
    """Trust it to say which digest a tag names; without that it is never asked."""


@dataclass(frozen=True, slots=True)
class Registry:
    """What the operator says of one registry, `host` or `host:port`.

    A listed registry may lie in an address range that is refused otherwise. The host may be a
    glob as in pull secrets, `*.corp.example`: then nothing that is refused otherwise is allowed.
    """

    host: str
    http: bool = False
    """Speak plain HTTP to it."""
    credentials_over_http: bool = False
    """Send pull secrets to it without TLS."""
    ca_file: str = ""
    """PEM file of certificate authorities that it is trusted by, besides the system's."""
    mirrors: tuple[Mirror, ...] = field(default=())
    """Places that are asked before it, in this order."""
    proxy: str = field(default="", repr=False)
    """The proxy that leads there, or `direct`; empty: as for all registries."""
    requests_per_second: float = 0.0
    """How many requests are sent to it at most; 0: as many as there are."""
    connections: int = 32
    """How many requests are under way at once."""
    connect_timeout: float = 0.0
    """Seconds for a connection to it; 0: as for all registries."""
    timeout: float = 0.0
    """Seconds for one question to it; 0: what the pod's budget leaves."""
    token_hosts: tuple[str, ...] = ()
    """Other hosts, or globs of them, that may issue its tokens."""
    strict: bool = False
    """Refuse what honest registries get wrong: tokens from a host that is not in the list, and
    manifests that are not what their headers say."""
    get_after_404: bool = True
    """Ask by GET, which counts as a pull, where HEAD says that there is no such tag."""


@dataclass(frozen=True, slots=True)
class CredentialProgram:
    """A docker credential helper that stands ready in tagpin's image."""

    host: str
    """The registry that it has credentials for, or a glob of them."""
    path: str
    """Where it is."""


@dataclass(frozen=True, slots=True)
class WorkloadKind:
    """A kind of controller whose revisions are recorded besides those of Kubernetes itself."""

    api_version: str
    """With its group, such as `apps.kruise.io/v1alpha1`."""
    kind: str
    plural: str
    requesters: tuple[str, ...]
    """The users that create its pods; a `*` at the end stands for any ending."""
    hash_label: str = ""
    """The label by which its pods name their template; empty: its template never changes."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How one tagpin process behaves. Keys of the file are the fields in camelCase."""

    namespace: str = "tagpin-system"
    """The namespace that tagpin runs in; its pods are never touched."""
    pod_name: str = "tagpin"
    """The name under which this replica reports Events and holds the Lease: no other has it."""
    service_name: str = "tagpin"
    """The Service that the API server calls; the serving certificate is issued for it."""
    webhook_configuration: str = "tagpin"
    """The MutatingWebhookConfiguration whose caBundle is kept current."""
    certificate_secret: str = "tagpin-tls"  # noqa: S105 a name
    """The Secret that holds CA and certificate."""
    certificate_directory: str = "/var/run/tagpin/tls"
    """Where that Secret is mounted."""
    certificate_names: tuple[str, ...] = ()
    """More names and addresses for the serving certificate."""
    address: str = ""
    """The address to listen on; empty: all."""
    webhook_port: int = 9443
    """Port of the webhook (HTTPS)."""
    health_port: int = 8080
    """Port of /healthz, /readyz and /metrics (HTTP)."""
    log_level: str = "info"
    """debug, info, warning or error."""
    log_format: str = "json"
    """json or text."""
    budget: float = 4.0
    """Seconds for all images of a pod; the API server's own time-out, less a margin, caps it."""
    drain: float = 10.0
    """Seconds between the order to stop and the closing of the listener."""
    freshness: float = 5.0
    """Seconds for which a registry's answer serves other new pods."""
    cache_ttl: float = 60.0
    """Seconds for which it serves an image that a recorded revision gets additionally."""
    record_ttl: float = 60.0
    """Seconds after which an ImagePin that was found is read again."""
    records_per_workload: int = 10
    """How many ImagePins of a workload are kept, besides those that are in use."""
    prune_interval: float = 600.0
    """Seconds between two searches for ImagePins that are not kept."""
    prune_age: float = 600.0
    """Seconds up to which an ImagePin is kept in any case."""
    lease: str = "tagpin"
    """The Lease by which the replica is elected that prunes."""
    lease_duration: float = 15.0
    """Seconds until another replica takes over from one that is gone."""
    controllers: tuple[str, ...] = CONTROLLER_MANAGER
    """The users that create the pods of Deployments, Jobs and their like; `*` ends a prefix."""
    workload_kinds: tuple[WorkloadKind, ...] = field(default=())
    """More kinds of controllers whose revisions are recorded."""
    stale_if_error: float = 3600.0
    """Seconds for which the last known digest stands in while a registry is down."""
    cache_size: int = 10_000
    """How many tags are remembered."""
    exempt: tuple[str, ...] = ()
    """Repositories, and prefixes that end with a slash, whose images are left as written.

    They have a file of their own, beside the one with the other keys.
    """
    allowed_registries: tuple[str, ...] = ()
    """The only registries, or globs of them, that are asked; empty: all but the denied ones."""
    denied_registries: tuple[str, ...] = ()
    """Registries, or globs of them, that are never asked."""
    blocked_networks: tuple[str, ...] = ()
    """Address ranges (CIDR) that no registry may be reached at, besides the built-in ones."""
    allowed_networks: tuple[str, ...] = ()
    """Address ranges (CIDR) that may be reached though they are among the blocked ones."""
    block_private: bool = False
    """Reach private addresses only where they are in allowed_networks or listed."""
    pod_addresses: tuple[str, ...] = ()
    """The addresses of tagpin's own pod, which are no registry's."""
    https_proxy: str = field(default="", repr=False)
    """The proxy to registries; empty: what the environment says (HTTPS_PROXY)."""
    http_proxy: str = field(default="", repr=False)
    """The proxy to registries that speak plain HTTP; empty: as the environment says."""
    no_proxy: str = ""
    """Hosts, domains and ranges reached without a proxy; empty: as the environment says."""
    client_ca_file: str = ""
    """PEM file of the CAs of those who may call the webhook; empty: everybody may."""
    client_names: tuple[str, ...] = ()
    """Names of which a client's certificate must bear one; empty: any of those CAs will do."""
    requests_per_namespace: int = 32
    """How many pods of one namespace are decided about at once."""
    lookups_per_namespace: int = 64
    """How many questions of one namespace are under way at once."""
    credentials_file: str = "/var/run/tagpin/credentials/.dockerconfigjson"
    """A docker config of tagpin's own, for listed registries; there need not be one."""
    credentials_namespaces: tuple[str, ...] = ()
    """The namespaces, or globs of them, that tagpin's own credentials serve; empty: all."""
    credential_programs: tuple[CredentialProgram, ...] = field(default=())
    """Programs that have credentials of tagpin's own."""
    cloud_identities: tuple[str, ...] = ()
    """The clouds whose registries tagpin logs in to as its own service account."""
    acr_hosts: tuple[str, ...] = ()
    """Registries of Azure under names of the operator's own."""
    aws_instance_role: bool = False
    """Let `ecr` use the role of the node, with all that it may do."""
    registries: tuple[Registry, ...] = field(default=())
    """What there is to say about single registries."""

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Self:
        """Check every key and value; raise ConfigurationError, which names both."""
        settings: Self = _record(cls, values, path="")
        if settings.webhook_port == settings.health_port:
            raise ConfigurationError(f"healthPort: {settings.health_port} is webhookPort too")
        if settings.client_names and not settings.client_ca_file:
            raise ConfigurationError("clientNames: of no use without clientCaFile")
        if settings.acr_hosts and "acr" not in settings.cloud_identities:
            raise ConfigurationError("acrHosts: of no use without acr in cloudIdentities")
        if settings.aws_instance_role and "ecr" not in settings.cloud_identities:
            raise ConfigurationError("awsInstanceRole: of no use without ecr in cloudIdentities")
        return settings

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> dict[str, str]:
        """The keys that the environment sets: `TAGPIN_LOG_LEVEL` is `logLevel`.

        Lists are comma-separated; lists of records can only be set in the file. What Kubernetes
        sets for a Service called tagpin is passed over; any other unknown variable is an error.
        """
        known = {
            ENVIRONMENT_PREFIX + item.name.upper(): item.name
            for item in dataclasses.fields(cls)
            if item.name not in ("registries", "workload_kinds", "credential_programs")
        }
        keys: dict[str, str] = {}
        for name, value in environment.items():
            if _SERVICE_LINK.fullmatch(f"{name}={value}"):
                continue
            if name in known:
                keys[_camel_case(known[name])] = value
            elif name.startswith(ENVIRONMENT_PREFIX):
                raise ConfigurationError(
                    f"{name}: unknown variable; the nearest known one is {_nearest(name, known)}"
                )
        return keys


def _record(cls: type[Any], values: object, path: str) -> Any:
    fields = {_camel_case(item.name): item for item in dataclasses.fields(cls)}
    if not isinstance(values, Mapping):
        example = f", such as {next(iter(fields))}: …" if path else ""
        raise ConfigurationError(f"{path or 'configuration'}: expected keys and values{example}")
    arguments: dict[str, Any] = {}
    for key, value in values.items():
        where = f"{path}.{key}" if path else str(key)
        if key not in fields:
            raise ConfigurationError(
                f"{where}: unknown key; the nearest known one is {_nearest(str(key), fields)}"
            )
        arguments[fields[key].name] = _read(fields[key], value, where)
    missing = [
        key
        for key, item in fields.items()
        if item.default is dataclasses.MISSING and item.name not in arguments
    ]
    if missing:
        raise ConfigurationError(f"{path}: the key {missing[0]} is missing")
    return cls(**arguments)


def _read(item: "dataclasses.Field[Any]", value: object, where: str) -> object:
    try:
        return _READERS.get(item.name, _BY_TYPE[item.type])(value, where)
    except ValueError as error:
        shown = "what stands there" if item.name in _SECRET else repr(value)
        raise ConfigurationError(f"{where}: {shown} is {error}") from None


def _text(value: object, _where: str) -> str:
    if not isinstance(value, str):
        raise ValueError("no text")  # noqa: TRY004 all bad values are one error
    return value


def _flag(value: object, _where: str) -> bool:
    words = {"true": True, "false": False}
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in words:
        return words[value.lower()]
    raise ValueError("neither true nor false")


def _number(value: object, _where: str) -> int:
    if isinstance(value, str) and re.fullmatch(r"[0-9]+", value):
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError("no number from 1")
    return value


def _port(value: object, where: str) -> int:
    number = _number(value, where)
    if number > MAX_PORT:
        raise ValueError("no port (1 to 65535)")
    return number


def _seconds(value: object, _where: str) -> float:
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h|)", str(value))
    if match is None or isinstance(value, bool):
        raise ValueError("no duration such as 500ms, 5s, 2m or 1h")
    return float(match[1]) * _UNITS[match[2]]


def _lease_seconds(value: object, where: str) -> float:
    seconds = _seconds(value, where)
    if seconds < 2:  # noqa: PLR2004 the API server must be able to keep up
        raise ValueError("no duration of 2s or more")
    return seconds


def _positive_seconds(value: object, where: str) -> float:
    seconds = _seconds(value, where)
    if seconds == 0:
        raise ValueError("no duration above zero")
    return seconds


def _texts(value: object, _where: str) -> tuple[str, ...]:
    if isinstance(value, str):
        value = [part.strip() for part in value.split(",") if part.strip()]
    if not isinstance(value, list) or not all(isinstance(part, str) for part in value):
        raise ValueError("no list of texts")
    return tuple(value)


def _elsewhere(_value: object, _where: str) -> object:
    raise ConfigurationError(
        "exempt: it has a file of its own, which the policy tagpin-require-digest reads too: "
        "the key exempt of the ConfigMap, beside config.yaml, one pattern a line"
    )


def _networks(value: object, where: str) -> tuple[str, ...]:
    networks = _texts(value, where)
    for network in networks:
        try:
            ip_network(network)
        except ValueError as error:
            raise ValueError(f"no list of networks: {error}") from None
    return networks


def _names(value: object, where: str) -> tuple[str, ...]:
    names = _texts(value, where)
    for name in names:
        try:
            ip_address(name)
        except ValueError:
            if not _DNS_NAME.fullmatch(name):
                raise ValueError(f"no list of names and addresses: {name!r}") from None
    return names


def _host(value: object, where: str) -> str:
    host = _text(value, where)
    plain = _GLOB.sub("x", host)
    try:
        ref = Reference.parse(f"{plain}/repository")
    except InvalidReference:
        raise ValueError("no host or host:port") from None
    name, port = _split_port(host)
    if name == "*":
        raise ValueError("no host: a star stands for one label, as in *.corp.example")
    if ref.domain != plain:
        raise ValueError("no host as references begin with, such as docker.io or registry:5000")
    if port and not 0 < int(port) <= MAX_PORT:
        raise ValueError("no host:port with a port of 1 to 65535")
    return host


def _split_port(host: str) -> tuple[str, str]:
    name, colon, port = host.rpartition(":")
    return (name, port) if colon and port.isdecimal() else (host, "")


def _places(host: str, *, http: bool = False) -> frozenset[str]:
    """All that a host in references may be called: with its port and, where it has none, without.

    Docker Hub is connected to under another name.
    """
    name, port = _split_port(host.lower())
    name = DOCKER_HUB if name == "registry-1.docker.io" else name
    place = f"{name}:{port or (80 if http else 443)}"
    return frozenset({place} if port else {place, name})


def _said_once(hosts: Iterable[tuple[str, frozenset[str]]], where: str) -> None:
    """Raise ConfigurationError where two entries are about one place: which of them counts?"""
    first: dict[str, tuple[int, str]] = {}
    for i, (host, places) in enumerate(hosts):
        if known := next((first[place] for place in places if place in first), None):
            j, other = known
            raise ConfigurationError(f"{where}[{i}].host: {host} is {where}[{j}], {other}, too")
        first |= dict.fromkeys(places, (i, host))


def _registries(value: object, where: str) -> tuple[Registry, ...]:
    found: tuple[Registry, ...] = _records(Registry)(value, where)
    _said_once(((each.host, _places(each.host, http=each.http)) for each in found), where)
    return found


def _programs(value: object, where: str) -> tuple[CredentialProgram, ...]:
    found: tuple[CredentialProgram, ...] = _records(CredentialProgram)(value, where)
    _said_once(((each.host, _places(each.host)) for each in found), where)
    return found


def _rate(value: object, _where: str) -> float:
    if not re.fullmatch(r"[0-9]+(\.[0-9]+)?", str(value)) or isinstance(value, bool):
        raise ValueError("no number of requests, such as 10 or 0.5")
    return float(str(value))


def _clouds(value: object, where: str) -> tuple[str, ...]:
    clouds = _texts(value, where)
    if unknown := set(clouds) - set(CLOUDS):
        raise ValueError(f"no list of {', '.join(CLOUDS)}: {min(unknown)!r}")
    return clouds


def _hosts(value: object, where: str) -> tuple[str, ...]:
    hosts = _texts(value, where)
    for host in hosts:
        try:
            _host(host, where)
        except ValueError as error:
            raise ValueError(f"no list of hosts: {host!r} is {error}") from None
    return hosts


def _namespaces(value: object, where: str) -> tuple[str, ...]:
    names = _texts(value, where)
    for name in names:
        if not re.fullmatch(_DNS_LABEL, _GLOB.sub("x", name)):
            raise ValueError(f"no list of namespaces or globs of them: {name!r}")
    return names


def _comma_separated(value: object, where: str) -> str:
    return ",".join(_texts(value, where))


def _records(cls: type[Any]) -> Callable[[object, str], tuple[Any, ...]]:
    def read(value: object, where: str) -> tuple[Any, ...]:
        if not isinstance(value, list):
            raise ValueError("no list")  # noqa: TRY004 all bad values are one error
        return tuple(_record(cls, entry, f"{where}[{i}]") for i, entry in enumerate(value))

    return read


def _workload_kinds(value: object, where: str) -> tuple[WorkloadKind, ...]:
    found: tuple[WorkloadKind, ...] = _records(WorkloadKind)(value, where)
    for i, kind in enumerate(found):
        if (kind.api_version, kind.kind) in kinds():
            always = f"{kind.kind} of {kind.api_version} is always recorded"
            raise ConfigurationError(f"{where}[{i}]: {always}")
    return found


def _matching(pattern: str, no: str) -> Callable[[object, str], str]:
    def read(value: object, where: str) -> str:
        text = _text(value, where)
        if not re.fullmatch(pattern, text):
            raise ValueError(no)
        return text

    return read


def _one_of(*words: str) -> Callable[[object, str], str]:
    def read(value: object, _where: str) -> str:
        if value not in words:
            raise ValueError(f"none of {', '.join(words)}")
        return str(value)

    return read


_BY_TYPE: dict[Any, Callable[[object, str], object]] = {
    str: _text,
    bool: _flag,
    int: _number,
    float: _seconds,
    tuple[str, ...]: _texts,
    tuple[Registry, ...]: _registries,
    tuple[Mirror, ...]: _records(Mirror),
    tuple[CredentialProgram, ...]: _programs,
    tuple[WorkloadKind, ...]: _workload_kinds,
}
_READERS: dict[str, Callable[[object, str], object]] = {
    "host": _host,
    "api_version": _matching(r"[a-z0-9.-]+/v[a-z0-9]+", "no group/version"),
    "kind": _matching(r"[A-Z][A-Za-z0-9]*", "no kind, such as CloneSet"),
    "plural": _matching(r"[a-z][a-z0-9-]*", "no plural of a kind, such as clonesets"),
    "hash_label": _matching(r"([a-z0-9.-]+/)?[A-Za-z0-9]([-\w.]*[A-Za-z0-9])?|", "no label"),
    "endpoint": _matching(r"https?://[^\s@?#]+", "no https://host[:port][/path]"),
    "path": _matching(r"/\S+", "no absolute path"),
    "credentials_file": _matching(r"(/.*)?", "no absolute path"),
    "credentials_namespaces": _namespaces,
    "exempt": _elsewhere,
    "no_proxy": _comma_separated,
    "allowed_registries": _hosts,
    "denied_registries": _hosts,
    "token_hosts": _hosts,
    "requests_per_second": _rate,
    "cloud_identities": _clouds,
    "blocked_networks": _networks,
    "allowed_networks": _networks,
    "pod_addresses": _networks,
    "certificate_names": _names,
    "webhook_port": _port,
    "health_port": _port,
    "budget": _positive_seconds,
    "prune_interval": _positive_seconds,
    "lease_duration": _lease_seconds,
    "log_level": _one_of("debug", "info", "warning", "error"),
    "log_format": _one_of("json", "text"),
}

_SECRET = frozenset({"https_proxy", "http_proxy", "proxy", "endpoint"})
"""Fields whose values may hold a password, so that no message repeats them."""


def _nearest(name: str, known: Iterable[str]) -> str:
    spellings = {each.lower(): each for each in known}
    return spellings[difflib.get_close_matches(name.lower(), spellings, n=1, cutoff=0.0)[0]]


def _camel_case(name: str) -> str:
    """`ca_file` is `caFile`, `cache_ttl` is `cacheTTL`."""
    first, *rest = name.split("_")
    return first + "".join(word.upper() if word == "ttl" else word.capitalize() for word in rest)
