"""The compiled operators `amkd_fast::kl_decoupled_forward` and `kl_decoupled_backward`."""

from __future__ import annotations

import torch

from amkd_fast.ops.kl.decoupled import function

forward_op = torch.ops.amkd_fast.kl_decoupled_forward.default
backward_op = torch.ops.amkd_fast.kl_decoupled_backward.default
torch.library.register_fake("amkd_fast::kl_decoupled_forward", function.fake_forward)
torch.library.register_fake("amkd_fast::kl_decoupled_backward", function.fake_backward)
