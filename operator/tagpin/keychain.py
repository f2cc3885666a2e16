"""Pull secrets: dockerconfigjson → Keychain, matched in the order of the kubelet.

(kubernetes/kubernetes: pkg/credentialprovider, unchanged since 1.0)
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Credential:
    """A user name and password for the registry whose key they were found under."""

    username: str
    password: str


@dataclass(frozen=True, slots=True)
class Keychain:
    """Credentials from any number of docker configs."""

    entries: tuple[tuple[str, Credential], ...] = ()
