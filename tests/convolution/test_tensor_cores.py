"""Rung 4 on the simulated GPU, and with -m gpu on a real one, against NumPy's float64 products of rounded operands."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minunet import Geometry, nvrtc
from minunet.backend import array_module, to_device
from minunet.convolution import im2col, tensor_cores
from minunet.convolution.tensor_cores import COPY, TILES, Plan, Tile, depth
from minunet.cuda import launch
from tests.checks import assert_close, assert_triple_identity
from tests.devices import computed
from tests.strategies import geometries

SMALL = TILES[-1]
ODD_TILES = (Tile(64, 128, 4, 1, 4), Tile(256, 64, 4, 2, 2), Tile(128, 256, 8, 2, 2))
U_NET = [Geometry(3, padding=1), Geometry(2, stride=2), Geometry(1)]
OTHERS = [Geometry(3), Geometry(3, stride=2, padding=1), Geometry(2, stride=3), Geometry(3, stride=(1, 2), padding=1),
          Geometry((2, 3), stride=(3, 1), padding=(1, 2), dilation=(2, 1)),
          Geometry((1, 4), padding=(0, 3), dilation=(1, 2))]
each_precision = pytest.mark.parametrize("precision", tensor_cores.PRECISIONS)


def to_tf32(x):
    """10 of a float's 23 bits of fraction, to the nearest, ties away from zero."""
    bits = x.view(np.uint32)
    kept = ((bits & 0x7fffffff) >> 13) + (bits >> 12 & 1)
    return (bits & 0x80000000 | kept << 13).view(np.float32)


def to_bf16(x):
    """The upper half of a float, to the nearest, ties to the even one."""
    upper, lower = x.view(np.uint32) >> 16, x.view(np.uint32) & 0xffff
    return (upper + ((lower > 0x8000) | (lower == 0x8000) & (upper & 1 == 1)) << 16).view(np.float32)


ROUNDING = {"tf32": to_tf32, "bf16": to_bf16}


def arrays(geometry, size, batch, channels, filters, seed=0):
    """Random x, w, y in float32."""
    rng = np.random.default_rng(seed)
    shapes = ((batch, *size, channels), (*geometry.kernel, channels, filters),
              (batch, *geometry.output_size(size), filters))
    return tuple(rng.standard_normal(shape).astype(np.float32) for shape in shapes)


def products(device, geometry, x, w, y, precision):
    """A x, Aᵀ y and the weight gradient, in every order of threads."""
    def all_three(x, w, y):
        return (tensor_cores.forward(w, geometry, x, precision=precision),
                tensor_cores.transposed(w, geometry, y, x.shape[1:3], precision=precision),
                tensor_cores.weight_grad(geometry, x, y, precision=precision))

    return computed(device, all_three, x, w, y)


def assert_products(device, geometry, x, w, y, precision):
    """All three against float64, to 1e-6 times the root of the length of the sum, relative to the largest number."""
    results = products(device, geometry, x, w, y, precision)
    exact = (ROUNDING[precision](a).astype(np.float64) for a in (x, w, y))
    for result, reference in zip(results, reference_products(geometry, *exact), strict=True):
        (expected, length), what = reference, f"{geometry} {x.shape} {w.shape} {precision}"
        assert result.dtype == np.float32
        assert_close(result, expected, 1e-6 * max(1, length) ** 0.5, what)


