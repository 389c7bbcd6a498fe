"""The arrays of the simulated GPU, and the module that makes them: NumPy's, marked, and put on the tape.

An array of this kind lies in the computer's own memory. But as those on a GPU it meets its own kind and numbers only,
its elements are arrays without axes, and while work is recorded (`minunet.replay`) its methods hand out no numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from minunet import tape


class SimArray(np.ndarray):
    """An array on the simulated GPU."""

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        strangers = [i for i in (*inputs, *(options.get("out") or ())) if type(i) is np.ndarray]
        if strangers:
            raise TypeError(f"{ufunc.__name__}: one array is on the device sim, another of shape {strangers[0].shape} "
                            "on cpu; move one with minunet.backend.to_device")
        outs = options.pop("out", None)
        if outs is None:
            return _done(lambda: getattr(ufunc, method)(*map(_plain, inputs), **options))
        _done(lambda: getattr(ufunc, method)(*map(_plain, inputs), out=tuple(map(_plain, outs)), **options))
        return outs[0] if len(outs) == 1 else outs

    def __array_function__(self, function: Any, types: Any, inputs: Any, options: Any) -> Any:
        return _done(lambda: super(SimArray, self).__array_function__(function, types, inputs, options))

    def __getitem__(self, key: Any) -> Any:
        return _done(lambda: _plain(self)[_plain(key)])

    def __setitem__(self, key: Any, value: Any) -> None:
        _done(lambda: _plain(self).__setitem__(_plain(key), value))


def _recorded(name: str) -> Any:
    """NumPy's method of this name, which makes an array, or changes this one."""
    method = getattr(np.ndarray, name)
    return lambda self, *inputs, **options: _done(lambda: method(_plain(self), *map(_plain, inputs), **options))


def _reading(name: str) -> Any:
    """NumPy's method of this name, which hands out numbers."""
    method = getattr(np.ndarray, name)

    def read(self: SimArray, *inputs: Any) -> Any:
        tape.refuse("read back from")
        return method(self, *inputs)

    return read


for _name in ("all any argmax argmin argpartition argsort astype choose clip compress copy cumprod cumsum diagonal dot "
              "fill flatten max mean min nonzero partition prod put ravel repeat reshape round searchsorted sort std "
              "sum take trace var").split():
    setattr(SimArray, _name, _recorded(_name))
for _name in "__bool__ __complex__ __float__ __format__ __index__ __int__ item tobytes tolist".split():
    setattr(SimArray, _name, _reading(_name))


class _SimModule:
    """NumPy, with the results as SimArrays."""

    def __getattr__(self, name: str) -> Any:
        value = getattr(np, name)
        if isinstance(value, type) or not callable(value):
            return value

        def make(*inputs: Any, **options: Any) -> Any:
            if name in ("array", "asarray") and not isinstance(inputs[0], SimArray):
                tape.refuse("brought to")
            if name in ("empty", "empty_like"):
                return _marked(value(*inputs, **options))       # nothing is done that could be done again
            return _done(lambda: value(*inputs, **options))

        return make


sim = _SimModule()


def _done(call: Callable[[], Any]) -> Any:
    """call() of NumPy, with arrays of the simulated GPU as results; on the tape, if a recording runs."""
    return tape.done(lambda: _marked(call()))


def _plain(value: Any) -> Any:
    return value.view(np.ndarray) if isinstance(value, SimArray) else value


def _marked(value: Any) -> Any:
    """A result of NumPy as the simulated GPU's: arrays, numbers too (CuPy's sums are arrays without axes)."""
    if isinstance(value, (list, tuple)):
        return (list if isinstance(value, list) else tuple)(map(_marked, value))
    return np.asarray(value).view(SimArray) if isinstance(value, (np.ndarray, np.generic)) else value
