"""The compiled operators `amkd_fast::kl_forward` and `kl_backward`."""

from __future__ import annotations

import torch

from amkd_fast.ops.kl import fake

forward_op = torch.ops.amkd_fast.kl_forward.default
backward_op = torch.ops.amkd_fast.kl_backward.default
torch.library.register_fake("amkd_fast::kl_forward", fake.fake_forward)
torch.library.register_fake("amkd_fast::kl_backward", fake.fake_backward)
