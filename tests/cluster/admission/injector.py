"""A webhook of somebody else's, which adds a container to pods."""

import base64
import json
import ssl
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any, Self

from cluster.controlplane import ControlPlane
from cluster.namespaces import Namespace, eventually, images, pod
from cluster.programs import LOOPBACK

CONTAINER = "injected"
ANOTHER = "injected-again"


class Injector:
    """Adds a container with `image` to the pods of a namespace, behind tagpin's back.

    The API server calls webhook configurations in the order of their names, so it is called
    after tagpin. One that `insists` wants to be asked again as well, and then adds another one.
    """

    NAME = "z-injector"

    def __init__(
        self,
        control_plane: ControlPlane,
        namespace: Namespace,
        image: str,
        *,
        insists: bool = False,
    ) -> None:
        issued = control_plane.authority.issue("injector", hosts=[LOOPBACK])
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        tls.load_cert_chain(issued.certificate, issued.key)
        self.image = image
        self._insists = insists
        injector = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                review = json.loads(self.rfile.read(int(self.headers["content-length"])))
                request = review.pop("request")
                review["response"] = {
                    "uid": request["uid"],
                    "allowed": True,
                    **injector._patch(request["object"]),
                }
                body = json.dumps(review).encode()
                self.send_response(200)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self._control_plane = control_plane
        self._namespace = namespace
        self._server = ThreadingHTTPServer((LOOPBACK, 0), Handler)
        self._server.daemon_threads = True
        self._server.block_on_close = False
        self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self._thread = Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        configuration = json.dumps(self._configuration())
        self._control_plane.kubectl("create", "-f", "-", input=configuration)
        eventually(self._is_called, bool)
        return self

    def __exit__(self, *_: object) -> None:
        self._control_plane.kubectl("delete", f"mutatingwebhookconfiguration/{self.NAME}")
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _is_called(self) -> bool:
        given = f"registry.test/probe@sha256:{'0' * 64}"
        flags = ("--dry-run=server", "-o", "json")
        answer = self._namespace.create(pod("probe", {"app": given}), flags=flags)
        return CONTAINER in images(json.loads(answer.output))

    def _configuration(self) -> dict[str, Any]:
        webhook = {
            "name": "proxy.injector.test",
            "clientConfig": {
                "url": f"https://{LOOPBACK}:{self._server.server_address[1]}/",
                "caBundle": self._control_plane.ca_data,
            },
            "rules": [
                {
                    "apiGroups": [""],
                    "apiVersions": ["v1"],
                    "resources": ["pods"],
                    "operations": ["CREATE"],
                }
            ],
            "namespaceSelector": {
                "matchLabels": {"kubernetes.io/metadata.name": self._namespace.name}
            },
            "reinvocationPolicy": "IfNeeded" if self._insists else "Never",
            "sideEffects": "None",
            "admissionReviewVersions": ["v1"],
        }
        return {
            "apiVersion": "admissionregistration.k8s.io/v1",
            "kind": "MutatingWebhookConfiguration",
            "metadata": {"name": self.NAME},
            "webhooks": [webhook],
        }

    def _patch(self, pod: Any) -> dict[str, str]:
        name = CONTAINER
        if name in images(pod):
            if not self._insists:
                return {}
            name = ANOTHER
        container = {"name": name, "image": self.image}
        operations = [{"op": "add", "path": "/spec/containers/-", "value": container}]
        patch = base64.b64encode(json.dumps(operations).encode()).decode()
        return {"patchType": "JSONPatch", "patch": patch}
