"""Signs requests for AWS.

(AWS IAM User Guide: Create a signed AWS API request, "AWS Signature Version 4")
"""

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

_ALGORITHM = "AWS4-HMAC-SHA256"


@dataclass(frozen=True, slots=True)
class Key:
    """An access key of AWS, with the session that it is for, if for one."""

    id: str
    secret: str = field(repr=False)
    session_token: str = field(default="", repr=False)


def signed(
    host: str,
    headers: Mapping[str, str],
    body: bytes,
    *,
    key: Key,
    region: str,
    service: str,
    now: datetime,
) -> dict[str, str]:
    """`headers` and those that sign them and `body`, as `key`, for a POST to `/` of `host`."""
    timestamp = now.astimezone(UTC).strftime("%Y%m%dT%H%M%SZ")
    session = {"X-Amz-Security-Token": key.session_token} if key.session_token else {}
    complete = {**headers, "X-Amz-Date": timestamp, **session}

    canonical = {name.lower(): " ".join(value.split()) for name, value in complete.items()}
    canonical["host"] = host
    names = ";".join(sorted(canonical))
    request = "\n".join(
        (
            "POST",
            "/",
            "",  # no query
            *(f"{name}:{canonical[name]}" for name in sorted(canonical)),
            "",
            names,
            hashlib.sha256(body).hexdigest(),
        )
    )
    scope = f"{timestamp[:8]}/{region}/{service}/aws4_request"
    digest = hashlib.sha256(request.encode()).hexdigest()
    to_sign = f"{_ALGORITHM}\n{timestamp}\n{scope}\n{digest}"

    derived = f"AWS4{key.secret}".encode()
    for part in (*scope.split("/"), to_sign):
        derived = hmac.digest(derived, part.encode(), "sha256")
    authorization = (
        f"{_ALGORITHM} Credential={key.id}/{scope}, "
        f"SignedHeaders={names}, Signature={derived.hex()}"
    )
    return {**complete, "Authorization": authorization}
