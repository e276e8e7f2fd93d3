"""The weights of a training's best epoch, kept in memory where no checkpoint is written."""

from __future__ import annotations

from lightning.pytorch.callbacks import Callback
from torch import Tensor


class BestWeights(Callback):
    """Copies the network's state after each epoch that is better than all before, as best.ckpt would have it.

    Args:
        monitor: What the accuracy that chooses is logged as.

    Attributes:
        weights: By name, on the CPU; empty before the first epoch has ended.
    """

    def __init__(self, monitor: str) -> None:
        self.weights: dict[str, Tensor] = {}
        self._monitor, self._highest = monitor, float("-inf")

    def on_train_epoch_end(self, trainer, module) -> None:
        accuracy = float(trainer.callback_metrics[self._monitor])
        if accuracy > self._highest:
            self._highest = accuracy
            self.weights = {name: value.detach().cpu().clone() for name, value in module.network.state_dict().items()}
