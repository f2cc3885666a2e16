"""The reference: kopf as it comes, and a dict for a registry.

    kopf run --standalone --all-namespaces tests/bench/stock.py

Its own WebhookServer, its own patches, its default logging. The port and the certificate are in the
environment, and so is the digest that every image gets.
"""

import os
from typing import Any

import kopf

DIGESTS: dict[str, str] = {}
DIGEST = os.environ["BENCH_DIGEST"]


@kopf.on.startup()
def configure(settings: kopf.OperatorSettings, **_: Any) -> None:
    settings.posting.enabled = False
    settings.admission.server = kopf.WebhookServer(
        addr="127.0.0.1",
        port=int(os.environ["BENCH_PORT"]),
        host="127.0.0.1",
        certfile=os.environ["BENCH_CERTIFICATE"],
        pkeyfile=os.environ["BENCH_KEY"],
    )


@kopf.on.mutate("v1", "pods", id="pin")
async def pin(patch: kopf.Patch, **_: Any) -> None:
    def add_digests(body: Any) -> None:
        for container in body["spec"]["containers"]:
            image = container["image"]
            container["image"] = f"{image}@{DIGESTS.setdefault(image, DIGEST)}"

    patch.fns.append(add_digests)
