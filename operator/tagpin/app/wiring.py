"""The one place that builds objects and connects them."""

import contextlib
import logging
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import kopf
import yaml

from tagpin.app.logs import log_decision
from tagpin.app.metrics import Metrics, memory_limit
from tagpin.app.proxies import proxies as proxies_of
from tagpin.certificates import parse_certificates
from tagpin.cluster.admission import PATHS, Reviewer
from tagpin.cluster.api import connect, disconnect
from tagpin.cluster.clients import Clients
from tagpin.cluster.credentials import ClusterPullSecrets
from tagpin.cluster.election import Election
from tagpin.cluster.events import EventRecorder
from tagpin.cluster.ledger import ClusterLedger
from tagpin.cluster.pruning import Pruner
from tagpin.cluster.server import WebhookServer
from tagpin.cluster.tls import CertificateKeeper
from tagpin.errors import ConfigurationError
from tagpin.identity.clouds import CloudIdentities
from tagpin.identity.config import OwnCredentials
from tagpin.identity.programs import Programs
from tagpin.identity.providers import Providers
from tagpin.keychain import Identity
from tagpin.pinning import Pinner
from tagpin.policy import Rules, exempt_patterns
from tagpin.registry.client import RegistryClient
from tagpin.registry.guard import DEFAULT_RULES, AddressRules
from tagpin.registry.places import Places, RegistryPolicy, RegistrySettings
from tagpin.registry.resolver import RegistryResolver
from tagpin.revision import Kind, Proof, kinds
from tagpin.settings import CredentialProgram, Registry, Settings, WorkloadKind

log = logging.getLogger(__name__)

PROTECTED = "kube-system"


class _Loader(yaml.SafeLoader):
    """Of a key that stands there twice, PyYAML would take the last one in silence."""

    def construct_mapping(self, node: yaml.MappingNode, *deep: bool, **how: bool) -> dict[Any, Any]:
        """As SafeLoader, but raise a YAMLError for such a key."""
        seen = set[str]()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in seen:
                problem = f"the key {key.value} stands there twice"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, *deep, **how)


def read_settings(
    path: Path | None,
    environment: Mapping[str, str] = os.environ,
    options: Mapping[str, str] | None = None,
) -> Settings:
    """The file's keys, overridden by the environment's, and both by `options`.

    Raises ConfigurationError.

    The file `exempt` beside it, if there is one, has what is left as written.
    """
    values: dict[str, Any] = {}
    exempt: tuple[str, ...] = ()
    if path is not None:
        try:
            text = path.read_text(encoding="utf-8")
            document = yaml.load(text, _Loader)  # noqa: S506 a SafeLoader
        except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
            raise ConfigurationError(f"{path} is no readable YAML: {_reason(error)}") from error
        if not isinstance(document, dict | None):
            raise ConfigurationError(f"{path}: expected keys and values")
        values = document or {}
        exempt = _read_exempt(path.with_name("exempt"))
    settings = Settings.from_mapping(
        values | Settings.from_environment(environment) | dict(options or {})
    )
    return replace(settings, exempt=exempt)


def _read_exempt(path: Path) -> tuple[str, ...]:
    try:
        return exempt_patterns(path.read_bytes().decode("utf-8"))  # line ends as they are
    except FileNotFoundError:
        return ()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} is no readable text: {error}") from error


def _reason(error: Exception) -> str:
    """What is wrong, on one line, and where; but not what stands there: it may be a password."""
    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark
        return f"{error.problem}" + (f", in line {mark.line + 1}" if mark else "")
    return " ".join(str(error).split())


@dataclass(frozen=True, slots=True)
class Operator:
    """The parts of one serving process."""

    settings: Settings
    metrics: Metrics
    certificate: CertificateKeeper
    events: EventRecorder
    election: Election
    server: WebhookServer
    handlers: kopf.OperatorRegistry

    def not_ready(self) -> str | None:
        """Why this replica takes no reviews, None where it does."""
        if self.server.is_draining:
            return "draining"
        if not self.certificate.ready.is_set():
            return "no valid certificate yet"
        if not self.certificate.is_valid(datetime.now(UTC)):
            return "the certificate is not valid now"
        if not self.server.is_listening:
            return "not listening yet"
        return None


