"""`tagpin resolve IMAGE…`."""

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import click
import yaml
from rich.console import Console
from rich.table import Table

from tagpin.app.cli.credentials import credentials, docker_config
from tagpin.app.logs import configure
from tagpin.app.proxies import proxies
from tagpin.errors import ConfigurationError, Unresolvable
from tagpin.identity.config import DockerConfig
from tagpin.pins import Failure, Pin, Source
from tagpin.reference import Reference
from tagpin.registry.client import RegistryClient
from tagpin.registry.guard import AddressRules
from tagpin.registry.places import RegistrySettings
from tagpin.registry.resolver import RegistryResolver

# Whoever types a command chooses the hosts, so these are listed registries: nobody to guard from.
_EVERYWHERE = AddressRules(blocked=(), private=())


@click.command()
@click.argument("images", nargs=-1, required=True, metavar="IMAGE…")
@click.option(
    "-o",
    "--output",
    type=click.Choice(["text", "json", "yaml"]),
    default="text",
    help="How to print; text is a table on a terminal, else one pinned image a line.",
)
@click.option(
    "--http", "plain", multiple=True, metavar="HOST", help="Speak plain HTTP to this registry."
)
@click.option(
    "--ca-file", type=click.Path(path_type=Path, dir_okay=False), help="Trust these CAs (PEM) too."
)
@click.option(
    "--timeout",
    type=click.FloatRange(0, 3600, min_open=True),
    default=20.0,
    show_default=True,
    help="Seconds for all images.",
)
def resolve(
    images: Sequence[str], output: str, plain: Sequence[str], ca_file: Path | None, timeout: float
) -> None:
    """Say which digest each IMAGE names now, with the credentials of your docker config.

    Proxies are those of HTTPS_PROXY, HTTP_PROXY and NO_PROXY. The exit code is 1 if an image could
    not be resolved.
    """
    configure("error", "text")
    config = docker_config(os.environ)
    try:
        ca = ca_file.read_text(encoding="ascii") if ca_file else None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"--ca-file {ca_file} is of no use: {error}") from error
    pins = asyncio.run(_resolve(images, config, plain, ca, timeout))
    if output == "text":
        _print_text(pins)
    else:
        document = [pin.to_json() for pin in pins]
        dump = json.dumps(document, indent=2) if output == "json" else _yaml(document)
        click.echo(dump.rstrip("\n"))
    failures = [pin for pin in pins if isinstance(pin, Failure)]
    for failure in failures:
        click.echo(f"tagpin: {failure.message} ({failure.reason})", err=True)
    sys.exit(bool(failures))


async def _resolve(
    images: Sequence[str],
    config: DockerConfig,
    plain: Sequence[str],
    ca: str | None,
    seconds: float,
) -> list[Pin | Failure]:
    refs = _references(images)
    keychain = await credentials(config, refs, os.environ, timeout=seconds)
    client = RegistryClient(
        registries=_listed(refs, plain),
        rules=_EVERYWHERE,
        proxies=proxies(os.environ),
        ca=ca,
    )
    async with client:
        resolver = RegistryResolver(client, load_timeout=seconds)

        async def settle(image: str) -> Pin | Failure:
            try:
                ref = Reference.parse(image)
                answer = await resolver.resolve(
                    ref, keychain, namespace="", max_age=0, within=seconds
                )
            except Unresolvable as error:
                return Failure(image, error.reason, str(error))
            when = None if answer.source is Source.GIVEN else answer.resolved_at
            return Pin(image, answer.digest, answer.source, when)

        return await asyncio.gather(*map(settle, images))


def _references(images: Sequence[str]) -> list[Reference]:
    """Those that are any; what is wrong with an image is said when it is resolved."""
    refs = []
    for image in images:
        with contextlib.suppress(Unresolvable):
            refs.append(Reference.parse(image))
    return refs


def _listed(refs: Sequence[Reference], plain: Sequence[str]) -> list[RegistrySettings]:
    listed = {}
    for host in plain:
        try:
            listed[host] = RegistrySettings(host=host, http=True, credentials_over_http=True)
        except ConfigurationError:
            raise ConfigurationError(f"--http {host}: not host[:port], in full") from None
    for ref in refs:
        with contextlib.suppress(ConfigurationError):  # said when it is resolved, too
            listed.setdefault(ref.domain, RegistrySettings(host=ref.domain))
    return list(listed.values())


def _print_text(pins: Sequence[Pin | Failure]) -> None:
    resolved = [pin for pin in pins if isinstance(pin, Pin)]
    if not sys.stdout.isatty():
        for pin in resolved:
            click.echo(pin.image if pin.source is Source.GIVEN else f"{pin.image}@{pin.digest}")
        return
    table = Table(box=None, pad_edge=False)
    table.add_column("IMAGE", overflow="fold")
    table.add_column("DIGEST", overflow="fold")
    for pin in resolved:
        table.add_row(pin.image, str(pin.digest))
    if resolved:
        Console().print(table)


def _yaml(document: object) -> str:
    return yaml.safe_dump(document, sort_keys=False)
