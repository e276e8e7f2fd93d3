"""The stages of a network: their names, what they return, and the methods that compare it between two networks."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn

from amkd_fast import ranks
from amkd_fast.methods.base import Batch, Method, required
from amkd_fast.methods.batchnorm import statistics_of
from amkd_fast.methods.outputs import with_features

# A network that is wrapped has its stages one level down: whose they are comes first in the name.
_STAGE = re.compile(r"(?P<owner>(?:\w+\.)*)(?:stages\.[0-9]+|layer[0-9]+)")


class Seen(NamedTuple):
    """What a network makes of a batch."""

    logits: Tensor  # [B, K]
    stages: list[Tensor]  # [B, C, H, W] each, in the order of their names
    features: Tensor | None  # [B, D], what the last linear layer saw, where it was asked for


class StageMethod(Method):
    """A method that compares what the stages of two networks make of an image.

    Which modules end a stage is asked once, by :meth:`prepare` or in the first call; a subclass then makes what it
    trains beside the student in :meth:`connect`.

    Args:
        student_stages: Names of the student's modules whose outputs are compared; None: its stages are found, as the
            last of the modules ``stages.*`` or ``layer*`` at each image size.
        teacher_stages: Likewise of the teacher, as many.
        fold: Without effect: stages can be listened to in the teacher itself only.
        distributed: See :class:`Method`. BatchNorm of the method's own layers counts the rows of all ranks.
    """

    features = False  # whether Seen has them
    layers = "layers"  # what connect makes, in the words of the warning

    def __init__(
        self,
        *,
        student_stages: Sequence[str] | None = None,
        teacher_stages: Sequence[str] | None = None,
        fold: bool = True,
        distributed: bool = False,
    ) -> None:
        super().__init__(fold=fold, distributed=distributed)
        self._wished = (student_stages, teacher_stages)
        self._paired: tuple[list[str], list[str]] | None = None

    def prepare(self, images: Tensor, teacher: nn.Module | None, student: nn.Module) -> None:
        if self._paired is not None:
            return
        given, taught = (
            list(names) if names else self.chosen(find_stages(network, images), role)
            for names, network, role in zip(
                self._wished, (student, required(teacher)), ("student", "teacher"), strict=True
            )
        )
        if len(given) != len(taught):
            raise ValueError(f"student_stages={given}: must be as many as teacher_stages={taught} (name them both)")
        mine, theirs = (
            shapes(network, names, images, self.features)
            for network, names in ((student, given), (required(teacher), taught))
        )
        self.connect(mine, theirs)
        self.to(images.device, images.dtype)
        self._paired = given, taught

    def chosen(self, names: list[str], role: str) -> list[str]:
        """Those of the stages found that are compared."""
        return names

    def connect(self, mine: list[torch.Size], theirs: list[torch.Size]) -> None:
        """Make the layers between the student's outputs of shapes ``mine`` and the teacher's; features come last.

        Raises:
            ValueError: There can be none between these shapes.
        """

    def look(self, batch: Batch, teacher: nn.Module | None, student: nn.Module) -> tuple[Seen, Seen]:
        """What the student, with a graph, and the teacher, without, make of the batch."""
        teacher = self.must_be_in_eval_mode(teacher)
        if self._paired is None:
            self.prepare(batch.images, teacher, student)
            if next(self.parameters(), None) is not None:
                warnings.warn(
                    f"{type(self).__name__} made its {self.layers} in its first call: an optimizer that was there "
                    "before does not train them (call method.prepare first)",
                    RuntimeWarning,
                    stacklevel=3,
                )
        assert self._paired is not None, "prepare sets it"
        with torch.no_grad():
            theirs = seen(teacher, batch.images, self._paired[1], self.features, "teacher")
        return seen(student, batch.images, self._paired[0], self.features), theirs

    def own_statistics(self, rows: int) -> AbstractContextManager:
        """BatchNorm of the method's own layers: over all ranks, and also of a single row, which torch refuses."""
        if self.distributed or rows < 2:
            return statistics_of(self, distributed=self.distributed)
        return nullcontext()

    def over_ranks(self, parts: Sequence[Tensor], logits: Tensor, learnt: Sequence[Tensor]) -> list[Tensor]:
        """The means of the whole batch, out of those over this rank's rows.

        Args:
            parts: Means over the rows of ``logits``.
            logits: [B, K] of the student.
            learnt: What the method's own layers returned, so that those of a rank without images have gradients, too.
        """
        if not self.distributed:
            return list(parts)
        if logits.shape[0] == 0:
            logits = torch.cat([logits.flatten(), *(output.flatten() for output in learnt)])
        return [ranks.mean_over_rows(part, logits) for part in parts]


