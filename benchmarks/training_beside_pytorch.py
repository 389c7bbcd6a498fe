"""The training of `minunet train`, with every training step (forward, backward, Adam) taken by PyTorch.

Split, initial weights, crops, learning rates, calibration of batch norm, prediction, choice of the best epoch and
figures are the run's own; only the arithmetic of learning is another's. So the two figures of a seed differ by nothing
but rounding, and by what training makes of it. One class only.

    python benchmarks/training_beside_pytorch.py --images DIR --masks DIR --out runs/torch --crop 128x128 --epochs 14
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch_unet import UNet

from minunet import optim
from minunet.cli.apply import evaluation_text
from minunet.cli.values import positive, size, whole
from minunet.data import IGNORE, load_folder
from minunet.interop import from_torch, to_torch
from minunet.training import Run, RunConfig


class TorchRun(Run):
    """A run whose steps PyTorch takes; after each epoch its weights are copied into the run's own net."""

    def __init__(self, *arguments, memory_format, **options):
        super().__init__(*arguments, **options)
        config = self.config
        self.net = UNet(self.dataset.channels, 1, config.base, config.depth)
        state = to_torch(self.checkpoint.model.state_dict())
        self.net.load_state_dict({name: torch.tensor(array) for name, array in state.items()})
        self.net = self.net.to(memory_format=memory_format)
        self.adam = torch.optim.Adam(self.net.parameters(), lr=config.lr)
        self.steps, self.seconds = 0, 0.0

    def _step(self, images, masks, epoch):
        start = time.perf_counter()
        rate = optim.cosine(self.steps, self.config.epochs * len(self.batches), self.config.lr)
        for group in self.adam.param_groups:
            group["lr"] = rate
        x = torch.from_numpy(images).permute(0, 3, 1, 2)
        mask = torch.from_numpy(masks)[:, None]
        valid = (mask != IGNORE).float()
        target = (mask == 1).float()
        logits = self.net(x)
        bce = (F.binary_cross_entropy_with_logits(logits, target, reduction="none") * valid).sum() / valid.sum()
        p = torch.sigmoid(logits) * valid
        loss = bce + 1 - (2 * (p * target).sum() + 1) / (p.sum() + (target * valid).sum() + 1)
        self.adam.zero_grad()
        loss.backward()
        self.adam.step()
        self.steps += 1
        self.seconds += time.perf_counter() - start
        return loss.item()

    def _learn(self, epoch, on_step):
        loss = super()._learn(epoch, on_step)
        self.checkpoint.model.load_state_dict(from_torch(self.net.state_dict()))
        return loss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--masks", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--crop", type=size, default=(128, 128))
    parser.add_argument("--epochs", type=positive, default=14)
    parser.add_argument("--seed", type=whole(0), default=0)
    parser.add_argument("--memory-format", choices=("channels_last", "contiguous_format"), default="channels_last",
                        help="PyTorch's; the other one rounds otherwise, which tells how far rounding alone leads")
    arguments = parser.parse_args()
    config = RunConfig(crop=arguments.crop, epochs=arguments.epochs, seed=arguments.seed)
    run = TorchRun(load_folder(arguments.images, arguments.masks), arguments.out, config,
                   memory_format=getattr(torch, arguments.memory_format))
    for result in run.epochs():
        print(f"epoch {result.epoch}: loss {result.loss:.4f}, validation IoU {result.iou:.4f}", flush=True)
    print(f"{run.steps} steps in {run.seconds:.0f} s with PyTorch {torch.__version__} on {torch.get_num_threads()} "
          "threads")
    print(evaluation_text(run.finish()))


if __name__ == "__main__":
    main()
