"""Losses: loop oracles, finite differences, PyTorch; stability, weights, ignored pixels, nothing left, shapes."""

from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from minunet import Tensor, functional, gradcheck
from tests import naive
from tests.checks import assert_close, assert_keeps_float32
from tests.peers import PRECISIONS, assert_equals_torch, first
from tests.strategies import seeds


class Problem(NamedTuple):
    """Logits with a target that they suit, and any of the options."""

    logits: np.ndarray
    target: np.ndarray
    options: dict[str, Any]

    def completed(self):
        """All four inputs of a loop oracle that follow the logits."""
        return (self.target, self.options.get("weights", np.ones(self.logits.shape[:-1])),
                self.options.get("class_weights", np.ones(self.logits.shape[-1])), self.options.get("ignore_index"))

    def valid(self):
        """1 where the target is not ignored, 0 where it is."""
        ignored = self.options.get("ignore_index")
        return np.ones(self.target.shape) if ignored is None else (self.target != ignored).astype(float)


@st.composite
def problems(draw, of_ids):
    """Class ids without the channel axis, or fractions 0 to 1 of the logits' shape; here and there one to ignore."""
    n, h, w = (draw(st.integers(1, 3)) for _ in range(3))
    k = draw(st.integers(2 if of_ids else 1, 4))
    rng = np.random.default_rng(draw(seeds))
    logits = 2 * rng.standard_normal((n, h, w, k))
    if of_ids:
        target = rng.integers(0, draw(st.integers(1, k)), (n, h, w)).astype(draw(st.sampled_from(["int64", "uint8"])))
    elif draw(st.booleans()):
        target = rng.integers(0, 2, (n, h, w, k)).astype(float)
    else:
        target = rng.uniform(0, 1, (n, h, w, k))
    options = {}
    if draw(st.booleans()):
        options["weights"] = rng.choice([0, 0.5, 1, 3], (n, h, w))
    if draw(st.booleans()):
        options["class_weights"] = rng.uniform(0.1, 2, k)
    if draw(st.booleans()):
        options["ignore_index"] = draw(st.sampled_from([255, 254]))
        target = np.where(rng.uniform(size=target.shape) < draw(st.sampled_from([0.2, 0.8, 1])), target,
                          target.dtype.type(options["ignore_index"]))
    return Problem(logits, target, options)


# name: (the loss, whether its target holds class ids)
LOSSES = {
    "cross_entropy": (functional.cross_entropy, True),
    "bce_with_logits": (functional.bce_with_logits, False),
    "dice of ids": (functional.dice, True),
    "dice of fractions": (functional.dice, False),
}
EACH = pytest.mark.parametrize("name", LOSSES)


def draw_problem(name, data):
    """A problem for this loss; for dice also with its own option."""
    loss, of_ids = LOSSES[name]
    problem = data.draw(problems(of_ids))
    if loss is functional.dice and data.draw(st.booleans()):
        problem.options["smooth"] = data.draw(st.floats(0.01, 3))
    return loss, problem


def value_and_gradient(loss, logits, *args, **options):
    z = Tensor(logits, requires_grad=True)
    y = loss(z, *args, **options)
    assert y.shape == ()
    y.backward()
    return y.item(), z.grad


@EACH
@given(data=st.data())
def test_value_equals_the_loop_oracle(name, data):
    loss, problem = draw_problem(name, data)
    own = [problem.options.get("smooth", 1.0)] if loss is functional.dice else []
    expected = getattr(naive, loss.__name__)(problem.logits, *problem.completed(), *own)
    assert_close(loss(problem.logits, problem.target, **problem.options).data, expected, 1e-12)


@EACH
@given(data=st.data())
def test_gradient_equals_finite_differences(name, data):
    loss, problem = draw_problem(name, data)
    gradcheck(lambda z: loss(z, problem.target, **problem.options), [problem.logits])


@EACH
@given(data=st.data())
def test_float32_follows_float64(name, data):
    """Targets and weights in float64 do not make the loss float64."""
    loss, problem = draw_problem(name, data)
    value, gradient = value_and_gradient(loss, problem.logits, problem.target, **problem.options)
    small, small_gradient = value_and_gradient(loss, problem.logits.astype(np.float32), problem.target,
                                               **problem.options)
    assert small_gradient.dtype == np.float32
    assert_close(small, value, 1e-5)
    assert_close(small_gradient, gradient, 1e-5)


