"""The forecast of a product's work space against what the arena gives out while it runs."""

import numpy as np
import pytest

from minunet import ConvMatrix, Geometry, memory
from minunet.convolution.work_space import work_space

rng = np.random.default_rng(0)
SMALL = 1 << 18


@pytest.mark.parametrize("n, size, c, f, kernel", [
    (2, (128, 128), 16, 16, 3), (1, (96, 100), 32, 16, 3), (4, (128, 128), 64, 64, 3), (1, (32, 32), 256, 128, 3),
    (1, (8, 8), 512, 512, 3), (2, (128, 128), 256, 256, 3), (1, (64, 64), 64, 32, 2),
])
def test_work_space_is_what_is_taken(monkeypatch, n, size, c, f, kernel):
    monkeypatch.setenv("MINUNET_NUM_THREADS", "1")
    A = ConvMatrix(rng.standard_normal((kernel, kernel, c, f), np.float32),
                   Geometry(3, padding=1) if kernel == 3 else Geometry(2, 2), size)
    x, y = (rng.standard_normal((n, *shape), np.float32) for shape in ((*size, c), (*A.out_size, f)))
    found = work_space(A, n)
    for forecast, product in ((found.forward, lambda: A @ x), (found.transposed, lambda: A.T @ y),
                              (found.weight_grad, lambda: A.weight_grad(x, y))):
        product()                                           # caches
        memory.release()
        before = memory.statistics().used
        result = product()
        taken = memory.statistics().most - before - result.nbytes
        # no product needs all of the scratch
        assert 0.9 * forecast - SMALL < taken < 1.1 * (forecast + sum(found.scratch)) + SMALL
