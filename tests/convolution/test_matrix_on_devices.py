"""`ConvMatrix` on the devices that run kernels: every algorithm is the same operator, chosen and refused as stated."""

import numpy as np
import pytest
from hypothesis import given, settings

from minunet import ConvMatrix, Geometry
from minunet.backend import address, device_of, to_device
from minunet.cuda import record_launches
from minunet.ops import block, conv
from tests.checks import assert_close, assert_triple_identity
from tests.strategies import cases

ALGORITHMS = ("direct", "im2col", "implicit")
OPERAND_ROUNDING = {"tf32": 2.0**-11, "bf16": 2.0**-8}      # relative, to nearest


class OnDevice:
    """A ConvMatrix between host arrays, for the checks that know NumPy only."""

    def __init__(self, device, weight, *arguments, **options):
        self.matrix = ConvMatrix(to_device(weight, device), *arguments, **options)
        self.device, self.weight = device, weight

    def __matmul__(self, x):
        return self._host(self.matrix @ to_device(x, self.device))

    @property
    def T(self):
        transposed = OnDevice.__new__(OnDevice)
        transposed.matrix, transposed.device = self.matrix.T, self.device
        return transposed

    def weight_grad(self, x, y):
        return self._host(self.matrix.weight_grad(to_device(x, self.device), to_device(y, self.device)))

    def _host(self, result):
        assert device_of(result) == self.device
        return to_device(result, "cpu")


@pytest.mark.parametrize("dtype, tolerance", [(np.float64, 1e-10), (np.float32, 1e-5)])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@settings(max_examples=30)
@given(case=cases())
def test_triple_identity_and_the_cpu(device, algorithm, dtype, tolerance, case):
    x, w, y = case.arrays(dtype)
    A = OnDevice(device, w, case.geometry, case.size, algorithm=algorithm)
    assert A.matrix.algorithm == algorithm
    assert_triple_identity(A, x, y, tolerance)
    reference = ConvMatrix(w, case.geometry, case.size, precision="float64")
    for name, result, expected in (("A x", A @ x, reference @ x), ("Aᵀ y", A.T @ y, reference.T @ y),
                                   ("weight_grad", A.weight_grad(x, y), reference.weight_grad(x, y))):
        assert result.dtype == dtype
        assert_close(result, expected, tolerance, f"{algorithm} {name} {case}")


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
@pytest.mark.parametrize("geometry", [Geometry(3, padding=1), Geometry(2, stride=2), Geometry(1),
                                      Geometry((3, 2), (2, 1), (1, 0), (1, 2))], ids=str)
def test_tensor_cores_to_the_rounding_of_operands(device, precision, geometry):
    rng = np.random.default_rng(0)
    size, c, f = (6, 8), 8, 24
    x, w = rng.standard_normal((2, *size, c)), rng.standard_normal((*geometry.kernel, c, f))
    y = rng.standard_normal((2, *geometry.output_size(size), f))
    A = OnDevice(device, w.astype(np.float32), geometry, size, precision=precision)
    assert A.matrix.algorithm == "tensorcore" and precision in repr(A.matrix)
    reference, sizes = ConvMatrix(w, geometry, size), ConvMatrix(abs(w), geometry, size)
    bound = 2.5 * OPERAND_ROUNDING[precision]               # two operands, and the float32 accumulation
    for result, expected, scale in (
            (A @ x.astype(np.float32), reference @ x, sizes @ abs(x)),
            (A.T @ y.astype(np.float32), reference.T @ y, sizes.T @ abs(y)),
            (A.weight_grad(x.astype(np.float32), y.astype(np.float32)), reference.weight_grad(x, y),
             sizes.weight_grad(abs(x), abs(y)))):
        assert (abs(result - expected) <= bound * scale + 1e-30).all()
        assert abs(result - expected).max() > 1e-6          # it is not float32 that computed


@pytest.mark.parametrize("op, arguments", [(conv.conv2d, {"padding": 1}), (conv.conv_transpose2d, {"stride": 2})])
def test_ops_compute_in_the_precision_that_they_are_given(device, op, arguments):
    """The result and both products of the backward."""
    rng = np.random.default_rng(0)
    x, w, dy = (to_device(rng.standard_normal(shape, dtype=np.float32), device)
                for shape in ((1, 4, 4, 8), (3, 3, 8, 8), (1, *((4, 4) if op is conv.conv2d else (9, 9)), 8)))
    backward = conv.conv2d_backward if op is conv.conv2d else conv.conv_transpose2d_backward
    results = {}
    for precision in ("float32", "tf32"):
        y, cache = op(x, w, precision=precision, **arguments)
        results[precision] = [to_device(a, "cpu") for a in (y, *backward(dy, cache, (True, True, False))[:2])]
    for exact, rounded in zip(results["float32"], results["tf32"], strict=True):
        assert 1e-5 < abs(exact - rounded).max() / abs(exact).max() < 1e-2


@pytest.mark.parametrize("precision", ["float32", "tf32", "bf16"])
def test_what_several_products_read_is_prepared_once(device, precision):
    """The same results, bit for bit; and in BF16 no kernel rounds it again."""
    rng = np.random.default_rng(0)
    x, w, y = (to_device(rng.standard_normal(shape, dtype=np.float32), device)
               for shape in ((2, 4, 6, 8), (3, 3, 8, 16), (2, 4, 6, 16)))
    A = ConvMatrix(w, Geometry(3, padding=1), (4, 6), precision=precision)
    for operand, reads, array in ((A.prepared(x), lambda x: (A @ x, A.weight_grad(x, y)), x),
                                  (A.T.prepared(y), lambda y: (A.T @ y, A.weight_grad(x, y)), y)):
        for result, expected in zip(reads(operand), reads(array), strict=True):
            np.testing.assert_array_equal(to_device(result, "cpu"), to_device(expected, "cpu"))
        again = A.prepared(operand) if array is x else A.T.prepared(operand)
        if precision == "float32":
            assert address(again[0] if array is x else again) == address(array)         # no copy
            continue
        assert again is operand and operand.words.nbytes * (2 if precision == "bf16" else 1) == array.nbytes
        with record_launches() as launches:
            reads(operand)
        assert [launch.kernel for launch in launches].count("bf16.pack") == (2 if precision == "bf16" else 0)


