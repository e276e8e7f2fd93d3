"""A stand-in for a CUDA graph on a CPU: the operators of one run, called again on the tensors of that run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

# What a GPU would have to be waited for: values on the host, and shapes that depend on values.
WAITING = {
    torch.ops.aten._local_scalar_dense.default,
    torch.ops.aten.equal.default,
    torch.ops.aten.is_nonzero.default,
    torch.ops.aten.masked_select.default,
    torch.ops.aten.nonzero.default,
    torch.ops.aten._unique2.default,
}


class NoWaiting(TorchDispatchMode):
    """Raises where a call would wait for a GPU, but for a copy to it or from it, which a CPU cannot show."""

    def __torch_dispatch__(self, operator, types, arguments=(), options=None):
        flags = operator is torch.ops.aten.index.Tensor and any(
            part is not None and part.dtype == torch.bool for part in arguments[1]
        )
        if operator in WAITING or flags:
            raise RuntimeError(f"{operator} waits for the device")
        return self.called(operator, arguments, options or {})

    def called(self, operator: Any, arguments: tuple, options: dict) -> Any:
        return operator(*arguments, **options)


class Tape:
    """Takes the place of :class:`amkd_fast.attacks.capture.CudaGraph`: a number, and an address, stays what it was.

    A second call of the function would look at everything anew. This shows where a step would go on for ever with the
    learning rate, the seed or the copy of weights that it was recorded with.
    """

    def __init__(self, function: Callable[[], None]) -> None:
        for _ in range(2):  # to warm up
            function()
        recorder = _Recorder()
        with recorder:
            function()
        self._calls = recorder.calls

    @torch.no_grad()
    def replay(self) -> None:
        with torch.autocast("cpu", enabled=False):  # the casts have been recorded
            for operator, arguments, options, results in self._calls:
                again = pytree.tree_leaves(operator(*arguments, **options))
                for old, new in zip(results, again, strict=True):
                    if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():  # neither a view nor in place
                        old.copy_(new)


class _Recorder(NoWaiting):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple, dict, list]] = []

    def called(self, operator: Any, arguments: tuple, options: dict) -> Any:
        result = operator(*arguments, **options)
        self.calls.append((operator, arguments, options, pytree.tree_leaves(result)))
        return result
