"""A trained network from its checkpoint, for whoever wants predictions."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from amkd_fast.distill.student import Student


def load_student(path: str | os.PathLike[str], *, network: str = "") -> Student:
    """The network of a checkpoint of ``amkd-distill`` (a student's or a teacher's), ready to predict.

    No code of the file is executed: it holds tensors and plain values.

    Args:
        path: A .ckpt: best.ckpt or last.ckpt of ``train``, one of ``compare``'s students, or a teacher.ckpt.
        network: ``module:factory`` or ``timm:NAME`` where the checkpoint names such a network: building it runs code
            that is not ours, which a file alone must not decide.

    Returns:
        The network in eval mode on the CPU. It takes pixels [B, C, H, W] in [0, 1], normalises them itself and returns
        logits [B, K]; its attribute ``classes`` has the K names, ``shape`` the [C, H, W] that it was trained with.

    Raises:
        FileNotFoundError: There is no such file.
        ImportError: pydantic, which looks through the checkpoint, is not installed.
        ValueError: The file is damaged or no such checkpoint, or names a network that ``network`` does not allow.

    Example:
        >>> import tempfile, torch, amkd_fast
        >>> from amkd_fast.distill import checkpoint, networks
        >>> from amkd_fast.distill.networks.normalised import Normalised
        >>> spec = networks.Spec("small-4-1", channels=1, classes=2)
        >>> network = Normalised(networks.build(spec, seed=0), mean=[0.5], std=0.25)
        >>> about = {"method": "kd", "classes": ["cat", "dog"], "settings": {}}
        >>> with tempfile.NamedTemporaryFile(suffix=".ckpt") as file:  # as a training writes it
        ...     checkpoint.save_network(file.name, network, spec, about)
        ...     student = amkd_fast.load_student(file.name)
        >>> probabilities = student(torch.rand(5, *student.shape)).softmax(1)
        >>> names = [student.classes[number] for number in probabilities.argmax(1)]
        >>> probabilities.shape, set(names) <= {"cat", "dog"}
        (torch.Size([5, 2]), True)
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    try:
        from amkd_fast.distill.errors import UserError
        from amkd_fast.distill.student import load
    except ModuleNotFoundError as error:
        if error.name != "pydantic":
            raise
        raise ImportError("load_student needs pydantic: run `pip install pydantic`, or amkd_fast[train]") from error
    try:
        return load(path, network, "network =")
    except UserError as error:
        raise ValueError(str(error)) from error
