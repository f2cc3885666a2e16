"""The proxies that lead to registries, as the settings or the environment name them."""

from collections.abc import Mapping

from tagpin.errors import ConfigurationError
from tagpin.registry.proxies import Proxies, Proxy


def proxies(
    environment: Mapping[str, str], *, https: str = "", http: str = "", no_proxy: str = ""
) -> Proxies:
    """Those given, else those of the variables, in capitals or not, that every client reads.

    Raises ConfigurationError, which names the setting or the variable, and no login.
    """
    return Proxies(
        _proxy("httpsProxy", https) or _of_variable(environment, "HTTPS_PROXY"),
        _proxy("httpProxy", http) or _of_variable(environment, "HTTP_PROXY"),
        no_proxy or _variable(environment, "NO_PROXY")[1],
    )


def _of_variable(environment: Mapping[str, str], variable: str) -> Proxy | None:
    name, text = _variable(environment, variable)
    # (golang.org/x/net/http/httpproxy: parseProxy)
    return _proxy(name, text if "://" in text or not text else f"http://{text}")


def _variable(environment: Mapping[str, str], name: str) -> tuple[str, str]:
    """How a variable is spelled, and what it holds."""
    spelled = name if environment.get(name) else name.lower()
    return spelled, environment.get(spelled, "").strip()


def _proxy(where: str, text: str) -> Proxy | None:
    if not text:
        return None
    try:
        return Proxy.parse(text)
    except ConfigurationError as error:
        raise ConfigurationError(f"{where}: {error}") from None
