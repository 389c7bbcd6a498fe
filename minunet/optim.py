"""Optimizers: each step changes the parameters in place by their gradients. Parameters without a gradient stay.

Every rule is written in its class; g is a parameter's gradient, θ the parameter, η the learning rate lr. The rules of
this file work element by element, so all parameters are stepped as if they were one vector: on the cores in blocks that
stay in cache through all of a rule's operations, on a GPU in one launch of kernels/optimizer.cu.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from minunet import parallel
from minunet.autograd import Tensor
from minunet.backend import array_module, device_of, on_gpu, to_device
from minunet.ops.kernels import optimizer as kernels

BLOCK = 1 << 17     # numbers that a core steps at a time: with fewer, the interpreter takes its share of the time


class Optimizer:
    """What all optimizers share: the parameters, `zero_grad`, `step`, and arrays beside each parameter.

    Raises ValueError for settings that are out of range, TypeError for parameters that are no Tensors.
    """

    slots: tuple[str, ...] = ()     # arrays kept for each parameter

    def __init__(self, parameters: Iterable[Tensor], lr: float, weight_decay: float = 0.0):
        self.parameters = list(parameters)
        if not self.parameters:
            raise ValueError("optimizer: got no parameters")
        for p in self.parameters:
            if not isinstance(p, Tensor):
                raise TypeError(f"optimizer: parameters must be Tensors, such as model.parameters(); got "
                                f"{type(p).__name__}")
        if len(set(self.parameters)) < len(self.parameters):
            raise ValueError("optimizer: a parameter is given twice")
        if not 0 < lr < float("inf"):
            raise ValueError(f"optimizer: lr must be above 0 and finite; got {lr!r}")
        if not weight_decay >= 0:
            raise ValueError(f"optimizer: weight_decay must be at least 0; got {weight_decay!r}")
        self.lr, self.weight_decay = lr, weight_decay
        self.steps = 0
        self.taken = [0] * len(self.parameters)     # the steps in which each parameter had a gradient
        self.state = {slot: [array_module(p.data).zeros_like(p.data) for p in self.parameters] for slot in self.slots}
        self._parts: dict[tuple[int, ...], Any] = {}    # of sizes: what each block of a kernel owns

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for p in self.parameters:
            p.grad = None

    def step(self) -> None:
        """Change every parameter that has a gradient."""
        self.steps += 1
        launcher = LAUNCHERS.get(type(self))        # another class has an update of its own
        on_kernels: dict[np.dtype, list[tuple[Any, ...]]] = {}
        on_cores: list[tuple[Any, ...]] = []
        for index, p in enumerate(self.parameters):
            if p.grad is not None:
                self.taken[index] += 1
                arrays = (p.data, p.grad, *(self.state[slot][index] for slot in self.slots))
                if len({device_of(a) for a in arrays}) > 1:
                    raise TypeError(f"{type(self).__name__}: parameter {index} is on the device {device_of(p.data)}, "
                                    "its gradient and what is kept for it on " + ", ".join(map(device_of, arrays[1:]))
                                    + "; make the optimizer after the model is on its device")
                if launcher and all(a.flags.c_contiguous for a in arrays):
                    rows = on_kernels.setdefault(p.data.dtype, []) if on_gpu(p.data) else on_cores
                    rows.append((self.taken[index], *arrays))
                else:
                    self.update(p.data, p.grad, self.taken[index], *arrays[2:])
        parallel.run(self._update_all, _cut(on_cores))
        for rows in on_kernels.values():
            assert launcher is not None
            taken, theta, *others = map(list, zip(*rows))
            launcher(self, taken, self._parts_of(theta), theta, *others)

    def _update_all(self, rows: list[tuple[Any, ...]]) -> None:
        for t, theta, g, *state in rows:
            self.update(theta, g, t, *state)

    def _parts_of(self, theta: list[Any]) -> Any:
        """What each block of a launch for these parameters owns; made once for the same sizes."""
        sizes = tuple(a.size for a in theta)
        if sizes not in self._parts:
            if len(self._parts) == 16:
                self._parts.clear()
            self._parts[sizes] = kernels.parts_of(sizes, device_of(*theta))
        return self._parts[sizes]

    def state_dict(self) -> dict[str, np.ndarray]:
        """Copies of all that the next steps depend on, but the settings: "steps", "taken", and "m.0", "m.1", ..."""
        state = {"steps": np.array(self.steps), "taken": np.array(self.taken)}
        state.update({f"{slot}.{i}": to_device(array, "cpu") if on_gpu(array) else array.copy()
                      for slot in self.slots for i, array in enumerate(self.state[slot])})
        return state

    def load_state_dict(self, state: Mapping[str, np.ndarray]) -> None:
        """Go on where another optimizer of the same kind and parameters stood.

        Raises ValueError, before anything is changed, when a name or a shape differs.
        """
        own = {"steps": (), "taken": (len(self.taken),),
               **{f"{slot}.{i}": array.shape for slot in self.slots for i, array in enumerate(self.state[slot])}}
        wrong = sorted(set(own) ^ set(state)) or [name for name in own if own[name] != state[name].shape]
        if wrong:
            raise ValueError(f"load_state_dict: the state is not that of {type(self).__name__} with these parameters "
                             f"({', '.join(wrong[:4])})")
        self.steps, self.taken = int(state["steps"]), state["taken"].tolist()
        for slot in self.slots:
            for i, array in enumerate(self.state[slot]):
                array[...] = to_device(state[f"{slot}.{i}"], device_of(array))

    def update(self, theta: np.ndarray, g: np.ndarray, t: int, *state: np.ndarray) -> None:
        """One parameter's step, its t-th, in place; of the rules of this file also that of a part of a parameter."""
        raise TypeError(f"{type(self).__name__} has no update method")