def test_how_often_a_step_rounds(device):
    """Forward x and the weight, backward dy and the weight again; x again where it is kept as it is."""
    rng = np.random.default_rng(0)
    x, w, dy, gamma, beta = (to_device(rng.standard_normal(shape, dtype=np.float32), device)
                             for shape in ((1, 4, 4, 8), (3, 3, 8, 8), (1, 4, 4, 8), 8, 8))

    def packs(forward, backward, *inputs, needs):
        with record_launches() as launches:
            _, cache = forward(*inputs, padding=1, precision="bf16")
            backward(dy, cache, needs)
        return [launch.kernel for launch in launches].count("bf16.pack"), cache

    both, bias = (True, True, False), (False, False, True)
    count, cache = packs(conv.conv2d, conv.conv2d_backward, x, w, needs=both)
    assert count == 5 and cache.xs[0] is x          # which another op may keep, too
    transposed = conv.conv_transpose2d, conv.conv_transpose2d_backward, x, w
    assert packs(*transposed, needs=both)[0] == 4 and packs(*transposed, needs=bias)[0] == 2
    assert packs(conv.conv2d, conv.conv2d_backward, x, w, needs=bias)[0] == 2
    count, cache = packs(block.conv_norm_relu, block.conv_norm_relu_backward, w, gamma, beta, x, needs=(True,) * 4)
    assert count == 4 and cache.xs.words.nbytes == x.nbytes / 2


def test_what_was_prepared_for_another_product_is_refused(device):
    def matrix(size=(4, 6), **options):
        return ConvMatrix(to_device(np.ones((3, 3, 8, 8), np.float32), device), Geometry(3, padding=1), size, **options)

    x = matrix(precision="bf16").prepared(to_device(np.ones((1, 4, 6, 8), np.float32), device))
    with pytest.raises(ValueError, match=r"x was prepared .* bf16 with images \(4, 6, 8\); this one is in tf32"):
        matrix(precision="tf32") @ x
    with pytest.raises(ValueError, match="this one is in float32"):
        matrix() @ x
    with pytest.raises(ValueError, match=r"y was prepared .* bf16 with \(5, 6, 8\)"):
        matrix((5, 6), precision="bf16").T @ x


def test_a_bias_that_does_not_fit_is_refused(device):
    for where in ("cpu", device):
        A = ConvMatrix(to_device(np.ones((3, 3, 2, 8), np.float32), where), Geometry(3, padding=1), (4, 4))
        with pytest.raises(ValueError, match=r"b must be \(8,\), one number for each output channel; .* is \(3,\)"):
            A.affine(to_device(np.ones((1, 4, 4, 2), np.float32), where), to_device(np.ones(3, np.float32), where))
        with pytest.raises(ValueError, match=r"b must be \(2,\)"):
            A.T.affine(to_device(np.ones((1, 4, 4, 8), np.float32), where), to_device(np.ones(8, np.float32), where))
    with pytest.raises(TypeError, match=f"on {device}.* on cpu"):
        A.affine(to_device(np.ones((1, 4, 4, 2), np.float32), device), np.ones(8, np.float32))


def test_the_choice(device):
    def choice(channels, filters, **options):
        weight = to_device(np.ones((3, 3, channels, filters), np.float32), device)
        return ConvMatrix(weight, Geometry(3), (8, 8), **options).algorithm

    assert choice(4, 8) == "implicit" and choice(4, 8, precision="tf32") == "tensorcore"
    assert choice(3, 8, precision="tf32") == choice(8, 12, precision="bf16") == "implicit"     # not 16 bytes at a time
    assert ConvMatrix(np.ones((3, 3, 1, 1)), Geometry(3), (8, 8)).algorithm == "im2col"
    with pytest.raises(ValueError, match="'tensorcore' needs precision 'tf32' or 'bf16'.*3 channels and 8 filters"):
        choice(3, 8, precision="tf32", algorithm="tensorcore")
    with pytest.raises(ValueError, match="'direct' computes in float32 or float64; got precision 'tf32'"):
        choice(4, 8, precision="tf32", algorithm="direct")
    with pytest.raises(ValueError, match=f"algorithm must be one of auto, direct.* on the device {device}; got 'x'"):
        choice(4, 8, algorithm="x")
    with pytest.raises(ValueError, match="precision must be one of float32, float64 on the device cpu; got 'tf32'"):
        ConvMatrix(np.ones((3, 3, 1, 1)), Geometry(3), (8, 8), precision="tf32")


def test_an_image_of_another_device_is_refused(device):
    A = ConvMatrix(to_device(np.ones((3, 3, 1, 1), np.float32), device), Geometry(3), (4, 4))
    with pytest.raises(TypeError, match=f"on {device}.* on cpu"):
        A @ np.ones((1, 4, 4, 1), np.float32)
    np.testing.assert_array_equal(A.dense(), ConvMatrix(np.ones((3, 3, 1, 1)), Geometry(3), (4, 4)).dense())