@pytest.mark.parametrize("dtype, tolerance", PRECISIONS)
@given(problem=problems(True))
def test_cross_entropy_equals_pytorch(torch, dtype, tolerance, problem):
    """PyTorch weighs classes and ignores; pixel weights are put around it. With nothing left it gives NaN."""
    weights = problem.options.get("weights", np.ones(problem.target.shape))
    _, _, class_weights, ignored = problem.completed()
    norm = (weights * class_weights[problem.target * (problem.valid() > 0)] * problem.valid()).sum()
    assume(norm > 0)
    target = torch.tensor(problem.target.astype(np.int64))

    def theirs(z):
        return (torch.nn.functional.cross_entropy(
            first(z), target, torch.tensor(class_weights.astype(dtype)), reduction="none",
            ignore_index=-100 if ignored is None else ignored) * torch.tensor(weights.astype(dtype))).sum() / norm

    def ours(z):
        return functional.cross_entropy(z, problem.target, **problem.options)

    assert_equals_torch(torch, ours, theirs, [problem.logits], dtype, tolerance)
    if "weights" not in problem.options:            # PyTorch's own mean
        mean = torch.nn.functional.cross_entropy(
            first(torch.tensor(problem.logits)), target, torch.tensor(class_weights),
            ignore_index=-100 if ignored is None else ignored)
        assert_close(ours(problem.logits).data, mean.numpy(), 1e-10)


@pytest.mark.parametrize("dtype, tolerance", PRECISIONS)
@given(problem=problems(False))
def test_bce_equals_pytorch(torch, dtype, tolerance, problem):
    """PyTorch's mean over all elements, where nothing is ignored; else its sum over the count of what is left."""
    target, weights, class_weights, ignored = problem.completed()
    weight = torch.tensor((weights[..., None] * class_weights * problem.valid()).astype(dtype))
    t = torch.tensor((target * problem.valid()).astype(dtype))
    bce, count = torch.nn.functional.binary_cross_entropy_with_logits, problem.valid().sum()
    assume(count > 0)
    assert_equals_torch(
        torch, lambda z: functional.bce_with_logits(z, target, **problem.options),
        lambda z: bce(z, t, weight) if ignored is None else bce(z, t, weight, reduction="sum") / count,
        [problem.logits], dtype, tolerance)


def ids(*values):
    return np.array(values).reshape(1, 1, -1)


def pixels(*rows):
    return np.array(rows, float).reshape(1, 1, len(rows), -1)


def test_cross_entropy_is_the_sum_of_w_l_over_the_sum_of_w():
    """Two pixels with p = (1/4, 3/4); the first is of class 0, the second of class 1."""
    z, target = pixels([0, np.log(3)], [0, np.log(3)]), ids(0, 1)
    l0, l1 = np.log(4), np.log(4 / 3)
    for options, expected in [({}, (l0 + l1) / 2), ({"class_weights": [1, 3]}, (l0 + 3 * l1) / 4),
                              ({"weights": ids(5, 1)}, (5 * l0 + l1) / 6), ({"ignore_index": 0}, l1),
                              ({"weights": ids(5, 1), "class_weights": [1, 3]}, (5 * l0 + 3 * l1) / 8)]:
        assert_close(functional.cross_entropy(z, target, **options).data, expected, 1e-14)


def test_bce_is_the_sum_of_w_l_over_the_count():
    """p = 1/4 for t = 1, p = 3/4 for t = 1/2."""
    z, target = pixels([-np.log(3)], [np.log(3)]), pixels([1], [0.5])
    l0, l1 = np.log(4), (np.log(4) + np.log(4 / 3)) / 2
    for options, expected in [({}, (l0 + l1) / 2), ({"class_weights": [3]}, 3 * (l0 + l1) / 2),
                              ({"weights": ids(5, 1)}, (5 * l0 + l1) / 2), ({"ignore_index": 1}, l1),
                              ({"weights": ids(5, 0), "class_weights": [3]}, 15 * l0 / 2)]:
        assert_close(functional.bce_with_logits(z, target, **options).data, expected, 1e-14)