@asynccontextmanager
async def assemble(
    settings: Settings, environment: Mapping[str, str] = os.environ
) -> AsyncIterator[Operator]:
    """Build a serving process; raises ConfigurationError before anything has begun."""
    kubeconfig = environment.get("KUBECONFIG")
    listed = _listed(settings)
    metrics = Metrics((registry.host for registry in listed), memory_limit=memory_limit())
    rules = Rules.from_settings(settings.exempt, (PROTECTED, settings.namespace))
    async with AsyncExitStack() as stack:
        resolver, own = await stack.enter_async_context(
            _registries(settings, listed, environment, metrics)
        )
        api = await connect(Path(kubeconfig) if kubeconfig else None, observe=metrics.observe_call)
        stack.push_async_callback(disconnect, api)
        clients = _clients(settings, api.configuration.ssl_ca_cert)
        pull_secrets = ClusterPullSecrets(api, own=own)
        stack.push_async_callback(pull_secrets.close)
        ledger = ClusterLedger(
            api,
            record_ttl=settings.record_ttl,
            size=settings.cache_size,
            observe_read=metrics.observe_ledger_read,
            observe_write=metrics.observe_ledger_write,
        )
        stack.push_async_callback(ledger.close)
        pinner = Pinner(
            resolver,
            pull_secrets,
            ledger,
            rules=rules,
            kinds=kinds(settings.controllers, map(_kind, settings.workload_kinds)),
            now=partial(datetime.now, UTC),
            freshness=settings.freshness,
            cache_ttl=settings.cache_ttl,
            stale_if_error=settings.stale_if_error,
            budget=settings.budget,
            per_namespace=settings.requests_per_namespace,
        )
        events = EventRecorder(api, instance=settings.pod_name, observe=metrics.observe_event)
        certificate = CertificateKeeper(
            api,
            names=_certificate_names(settings),
            directory=Path(settings.certificate_directory),
            namespace=settings.namespace,
            secret=settings.certificate_secret,
            configuration=settings.webhook_configuration,
            clients=clients,
        )
        pruner = Pruner(
            api,
            keep=settings.records_per_workload,
            interval=settings.prune_interval,
            young=timedelta(seconds=settings.prune_age),
            seen=metrics.records.set,
            pruned=metrics.records_pruned.inc,
            failed=metrics.prunings_failed.inc,
        )
        election = Election(
            api,
            lead=pruner.run,
            identity=settings.pod_name,
            namespace=settings.namespace,
            name=settings.lease,
            lease_duration=settings.lease_duration,
        )
        reviewer = Reviewer(pinner, (metrics.observe_admission, log_decision, events.record))
        server = WebhookServer(
            certificate,
            paths=PATHS,
            known=reviewer.known,
            address=settings.address,
            port=settings.webhook_port,
            clients=clients,
            refused=lambda status: metrics.refused_requests.labels(str(status)).inc(),
            rejected=lambda reason: metrics.rejected_connections.labels(reason.value).inc(),
        )
        handlers = kopf.OperatorRegistry()
        reviewer.register(handlers)
        operator = Operator(settings, metrics, certificate, events, election, server, handlers)
        metrics.ready.set_function(lambda: float(operator.not_ready() is None))
        metrics.reviews.set_function(lambda: server.reviews)
        metrics.client_ca_file_broken.set_function(lambda: bool(clients and clients.is_broken))
        metrics.leader.set_function(lambda: float(election.is_leader))
        metrics.certificate_expiry.set_function(lambda: _unix(certificate.expires))
        metrics.ca_certificate_expiry.set_function(lambda: _unix(certificate.ca_expires))
        metrics.ca_bundle_is_current.set_function(lambda: float(certificate.is_trusted))
        yield operator


@asynccontextmanager
async def _registries(
    settings: Settings,
    listed: Sequence[RegistrySettings],
    environment: Mapping[str, str],
    metrics: Metrics,
) -> AsyncIterator[tuple[RegistryResolver, OwnCredentials]]:
    """Everything that has to do with registries: who asks them, and who we are to them."""
    policy = RegistryPolicy(settings.allowed_registries, settings.denied_registries)
    proxies = proxies_of(
        environment,
        https=settings.https_proxy,
        http=settings.http_proxy,
        no_proxy=settings.no_proxy,
    )
    clouds = CloudIdentities(
        settings.cloud_identities,
        environment,
        acr_hosts=settings.acr_hosts,
        aws_instance_role=settings.aws_instance_role,
        proxy=proxies.leading_to,
    )
    paths = {each.host: _program(each) for each in settings.credential_programs}
    programs = Programs(paths.values(), environment=environment)
    own = OwnCredentials(
        registries=[each.host for each in listed],
        file=Path(settings.credentials_file) if settings.credentials_file else None,
        programs=paths,
        identities=clouds.identities_for,
        namespaces=settings.credentials_namespaces,
    )
    client = RegistryClient(
        registries=listed,
        rules=_address_rules(settings, environment),
        policy=policy,
        proxies=proxies,
        identities=Providers(
            dict.fromkeys(paths.values(), programs)
            | dict.fromkeys(settings.cloud_identities, clouds),
            failed=lambda provider: metrics.credentials_failed.labels(provider).inc(),
        ),
        # Within the budget, so that what is too slow is known by its own name.
        connect_timeout=min(3.0, settings.budget / 2),
        read_timeout=0.8 * settings.budget,
        observe=metrics.observe_registry,
    )
    metrics.circuits_open.set_function(lambda: len(client.open_circuits()))
    metrics.credentials_file_broken.set_function(lambda: float(own.is_broken))
    _warn(settings, listed, policy, clouds)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(programs.aclose)
        await stack.enter_async_context(clouds)
        await stack.enter_async_context(client)
        resolver = RegistryResolver(
            client,
            # A mirror's answer is for every namespace, so these must not be limited to some.
            mirror_candidates=lambda ref: own.keychain("").candidates(ref),
            cache_size=settings.cache_size,
            stale_if_error=settings.stale_if_error,
            load_timeout=settings.budget,  # whoever comes back later wants a fresher answer
            per_namespace=settings.lookups_per_namespace,
            remark=metrics.observe_oddity,
            observe=metrics.observe_cache,
        )
        stack.push_async_callback(resolver.aclose)
        yield resolver, own


