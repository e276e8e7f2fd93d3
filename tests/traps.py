"""A mode in which nothing may ask the device for a number."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode

# What a CUDA tensor would have to be waited for: values on the host, and shapes that depend on values.
WAITING = {
    torch.ops.aten._local_scalar_dense.default,
    torch.ops.aten.equal.default,
    torch.ops.aten.is_nonzero.default,
    torch.ops.aten.nonzero.default,
    torch.ops.aten.masked_select.default,
    torch.ops.aten._unique2.default,
}


class NothingWaits(TorchDispatchMode):
    """Raises where a call would wait for a device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in WAITING:
            raise AssertionError(f"{func} waits for the device")
        if func is torch.ops.aten.index.Tensor and any(i is not None and i.dtype == torch.bool for i in args[1]):
            raise AssertionError(f"{func} with flags waits for the device")
        return func(*args, **(kwargs or {}))
