"""Hypothesis draws the same cases in every run, without deadlines: a test fails for what it checks, not for time."""

import pytest
from hypothesis import settings

from minunet import backend
from minunet.errors import UserError

collect_ignore = ["cupy_standin"]       # a plugin, which needs CuPy: no doctests are looked for there

settings.register_profile("minunet", deadline=None, derandomize=True, max_examples=60, database=None)
settings.load_profile("minunet")


@pytest.fixture(scope="session")
def torch():
    """PyTorch on one thread. A test that asks for it is skipped, and says so, where it is not installed."""
    module = pytest.importorskip("torch")
    module.set_num_threads(1)
    return module


@pytest.fixture(scope="session", params=["sim", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    """A device that runs kernels: the simulated GPU, and with `pytest -m gpu` a real one."""
    if request.param == "cuda":
        try:
            backend.cupy()
        except UserError as error:
            pytest.skip(str(error))
    return request.param
