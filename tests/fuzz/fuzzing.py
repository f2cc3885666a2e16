"""How long hypothesis looks, in the normal run, for what breaks something."""

from hypothesis import HealthCheck, settings

FUZZED = settings(
    max_examples=1000,
    deadline=None,  # one slow moment of a machine is no finding
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
