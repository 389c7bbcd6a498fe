"""The losses on a GPU: kernels/loss.cu and dice.cu against the CPU ops in float64; checks where arrays are."""

import re

import numpy as np
import pytest

from minunet import Tensor, functional, gradcheck
from minunet.backend import to_device
from minunet.ops import loss as ops
from minunet.ops.kernels import loss as kernels
from tests.devices import computed

PRECISIONS = [(np.float32, 1e-6), (np.float64, 1e-13)]
# name: the op, whether its target holds class ids
LOSSES = {"cross_entropy": (ops.cross_entropy, True), "bce_with_logits": (ops.bce_with_logits, False),
          "dice of ids": (ops.dice, True), "dice of fractions": (ops.dice, False)}
EACH = pytest.mark.parametrize("name", LOSSES)
IDS = pytest.mark.parametrize("name", [name for name, (_, of_ids) in LOSSES.items() if of_ids])


def problem(name, shape, seed=0, ignored=0.0):
    """Logits in float64 and a target, a share of which is 255."""
    rng = np.random.default_rng(seed)
    logits = 2 * rng.standard_normal(shape)
    if LOSSES[name][1]:
        target = rng.integers(0, shape[-1], shape[:-1]).astype(np.uint8)
    else:
        target = rng.uniform(0, 1, shape).astype(np.float16)    # exact in float32
    return logits, np.where(rng.uniform(size=target.shape) < ignored, target.dtype.type(255), target)


def on(device, name, logits, target, **options):
    """(loss, gradient) and for dice (present) of the op on the device, the host arrays given as they are."""
    def f(z):
        y, cache = LOSSES[name][0](z, target=target, **options)
        return (y, *(a for a in cache if a is not None))

    return computed(device, f, logits)


def expected(name, logits, target, **options):
    y, cache = LOSSES[name][0](logits.astype(np.float64), target=target, **options)
    return (y, *(a for a in cache if a is not None))


def assert_same(actual, wanted, tolerance, dtype):
    """Relative to the largest: gradients are far below 1."""
    assert len(actual) == len(wanted)
    for a, b in zip(actual[:2], wanted[:2]):
        assert a.dtype == dtype and a.shape == b.shape
        assert np.abs(a - b).max(initial=0) <= tolerance * max(np.abs(b).max(initial=0), 1e-30)
    for a, b in zip(actual[2:], wanted[2:]):
        assert a.dtype == bool and (a == b).all()


def with_options(name, shape, seed):
    """Every combination of the options: pixel weights (some 0), class weights, ignored pixels."""
    rng = np.random.default_rng(seed)
    for weighted in (False, True):
        for class_weighted in (False, True):
            for ignored in (0.0, 0.3):
                options = {}
                if weighted:
                    options["weights"] = rng.choice([0, 0.5, 1, 3], shape[:-1])
                if class_weighted:
                    options["class_weights"] = rng.uniform(0.1, 2, shape[-1])
                if ignored:
                    options["ignore_index"] = 255
                yield *problem(name, shape, seed, ignored), options


@EACH
@pytest.mark.parametrize("dtype, tolerance", PRECISIONS)
def test_every_option_equals_the_cpu(device, name, dtype, tolerance, monkeypatch):
    """Two blocks where three would be needed: blocks that take a second round, the last of which is not full."""
    monkeypatch.setattr(kernels, "BLOCKS", 2)
    for logits, target, options in with_options(name, (2, 7, 11, 3), seed=1):
        assert_same(on(device, name, logits.astype(dtype), target, **options),
                    expected(name, logits.astype(dtype), target, **options), tolerance, dtype)


@pytest.mark.parametrize("name, classes", [(name, classes) for name in LOSSES
                                           for classes in (1, 2, 5, 8, 31, 32, 33, 70)
                                           if classes > 1 or not LOSSES[name][1]])         # ids need two classes
