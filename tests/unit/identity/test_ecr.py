"""Passwords for Amazon's registries, asked for as AWS' own library asks."""

import asyncio
import json
from collections.abc import Iterator
from contextlib import closing
from datetime import datetime, timedelta
from typing import Any

import botocore.session
import pytest
from botocore.awsrequest import AWSPreparedRequest, AWSResponse
from botocore.config import Config
from botocore.credentials import ContainerProvider
from botocore.endpoint_provider import EndpointProvider
from botocore.utils import ContainerMetadataFetcher, InstanceMetadataFetcher

from cluster.authority import Authority
from fakes.clouds import ACCESS_KEY, FEDERATED, ROLE, Asked
from tagpin.errors import ConfigurationError, Unobtainable
from tagpin.identity.clouds import CloudIdentities
from tagpin.identity.ecr import Api, api_of
from tagpin.keychain import Credential, Identity

from .conftest import Sky

REGISTRY = "123456789012.dkr.ecr.eu-west-1.amazonaws.com"
STATIC = {"AWS_ACCESS_KEY_ID": ACCESS_KEY[0], "AWS_SECRET_ACCESS_KEY": ACCESS_KEY[1]}
PASSWORD = Credential("AWS", "ecr-password")

BOTOCORE = botocore.session.get_session()  # one for all, since it reads its data but once
REGIONS = [
    (partition, region)
    for partition in BOTOCORE.get_available_partitions()
    for region in BOTOCORE.get_available_regions("ecr", partition)
]


async def ask(identities: CloudIdentities, host: str = REGISTRY) -> Credential:
    return await identities.obtain(Identity("ecr", host))


async def refusal(identities: CloudIdentities, host: str = REGISTRY) -> str:
    with pytest.raises(Unobtainable) as raised:
        await ask(identities, host)
    return str(raised.value)


# Which registries


@pytest.mark.parametrize(
    ("host", "api"),
    [
        (REGISTRY, "api.ecr.eu-west-1.amazonaws.com"),
        (
            "123456789012.dkr.ecr-fips.us-east-1.amazonaws.com",
            "api.ecr-fips.us-east-1.amazonaws.com",
        ),
        (
            "123456789012.dkr.ecr-fips.us-gov-west-1.amazonaws.com",
            "api.ecr-fips.us-gov-west-1.amazonaws.com",
        ),
        (
            "123456789012.dkr.ecr.us-gov-east-1.amazonaws.com",
            "api.ecr.us-gov-east-1.amazonaws.com",
        ),
        (
            "123456789012.dkr.ecr.cn-north-1.amazonaws.com.cn",
            "api.ecr.cn-north-1.amazonaws.com.cn",
        ),
        ("123456789012.dkr-ecr.eu-west-1.on.aws", "ecr.eu-west-1.api.aws"),
        ("123456789012.dkr-ecr-fips.us-west-2.on.aws", "ecr-fips.us-west-2.api.aws"),
        (
            "123456789012.dkr-ecr.cn-north-1.on.amazonwebservices.com.cn",
            "ecr.cn-north-1.api.amazonwebservices.com.cn",
        ),
        ("123456789012.dkr.ecr.us-iso-east-1.c2s.ic.gov", "api.ecr.us-iso-east-1.c2s.ic.gov"),
        (
            "123456789012.dkr.ecr.us-isob-east-1.sc2s.sgov.gov",
            "api.ecr.us-isob-east-1.sc2s.sgov.gov",
        ),
        (
            "123456789012.dkr.ecr.eu-isoe-west-1.cloud.adc-e.uk",
            "api.ecr.eu-isoe-west-1.cloud.adc-e.uk",
        ),
        (
            "123456789012.dkr.ecr.us-isof-south-1.csp.hci.ic.gov",
            "api.ecr.us-isof-south-1.csp.hci.ic.gov",
        ),
        ("123456789012.dkr.ecr.eusc-de-east-1.amazonaws.eu", "api.ecr.eusc-de-east-1.amazonaws.eu"),
        ("public.ecr.aws", "api.ecr-public.us-east-1.amazonaws.com"),
    ],
)
def test_the_registry_names_the_place_of_its_passwords(host: str, api: str) -> None:
    found = api_of(host)
    assert found is not None
    assert found.host == api


