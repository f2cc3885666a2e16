"""The endpoints of AWS, Google and Azure where credentials for their registries are had.

    async with FakeClouds(tls) as clouds:
        environment = clouds.of_service_account(folder)  # who we are, to all three of them
        clouds.names          # resolves the clouds' own names, and leads to this process
        clouds.fault("/oauth2/exchange", status=403)
        print(clouds.seen)

Whether a request is signed well, AWS' own library says (botocore), so that no misreading of ours
makes a signature good. What is asked elsewhere is compared with the other clouds' libraries in
tests/unit/identity.
"""

import base64
import hmac
import json
import re
import ssl
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qsl

from aiohttp import web
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from fakes.names import FakeNames

ACCESS_KEY = ("AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY")
ROLE = "arn:aws:iam::123456789012:role/tagpin"
FEDERATED = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJ0YWdwaW4ifQ.c2lnbmF0dXJl"
TENANT = "11111111-2222-3333-4444-555555555555"
CLIENT = "66666666-7777-8888-9999-000000000000"

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_SIGNATURE = re.compile(
    r"AWS4-HMAC-SHA256 Credential=(?P<id>[^/]+)/(?P<date>\d{8})/(?P<region>[^/]+)"
    r"/(?P<service>[^/]+)/aws4_request, SignedHeaders=(?P<names>[^,]+), "
    r"Signature=(?P<signature>[0-9a-f]{64})"
)
_API = re.compile(
    r"(?:api\.)?(?P<service>ecr|ecr-public)(?:-fips)?\.(?P<region>[a-z0-9-]+)"
    r"\.(?:amazonaws\.com(?:\.cn)?|api\.aws|api\.amazonwebservices\.com\.cn)"
)


@dataclass(frozen=True, slots=True)
class Asked:
    """A request as it arrived; header names are in lower case."""

    method: str
    host: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)

    @property
    def form(self) -> dict[str, str]:
        return dict(parse_qsl(self.body.decode(), keep_blank_values=True))


class CloudNames(FakeNames):
    """Names that lead to ports of their own on loopback; what has none does not exist."""

    def __init__(self) -> None:
        super().__init__()
        self.ports: dict[str, int] = {}

    def lead(self, name: str, port: int, address: str = "127.0.0.1") -> None:
        self.add(name, [address])
        self.ports[name] = port

    async def resolve(self, host: str, port: int = 0, family: Any = 0) -> Any:
        found = await super().resolve(host, port, family)
        return [{**each, "port": self.ports.get(host.rstrip("."), port)} for each in found]