def _cut(rows: list[tuple[Any, ...]]) -> list[list[tuple[Any, ...]]]:
    """Rows of a number and contiguous arrays of one size, cut into parts and gathered to jobs of about BLOCK elements.

    So a large parameter makes many jobs, and many small ones make one.
    """
    jobs: list[list[tuple[Any, ...]]] = []
    filled = BLOCK
    for t, *arrays in rows:
        flat = [a.reshape(-1) for a in arrays]
        for start in range(0, flat[0].size, BLOCK):
            if filled >= BLOCK:
                jobs.append([])
                filled = 0
            jobs[-1].append((t, *(a[start:start + BLOCK] for a in flat)))
            filled += jobs[-1][-1][1].size
    return jobs


class SGD(Optimizer):
    """Stochastic gradient descent with momentum.

    g ← g + weight_decay · θ;  v ← momentum · v + g (v = g in the first step);  θ ← θ − η v, or with Nesterov's
    momentum θ ← θ − η (g + momentum · v).

    Source: Sutskever et al., On the importance of initialization and momentum in deep learning (2013), in the form
    where v does not contain η.
    """

    slots = ("velocity",)

    def __init__(self, parameters: Iterable[Tensor], lr: float = 1e-2, momentum: float = 0.0, nesterov: bool = False,
                 weight_decay: float = 0.0):
        super().__init__(parameters, lr, weight_decay)
        if not momentum >= 0:
            raise ValueError(f"SGD: momentum must be at least 0; got {momentum!r}")
        if nesterov and momentum == 0:
            raise ValueError(f"SGD: nesterov needs a momentum above 0; got {momentum!r}")
        self.momentum, self.nesterov = momentum, nesterov

    def update(self, theta: np.ndarray, g: np.ndarray, t: int, *state: np.ndarray) -> None:
        """v, then θ."""
        (velocity,) = state
        if self.weight_decay:
            g = g + self.weight_decay * theta
        velocity *= self.momentum
        velocity += g
        theta -= self.lr * (g + self.momentum * velocity if self.nesterov else velocity)


