"""Winograd's products in all their forms against the loop oracle and im2col: any size, exact in float64, the same bits.

The forms are chosen by numbers of channels; here their crossovers are moved, so that few channels reach each of them.
"""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minunet import ConvMatrix, Geometry
from minunet.convolution import winograd, winograd_products
from minunet.convolution.tiles import Grid, agreeing_tiles
from tests import naive
from tests.checks import assert_close, assert_triple_identity
from tests.strategies import Case, pairs, seeds

CHUNKS = dict(NARROW=0, BY_BLOCKS=0, BY_BLOCKS_GRADIENT=0, WIDE=0)
FORMS = {
    "rows": dict(NARROW=1000),
    "blocks": dict(NARROW=0),
    "chunks": dict(CHUNKS, FEW_TILES=0),
    "chunks, 2x2": dict(CHUNKS, FEW_TILES=1000),
}


@pytest.fixture(params=FORMS)
def form(request, monkeypatch):
    """A form of the algorithm that takes every case."""
    take(request.param, monkeypatch)
    return request.param


def take(name, patch):
    """Move the crossovers so that this form takes every case."""
    for constant, value in FORMS[name].items():
        patch.setattr(winograd_products, constant, value)


@st.composite
def cases(draw):
    """3x3 windows at stride 1 with padding 0 to 2, on images up to 14 px a side."""
    padding = draw(pairs(0, 2))
    size = tuple(draw(st.integers(max(1, 3 - 2 * p), 14)) for p in padding)
    small = st.integers(1, 3)
    return Case(Geometry(3, padding=padding), size, draw(small), draw(st.integers(1, 5)), draw(st.integers(1, 5)),
                draw(seeds))


def matrix(case, w):
    """A by Winograd."""
    return ConvMatrix(w, case.geometry, case.size, algorithm="winograd")


@pytest.mark.parametrize("name", FORMS)
@given(case=cases())
def test_products_equal_the_loop_oracle_and_each_other(name, case):
    x, w, y = case.arrays()
    g = case.geometry
    with pytest.MonkeyPatch.context() as patch:
        take(name, patch)
        A = matrix(case, w)
        assert_close(A @ x, naive.conv2d(x, w, g.stride, g.padding, g.dilation), 1e-10)
        assert_close(A.T @ y, naive.conv_transpose2d(y, w, g.stride, g.padding, g.dilation, case.size), 1e-10)
        assert_triple_identity(A, x, y, 1e-10)
        plain = ConvMatrix(w, g, case.size, algorithm="im2col")
        assert_close(A.weight_grad(x, y), plain.weight_grad(x, y), 1e-10)


@pytest.mark.parametrize("name", FORMS)
@given(case=cases())
def test_images_side_by_side_bias_and_relu(name, case):
    """A tuple of images is read as one with all their channels, and `split` is its transpose."""
    x, w, y = case.arrays()
    rng = np.random.default_rng(case.seed)
    cut = case.channels // 2
    xs = (x[..., :cut], x[..., cut:]) if cut else (x,)
    b, b_of_x = rng.standard_normal(case.filters), rng.standard_normal(case.channels)
    plain = ConvMatrix(w, case.geometry, case.size, algorithm="im2col")
    with pytest.MonkeyPatch.context() as patch:
        take(name, patch)
        A = matrix(case, w)
        assert_close(A.affine(xs, b), plain @ x + b, 1e-10)
        assert_close(A.affine(xs, b, relu=True), np.maximum(plain @ x + b, 0), 1e-10)
        assert_close(A.weight_grad(xs, y), plain.weight_grad(x, y), 1e-10)
        assert_close(A.T.affine(y, b_of_x), plain.T @ y + b_of_x, 1e-10)
        parts = A.T.split(y, [part.shape[3] for part in xs])
        assert all(part.flags.c_contiguous for part in parts)
        assert_close(np.concatenate(parts, -1), plain.T @ y, 1e-10)


