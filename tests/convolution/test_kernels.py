"""Rungs 1 to 3 of the convolution on the GPU: the three products against the loop oracles and the CPU, on a device."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minunet import Geometry, nvrtc
from minunet.backend import to_device
from minunet.convolution import im2col, kernels
from minunet.convolution.shape import Conv
from tests import naive
from tests.checks import assert_close, assert_triple_identity
from tests.devices import computed
from tests.strategies import cases

TOLERANCE = {np.float64: 1e-12, np.float32: 1e-5}
algorithms = pytest.mark.parametrize("algorithm", kernels.ALGORITHMS)
SMALL = kernels.Tile(16, 16, 8, 1, 1)
TILES = {"WIDE": kernels.WIDE, "TALL": kernels.TALL, "MIDDLE": kernels.MIDDLE, "NARROW": kernels.NARROW,
         "HEAD": kernels.HEAD, "FLAT": kernels.FLAT, "SLIM": kernels.SLIM, "TINY": kernels.TINY}
tile_for = kernels.tile_for
dtypes = pytest.mark.parametrize("dtype", [np.float32, np.float64])


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """One small tile, so that small cases have several, and few variants are to be compiled."""
    monkeypatch.setattr(kernels, "tile_for", lambda *_: SMALL)


class OnDevice:
    """What `assert_triple_identity` asks of a matrix, through the kernels; host arrays in and out."""

    def __init__(self, device, weight, geometry, size, algorithm):
        self.device, self.weight, self.geometry = device, weight, geometry
        self.size, self.algorithm = size, algorithm

    def __matmul__(self, x):
        return self._run(lambda w, x: kernels.forward(w, self.geometry, x, algorithm=self.algorithm), self.weight, x)

    @property
    def T(self):
        return Transposed(self)

    def weight_grad(self, x, y):
        return self._run(lambda x, y: kernels.weight_grad(self.geometry, x, y, algorithm=self.algorithm), x, y)

    def _run(self, f, *arrays):
        return to_device(f(*(to_device(a, self.device) for a in arrays)), "cpu")


class Transposed:
    """Its transpose."""

    def __init__(self, matrix):
        self.matrix = matrix

    def __matmul__(self, y):
        a = self.matrix
        return a._run(lambda w, y: kernels.transposed(w, a.geometry, y, a.size, algorithm=a.algorithm), a.weight, y)


def products(device, geometry, x, w, y, b=None, c=None, algorithm="implicit", relu=False):
    """The three products, checked: A x + b, Aᵀ y + c, the weight gradient."""
    def run(x, w, y, b, c):
        return (kernels.forward(w, geometry, x, b, relu, algorithm),
                kernels.transposed(w, geometry, y, x.shape[1:3], c, algorithm),
                kernels.weight_grad(geometry, x, y, algorithm))
    return computed(device, run, x, w, y, b, c)


def expected(geometry, x, w, y, b=0.0, c=0.0, relu=False):
    """The same by the CPU, in float64."""
    x, w, y = (a.astype(np.float64) for a in (x, w, y))
    ax = im2col.forward(w, geometry, x)[0] + b
    return (np.maximum(ax, 0) if relu else ax, im2col.transposed(w, geometry, y, x.shape[1:3]) + c,
            im2col.weight_grad(geometry, x, y))


def arrays(geometry, batch, size, channels, filters, dtype, seed=0):
    """Random x, w, y, and biases for both."""
    rng = np.random.default_rng(seed)
    shapes = ((batch, *size, channels), (*geometry.kernel, channels, filters),
              (batch, *geometry.output_size(size), filters), (filters,), (channels,))
    return tuple(rng.standard_normal(shape).astype(dtype) for shape in shapes)


def assert_products(device, geometry, shape, dtype, algorithm="implicit", relu=False):
    """All three products of an algorithm, with biases, equal the CPU's."""
    x, w, y, b, c = arrays(geometry, *shape, dtype)
    results = products(device, geometry, x, w, y, b, c, algorithm, relu)
    for name, result, want in zip(("forward", "transposed", "weight_grad"), results,
                                  expected(geometry, x, w, y, b, c, relu)):
        assert result.dtype == dtype
        assert_close(result, want, TOLERANCE[dtype], f"{algorithm} {name} {geometry} {shape}")