@pytest.mark.parametrize(
    "host",
    [
        "123456789012.dkr.ecr.eu-west-1.amazonaws.com.evil.example",
        "evil.example.123456789012.dkr.ecr.eu-west-1.amazonaws.com",
        "123456789012.dkr.ecr.eu-west-1.amazonaws.com.",
        "123456789012.dkr.ecr.eu-west-1.amazonaws.com\n",
        "123456789012.dkr.ecr.eu-west-1.amazonaws.com:443",
        "123456789012.dkr.ecr.eu-west-1.amazonaws.com:8443",
        "123456789012.DKR.ECR.eu-west-1.amazonaws.com",
        "123456789012.dkr.ecr.EU-WEST-1.amazonaws.com",
        "1234567890123.dkr.ecr.eu-west-1.amazonaws.com",
        "12345678901.dkr.ecr.eu-west-1.amazonaws.com",
        "١٢٣٤٥٦٧٨٩٠١٢.dkr.ecr.eu-west-1.amazonaws.com",
        "123456789012.dkr.ecr.eu-west-1.amazonaws.co",
        "123456789012.dkr.ecr.eu-west-1.amazonaws.com.cn",
        "123456789012.dkr.ecr.cn-north-1.amazonaws.com",
        "123456789012.dkr.ecr.eu-west-1.amazonawsxcom",
        "123456789012.dkr.ecr.eu-west-1.amazonaws.com@evil.example",
        "123456789012.dkr.ecr.eu-west-1.evil.example/.amazonaws.com",
        "123456789012xdkr.ecr.eu-west-1.amazonaws.com",
        "123456789012.dkr.ecr.eu-west-1.on.aws",
        "123456789012.dkr-ecr.eu-west-1.amazonaws.com",
        "123456789012.dkr.ecr.s3.amazonaws.com",  # a bucket of S3 may be called so
        "123456789012.dkr.ecr.s3-eu-west-1.amazonaws.com",
        "123456789012.dkr-ecr.s3-website-eu-west-1.on.aws",
        "123456789012.dkr-ecr.lambda-url.eu-west-1.on.aws",
        "123456789012.dkr.ecr.eu-west-1.evil.amazonaws.com",
        "123456789012.dkr.ecr-fipsx.eu-west-1.amazonaws.com",
        "123456789012.dkr.ecr.-west-1.amazonaws.com",
        "xn--123456789012-.dkr.ecr.eu-west-1.amazonaws.com",
        "publ\u0456c.ecr.aws",  # a Cyrillic i
        "public.ecr.aws.",
        "public.ecr.aws:443",
        "PUBLIC.ECR.AWS",
        "public.ecr.aws.evil.example",
        "public-ecr.aws",
        "ecr.aws",
        "",
    ],
)
def test_what_only_looks_like_a_registry_of_amazons_is_none(host: str) -> None:
    assert api_of(host) is None


DUAL_STACK = {
    "aws": "on.aws",
    "aws-us-gov": "on.aws",
    "aws-cn": "on.amazonwebservices.com.cn",
}


@pytest.mark.parametrize(("partition", "region"), REGIONS)
def test_in_every_region_the_endpoints_are_those_of_botocore(partition: str, region: str) -> None:
    data = BOTOCORE.get_component("data_loader")

    def endpoint(service: str, *, fips: bool = False, dual: bool = False) -> str:
        rules = data.load_service_model(service, "endpoint-rule-set-1")
        provider = EndpointProvider(rules, data.load_data("partitions"))
        found = provider.resolve_endpoint(Region=region, UseFIPS=fips, UseDualStack=dual)
        return str(found.url.removeprefix("https://"))

    suffix = endpoint("sts").removeprefix(f"sts.{region}.")
    hosts = {f"123456789012.dkr.ecr.{region}.{suffix}": endpoint("ecr")}
    hosts[f"123456789012.dkr.ecr-fips.{region}.{suffix}"] = endpoint("ecr", fips=True)
    if partition in DUAL_STACK:
        ending = DUAL_STACK[partition]
        hosts[f"123456789012.dkr-ecr.{region}.{ending}"] = endpoint("ecr", dual=True)
        fips = endpoint("ecr", dual=True, fips=True)
        hosts[f"123456789012.dkr-ecr-fips.{region}.{ending}"] = fips
    assert {host: api_of(host) for host in hosts} == {
        host: Api(api, region) for host, api in hosts.items()
    }