def test_blocks_of_any_size_give_the_same_products(form, monkeypatch):
    """Single rows of tiles in a block, several partial sums; and images large enough for several blocks anyway."""
    rng = np.random.default_rng(0)
    x, w, y = (rng.standard_normal(shape) for shape in ((3, 37, 30, 4), (3, 3, 4, 3), (3, 37, 30, 3)))
    A = ConvMatrix(w, Geometry(3, padding=1), (37, 30), algorithm="winograd")
    xs = x[..., :1].copy(), x[..., 1:].copy()

    def products():
        parts = A.T.split(y, [1, 3])
        return A @ x, A.weight_grad(x, y), A.T @ y, A @ xs, A.weight_grad(xs, y), np.concatenate(parts, -1)

    expected = products()[:3] * 2
    blocks = Grid.blocks
    for size, width in ((1, 1), (1, 100), (16, 3), (40, 5), (10_000, 10_000)):
        monkeypatch.setattr(Grid, "blocks", lambda self, *_, images=99, cut=(size, width): blocks(self, *cut, images))
        for groups in (1, 3, 1000):
            monkeypatch.setattr(winograd_products, "GROUPS", groups)
            monkeypatch.setattr(winograd_products, "CHUNK_NUMBERS", groups * 3000)
            for a, b in zip(products(), expected):
                assert_close(a, b, 1e-12)


@pytest.mark.parametrize("images, size", [(1, (9, 30)), (1, (3, 3)), (2, (40, 8)), (7, (8, 8)), (5, (100, 4))])
@pytest.mark.parametrize("tiles, width", [(1, 1), (8, 3), (64, 64)])
@pytest.mark.parametrize("most", [1, 1 << 30])
@pytest.mark.parametrize("m", [(4, 4), (4, 1)])
def test_blocks_cover_every_tile_once(images, size, tiles, width, most, m):
    grid = Grid(m, images, size, size, (1, 1))
    seen = np.zeros((images, *grid.tiles), int)
    blocks = grid.blocks(tiles, width, most)
    for block in blocks:
        place = tuple(slice(*block[i:i + 2]) for i in (0, 2, 4))
        assert seen[place].shape == block.shape and seen[place].size == block.tiles <= max(tiles, width)
        assert block.shape[0] == 1 or block.shape[0] <= most and block.shape[1:] == grid.tiles
        assert block.shape[2] <= width
        seen[place] += 1
    assert (seen == 1).all()
    assert len(blocks) > 1 or images == grid.tiles[0] == 1


@given(st.integers(1, 6), st.integers(1, 5), st.integers(-9, 9), st.integers(1, 20))
def test_taps_and_tiles_that_lie_inside(taps, tiles, padding, length):
    """Of every tap of every tile, whether its pixel, 4·tile − padding + tap, is in the image."""
    inside = np.zeros((tiles, taps), bool)
    for t in range(tiles):
        for tap in range(taps):
            inside[t, tap] = 0 <= 4 * t - padding + tap < length
    found = np.zeros_like(inside)
    for tile, tap in agreeing_tiles(taps, range(tiles), 4, padding, length):
        found[tile.start:tile.stop, tap] = True
    np.testing.assert_array_equal(found, inside)


@pytest.mark.parametrize("m", [2, 4])
def test_transforms_multiply_polynomials(m):
    """For one axis: Aᵀ [(G g) ⊙ (Bᵀ d)] is the correlation of d with g, and A's bias column is 1."""
    BT, G, AT = winograd.TRANSFORMS[m]
    for d in np.eye(m + 2):
        for g in np.eye(3):
            np.testing.assert_allclose(AT @ ((G @ g) * (BT @ d)), np.correlate(d, g, "valid"), atol=1e-15)
    assert (AT[:, 1] == 1).all()


@pytest.mark.parametrize("mean", [0, 1, 100])
def test_float32_error(form, mean):
    """Below 2e-5 (A x, Aᵀ y) and 1e-4 (weight gradient) of the largest element of the products of |x|, |w|, |y|."""
    rng = np.random.default_rng(0)
    x, w, y = (rng.standard_normal(shape, np.float32) for shape in
               ((2, 33, 30, 24), (3, 3, 24, 20), (2, 33, 30, 20)))
    x, y = x + np.float32(mean), y + np.float32(mean)
    geometry = Geometry(3, padding=1)
    A = ConvMatrix(w, geometry, (33, 30), algorithm="winograd")
    exact = ConvMatrix(w.astype(float), geometry, (33, 30), algorithm="im2col")
    bound = ConvMatrix(abs(w.astype(float)), geometry, (33, 30), algorithm="im2col")
    for product, limit in ((lambda B, x, y: B @ x, 2e-5), (lambda B, x, y: B.T @ y, 2e-5),
                           (lambda B, x, y: B.weight_grad(x, y), 1e-4)):
        found, scale = product(A, x, y), product(bound, abs(x), abs(y)).max()
        assert found.dtype == np.float32
        assert abs(found - product(exact, x, y)).max() <= limit * scale


