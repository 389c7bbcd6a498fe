"""Training: the loop, its figures, and what a run leaves on disk."""

from minunet.training.metrics import Confusion
from minunet.training.run import EpochResult, Run, RunConfig

__all__ = ["Confusion", "EpochResult", "Run", "RunConfig"]
