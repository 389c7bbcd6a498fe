"""Checkpoints: what is saved comes back bit for bit, a write is all or nothing, and a wrong file is refused."""

import json
import os
import re
import struct

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from minunet import Tensor, UNet, functional, optim
from minunet.checkpoint import FORMAT, Checkpoint, load_checkpoint
from minunet.errors import UserError

IMAGE = np.random.default_rng(1).random((13, 10, 3), np.float32)


def made(seed=0, **options):
    """A checkpoint with weights and running statistics that no default gives."""
    rng = np.random.default_rng(seed)
    options = {"in_channels": 3, "classes": 2, "base": 2, "depth": 1} | options
    model = UNet(rng=rng, **options)
    channels = options["in_channels"]
    model(Tensor(rng.random((2, 20, 20, channels), np.float32)))
    return Checkpoint(model, rng.random(channels, np.float32), rng.random(channels, np.float32) + 0.1,
                      tuple(f"kind {k}" for k in range(options["classes"])), (7, 9), {"seed": seed},
                      {"steps": np.array(3), "taken": np.array([3, 2]), "m.0": rng.random((2, 3), np.float32)})


@pytest.fixture
def path(tmp_path):
    return tmp_path / "net.safetensors"


@pytest.mark.parametrize("options", [
    {}, {"classes": 1, "in_channels": 1, "depth": 3, "base": 1}, {"output": "softmax", "classes": 5}, {"norm": None},
    {"padding": "valid"}, {"dropout": 0.5, "activation": "leaky_relu"}, {"activation": "elu", "output": "linear"},
    {"pool": "average", "up": "nearest"}, {"up": "bilinear"}, {"up": "bicubic"}, {"up": "unpool"},
])
def test_what_is_saved_comes_back_bit_for_bit(path, options):
    saved = made(**options)
    saved.save(path)
    loaded = load_checkpoint(path)
    assert loaded.model.config == saved.model.config and options.items() <= loaded.model.config.items()
    assert loaded.notes == saved.notes
    assert loaded.class_names == saved.class_names and loaded.size == saved.size == (7, 9)
    assert type(loaded.class_names) is type(loaded.size) is tuple
    for before, after in ((saved.mean, loaded.mean), (saved.deviation, loaded.deviation)):
        assert after.dtype == np.float32
        np.testing.assert_array_equal(after, before)
    state = loaded.model.state_dict()
    for name, array in saved.model.state_dict().items():
        np.testing.assert_array_equal(state[name], array)
    x = np.random.default_rng(2).random((2, 20, 20, saved.model.config["in_channels"]), np.float32)
    np.testing.assert_array_equal(loaded.normalise(x), saved.normalise(x))
    np.testing.assert_array_equal(loaded.model.predict(x), saved.model.predict(x))


def test_the_optimizers_arrays_come_back_as_they_were(path):
    """With their names, shapes (a number has none), types and bits; and a file without any has none."""
    saved = made()
    saved.save(path)
    loaded = load_checkpoint(path)
    assert loaded.optimizer.keys() == saved.optimizer.keys()
    for name, array in saved.optimizer.items():
        assert (loaded.optimizer[name].shape, loaded.optimizer[name].dtype) == (array.shape, array.dtype), name
        np.testing.assert_array_equal(loaded.optimizer[name], array)
    saved.optimizer = {}
    saved.save(path)
    assert load_checkpoint(path).optimizer == {}


@pytest.mark.parametrize("rule, options", [
    (optim.Adam, {}), (optim.AdamW, {}), (optim.SGD, {}), (optim.SGD, {"momentum": 0.9}),
])
def test_training_goes_on_from_a_file(path, rule, options):
    """Net and optimizer from the file take the same next steps as those that never left memory."""
    def steps(model, optimizer, seeds):
        for seed in seeds:
            rng = np.random.default_rng(seed)
            logits = model(Tensor(rng.random((2, 8, 8, 3), np.float32)))
            optimizer.zero_grad()
            functional.cross_entropy(logits, rng.integers(2, size=(2, 8, 8))).backward()
            optimizer.step()

    saved = made()
    optimizer = rule(saved.model.parameters(), lr=0.02, **options)
    steps(saved.model, optimizer, range(3))
    saved.optimizer = optimizer.state_dict()
    saved.save(path)
    loaded = load_checkpoint(path)
    other = rule(loaded.model.parameters(), lr=0.02, **options)
    other.load_state_dict(loaded.optimizer)
    for pair in ((saved.model, optimizer), (loaded.model, other)):
        steps(*pair, range(3, 6))
    state = loaded.model.state_dict()
    for name, array in saved.model.state_dict().items():
        np.testing.assert_array_equal(state[name], array)


def test_without_a_size_there_is_none(path):
    saved = made()
    saved.size = None
    saved.save(path)
    assert load_checkpoint(path).size is None


def test_images_are_normalised_by_mean_and_deviation():
    checkpoint = made()
    np.testing.assert_array_equal(checkpoint.normalise(IMAGE), (IMAGE - checkpoint.mean) / checkpoint.deviation)
    assert checkpoint.normalise(IMAGE).dtype == np.float32


def test_a_path_may_be_given_as_text(path):
    made().save(str(path))
    assert load_checkpoint(str(path)).notes == {"seed": 0}


def test_the_file_is_plain_safetensors_with_json_beside_the_weights(path):
    saved = made()
    saved.save(path)
    with safe_open(path, framework="numpy") as file:
        assert set(file.keys()) == {*saved.model.state_dict(), *(f"optimizer/{name}" for name in saved.optimizer)}
        settings = json.loads(file.metadata()[FORMAT])
    assert settings["config"] == saved.model.config


