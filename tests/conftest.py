"""Hypothesis draws the same cases in every run, without deadlines: a test fails for what it checks, not for time."""

import pytest
from hypothesis import settings

settings.register_profile("minunet", deadline=None, derandomize=True, max_examples=60, database=None)
settings.load_profile("minunet")


@pytest.fixture(scope="session")
def torch():
    """PyTorch on one thread. A test that asks for it is skipped, and says so, where it is not installed."""
    module = pytest.importorskip("torch")
    module.set_num_threads(1)
    return module