def test_dice_is_1_minus_2_overlap_over_both_sums():
    """p = 1/2 everywhere, t = 1 and 0: 1 − (2·½ + ε)/(1 + 1 + ε)."""
    z, target = pixels([0], [0]), pixels([1], [0])
    for options, expected in [({}, 1 - 2 / 3), ({"smooth": 2}, 1 - 3 / 4), ({"weights": ids(3, 1)}, 1 - 4 / 6),
                              ({"weights": ids(1, 0)}, 1 - 2 / 2.5), ({"class_weights": [7]}, 1 - 2 / 3),
                              ({"ignore_index": 0}, 1 - 2 / 2.5)]:
        assert_close(functional.dice(z, target, **options).data, expected, 1e-14)


def test_dice_sums_over_batch_and_pixels_before_it_divides():
    z, target = np.zeros((2, 1, 1, 1)), np.array([1.0, 0]).reshape(2, 1, 1, 1)
    assert_close(functional.dice(z, target).data, 1 - 2 / 3, 1e-14)


def test_dice_takes_the_mean_over_the_classes_in_target_or_prediction():
    """Class 0 is in the target only, class 1 predicted only, class 2 neither."""
    z = pixels([-1, 2, -1, 0.5], [-1, 2, -1, -3])
    target = pixels([1, 0, 0, 1], [1, 0, 0, 0])
    each = [functional.dice(z[..., k:k + 1], target[..., k:k + 1]).item() for k in range(4)]
    assert each[2] == 0
    present = np.array([each[0], each[1], each[3]])
    assert_close(functional.dice(z, target).data, present.mean(), 1e-14)
    assert_close(functional.dice(z, target, class_weights=[1, 2, 50, 3]).data, present @ [1, 2, 3] / 6, 1e-14)
    assert not value_and_gradient(functional.dice, z, target)[1][..., 2].any()


def test_dice_of_ids_leaves_out_the_classes_that_are_in_neither():
    z, target = pixels([3, 1, 0, 0], [3, 1, 0, 0]), ids(0, 1)       # both pixels predicted as class 0
    p = np.exp([3, 1, 0, 0]) / np.exp([3, 1, 0, 0]).sum()
    expected = np.mean([1 - (2 * p[k] + 1) / (2 * p[k] + 1 + 1) for k in (0, 1)])
    assert_close(functional.dice(z, target).data, expected, 1e-14)


@pytest.mark.parametrize("name, scaled, factor", [
    ("cross_entropy", "weights", 1), ("cross_entropy", "class_weights", 1),
    ("bce_with_logits", "weights", 7), ("bce_with_logits", "class_weights", 7),
    ("dice of ids", "class_weights", 1), ("dice of fractions", "class_weights", 1),
])
@given(data=st.data())
def test_weights_7_times_as_large_change_the_binary_loss_only(name, scaled, factor, data):
    """Cross-entropy divides by the weights, dice by those of the classes; binary cross-entropy by the count."""
    loss, problem = draw_problem(name, data)
    shape = problem.logits.shape[:-1] if scaled == "weights" else problem.logits.shape[-1:]
    larger = problem.options | {scaled: 7 * problem.options.get(scaled, np.ones(shape))}
    assert_close(loss(problem.logits, problem.target, **larger).data,
                 factor * loss(problem.logits, problem.target, **problem.options).data, 1e-12)


