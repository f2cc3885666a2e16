"""Logs: one line per record, JSON for machines or text for people; one line per decision."""

import itertools
import logging
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import orjson

from tagpin import workload
from tagpin.pins import Failure
from tagpin.reference import shortened
from tagpin.verdict import Admission, Verdict

_EVERY = len(vars(logging.makeLogRecord({})))
_STANDARD = frozenset({"message", "asctime", "settings"})

MAX_PINS = 50
"""Images of one pod that its line names."""

MAX_ALIKE = 100
"""Lines from one place in the code within `PERIOD`; more are left out."""
PERIOD = 60.0

decisions = logging.getLogger("tagpin.decisions")


class JsonLines(logging.Formatter):
    """Time, level, logger and message, and what was given as `extra`."""

    def format(self, record: logging.LogRecord) -> str:
        """One JSON object, on one line."""
        line = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_extra(record),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return orjson.dumps(line, default=str, option=orjson.OPT_NON_STR_KEYS).decode()


class Text(logging.Formatter):
    """The same for a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, and a traceback below it where there is one."""
        extra = "".join(f" {key}={value!r}" for key, value in _extra(record).items())
        line = f"{_time(record)} {record.levelname:7} {record.getMessage()!s}{extra}"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


class Bounded(logging.Filter):
    """Lets a place in the code speak only `MAX_ALIKE` times within `PERIOD`.

    Whoever creates pods chooses hosts that cannot be reached, and whoever reaches the port sends
    what is no review: neither must fill the disk. The first line that passes again says in
    `left_out` how many did not. Lines of decisions all pass: that there is one for each is the
    point of them, and they are no more than pods. So does whatever is only said at `debug`.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._places: dict[tuple[str, int], _Place] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a record may be written."""
        if record.levelno < logging.INFO or record.name == decisions.name:
            return True
        place = self._places.setdefault((record.pathname, record.lineno), _Place())
        now = self._clock()
        if now - place.since >= PERIOD:
            place.since, place.passed = now, 0
        if place.passed >= MAX_ALIKE:
            place.left_out += 1
            return False
        place.passed += 1
        if place.left_out:
            record.left_out, place.left_out = place.left_out, 0
        return True


@dataclass(slots=True)
class _Place:
    since: float = -PERIOD
    passed: int = 0
    left_out: int = 0


def configure(level: str, style: str) -> None:
    """Send everything to stderr, in one format."""
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(Bounded())
    handler.setFormatter(JsonLines() if style == "json" else Text())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # What no line has need not be looked up: docs.python.org/3/howto/logging.html#optimization
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    # kopf logs every admission twice, and every refusal as a failure of its handler.
    logging.getLogger("kopf").setLevel(logging.WARNING)
    logging.getLogger("kopf.objects").setLevel(logging.CRITICAL)
    logging.getLogger("aiohttp.access").setLevel(logging.WARNING)


def log_decision(admission: Admission, verdict: Verdict, seconds: float) -> None:
    """One line about one pod (`tagpin.cluster.admission.Observer`); no secrets are in it."""
    if not decisions.isEnabledFor(logging.INFO):
        return
    # Nobody has checked the pod yet: its names may be of any length.
    told = {shortened(name): pin for name, pin in itertools.islice(verdict.pins.items(), MAX_PINS)}
    failures = {name: pin.message for name, pin in told.items() if isinstance(pin, Failure)}
    extra: dict[str, Any] = {
        "mode": admission.mode.value,
        "operation": admission.operation.lower(),
        "namespace": shortened(admission.namespace),
        "pod": shortened(workload.display_name(admission.pod)),
        "result": verdict.result.value,
        "pins": {name: _shortened(pin.to_json()) for name, pin in told.items()},
        "milliseconds": round(seconds * 1000, 2),
    }
    standing = verdict.standing
    if standing.revision is not None:
        extra["workload"] = str(standing.revision.workload)
        extra["revision"] = standing.revision.record_name
    elif owner := workload.controller(admission.pod):
        extra["workload"] = shortened(str(owner))
    if standing.unrecorded:
        extra["unrecorded"] = standing.unrecorded
    if admission.dry_run:
        extra["dry_run"] = True
    if failures:
        extra["failures"] = failures
    if len(verdict.pins) > MAX_PINS:
        extra["more_pins"] = len(verdict.pins) - MAX_PINS
    is_amiss = failures or not verdict.allowed or standing.is_fault
    level = logging.WARNING if is_amiss else logging.INFO
    message, where = "pod %s", ("", 0)  # nobody asks from which line of code that came
    record = decisions.makeRecord(
        decisions.name, level, *where, message, (verdict.result.value,), None, extra=extra
    )
    decisions.handle(record)


def _shortened(entry: dict[str, str]) -> dict[str, str]:
    return entry | {"image": shortened(entry["image"])}


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")


def _extra(record: logging.LogRecord) -> Mapping[str, Any]:
    # What was given as `extra` stands behind what every record has.
    own = itertools.islice(vars(record).items(), _EVERY, None)
    return {key: value for key, value in own if key not in _STANDARD}
