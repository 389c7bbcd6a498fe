"""Every op's backward, and that of a whole U-Net, held against finite differences; and backwards that are wrong.

`check` compares one case of `CHECKS` along random directions and element by element. A plant is a real op's forward
with a backward that has one well-known fault in it, to see what the check says of such a thing.
"""

from __future__ import annotations

import difflib
import inspect
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from minunet import functional as F
from minunet.autograd import Tensor, lift
from minunet.backend import array_module, device_of
from minunet.convolution import ConvMatrix
from minunet.errors import UserError
from minunet.gradient_check import Examination, examine
from minunet.models import UNet
from minunet.nn.module import Module, Parameter
from minunet.ops import activation, conv, loss, norm, pool
from minunet.study.cases import CASES, IDS, IMAGE, LOGITS, Case

# nothing is left out: convolution, batch norm with ReLU, pooling, the way up, a skip, the padding of an odd size
NET: dict[str, Any] = {"in_channels": 2, "classes": 3, "base": 2, "depth": 1}
METHODS = {"nearest": "resample", "bilinear": "resample", "bicubic": "resample"}       # cases that are no op's name


@lru_cache(maxsize=None)
def _net(device: str) -> tuple[UNet, dict[str, tuple[Module, str]]]:
    """A U-Net on a device, and for the name of each parameter the module and attribute that hold it."""
    net = UNet(**NET)
    net.to(device)
    return net, {f"{prefix}.{name}": (module, name) for prefix, module in net.named_modules()
                 for name, value in module.members() if isinstance(value, Parameter)}


def unet_loss(image: Tensor, *parameters: Tensor) -> Tensor:
    """Cross-entropy and Dice of a U-Net's logits: image (1, 3, 4, 2), then all parameters, by `named_parameters`."""
    net, places = _net(device_of(image.data))
    for (module, attribute), parameter in zip(places.values(), parameters, strict=True):
        setattr(module, attribute, parameter)
    return F.loss_function("ce+dice")(net(image), IDS, ignore_index=255)


PARAMETERS = {name: p.shape for name, p in UNet(**NET).named_parameters()}
IMAGES = (*LOGITS[:3], NET["in_channels"])
CHECKS: dict[str, Case] = {**CASES, "unet": Case(unet_loss, (IMAGES, *PARAMETERS.values()))}


def op_of(name: str) -> str:
    """The op that a case is an example of: conv2d of "conv2d, relu"."""
    first = re.split("[ ,]", name)[0]
    return METHODS.get(first, first)


def select(what: str) -> list[str]:
    """The checks that are meant by a name: all cases of an op, a single case, "loss" (all losses), "unet", "all".

    Raises UserError for a name that nothing has.
    """
    groups: dict[str, list[str]] = {"all": list(CHECKS)}
    for name in CHECKS:
        groups.setdefault(op_of(name), []).append(name)
    groups["loss"] = [name for f in F.LOSSES.values() for name in groups[f.__name__]]
    if what in groups:
        return groups[what]
    if what in CHECKS:
        return [what]
    raise _unknown("no op, loss or case is called", what, [*groups, *CHECKS], "minunet gradcheck --help names them")


def names_of(name: str) -> tuple[str, ...]:
    """What the inputs of a check are called: the parameters of its function, a net's by their dotted names."""
    if name == "unet":
        return ("image", *PARAMETERS)
    names, count = [], len(CHECKS[name].shapes)
    for parameter in inspect.signature(CHECKS[name].f).parameters.values():
        many = parameter.kind is inspect.Parameter.VAR_POSITIONAL
        names += [f"{parameter.name}[{i}]" for i in range(count)] if many else [parameter.name]
    return tuple(names[:count])


@dataclass(frozen=True)
class Fault:
    """One input whose gradient is wrong: at its index of one element, and what all elements have in common."""

    tensor: str
    shape: tuple[int, ...]
    wrong: int              # elements
    index: tuple[int, ...]
    analytic: float
    numeric: float
    near_kink: bool
    kind: str               # of KINDS
    factor: float           # analytic / numeric, over all elements


@dataclass(frozen=True)
class Row:
    """One line of the table: what was compared, and the faults that came out (none: the backward is right)."""

    name: str
    found: Examination
    seconds: float
    faults: list[Fault]


def check(name: str, device: str = "cpu", dtype: Any = np.float64, seed: int = 0) -> Row:
    """Compare a case of `CHECKS`: every input along three directions, and each of its elements by itself."""
    return _check(name, CHECKS[name], device, dtype, seed)


