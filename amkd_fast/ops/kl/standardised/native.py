"""The compiled operators `amkd_fast::kl_standardised_forward` and `kl_standardised_backward`."""

from __future__ import annotations

import torch

from amkd_fast.ops.kl.standardised import function

forward_op = torch.ops.amkd_fast.kl_standardised_forward.default
backward_op = torch.ops.amkd_fast.kl_standardised_backward.default
torch.library.register_fake("amkd_fast::kl_standardised_forward", function.fake_forward)
torch.library.register_fake("amkd_fast::kl_standardised_backward", function.fake_backward)
