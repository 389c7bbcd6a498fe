"""Devices: arrays of the simulated GPU behave as a GPU's do, moves copy, and mixing is refused with both names."""

import sys
import types

import numpy as np
import pytest

from minunet import Tensor, backend, functional
from minunet.backend import array_module, as_float, device_of, on_gpu, same_dtype, to_device
from minunet.errors import UserError
from minunet.sim_array import SimArray


def sim(*shape, dtype=np.float32):
    return to_device(np.ones(shape, dtype), "sim")


def test_moves_there_and_back_are_copies():
    host = np.arange(6.0).reshape(2, 3)
    there = to_device(host, "sim")
    back = to_device(there, "cpu")
    assert type(there) is SimArray and type(back) is np.ndarray
    np.testing.assert_array_equal(back, host)
    there += 1
    assert host[0, 0] == back[0, 0] == 0 and there[0, 0] == 1
    assert to_device(there, "sim") is there and to_device(host, "cpu") is host


@pytest.mark.parametrize("result", [
    lambda x: x + 1, lambda x: -x, lambda x: x @ x, lambda x: x[0], lambda x: x.sum(),
    lambda x: x.sum(0, keepdims=True, dtype=np.float64), lambda x: x.astype(np.float64), lambda x: x.reshape(-1),
    lambda x: x.max(-1), lambda x: np.sqrt(x), lambda x: 2.0 ** x, lambda x: np.add(x, x, out=x.copy()),
    lambda x: np.concatenate([x, x]), lambda x: x > 0, lambda x: np.modf(x)[1],
    lambda x: array_module(x).zeros_like(x), lambda x: array_module(x).empty((2, 3), np.float32),
    lambda x: array_module(x).asarray(np.ones(2)), lambda x: array_module(x).where(x > 0, x, 0),
    lambda x: array_module(x).split(x, 2)[0], lambda x: array_module(x).arange(3),
])
def test_results_stay_on_the_simulated_gpu(result):
    assert device_of(result(sim(2, 2))) == "sim"


def test_an_array_of_another_device_is_refused_in_arithmetic():
    x, host = sim(3), np.ones(3, np.float32)
    for mix in (lambda: x + host, lambda: host * x, lambda: np.add(x, 1, out=host), lambda: x.__iadd__(host)):
        with pytest.raises(TypeError, match="device sim.* on cpu"):
            mix()
    np.testing.assert_array_equal(to_device(x + np.float32(2), "cpu"), [3, 3, 3])      # a number is no array


def test_mixing_names_both_devices():
    with pytest.raises(TypeError, match=r"f: all arrays must be on one device; x is on cpu, w is on sim; move"):
        same_dtype("f", x=np.ones(2, np.float32), w=sim(2), b=None)
    with pytest.raises(TypeError, match=r"\(2, 3\) on sim, \(4,\) on cpu"):
        array_module(sim(2, 3), np.ones(4))
    with pytest.raises(TypeError, match="conv2d.*x is on sim, weight is on cpu"):
        functional.conv2d(Tensor(sim(1, 4, 4, 1)), Tensor(np.ones((3, 3, 1, 1), np.float32)))
    with pytest.raises(TypeError, match="sim.*cpu"):
        Tensor(sim(2)) + Tensor(np.ones(2, np.float32))


def test_numbers_join_a_tensor_on_its_device():
    x = Tensor(sim(2), requires_grad=True)
    y = (2 * x + [1.0, 2.0] - 1) / 2
    y.backward([1.0, 10.0])
    assert device_of(y.data) == device_of(x.grad) == "sim"
    np.testing.assert_array_equal(to_device(y.data, "cpu"), [1, 1.5])
    np.testing.assert_array_equal(to_device(x.grad, "cpu"), [1, 10])


def test_as_float_keeps_the_device():
    assert device_of(as_float(sim(2, dtype=np.float64), np.float32)) == "sim"
    assert as_float(sim(2, dtype=np.int32)).dtype == np.float32
    assert device_of(as_float(1.5, like=sim(2))) == "sim" and device_of(as_float(1.5)) == "cpu"
    assert device_of(as_float(np.ones(2), like=sim(2))) == "cpu"           # an array is not moved unasked


def test_on_gpu():
    assert on_gpu(sim(1)) and not on_gpu(np.ones(1))


def test_what_is_no_array_and_unknown_devices_are_refused():
    with pytest.raises(TypeError, match="expected an array, got builtins.list"):
        device_of([1, 2])
    with pytest.raises(ValueError, match="device must be one of cpu, cuda, sim; got 'gpu'"):
        to_device(np.ones(2), "gpu")


@pytest.fixture
def forget():
    """backend.cupy keeps what it found."""
    backend.cupy.cache_clear()
    yield
    backend.cupy.cache_clear()


def found(_=None):
    return 1


def fake_cupy(count=found, version=found, cublas=found):
    """What is asked of CuPy at first; cublas is loaded when it is asked for."""
    libraries = type("cuda", (), {"runtime": types.SimpleNamespace(getDeviceCount=count), "cublas": property(cublas),
                                  "nvrtc": types.SimpleNamespace(getVersion=version)})
    module = types.ModuleType("cupy")
    module.cuda = libraries()
    return module


def no_driver():
    raise RuntimeError("cudaErrorInsufficientDriver: CUDA driver version is insufficient")


def no_compiler():
    raise RuntimeError("\nlibnvrtc.so was not found\nsearched: many folders")


def no_cublas(_):
    raise ImportError("libcublas.so.12: cannot open shared object file")


@pytest.mark.parametrize("module, words", [
    (None, "needs CuPy, which is not installed: pip install 'minunet[gpu]'"),
    (fake_cupy(no_driver), "needs an NVIDIA GPU and its driver (cudaErrorInsufficientDriver"),
    (fake_cupy(lambda: 0), "the driver sees none"),
    (fake_cupy(version=no_compiler), "and its cuBLAS (libnvrtc.so was not found): pip install 'minunet[gpu]'"),
    (fake_cupy(cublas=no_cublas), "and its cuBLAS (libcublas.so.12: cannot open shared object file): pip install"),
], ids=["no CuPy", "no driver", "no device", "no NVRTC", "no cuBLAS"])
def test_cuda_that_cannot_be_used_is_one_sentence(monkeypatch, forget, module, words):
    monkeypatch.setitem(sys.modules, "cupy", module)
    with pytest.raises(UserError) as caught:
        to_device(np.ones(2), "cuda")
    message = str(caught.value)
    assert words in message and "--device sim" in message and "\n" not in message


def test_a_cupy_that_cannot_be_imported_says_why(monkeypatch, forget, tmp_path):
    """It is there, and lacks something of its own."""
    (tmp_path / "cupy.py").write_text("""
try:
    import no_such_module_of_cupys
except ImportError as error:
    raise ImportError('''
=====
Failed to import CuPy.
''') from error
""")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "cupy", raising=False)
    with pytest.raises(UserError, match=r"cannot be imported \(No module named 'no_such_module_of_cupys'\): pip ins"):
        to_device(np.ones(2), "cuda")
