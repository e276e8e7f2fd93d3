"""The compiled operators `amkd_fast::kl_consistency_forward` and `kl_consistency_backward`."""

from __future__ import annotations

import torch

from amkd_fast.ops.kl.consistency import function

forward_op = torch.ops.amkd_fast.kl_consistency_forward.default
backward_op = torch.ops.amkd_fast.kl_consistency_backward.default
torch.library.register_fake("amkd_fast::kl_consistency_forward", function.fake_forward)
torch.library.register_fake("amkd_fast::kl_consistency_backward", function.fake_backward)