def test_gradients_equal_pytorchs_in_float64(form):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    x, w, dy = (rng.standard_normal(shape) for shape in ((2, 18, 13, 6), (3, 3, 6, 9), (2, 18, 13, 9)))
    tx, tw = (torch.tensor(a, requires_grad=True) for a in (x, w))
    ty = torch.nn.functional.conv2d(tx.permute(0, 3, 1, 2), tw.permute(3, 2, 0, 1), padding=1).permute(0, 2, 3, 1)
    ty.backward(torch.tensor(dy))
    A = ConvMatrix(w, Geometry(3, padding=1), (18, 13), algorithm="winograd")
    assert_close(A @ x, ty.detach().numpy(), 1e-10)
    assert_close(A.T @ dy, tx.grad.numpy(), 1e-10)
    assert_close(A.weight_grad(x, dy), tw.grad.numpy(), 1e-10)


def test_the_same_bits_for_any_number_of_threads(form, monkeypatch):
    """In many blocks, chunks and partial sums."""
    monkeypatch.setattr(winograd_products, "PART_NUMBERS", 20_000)
    monkeypatch.setattr(winograd_products, "CHUNK_NUMBERS", 20_000)
    monkeypatch.setattr(winograd_products, "BLOCK_NUMBERS", 6 * 22 * 200)
    rng = np.random.default_rng(0)
    x, w, y = (rng.standard_normal(shape, np.float32) for shape in ((3, 70, 41, 12), (3, 3, 12, 10), (3, 70, 41, 10)))
    A = ConvMatrix(w, Geometry(3, padding=1), (70, 41), algorithm="winograd")
    found = []
    for threads in "123":
        monkeypatch.setenv("MINUNET_NUM_THREADS", threads)
        found.append((A @ x, A.T @ y, A.weight_grad(x, y)))
    for other in found[1:]:
        for a, b in zip(other, found[0]):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("form", ["blocks", "chunks", "chunks, 2x2"], indirect=True)     # rows are for small ones
@pytest.mark.parametrize("geometry, c, f", [(Geometry(3, padding=1), 4, 3), (Geometry(3, padding=(0, 2)), 1, 5)])
def test_large_weights_are_multiplied_as_they_lie(form, monkeypatch, geometry, c, f):
    """Without a copy with channels and filters exchanged; in one piece, as small products would be slow."""
    rng = np.random.default_rng(0)
    w = rng.standard_normal((3, 3, c, f))
    A = ConvMatrix(w, geometry, (13, 18), algorithm="winograd")
    y = rng.standard_normal((2, *A.out_size, f))
    expected = A.T @ y
    monkeypatch.setattr(winograd_products, "TRANSPOSED", 0)
    monkeypatch.setattr(winograd_products, "_exchanged", None)
    assert_close(A.T @ y, expected, 1e-12)


@pytest.mark.parametrize("size", [(8, 12), (9, 14)], ids=["whole tiles", "tiles beyond the image"])
def test_every_pixel_comes_by_once_in_the_blocks(form, monkeypatch, size):
    """In `with_each`: of single tiles and of large blocks, in a fixed order."""
    rng = np.random.default_rng(0)
    x, w = (rng.standard_normal(shape) for shape in ((3, *size, 4), (3, 3, 4, 2)))
    A = ConvMatrix(w, Geometry(3, padding=1), size, algorithm="winograd")
    blocks = Grid.blocks
    for cut in ((1, 1), (4, 2), (1000, 1000)):
        monkeypatch.setattr(Grid, "blocks", lambda self, *_, images=99, cut=cut: blocks(self, *cut, images))
        found = []
        for threads in "12":
            monkeypatch.setenv("MINUNET_NUM_THREADS", threads)
            y, parts = A.with_each(x, np.copy)
            assert all(part.ndim == 2 for part in parts)
            pixels, all_of_y = np.concatenate([part.reshape(-1, 2) for part in parts]), y.reshape(-1, 2)
            np.testing.assert_array_equal(pixels[np.lexsort(pixels.T)], all_of_y[np.lexsort(all_of_y.T)])
            np.testing.assert_array_equal(y, A @ x)
            found.append(pixels)
        np.testing.assert_array_equal(*found)