class Adam(Optimizer):
    """Adam, with t the number of the parameter's step from 1: steps in which it has no gradient do not count.

    g ← g + weight_decay · θ;  m ← β₁ m + (1 − β₁) g;  v ← β₂ v + (1 − β₂) g²;
    θ ← θ − η · (m / (1 − β₁ᵗ)) / (√(v / (1 − β₂ᵗ)) + eps).

    Source: Kingma and Ba, Adam (2015), algorithm 1.
    """

    slots = ("m", "v")

    def __init__(self, parameters: Iterable[Tensor], lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999),
                 eps: float = 1e-8, weight_decay: float = 0.0):
        super().__init__(parameters, lr, weight_decay)
        if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"Adam: betas must be two numbers, at least 0 and below 1; got {betas!r}")
        if not eps >= 0:
            raise ValueError(f"Adam: eps must be at least 0; got {eps!r}")
        self.betas, self.eps = betas, eps

    def update(self, theta: np.ndarray, g: np.ndarray, t: int, *state: np.ndarray) -> None:
        """m, v, then θ."""
        (beta1, beta2), (m, v) = self.betas, state
        g = self.decay(theta, g)
        m *= beta1
        m += (1 - beta1) * g
        v *= beta2
        v += (1 - beta2) * (g * g)
        denominator = v**0.5
        denominator *= 1 / (1 - beta2**t) ** 0.5
        denominator += self.eps
        theta -= (self.lr / (1 - beta1**t)) * (m / denominator)

    def decay(self, theta: np.ndarray, g: np.ndarray) -> np.ndarray:
        """Weight decay as a part of the gradient."""
        return g + self.weight_decay * theta if self.weight_decay else g


class AdamW(Adam):
    """Adam with weight decay apart from the gradient: θ ← θ − η · weight_decay · θ, then Adam's step.

    Source: Loshchilov and Hutter, Decoupled weight decay regularization (2019), algorithm 2, whose λ is written
    η · weight_decay here, as in PyTorch.
    """

    def __init__(self, parameters: Iterable[Tensor], lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999),
                 eps: float = 1e-8, weight_decay: float = 1e-2):
        super().__init__(parameters, lr, betas, eps, weight_decay)

    def decay(self, theta: np.ndarray, g: np.ndarray) -> np.ndarray:
        """θ shrinks by itself; the gradient stays."""
        theta *= 1 - self.lr * self.weight_decay
        return g


def _launch_sgd(self: SGD, taken: list[int], parts: Any, theta: list[Any], g: list[Any], velocity: list[Any]) -> None:
    kernels.sgd(theta, g, velocity, parts, self.lr, self.momentum, self.nesterov, self.weight_decay)


def _launch_adam(self: Adam, taken: list[int], parts: Any, *tables: list[Any]) -> None:
    kernels.adam(tables, parts, taken, self.lr, self.betas, self.eps, decay=self.weight_decay, shrink=0.0)


def _launch_adamw(self: AdamW, taken: list[int], parts: Any, *tables: list[Any]) -> None:
    kernels.adam(tables, parts, taken, self.lr, self.betas, self.eps, decay=0.0, shrink=self.lr * self.weight_decay)


# On a GPU, one launch for all parameters: by the class itself, as a class derived from it may change the rule.
LAUNCHERS: dict[type[Optimizer], Callable[..., None]] = {SGD: _launch_sgd, Adam: _launch_adam, AdamW: _launch_adamw}


def cosine(step: int, steps: int, lr: float) -> float:
    """The learning rate of a step (from 0) out of `steps`: from lr down to 0 along half a cosine.

    Source: Loshchilov and Hutter, SGDR (2017), equation 5, without restarts.
    """
    return lr * 0.5 * (1 + math.cos(math.pi * step / steps))
