"""The interface that every method has: (batch, teacher, student) → losses by name."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn

from amkd_fast import philox
from amkd_fast.attacks import frozen
from amkd_fast.attacks.frozen import FrozenModel


class Batch(NamedTuple):
    """What one step learns from."""

    images: Tensor  # [B, C, H, W], as both networks take them
    labels: Tensor  # [B], int64; of mixtures [B, K], the classes' shares, which StudentAlone alone takes
    index: Tensor | None = None  # type: ignore[assignment]  # hides tuple.index, and is public: [B], rows of the training set
    teacher_logits: Tensor | None = None  # [B, K], where they are known already


class StepContext(NamedTuple):
    """Where in the training a step is taken, and the seed of its draws.

    Attributes:
        epoch: The running epoch, from 0.
        epochs: Of the whole training, for the schedules.
        draw: Seed of the step's draws: a number that no other step has. An int, or an int64 tensor of no dimensions on
            the device, which a CUDA graph can change between replays; None draws one from torch's generator.
        weights: Takes the place of the method's own :meth:`Method.weights`, as tensors for the same reason.
    """

    epoch: int
    epochs: int
    draw: int | Tensor | None = None
    weights: Mapping[str, float | Tensor] | None = None


class Losses(NamedTuple):
    """What a method returns.

    Attributes:
        total: What is minimised; has the graph.
        parts: Its pieces by name, before their weights and without a graph, for the log.
        attack: int64 [4], the numbers of :data:`COUNTS`; None for a method that attacks nothing.
    """

    total: Tensor
    parts: dict[str, Tensor]
    attack: Tensor | None = None


COUNTS = ("attacked", "accepted", "crossed", "third")


def required(teacher: nn.Module | None) -> nn.Module:
    """The teacher of a method that needs one."""
    if teacher is None:
        raise ValueError("teacher=None: must be a network, as this method learns from one")
    return teacher


class Method(nn.Module):
    """Turns a batch and two networks into losses.

    Attributes:
        fold: Run the teacher with BatchNorm folded into its convolutions (:func:`amkd_fast.attacks.frozen`): faster,
            and its own logits up to rounding. False runs it as it is.
        distributed: Batches are shares of a batch that is spread over the ranks of the default process group. Every
            rank gets the losses of the whole batch, and the gradients of one process for its own rows.

    A method's state (a memory of past rows, for one) is in its state dict. Few have parameters; these are trained with
    the student's, and are there once :meth:`prepare` has been called. Call a method with the student in train mode, and
    then ``losses.total.backward()``; under DistributedDataParallel, which averages gradients,
    ``(world_size * losses.total).backward()``.
    """

    def __init__(self, *, fold: bool = True, distributed: bool = False) -> None:
        super().__init__()
        self.fold, self.distributed = fold, distributed
        self._seen: tuple[nn.Module, FrozenModel] | None = None  # in a tuple, where no state dict looks

    def prepare(self, images: Tensor, teacher: nn.Module | None, student: nn.Module) -> None:
        """Make the method's parameters, if it has any, before an optimiser collects them.

        Args:
            images: A few images as they will come, for the shapes.
            teacher: As in :meth:`forward`.
            student: As in :meth:`forward`; it stays as it is.
        """

    def forward(self, batch: Batch, teacher: nn.Module | None, student: nn.Module, moment: StepContext) -> Losses:
        """Compute the losses of one batch.

        Args:
            batch: Images, labels, and the teacher's logits where they are known.
            teacher: The network to learn from, in eval mode; None for a method that needs none.
            student: The network that learns.
            moment: Where the training stands.
        """
        raise NotImplementedError

    def weights(self, moment: StepContext) -> dict[str, float]:
        """The weights that change with the epoch, by name."""
        return {}

    @torch.no_grad()
    def taught(self, batch: Batch, teacher: nn.Module | None) -> Tensor:
        """The teacher's logits on a clean batch: those that came along, else a forward pass without a graph.

        Raises:
            ValueError: There is no teacher, or it is in train mode, in which its logits would depend on their
                neighbours.
        """
        if batch.teacher_logits is not None:
            return batch.teacher_logits
        return self.view_of(self.must_be_in_eval_mode(teacher))(batch.images)

    def draw_of(self, moment: StepContext, device: torch.device) -> int | Tensor:
        """The seed of the step's draws, which all ranks have to know."""
        if moment.draw is None and self.distributed:
            raise ValueError("moment.draw=None: must be a number that all ranks give, with distributed=True")
        return philox.chosen_seed(moment.draw, device)

    @staticmethod
    def must_be_in_eval_mode(teacher: nn.Module | None) -> nn.Module:
        """The teacher itself; its answers would depend on their neighbours else."""
        if teacher is None or teacher.training:
            required(teacher)
            raise ValueError("teacher.training=True: must be in eval mode (teacher.eval())")
        return teacher

    def teaching(self, teacher: nn.Module | None) -> AbstractContextManager:
        """For the length of the block the teacher is what it is at the first look, and so is looked at once."""
        return nullcontext() if teacher is None else self.view_of(teacher).held()

    def view_of(self, teacher: nn.Module) -> FrozenModel:
        """The teacher as it is run, kept from call to call: BatchNorm folded and channels last, where it can be."""
        if self._seen is None or self._seen[0] is not teacher:
            self._seen = (teacher, frozen(teacher, fold_batchnorm=self.fold, channels_last=self.fold))
        return self._seen[1]
