"""CuPy itself without a GPU: `python -m pytest -m gpu -p tests.cupy_standin` runs the tests of the device cuda.

Arrays, the memory pool, streams, graphs, pinned memory and whatever else is CuPy's own are the real ones. What they
call underneath is exchanged: CUDA's runtime (runtime.py) and driver (kernels.py). Their device is the computer: its
memory is malloc's, and work is done as soon as it is launched, or when the graph is that was captured. minunet's
kernels, with the arguments that CuPy has packed, go to the simulated GPU; CuPy's own are compiled by g++ and computed
by one thread, its matrix products by NumPy.

So this shows where minunet asks of CuPy what it cannot do, and where a graph writes into what is another array's memory
by now, since it repeats its addresses. It does not show what a stream's lateness does (tests/asynchronous.py), nor what
a GPU computes.

CuPy's modules call one another by C functions, which stand in `__pyx_capi__` with their signatures: of CuPy 14, written
for 14.2 (the extra `cupy-standin`). They are exchanged before cupy is imported.
"""

from __future__ import annotations

import os
import sys

import cupy_backends.cuda.libs
import pytest

from tests.cupy_standin import kernels
from tests.cupy_standin.runtime import failures

cupy_backends.cuda.libs.cublas = kernels.Cublas("cupy_backends.cuda.libs.cublas")

from cupy.cuda import compiler, nvrtc  # noqa: E402    now that all is exchanged

from minunet import backend  # noqa: E402

compiler._compile_using_nvrtc_no_warning, compiler._get_nvrtc_version = kernels.compiled, lambda: (12, 9)
nvrtc.getVersion = lambda: (12, 9)
compiler._preprocess = lambda *_: ""            # whose result tells compilers apart, in the name of a cached kernel
backend.cupy()                                  # or an error: the tests would be skipped

STATUS = pytest.StashKey[int]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call():
    try:
        return (yield)
    finally:
        found = failures[:1]                    # also of its fixtures; it led to whatever else failed
        failures.clear()
        if found:
            raise found[0]


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session, exitstatus):
    session.config.stash[STATUS] = int(exitstatus)


def pytest_unconfigure(config):
    """Ends without CuPy's clearing up, which would call functions of an interpreter that is gone."""
    kernels.folder.cleanup()
    sys.stdout.flush()
    os._exit(config.stash.get(STATUS, 1))
