"""What only a real GPU can show (`pytest -m gpu`): the same bits in every run, no leaks, a run beside the CPU's."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

from minunet import ConvMatrix, Geometry, Tensor, UNet, functional, nn, optim
from minunet.backend import to_device
from minunet.cli import main
from minunet.data.scenes import cell_scenes
from tests.devices import free_memory

pytestmark = pytest.mark.gpu

SANITIZED = {
    "every kernel": """
from minunet import cuda
from minunet.study.kernels import examples
files = [path.stem for path in cuda.folder().glob("*.cu")]
programs = {title: run for file in files for title, run in examples(file, "cuda")}      # files share examples
with cuda.record_launches() as launches:
    for run in programs.values():
        run()
left_out = {f"{file}.{name}" for file in files for name in cuda.kernels_of(file)} - {run.kernel for run in launches}
assert not left_out, left_out
""",
    "every op in float64": """
from minunet.cli import main
raise SystemExit(main(["gradcheck", "--device", "cuda"]))
"""}


@pytest.fixture(autouse=True)
def cupy(device):
    """CuPy, on the device cuda alone."""
    if device != "cuda":
        pytest.skip("of a real GPU")
    return pytest.importorskip("cupy")


def losses(device, steps, precision=None):
    """The losses of a U-Net's first steps on made-up cells."""
    images, masks = cell_scenes(np.random.default_rng(0), 8, (64, 64))
    model = UNet(1, 1, base=8, depth=3).to(device, precision)
    loss_of, optimizer = functional.loss_function("bce+dice"), optim.Adam(model.parameters(), lr=1e-3)
    found = []
    for step in range(steps):
        rows = slice(4 * (step % 2), 4 * (step % 2) + 4)
        loss = loss_of(model(Tensor(to_device(images[rows], device))), masks[rows][..., None])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return np.array(found), model.state_dict()


@pytest.mark.parametrize("precision", ["float32", "tf32", "bf16"])
def test_the_same_bits_in_every_run(precision):
    (first, state), (second, other) = losses("cuda", 10, precision), losses("cuda", 10, precision)
    assert first.tobytes() == second.tobytes()
    assert all(state[name].tobytes() == other[name].tobytes() for name in state)


def test_the_first_losses_are_the_cpus():
    np.testing.assert_allclose(losses("cuda", 20)[0], losses("cpu", 20)[0], atol=1e-3)


def test_ten_thousand_launches_leave_no_memory_behind(cupy):
    A = ConvMatrix(cupy.ones((3, 3, 4, 4), np.float32), Geometry(3, padding=1), (8, 8))
    x = cupy.ones((1, 8, 8, 4), np.float32)
    for _ in range(100):
        A @ x
    pool = cupy.get_default_memory_pool()
    before = pool.total_bytes(), free_memory()
    for _ in range(10_000):
        A @ x
    assert pool.total_bytes() <= before[0] and free_memory() >= before[1] - (1 << 20)


def test_a_thousand_replays_leave_no_memory_behind(cupy):
    model = UNet(1, 1, base=8, depth=2).to("cuda")
    images = [np.random.default_rng(seed).random((2, 32, 32, 1), np.float32) for seed in range(2)]
    first = [model.predict(x) for x in images]
    before = cupy.get_default_memory_pool().total_bytes(), free_memory()
    for number in range(1000):
        assert model.predict(images[number % 2]).tobytes() == first[number % 2].tobytes()
    assert model._prediction._recording.nbytes > 0
    assert cupy.get_default_memory_pool().total_bytes() <= before[0]
    assert free_memory() >= before[1] - (1 << 20)


def test_a_recordings_memory_goes_back(cupy):
    model = UNet(1, 1, base=8, depth=2).to("cuda")
    x = np.zeros((4, 128, 128, 1), np.float32)
    model.predict(x)
    before = free_memory()
    model.predict(x)
    assert nn.recorded_bytes() > 16 << 20
    nn.release_recordings()
    assert nn.recorded_bytes() == 0 and free_memory() >= before - (4 << 20)


@pytest.mark.parametrize("tool", ["memcheck", "racecheck", "synccheck"])
@pytest.mark.parametrize("what", SANITIZED)
def test_compute_sanitizer_finds_nothing(tool, what):
    """In an example of every kernel; in every op forward and backward, in float64. Each array has memory of its own, so
    that an access behind its end is one."""
    sanitizer = shutil.which("compute-sanitizer")
    if sanitizer is None:
        pytest.skip("compute-sanitizer is not installed (it comes with the CUDA toolkit)")
    program = "import cupy; cupy.cuda.set_allocator(None)\n" + SANITIZED[what]
    done = subprocess.run([sanitizer, "--tool", tool, "--error-exitcode", "9", sys.executable, "-c", program],
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


def test_the_demo_learns_as_on_the_cpu(tmp_path):
    found = []
    for device in ("cuda", "cpu"):
        assert main(["demo", "--device", device, "--out", str(tmp_path / device)]) == 0
        metrics = json.loads((tmp_path / device / "metrics.json").read_text())
        found.append(metrics["over_all_pixels"]["iou"])
    assert abs(found[0] - found[1]) < 0.02