def test_any_number_of_classes(device, name, classes):
    """Below, at and above the 32 lanes of a warp; full groups of lanes and others."""
    shape = (1, 3, 5, classes)
    logits, target = problem(name, shape, classes, 0.2)
    options = {"ignore_index": 255, "class_weights": np.random.default_rng(0).uniform(0.5, 2, classes)}
    if name == "dice of fractions":
        target[..., :classes // 2][target[..., :classes // 2] != 255] = 0       # predicted, or not present
    assert_same(on(device, name, logits, target, **options), expected(name, logits, target, **options), 1e-13,
                np.float64)


@EACH
@pytest.mark.parametrize("shape", [(1, 1, 1, 2), (0, 4, 4, 3), (31, 3), (3,), (1, 33, 2, 4)], ids=str)
def test_any_number_of_pixels(device, name, shape):
    logits, target = problem(name, shape)
    options = {"weights": np.random.default_rng(0).uniform(0.1, 2, shape[:-1])}
    if shape[0] == 0:                   # NumPy has no maximum of nothing: 0 and nothing
        y, gradient, *_ = on(device, name, logits, target, **options)
        assert y == 0 and gradient.shape == shape
    elif name.startswith("dice") and len(shape) == 1:
        y, gradient, *_ = on(device, name, logits[None], target[None], weights=options["weights"][None])
        wanted = expected(name, logits[None], target[None], weights=options["weights"][None])
        assert_same((y, gradient, *_), wanted, 1e-13, np.float64)
    else:
        assert_same(on(device, name, logits, target, **options), expected(name, logits, target, **options), 1e-13,
                    np.float64)


@EACH
def test_many_pixels_are_added_up_accurately(device, name, monkeypatch):
    """In float32, more pixels than the threads of a full grid; unchecked."""
    monkeypatch.setattr(kernels, "BLOCKS", 16)
    logits, target = problem(name, (2, 100, 150, 2))
    logits = (logits + 3).astype(np.float32)
    y, cache = LOSSES[name][0](to_device(logits, device), target=target)
    wanted = expected(name, logits, target)
    assert abs(float(y) - wanted[0]) <= 1e-6 * wanted[0]
    assert np.abs(to_device(cache.gradient, "cpu") - wanted[1]).max() <= 1e-6 * np.abs(wanted[1]).max()


@EACH
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("emptied", ["ignore_index", "weights", "class_weights"])
def test_nothing_left_is_loss_0_and_gradient_0(device, name, emptied, dtype):
    logits, target = problem(name, (2, 3, 4, 3))
    target = np.ones_like(target, np.uint8)
    option = {"ignore_index": 1, "weights": np.zeros((2, 3, 4)), "class_weights": np.zeros(3)}[emptied]
    y, gradient, *_ = on(device, name, logits.astype(dtype), target, **{emptied: option})
    assert y == 0 and not np.signbit(y) and not gradient.any() and gradient.dtype == dtype


@EACH
def test_a_nan_that_is_ignored_counts_for_nothing_and_another_one_does(device, name):
    logits, target = problem(name, (2, 3, 5, 3), ignored=0.4)
    wanted = expected(name, logits, target, ignore_index=255)
    ignored = (target == 255)[..., None] if LOSSES[name][1] else target == 255
    spoilt = np.where(ignored, np.nan, logits)
    assert_same(on(device, name, spoilt, target, ignore_index=255), wanted, 1e-13, np.float64)
    spoilt[np.nonzero(~np.broadcast_to(ignored, spoilt.shape))[0][0], ...] = np.nan
    y, gradient, *_ = on(device, name, spoilt, target, ignore_index=255)
    assert np.isnan(y) and np.isnan(gradient).any()


@EACH
@pytest.mark.parametrize("dtype, tolerance", PRECISIONS)
@pytest.mark.parametrize("size", [1e4, 80.0, 745.0])
def test_finite_at_logits_of_ten_thousand(device, name, size, dtype, tolerance):
    z = np.array([[size, -size], [-size, size], [size, size], [-size, -size], [size, 0]], dtype).reshape(1, 1, 5, 2)
    for ids in ([0, 0, 1, 1, 0], [1, 0, 0, 1, 1]):
        target = np.array(ids, np.uint8).reshape(1, 1, 5)
        target = target if LOSSES[name][1] else np.stack([target == 0, target == 1], -1)
        assert_same(on(device, name, z, target), expected(name, z, target), tolerance, dtype)


@pytest.mark.parametrize("dtype, tolerance", PRECISIONS)
def test_small_losses_keep_their_digits(device, dtype, tolerance):
    """log(1 + e^−20), not log 1."""
    small = np.log1p(np.exp(-20.0))
    y, *_ = on(device, "bce_with_logits", np.full((3, 1), 20, dtype), np.ones((3, 1)))
    assert abs(float(y) - small) <= tolerance * small
    y, *_ = on(device, "bce_with_logits", np.full((3, 1), -20, dtype), np.zeros((3, 1)))
    assert abs(float(y) - small) <= tolerance * small


@pytest.mark.parametrize("name", ["dice of ids", "dice of fractions"])
def test_a_class_of_weightless_pixels_is_not_present(device, name):
    """Neither by its target nor by its prediction."""
    z = np.array([[3.0, -1, -1], [-1, 3, -1]])
    target = np.array([0, 2]) if LOSSES[name][1] else np.array([[1, 0, 0], [0, 0, 1]])
    arrays, weights = (z[None], target[None]), np.array([[1.0, 0]])
    result = on(device, name, *arrays, weights=weights)
    assert result[2].tolist() == [True, False, False]
    assert_same(result, expected(name, *arrays, weights=weights), 1e-13, np.float64)


@IDS
def test_of_equal_logits_the_first_is_predicted(device, name):
    """Without a target of its own a class takes part in dice only if it is predicted."""
    z = np.zeros((1, 2, 3, 5))
    z[..., 2:] = 1                      # classes 2, 3, 4 are equal: 2 is predicted
    target = np.ones((1, 2, 3), np.uint8)
    assert_same(on(device, name, z, target), expected(name, z, target), 1e-13, np.float64)


@EACH
@pytest.mark.parametrize("ignored", [-1, 0, 255, 300, 2**40], ids=str)
def test_any_type_of_target_and_any_value_to_ignore(device, name, ignored):
    """Whether the target can hold the value or not, whether it is a class id or not."""
    halves = [np.float16] if ignored < 2**11 else []    # NumPy warns of what overflows in a comparison
    for dtype in (np.uint8, np.int8, np.int32, np.uint16, np.int64, np.uint64, ">i2",
                  *([] if LOSSES[name][1] else [np.float32, np.float64, *halves])):
        logits, target = problem(name, (1, 3, 5, 2), seed=3)
        target = (target > 0.5).astype(dtype)
        if np.dtype(dtype).kind == "f" or np.iinfo(dtype).min <= ignored <= np.iinfo(dtype).max:
            target[0, 1:, 2] = ignored
        wanted = expected(name, logits, target, ignore_index=ignored)
        y, cache = LOSSES[name][0](to_device(logits, device), target=target, ignore_index=ignored)
        actual = tuple(to_device(a, "cpu") for a in (y, *cache) if a is not None)
        assert_same(actual, wanted, 1e-13, np.float64)
        y, cache = LOSSES[name][0](to_device(logits, device), target=to_device(target.astype(
            target.dtype.newbyteorder("=")), device), ignore_index=ignored)
        assert to_device(y, "cpu") == actual[0]


@EACH
def test_float32_rounds_no_fraction_to_the_ignored_value(device, name):
    """1 − 1e-12 is not 1: float32 has no such number, but it is the target's value that is compared."""
    logits, _ = problem(name, (1, 2, 2, 2))
    target = np.full((1, 2, 2, 2), 1 - 1e-12)
    target[0, 0] = 1
    if not LOSSES[name][1]:
        logits = logits.astype(np.float32)
        assert_same(on(device, name, logits, target, ignore_index=1),
                    expected(name, logits, target, ignore_index=1), 1e-6, np.float32)


@EACH
def test_arrays_on_the_device_and_views(device, name):
    """All arrays on the device, none of them contiguous."""
    shape = (2, 5, 6, 3)
    logits, target = problem(name, shape, 0, 0.2)
    weights, class_weights = np.random.default_rng(1).uniform(0, 2, shape[:-1]), np.array([1.0, 9, 2, 9, 3, 9])
    wanted = expected(name, logits[:, ::2, 1:], target[:, ::2, 1:], weights=weights[:, ::2, 1:],
                      class_weights=class_weights[::2], ignore_index=255)

    def f(z, t, w, c):
        y, cache = LOSSES[name][0](z[:, ::2, 1:], target=t[:, ::2, 1:], weights=w[:, ::2, 1:], class_weights=c[::2],
                                   ignore_index=255)
        return (y, *(a for a in cache if a is not None))

    assert_same(computed(device, f, logits, target, weights, class_weights), wanted, 1e-13, np.float64)


@EACH
def test_through_the_graph(device, name):
    """The lifted loss's gradient, scaled by what comes after it; and finite differences."""
    loss, (logits, target) = getattr(functional, LOSSES[name][0].__name__), problem(name, (1, 3, 4, 3))
    z = Tensor(to_device(logits, device), requires_grad=True)
    (loss(z, target) * 3).backward()
    assert_same((np.asarray(0.0), to_device(z.grad, "cpu")), (np.asarray(0.0), 3 * expected(name, logits, target)[1]),
                1e-13, np.float64)
    if device == "sim":
        gradcheck(lambda z: loss(z, target), [to_device(logits, device)])


@pytest.mark.parametrize("options, words", [
    ({"target": np.full((2, 3), 3)}, "cross_entropy: target holds the class id 3, the logits have the classes 0 to 2"),
    ({"target": np.full((2, 3), -1)}, "cross_entropy: target holds the class id -1"),
    ({"target": np.zeros((3, 2), int)}, "cross_entropy: target must hold integer class ids .* got int64"),
    ({"target": np.zeros((2, 3))}, "cross_entropy: target must hold integer class ids .* got float64"),
    ({"weights": np.ones(3)}, r"cross_entropy: weights must hold .* shape \(2, 3\); got shape \(3,\)"),
    ({"weights": np.full((2, 3), np.nan)}, "cross_entropy: weights must hold a finite number .* got nan"),
    ({"class_weights": np.array([1.0, -1, 1])}, "cross_entropy: class_weights must hold .* got -1"),
])
def test_ids_and_weights_are_checked_wherever_they_are(device, options, words):
    z = to_device(np.zeros((2, 3, 3), np.float32), device)
    for place in ("cpu", device):
        given = {"target": np.zeros((2, 3), int), **options}
        with pytest.raises(ValueError, match=words):
            ops.cross_entropy(z, **{key: to_device(a, place) for key, a in given.items()})


@pytest.mark.parametrize("name", ["bce_with_logits", "dice of fractions"])
@pytest.mark.parametrize("value, words", [(255, "lie in 0 to 1; got 255.0; divide"), (np.nan, "lie in 0 to 1; got nan"),
                                          (-0.5, "lie in 0 to 1; got -0.5")])
def test_fractions_are_checked_wherever_they_are(device, name, value, words):
    z = to_device(np.zeros((2, 3, 1)), device)
    for place in ("cpu", device):
        with pytest.raises(ValueError, match=words):
            LOSSES[name][0](z, target=to_device(np.full((2, 3, 1), float(value)), place))
        with pytest.raises(ValueError, match=r"target .*\(2, 3, 1\).*; got .*2, 3, 2"):
            LOSSES[name][0](z, target=to_device(np.zeros((2, 3, 2)), place))


def test_a_type_of_fewer_values_than_classes(device):
    """int8 holds none of the ids from 128: none can be wrong there."""
    z, target = np.random.default_rng(0).standard_normal((2, 3, 200)), np.array([[0, 127, 5], [6, 1, 2]], np.int8)
    assert_same(on(device, "cross_entropy", z, target), expected("cross_entropy", z, target), 1e-13, np.float64)
    with pytest.raises(ValueError, match="cross_entropy: target holds the class id -1"):
        ops.cross_entropy(to_device(z, device), target=to_device(target - np.int8(1), device))


def test_a_list_is_as_good_as_an_array(device):
    z = np.array([[0, np.log(3)], [0, np.log(3)]])
    y, _ = ops.cross_entropy(to_device(z, device), target=[0, 1], class_weights=[1, 3])
    np.testing.assert_allclose(float(y), (np.log(4) + 3 * np.log(4 / 3)) / 4, rtol=1e-14)


@EACH
@pytest.mark.parametrize("argument", ["target", "weights", "class_weights"])
def test_arrays_beside_logits_of_the_cpu_must_be_there_too(device, name, argument):
    logits, target = problem(name, (2, 3, 4, 3))
    options = {"target": target, "weights": np.ones((2, 3, 4)), "class_weights": np.ones(3)}
    options[argument] = to_device(options[argument], device)
    with pytest.raises(TypeError, match=re.escape(f"{argument} is on the device {device}, the logits are on cpu; move "
                                                  "one with minunet.backend.to_device")):
        LOSSES[name][0](logits, **options)


def test_the_result_is_on_the_device(device):
    z = to_device(np.zeros((2, 3), np.float32), device)
    for y, cache in (ops.cross_entropy(z, target=[0, 1]), ops.bce_with_logits(z, target=np.zeros((2, 3))),
                     ops.dice(z, target=[0, 1])):
        assert type(y) is type(cache.gradient) is type(z) and y.shape == () and y.dtype == np.float32