def test_there_are_many_regions_to_compare() -> None:
    assert len(REGIONS) > 40


# The request


def request_of_botocore(
    service: str, region: str, key: tuple[str | None, ...], **variant: bool
) -> Any:
    """What botocore sends to have a password, instead of sending it."""
    caught: list[AWSPreparedRequest] = []

    class Raw:
        def stream(self) -> Iterator[bytes]:
            yield b"{}"

    def catch(request: AWSPreparedRequest, **_: object) -> AWSResponse:
        caught.append(request)
        return AWSResponse(request.url, 200, {}, Raw())

    names = ("aws_access_key_id", "aws_secret_access_key", "aws_session_token")
    client = BOTOCORE.create_client(
        service, region_name=region, config=Config(**variant), **dict(zip(names, key, strict=True))
    )
    client.meta.events.register("before-send.*", catch)
    client.get_authorization_token()
    return caught[0]


@pytest.mark.parametrize("token", ["", "IQoJb3JpZ2luX2VjE+/=="])
@pytest.mark.parametrize(
    ("host", "service", "region"),
    [
        (REGISTRY, "ecr", "eu-west-1"),
        ("123456789012.dkr.ecr-fips.us-east-1.amazonaws.com", "ecr", "us-east-1"),
        ("123456789012.dkr-ecr.eu-west-1.on.aws", "ecr", "eu-west-1"),
        ("123456789012.dkr.ecr.cn-north-1.amazonaws.com.cn", "ecr", "cn-north-1"),
        ("public.ecr.aws", "ecr-public", "us-east-1"),
    ],
)
async def test_a_password_is_asked_for_as_botocore_does(
    sky: Sky, host: str, service: str, region: str, token: str
) -> None:
    key = (*ACCESS_KEY, token or None)
    variant = {"use_fips_endpoint": "-fips" in host, "use_dualstack_endpoint": ".on." in host}
    theirs = request_of_botocore(service, region, key, **variant)
    when = datetime.strptime(theirs.headers["X-Amz-Date"].decode() + "+0000", "%Y%m%dT%H%M%SZ%z")
    sky.clock.started = when - timedelta(seconds=sky.clock.seconds)
    sky.clouds.keys = {ACCESS_KEY[0]: (ACCESS_KEY[1], token)}

    identities = await sky.identities("ecr", environment=STATIC | {"AWS_SESSION_TOKEN": token})
    assert await ask(identities, host) == PASSWORD

    [ours] = sky.clouds.seen
    assert (ours.method, f"https://{ours.host}{ours.path}") == (theirs.method, theirs.url)
    assert ours.body == theirs.body
    signature = theirs.headers["Authorization"].decode()
    assert ours.headers["authorization"] == signature
    names = signature.partition("SignedHeaders=")[2].partition(",")[0].split(";")
    assert {name: ours.headers[name] for name in names if name != "host"} == {
        name: theirs.headers[name].decode() for name in names if name != "host"
    }


async def test_the_role_of_the_service_account_is_assumed_as_by_botocore(
    sky: Sky, authority: Authority
) -> None:
    identities = await sky.identities("ecr", environment=sky.clouds.irsa(sky.folder))
    assert await ask(identities) == PASSWORD
    sts, api = sky.clouds.seen
    client = BOTOCORE.create_client(
        "sts",
        region_name="eu-west-1",
        endpoint_url=f"https://127.0.0.1:{sky.clouds.port}",
        verify=str(authority.certificate),
    )
    with closing(client):
        answer = await asyncio.to_thread(
            client.assume_role_with_web_identity,
            RoleArn=ROLE,
            RoleSessionName="tagpin",
            WebIdentityToken=FEDERATED,
        )
    theirs = sky.clouds.seen[2]
    assert (sts.method, sts.path, sts.query) == (theirs.method, theirs.path, theirs.query)
    assert sts.form == theirs.form
    assert "authorization" not in {*sts.headers, *theirs.headers}
    assert sts.host == "sts.eu-west-1.amazonaws.com"
    # Both read an answer: what they were given is what the next request was signed with.
    assert sky.clouds.keys[answer["Credentials"]["AccessKeyId"]] == (
        answer["Credentials"]["SecretAccessKey"],
        answer["Credentials"]["SessionToken"],
    )
    assert "Credential=ASIA1/" in api.headers["authorization"]