@EACH
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("size", [1e4, 80.0, 745.0])
def test_finite_at_logits_of_ten_thousand(name, dtype, size):
    """Right, wrong and undecided, by as much as the logits can say."""
    loss, of_ids = LOSSES[name]
    z = np.array([[size, -size], [-size, size], [size, size], [-size, -size], [size, 0]], dtype).reshape(1, 1, 5, 2)
    for target in (ids(0, 0, 1, 1, 0), ids(1, 0, 0, 1, 1)):
        t = target if of_ids else np.stack([target == 0, target == 1], -1)
        value, gradient = value_and_gradient(loss, z, t)
        assert np.isfinite(value) and np.isfinite(gradient).all() and gradient.dtype == dtype


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("loss, logits, target, value, gradient", [
    (functional.cross_entropy, [1e4, -1e4], 0, 0, [0, 0]),
    (functional.cross_entropy, [1e4, -1e4], 1, 2e4, [1, -1]),
    (functional.cross_entropy, [1e4, 1e4], 1, np.log(2), [0.5, -0.5]),
    (functional.cross_entropy, [-1e4, -1e4], 0, np.log(2), [-0.5, 0.5]),
    (functional.bce_with_logits, [1e4], [1], 0, [0]),
    (functional.bce_with_logits, [-1e4], [0], 0, [0]),
    (functional.bce_with_logits, [1e4], [0], 1e4, [1]),
    (functional.bce_with_logits, [-1e4], [1], 1e4, [-1]),
    (functional.bce_with_logits, [1e4], [0.25], 7500, [0.75]),
    (functional.dice, [1e4], [1], 0, [0]),
    (functional.dice, [1e4], [0], 0.5, [0]),
    (functional.dice, [-1e4], [1], 0.5, [0]),
    (functional.dice, [1e4, -1e4], 0, 0, [0, 0]),
    (functional.dice, [1e4, -1e4], 1, 0.5, [0, 0]),
])
def test_values_at_logits_of_ten_thousand(loss, logits, target, value, gradient, dtype):
    z = np.array(logits, dtype).reshape(1, 1, 1, -1)
    got, got_gradient = value_and_gradient(loss, z, np.array(target).reshape(1, 1, 1, *np.shape(target)))
    np.testing.assert_allclose(got, value, rtol=1e-6)
    np.testing.assert_allclose(got_gradient.ravel(), gradient, rtol=1e-6)


def test_small_probabilities_keep_their_digits():
    """l = log(1 + e^−20), not log 1, for a right answer: stable at both ends."""
    expected = np.log1p(np.exp(-20.0))
    assert functional.bce_with_logits(pixels([20]), pixels([1])).item() == pytest.approx(expected, rel=1e-12, abs=0)
    assert functional.cross_entropy(pixels([20, 0]), ids(0)).item() == pytest.approx(expected, rel=1e-6, abs=0)


@EACH
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("emptied", ["ignore_index", "weights", "class_weights"])
def test_nothing_left_is_loss_0_and_gradient_0(name, emptied, dtype):
    loss, of_ids = LOSSES[name]
    z = np.random.default_rng(0).standard_normal((2, 3, 4, 3)).astype(dtype)
    target = np.ones(z.shape[:-1] if of_ids else z.shape, np.uint8)
    option = {"ignore_index": 1, "weights": np.zeros((2, 3, 4)), "class_weights": np.zeros(3)}[emptied]
    value, gradient = value_and_gradient(loss, z, target, **{emptied: option})
    assert value == 0
    np.testing.assert_array_equal(gradient, np.zeros_like(z))


def test_dice_of_an_empty_target_with_an_empty_prediction_is_0():
    value, gradient = value_and_gradient(functional.dice, np.full((1, 2, 2, 1), -1.0), np.zeros((1, 2, 2, 1)))
    assert value == 0 and not gradient.any()


@EACH
@given(data=st.data())
def test_what_is_ignored_or_weighs_0_counts_for_nothing(name, data):
    loss, problem = draw_problem(name, data)
    dead = (problem.valid() if LOSSES[name][1] else problem.valid().max(-1)) == 0
    dead |= problem.options.get("weights", np.ones(dead.shape)) == 0
    value, gradient = value_and_gradient(loss, problem.logits, problem.target, **problem.options)
    assert not gradient[dead].any()
    changed = problem.logits.copy()
    changed[dead] = np.random.default_rng(0).choice([-1e4, 1e4], changed[dead].shape)
    again, again_gradient = value_and_gradient(loss, changed, problem.target, **problem.options)
    assert again == value
    np.testing.assert_array_equal(again_gradient, gradient)


