"""Distillation of what the stages of a network make of an image, without labels."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from amkd_fast import checks, ranks
from amkd_fast.methods.base import Batch, Losses, Method, StepContext
from amkd_fast.ops.segments import segment_mse

# A network that is wrapped has its stages one level down: whose they are comes first in the name.
_STAGE = re.compile(r"(?P<owner>(?:\w+\.)*)(?:stages\.[0-9]+|layer[0-9]+)")


class ExtendedKD(Method):
    """The student's logits and stage outputs equal the teacher's, in mean square: a **reconstruction**.

    No label is looked at unless ``ce_weight`` says so, so that classes without a single image can be learnt from how
    the teacher judges the others. Each stage output of the student passes a projection (a 1 × 1 convolution, or a
    linear layer where there are no places) to the teacher's channels; where the sizes differ the student's is brought
    to the teacher's by average pooling. The projections are this method's parameters. They are made by :meth:`prepare`,
    or in the first call, with a warning: a trainer that wants them trained prepares before it collects
    ``method.parameters()``.

    Args:
        logit_weight: λ₀ ≥ 0 of the logits.
        segment_weight: λ ≥ 0 of every stage.
        ce_weight: Weight of the cross-entropy; 0 leaves it out.
        student_stages: Names of the student's modules whose outputs are compared; None: its stages are found, as the
            last of the modules ``stages.*`` or ``layer*`` at each image size.
        teacher_stages: Likewise of the teacher, as many.
        fold: Without effect: stages can be listened to in the teacher itself only.
        distributed: See :class:`Method`; the projections' gradients are then those of this rank's rows, too.

    Raises:
        ValueError: A number breaks a rule above, or, when called, the stages cannot be found or paired.

    Source:
        Yuan and Pan, Extended Knowledge Distillation, 2019 (abstract).

    Example:
        >>> import torch
        >>> from amkd_fast.methods import Batch, ExtendedKD, StepContext
        >>> from amkd_fast.distill.networks import Spec, build
        >>> student, teacher = build(Spec("small-2-1", 1, 3), 0), build(Spec("small-4-1", 1, 3), 1).eval()
        >>> batch = Batch(torch.rand(8, 1, 8, 8), torch.zeros(8).long())
        >>> method = ExtendedKD()
        >>> method.prepare(batch.images, teacher, student)
        >>> optimizer = torch.optim.SGD([*student.parameters(), *method.parameters()], lr=0.1)
        >>> losses = method(batch, teacher, student, StepContext(epoch=0, epochs=60))
        >>> losses.total.backward()
        >>> sorted(losses.parts), len(method.projections)
        (['segments'], 3)
    """

    def __init__(
        self,
        *,
        logit_weight: float = 1.0,
        segment_weight: float = 1.0,
        ce_weight: float = 0.0,
        student_stages: Sequence[str] | None = None,
        teacher_stages: Sequence[str] | None = None,
        fold: bool = True,
        distributed: bool = False,
    ) -> None:
        super().__init__(fold=fold, distributed=distributed)
        self.logit_weight = checks.non_negative("logit_weight", logit_weight)
        self.segment_weight = checks.non_negative("segment_weight", segment_weight)
        self.ce_weight = checks.non_negative("ce_weight", ce_weight)
        self._wished = (student_stages, teacher_stages)
        self._paired: tuple[list[str], list[str]] | None = None
        self.projections = nn.ModuleList()

    def prepare(self, images: Tensor, teacher: nn.Module, student: nn.Module) -> None:
        if self._paired is not None:
            return
        given, taught = self._wished
        given, taught = given or find_stages(student, images), taught or find_stages(teacher, images)
        if len(given) != len(taught):
            raise ValueError(
                f"student_stages={list(given)}: must be as many as teacher_stages={list(taught)} (name them both)"
            )
        mine, theirs = (_shapes(network, names, images) for network, names in ((student, given), (teacher, taught)))
        self.projections.extend(_projection(a, b) for a, b in zip(mine, theirs, strict=True))
        self.projections.to(images.device, images.dtype)
        self._paired = (list(given), list(taught))

    def forward(self, batch: Batch, teacher: nn.Module | None, student: nn.Module, moment: StepContext) -> Losses:
        self.must_be_in_eval_mode(teacher)
        if self._paired is None:
            self.prepare(batch.images, teacher, student)
            warnings.warn(
                "ExtendedKD made its projections in its first call: an optimizer that was there before does not train "
                "them (call method.prepare first)",
                RuntimeWarning,
                stacklevel=2,
            )
        with torch.no_grad(), _outputs(teacher, self._paired[1]) as theirs:
            taught = teacher(batch.images)
        with _outputs(student, self._paired[0]) as mine:
            logits = student(batch.images)
        projected = [
            _of_size(project(output), wanted)
            for project, output, wanted in zip(self.projections, mine, theirs, strict=True)
        ]
        weights = [self.logit_weight, *[self.segment_weight] * len(projected)]
        total = segment_mse([logits, *projected], [taught, *theirs], weights)
        parts = {"segments": total}
        if self.ce_weight > 0.0:
            parts["ce"] = F.cross_entropy(logits, batch.labels)
            total = total + self.ce_weight * parts["ce"]
        if self.distributed:
            total, *means = (ranks.mean_over_rows(part, logits) for part in (total, *parts.values()))
            parts = dict(zip(parts, means, strict=True))
        return Losses(total, {name: part.detach() for name, part in parts.items()})


def find_stages(network: nn.Module, images: Tensor) -> list[str]:
    """Names of the modules that end the stages of a network: the last of ``stages.*`` or ``layer*`` at each size.

    Args:
        network: Runs once on the first of ``images``, in eval mode.
        images: [B, C, H, W].

    Raises:
        ValueError: There are no such modules.
    """
    found = [match for name, _ in network.named_modules() if (match := _STAGE.fullmatch(name))]
    names = [match[0] for match in found if match["owner"] == found[0]["owner"]]
    if not names:
        raise ValueError(
            "student_stages, teacher_stages: must be given for a network without modules stages.0, stages.1, … or "
            f"layer1, layer2, …; {type(network).__name__} has none"
        )
    last = {shape[2:]: name for name, shape in zip(names, _shapes(network, names, images), strict=True)}
    return list(last.values())


def _shapes(network: nn.Module, names: Sequence[str], images: Tensor) -> list[torch.Size]:
    """Of the named modules' outputs for one image; the network stays as it is."""
    was_training = network.training
    network.eval()
    try:
        with torch.no_grad(), _outputs(network, names) as found:
            network(images[:1])
    finally:
        network.train(was_training)
    return [output.shape for output in found]


