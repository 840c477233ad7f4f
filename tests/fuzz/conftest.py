"""A few examples of each test in the suite, the same each time; FUZZ_EXAMPLES=5000 for as many, new ones each time."""

import os

import pytest
from hypothesis import HealthCheck, settings

_EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", 0))

settings.register_profile(
    "fuzz",
    max_examples=_EXAMPLES or 30,
    derandomize=not _EXAMPLES,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile("fuzz")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One for all examples of a module."""
    return tmp_path_factory.mktemp("fuzz")
