"""Traces of kernels: sectors and banks counted as by hand, every kernel with an example, pictures."""

import numpy as np
import pytest
from PIL import Image

from minunet import cuda
from minunet.errors import UserError
from minunet.simulator import Access, Step
from minunet.study import kernels
from minunet.study.kernels import Group, draw, study


def group(offsets, size=4, shared=False):
    """A group of one step whose lanes touched these bytes."""
    accesses = tuple(Access(0, lane, 0, "f.cu", 1, "x", shared, offset, size, "read", 0, "f.cu:1")
                     for lane, offset in enumerate(offsets))
    return Group("f.cu:1", "", "x", "read", shared, [Step(accesses)])


@pytest.mark.parametrize("offsets, size, expected", [
    (range(0, 128, 4), 4, (4, 4)),                  # one run of 32 floats
    (range(4, 132, 4), 4, (5, 4)),                  # the same, off by one float
    (range(0, 4096, 128), 4, (32, 4)),              # a column: every lane its own sector
    ([0] * 32, 4, (1, 1)),                          # all the same
    (range(0, 512, 16), 16, (16, 16)),              # float4
    ([28], 8, (2, 1)),                              # across a border
])
def test_sectors_of_global_memory(offsets, size, expected):
    found = group(offsets, size)
    assert found.cost(found.first) == expected and found.costs == expected


@pytest.mark.parametrize("offsets, size, expected", [
    (range(0, 128, 4), 4, (1, 1)),                  # every lane its own bank
    (range(0, 256, 8), 4, (2, 1)),                  # every second bank
    (range(0, 4096, 128), 4, (32, 1)),              # all in one bank
    ([64] * 32, 4, (1, 1)),                         # the same word: broadcast
    (range(0, 512, 16), 16, (4, 4)),                # 16 bytes a lane need four turns
    (range(0, 32 * 132, 132), 4, (1, 1)),           # a column of rows that are padded by one word
    ([*range(0, 64, 8), *range(128, 192, 8), *range(0, 128, 8)], 8, (3, 2)),    # the first half warp meets in 16 banks
])
def test_turns_of_shared_memory(offsets, size, expected):
    found = group(offsets, size, shared=True)
    assert found.cost(found.first) == expected


FILES = sorted(path.stem for path in cuda.folder().glob("*.cu"))


@pytest.mark.parametrize("file", FILES)
def test_every_kernel_has_an_example(device, file):
    launched = set()
    for _, run in kernels.examples(file, device):
        with cuda.record_launches() as launches:
            run()
        launched |= {launch.kernel for launch in launches}
    assert {f"{file}.{name}" for name in cuda.kernels_of(file)} - launched == set()


def test_the_study_of_the_direct_convolution():
    """The page says: neighbouring threads own neighbouring filters, and read x at one common address."""
    found = study("conv_direct.forward", block=1)
    assert found.launch.kernel == "conv_direct.forward" and found.block == 1 and found.launch.grid[0] == 16
    costs = {(g.kind, g.array): g.costs for g in found.groups}
    assert costs == {("read", "bias"): (4, 4), ("read", "x"): (1, 1), ("read", "weight"): (4, 4),
                     ("write", "y"): (4, 4)}
    y = found.writes["y"]
    assert y.shape == (2, 8, 8, 32)
    np.testing.assert_array_equal(y.ravel()[256:512], np.arange(256))      # block 1 owns the second 256 elements
    assert (np.delete(y.ravel(), np.s_[256:512]) == -1).all()


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
@pytest.mark.parametrize("kernel", ["conv_forward", "conv_transposed", "conv_weight_grad"])
def test_no_bank_is_asked_twice_by_tensor_cores(monkeypatch, kernel, precision):
    monkeypatch.setitem(kernels.ROUNDED, "conv_tensorcore", (precision,))
    shared = [group for group in kernels.study(f"conv_tensorcore.{kernel}").groups if group.shared]
    assert len(shared) >= 4 and all(turns == least for turns, least in (group.costs for group in shared))


def test_the_picture(tmp_path):
    draw(study("pool.max_pool2d"), tmp_path / "pool.png")
    with Image.open(tmp_path / "pool.png") as picture:
        assert picture.width > 1000 and picture.height > 400
        assert len(picture.convert("RGB").getcolors(1 << 24)) > 20


@pytest.mark.parametrize("options, words", [
    ({"block": 16}, "--block: must be below 16, as many as the launch of conv_direct.forward in this example has; "
                    "got 16"),
    ({"warp": 8}, "--warp: must be below 8, as many as the launch of conv_direct.forward in this example has; got 8"),
])
def test_a_block_or_warp_that_is_not_there(options, words):
    with pytest.raises(UserError) as caught:
        study("conv_direct.forward", **options)
    assert str(caught.value) == words
