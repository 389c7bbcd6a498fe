"""PyTorch beside minunet: one set of inputs and one cotangent through both; values and all gradients compared.

PyTorch's images are (N, C, H, W), its kernels (F, C, KH, KW). `first`, `last` and `kernel` turn its tensors at the
border, inside the graph, so that inputs, results and gradients are in minunet's order on both sides.
"""

from __future__ import annotations

import numpy as np

from tests.checks import assert_close, run

PRECISIONS = [("float64", 1e-10), ("float32", 1e-5)]        # dtype, tolerance


def first(x):
    """(N, H, W, C) -> (N, C, H, W)."""
    return x.movedim(-1, 1).contiguous()


def last(y):
    """(N, C, H, W) -> (N, H, W, C)."""
    return y.movedim(1, -1)


def kernel(w):
    """(KH, KW, C, F) -> (F, C, KH, KW): a convolution's weight, and just so a transposed convolution's."""
    return w.permute(3, 2, 0, 1).contiguous()


def assert_equals_torch(torch, ours, theirs, arrays, dtype, tolerance):
    """ours(*Tensors) and theirs(*torch tensors) have the same value and, under a random cotangent, gradients."""
    arrays = [np.asarray(a, dtype) for a in arrays]
    y, cotangent, gradients = run(ours, arrays)
    leaves = [torch.tensor(a, requires_grad=True) for a in arrays]
    expected = theirs(*leaves)
    expected.backward(torch.tensor(cotangent))
    assert_close(y, expected.detach().numpy(), tolerance, "value")
    for position, (gradient, leaf) in enumerate(zip(gradients, leaves, strict=True)):
        assert_close(gradient, leaf.grad.numpy(), tolerance, f"gradient of input {position}")
