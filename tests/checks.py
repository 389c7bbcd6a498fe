"""The checks that every linear operator passes (the triple identity, relative to the norms), and every op."""

from __future__ import annotations

import numpy as np
import pytest

from minunet import Tensor


def leaf(*shape, dtype=np.float64):
    """A Tensor of numbers between 1 and 2 that requires a gradient."""
    return Tensor(np.random.default_rng(0).uniform(1, 2, shape).astype(dtype), requires_grad=True)


def assert_close(actual, expected, tolerance, what=""):
    """Every element within tolerance of the largest expected element (or of 1, if all are smaller than that)."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape, f"{what}: shape {actual.shape}, expected {expected.shape}"
    scale = max(1.0, float(np.abs(expected).max(initial=0)))
    error = float(np.abs(actual - expected).max(initial=0)) / scale
    assert error <= tolerance, f"{what}: relative error {error:.3g} above {tolerance:.3g}"


def assert_triple_identity(A, x, y, tolerance):
    """<y, A x> = <Aᵀ y, x> = <w, weight_grad(x, y)>, relative to ‖y‖·‖A x‖; sums in float64."""
    ax, aty, dw = (np.asarray(a, np.float64) for a in (A @ x, A.T @ y, A.weight_grad(x, y)))
    first, second, third = np.vdot(y, ax), np.vdot(aty, x), np.vdot(A.weight, dw)
    scale = float(np.linalg.norm(y) * np.linalg.norm(ax)) or 1.0
    assert abs(first - second) <= tolerance * scale, f"<y, A x> = {first}, <Aᵀ y, x> = {second}"
    assert abs(first - third) <= tolerance * scale, f"<y, A x> = {first}, <w, weight_grad> = {third}"


def run(f, arrays, seed=0):
    """f's value, a random cotangent c, and the gradient of <c, f> for each array.

    The arrays and the cotangent are read-only: an op that writes into what it was given raises.
    """
    tensors = [Tensor(_frozen(a), requires_grad=True) for a in arrays]
    y = f(*tensors)
    cotangent = _frozen(np.random.default_rng(seed).standard_normal(y.shape), y.dtype)
    y.backward(cotangent)
    return y.data, cotangent, [t.grad for t in tensors]


def assert_keeps_float32(f, *shapes):
    """float32 inputs of these shapes give a float32 result and float32 gradients, and are left as they are."""
    rng = np.random.default_rng(0)
    y, _, gradients = run(f, [_frozen(rng.standard_normal(shape), np.float32) for shape in shapes])
    assert y.dtype == np.float32
    assert [g.dtype for g in gradients] == [np.float32] * len(shapes)
    assert [g.shape for g in gradients] == list(shapes)


def assert_refuses_mixed_dtypes(f, *shapes):
    """One input of another dtype than the others is a TypeError of one sentence that names both dtypes."""
    for odd in range(len(shapes)):
        arrays = [np.ones(shape, np.float32 if i == odd else np.float64) for i, shape in enumerate(shapes)]
        with pytest.raises(TypeError) as caught:
            f(*map(Tensor, arrays))
        message = str(caught.value)
        assert "float32" in message and "float64" in message and "\n" not in message and ". " not in message, message


def _frozen(array, dtype=None):
    array = np.array(array, dtype)
    array.flags.writeable = False
    return array
