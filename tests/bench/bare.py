"""The limit: a handler that answers a review with a constant, and does nothing else.

    python -m bench.bare PORT CERTIFICATE KEY

aiohttp on uvloop over TLS, orjson in and out, and one digest for both containers. Nothing that
answers reviews in Python is faster, so the bench states everything else as a share of this.
"""

import base64
import ssl
import sys

import orjson
import uvloop
from aiohttp import web

DIGEST = "sha256:" + 64 * "b"


async def answer(request: web.Request) -> web.Response:
    review = orjson.loads(await request.read())["request"]
    patch = [
        {"op": "replace", "path": f"/spec/containers/{i}/image", "value": f"{c['image']}@{DIGEST}"}
        for i, c in enumerate(review["object"]["spec"]["containers"])
    ]
    response = {
        "uid": review["uid"],
        "allowed": True,
        "patchType": "JSONPatch",
        "patch": base64.b64encode(orjson.dumps(patch)).decode(),
    }
    body = {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response}
    return web.Response(body=orjson.dumps(body), content_type="application/json")


def main() -> None:
    port, certificate, key = sys.argv[1:]
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(certificate, key)
    app = web.Application(client_max_size=8 * 2**20)
    app.router.add_post("/{path:.*}", answer)
    web.run_app(
        app,
        host="127.0.0.1",
        port=int(port),
        ssl_context=tls,
        access_log=None,
        print=None,
        loop=uvloop.new_event_loop(),
    )


if __name__ == "__main__":
    main()
