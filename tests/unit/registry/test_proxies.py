"""Which proxy leads where, as in Go (golang.org/x/net/http/httpproxy: proxy_test.go)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from yarl import URL

from tagpin.errors import ConfigurationError
from tagpin.registry.proxies import DIRECTLY, Proxies, Proxy

NO_PROXY = (
    "foobar.com, .barbaz.net, *.wildcard.io, 192.168.1.1, 192.168.1.2:81, 192.168.1.3:80, "
    "10.0.0.0/30, 2001:db8::52:0:1, [2001:db8::52:0:2]:443, [2001:db8::52:0:3]:80, "
    "2002:db8:a::45/64"
)


def is_proxied(url: str, no_proxy: str) -> bool:
    proxies = Proxies.parse(https="http://proxy", http="http://proxy", no_proxy=no_proxy)
    return proxies.leading_to(URL(url)) is not None


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("localhost", False),
        ("127.0.0.1", False),
        ("127.0.0.2", False),
        ("[::1]", False),
        ("[::2]", True),
        ("192.168.1.1", False),
        ("192.168.1.2", True),  # another port
        ("192.168.1.3", False),
        ("192.168.1.4", True),
        ("10.0.0.2", False),
        ("10.0.0.4", True),
        ("[2001:db8::52:0:1]", False),
        ("[2001:db8::52:0:2]", True),  # another port
        ("[2001:db8::52:0:3]", False),
        ("[2002:db8:a::123]", False),
        ("[fe80::424b:c8be:1643:a1b6]", True),
        ("barbaz.net", True),
        ("www.barbaz.net", False),
        ("foobar.com", False),
        ("www.foobar.com", False),
        ("foofoobar.com", True),
        ("baz.com", True),
        ("localhost.net", True),
        ("local.localhost", True),
        ("barbarbaz.net", True),
        ("wildcard.io", True),
        ("nested.wildcard.io", False),
        ("awildcard.io", True),
    ],
)
def test_a_list_of_hosts_is_read_as_go_does(host: str, *, expected: bool) -> None:
    assert is_proxied(f"http://{host}/", NO_PROXY) is expected
    assert not is_proxied(f"http://{host}/", "*")
    assert not is_proxied(f"http://{host}/", f"first.example,*,{NO_PROXY}")


@pytest.mark.parametrize(
    ("no_proxy", "url", "expected"),
    [
        ("", "https://example.com/", True),
        ("example.com", "https://example.com/", False),
        (".example.com", "https://example.com/", True),
        ("ample.com", "https://example.com/", True),
        ("example.com", "https://foo.example.com/", False),
        (".foo.com", "https://example.com/", True),
        (".示例.com", "https://www.示例.com", False),
        ("xn--fsq092h.com", "https://www.示例.com", False),
        ("示例.com", "https://www.xn--fsq092h.com", False),
        # CVE-2025-22870: the zone of an address is no name
        ("example.com", "https://[1000::%25.example.com]:123", True),
        (":1", "https://example.com/", True),
        ("[", "https://example.com/", True),
        ("[]:443,.,*.,,10.0.0.0/33,/", "https://example.com/", True),
        ("EXAMPLE.com", "https://Example.COM/", False),
        ("example.com:443", "https://example.com/", False),
        ("example.com:443", "https://example.com:8443/", True),
        (".example.com:8443", "https://r.example.com:8443/", False),
        ("*.example.com:8443", "https://r.example.com/", True),
        ("10.96.0.0/12", "https://10.97.1.2/", False),
        ("10.96.0.0/12", "https://10.112.0.1/", True),
        ("10.96.0.1/12", "https://10.97.1.2:5000/", False),
        ("10.96.0.0/12", "https://[::ffff:10.97.1.2]/", False),
        ("::ffff:10.0.0.1", "https://10.0.0.1/", False),
        (".svc,.cluster.local", "https://registry.team.svc/", False),
        ("0.0.0.0/0", "https://example.com/", True),  # a name is no address
        ("exam*.com", "https://example.com/", True),  # no glob
        ("*example.com", "https://example.com/", True),
    ],
)
def test_an_entry_is_for_these_hosts(no_proxy: str, url: str, *, expected: bool) -> None:
    assert is_proxied(url, no_proxy) is expected


def test_each_scheme_has_its_own_proxy() -> None:
    proxies = Proxies.parse(https="http://secure.example:1", http="http://plain.example:2")
    assert proxies.leading_to(URL("https://r.example")) == Proxy(URL("http://secure.example:1"))
    assert proxies.leading_to(URL("http://r.example")) == Proxy(URL("http://plain.example:2"))
    only_http = Proxies.parse(http="http://plain.example:2")
    assert only_http.leading_to(URL("https://r.example")) is None


def test_without_a_proxy_everything_is_direct() -> None:
    assert DIRECTLY.leading_to(URL("https://r.example")) is None
    assert Proxies.parse() == DIRECTLY


@pytest.mark.parametrize(
    "text",
    [
        "proxy.example:3128",
        "proxy.example",
        "https://proxy.example",
        "socks5://proxy.example",
        "http://",
        "http://proxy.example:0",
        "http://proxy.example:99999",
        "http://proxy.example/path",
        "http://proxy.example/?query",
        "http://proxy.example/#fragment",
        "http://[::1",
    ],
)
def test_a_proxy_is_an_http_url(text: str) -> None:
    with pytest.raises(ConfigurationError, match="the proxy"):
        Proxies.parse(https=text)


@pytest.mark.parametrize(
    ("text", "authorization"),
    [
        ("http://proxy.example:3128", None),
        ("http://proxy.example:3128/", None),
        ("http://alice:pa55word@proxy.example:3128", "Basic YWxpY2U6cGE1NXdvcmQ="),
        ("http://alice@proxy.example:3128", "Basic YWxpY2U6"),
        ("http://a%40b:c%3Ad@proxy.example:3128", "Basic YUBiOmM6ZA=="),
    ],
)
def test_a_login_is_kept_apart_from_the_url(text: str, authorization: str | None) -> None:
    proxy = Proxy.parse(text)
    assert proxy == Proxy(URL("http://proxy.example:3128"), authorization)
    assert proxy.name == "proxy.example:3128"


def test_a_password_is_shown_nowhere() -> None:
    proxies = Proxies.parse(https="http://alice:pa55word@proxy.example", no_proxy="a.example")
    assert "pa55word" not in repr(proxies)
    assert "cGE1NXdvcmQ" not in repr(proxies)
    for wrong in ("https://alice:pa55word@proxy.example", "http://alice:pa55word@", "a:pa55word@b"):
        with pytest.raises(ConfigurationError) as failure:
            Proxies.parse(https=wrong)
        assert "pa55word" not in str(failure.value)


@given(st.text(max_size=40), st.sampled_from(["example.com", "10.1.2.3", "[fd00::1]", "a.b."]))
def test_no_list_is_too_odd_to_read(no_proxy: str, host: str) -> None:
    assert is_proxied(f"https://{host}/", no_proxy) in (True, False)
