"""A played API server: what tagpin asks of one, and what one asks of tagpin.

It holds the Secret, the Lease and the MutatingWebhookConfiguration of manifests/base, lets tagpin
write its certificate and its caBundle into them, and then sends reviews as that configuration
says: to whom the namespace's labels select, by the caBundle's authority, with the timeout. It
evaluates no match conditions, and a webhook that fails is an error, whatever its failure policy.

ImagePins are created, read, listed and replaced as in a real one, but compared with no schema, and
kept in memory. ReplicaSets are what the stage makes of them.
"""

import asyncio
import base64
import http.client
import json
import ssl
import uuid
from collections.abc import Mapping, MutableMapping
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import jsonpatch
import yaml
from aiohttp import web

from cluster.programs import LOOPBACK
from stages.narrator import Narrator
from stages.stage import Admitted, Refused, StageError

BASE = Path(__file__).parents[2] / "manifests" / "base"
SECRET = "/api/v1/namespaces/tagpin-system/secrets/tagpin-tls"
WEBHOOKS = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations"
CONFIGURATION = f"{WEBHOOKS}/tagpin"
LEASE = "/apis/coordination.k8s.io/v1/namespaces/tagpin-system/leases/tagpin"
RECORDS = "/apis/tagpin.dev/v1alpha1"
RECORDS_OF_NAMESPACE = f"{RECORDS}/namespaces/{{namespace}}/imagepins"
RESOURCES = ("imagepins", "replicasets")
"""Of these it says "there is none"; of others, which it does not know, that it does not."""
POD = {"group": "", "version": "v1", "kind": "Pod"}
PODS = {"group": "", "version": "v1", "resource": "pods"}

Object = dict[str, Any]

DISCOVERY: dict[str, Object] = {
    "/apis": {"groups": []},
    "/api": {"versions": ["v1"]},
    "/api/v1": {
        "resources": [
            {
                "name": "pods",
                "singularName": "pod",
                "kind": "Pod",
                "namespaced": True,
                "verbs": ["get", "list", "watch", "create", "update", "patch", "delete"],
            }
        ]
    },
}
"""All that kopf wants to know of a cluster before it dispatches reviews of pods."""