SAME, UP, ONE = Geometry(3, padding=1), Geometry(2, stride=2), Geometry(1)
ODD = Geometry((3, 2), stride=(2, 1), padding=(1, 2), dilation=(1, 2))


@algorithms
@dtypes
@pytest.mark.parametrize("geometry, shape", [
    (SAME, (2, (5, 7), 3, 5)),          # one number at a time
    (SAME, (1, (6, 7), 8, 12)),         # 16 bytes at a time
    (ODD, (2, (7, 6), 4, 3)),           # channels by 16 bytes, filters one by one
    (ODD, (2, (7, 6), 3, 4)),           # the other way round
    (UP, (2, (4, 6), 4, 8)),
    (UP, (1, (5, 7), 4, 8)),            # the last row and column lie under no window
    (ONE, (2, (5, 3), 4, 2)),           # a head
])
def test_products_equal_the_cpu(device, algorithm, dtype, geometry, shape):
    assert_products(device, geometry, shape, dtype, algorithm, relu=shape[0] == 2)


@algorithms
@settings(max_examples=6)
@given(case=cases())
def test_products_equal_the_loop_oracle_for_any_geometry(device, algorithm, case):
    x, w, y = case.arrays()
    g = case.geometry
    ax, aty, dw = products(device, g, x, w, y, algorithm=algorithm)
    assert_close(ax, naive.conv2d(x, w, g.stride, g.padding, g.dilation), 1e-12)
    assert_close(aty, naive.conv_transpose2d(y, w, g.stride, g.padding, g.dilation, case.size), 1e-12)
    assert_close(dw, im2col.weight_grad(g, x, y), 1e-12)


@algorithms
@dtypes
@given(case=cases())
def test_three_products_agree_with_each_other(device, algorithm, dtype, case):
    x, w, y = case.arrays(dtype)
    assert_triple_identity(OnDevice(device, w, case.geometry, case.size, algorithm), x, y,
                           1e-10 if dtype == np.float64 else 1e-5)


@algorithms
@given(case=cases(), relu=st.booleans())
def test_products_equal_the_cpu_for_any_geometry(device, algorithm, case, relu):
    """Unchecked, so many more geometries; with biases, and with ReLU."""
    g, size = case.geometry, case.size
    x, w, y, b, c = arrays(g, case.batch, size, case.channels, case.filters, np.float64, case.seed)
    wants = expected(g, x, w, y, b, c, relu)
    x, w, y, b, c = (to_device(a, device) for a in (x, w, y, b, c))
    results = (kernels.forward(w, g, x, b, relu, algorithm), kernels.transposed(w, g, y, size, c, algorithm),
               kernels.weight_grad(g, x, y, algorithm))
    for result, want in zip(results, wants):
        assert_close(to_device(result, "cpu"), want, 1e-12)


@pytest.mark.parametrize("tile, geometry, shape", [
    *((tile, geometry, (1, (5, 7), 4, 8)) for tile in TILES for geometry in (SAME, UP)),
    *((tile, SAME, (1, (5, 7), 3, 5)) for tile in ("MIDDLE", "HEAD", "FLAT", "TINY")),     # one number at a time
])
def test_every_tile_computes_every_product(device, monkeypatch, tile, geometry, shape):
    monkeypatch.setattr(kernels, "tile_for", lambda *_: TILES[tile])
    assert_products(device, geometry, shape, np.float32)


# rows, columns and depth of a product beside the edges of a tile: below, at and above it
EDGES = [(0, 0, 0), (-1, 0, 0), (0, -1, 0), (0, 0, -1), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 1)]