@contextmanager
def _outputs(network: nn.Module, names: Sequence[str]) -> Iterator[list[Tensor]]:
    """What the named modules return while the block runs the network once, in the order of the names."""
    modules = dict(network.named_modules())
    unknown = [name for name in names if name not in modules]
    if unknown:
        raise ValueError(f"stages: {type(network).__name__} has no module {unknown[0]!r}")
    seen: dict[str, Tensor] = {}
    found: list[Tensor] = []

    def keep(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _inputs: object, output: Tensor) -> None:
            seen[name] = output

        return hook

    hooks = [modules[name].register_forward_hook(keep(name)) for name in names]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
    missing = [name for name in names if name not in seen]
    if missing:
        raise ValueError(
            f"stages: {type(network).__name__} did not run its module {missing[0]!r} (compiled networks hide it)"
        )
    found.extend(seen[name] for name in names)


def _projection(mine: torch.Size, theirs: torch.Size) -> nn.Module:
    if len(mine) != len(theirs):
        raise ValueError(f"stages: outputs {tuple(mine)} and {tuple(theirs)} must have the same number of dimensions")
    if len(mine) == 2:
        return nn.Linear(mine[1], theirs[1], bias=False)
    return nn.Conv2d(mine[1], theirs[1], 1, bias=False)


def _of_size(output: Tensor, wanted: Tensor) -> Tensor:
    """``output`` [B, C, H, W] at the height and width of ``wanted``."""
    return output if output.shape == wanted.shape else F.adaptive_avg_pool2d(output, wanted.shape[2:])
