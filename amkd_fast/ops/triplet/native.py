"""The compiled operators of the triplet family."""

import torch

from amkd_fast.ops.triplet.operators import fake_every_pair, registered

torch.library.register_fake("amkd_fast::triplet_every_pair", fake_every_pair)
cuda = registered()
cpu = cuda._replace(every_pair=torch.ops.amkd_fast.triplet_every_pair.default)