def _check(name: str, case: Case, device: str, dtype: Any, seed: int) -> Row:
    begin, inputs = time.perf_counter(), names_of(name)
    # another sequence than the inputs': a cotangent equal to x would hide the gradient of batch norm, which is then 0
    rng = np.random.default_rng((seed, 2))
    found = examine(case.on(device, dtype), case.inputs(device, dtype, seed), elementwise=True, rng=rng)
    seconds = time.perf_counter() - begin
    faults = []
    for error in found.errors:
        analytic, numeric = found.analytic[error.input], found.numeric[error.input]
        kind, wrong, factor = _kind(analytic, numeric, found.report.tolerance)
        faults.append(Fault(inputs[error.input], analytic.shape, wrong, error.index, error.analytic, error.numeric,
                            error.near_kink, kind, factor))
    return Row(name, found, seconds, faults)


KINDS = {
    "nan": "it, or the finite difference, is not finite everywhere",
    "slight": "it is nowhere far off: a constant is inexact, or a small term is missing",
    "missing": "it is 0 everywhere: the gradient is missing",
    "factor": "it is {factor:.4g} times the finite difference everywhere: a factor is wrong",
    "passes": "it is wrong only where the finite difference is 0: something passes that should be stopped",
    "moved": "the numbers are right, their places are not: exchanged axes, a flip or the wrong winner",
    "other": "the differences have no simple pattern: a term is missing, or another product was taken",
}


def _kind(analytic: np.ndarray, numeric: np.ndarray, tolerance: float) -> tuple[str, int, float]:
    """The kind of a fault, the number of wrong elements, and analytic / numeric."""
    finite = np.isfinite(analytic) & np.isfinite(numeric)
    if not finite.all():
        return "nan", int((~finite).sum()), np.nan
    largest = max(abs(analytic).max(), abs(numeric).max())
    near = 1e-4 if tolerance < 1e-4 else tolerance          # for patterns, a rough look will do

    def equal(a: np.ndarray, b: Any) -> np.ndarray:
        return abs(a - b) <= near * largest

    wrong = abs(analytic - numeric) > tolerance * largest
    factor = float(np.vdot(analytic, numeric) / (np.vdot(numeric, numeric) or 1))
    kind = "other"
    if equal(analytic, numeric).all():
        kind = "slight"
    elif not analytic.any():
        kind = "missing"
    elif equal(analytic, factor * numeric).all():
        kind = "factor"
    elif equal(numeric[wrong], 0).all():
        kind = "passes"
    elif equal(np.sort(analytic, axis=None), np.sort(numeric, axis=None)).all():
        kind = "moved"
    return kind, int(wrong.sum()), factor


class Plant(NamedTuple):
    """A wrong backward: what is wrong, the op, its inputs, and what the check has to find."""

    words: str
    op: str
    f: Callable[..., Tensor]
    shapes: tuple[tuple[int, ...], ...]
    tensor: str             # the input whose gradient comes out wrong, and no other's
    kind: str               # of KINDS


def _spoiled(spoil: Callable[..., Any], forward: Callable[..., Any], backward: Callable[..., Any],
             kink: Callable[[Any], Any] | None = None) -> Callable[..., Any]:
    """The op of a pair whose gradients become spoil(dy, cache, *gradients)."""
    return lift(forward, lambda dy, cache: spoil(dy, cache, *backward(dy, cache)), kink=kink)


def _conv(spoil: Callable[..., Any]) -> Callable[..., Tensor]:
    op = _spoiled(spoil, conv.conv2d, conv.conv2d_backward)
    return lambda x, w, b: op(x, w, b, padding=1)


def _flipped(dy: Any, cache: Any, dx: Any, dw: Any, db: Any) -> tuple[Any, Any, Any]:
    A = cache.A
    turned = array_module(dy).ascontiguousarray(A.weight[::-1, ::-1])
    return ConvMatrix(turned, A.geometry, A.size).T @ dy, dw, db


def _batch_norm(spoil: Callable[..., Any]) -> Callable[..., Tensor]:
    """The op whose dx becomes spoil(term, x̂, dx, dgamma, dbeta, n): term(a) = γ/σ · a, n values in a channel."""
    def forward(x: Any, gamma: Any, beta: Any) -> tuple[Any, Any]:
        y, cache = norm.batch_norm(x, gamma, beta)
        return y, (cache, x, gamma)

    def backward(dy: Any, kept: Any) -> Any:
        cache, x, gamma = kept
        sigma = (cache.var + 1e-5) ** 0.5
        dx, dgamma, dbeta = norm.batch_norm_backward(dy, cache)
        x_hat, n = (x - cache.mean) / sigma, x.size // x.shape[-1]
        return spoil(lambda a: gamma / sigma * a, x_hat, dx, dgamma, dbeta, n), dgamma, dbeta
    return lift(forward, backward)