@pytest.mark.parametrize("edge", EDGES)
@pytest.mark.parametrize("pack", [1, 4])
def test_products_at_the_edges_of_a_tile(device, pack, edge):
    """1x1 windows on an image of one row, so that rows, columns and depth are the pixels, F and C in turn.

    The transposed product also with a dilation, which changes nothing but that it is not that of patches.
    """
    m, n, k = (size + pack * step for size, step in zip((SMALL.m, SMALL.n, SMALL.k), edge))
    assert_products(device, ONE, (1, (1, m), k, n), np.float32)             # forward: m x n, depth k
    assert_products(device, ONE, (1, (1, k), m, n), np.float32)             # weight gradient: m x n, depth k
    for geometry in (ONE, Geometry(1, dilation=2)):
        assert_products(device, geometry, (1, (1, m), n, k), np.float32)    # transposed: m x n, depth k


def test_products_of_more_than_one_of_the_widest_tile(device, monkeypatch):
    monkeypatch.setattr(kernels, "tile_for", lambda *_: kernels.WIDE)
    assert_products(device, ONE, (1, (4, 33), 12, 132), np.float32)             # forward
    assert_products(device, ONE, (1, (1, 12), 132, 132), np.float32)            # weight gradient
    assert_products(device, UP, (1, (22, 24), 36, 12), np.float32)              # transposed: 132 x 144, depth 12


@dtypes
@pytest.mark.parametrize("geometry, shape", [(SAME, (2, (6, 7), 3, 20)), (SAME, (1, (9, 6), 8, 4)),
                                             (UP, (2, (7, 9), 8, 36))])
def test_sums_in_slices_equal_whole_sums(device, monkeypatch, dtype, geometry, shape):
    """Slices of 8 terms and more, for sums so short that they would be whole."""
    launched = []

    def launch(kernel, *arguments, **options):
        launched.append(kernel)
        return real_launch(kernel, *arguments, **options)

    real_launch = kernels.launch
    monkeypatch.setattr(kernels, "launch", launch)
    monkeypatch.setattr(kernels, "SLICE_DEPTH", 8)
    assert_products(device, geometry, shape, dtype, relu=True)
    assert launched.count("conv_slices.sum_slices") >= 6            # of 9 products: three, in three orders


def test_slices_follow_from_the_shape():
    """A large GPU is busy, no slice is short, and there are no more slices than that takes."""
    assert kernels.slices_for(0, 100) == kernels.slices_for(1, 100) == 1
    assert kernels.slices_for(16, 9 * 1024) == 15                   # 16x16 pixels, 1024 channels to 1024: 240 blocks
    assert kernels.slices_for(1, 1 << 19) == 225                    # the first layer's weight gradient
    assert kernels.slices_for(4096, 576) == 1
    for tiles in (1, 7, 100, 140, 263, 300, 1000):
        for depth in (1, 256, 511, 4096, 1 << 20):
            slices = kernels.slices_for(tiles, depth)
            assert slices == 1 or depth // slices >= kernels.SLICE_DEPTH
            assert slices == 1 or tiles * slices <= 4 * kernels.RESIDENT_BLOCKS


def test_first_layer_and_head_have_tiles_of_their_own():
    pixels = 256 * 256
    assert tile_for(pixels, 512, True) is kernels.WIDE
    assert tile_for(pixels, 512, False) is kernels.MIDDLE
    assert tile_for(pixels, 64, True) is kernels.TALL
    assert tile_for(9 * 64, 64, True) is kernels.MIDDLE     # weight gradient of 64 channels, 3x3
    assert tile_for(27, 64, False) is kernels.FLAT          # weight gradient of 3 channels, 3x3
    assert tile_for(pixels, 3, False) is kernels.HEAD       # gradient of an RGB image; a head of 3 classes
    assert tile_for(pixels, 21, False) is kernels.NARROW
    assert tile_for(64, 3, False) is kernels.TINY           # a head's weight gradient
    assert tile_for(64, 21, False) is kernels.SLIM