class FakeClouds:
    """All three clouds, on one port with `tls` and on one without, which is that of the node."""

    def __init__(
        self,
        tls: ssl.SSLContext,
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.names = CloudNames()
        self.seen: list[Asked] = []
        self.keys: dict[str, tuple[str, str]] = {ACCESS_KEY[0]: (ACCESS_KEY[1], "")}
        """Access keys that are good: id → secret, session token."""
        self.lifetime = 3600.0
        """Seconds for which what is given is good: ECR's passwords 12 times, ACR's tokens 3."""
        self.password = "ecr-password"
        self.federated = FEDERATED
        """The token of our service account that AWS, the node and Azure take."""
        self._tls = tls
        self._now = now
        self._faults: list[tuple[str, Handler]] = []
        self._given = 0
        self._runner: web.AppRunner | None = None
        self.port = 0
        self.node = ""
        """`host:port` of what is on the node: the metadata servers and the agent."""

    async def __aenter__(self) -> Self:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._receive)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0, ssl_context=self._tls).start()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.port = self._runner.addresses[0][1]
        self.node = f"127.0.0.1:{self._runner.addresses[1][1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    def lead(self, *names: str) -> None:
        """Let names of a cloud's endpoints lead here."""
        for name in names:
            self.names.lead(name, self.port)

    def fault(self, part: str, handler: Handler | None = None, **answer: Any) -> None:
        """From now on `handler`, or this answer, takes requests whose host and path have `part`."""

        async def fixed(_: web.Request) -> web.Response:
            return web.Response(**answer)

        self._faults.insert(0, (part, handler or fixed))

    def heal(self) -> None:
        """Answer as before."""
        self._faults.clear()

    def asked(self, part: str) -> list[Asked]:
        """The requests whose host and path contain `part`."""
        return [each for each in self.seen if part in each.host + each.path]

    # Who we are

    def irsa(self, folder: Path) -> dict[str, str]:
        """The environment of a service account with a role of AWS."""
        return {
            "AWS_ROLE_ARN": ROLE,
            "AWS_WEB_IDENTITY_TOKEN_FILE": self._token_file(folder),
            "AWS_REGION": "eu-west-1",
        }

    def pod_identity(self, folder: Path) -> dict[str, str]:
        """The environment of a service account with an EKS Pod Identity."""
        return {
            "AWS_CONTAINER_CREDENTIALS_FULL_URI": f"http://{self.node}/v1/credentials",
            "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE": self._token_file(folder),
        }

    def instance(self) -> dict[str, str]:
        """The environment that names this node's metadata servers, of all clouds."""
        return {
            "AWS_EC2_METADATA_SERVICE_ENDPOINT": f"http://{self.node}/",
            "AZURE_POD_IDENTITY_AUTHORITY_HOST": f"http://{self.node}",
            "GCE_METADATA_HOST": self.node,
        }

    def workload(self, folder: Path) -> dict[str, str]:
        """The environment of a service account that an application of Azure's trusts."""
        return {
            "AZURE_AUTHORITY_HOST": "https://login.microsoftonline.com/",
            "AZURE_TENANT_ID": TENANT,
            "AZURE_CLIENT_ID": CLIENT,
            "AZURE_FEDERATED_TOKEN_FILE": self._token_file(folder),
        }

    def _token_file(self, folder: Path) -> str:
        file = folder / "token"
        file.write_text(self.federated)
        return str(file)

    # What they answer

    async def _receive(self, request: web.Request) -> web.StreamResponse:
        headers = {name.lower(): value for name, value in request.headers.items()}
        body = await request.read()
        asked = Asked(
            request.method, request.host, request.path, dict(request.query), headers, body
        )
        self.seen.append(asked)
        for part, handler in self._faults:
            if part in asked.host + asked.path:
                return await handler(request)
        if request.secure:
            return self._cloud(asked)
        return self._metadata(asked)

    def _cloud(self, asked: Asked) -> web.Response:
        match asked.method, asked.path.split("/"):
            case "POST", ["", tenant, "oauth2", "v2.0", "token"]:
                return self._entra(asked, tenant)
            case "POST", ["", "oauth2", "exchange"]:
                return self._acr(asked)
            case "POST", ["", ""] if asked.form.get("Action") == "AssumeRoleWithWebIdentity":
                return self._sts(asked)
            case "POST", ["", ""] if "x-amz-target" in asked.headers:
                return self._ecr(asked)
        return web.Response(status=404)

    def _metadata(self, asked: Asked) -> web.Response:
        match asked.method, asked.path:
            case "GET", "/computeMetadata/v1/instance/service-accounts/default/token":
                return self._google_token(asked)
            case "GET", "/computeMetadata/v1/instance/service-accounts/default/":
                return self._flavored({"email": "tagpin@demo.iam.gserviceaccount.com"})
            case "GET", "/metadata/identity/oauth2/token":
                return self._managed_identity(asked)
            case "GET", "/v1/credentials":
                return self._pod_identity(asked)
        return self._imds(asked)

    # AWS

    def new_key(self) -> tuple[str, str, str]:
        """An access key that is good from now on: id, secret, session token."""
        self._given += 1
        key = (f"ASIA{self._given}", f"secret/{self._given}", f"session/{self._given}==")
        self.keys[key[0]] = key[1:]
        return key

    def _end(self) -> datetime:
        return (self._now() + timedelta(seconds=self.lifetime)).replace(microsecond=0)

    def _access_key(self) -> dict[str, str]:
        key, secret, session = self.new_key()
        end = self._end().strftime("%Y-%m-%dT%H:%M:%SZ")
        return {
            "Code": "Success",
            "AccessKeyId": key,
            "SecretAccessKey": secret,
            "Token": session,
            "Expiration": end,
        }

    def _pod_identity(self, asked: Asked) -> web.Response:
        if asked.headers.get("authorization") != self.federated:
            return web.Response(status=401)
        return web.json_response(self._access_key())

    def _sts(self, asked: Asked) -> web.Response:
        form = asked.form
        wanted = {"Version": "2011-06-15", "RoleArn": ROLE, "WebIdentityToken": self.federated}
        if not wanted.items() <= form.items() or "authorization" in asked.headers:
            return web.Response(status=403)
        key, secret, session = self.new_key()
        given = {"AccessKeyId": key, "SecretAccessKey": secret, "SessionToken": session}
        if asked.headers.get("accept") == "application/json":
            result = {"Credentials": given | {"Expiration": self._end().timestamp()}}
            answer = {"AssumeRoleWithWebIdentityResult": result}
            return web.json_response({"AssumeRoleWithWebIdentityResponse": answer})
        members = given | {"Expiration": self._end().strftime("%Y-%m-%dT%H:%M:%SZ")}
        inner = "".join(f"<{name}>{value}</{name}>" for name, value in members.items())
        text = (
            '<AssumeRoleWithWebIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/">'
            f"<AssumeRoleWithWebIdentityResult><Credentials>{inner}</Credentials>"
            "</AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>"
        )
        return web.Response(text=text, content_type="text/xml")

    def _ecr(self, asked: Asked) -> web.Response:
        api = _API.fullmatch(asked.host)
        if api is None or not self.is_signed(asked, api["service"], api["region"]):
            return web.json_response({"__type": "InvalidSignatureException"}, status=400)
        data = {
            "authorizationToken": base64.b64encode(f"AWS:{self.password}".encode()).decode(),
            "expiresAt": (self._now() + timedelta(seconds=12 * self.lifetime)).timestamp(),
        }
        match asked.headers["x-amz-target"]:
            case "AmazonEC2ContainerRegistry_V20150921.GetAuthorizationToken":
                proxy = f"https://123456789012.dkr.ecr.{api['region']}.amazonaws.com"
                return web.json_response({"authorizationData": [data | {"proxyEndpoint": proxy}]})
            case "SpencerFrontendService.GetAuthorizationToken":
                return web.json_response({"authorizationData": data})
        return web.json_response({"__type": "UnknownOperationException"}, status=400)

    def is_signed(self, asked: Asked, service: str, region: str) -> bool:
        """Whether a request bears the signature that botocore would give it."""
        headers = asked.headers
        claim = _SIGNATURE.fullmatch(headers.get("authorization", ""))
        if claim is None or claim["id"] not in self.keys:
            return False
        secret, session = self.keys[claim["id"]]
        names = claim["names"].split(";")
        when = datetime.strptime(headers["x-amz-date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
        again = AWSRequest(
            asked.method,
            f"https://{asked.host}{asked.path}",
            headers={name: headers[name] for name in names},
            data=asked.body,
        )
        again.context["timestamp"] = headers["x-amz-date"]
        signer = SigV4Auth(Credentials(claim["id"], secret, session), service, region)
        text = signer.string_to_sign(again, signer.canonical_request(again))
        must = {"host", "x-amz-date", "x-amz-target"} | (
            {"x-amz-security-token"} if session else set()
        )
        return (
            hmac.compare_digest(signer.signature(text, again), claim["signature"])
            and (claim["service"], claim["region"]) == (service, region)
            and headers.get("x-amz-security-token", "") == session
            and must <= set(names)
            and abs(self._now() - when) < timedelta(minutes=5)
        )

    def _imds(self, asked: Asked) -> web.Response:
        match asked.method, asked.path.removeprefix("/latest/"):
            case "PUT", "api/token":
                seconds = asked.headers.get("x-aws-ec2-metadata-token-ttl-seconds", "")
                return web.Response(text="imds-session") if seconds else web.Response(status=400)
            case "GET", path if asked.headers.get("x-aws-ec2-metadata-token") == "imds-session":
                match path.removeprefix("meta-data/iam/security-credentials/"):
                    case "":
                        return web.Response(text="node-role")
                    case "node-role":
                        return web.json_response(self._access_key())
                return web.Response(status=404)
        return web.Response(status=401)

    # Google

    def _google_token(self, asked: Asked) -> web.Response:
        if asked.headers.get("metadata-flavor") != "Google":
            return web.Response(status=403)
        self._given += 1
        token = {"access_token": f"ya29.{self._given}", "token_type": "Bearer"}
        return self._flavored(token | {"expires_in": int(self.lifetime)})

    @staticmethod
    def _flavored(answer: Mapping[str, Any]) -> web.Response:
        return web.json_response(answer, headers={"Metadata-Flavor": "Google"})

    # Azure

    def _entra(self, asked: Asked, tenant: str) -> web.Response:
        wanted = {
            "grant_type": "client_credentials",
            "client_id": CLIENT,
            "scope": "https://containerregistry.azure.net/.default",
            "client_assertion_type": "urn:ietf:params:oauth:client-assertion-type:jwt-bearer",
            "client_assertion": self.federated,
        }
        if tenant != TENANT or not wanted.items() <= asked.form.items():
            return web.json_response({"error": "invalid_client"}, status=401)
        return web.json_response(self._access_token(int(self.lifetime)))

    def _managed_identity(self, asked: Asked) -> web.Response:
        wanted = {"api-version": "2018-02-01", "resource": "https://containerregistry.azure.net"}
        if asked.headers.get("metadata") != "true" or not wanted.items() <= asked.query.items():
            return web.json_response({"error": "invalid_request"}, status=400)
        return web.json_response(self._access_token(str(int(self.lifetime))))

    def _access_token(self, expires_in: int | str) -> dict[str, Any]:
        self._given += 1
        token = f"aad.{self._given}"
        return {"access_token": token, "expires_in": expires_in, "token_type": "Bearer"}

    def _acr(self, asked: Asked) -> web.Response:
        form = asked.form
        if form.get("grant_type") != "access_token" or not re.fullmatch(
            r"aad\.\d+", form.get("access_token", "")
        ):
            return web.json_response({"errors": [{"code": "UNAUTHORIZED"}]}, status=401)
        self._given += 1
        end = int((self._now() + timedelta(seconds=3 * self.lifetime)).timestamp())
        claims = {"jti": str(self._given), "aud": form.get("service"), "exp": end}
        return web.json_response({"refresh_token": jwt(claims)})


def jwt(claims: Any) -> str:
    """A token of that shape, which nobody has signed."""
    parts = ({"alg": "RS256", "typ": "JWT"}, claims)
    encoded = [base64.urlsafe_b64encode(json.dumps(each).encode()).decode() for each in parts]
    return ".".join(each.rstrip("=") for each in encoded) + ".c2lnbmF0dXJl"