def test_the_same_checkpoint_is_the_same_bytes(path):
    written = []
    for _ in range(8):
        made().save(path)
        written.append(path.read_bytes())
    assert len(set(written)) == 1


# Writing


@pytest.mark.parametrize("stop", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize("before", [True, False])
def test_a_write_that_fails_leaves_everything_as_it_was(path, monkeypatch, step, stop, before):
    def fail(*arguments):
        raise stop

    if before:
        made(seed=1).save(path)
    old = path.read_bytes() if before else None
    monkeypatch.setattr(os, step, fail)
    with pytest.raises(type(stop)):
        made(seed=2).save(path)
    assert list(path.parent.iterdir()) == [path] * before
    assert not before or path.read_bytes() == old


def test_a_write_replaces_the_file_and_leaves_no_other(path):
    made(seed=1).save(path)
    made(seed=2).save(path)
    assert load_checkpoint(path).notes == {"seed": 2}
    assert list(path.parent.iterdir()) == [path]


def test_a_reader_never_sees_half_a_file(path, monkeypatch):
    """At the moment before the rename, the old file is whole and so is the new one."""
    made(seed=1).save(path)
    seen = []
    replace = os.replace

    def look(source, target):
        seen.extend(load_checkpoint(name).notes["seed"] for name in (target, source))
        replace(source, target)

    monkeypatch.setattr(os, "replace", look)
    made(seed=2).save(path)
    assert seen == [1, 2]


# Reading what is no checkpoint


def rewrite(path, change_settings=lambda settings: None, change_state=lambda state: None, format=FORMAT):
    """Write the file again, with other settings, weights or another format."""
    with safe_open(path, framework="numpy") as file:
        state, settings = {name: file.get_tensor(name) for name in file.keys()}, json.loads(file.metadata()[FORMAT])
    change_settings(settings)
    change_state(state)
    save_file(state, path, {format: json.dumps(settings)})


def raw(header, data=b""):
    """A safetensors file, byte by byte."""
    header = json.dumps(header).encode()
    return struct.pack("<Q", len(header)) + header + data


BFLOAT16 = raw({"a": {"dtype": "BF16", "shape": [1], "data_offsets": [0, 2]}}, b"\0\0")     # NumPy has no such type
FAULTS = {
    "no file": (lambda path: path.unlink(), "no such checkpoint"),
    "a folder": (lambda path: (path.unlink(), path.mkdir()), "is a folder; .*best.safetensors"),
    "no bytes": (lambda path: path.write_bytes(b""), "not a checkpoint, or is damaged"),
    "text": (lambda path: path.write_text("these are my weights, please use them"), "not a checkpoint, or is damaged"),
    "a picture": (lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(99)), "not a checkpoint, or is damaged"),
    "a byte too many": (lambda path: path.write_bytes(path.read_bytes() + b"\0"), "damaged"),
    "a foreign file": (lambda path: save_file({"a": np.zeros(3)}, path), "not one of minunet's"),
    "a foreign file in bfloat16": (lambda path: path.write_bytes(BFLOAT16), "not one of minunet's"),
    "another format": (lambda path: rewrite(path, format="minunet-9"), "not one of minunet's .*'minunet-1'"),
    "an unknown option": (lambda path: rewrite(path, lambda s: s["config"].update(attention=1)), "attention"),
    "an impossible option": (lambda path: rewrite(path, lambda s: s["config"].update(up="cubic")), "up must be"),
    "no configuration": (lambda path: rewrite(path, lambda s: s.pop("config")), "config"),
    "no mean": (lambda path: rewrite(path, lambda s: s.pop("mean")), "mean"),
    "no class names": (lambda path: rewrite(path, lambda s: s.pop("class_names")), "class_names"),
    "a class name too many": (lambda path: rewrite(path, lambda s: s["class_names"].append("x")),
                              "3 class names for 2 classes"),
    "no size": (lambda path: rewrite(path, lambda s: s.pop("size")), "size"),
    "no notes": (lambda path: rewrite(path, lambda s: s.pop("notes")), "notes"),
    "words as mean": (lambda path: rewrite(path, lambda s: s.update(mean="grey")), "do not fit"),
    "a mean too many": (lambda path: rewrite(path, lambda s: s["mean"].append(0.5)), "mean or deviation"),
    "a deviation too few": (lambda path: rewrite(path, lambda s: s["deviation"].pop()), "mean or deviation"),
    "a wider net": (lambda path: rewrite(path, lambda s: s["config"].update(base=4)), r"first.conv1.weight is"),
    "a deeper net": (lambda path: rewrite(path, lambda s: s["config"].update(depth=2)), "missing: "),
    "a missing weight": (lambda path: rewrite(path, change_state=lambda s: s.pop("head.bias")), "missing: head.bias"),
    "a further weight": (lambda path: rewrite(path, change_state=lambda s: s.update(tail=np.zeros(2))),
                         "unexpected: tail"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_file_is_refused_with_its_name(path, fault):
    made().save(path)
    plant, words = FAULTS[fault]
    plant(path)
    with pytest.raises(UserError, match=f"^{re.escape(str(path))}: .*{words}") as error:
        load_checkpoint(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("share", [0.001, 0.1, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_refused(path, share):
    made().save(path)
    data = path.read_bytes()
    path.write_bytes(data[:int(share * len(data))])
    with pytest.raises(UserError, match="not a checkpoint, or is damaged"):
        load_checkpoint(path)
