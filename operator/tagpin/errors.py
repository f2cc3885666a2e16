"""Every deliberate failure, one class per reaction.

TagpinError
├── ConfigurationError     the administrator must change a setting
├── Unresolvable           an image has no digest now; `reason` says whose turn it is
│   └── InvalidReference   whoever wrote the image must correct it
├── BadReview              the caller of the webhook sent no admission review
└── ClusterError           the Kubernetes API refused or did not answer
"""

from enum import StrEnum


class Reason(StrEnum):
    """Why an image has no digest: a closed set, written to annotations, metrics and messages."""

    NOT_FOUND = "not_found"
    UNAUTHORIZED = "unauthorized"
    RATE_LIMITED = "rate_limited"
    TIMEOUT = "timeout"
    UNREACHABLE = "unreachable"
    TLS = "tls"
    BAD_ANSWER = "bad_answer"
    INVALID_REFERENCE = "invalid_reference"
    UNSUPPORTED = "unsupported"
    BLOCKED = "blocked"
    LEDGER = "ledger"

    @property
    def is_outage(self) -> bool:
        """Whether the registry could not say, so that the last known digest may stand in."""
        return self in _OUTAGES


_OUTAGES = frozenset({Reason.RATE_LIMITED, Reason.TIMEOUT, Reason.UNREACHABLE})


class TagpinError(Exception):
    """The root of all deliberate failures; its text is fit for a user's eyes."""


class ConfigurationError(TagpinError):
    """A setting is wrong; the message names the key and the value."""


class Unresolvable(TagpinError):
    """An image has no digest now.

    The message is one lower-case sentence without secrets, bodies or query strings, for the
    eyes of whoever created the pod.
    """

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class InvalidReference(Unresolvable):
    """The text is no image reference; `kind` is the row of the grammar's error table.

    One of: identifier, uppercase, format, too_long, digest_algorithm, digest_length,
    digest_format.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(Reason.INVALID_REFERENCE, message)
        self.kind = kind


class BadReview(TagpinError):
    """The body is no AdmissionReview that we answer; becomes a 400."""


class ClusterError(TagpinError):
    """The Kubernetes API refused or did not answer; `status` is its HTTP code, 0 without one."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status
