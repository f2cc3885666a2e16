"""The credentials of whoever types a command: docker's own, asked for as docker does."""

import asyncio
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

import click

from tagpin.errors import Unobtainable
from tagpin.identity.config import DockerConfig
from tagpin.identity.programs import PREFIX, Programs
from tagpin.keychain import Credential, Identity, InvalidDockerConfig, Keychain
from tagpin.reference import Reference


def docker_config(environment: Mapping[str, str]) -> DockerConfig:
    """What `docker login` left in $DOCKER_CONFIG or ~/.docker; nothing is no error."""
    folder = environment.get("DOCKER_CONFIG")
    file = (Path(folder) if folder else Path.home() / ".docker") / "config.json"
    try:
        config = DockerConfig.parse(file.read_bytes())
    except FileNotFoundError:
        return DockerConfig()
    except (OSError, InvalidDockerConfig) as error:
        raise InvalidDockerConfig(f"{file} is of no use: {error}") from error
    for remark in config.keychain.remarks:
        _say(f"{file}: {remark}")
    return config


async def credentials(
    config: DockerConfig,
    refs: Iterable[Reference],
    environment: Mapping[str, str],
    *,
    timeout: float,  # noqa: ASYNC109 - of each program
) -> Keychain:
    """What docker would resolve `refs` with, from the programs that its config names as well.

    They are asked at once, each for at most `timeout` seconds, so that one that has nothing is no
    candidate: docker goes on anonymously then. So do we after a failure, which is said.
    """
    helpers = Keychain.of_identities(config.helpers)
    wanted: dict[str, str] = {}
    for ref in refs:
        if ref.digest is None:
            named = (
                each.provider for each in helpers.candidates(ref) if isinstance(each, Identity)
            )
            wanted[ref.domain] = next(named, config.store)
    search = environment.get("PATH", os.defpath)
    paths = {name: shutil.which(PREFIX + name, path=search) for name in wanted.values() if name}
    # One in the current folder is none, as for docker: somebody else may have put it there.
    found = {name: path for name, path in paths.items() if path and Path(path).is_absolute()}
    for name in sorted(paths.keys() - found.keys()):
        _say(f"{PREFIX}{name} is not on PATH: install it, or take it out of docker's config")
    programs = Programs(found.values(), environment=environment, timeout=timeout)

    async def ask(host: str, path: str) -> tuple[str, Credential] | None:
        try:
            credential = await programs.find(Identity(path, host))
        except Unobtainable as error:
            _say(str(error))
            return None
        return None if credential is None else (host, credential)

    asked = (ask(host, found[name]) for host, name in wanted.items() if name in found)
    answers = await asyncio.gather(*asked)
    return Keychain(tuple(each for each in answers if each), then=config.keychain)


def _say(text: str) -> None:
    click.echo(f"tagpin: {text}", err=True)