def reference_products(geometry, x, w, y):
    """The three products in NumPy, each with the length of its sums."""
    taps = w.shape[0] * w.shape[1]
    return ((im2col.forward(w, geometry, x)[0], taps * w.shape[2]),
            (im2col.transposed(w, geometry, y, x.shape[1:3]), taps * w.shape[3]),
            (im2col.weight_grad(geometry, x, y), y.size // y.shape[3]))


@each_precision
@pytest.mark.parametrize("geometry", U_NET + OTHERS, ids=str)
def test_products_equal_numpys_of_rounded_operands(device, geometry, precision):
    copy = COPY[precision]
    assert_products(device, geometry, *arrays(geometry, (9, 11), 2, 3 * copy, 5 * copy), precision)


@each_precision
@pytest.mark.parametrize("tile", TILES + ODD_TILES, ids=str)
def test_any_tile(device, monkeypatch, tile, precision):
    """The U-Net's tiles and odd ones: wide, high, many stages; uncut sums of up to 10 steps fill and drain the stages,
    more than 256 pixels fill the highest, and patches are not square.
    """
    for name, value in {"TILES": (tile,), "SLICES": 1, "IMAGE_SLICES": 1}.items():
        monkeypatch.setattr(tensor_cores, name, value)
    c, f = 9 * COPY[precision], 17 * COPY[precision]
    for geometry, size in ((U_NET[0], (15, 19)), (Geometry((2, 3), stride=(2, 3)), (36, 54))):
        assert_products(device, geometry, *arrays(geometry, size, 1, c, f), precision)


@each_precision
@pytest.mark.parametrize("change", [-1, 0, 1])
def test_sizes_below_at_and_above_the_tile(device, monkeypatch, change, precision):
    """Pixels by one, channels and filters by a copy: for 1x1 windows each of them is M, N or K of some product."""
    monkeypatch.setattr(tensor_cores, "TILES", (SMALL,))
    copy, one, two = COPY[precision], Geometry(1), Geometry(2, stride=2)
    m, n, k = SMALL.m + change, SMALL.n + copy * change, depth(precision) + copy * change
    assert_products(device, one, *arrays(one, (1, m), 1, k, n), precision)
    assert_products(device, one, *arrays(one, (1, m), 1, n, k), precision)
    assert_products(device, one, *arrays(one, (1, depth(precision) + change), 1, n, copy), precision)
    assert_products(device, one, *arrays(one, (1, 3 * depth(precision) + change), 1, copy, n), precision)
    assert_products(device, two, *arrays(two, (2, 2 * m), 1, copy, k), precision)


@settings(max_examples=15)
@given(geometry=geometries(), extra=st.tuples(st.integers(0, 5), st.integers(0, 5)), batch=st.integers(1, 2),
       channels=st.sampled_from([1, 2, 7]), filters=st.sampled_from([1, 3, 9]), seed=st.integers(0, 1000))
def test_any_geometry(geometry, extra, batch, channels, filters, seed):
    size = tuple(max(1, e - 2 * p) + more for e, p, more in zip(geometry.extent, geometry.padding, extra))
    precision = tensor_cores.PRECISIONS[seed % 2]
    x, w, y = arrays(geometry, size, batch, channels * COPY[precision], filters * COPY[precision], seed)
    assert_products("sim", geometry, x, w, y, precision)


def test_slices_give_the_same_sums(device, monkeypatch):
    """With whole numbers, whose sums are exact, in any cut the same bits; bias and ReLU come after the last slice."""
    geometry, size = Geometry(3, padding=1), (7, 11)
    rng = np.random.default_rng(0)
    x, w, y = (rng.integers(-8, 9, a.shape).astype(np.float32) for a in arrays(geometry, size, 2, 36, 28))
    bias_y, bias_x = (rng.integers(-8, 9, c).astype(np.float32) for c in (28, 36))

    def all_three(x, w, y, bias_y, bias_x):
        return (tensor_cores.forward(w, geometry, x, bias_y, relu=True),
                tensor_cores.transposed(w, geometry, y, size, bias_x), tensor_cores.weight_grad(geometry, x, y))

    expected = (np.maximum(im2col.forward(w, geometry, x)[0] + bias_y, 0),
                im2col.transposed(w, geometry, y, size) + bias_x, im2col.weight_grad(geometry, x, y))
    found = set()
    monkeypatch.setattr(tensor_cores, "TILES", (SMALL,))
    for images in (1, 2, 3, 4, 100):
        monkeypatch.setattr(tensor_cores, "IMAGE_SLICES", images)
        found.add(Plan.of(2 * 7 * 11, 28, 9 * 36, images, "tf32", "sim").slices)
        for result, exact in zip(computed(device, all_three, x, w, y, bias_y, bias_x), expected, strict=True):
            np.testing.assert_array_equal(result, exact)
    assert found == {1, 2, 3, 4, 11}


@each_precision
@pytest.mark.parametrize("geometry", U_NET, ids=str)
def test_bias_and_relu(device, geometry, precision):
    x, w, y = arrays(geometry, (6, 10), 2, 24, 72)
    bias_y, bias_x = (np.linspace(-3, 3, c, dtype=np.float32) for c in (72, 24))
    forward, relu, transposed = computed(device, lambda x, w, y, bias_y, bias_x: (
        tensor_cores.forward(w, geometry, x, bias_y, precision=precision),
        tensor_cores.forward(w, geometry, x, bias_y, relu=True, precision=precision),
        tensor_cores.transposed(w, geometry, y, (6, 10), bias_x, precision=precision)), x, w, y, bias_y, bias_x)
    exact = [ROUNDING[precision](a).astype(np.float64) for a in (x, w, y)]
    (ax, _), (aty, _), _ = reference_products(geometry, *exact)
    assert_close(forward, ax + bias_y, 1e-5)
    assert_close(transposed, aty + bias_x, 1e-5)
    np.testing.assert_array_equal(relu, np.maximum(forward, 0))
    assert (relu == 0).any() and (relu > 0).any()


def test_pixels_that_no_window_covers_are_the_bias(device):
    """2x2 windows with stride 2 on 5 x 7 pixels leave a row and a column; with stride 3, lines between them."""
    for geometry in (Geometry(2, stride=2), Geometry(2, stride=3)):
        x, w, y = arrays(geometry, (5, 7), 1, 8, 12)
        bias = np.arange(8, dtype=np.float32)
        result, = computed(device, lambda w, y, bias: tensor_cores.transposed(w, geometry, y, (5, 7), bias), w, y, bias)
        covered = im2col.transposed(np.ones_like(w), geometry, np.ones_like(y), (5, 7)) > 0
        assert not covered.all()
        np.testing.assert_array_equal(result[~covered], np.broadcast_to(bias, result.shape)[~covered])


def test_nan_and_infinity_pass(device):
    """A NaN in one pixel is in the windows over it and nowhere else, through ReLU too; an infinity stays one."""
    geometry = Geometry(3, padding=1)
    x, w, _ = arrays(geometry, (6, 8), 1, 8, 8)
    x[0, 2, 3, 1], x[0, 2, 7, 0] = np.nan, np.inf
    w = np.abs(w)
    for precision in tensor_cores.PRECISIONS:
        result, = computed(device, lambda x, w: tensor_cores.forward(w, geometry, x, relu=True, precision=precision),
                           x, w)
        nan, inf = np.zeros((2, 6, 8), bool)
        nan[1:4, 2:5], inf[1:4, 6:8] = True, True
        np.testing.assert_array_equal(np.isnan(result), np.broadcast_to(nan[None, :, :, None], result.shape))
        np.testing.assert_array_equal(np.isposinf(result), np.broadcast_to(inf[None, :, :, None], result.shape))


class Products:
    """The three products as an operator, for the triple identity."""

    def __init__(self, weight, geometry, size, precision):
        self.weight, self.geometry, self.size, self.precision = weight, geometry, size, precision

    def __matmul__(self, x):
        return self._run(lambda w, x: tensor_cores.forward(w, self.geometry, x, precision=self.precision), x)

    @property
    def T(self):
        outer = self

        class Transposed:
            def __matmul__(self, y):
                return outer._run(lambda w, y: tensor_cores.transposed(w, outer.geometry, y, outer.size,
                                                                       precision=outer.precision), y)

        return Transposed()

    def weight_grad(self, x, y):
        return self._run(lambda _, x, y: tensor_cores.weight_grad(self.geometry, x, y, precision=self.precision), x, y)

    def _run(self, f, *arrays):
        return to_device(f(*(to_device(a, "sim") for a in (self.weight, *arrays))), "cpu")


@pytest.mark.parametrize("precision, unit", [("tf32", 2.0**-11), ("bf16", 2.0**-8)])
@pytest.mark.parametrize("geometry", U_NET + OTHERS, ids=str)
def test_triple_identity_to_the_rounding_of_the_operands(geometry, precision, unit):
    """To 1e-5 if the operands are rounded already; otherwise to the rounding of two operands."""
    x, w, y = arrays(geometry, (8, 12), 2, 16, 24)
    assert_triple_identity(Products(w, geometry, (8, 12), precision), x, y, 2 * unit)
    x, w, y = (ROUNDING[precision](a) for a in (x, w, y))
    assert_triple_identity(Products(w, geometry, (8, 12), precision), x, y, 1e-5)


@each_precision
def test_arrays_that_are_not_aligned_are_copied(device, precision):
    geometry = Geometry(3, padding=1)
    x, w, y = arrays(geometry, (4, 5), 1, 16, 8)
    expected = products(device, geometry, x, w, y, precision)

    def shifted(*given):
        moved = []
        for a in given:
            room = array_module(a).empty(a.size + 1, np.float32)
            room[1:] = a.ravel()
            moved.append(room[1:].reshape(a.shape))
        x, w, y = moved
        return (tensor_cores.forward(w, geometry, x, precision=precision),
                tensor_cores.transposed(w, geometry, y, (4, 5), precision=precision),
                tensor_cores.weight_grad(geometry, x, y, precision=precision))

    # without checks: checked launches place every array anew, aligned
    for a, b in zip(shifted(*(to_device(a, device) for a in (x, w, y))), expected, strict=True):
        np.testing.assert_array_equal(to_device(a, "cpu"), b)


@each_precision
def test_no_images(device, precision):
    for geometry in U_NET:
        ax, aty, dw = products(device, geometry, *arrays(geometry, (4, 6), 0, 16, 8), precision)
        assert ax.shape == (0, *geometry.output_size((4, 6)), 8) and aty.shape == (0, 4, 6, 16)
        assert dw.shape == (*geometry.kernel, 16, 8) and not dw.any()


def test_which_cases_fit():
    assert tensor_cores.fits(4, 12, "tf32") and not tensor_cores.fits(3, 64, "tf32")
    assert tensor_cores.fits(8, 24, "bf16") and not tensor_cores.fits(64, 12, "bf16")


def test_unknown_precision_is_named():
    x, w, _ = (to_device(a, "sim") for a in arrays(Geometry(1), (2, 2), 1, 4, 4))
    with pytest.raises(ValueError, match="tf32, bf16.*'fp8'"):
        tensor_cores.forward(w, Geometry(1), x, precision="fp8")


@given(m=st.integers(0, 10**7), n=st.integers(1, 3000), k=st.integers(0, 10**7), most=st.integers(1, 300),
       precision=st.sampled_from(tensor_cores.PRECISIONS))
def test_a_plan_covers_the_product_once(m, n, k, most, precision):
    plan = Plan.of(m, n, k, most, precision, "sim")
    blocks, slices = plan.blocks
    assert blocks == -(-m // plan.tile.m) * -(-n // plan.tile.n) and 1 <= slices <= most
    assert plan.length % depth(precision) == 0 and slices * plan.length >= k
    assert slices == 1 or (slices - 1) * plan.length < k, "an empty slice"


@pytest.mark.parametrize("m, n, k, most, tile", [
    (8 * 256**2, 64, 9 * 64, 8, (256, 64)), (8 * 128**2, 128, 9 * 64, 8, (256, 128)),
    (8 * 32**2, 512, 9 * 512, 8, (256, 128)), (8 * 16**2, 1024, 9 * 1024, 8, (256, 128)),
    (128**2, 128, 9 * 128, 8, None), (32**2, 512, 9 * 512, 8, None), (16**2, 1024, 9 * 1024, 8, None),
    (9 * 64, 64, 8 * 256**2, 264, None), (9 * 128, 128, 8 * 128**2, 264, None), (9 * 256, 256, 8 * 64**2, 264, None)])
def test_the_last_wave_of_the_unets_blocks_is_nearly_full(m, n, k, most, tile):
    """Base 64: images of a batch of 8, with the largest tile for their filters, and of one, and weight gradients."""
    for precision in tensor_cores.PRECISIONS:
        plan = Plan.of(m, n, k, most, precision, "sim")
        waves = plan.blocks[0] * plan.slices / tensor_cores.MULTIPROCESSORS / plan.tile.together(227 << 10)
        assert tile in (None, plan.tile[:2]) and waves / np.ceil(waves) > 0.93


def test_whatever_is_launched_is_stated():
    """The lines // variants of conv_tensorcore.cu, all compiled for GPUs in tests/test_nvrtc.py."""
    chosen = [{name: str(value) for name, value in tile.defines(precision).items()}
              for tile in TILES for precision in tensor_cores.PRECISIONS]
    assert list(nvrtc.variants("conv_tensorcore")) == chosen


@pytest.mark.parametrize("kib, tile", [
    (227, (256, 128, 8)), (163, (256, 128, 8)), (99, (128, 128, 8)), (48, (64, 64, 4))])
def test_a_tile_fits_the_shared_memory_of_the_device(monkeypatch, kib, tile):
    """Of a block on sm_90, sm_80, and on sm_86, 89 and 120, the least from sm_80 on. Before, there are no tensor cores
    for it, as the door says when the smallest is launched.
    """
    monkeypatch.setattr(tensor_cores, "shared_memory", lambda device: kib << 10)
    assert Plan.of(8 * 128**2, 128, 9 * 64, 8, "tf32", "cuda").tile[:3] == tile


def test_blocks_that_a_multiprocessor_holds_together():
    """As nvrtc.occupancy counts, of the larger tiles, which take all registers."""
    for tile in TILES[:4]:
        for arch in (80, 86, 90):
            limits = nvrtc.LIMITS[arch]
            fit = nvrtc.occupancy(32 * tile.warps, 255, tile.shared, arch).blocks
            assert fit in (0, tile.together(limits.shared - limits.reserved))


def test_probes_of_the_rounding(device):
    """Bits of every kind: ordinary, halfway between two results, the largest finite, denormal, infinite, zero."""
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 1 << 32, 4096, dtype=np.uint32)
    bits[1024:2048] = bits[1024:2048] & 0xffffe000 | 0x1000                 # ties of TF32
    bits[2048:3072] = bits[2048:3072] & 0xffff0000 | 0x8000                 # ties of BF16
    bits[:8] = 0, 0x80000000, 0x7f800000, 0xff800000, 0x7f7fffff, 0xff7fffff, 1, 0x807fffff
    bits[8:14] = 0x7f800001, 0xff800001, 0x7f801000, 0x7f80ffff, 0x7fffffff, 0xffffffff     # NaN in the lower bits only
    x = bits.view(np.float32)

    def probe(x, y):
        tf32, bf16 = (array_module(x).empty(x.size, np.uint32) for _ in range(2))
        launch("ptx_probe.probe_tf32", x, tf32, x.size, blocks=(1,))
        launch("ptx_probe.probe_bf16", x, y, bf16, x.size, blocks=(1,))
        return tf32, bf16

    y = x[::-1].copy()
    tf32, bf16 = computed(device, probe, x, y)
    # a product drops the lower 13 bits of TF32: a NaN must be one without them
    assert (np.isfinite(x) <= (tf32 & 0x1fff == 0)).all()
    for result, of, rounding in ((tf32 & 0xffffe000, x, to_tf32), (bf16 << 16, x, to_bf16),
                                 (bf16 & 0xffff0000, y, to_bf16)):
        nan = np.isnan(of)
        np.testing.assert_array_equal(np.isnan(result.view(np.float32)), nan)
        np.testing.assert_array_equal(result[~nan], rounding(of).view(np.uint32)[~nan])


@pytest.mark.parametrize("kernel, depth", [("probe_mma_tf32", 8), ("probe_mma_bf16", 16)])
def test_probes_of_the_matrix_product(device, kernel, depth):
    """Whole numbers, so that every order of sums gives the same bits; all elements different from their neighbours."""
    rng = np.random.default_rng(0)
    a, b = rng.integers(-100, 101, (16, depth)), rng.integers(-100, 101, (depth, 8))

    def probe(a, b):
        y = array_module(a).empty((16, 8), np.float32)
        launch(f"ptx_probe.{kernel}", a, b, y, blocks=(1,))
        return y

    y, = computed(device, probe, a.astype(np.float32), b.astype(np.float32))
    np.testing.assert_array_equal(y, 2 * a @ b)


@pytest.mark.parametrize("kernel", ["probe_ldmatrix", "probe_ldmatrix_transposed"])
def test_probes_of_fragments_from_shared_memory(device, kernel):
    """Two elements of 2 bytes in a word; all elements different."""
    elements = np.arange(1, 257, dtype=np.uint16).reshape(4, 8, 8)

    def probe(words):
        y = array_module(words).empty((4, 32), np.uint32)
        launch(f"ptx_probe.{kernel}", words, y, blocks=(1,))
        return y

    y, = computed(device, probe, elements.view(np.uint32))
    matrices = elements.swapaxes(1, 2) if "transposed" in kernel else elements
    np.testing.assert_array_equal(y, np.ascontiguousarray(matrices).view(np.uint32).reshape(4, 32))


@pytest.mark.parametrize("count", [4, 128, 132, 252, 256])
def test_probe_of_the_copies(device, count):
    x = np.arange(1, count + 1, dtype=np.float32)

    def probe(x):
        y = array_module(x).empty((2, 128), np.float32)
        launch("ptx_probe.probe_copy", x, y, x.size, blocks=(1,))
        return y

    y, = computed(device, probe, x)
    np.testing.assert_array_equal(y.ravel(), np.pad(x, (0, 256 - count)))
