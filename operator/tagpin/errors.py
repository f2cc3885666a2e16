"""Every deliberate failure, one class per reaction.

TagpinError
├── ConfigurationError     the administrator must change a setting
├── Unresolvable           an image has no digest now; `reason` says whose turn it is
│   └── InvalidReference   whoever wrote the image must correct it
├── Unproven               a pod cannot speak for the revision that it names: it is its own
├── Unrecorded             the ledger does not take a pin; whoever runs it must act
├── Unobtainable           an identity of tagpin's own has no credential now; its operator must act
├── BadReview              the caller of the webhook sent no admission review
└── ClusterError           the Kubernetes API refused or did not answer
"""

from enum import StrEnum
from http import HTTPStatus


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


class Unproven(TagpinError):
    """A pod does not belong to the revision that it names, or may not speak for it.

    The message is for the pod's annotation.
    """


class Unrecorded(TagpinError):
    """The ledger did not take a pin, so that the next pod may get another digest.

    `is_fault` says that somebody should look: it is not one where the namespace is going away.
    """

    def __init__(self, message: str, *, is_fault: bool = True) -> None:
        super().__init__(message)
        self.is_fault = is_fault


class Unobtainable(TagpinError):
    """An identity has no credential now; the message is for the log, and holds no secret.

    `is_outage` says that nobody could say, and that somebody may be able to a moment later.
    """

    def __init__(self, message: str, *, is_outage: bool = False) -> None:
        super().__init__(message)
        self.is_outage = is_outage


class BadReview(TagpinError):
    """The body is no AdmissionReview that we answer; becomes a 400."""


class ClusterError(TagpinError):
    """The Kubernetes API refused or did not answer; `status` is its HTTP code, 0 without one.

    `subject` is the name of the object that the answer is about, `causes` its machine-readable
    causes, both as far as the API server itself gave them (API: Status.details).
    """

    def __init__(
        self, message: str, status: int = 0, *, subject: str = "", causes: tuple[str, ...] = ()
    ) -> None:
        super().__init__(message)
        self.status = status
        self.subject = subject
        self.causes = causes

    def is_absence_of(self, name: str) -> bool:
        """Whether the API server says that there is no such object.

        A 404 of a proxy, or for a kind that is not installed, names none.
        """
        return self.status == HTTPStatus.NOT_FOUND and self.subject == name