async def test_the_pod_identity_agent_is_asked_as_by_botocore(sky: Sky) -> None:
    sky.be_now()
    environment = sky.clouds.pod_identity(sky.folder)
    assert await ask(await sky.identities("ecr", environment=environment)) == PASSWORD
    provider = ContainerProvider(environ=environment, fetcher=ContainerMetadataFetcher())
    assert (await asyncio.to_thread(provider.load)).access_key == "ASIA2"
    ours, _, theirs = sky.clouds.seen
    assert wire(ours, "accept", "authorization") == wire(theirs, "accept", "authorization")


async def test_the_role_of_the_node_is_asked_for_as_by_botocore(sky: Sky) -> None:
    environment = sky.clouds.instance()
    identities = await sky.identities("ecr", environment=environment, aws_instance_role=True)
    assert await ask(identities) == PASSWORD
    fetcher = InstanceMetadataFetcher(base_url=f"http://{sky.clouds.node}/")
    found = await asyncio.to_thread(fetcher.retrieve_iam_role_credentials)
    assert found["role_name"] == "node-role"
    ours, theirs = sky.clouds.seen[:3], sky.clouds.seen[4:]
    assert [wire(each, "x-aws-ec2-metadata-token") for each in ours] == [
        wire(each, "x-aws-ec2-metadata-token") for each in theirs
    ]
    assert "x-aws-ec2-metadata-token-ttl-seconds" in ours[0].headers


def wire(asked: Asked, *names: str) -> tuple[object, ...]:
    headers = {name: asked.headers.get(name) for name in names}
    return asked.method, asked.host, asked.path, dict(asked.query), headers, asked.body


@pytest.mark.parametrize(
    "uri",
    [
        "http://169.254.170.23/v1/credentials",
        "http://169.254.170.2/v2/credentials",
        "http://[fd00:ec2::23]/v1/credentials",
        "http://localhost:1234/x",
        "http://127.0.0.53/x",
        "http://[::1]/x",
        "https://agent.example/x",
        "http://169.254.169.254/latest",
        "http://agent.example/x",
        "http://10.0.0.1/x",
        "http://localhost.evil.example/x",
        "http://169.254.170.23.evil.example/x",
        "http://169.254.170.2@evil.example/x",
        "http://[fd00:ec2::24]/x",
        "http://0.0.0.0/x",
        "http:///x",
        "ftp://localhost/x",
    ],
)
async def test_the_agents_token_goes_where_botocore_lets_it_go(sky: Sky, uri: str) -> None:
    try:
        ContainerMetadataFetcher()._validate_allowed_url(uri)
        allowed = not uri.startswith("ftp")  # which it then cannot speak
    except ValueError:
        allowed = False
    environment = sky.clouds.pod_identity(sky.folder)
    environment["AWS_CONTAINER_CREDENTIALS_FULL_URI"] = uri
    message = await refusal(await sky.identities("ecr", environment=environment, timeout=0.05))
    assert ("neither https nor on this node" not in message) is allowed, message


# Whose key


async def test_a_key_in_the_environment_comes_before_all_others(sky: Sky) -> None:
    environment = sky.clouds.irsa(sky.folder) | sky.clouds.pod_identity(sky.folder) | STATIC
    await ask(await sky.identities("ecr", environment=environment))
    assert [each.host for each in sky.clouds.seen] == ["api.ecr.eu-west-1.amazonaws.com"]


async def test_the_role_comes_before_the_pod_identity_and_that_before_the_node(sky: Sky) -> None:
    pod = sky.clouds.instance() | sky.clouds.pod_identity(sky.folder)
    role = pod | sky.clouds.irsa(sky.folder)
    for environment, first in [(role, "/"), (pod, "/v1/credentials")]:
        sky.clouds.seen.clear()
        identities = await sky.identities("ecr", environment=environment, aws_instance_role=True)
        await ask(identities)
        assert sky.clouds.seen[0].path == first
        assert len(sky.clouds.seen) == 2


