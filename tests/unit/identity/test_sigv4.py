"""Requests are signed as AWS' own library signs them."""

from datetime import UTC, datetime, timedelta, timezone

import pytest
from botocore.auth import SIGNED_HEADERS_BLACKLIST, SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from hypothesis import given, settings
from hypothesis import strategies as st

from tagpin.identity.sigv4 import Key, signed

KEY = Key("AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY")
SESSION = Key(KEY.id, KEY.secret, "IQoJb3JpZ2luX2VjE+/==")


def signed_by_botocore(
    host: str, headers: dict[str, str], body: bytes, *, key: Key, region: str, service: str
) -> dict[str, str]:
    """The headers of a POST, at the time that botocore takes from the clock."""
    request = AWSRequest("POST", f"https://{host}/", headers=headers, data=body)
    credentials = Credentials(key.id, key.secret, key.session_token or None)
    SigV4Auth(credentials, service, region).add_auth(request)
    return dict(request.headers.items())


def moment(headers: dict[str, str]) -> datetime:
    return datetime.strptime(headers["X-Amz-Date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)


def test_the_example_of_aws_is_signed_as_it_says() -> None:
    # AWS' test suite for signature version 4: post-vanilla
    headers = signed(
        "example.amazonaws.com",
        {},
        b"",
        key=KEY,
        region="us-east-1",
        service="service",
        now=datetime(2015, 8, 30, 12, 36, tzinfo=UTC),
    )
    assert headers == {
        "X-Amz-Date": "20150830T123600Z",
        "Authorization": "AWS4-HMAC-SHA256 "
        "Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request, "
        "SignedHeaders=host;x-amz-date, "
        "Signature=5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b",
    }


@pytest.mark.parametrize("key", [KEY, SESSION])
@pytest.mark.parametrize(
    "body", [b"", b"{}", b'{"registryIds": ["123456789012"]}', bytes(range(256))]
)
@pytest.mark.parametrize(
    ("host", "region", "service"),
    [
        ("api.ecr.eu-west-1.amazonaws.com", "eu-west-1", "ecr"),
        ("ecr-fips.us-gov-west-1.amazonaws.com", "us-gov-west-1", "ecr"),
        ("api.ecr.cn-northwest-1.amazonaws.com.cn", "cn-northwest-1", "ecr"),
        ("ecr.ap-southeast-7.api.aws", "ap-southeast-7", "ecr"),
        ("api.ecr-public.us-east-1.amazonaws.com", "us-east-1", "ecr-public"),
    ],
)
def test_every_header_is_the_one_that_botocore_sends(
    host: str, region: str, service: str, body: bytes, key: Key
) -> None:
    headers = {
        "Content-Type": "application/x-amz-json-1.1",
        "X-Amz-Target": "AmazonEC2ContainerRegistry_V20150921.GetAuthorizationToken",
    }
    theirs = signed_by_botocore(host, headers, body, key=key, region=region, service=service)
    ours = signed(host, headers, body, key=key, region=region, service=service, now=moment(theirs))
    assert ours == theirs


_names = st.from_regex(r"\A[A-Za-z][A-Za-z0-9-]{0,20}\Z").filter(
    lambda name: (
        name.lower() not in {*SIGNED_HEADERS_BLACKLIST, "host", "date", "authorization"}
        and not name.lower().startswith("x-amz-")
    )
)
_visible = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=60)


@given(
    headers=st.dictionaries(
        _names, st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=40)
    ).filter(lambda headers: len({name.lower() for name in headers}) == len(headers)),
    body=st.binary(max_size=300),
    key=st.builds(Key, _visible, _visible, st.just("") | _visible),
    region=st.from_regex(r"\A[a-z]{2}-[a-z]{1,9}-[0-9]\Z"),
    service=st.sampled_from(["ecr", "ecr-public", "sts"]),
)
@settings(max_examples=200, deadline=None)
def test_whatever_is_signed_is_signed_as_by_botocore(
    headers: dict[str, str], body: bytes, key: Key, region: str, service: str
) -> None:
    host = f"api.{service}.{region}.amazonaws.com"
    theirs = signed_by_botocore(host, headers, body, key=key, region=region, service=service)
    ours = signed(host, headers, body, key=key, region=region, service=service, now=moment(theirs))
    assert ours == theirs


def test_the_time_is_that_of_greenwich() -> None:
    elsewhere = datetime(2026, 1, 2, 1, 30, tzinfo=timezone(timedelta(hours=2)))
    headers = signed("host", {}, b"", key=KEY, region="eu-west-1", service="ecr", now=elsewhere)
    assert headers["X-Amz-Date"] == "20260101T233000Z"


def test_a_key_is_not_printed() -> None:
    assert repr(SESSION) == "Key(id='AKIDEXAMPLE')"