@pytest.mark.parametrize("loss", [functional.cross_entropy, functional.dice])
def test_any_integer_type_holds_class_ids(loss):
    z, target = np.random.default_rng(0).standard_normal((1, 2, 3, 4)), np.arange(6).reshape(1, 2, 3) % 4
    expected = loss(z, target, ignore_index=3).item()
    for dtype in (np.uint8, np.int8, np.int32, np.uint16, np.uint64):
        assert loss(z, target.astype(dtype), ignore_index=3).item() == expected
    assert loss(z, np.where(target == 3, -1, target), ignore_index=-1).item() == expected
    assert loss(z, np.where(target == 3, 255, target).astype(np.uint8), ignore_index=255).item() == expected
    for unused in (-1, 300):            # outside uint8
        assert loss(z, target.astype(np.uint8), ignore_index=unused).item() == loss(z, target).item()


@pytest.mark.parametrize("loss", [functional.bce_with_logits, functional.dice])
def test_a_mask_is_a_target_whatever_its_type(loss):
    z = np.random.default_rng(0).standard_normal((1, 2, 3, 2))
    expected = loss(z, (z > 0.3).astype(float)).item()
    for dtype in (bool, np.uint8, np.int64, np.float32):
        assert loss(z, (z > 0.3).astype(dtype)).item() == expected


@EACH
def test_float32_stays_float32(name):
    loss, of_ids = LOSSES[name]
    target = np.ones((2, 3, 4) if of_ids else (2, 3, 4, 5), int)
    assert_keeps_float32(lambda z: loss(z, target), (2, 3, 4, 5))
    assert_keeps_float32(lambda z: loss(z, target, weights=np.ones((2, 3, 4)), class_weights=np.ones(5)), (2, 3, 4, 5))


@pytest.mark.parametrize("name, parts, of_ids", [
    ("ce", [functional.cross_entropy], True), ("bce", [functional.bce_with_logits], False),
    ("dice", [functional.dice], True), ("bce+dice", [functional.bce_with_logits, functional.dice], False),
    ("ce+dice", [functional.cross_entropy, functional.dice], True),
])
def test_sums_of_losses_by_name(name, parts, of_ids):
    """Value, gradient and every option."""
    rng = np.random.default_rng(0)
    z = rng.standard_normal((2, 3, 4, 3))
    target = rng.integers(0, 2, z.shape[:3] if of_ids else z.shape)
    for options in ({}, {"weights": rng.uniform(0, 2, z.shape[:3]), "class_weights": [1, 2, 3], "ignore_index": 1}):
        value, gradient = value_and_gradient(functional.loss_function(name), z, target, **options)
        each = [value_and_gradient(loss, z, target, **options) for loss in parts]
        assert value == pytest.approx(sum(v for v, _ in each), rel=1e-14)
        assert_close(gradient, sum(g for _, g in each), 1e-14)


Z1, Z3 = np.zeros((2, 4, 5, 1)), np.zeros((2, 4, 5, 3))
IDS, MASK = np.zeros((2, 4, 5), int), np.zeros((2, 4, 5, 1))


@pytest.mark.parametrize("loss", [functional.bce_with_logits, functional.dice])
@pytest.mark.parametrize("target", [MASK[..., 0], MASK[:1], MASK[:, :1], MASK[:, :, :1], MASK[0], MASK[None],
                                    np.zeros(()), np.zeros((2, 4, 5, 3)), np.zeros((2, 5, 4, 1))], ids=np.shape)
def test_a_mask_of_another_shape_is_refused(loss, target):
    with pytest.raises(ValueError, match=rf"target .*\(2, 4, 5, 1\).*; got .*{str(target.shape)[1:-1]}"):
        loss(Z1, target)


@pytest.mark.parametrize("loss", [functional.cross_entropy, functional.dice])
@pytest.mark.parametrize("target", [IDS[:1], IDS[:, :1], IDS[:, :, :1], IDS[0], IDS[..., None], IDS[None, ..., None],
                                    np.zeros((2, 5, 4), int)], ids=np.shape)
def test_class_ids_of_another_shape_are_refused(loss, target):
    with pytest.raises(ValueError, match=rf"target .*\(2, 4, 5.*; got .*{str(target.shape)[1:-1]}"):
        loss(Z3, target)