async def test_the_role_of_the_node_is_left_alone_unless_allowed(sky: Sky) -> None:
    identities = await sky.identities("ecr", environment=sky.clouds.instance())
    message = await refusal(identities)
    assert "no AWS credentials: give the service account a role (IRSA" in message
    assert "AWS_ACCESS_KEY_ID" in message
    assert sky.clouds.seen == []


async def test_the_token_of_the_service_account_is_read_anew_each_time(sky: Sky) -> None:
    environment = sky.clouds.irsa(sky.folder)
    identities = await sky.identities("ecr", environment=environment)
    await ask(identities)
    sky.renew_token("second")
    sky.clock.advance(3601)
    await ask(identities)
    assert [each.form["WebIdentityToken"] for each in sky.clouds.asked("sts.")] == [
        FEDERATED,
        "second",
    ]


async def test_without_a_region_of_our_own_roles_are_assumed_in_that_of_the_registry(
    sky: Sky,
) -> None:
    environment = sky.clouds.irsa(sky.folder)
    del environment["AWS_REGION"]
    identities = await sky.identities("ecr", environment=environment)
    await ask(identities, "123456789012.dkr.ecr.cn-north-1.amazonaws.com.cn")
    assert [each.host for each in sky.clouds.seen] == [
        "sts.cn-north-1.amazonaws.com.cn",
        "api.ecr.cn-north-1.amazonaws.com.cn",
    ]


async def test_a_registry_in_another_part_of_aws_is_not_shown_our_session(sky: Sky) -> None:
    for environment in (STATIC | {"AWS_REGION": "eu-west-1"}, sky.clouds.irsa(sky.folder)):
        identities = await sky.identities("ecr", environment=environment)
        message = await refusal(identities, "123456789012.dkr.ecr.cn-north-1.amazonaws.com.cn")
        assert "AWS_REGION is eu-west-1" in message
    assert sky.clouds.seen == []


def test_a_region_that_is_none_is_told_at_the_start() -> None:
    with pytest.raises(ConfigurationError, match=r"AWS_REGION is 'evil\.example/'"):
        CloudIdentities(["ecr"], {"AWS_REGION": "evil.example/"})


@pytest.mark.parametrize("value", ["169.254.169.254", "http://[fd00:ec2::254", "https://a.test"])
def test_a_metadata_server_that_is_none_is_told_at_the_start(value: str) -> None:
    variable = "AWS_EC2_METADATA_SERVICE_ENDPOINT"
    with pytest.raises(ConfigurationError, match=variable):
        CloudIdentities(["ecr"], {variable: value})


# What is missing is named, and no more


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({}, "no AWS credentials: give the service account a role"),
        ({"AWS_ACCESS_KEY_ID": "a"}, "AWS_ACCESS_KEY_ID is set without AWS_SECRET_ACCESS_KEY"),
        (
            {"AWS_ACCESS_KEY_ID": "a\r\nb", "AWS_SECRET_ACCESS_KEY": "b"},
            "AWS_ACCESS_KEY_ID holds what no key",
        ),
        (
            {"AWS_WEB_IDENTITY_TOKEN_FILE": "/nonexistent"},
            "AWS_WEB_IDENTITY_TOKEN_FILE is set without AWS_ROLE_ARN",
        ),
        (
            {"AWS_WEB_IDENTITY_TOKEN_FILE": "/nonexistent", "AWS_ROLE_ARN": ROLE},
            "the file that AWS_WEB_IDENTITY_TOKEN_FILE names cannot be read: No such file",
        ),
        (
            {"AWS_WEB_IDENTITY_TOKEN_FILE": "/dev/null", "AWS_ROLE_ARN": ROLE},
            "the file that AWS_WEB_IDENTITY_TOKEN_FILE names holds no token",
        ),
        (
            {"AWS_WEB_IDENTITY_TOKEN_FILE": "/dev/zero", "AWS_ROLE_ARN": ROLE},
            "the file that AWS_WEB_IDENTITY_TOKEN_FILE names holds no token",
        ),
        (
            {"AWS_CONTAINER_CREDENTIALS_FULL_URI": "http://[::1"},
            "AWS_CONTAINER_CREDENTIALS_FULL_URI is neither https nor on this node",
        ),
        (
            {
                "AWS_CONTAINER_CREDENTIALS_FULL_URI": "http://127.0.0.1/",
                "AWS_CONTAINER_AUTHORIZATION_TOKEN": "to\r\nken",
            },
            "AWS_CONTAINER_AUTHORIZATION_TOKEN holds what no key or token holds",
        ),
    ],
)
async def test_what_is_missing_is_named(sky: Sky, environment: dict[str, str], words: str) -> None:
    assert words in await refusal(await sky.identities("ecr", environment=environment))
    assert sky.clouds.seen == []


