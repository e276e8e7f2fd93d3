"""A method as a high-level loss of torchdistill, for its YAML configurations."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from amkd_fast.distill.adapters.common import Draws, check_epoch, check_method
from amkd_fast.methods import (
    AMKD,
    AT,
    BSS,
    CCD,
    DKD,
    KD,
    MKD,
    RKD,
    SP,
    TALD,
    Batch,
    LogitsOf,
    Losses,
    Method,
    StepContext,
    StudentAlone,
    TripletKD,
)

# Without methods that train weights of their own, which torchdistill's optimisers would not know (Extended-KD, FitNet,
# ReviewKD, CRD).
METHODS: dict[str, type[Method]] = {
    "student": StudentAlone,
    "kd": KD,
    "bss": BSS,
    "amkd": AMKD,
    "ccd": CCD,
    "dkd": DKD,
    "mkd": MKD,
    "rkd": RKD,
    "at": AT,
    "sp": SP,
    "tald": TALD,
    "triplet-kd": TripletKD,
}
LOSS, FORWARD, PRE_EPOCH = "AMKDFastLoss", "amkd_fast_forward", "amkd_fast_pre_epoch"  # the keys in the YAML


class NotRun(NamedTuple):
    """What stands in a box's io_dict in place of a network's outputs: a method runs the networks itself."""

    network: nn.Module
    images: Tensor


class TorchdistillLoss(nn.Module):
    """A method as the criterion of torchdistill's ``DistillationBox``.

    A method attacks images, so it needs the networks, where a torchdistill loss is given their outputs. Two functions
    that :func:`register` registers bridge that with torchdistill's own means: the ``forward_proc`` of both models hands
    over network and images and runs nothing, and the ``pre_epoch_process`` tells the epoch and sets the teacher to eval
    mode, after the default one. Call :func:`register` before the box is built; then, in the YAML::

        train:
          num_epochs: 182
          pre_epoch_process: amkd_fast_pre_epoch
          teacher:
            forward_proc: amkd_fast_forward
            requires_grad: False
          student:
            forward_proc: amkd_fast_forward
          criterion:
            key: AMKDFastLoss
            kwargs:
              method: amkd
              triplet_weight: 0.1
              attack:                              # CIFAR-10's pixel range, normalised, by channel
                lower: [-1.99, -1.98, -1.71]
                upper: [2.06, 2.13, 2.12]

    The box's epochs count from 0, as the method's; in a training of several stages each stage's schedules begin anew.
    The loss is the method's total with all its weights: it stands alone, not among ``sub_terms``. Forward hooks on the
    models see whatever run was the last, and unfold the teacher for the attack: leave ``forward_hook`` out.
    torchdistill's checkpoints leave the criterion out: a resumed training starts with an empty memory. Tried in
    one process; under DistributedDataParallel each process attacks within its own batch.

    Args:
        method: One of the names in ``METHODS`` of this module (``"amkd"``, ``"dkd"``, …), or a method with
            ``distributed=False`` (in YAML by torchdistill's ``!import_call``, as schedules and memories).
        options: Keywords of a method given by name. Lists in ``attack`` become tensors.

    Attributes:
        last: The losses of the latest step without their graph, for a log; None before the first.

    Raises:
        TypeError: ``method`` is neither a name nor a method, or options are given with a method.
        ValueError: ``method`` is none of the names, its ``distributed`` is True, or an option breaks a rule of its.

    Source:
        The interface is that of torchdistill 1.1.5 (repository yoshitomo-matsubara/torchdistill,
        ``torchdistill/core/distillation.py``, ``torchdistill/losses/registry.py``), and of no version before 1.0.

    Example:
        >>> import torch
        >>> from amkd_fast.distill.adapters import TorchdistillLoss
        >>> from amkd_fast.distill.adapters.torchdistill import not_run
        >>> loss = TorchdistillLoss("kd", temperature=4.0)
        >>> loss.begin_epoch(0, 182)  # the pre_epoch_process
        >>> student, teacher, images = torch.nn.Linear(2, 3), torch.nn.Linear(2, 3).eval(), torch.rand(8, 2)
        >>> io = {"student": {".": {"output": not_run(student, images)}},
        ...       "teacher": {".": {"output": not_run(teacher, images)}}}
        >>> loss(io, {}, torch.zeros(8).long()).backward()
        >>> sorted(loss.last.parts)
        ['ce', 'kl']
    """

    def __init__(self, method: str | Method = "amkd", **options: Any) -> None:
        super().__init__()
        if isinstance(method, str):
            if method not in METHODS:
                raise ValueError(f"method={method!r}: must be one of {', '.join(map(repr, METHODS))}")
            if "attack" in options:
                options["attack"] = {name: _as_tensor(value) for name, value in (options["attack"] or {}).items()}
            method = METHODS[method](**options)
        elif options:
            raise TypeError(f"{', '.join(options)}: must not be given with a method that is an object already")
        self.method = check_method(method)
        self.last: Losses | None = None
        self._when: tuple[int, int] | None = None
        self._draws = Draws()
        self._views: dict[str, LogitsOf] = {}  # in a plain dict: the networks are not the criterion's

    def begin_epoch(self, epoch: int, epochs: int) -> None:
        """Tell which epoch, from 0, of how many begins.

        Raises:
            TypeError: ``epoch`` is not an int.
            ValueError: ``epoch`` is not in 0 … ``epochs`` − 1.
        """
        self._when = check_epoch(epoch, 0, epochs), epochs

    def forward(self, io_dict: dict, model_loss_dict: dict, targets: Tensor) -> Tensor:
        """Compute the loss of one batch.

        Args:
            io_dict: The box's, with :class:`NotRun` as both models' outputs.
            model_loss_dict: Losses that models return by themselves; must be empty.
            targets: int64 [B], labels.

        Raises:
            ValueError: A model ran already, returned losses, or no epoch was begun: the message names the YAML's entry.
        """
        if self._when is None:
            raise ValueError(f"train.pre_epoch_process: must be {PRE_EPOCH!r}, no epoch has begun")
        if model_loss_dict:
            raise ValueError(f"model_loss_dict has {', '.join(model_loss_dict)}: must be empty with {LOSS}")
        student, teacher = (self._handed_over(role, io_dict) for role in ("student", "teacher"))
        epoch, epochs = self._when
        context = StepContext(epoch, epochs, draw=self._draws(epoch))
        losses = self.method(
            Batch(student.images, targets), self._view("teacher", teacher), self._view("student", student), context
        )
        self.last = Losses(losses.total.detach(), losses.parts, losses.attack)
        return losses.total

    def _handed_over(self, role: str, io_dict: dict) -> NotRun:
        found = io_dict[role]["."].get("output")
        if not isinstance(found, NotRun):
            raise ValueError(
                f"train.{role}.forward_proc: must be {FORWARD!r}, the {role} gave a {type(found).__name__}"
            )
        return found

    def _view(self, role: str, found: NotRun) -> LogitsOf:
        """The same view in each step: a method prepares its attack once for a teacher."""
        network = found.network
        if role == "teacher" and isinstance(network, (DataParallel, DistributedDataParallel)):
            network = network.module  # has no gradients to share, and can be folded
        if role not in self._views or self._views[role].network is not network:
            self._views[role] = LogitsOf(network)
        self._views[role].training = network.training  # for the method's check
        return self._views[role]


def not_run(model: nn.Module, sample_batch: Tensor, targets: object = None, supp_dict: object = None, **_) -> NotRun:
    """The ``forward_proc``: hands over, runs nothing.

    Raises:
        TypeError: ``sample_batch`` is not a tensor.
    """
    if not isinstance(sample_batch, Tensor):
        raise TypeError(f"sample_batch is a {type(sample_batch).__name__}: must be a tensor of images")
    return NotRun(model, sample_batch)


def begin_epoch(box, epoch: int) -> None:
    """What the ``pre_epoch_process`` adds to the default: teacher in eval mode, criterion told the epoch.

    Raises:
        ValueError: The box's criterion is another one, or ``epoch`` lies outside its training.
    """
    if not isinstance(box.criterion, TorchdistillLoss):
        raise ValueError(
            f"train.criterion.key: must be {LOSS!r} with {PRE_EPOCH!r}, not {type(box.criterion).__name__}"
        )
    box.teacher_model.eval()
    stage = getattr(box, "stage_number", None)
    if stage is None:
        box.criterion.begin_epoch(epoch, box.num_epochs)
        return
    epochs = box.train_config[f"stage{stage}"]["num_epochs"]
    box.criterion.begin_epoch(epoch - (box.stage_end_epoch - epochs), epochs)


def register() -> None:
    """Make ``AMKDFastLoss``, ``amkd_fast_forward`` and ``amkd_fast_pre_epoch`` known to torchdistill.

    Raises:
        ImportError: torchdistill cannot be imported.
    """
    from torchdistill.core.interfaces.pre_epoch_proc import default_pre_epoch_process_with_teacher
    from torchdistill.core.interfaces.registry import register_forward_proc_func, register_pre_epoch_proc_func
    from torchdistill.losses.registry import register_high_level_loss

    def pre_epoch(self, epoch=None, **more) -> None:  # becomes a method of the box
        default_pre_epoch_process_with_teacher(self, epoch=epoch, **more)
        begin_epoch(self, epoch)

    register_high_level_loss(key=LOSS)(TorchdistillLoss)
    register_forward_proc_func(key=FORWARD)(not_run)
    register_pre_epoch_proc_func(key=PRE_EPOCH)(pre_epoch)


def _as_tensor(value: object) -> object:
    return torch.tensor(value) if isinstance(value, list) else value
