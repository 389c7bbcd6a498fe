"""A trained net on disk: one safetensors file with the weights, and the configuration as JSON in its metadata.

Nothing is unpickled, so a file from anywhere can be opened. A write is atomic: temporary file, fsync, rename.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from minunet.errors import UserError
from minunet.models import UNet

FORMAT = "minunet-1"      # the only key of the metadata: several would be written in an order of chance


@dataclass
class Checkpoint:
    """A model, the mean and standard deviation (C,) that its images are normalised with, and what a run notes."""

    model: UNet
    mean: np.ndarray
    deviation: np.ndarray
    notes: dict[str, Any]

    def normalise(self, image: np.ndarray) -> np.ndarray:
        """(image − mean) / deviation for (..., C) in 0..1."""
        return (image - self.mean) / self.deviation

    def save(self, path: str | Path) -> None:
        """Write the file, or leave what stood there untouched."""
        path = Path(path)
        settings = {"config": self.model.config, "mean": self.mean.tolist(), "deviation": self.deviation.tolist(),
                    "notes": self.notes}
        state = {name: np.ascontiguousarray(array) for name, array in self.model.state_dict().items()}
        data = save(state, metadata={FORMAT: json.dumps(settings)})
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
            state = {name: file.get_tensor(name) for name in file.keys()} if FORMAT in metadata else {}
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: is not a checkpoint, or is damaged ({error})") from None
    if FORMAT not in metadata:
        raise UserError(f"{path}: is a safetensors file, but not one of minunet's checkpoints (its metadata have no "
                        f"{FORMAT!r})")
    try:
        settings = json.loads(metadata[FORMAT])
        model = UNet(**settings["config"])
        model.load_state_dict(state)
        mean, deviation = (np.array(settings[key], np.float32) for key in ("mean", "deviation"))
        if not mean.shape == deviation.shape == (model.config["in_channels"],):
            raise ValueError("the images' mean or deviation has not one number a channel")
        return Checkpoint(model, mean, deviation, settings["notes"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: the checkpoint's configuration and weights do not fit together ({error})") from None