async def test_a_token_that_is_longer_than_any_is_not_sent(sky: Sky) -> None:
    environment = sky.clouds.irsa(sky.folder)
    sky.renew_token("x" * 16_385)
    message = await refusal(await sky.identities("ecr", environment=environment))
    assert message == "the file that AWS_WEB_IDENTITY_TOKEN_FILE names holds no token"
    assert sky.clouds.seen == []


async def test_a_denial_says_which_permission_is_needed(sky: Sky) -> None:
    sky.clouds.fault("api.ecr", status=400, text='{"__type":"AccessDeniedException"} echo')
    identities = await sky.identities("ecr", environment=STATIC)
    assert await refusal(identities) == (
        "api.ecr.eu-west-1.amazonaws.com answered 400: the role needs ecr:GetAuthorizationToken, "
        "and this node a clock that is right"
    )
    message = await refusal(identities, "public.ecr.aws")
    assert "ecr-public:GetAuthorizationToken and sts:GetServiceBearerToken" in message


async def test_a_role_that_does_not_trust_us_is_told(sky: Sky) -> None:
    environment = sky.clouds.irsa(sky.folder)
    sky.clouds.federated = "another"
    message = await refusal(await sky.identities("ecr", environment=environment))
    assert message == (
        "sts.eu-west-1.amazonaws.com answered 403: the role of AWS_ROLE_ARN must trust tagpin's "
        "service account"
    )


async def test_a_signature_of_another_time_is_refused_by_the_cloud(sky: Sky) -> None:
    def late() -> datetime:
        return sky.clock.now() + timedelta(minutes=20)

    identities = await sky.identities("ecr", environment=STATIC, now=late)
    assert "a clock that is right" in await refusal(identities)


async def test_a_signature_with_another_secret_is_refused_by_the_cloud(sky: Sky) -> None:
    environment = STATIC | {"AWS_SECRET_ACCESS_KEY": "another"}
    assert "answered 400" in await refusal(await sky.identities("ecr", environment=environment))


# What is kept


async def test_one_password_serves_all_registries_of_a_region(sky: Sky) -> None:
    identities = await sky.identities("ecr", environment=STATIC)
    for account in ("123456789012", "210987654321", "000000000000"):
        host = f"{account}.dkr.ecr.eu-west-1.amazonaws.com"
        assert await ask(identities, host) == PASSWORD
    await ask(identities, "123456789012.dkr.ecr.eu-central-1.amazonaws.com")
    assert [each.host for each in sky.clouds.seen] == [
        "api.ecr.eu-west-1.amazonaws.com",
        "api.ecr.eu-central-1.amazonaws.com",
    ]


async def test_a_role_is_assumed_once_for_all_regions(sky: Sky) -> None:
    identities = await sky.identities("ecr", environment=sky.clouds.irsa(sky.folder))
    regions = ("eu-west-1", "eu-central-1", "us-east-1")
    hosts = [f"123456789012.dkr.ecr.{region}.amazonaws.com" for region in regions]
    await asyncio.gather(*[ask(identities, host) for host in hosts])
    assert len(sky.clouds.asked("sts.")) == 1


async def test_a_role_is_assumed_again_shortly_before_its_session_ends(sky: Sky) -> None:
    sky.clouds.lifetime = 900
    identities = await sky.identities("ecr", environment=sky.clouds.irsa(sky.folder))
    hosts = [
        f"123456789012.dkr.ecr.{region}.amazonaws.com" for region in ("eu-west-1", "us-east-1")
    ]
    await ask(identities, hosts[0])
    sky.clock.advance(850)
    await ask(identities, hosts[1])
    assert len(sky.clouds.asked("sts.")) == 2


