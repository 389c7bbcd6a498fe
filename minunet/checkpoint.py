"""A trained net on disk: one safetensors file with the weights, and everything else as JSON in its metadata.

Nothing is unpickled, so a file from anywhere can be opened. A write is atomic: temporary file, fsync, rename.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from minunet.errors import UserError
from minunet.geometry import Pair
from minunet.models import UNet

FORMAT = "minunet-1"        # the only key of the metadata: several would be written in an order of chance
OPTIMIZER = "optimizer/"    # begins the names of the optimizer's arrays


@dataclass
class Checkpoint:
    """A model and what its images and answers mean.

    mean, deviation: (C,) of the images it learned from, to normalise with. class_names: one for each class. size: the
    (H, W) that images are resized to before the net, None for none. notes: what a run writes down, as JSON.
    optimizer: the optimizer's arrays, in a checkpoint that training can go on from.
    """

    model: UNet
    mean: np.ndarray
    deviation: np.ndarray
    class_names: tuple[str, ...]
    size: Pair | None = None
    notes: dict[str, Any] = field(default_factory=dict)
    optimizer: dict[str, np.ndarray] = field(default_factory=dict)

    def normalise(self, image: np.ndarray) -> np.ndarray:
        """(image − mean) / deviation for (..., C) in 0..1."""
        return (image - self.mean) / self.deviation

    def save(self, path: str | Path) -> None:
        """Write the file, or leave what stood there untouched."""
        path = Path(path)
        settings = {"config": self.model.config, "mean": self.mean.tolist(), "deviation": self.deviation.tolist(),
                    "class_names": self.class_names, "size": self.size, "notes": self.notes}
        state = self.model.state_dict() | {OPTIMIZER + name: array for name, array in self.optimizer.items()}
        data = save({name: np.asarray(array, order="C") for name, array in state.items()},
                    metadata={FORMAT: json.dumps(settings)})
        temporary = path.with_name(path.name + ".tmp")
        try:
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)       # there only if something failed


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint. Raises UserError for a missing, truncated or foreign file, and for weights that do not fit."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: is a folder; the checkpoint is the file best.safetensors in a run's folder"
                        if path.is_dir() else f"{path}: there is no such checkpoint file")
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            # a foreign file may hold types that NumPy does not have
            arrays = {name: file.get_tensor(name) for name in file.keys()} if FORMAT in metadata else {}
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: is not a checkpoint, or is damaged ({error})") from None
    if FORMAT not in metadata:
        raise UserError(f"{path}: is a safetensors file, but not one of minunet's checkpoints (its metadata have no "
                        f"{FORMAT!r})")
    try:
        settings = json.loads(metadata[FORMAT])
        model = UNet(**settings["config"])
        model.load_state_dict({name: array for name, array in arrays.items() if not name.startswith(OPTIMIZER)})
        mean, deviation = (np.array(settings[key], np.float32) for key in ("mean", "deviation"))
        if not mean.shape == deviation.shape == (model.config["in_channels"],):
            raise ValueError("the images' mean or deviation has not one number a channel")
        names, size = tuple(settings["class_names"]), settings["size"]
        if len(names) != model.config["classes"]:
            raise ValueError(f"{len(names)} class names for {model.config['classes']} classes")
        optimizer = {name.removeprefix(OPTIMIZER): array for name, array in arrays.items()
                     if name.startswith(OPTIMIZER)}
        return Checkpoint(model, mean, deviation, names, (size[0], size[1]) if size else None, settings["notes"],
                          optimizer)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: the checkpoint's configuration and weights do not fit together ({error})") from None
