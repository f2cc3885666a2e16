"""What /metrics tells, and that its labels stay few."""

import re

from tagpin.app.metrics import Metrics
from tagpin.errors import Reason
from tagpin.pins import Failure, Pin, Source
from tagpin.policy import Mode
from tagpin.reference import Digest
from tagpin.registry.client import Exchange
from tagpin.verdict import Admission, Result, Verdict

ADMISSION = Admission(mode=Mode.PIN, operation="CREATE", namespace="shop", pod={})
DIGEST = Digest.parse("sha256:" + "1" * 64)


def test_a_decision_is_counted_by_mode_result_source_and_reason() -> None:
    metrics = Metrics()
    pins: dict[str, Pin | Failure] = {
        "app": Pin("app:1", DIGEST, Source.CACHE),
        "old": Failure("old:1", Reason.NOT_FOUND),
    }

    metrics.observe_admission(ADMISSION, Verdict(Result.UNPINNED, pins), 0.002)

    text = metrics.exposition().decode()
    assert 'tagpin_admissions_total{mode="pin",result="unpinned"} 1.0' in text
    assert 'tagpin_images_pinned_total{mode="pin",source="cache"} 1.0' in text
    assert 'tagpin_images_unpinned_total{mode="pin",reason="not_found"} 1.0' in text
    assert 'tagpin_admission_duration_seconds_bucket{le="0.0025",mode="pin"} 1.0' in text


def test_made_up_registries_share_one_label() -> None:
    metrics = Metrics(["corp.test:5000"])

    for name in ("docker.io", "corp.test:5000", *(f"r{number}.test" for number in range(50))):
        metrics.observe_registry(Exchange(name, "HEAD", "200", 0.01))

    text = metrics.exposition().decode()
    counted = re.findall(r'tagpin_registry_requests_total\{.*registry="(.*)"\} (.*)', text)
    assert dict(counted) == {"docker.io": "1.0", "corp.test:5000": "1.0", "other": "50.0"}