# Answers that are no answers


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"[]",
        b"null",
        b"1",
        b"{}",
        b'{"authorizationData": {}}',
        b'{"authorizationData": []}',
        b'{"authorizationData": [null]}',
        b'{"authorizationData": [{"authorizationToken": 1, "expiresAt": 1}]}',
        b'{"authorizationData": [{"authorizationToken": "!!!!", "expiresAt": 1}]}',
        b'{"authorizationData": [{"authorizationToken": "QVdT!OmE=", "expiresAt": 1}]}',
        b'{"authorizationData": [{"authorizationToken": "bm9jb2xvbg==", "expiresAt": 1}]}',
        b'{"authorizationData": [{"authorizationToken": "ZXZpbDpwYXNz", "expiresAt": 1}]}',
        b'{"authorizationData": [{"authorizationToken": "QVdTOg==", "expiresAt": 1}]}',
        b'{"authorizationData": [{"authorizationToken": "QVdTOmENCmI=", "expiresAt": 1}]}',
        b'{"authorizationData": [{"authorizationToken": "QVdTOmE=", "expiresAt": "soon"}]}',
        b'{"authorizationData": [{"authorizationToken": "QVdTOmE=", "expiresAt": true}]}',
        b'{"authorizationData": [{"authorizationToken": "QVdTOmE=", "expiresAt": null}]}',
        b'{"authorizationData": [{"authorizationToken": "QVdTOmE="}]}',
        b'{"authorizationData": [{"authorizationToken": "QVdTOmE=", "expiresAt": 1e400}]}',
        b"[" * 60_000,
        b'{"authorizationData": "' + b"x" * 65536 + b'"}',
    ],
)
async def test_an_answer_that_is_none_gives_no_credential(sky: Sky, body: bytes) -> None:
    sky.clouds.fault("api.ecr", body=body)
    message = await refusal(await sky.identities("ecr", environment=STATIC))
    assert "api.ecr.eu-west-1.amazonaws.com" in message
    assert len(message) < 120
    assert "evil" not in message


@pytest.mark.parametrize(
    "credentials",
    [
        None,
        [],
        {"SecretAccessKey": "b", "SessionToken": "c", "Expiration": 2e9},
        {"AccessKeyId": "a\r\nb", "SecretAccessKey": "b", "SessionToken": "c", "Expiration": 2e9},
        {"AccessKeyId": "a", "SecretAccessKey": 1, "SessionToken": "c", "Expiration": 2e9},
        {"AccessKeyId": "a", "SecretAccessKey": "b", "SessionToken": "", "Expiration": 2e9},
        {"AccessKeyId": "a", "SecretAccessKey": "b", "SessionToken": "c" * 20_000, "Expiration": 2},
        {"AccessKeyId": "a", "SecretAccessKey": "b", "SessionToken": "c"},
    ],
)
async def test_a_session_that_is_none_signs_nothing(sky: Sky, credentials: Any) -> None:
    result = {"AssumeRoleWithWebIdentityResult": {"Credentials": credentials}}
    answer = {"AssumeRoleWithWebIdentityResponse": result}
    sky.clouds.fault("sts.", body=json.dumps(answer).encode())
    message = await refusal(await sky.identities("ecr", environment=sky.clouds.irsa(sky.folder)))
    assert message.startswith("sts.eu-west-1.amazonaws.com gave no usable ")
    assert sky.clouds.asked("api.ecr") == []


@pytest.mark.parametrize("role", ["../../api/token", "a b", "", "a\r\nb", "x" * 65, "rôle"])
async def test_a_role_of_the_node_that_is_no_name_is_not_asked_for(sky: Sky, role: str) -> None:
    sky.clouds.fault("/latest/meta-data/iam/security-credentials/", text=role)
    identities = await sky.identities(
        "ecr", environment=sky.clouds.instance(), aws_instance_role=True
    )
    assert "gave no usable role" in await refusal(identities)
    assert len(sky.clouds.seen) == 2
