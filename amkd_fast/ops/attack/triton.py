"""The operators `amkd_fast::attack_*_triton`: what amkd_fast/ops/schemas.py declares for the attack family, in Triton.

Launches: 1 each; attack_bases 3 for a large batch.
"""

from __future__ import annotations

import torch

from amkd_fast import backends
from amkd_fast.ops.attack.operators import NAMES, registered
from amkd_fast.ops.attack.triton_rows import launch_bases, launch_draw, launch_objective
from amkd_fast.ops.attack.triton_step import launch_step

_SCHEMAS = (
    "(Tensor(a!) out, Tensor x, Tensor grad, Tensor? x0, Tensor? step_sizes, Tensor? radii, Tensor? gap, "
    "Tensor(b!)? velocity, Tensor? lowers, Tensor? uppers, Tensor? active, int rule, float step_size, float radius, "
    "float lower, float upper, float decay, bool project, int top) -> ()",
    "(Tensor logits, Tensor labels, Tensor? target, int loss, bool softmax, bool targeted) "
    "-> (Tensor value, Tensor grad_logits, Tensor prediction, Tensor active)",
    "(Tensor student, Tensor teacher, Tensor labels, int limit, Tensor? seeds, int seed) "
    "-> (Tensor index, Tensor base, Tensor target, Tensor valid)",
    "(Tensor logits, Tensor base, Tensor? rows, Tensor? seeds, int seed) -> Tensor",
)
_LAUNCHERS = (launch_step, launch_objective, launch_bases, launch_draw)

_library = torch.library.Library("amkd_fast", "FRAGMENT")
for _name, _schema, _launcher in zip(NAMES, _SCHEMAS, _LAUNCHERS, strict=True):
    _library.define(f"{_name}_triton{_schema}")
    for _key in ("CUDA", "CPU") if backends.INTERPRETING else ("CUDA",):
        _library.impl(f"{_name}_triton", _launcher, _key)
operators = registered("_triton")
