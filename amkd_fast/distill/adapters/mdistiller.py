"""A method as a distiller of mdistiller."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from amkd_fast import checks
from amkd_fast.distill.adapters.common import Draws, check_epoch, check_method
from amkd_fast.methods import Batch, LogitsOf, Losses, Method, StepContext


class MDistillerMethod(nn.Module):
    """A method with the interface that mdistiller's trainers expect of a distiller.

    The trainer's epochs count from 1, the method's from 0: epoch 1 of ``epochs`` has the weights of epoch 0. The losses
    are in one entry, with the method's weights in it: nothing is to be multiplied again. Bounds of the attack are in
    the units of the images, which mdistiller normalises: (0 − mean)/std and (1 − mean)/std of the data set.

    ``CRDTrainer``, which passes no epoch, and the ``DOT`` trainers, which differentiate two terms apart, are not
    served; nor is ``DataParallel`` on more than one device. A method's state, such as a memory, is in the state dict.

    Args:
        student: The network that learns. It returns logits, or a tuple that begins with them, as mdistiller's do.
        teacher: The network to learn from, likewise; stays in eval mode.
        method: One of :mod:`amkd_fast.methods`, with ``distributed=False``.
        epochs: Of the whole training (``cfg.SOLVER.EPOCHS``), for the schedules.

    Attributes:
        last: The losses of the latest step without their graph, for a log; None before the first.

    Raises:
        TypeError: ``method`` is not a method, or ``epochs`` not an int.
        ValueError: ``method.distributed`` is True, or ``epochs`` is below 1.

    Source:
        The interface is that of the repository megvii-research/mdistiller (``mdistiller/distillers/_base.py``,
        ``mdistiller/engine/trainer.py``), read at commits e8c5bb3 and a08d46f. There, one line
        makes it a type of distiller::

            distiller_dict["AMKD"] = lambda student, teacher, cfg: MDistillerMethod(
                student, teacher, AMKD(attack={"lower": lower, "upper": upper}), epochs=cfg.SOLVER.EPOCHS
            )

    Example:
        >>> import torch
        >>> from amkd_fast.distill.adapters import MDistillerMethod
        >>> from amkd_fast.methods import KD
        >>> distiller = MDistillerMethod(torch.nn.Linear(2, 3), torch.nn.Linear(2, 3), KD(), epochs=240)
        >>> _ = distiller.train()
        >>> logits, losses = distiller(image=torch.rand(8, 2), target=torch.zeros(8).long(), epoch=1)
        >>> sum(losses.values()).backward()
        >>> logits.shape, sorted(distiller.last.parts), distiller.teacher.training
        (torch.Size([8, 3]), ['ce', 'kl'], False)
    """

    def __init__(self, student: nn.Module, teacher: nn.Module, method: Method, epochs: int) -> None:
        super().__init__()
        epochs = checks.whole("epochs", epochs, 1)
        self.student, self.teacher, self.method = student, teacher.eval(), check_method(method)
        self.epochs = epochs
        self.last: Losses | None = None
        self._draws = Draws()
        self._networks = (LogitsOf(student), LogitsOf(teacher))  # in a tuple: not twice in the state dict

    def train(self, mode: bool = True) -> MDistillerMethod:
        """Set the mode of the student; the teacher stays in eval mode."""
        super().train(mode)
        self.teacher.eval()
        return self

    def get_learnable_parameters(self) -> list[nn.Parameter]:
        """The student's parameters, and those that the method has made in :meth:`Method.prepare`."""
        return [*self.student.parameters(), *self.method.parameters()]

    def get_extra_parameters(self) -> int:
        """How many parameters the method adds, as numbers."""
        return sum(parameter.numel() for parameter in self.method.parameters())

    def forward(self, **inputs: Any) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """``forward_train`` of all that is given in train mode, ``forward_test`` of ``image`` otherwise."""
        return self.forward_train(**inputs) if self.training else self.forward_test(inputs["image"])

    def forward_train(
        self,
        image: Tensor,
        target: Tensor,
        *,
        epoch: int | None = None,
        index: Tensor | None = None,
        **unused: object,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the losses of one batch.

        Args:
            image: [B, ...], normalised.
            target: int64 [B], labels.
            epoch: The running epoch, from 1.
            index: int64 [B], rows of the training set, which CRD needs.
            unused: What other distillers want.

        Returns:
            The student's logits [B, K] on ``image`` (of MKD on its mixtures), and ``{"loss": total}``, which has the
            graph.

        Raises:
            TypeError: ``epoch`` is missing or not an int.
            ValueError: ``epoch`` is not in 1 … ``epochs``.
            RuntimeError: This is a replica that ``DataParallel`` has made for a further device.
        """
        if getattr(self, "_is_replica", False):
            raise RuntimeError(
                "MDistillerMethod runs on one device: DataParallel must not replicate it (device_ids=[0])"
            )
        since = check_epoch(epoch, 1, self.epochs)
        student, teacher = self._networks
        teacher.training, student.training = self.teacher.training, self.student.training  # for the method's checks
        seen: list[Tensor] = []

        def keep(network: nn.Module, _inputs: object, logits: Tensor) -> None:
            if network.training == mode and logits.shape[0] == image.shape[0]:
                seen.append(logits)  # else a method has looked at the network's stages

        mode = student.training
        hook = student.register_forward_hook(keep)
        try:
            losses = self.method(
                Batch(image, target, index), teacher, student, StepContext(since, self.epochs, draw=self._draws(since))
            )
        finally:
            hook.remove()
        self.last = Losses(losses.total.detach(), losses.parts, losses.attack)
        return seen[0], {"loss": losses.total}  # a method runs the clean images first, if it runs them

    def forward_test(self, image: Tensor) -> Tensor:
        """The student's logits [B, K]."""
        return self._networks[0](image)
