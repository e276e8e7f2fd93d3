"""The network that is learnt from, and its logits where they never change."""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn

from amkd_fast.distill.data import Data, Split
from amkd_fast.distill.data.split import TESTED
from amkd_fast.methods.base import Batch


class Teacher:
    """A frozen teacher in eval mode; where images never change its logits are computed once."""

    def __init__(self, network: nn.Module, data: Data, precision: str = "32") -> None:
        """Keep ``network``, and its logits on the student's whole set where no augmentation changes that."""
        self.network = network.eval().requires_grad_(False)
        if precision == "64":
            self.network.double()
        self.known = None if data.augmented else predict(network, data.student)
        self._test = data.test

    @functools.cached_property
    def tested(self) -> Tensor:
        """Its logits on the test images, which every student is compared with."""
        return predict(self.network, self._test)

    def inform(self, batch: Batch) -> Batch:
        """The batch with the teacher's logits, if they are known."""
        return batch if self.known is None else batch._replace(teacher_logits=self.known[batch.index])


@torch.no_grad()
def predict(network: nn.Module, split: Split, batch: int = TESTED) -> Tensor:
    """Logits of many images in eval mode [N, K]."""
    was_training = network.training
    network.eval()
    rows = torch.arange(len(split), device=split.labels.device)
    dtype = next((parameter.dtype for parameter in network.parameters()), torch.float32)
    logits = torch.cat([network(split.take(part).images.to(dtype)) for part in rows.split(batch)])
    network.train(was_training)
    return logits


def accuracy(network: nn.Module, split: Split) -> float:
    """Share of the images that are classified rightly, per cent."""
    return 100.0 * float(rightly(predict(network, split), split.labels).float().mean())


def rightly(logits: Tensor, labels: Tensor) -> Tensor:
    """Which rows of logits [N, K] name their label, as bool [N]; what is not finite names none."""
    return (logits.argmax(1) == labels) & logits.isfinite().all(1)