def find_stages(network: nn.Module, images: Tensor) -> list[str]:
    """Names of the modules that end the stages of a network: the last of ``stages.*`` or ``layer*`` at each size.

    Args:
        network: Runs once on the first of ``images``, in eval mode.
        images: [B, C, H, W].

    Raises:
        ValueError: There are no such modules.

    Example:
        >>> import torch
        >>> from amkd_fast.distill.networks import Spec, build
        >>> from amkd_fast.methods.stages import find_stages
        >>> find_stages(build(Spec("resnet20", 3, 10), 0), torch.zeros(1, 3, 32, 32))
        ['stages.2', 'stages.5', 'stages.8']
    """
    found = [match for name, _ in network.named_modules() if (match := _STAGE.fullmatch(name))]
    names = [match[0] for match in found if match["owner"] == found[0]["owner"]]
    if not names:
        raise ValueError(
            "student_stages, teacher_stages: must be given for a network without modules stages.0, stages.1, … or "
            f"layer1, layer2, …; {type(_within(network)).__name__} has none"
        )
    last = {shape[2:]: name for name, shape in zip(names, shapes(network, names, images), strict=True)}
    return list(last.values())


def shapes(network: nn.Module, names: Sequence[str], images: Tensor, features: bool = False) -> list[torch.Size]:
    """Of the named modules' outputs for one image, with ``features`` those of the features last; nothing changes."""
    was_training = network.training
    dtype = next((parameter.dtype for parameter in network.parameters()), images.dtype)
    network.eval()
    try:
        with torch.no_grad():
            found = seen(network, images[:1].to(dtype), names, features, "a network")
    finally:
        network.train(was_training)
    last = [] if found.features is None else [found.features]
    return [output.shape for output in (*found.stages, *last)]


def seen(
    network: nn.Module, images: Tensor, names: Sequence[str], features: bool = False, role: str = "student"
) -> Seen:
    """Run a network once, and listen to the named modules and, with ``features``, to what its classifier sees."""
    with outputs(network, names) as found:
        if features:
            logits, last = with_features(network, images, role, "features")
        else:
            logits, last = network(images), None
    return Seen(logits, found, last)


def _within(network: nn.Module) -> nn.Module:
    """The network in its wrappers, whose only part is called ``network``: stages go by its own names."""
    while [name for name, _ in network.named_children()] == ["network"]:
        network = network.get_submodule("network")
    return network


@contextmanager
def outputs(network: nn.Module, names: Sequence[str]) -> Iterator[list[Tensor]]:
    """What the named modules return while the block runs the network once, in the order of the names."""
    own = _within(network)
    modules = {**dict(own.named_modules()), **dict(network.named_modules())}
    unknown = [name for name in names if name not in modules]
    if unknown:
        raise ValueError(f"stages: {type(own).__name__} has no module {unknown[0]!r}")
    kept: dict[str, Tensor] = {}
    found: list[Tensor] = []

    def keep(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _inputs: object, output: Tensor) -> None:
            kept[name] = output

        return hook

    hooks = [modules[name].register_forward_hook(keep(name)) for name in names]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
    missing = [name for name in names if name not in kept]
    if missing:
        raise ValueError(
            f"stages: {type(own).__name__} did not run its module {missing[0]!r} (compiled networks hide it)"
        )
    found.extend(kept[name] for name in names)


def places(stage: torch.Size, what: str) -> tuple[int, int]:
    """Height and width of a stage's output.

    Raises:
        ValueError: It is not [B, C, H, W].
    """
    if len(stage) != 4:
        raise ValueError(f"stages: {what} must be [B, C, H, W], it is {tuple(stage)}")
    return stage[2], stage[3]
