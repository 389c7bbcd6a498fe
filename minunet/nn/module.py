"""`Module`: parameters, buffers and sub-modules found by attribute, saved and loaded by name, in training or not.

A model can also be walked with shapes alone: called with a `Placeholder`, every layer answers with the shape that it
would make, and nothing is computed. That is how `UNet.summary` knows a net before there is memory for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import numpy as np

from minunet.autograd import Tensor
from minunet.backend import FLOATS, device_of, module_of, to_device
from minunet.convolution.matrix import check_precision

Shape = tuple[int, ...]


class Parameter(Tensor):
    """A Tensor that an optimizer changes."""

    __slots__ = ()

    def __init__(self, data: Any):
        super().__init__(data, requires_grad=True)


class Placeholder:
    """A shape (N, H, W, C) in place of an array; each one stands for one array."""

    def __init__(self, shape: tuple[int, ...]):
        self.shape = shape


class Kept(NamedTuple):
    """What a layer keeps for its backward, besides its parameters."""

    inputs: bool = False        # its inputs
    output: bool = False        # its output
    extra: float = 0.0          # a further array: bytes for each byte of its output (float32)


class LayerCall(NamedTuple):
    """One layer as it was walked with shapes."""

    layer: Module
    inputs: tuple[Placeholder, ...]
    output: Placeholder


_calls: ContextVar[list[LayerCall] | None] = ContextVar("calls", default=None)


@contextmanager
def record_layers() -> Iterator[list[LayerCall]]:
    """Within it, every layer that is called with a Placeholder is appended to the list."""
    calls: list[LayerCall] = []
    token = _calls.set(calls)
    try:
        yield calls
    finally:
        _calls.reset(token)


class Module:
    """A part of a model. Subclasses set parameters and sub-modules as attributes (or in a list, tuple or dict that is
    one) and write `forward`.

    Layers (modules that compute by themselves) also write `output_shape` and, where they differ from nothing,
    `multiply_adds` and `kept`, so that a model can be summed up without being run. `buffer_names` lists attributes
    that are arrays to be saved, but not learned.
    """

    buffer_names: tuple[str, ...] = ()
    kept = Kept()
    training = True

    def forward(self, *inputs: Any, **options: Any) -> Any:
        """What the module computes."""
        raise TypeError(f"{type(self).__name__} has no forward method")

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        if inputs and isinstance(inputs[0], Placeholder) and hasattr(self, "output_shape"):
            shape = self.output_shape(*(i.shape for i in inputs if isinstance(i, Placeholder)))
            output = Placeholder(shape)
            calls = _calls.get()
            if calls is not None:
                calls.append(LayerCall(self, inputs, output))
            return output
        return self.forward(*inputs, **options)

    def multiply_adds(self, output_shape: tuple[int, ...]) -> int:
        """Multiply-adds of one forward pass, counting matrix products only."""
        return 0

    def members(self) -> Iterator[tuple[str, Any]]:
        """Attributes by name; the elements of those that are lists, tuples or dicts by "name.index" or "name.key"."""
        for name, value in vars(self).items():
            if isinstance(value, dict):
                yield from ((f"{name}.{key}", element) for key, element in value.items())
            elif isinstance(value, (list, tuple)):
                yield from ((f"{name}.{index}", element) for index, element in enumerate(value))
            else:
                yield name, value

    def named_modules(self, prefix: str = "") -> Iterator[tuple[str, Module]]:
        """This module and all modules within it, depth first, with their dotted names."""
        yield prefix, self
        for name, value in self.members():
            if isinstance(value, Module):
                yield from value.named_modules(_join(prefix, name))

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """All parameters with their dotted names, a module's own before those of the modules within it."""
        for prefix, module in self.named_modules():
            for name, value in module.members():
                if isinstance(value, Parameter):
                    yield _join(prefix, name), value

    def parameters(self) -> list[Parameter]:
        """All parameters, in the order of their definition; one that several modules share comes once."""
        return list(dict.fromkeys(p for _, p in self.named_parameters()))

    def train(self, training: bool = True) -> Module:
        """Switch to training (batch statistics, dropout) or, with False, to prediction; returns the module."""
        for _, module in self.named_modules():
            module.training = training
        return self

    def eval(self) -> Module:
        """Switch to prediction: running statistics, no dropout; returns the module."""
        return self.train(False)

    def astype(self, dtype: Any) -> Module:
        """Convert parameters and buffers to float32 or float64, in place; gradients are dropped; returns the module."""
        if np.dtype(dtype) not in FLOATS:
            raise ValueError(f"astype: dtype must be float32 or float64; got {dtype!r}")
        for _, parameter in self.named_parameters():
            parameter.data, parameter.grad = parameter.data.astype(dtype), None
        for module, attribute, _ in self._buffers():
            setattr(module, attribute, getattr(module, attribute).astype(dtype))
        return self

    def to(self, device: str, precision: str | None = None) -> Module:
        """Move parameters and buffers to "cpu", "cuda" or "sim", in place; gradients are dropped; returns the module.

        precision, if given, becomes that of the convolutions' products (`ConvMatrix`). Move a model before an optimizer
        is made of its parameters: it keeps arrays beside them. Raises ValueError for an unknown device, or a precision
        that it does not have; UserError where it cannot be used.
        """
        module_of(device)
        computing = [module for _, module in self.named_modules() if hasattr(module, "precision")]
        for wanted in {module.precision for module in computing} if precision is None else {precision}:
            check_precision(wanted, device)
        if precision is not None:
            for module in computing:
                module.precision = precision
        for _, parameter in self.named_parameters():
            parameter.data, parameter.grad = to_device(parameter.data, device), None
        for module, attribute, _ in self._buffers():
            setattr(module, attribute, to_device(getattr(module, attribute), device))
        return self

    @property
    def device(self) -> str:
        """Where the parameters are; "cpu" for a module without any. Raises TypeError if they are not on one device."""
        return device_of(*(p.data for p in self.parameters()))

    def state_dict(self) -> dict[str, np.ndarray]:
        """Copies of all parameters and buffers by their dotted names, as NumPy arrays."""
        state = {name: p.data for name, p in self.named_parameters()}
        state.update({name: getattr(module, attribute) for module, attribute, name in self._buffers()})
        return {name: np.array(to_device(array, "cpu")) for name, array in state.items()}

    def load_state_dict(self, state: Mapping[str, np.ndarray]) -> None:
        """Copy values (NumPy arrays) in by name, converted to the module's dtype and moved to its device.

        Raises ValueError, before anything is changed, when a name is missing or unexpected, a shape differs, or
        something is not numbers.
        """
        own: dict[str, tuple[Any, str]] = {name: (p, "data") for name, p in self.named_parameters()}
        own.update({name: (module, attribute) for module, attribute, name in self._buffers()})
        arrays = {name: getattr(owner, attribute) for name, (owner, attribute) in own.items()}
        given = {name: np.asarray(state[name]) for name in own if name in state}
        problems = [f"missing: {name}" for name in own if name not in state]
        problems += [f"unexpected: {name}" for name in state if name not in own]
        problems += [f"{name} is {array.shape}, the model has {arrays[name].shape}"
                     for name, array in given.items() if array.shape != arrays[name].shape]
        problems += [f"{name} holds {array.dtype}, not real numbers"
                     for name, array in given.items() if array.dtype.kind not in "fiub"]
        if problems:
            more = f"; and {len(problems) - 8} more" if len(problems) > 8 else ""
            raise ValueError("load_state_dict: " + "; ".join(problems[:8]) + more)
        for name, (owner, attribute) in own.items():
            host = given[name].astype(arrays[name].dtype, order="C")
            setattr(owner, attribute, to_device(host, device_of(arrays[name])))

    def _buffers(self) -> Iterator[tuple[Module, str, str]]:
        for prefix, module in self.named_modules():
            for attribute in module.buffer_names:
                yield module, attribute, _join(prefix, attribute)


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


class Sequential(Module):
    """Modules applied one after the other; they are named "0", "1", ..."""

    def __init__(self, *modules: Module):
        self.modules = list(modules)

    def forward(self, x: Any) -> Any:
        """The last module's result."""
        for module in self.modules:
            x = module(x)
        return x

    def members(self) -> Iterator[tuple[str, Any]]:
        """As of any module, but the modules by their positions alone."""
        return ((name.removeprefix("modules."), value) for name, value in super().members())

    def __len__(self) -> int:
        return len(self.modules)

    def __getitem__(self, index: int) -> Module:
        return self.modules[index]
