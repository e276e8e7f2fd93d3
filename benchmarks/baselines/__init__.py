"""What people use today: the contestants that ours are measured against, one module a family.

Each computes what its amkd_fast function computes with the arguments of the groups, and no more: no masks, no weights.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch

from benchmarks.contest import Contestant

# Distribution name → the modules that importing it needs.
LIBRARIES = {
    "liger-kernel": ("liger_kernel",),
    "pytorch-metric-learning": ("pytorch_metric_learning",),
    "sentence-transformers": ("sentence_transformers",),
    "pillow": ("PIL",),
    "torchattacks": ("torchattacks",),
    "adversarial-library": ("adv_lib", "tqdm"),
    "lightning": ("lightning",),  # for the steps on the digits
    "scikit-learn": ("sklearn",),
    "faiss": ("faiss",),
    "cuvs": ("cuvs",),
}
ON_A_GPU = ("liger-kernel", "cuvs")


def written(name: str, call: Callable[..., Any]) -> list[Contestant]:
    """A function in plain PyTorch: as it stands, and compiled in the two ways that users know.

    One compilation a shape: dynamic shapes would only make the compiled form slower. Without CUDA graphs, whose results
    the next call overwrites, so that no two backward passes could follow two forward ones.
    """
    compiled = partial(torch.compile, call, fullgraph=True, dynamic=False)
    forms = {"eager": call, "compile": compiled(), "max-autotune": compiled(mode="max-autotune-no-cudagraphs")}
    return [Contestant(f"{kind} {name}", form) for kind, form in forms.items()]


def there(library: str) -> bool:
    """Whether a library of :data:`LIBRARIES` can be imported."""
    return not _lacking(library)


def missing(device: str) -> dict[str, str]:
    """Libraries that belong into the comparison and are not in it, with the reason."""
    found = {name: f"not installed: {', '.join(_lacking(name))}" for name in LIBRARIES if _lacking(name)}
    for name in ON_A_GPU if device == "cpu" else ():
        reason = "its kernels need a GPU"
        found[name] = f"{found[name]}; {reason}" if name in found else reason
    return found


def _lacking(library: str) -> list[str]:
    return [module for module in LIBRARIES[library] if find_spec(module) is None]