def test_whatever_is_launched_is_stated(monkeypatch):
    """The lines // variants of conv_implicit.cu, all compiled for GPUs in tests/test_nvrtc.py, are just what the
    launches choose: sizes around every limit of `tile_for`, odd ones and multiples of what 16 bytes hold."""
    chosen = set()

    def launch(kernel, x, *_, defines=None, **__):
        if defines is not None:
            real = {4: "float", 8: "double"}[x.dtype.itemsize]
            chosen.add(frozenset({"real": real, **{name: str(value) for name, value in defines.items()}}.items()))

    monkeypatch.setattr(kernels, "launch", launch)
    monkeypatch.setattr(kernels, "tile_for", tile_for)
    for dtype in (np.float32, np.float64):
        for pixels in (1, 32, 33, 1024, 1025, 2047, 2048):
            for channels in (3, 4):
                for filters in (3, 8, 9, 12, 31, 32, 33, 36, 63, 64, 65, 68):
                    x, w = (to_device(np.zeros(shape, dtype), "sim")
                            for shape in ((1, 1, pixels, channels), (1, 1, channels, filters)))
                    kernels.forward(w, ONE, x)
    assert len(chosen) == 50
    stated = [frozenset(constants.items()) for constants in nvrtc.variants("conv_implicit")]
    assert set(stated) == chosen and len(stated) == len(chosen)


@pytest.mark.parametrize("geometry", [SAME, ODD, UP, Geometry((4, 1), stride=(1, 3), padding=(3, 0))])
@pytest.mark.parametrize("limit", [1, 700, 6000])
def test_columns_come_in_chunks(device, monkeypatch, geometry, limit):
    """Row by row, a few rows, a few images: the same products."""
    shape = (3, (7, 6), 2, 3)
    monkeypatch.setattr(kernels, "COLUMN_BYTES", limit)
    assert_products(device, geometry, shape, np.float64, "im2col")


def test_chunks_cover_every_window_once_and_stay_small():
    for case in [(5, (7, 9), 4), (1, (512, 512), 1024), (16, (512, 512), 64), (1, (3, 4096), 8192)]:
        s = Conv.of(SAME, case[0], case[1], case[2], 1)
        row_bytes = s.out_width * 9 * s.channels * 4
        seen = np.zeros((s.images, s.out_height), int)
        for chunk in kernels.chunks(s, 4):
            seen[chunk.first_image:chunk.first_image + chunk.images, chunk.first_row:chunk.first_row + chunk.rows] += 1
            assert chunk.images * chunk.rows * row_bytes <= max(kernels.COLUMN_BYTES, row_bytes)
            assert chunk.images == 1 or chunk.rows == s.out_height
        assert (seen == 1).all()


def test_arrays_that_begin_anywhere_are_loaded_one_number_at_a_time(device):
    x, w, y, _, _ = arrays(SAME, 1, (4, 5), 4, 8, np.float32)
    shifted = to_device(np.append(np.float32(7), x.ravel()), device)[1:].reshape(x.shape)
    s = Conv.of(SAME, 1, (4, 5), 4, 8)
    w, y = to_device(w, device), to_device(y, device)
    assert kernels._vectors(s, to_device(x, device), w) == (4, 4) and kernels._vectors(s, shifted, w) == (1, 1)
    expected, _ = im2col.forward(np.asarray(to_device(w, "cpu")), SAME, x)
    assert_close(to_device(kernels.forward(w, SAME, shifted), "cpu"), expected, 1e-5)


@algorithms
def test_not_a_number_stays_in_its_windows(device, algorithm):
    """It reaches the nine windows and no other number, and ReLU keeps it, as the CPU does."""
    x, w, y, b, c = arrays(SAME, 1, (6, 7), 4, 4, np.float32)
    x[0, 2, 3, 1] = y[0, 4, 5, 2] = np.nan
    results = products(device, SAME, x, w, y, b, c, algorithm, relu=True)
    for result, want in zip(results, expected(SAME, x, w, y, b, c, relu=True)):
        np.testing.assert_array_equal(np.isnan(result), np.isnan(want))


@algorithms
def test_no_images_give_no_pixels_and_no_gradient(device, algorithm):
    x, w, y, b, c = arrays(SAME, 0, (4, 5), 4, 8, np.float32)
    ax, aty, dw = products(device, SAME, x, w, y, b, c, algorithm)
    assert ax.shape == y.shape and aty.shape == x.shape
    np.testing.assert_array_equal(dw, np.zeros_like(w))