def _max_pool(spoil: Callable[..., Any]) -> Callable[..., Tensor]:
    op = _spoiled(spoil, pool.max_pool2d, pool.max_pool2d_backward, kink=lambda cache: cache.winners)
    return lambda x: op(x, kernel=2)


def _cross_entropy(spoil: Callable[..., Any]) -> Callable[..., Tensor]:
    op = _spoiled(spoil, loss.cross_entropy, loss.loss_backward)
    return lambda logits: op(logits, target=IDS, ignore_index=255)


CONV = ((1, 4, 5, 3), (3, 3, 3, 3), (3,))      # as many filters as channels: no shape gives an exchange away

PLANTS: dict[str, Plant] = {
    "doubled-weight": Plant(
        "the weight's gradient is added twice: 2 dw",
        "conv2d", _conv(lambda dy, cache, dx, dw, db: (dx, 2 * dw, db)), CONV, "w", "factor"),
    "forgotten-flip": Plant(
        "dx as a convolution of dy with the kernel, which was not turned by 180 degrees",
        "conv2d", _conv(_flipped), CONV, "x", "other"),
    "forgotten-transpose": Plant(
        "dx = A dy, where dx = Aᵀ dy is right",
        "conv2d", _conv(lambda dy, cache, dx, dw, db: (cache.A @ dy, dw, db)), CONV, "x", "other"),
    "exchanged-axes": Plant(
        "dw with the axes of height and width exchanged",
        "conv2d", _conv(lambda dy, cache, dx, dw, db: (
            dx, array_module(dw).ascontiguousarray(dw.swapaxes(0, 1)), db)),
        CONV, "w", "moved"),
    "missing-bias": Plant(
        "no gradient for the bias: db = 0",
        "conv2d", _conv(lambda dy, cache, dx, dw, db: (dx, dw, 0 * db)), CONV, "b", "missing"),
    "relu-passes-all": Plant(
        "dx = dy, also where x was below 0",
        "relu", _spoiled(lambda dy, y, dx: (dy,), activation.relu, activation.relu_backward, lambda y: y > 0),
        (IMAGE,), "x", "passes"),
    "batch-norm-variance": Plant(
        "dx without x̂ · mean(dy · x̂): the variance taken for a constant",
        "batch_norm", _batch_norm(lambda term, x_hat, dx, dgamma, dbeta, n: dx + term(x_hat * (dgamma / n))),
        (IMAGE, (3,), (3,)), "x", "other"),
    "batch-norm-mean": Plant(
        "dx without mean(dy): the mean taken for a constant",
        "batch_norm", _batch_norm(lambda term, x_hat, dx, dgamma, dbeta, n: dx + term(dbeta / n)),
        (IMAGE, (3,), (3,)), "x", "other"),
    "wrong-winner": Plant(
        "dy to the first pixel of each window, whichever won",
        "max_pool2d", _max_pool(lambda dy, cache, dx: pool.max_pool2d_backward(
            dy, cache._replace(winners=array_module(dy).zeros_like(cache.winners)))),
        (IMAGE,), "x", "moved"),
    "softmax-diagonal": Plant(
        "dx = dy · y (1 − y), as if each channel stood alone",
        "softmax", _spoiled(lambda dy, y, dx: (dy * y * (1 - y),), activation.softmax, activation.softmax_backward),
        (IMAGE,), "x", "other"),
    "loss-not-averaged": Plant(
        "the gradient of the sum over the pixels, where the loss is their mean",
        "cross_entropy", _cross_entropy(lambda dy, cache, dz: (dz * int((IDS != 255).sum()),)),
        (LOGITS,), "z", "factor"),
}


def plant_of(name: str) -> Plant:
    """The plant of this name. Raises UserError for a name that none has."""
    if name not in PLANTS:
        raise _unknown("no plant is called", name, list(PLANTS), "--plant list names them")
    return PLANTS[name]


def check_plant(name: str, device: str = "cpu", dtype: Any = np.float64, seed: int = 0) -> Row:
    """Compare a wrong backward of `PLANTS`; the faults that come out are those that went in, if the check is good."""
    plant = plant_of(name)
    return _check(plant.op, Case(plant.f, plant.shapes), device, dtype, seed)


def _unknown(complaint: str, name: str, known: list[str], advice: str) -> UserError:
    close = [k for k in known if name and name in k] or difflib.get_close_matches(name, known, 1)
    return UserError(f"{complaint} {name!r}" + (f"; did you mean {close[0]}?" if close else "") + f"; {advice}")
