"""Training: the loop, its figures, and what a run leaves on disk."""

from minunet.training.evaluation import Evaluation, evaluate
from minunet.training.metrics import Confusion
from minunet.training.run import EpochResult, Run, RunConfig

__all__ = ["Confusion", "EpochResult", "Evaluation", "Run", "RunConfig", "evaluate"]
