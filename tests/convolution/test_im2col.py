"""The fast ways of im2col: few channels, windows that tile the image, the bias and ReLU; and that they are taken."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from minunet import ConvMatrix, Geometry, memory
from minunet.convolution import im2col, planar, products
from tests import naive
from tests.checks import assert_close
from tests.strategies import cases, pairs, seeds

UP = Geometry(2, stride=2)


def arrays(geometry, size, batch, channels, filters, dtype=np.float64, seed=0):
    """Random x, w, y, a bias for y and one for x."""
    rng = np.random.default_rng(seed)
    shapes = ((batch, *size, channels), (*geometry.kernel, channels, filters),
              (batch, *geometry.output_size(size), filters), (filters,), (channels,))
    return [rng.standard_normal(shape).astype(dtype) for shape in shapes]


def expected(geometry, x, w, y):
    """The three products by loops, in float64."""
    g = geometry
    return (naive.conv2d(x, w, g.stride, g.padding, g.dilation),
            naive.conv_transpose2d(y, w, g.stride, g.padding, g.dilation, x.shape[1:3]), weight_grad(g, x, y))


def weight_grad(g, x, y):
    """dw[kh, kw, c, f] = Σ x[n, oh·SH − PH + kh·DH, ow·SW − PW + kw·DW, c] y[n, oh, ow, f], by loops over windows."""
    dw = np.zeros((*g.kernel, x.shape[3], y.shape[3]))
    for n, oh, ow, _ in np.ndindex(*y.shape[:3], 1):
        for kh, kw in np.ndindex(*g.kernel):
            i, j = (o * s - p + k * d for o, s, p, k, d in
                    zip((oh, ow), g.stride, g.padding, (kh, kw), g.dilation))
            if 0 <= i < x.shape[1] and 0 <= j < x.shape[2]:
                dw[kh, kw] += np.outer(x[n, i, j].astype(float), y[n, oh, ow])
    return dw


@given(cases(), st.sampled_from([1, 400, 1 << 19]), st.sampled_from([1, 100, 10**6]))
def test_few_channels_by_any_blocks_and_cuts_equal_the_loop_oracle(case, block_bytes, limit):
    assume(case.geometry.dilation[0] == 1)
    x, w, y = case.arrays()
    b = y[0, 0, 0]
    ax, _, dw = expected(case.geometry, x, w, y)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planar, "BLOCK_BYTES", block_bytes)
        patch.setattr(products, "UNPACKED", limit)
        assert_close(planar.forward(w, case.geometry, x)[0], ax, 1e-12)
        assert_close(planar.forward(w, case.geometry, x, b, relu=True)[0], np.maximum(ax + b, 0), 1e-12)
        assert_close(planar.weight_grad(case.geometry, x, y), dw, 1e-12)


@pytest.mark.parametrize("geometry, size, limit", [
    (Geometry(3, padding=1), (3, 32), 450), (Geometry(3, padding=1, stride=(1, 2)), (3, 63), 900),      # rows in parts
    (Geometry((1, 3), padding=(3, 1)), (5, 34), 10**6),                 # output rows that see no row of the image
])
def test_few_channels_of_rows_in_parts_and_rows_in_the_padding(monkeypatch, geometry, size, limit):
    x, w, y, _, _ = arrays(geometry, size, 2, 2, 3)
    monkeypatch.setattr(products, "UNPACKED", limit)
    monkeypatch.setattr(planar, "BLOCK_BYTES", 1)
    assert (y.shape[2] * w.size > limit) == (limit < 10**6)
    ax, _, dw = expected(geometry, x, w, y)
    assert_close(planar.forward(w, geometry, x)[0], ax, 1e-12)
    assert_close(planar.weight_grad(geometry, x, y), dw, 1e-12)


@pytest.mark.parametrize("geometry, size, channels, fits", [
    (Geometry(3, padding=1), (8, 32), 1, True), (Geometry(3, padding=1), (1, 400), 4, True),
    (Geometry(3), (8, 34), 3, True), (Geometry(3, stride=2), (9, 65), 3, True),
    (Geometry(3, dilation=(1, 2)), (9, 64), 3, True), (Geometry(3, padding=1), (8, 32), 5, False),
    (Geometry(3), (8, 33), 3, False), (Geometry(3, dilation=(2, 1)), (9, 64), 3, False),
    (Geometry(1), (64, 64), 3, False),
])
def test_which_images_take_the_way_for_few_channels(monkeypatch, geometry, size, channels, fits):
    """And both ways give the same."""
    x, w, y, b, _ = arrays(geometry, size, 2, channels, 5)
    ways = []
    for module, name in ((planar, "forward"), (planar, "weight_grad")):
        way = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *inputs, way=way: ways.append(way) or way(*inputs))
    ax, dw = im2col.forward(w, geometry, x, b, True)[0], im2col.weight_grad(geometry, x, y)
    assert len(ways) == 2 * fits and planar.fits(geometry, size, channels) == fits
    monkeypatch.setattr(planar, "fits", lambda *_: False)
    assert_close(ax, im2col.forward(w, geometry, x, b, True)[0], 1e-12)
    assert_close(dw, im2col.weight_grad(geometry, x, y), 1e-12)


@given(pairs(1, 3), st.integers(1, 4), st.integers(1, 5), pairs(0, 2), st.integers(1, 3), st.integers(1, 3),
       st.sampled_from([1, 3, 100]), st.sampled_from([1, 128]), st.sampled_from([200, 2000, 10**6]), seeds)
def test_windows_that_tile_the_image(kernel, oh, ow, rest, batch, channels, long_row, block_rows, limit, seed):
    """Stored where they belong or by way of scratch, in any blocks; with pixels at the end that no window covers."""
    geometry = Geometry(kernel, stride=kernel)
    size = tuple(o * k + min(r, k - 1) for o, k, r in zip((oh, ow), kernel, rest))
    x, w, y, b_y, b_x = arrays(geometry, size, batch, channels, 2, seed=seed)
    ax, aty, dw = expected(geometry, x, w, y)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(im2col, "LONG_ROW", long_row)
        patch.setattr(im2col, "BLOCK_ROWS", block_rows)
        patch.setattr(im2col, "BLOCK_BYTES", 1)
        patch.setattr(products, "UNPACKED", limit)
        assert_close(im2col.transposed(w, geometry, y, size), aty, 1e-12)
        assert_close(im2col.transposed(w, geometry, y, size, b_x), aty + b_x, 1e-12)
        assert_close(im2col.forward(w, geometry, x, b_y)[0], ax + b_y, 1e-12)
        assert_close(im2col.weight_grad(geometry, x, y), dw, 1e-12)


@given(cases(), st.booleans(), st.booleans())
def test_bias_and_relu_of_any_geometry(case, with_bias, relu):
    x, w, y, b_y, b_x = arrays(case.geometry, case.size, case.batch, case.channels, case.filters, seed=case.seed)
    ax, aty, _ = expected(case.geometry, x, w, y)
    ax = ax + b_y if with_bias else ax
    assert_close(im2col.forward(w, case.geometry, x, b_y if with_bias else None, relu)[0],
                 np.maximum(ax, 0) if relu else ax, 1e-12)
    assert_close(im2col.transposed(w, case.geometry, y, case.size, b_x if with_bias else None),
                 aty + b_x if with_bias else aty, 1e-12)


@given(cases(), st.sampled_from([0, 1 << 30]), st.sampled_from([1, 4, 2048]))
def test_weight_gradients_with_the_kernel_shared_out_or_not(case, few, group_pixels):
    x, w, y = case.arrays()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(im2col, "FEW", few)
        patch.setattr(im2col, "GROUP_PIXELS", group_pixels)
        patch.setattr(im2col, "BLOCK_ROWS", 1)
        patch.setattr(im2col, "BLOCK_BYTES", 1)
        assert_close(im2col.weight_grad(case.geometry, x, y), weight_grad(case.geometry, x, y), 1e-12)


@pytest.mark.parametrize("geometry, size, channels, filters", [
    (Geometry(3, padding=1), (50, 64), 3, 16),          # few channels
    (UP, (64, 64), 32, 64), (UP, (16, 16), 128, 200),   # long rows; short rows, and K above that of a view
    (UP, (9, 131), 8, 24), (Geometry(1), (96, 96), 64, 1), (Geometry(3, padding=1), (40, 40), 16, 24),
])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_same_bits_for_any_number_of_threads(monkeypatch, geometry, size, channels, filters, dtype):
    x, w, y, b_y, b_x = arrays(geometry, size, 3, channels, filters, dtype)
    monkeypatch.setattr(planar, "BLOCK_BYTES", 1 << 14)
    monkeypatch.setattr(im2col, "BLOCK_BYTES", 1 << 16)
    monkeypatch.setattr(im2col, "GROUP_PIXELS", 512)
    results = []
    for count in (1, 2, 3):
        monkeypatch.setenv("MINUNET_NUM_THREADS", str(count))
        results.append((im2col.forward(w, geometry, x, b_y, True)[0], im2col.transposed(w, geometry, y, size, b_x),
                        im2col.weight_grad(geometry, x, y)))
    for other in results[1:]:
        for one, two in zip(results[0], other):
            assert one.dtype == dtype and one.tobytes() == two.tobytes()


@pytest.mark.parametrize("geometry, channels", [(UP, 5), (Geometry(3, padding=1), 3), (Geometry(3, padding=1), 5)])
def test_no_images_give_no_images_and_a_gradient_of_zeros(geometry, channels):
    x, w, y, b_y, b_x = arrays(geometry, (4, 64), 0, channels, 2)
    assert im2col.forward(w, geometry, x, b_y, True)[0].shape == y.shape
    assert im2col.transposed(w, geometry, y, (4, 64), b_x).shape == x.shape
    np.testing.assert_array_equal(im2col.weight_grad(geometry, x, y), np.zeros_like(w))


@pytest.mark.parametrize("geometry, channels", [(UP, 16), (Geometry(1), 16), (Geometry(3, padding=1), 16),
                                                (Geometry(3, padding=1), 3)])
def test_results_come_from_recycled_memory(geometry, channels):
    """What is large and returned comes from the arena."""
    x, w, y, b_y, b_x = arrays(geometry, (256, 256), 1, channels, 16, np.float32)

    def products_of_x_and_y():
        return im2col.forward(w, geometry, x, b_y)[0], im2col.transposed(w, geometry, y, (256, 256), b_x)

    memory.release()
    before = memory.statistics().used
    kept = products_of_x_and_y()
    assert memory.statistics().used - before >= sum(array.nbytes for array in kept)
    del kept


@pytest.mark.parametrize("kernel, long_row", [(1, 1), (1, 1000), (2, 1)])
def test_windows_that_tile_long_rows_are_stored_where_they_belong(monkeypatch, kernel, long_row):
    """The only scratch is a transposed weight's; and 1x1 windows are read where they lie."""
    geometry = Geometry(kernel, stride=kernel)
    x, w, y, _, _ = arrays(geometry, (64, 64), 1, 4, 4)
    monkeypatch.setattr(im2col, "LONG_ROW", long_row)
    scratch, names = im2col.memory.scratch, []
    monkeypatch.setattr(im2col.memory, "scratch",
                        lambda shape, dtype, name="": names.append(name) or scratch(shape, dtype, name))
    im2col.transposed(w, geometry, y, (64, 64))
    if kernel == 1:
        im2col.forward(w, geometry, x)
    assert set(names) <= {"panel"}


@pytest.mark.parametrize("geometry, size, channels", [
    (Geometry(3, padding=1), (40, 33), 3),              # by planes
    (Geometry((2, 3), stride=2, padding=1), (37, 30), 6),
    (Geometry(1), (64, 64), 5),
    (Geometry(5), (5, 5), 2),
])
def test_every_pixel_comes_by_once_in_the_blocks(geometry, size, channels):
    """In `with_each`, in a fixed order."""
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((2, *size, channels)), rng.standard_normal((*geometry.kernel, channels, 4))
    A = ConvMatrix(w, geometry, size, algorithm="im2col")
    y, parts = A.with_each(x, np.copy)
    np.testing.assert_array_equal(np.concatenate([part.reshape(-1, 4) for part in parts]), y.reshape(-1, 4))
    np.testing.assert_array_equal(y, A @ x)