def _clients(settings: Settings, cluster_ca: str | None) -> Clients | None:
    """Who may call; None: everybody. `cluster_ca` is a file with the CA of API servers."""
    if not settings.client_ca_file:
        return None
    clients = Clients(Path(settings.client_ca_file), settings.client_names)
    if cluster_ca and not settings.client_names:
        known = parse_certificates(Path(cluster_ca).read_bytes())
        if not set(known).isdisjoint(clients.authorities):
            log.warning(
                "clientCaFile: has the cluster's own CA, so all kubelets may call, and all who have"
                " a client certificate; set clientNames"
            )
    return clients


def _warn(
    settings: Settings,
    listed: Sequence[RegistrySettings],
    policy: RegistryPolicy,
    clouds: CloudIdentities,
) -> None:
    """Say which settings have no effect beside the others."""
    for cloud in settings.cloud_identities:
        if not any(
            each.is_glob or Identity(cloud, each.host) in clouds.identities_for(each.host)
            for each in listed
        ):
            log.warning("cloudIdentities: %s: not used, since registries lists none of its", cloud)
    named = {each.host for each in settings.registries}
    for each in listed:
        if each.host in named and not each.is_glob and not policy.permits(each.host):
            refused = "refused by allowedRegistries or deniedRegistries, so at most a mirror"
            log.warning("registries: %s: %s", each.host, refused)


def _program(program: CredentialProgram) -> str:
    if not os.access(program.path, os.X_OK) or not Path(program.path).is_file():
        raise ConfigurationError(
            f"credentialPrograms: path of {program.host}: {program.path!r} cannot be run here"
        )
    return program.path


def _unix(time: datetime | None) -> float:
    return time.timestamp() if time else 0.0


def _certificate_names(settings: Settings) -> tuple[str, ...]:
    """The names of the Service that API servers may use, and the configured ones."""
    service = f"{settings.service_name}.{settings.namespace}"
    return (
        f"{service}.svc",
        f"{service}.svc.cluster.local",
        service,
        *settings.certificate_names,
    )


def _listed(settings: Settings) -> tuple[RegistrySettings, ...]:
    """What is said of registries, and of their mirrors, which are listed by being one."""
    return tuple(Places(map(_registry, settings.registries)))


def _registry(registry: Registry) -> RegistrySettings:
    try:
        ca = Path(registry.ca_file).read_text(encoding="ascii") if registry.ca_file else None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(
            f"registries: caFile of {registry.host}: {registry.ca_file!r}: {error}"
        ) from error
    return RegistrySettings(
        host=registry.host,
        http=registry.http,
        credentials_over_http=registry.credentials_over_http,
        ca=ca,
        mirrors=tuple(each.endpoint for each in registry.mirrors if each.resolve),
        proxy="" if registry.proxy == "direct" else registry.proxy or None,
        requests_per_second=registry.requests_per_second or None,
        connections=registry.connections or None,
        connect_timeout=registry.connect_timeout or None,
        timeout=registry.timeout or None,
        token_hosts=registry.token_hosts,
        strict=registry.strict,
        get_after_404=registry.get_after_404,
    )


def _kind(kind: WorkloadKind) -> Kind:
    proof, labels = Proof.OBJECT, tuple[str, ...]()
    if kind.hash_label:
        proof, labels = Proof.REQUESTER, (kind.hash_label,)
    return Kind(kind.api_version, kind.kind, kind.plural, kind.requesters, proof, labels)


def _address_rules(settings: Settings, environment: Mapping[str, str]) -> AddressRules:
    """The built-in ranges, the configured ones, and addresses of the API server and our own."""
    blocked = [*settings.blocked_networks, *settings.pod_addresses]
    with contextlib.suppress(ValueError):  # not in a cluster, or by a name
        blocked.append(str(ip_address(environment.get("KUBERNETES_SERVICE_HOST", ""))))
    rules = DEFAULT_RULES.blocking(*blocked).allowing(*settings.allowed_networks)
    return replace(rules, block_private=settings.block_private)