def test_large_weights_are_transformed_in_pieces(monkeypatch):
    """More columns than one piece, not a multiple of it; and exchanged by strips of rows, also not a multiple."""
    rng = np.random.default_rng(0)
    for c, f in ((130, 150), (523, 513)):
        x, w, y = (rng.standard_normal(shape) for shape in ((1, 5, 6, c), (3, 3, c, f), (1, 5, 6, f)))
        A, plain = (ConvMatrix(w, Geometry(3, padding=1), (5, 6), algorithm=a) for a in ("winograd", "im2col"))
        for product in (lambda B: B @ x, lambda B: B.T @ y, lambda B: B.weight_grad(x, y)):
            expected = product(plain)
            assert_close(product(A) / abs(expected).max(), expected / abs(expected).max(), 1e-12)


def test_auto_is_winograd_for_float32_where_it_is_faster_and_fits():
    def chosen(c=16, f=16, size=32, dtype=np.float32, **geometry):
        g = Geometry(**({"kernel": 3, "padding": 1} | geometry))
        return ConvMatrix(np.ones((*g.kernel, c, f), dtype), g, size).algorithm

    assert chosen() == chosen(padding=0) == chosen(padding=(2, 1)) == chosen(size=8, c=128, f=128) == "winograd"
    for options in (dict(dtype=np.float64), dict(c=3), dict(f=2), dict(stride=2), dict(dilation=2), dict(padding=3),
                    dict(kernel=5), dict(kernel=(3, 1)), dict(size=8), dict(size=4, c=1024, f=1024)):
        assert chosen(**options) == "im2col"


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="'winograd' is for kernel 3, stride 1, dilation 1 and padding up to 2; got"):
        ConvMatrix(np.ones((3, 3, 2, 2)), Geometry(3, stride=2), 8, algorithm="winograd")
    A = ConvMatrix(np.ones((3, 3, 2, 2)), Geometry(3, padding=1), 4, algorithm="winograd")
    one = np.ones((1, 4, 4, 1))
    for images in ((one,), (one, one, one), (one, one[0]), (one, np.ones((2, 4, 4, 1))), (one, np.ones((1, 4, 5, 1)))):
        with pytest.raises(ValueError, match=r"x must be images \(N, 4, 4, ·\).*with 2 channels together"):
            A @ images
    with pytest.raises(ValueError, match="split: channels must be at least 1 each, 2 together; got"):
        A.T.split(np.ones((1, 4, 4, 2)), (1, 2))


@pytest.mark.parametrize("c, f, size, forward, gradient", [
    (32, 32, 64, (4, 1, False), (4, 1, False)),          # NARROW: rows
    (32, 33, 64, (4, 4, False), (4, 4, False)),
    (128, 128, 64, (4, 4, False), (4, 4, False)), (129, 128, 64, (4, 4, False), (4, 4, True)),
    (256, 256, 32, (4, 4, False), (4, 4, True)), (256, 257, 32, (4, 4, True), (4, 4, True)),
    (256, 256, 16, (4, 4, False), (4, 4, True)), (257, 64, 28, (2, 2, False), (2, 2, True)),
    (257, 64, 32, (4, 4, False), (4, 4, True)),
])
def test_which_form_a_layer_takes(c, f, size, forward, gradient):
    """Tiles of m[0] x m[1] px, and whether in chunks."""
    for expected, of_gradient in ((forward, False), (gradient, True)):
        chosen = winograd_products.plan(1, (size, size), (size, size), (1, 1), c, f, np.dtype("f"), of_gradient)
        assert (*chosen.grid.m, chosen.chunk > 0) == expected


def test_no_images(form):
    c, f = 4, 3
    A = ConvMatrix(np.ones((3, 3, c, f)), Geometry(3, padding=1), (6, 7), algorithm="winograd")
    x, y = np.zeros((0, 6, 7, c)), np.zeros((0, 6, 7, f))
    assert A.affine(x, np.ones(f), True).shape == y.shape and (A.T @ y).shape == x.shape
    np.testing.assert_array_equal(A.weight_grad(x, y), np.zeros((3, 3, c, f)))