class PlayedApiServer:
    """Serves tagpin on `url`, and calls its webhooks on `webhook_port` of the loopback address.

    As an asynchronous context manager it listens; `admit` is for another thread than the loop's.
    """

    def __init__(self, narrator: Narrator, webhook_port: int) -> None:
        self._narrator = narrator
        self._objects: dict[str, Object] = {
            **DISCOVERY,
            SECRET: _manifest("secret.yaml"),
            LEASE: _manifest("lease.yaml"),
            CONFIGURATION: _manifest("mutatingwebhookconfiguration.yaml"),
        }
        self.imagepins: MutableMapping[str, Object] = {}
        """What is recorded, by path."""
        for webhook in self._webhooks:
            path = webhook["clientConfig"].pop("service")["path"]
            webhook["clientConfig"]["url"] = f"https://{LOOPBACK}:{webhook_port}{path}"
        self._labels: dict[str, dict[str, str]] = {}
        self._runner: web.AppRunner | None = None
        self.url = ""

    @property
    def _webhooks(self) -> list[Object]:
        webhooks: list[Object] = self._objects[CONFIGURATION]["webhooks"]
        return webhooks

    # What tagpin asks

    async def __aenter__(self) -> Self:
        app = web.Application()
        app.add_routes(
            [
                web.patch(SECRET, self._patch),
                web.patch(CONFIGURATION, self._patch),
                web.get(WEBHOOKS, self._watch),
                web.post("/api/v1/namespaces/{name}/events", self._take_event),
                web.get(f"{RECORDS}/imagepins", self._list_records),
                web.get(RECORDS_OF_NAMESPACE, self._list_records),
                web.post(RECORDS_OF_NAMESPACE, self._create_record),
                web.put(f"{RECORDS_OF_NAMESPACE}/{{name}}", self._replace),
                web.put(LEASE, self._replace),
                web.get("/{path:.*}", self._get),
            ]
        )
        self._runner = web.AppRunner(
            app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1
        )
        await self._runner.setup()
        await web.TCPSite(self._runner, LOOPBACK, 0).start()
        self.url = f"http://{LOOPBACK}:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._runner is not None
        await self._runner.cleanup()

    async def _get(self, request: web.Request) -> web.StreamResponse:
        found = self._kept(request.path).get(request.path)
        return _not_found(request.path) if found is None else web.json_response(found)

    async def _patch(self, request: web.Request) -> web.StreamResponse:
        return web.json_response(self.update(request.path, await request.json()))

    async def _list_records(self, request: web.Request) -> web.StreamResponse:
        namespace = request.match_info.get("namespace", "")
        uid = request.query.get("fieldSelector", "").removeprefix("spec.workload.uid=")
        items = [
            record
            for record in self.imagepins.values()
            if namespace in ("", record["metadata"]["namespace"])
            and uid in ("", record["spec"]["workload"]["uid"])
        ]
        return web.json_response({"metadata": {}, "items": items})

    async def _create_record(self, request: web.Request) -> web.StreamResponse:
        new = await request.json()
        path = f"{request.path}/{new['metadata']['name']}"
        if path in self.imagepins:
            return _status(HTTPStatus.CONFLICT, "AlreadyExists", f"{path} already exists")
        self.imagepins[path] = new = _created(new)
        return web.json_response(new, status=HTTPStatus.CREATED)

    async def _replace(self, request: web.Request) -> web.StreamResponse:
        kept, new = self._kept(request.path), await request.json()
        if request.path not in kept:
            return _not_found(request.path)
        version = kept[request.path]["metadata"]["resourceVersion"]
        if new["metadata"].get("resourceVersion") != version:
            return _status(HTTPStatus.CONFLICT, "Conflict", f"{request.path} has been modified")
        new["metadata"]["resourceVersion"] = str(int(version) + 1)
        kept[request.path] = new
        return web.json_response(new)

    def _kept(self, path: str) -> MutableMapping[str, Object]:
        return self.imagepins if path.startswith(RECORDS) else self._objects

    async def _watch(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await asyncio.Event().wait()  # nobody but tagpin changes anything
        return response

    async def _take_event(self, request: web.Request) -> web.StreamResponse:
        return web.json_response(await request.json(), status=HTTPStatus.CREATED)

    @property
    def is_trusting(self) -> bool:
        """Whether tagpin has written its authority into every webhook."""
        return all("caBundle" in webhook["clientConfig"] for webhook in self._webhooks)

    # What the controllers ask

    def ensure(self, path: str, new: Object) -> Object:
        """Create an object, unless it is there, and return it as it is."""
        return self._objects.setdefault(path, _created(new))

    def update(self, path: str, patch: Object) -> Object:
        """Merge a patch into an object, and return it as it is then."""
        old = self._objects[path]
        new: Object = _merged(old, patch)
        version = int(old["metadata"]["resourceVersion"]) + 1
        new["metadata"] = {**new["metadata"], "resourceVersion": str(version)}
        self._objects[path] = new
        return new

    # What it asks tagpin

    def create_namespace(self, name: str, labels: Mapping[str, str]) -> None:
        self._labels[name] = {"kubernetes.io/metadata.name": name, **labels}
        account = f"/api/v1/namespaces/{name}/serviceaccounts/default"
        self._objects[account] = {"metadata": {"name": "default", "namespace": name}}

    def admit(self, namespace: str, pod: Object, user: Mapping[str, Any]) -> Admitted | Refused:
        """Let the webhooks that the namespace's labels select see a new pod, in their order."""
        audit = {
            "user": user["username"],
            "verb": "create",
            "resource": f"pods in {namespace}",
        }
        for webhook in self._webhooks:
            if not _selects(webhook["namespaceSelector"], self._labels[namespace]):
                continue
            answer = self._ask(webhook, _request(namespace, pod, user))
            if not answer["allowed"]:
                self._narrator.command("← not allowed")
                return Refused(
                    f'Error from server: admission webhook "{webhook["name"]}" denied the '
                    f"request: {answer['status']['message']}"
                )
            if "patch" in answer:
                patch = jsonpatch.JsonPatch.from_string(base64.b64decode(answer["patch"]).decode())
                pod = patch.apply(pod)
                operations = ", ".join(each["path"] for each in patch.patch)
                self._narrator.command(f"← allowed, with a patch: {operations}")
            notes = answer.get("auditAnnotations", {})
            audit |= {f"{webhook['name']}/{key}": value for key, value in notes.items()}
        metadata = pod["metadata"]
        metadata.setdefault("name", f"{metadata.get('generateName', '')}{uuid.uuid4().hex[:5]}")
        return Admitted(pod, audit)

    def _ask(self, webhook: Object, request: Object) -> Object:
        client, timeout = webhook["clientConfig"], webhook["timeoutSeconds"]
        url = urlsplit(client["url"])
        path = f"{url.path}?timeout={timeout}s"
        review = {
            "apiVersion": "admission.k8s.io/v1",
            "kind": "AdmissionReview",
            "request": request,
        }
        trust = ssl.create_default_context(cadata=base64.b64decode(client["caBundle"]).decode())
        assert url.hostname
        connection = http.client.HTTPSConnection(
            url.hostname, url.port, timeout=timeout, context=trust
        )
        try:
            headers = {"Content-Type": "application/json", "Accept": "application/json"}
            connection.request("POST", path, json.dumps(review), headers)
            response = connection.getresponse()
            body = response.read()
        except OSError as error:
            raise StageError(f"failed to call webhook {webhook['name']}: {error}") from error
        finally:
            connection.close()
        self._narrator.command(f"→ POST {url.scheme}://{url.netloc}{path}  AdmissionReview")
        if response.status != HTTPStatus.OK:
            raise StageError(f"webhook {webhook['name']} answered {response.status}: {body!r}")
        answer: Object = json.loads(body)["response"]
        if answer["uid"] != request["uid"]:
            raise StageError(f"webhook {webhook['name']} answered another request")
        return answer


def _request(namespace: str, pod: Object, user: Mapping[str, Any]) -> Object:
    """What the API server says of the creation of a pod (admission.k8s.io/v1)."""
    return {
        "uid": str(uuid.uuid4()),
        "kind": POD,
        "resource": PODS,
        "requestKind": POD,
        "requestResource": PODS,
        "name": pod["metadata"].get("name", ""),
        "namespace": namespace,
        "operation": "CREATE",
        "userInfo": user,
        "object": pod,
        "oldObject": None,
        "dryRun": False,
        "options": {"apiVersion": "meta.k8s.io/v1", "kind": "CreateOptions"},
    }


def _created(new: Object) -> Object:
    """An object with what the API server adds to each."""
    given = {
        "uid": str(uuid.uuid4()),
        "resourceVersion": "1",
        "creationTimestamp": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    return {**new, "metadata": {**new["metadata"], **given}}


def _not_found(path: str) -> web.Response:
    plural, name = path.split("/")[-2:]
    if plural not in RESOURCES:
        return _status(HTTPStatus.NOT_FOUND, "NotFound", "this API server is played")
    return _status(HTTPStatus.NOT_FOUND, "NotFound", f"{path} does not exist", name)


def _status(code: HTTPStatus, reason: str, message: str, name: str = "") -> web.Response:
    """How a request is refused (`Status` of k8s.io/apimachinery)."""
    details = {"details": {"name": name}} if name else {}
    status = {"kind": "Status", "reason": reason, "message": message, "code": code, **details}
    return web.json_response(status, status=code)


def _manifest(name: str) -> Object:
    loaded: Object = yaml.safe_load((BASE / name).read_text(encoding="utf-8"))
    loaded["metadata"]["resourceVersion"] = "1"
    return loaded


def _selects(selector: Object, labels: Mapping[str, str]) -> bool:
    """Whether a label selector selects, with the operators that our manifests use."""
    for requirement in selector["matchExpressions"]:
        value = labels.get(requirement["key"])
        holds = {
            "In": value in requirement.get("values", ()),
            "NotIn": value not in requirement.get("values", ()),
            "DoesNotExist": value is None,
        }
        if not holds[requirement["operator"]]:
            return False
    return True


def _merged(old: Any, patch: Any) -> Any:
    """A strategic merge of what tagpin patches: lists are of named items, and none is removed."""
    if isinstance(old, dict) and isinstance(patch, dict):
        return old | {key: _merged(old.get(key), value) for key, value in patch.items()}
    if isinstance(old, list) and isinstance(patch, list):
        changes = {item["name"]: item for item in patch}
        return [_merged(item, changes.get(item["name"], {})) for item in old]
    return patch