@pytest.mark.parametrize("make, message", [
    (lambda: functional.cross_entropy(Z3, IDS.astype(float)), "cross_entropy: target must hold integer .*got float64"),
    (lambda: functional.cross_entropy(Z3, IDS + 3),
     "cross_entropy: target holds the class id 3, the logits have the classes 0 to 2; give ignore_index"),
    (lambda: functional.cross_entropy(Z3, IDS - 1), "cross_entropy: target holds the class id -1"),
    (lambda: functional.cross_entropy(Z3, IDS + 255, ignore_index=254), "cross_entropy: target holds .* id 255"),
    (lambda: functional.cross_entropy(Z1, IDS), "cross_entropy: a target of class ids needs .* at least 2 classes"),
    (lambda: functional.dice(Z1, IDS), r"dice: .* at least 2 classes; .* target of exactly .*\(2, 4, 5, 1\); got"),
    (lambda: functional.dice(Z3, IDS + 3), "dice: target holds the class id 3"),
    (lambda: functional.bce_with_logits(Z1, MASK + 255),
     "bce_with_logits: target must lie in 0 to 1; got 255.0; divide a 0/255 mask by 255"),
    (lambda: functional.bce_with_logits(Z1, MASK - 1), "bce_with_logits: target must lie in 0 to 1; got -1"),
    (lambda: functional.bce_with_logits(Z1, MASK + np.nan), "bce_with_logits: target must lie in 0 to 1; got nan"),
    (lambda: functional.dice(Z1, MASK + 2), "dice: target must lie in 0 to 1; got 2"),
    (lambda: functional.dice(Z1, MASK, smooth=0), "dice: smooth must be above 0; got 0"),
    *((lambda loss=loss, z=z, t=t, options=options: loss(z, t, **options), f"{loss.__name__}: {message}")
      for loss, z, t in [(functional.cross_entropy, Z3, IDS), (functional.bce_with_logits, Z3, Z3),
                         (functional.dice, Z3, IDS), (functional.dice, Z3, Z3)]
      for options, message in [
          ({"weights": np.ones((4, 5))}, r"weights must hold .* shape \(2, 4, 5\); got shape \(4, 5\)"),
          ({"weights": np.ones((2, 4, 5, 1))}, r"weights must hold .*; got shape \(2, 4, 5, 1\)"),
          ({"weights": IDS - 0.5}, "weights must hold a finite number of at least 0 for each pixel.* got -0.5"),
          ({"weights": IDS + np.nan}, "weights must hold a finite number .* got nan"),
          ({"weights": IDS + np.inf}, "weights must hold a finite number .* got inf"),
          ({"class_weights": np.ones(2)}, r"class_weights must hold .* shape \(3,\); got shape \(2,\)"),
          ({"class_weights": [1, -1, 1]}, "class_weights must hold a finite number of at least 0 .* got -1"),
      ]),
    (lambda: functional.loss_function("bce+jaccard"), "loss must be one or a sum of ce, bce, dice,.* 'bce.jaccard'"),
    (lambda: functional.loss_function(""), "loss must be one or a sum of ce, bce, dice"),
])
def test_errors_name_what_came_and_what_is_allowed(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@EACH
@pytest.mark.parametrize("argument", ["target", "weights", "class_weights"])
def test_a_tensor_is_no_constant(name, argument):
    loss, of_ids = LOSSES[name]
    options = {"target": IDS if of_ids else Z3} | {argument: Tensor(np.ones(1))}
    with pytest.raises(TypeError, match=f"{loss.__name__}: {argument} must be an array of numbers; got Tensor"):
        loss(Z3, **options)


@pytest.mark.parametrize("f", [functional.cross_entropy, functional.bce_with_logits, functional.dice])
def test_a_nan_that_is_ignored_counts_for_nothing(f):
    logits, target = np.zeros((1, 1, 2, 2)), np.array([[[0, 255]]])
    if f is functional.bce_with_logits:
        target = np.array([[[[0, 1], [255, 255]]]])
    logits[0, 0, 1] = np.nan
    x = Tensor(logits, requires_grad=True)
    loss = f(x, target, ignore_index=255)
    loss.backward()
    assert np.isfinite(loss.item()) and np.isfinite(x.grad).all() and not x.grad[0, 0, 1].any()
