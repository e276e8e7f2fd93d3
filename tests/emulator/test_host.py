"""What operators do on a device that lacks something, which the emulator can be told.

They run with the operations' tests: ``python -m tests.emulator test tests/emulator/test_host.py``.
"""

from __future__ import annotations

import pytest
import torch

import amkd_fast as af
from amkd_fast import backends

pytestmark = pytest.mark.skipif(not backends.EMULATED, reason="AMKD_FAST_EMULATE is not set: there is no emulator")


@pytest.mark.parametrize("together", ["1", "1000"])
def test_triplet_terms_need_no_room_for_more_than_a_block(backend, together, monkeypatch):
    """Under MPS or in a green context a cooperative launch of as many blocks as multiprocessors is refused."""
    monkeypatch.setenv("AMKD_EMULATE_TOGETHER", together)
    anchor, labels = torch.randn(1500, 64), torch.arange(1500) % 40
    found = af.triplet_margin_loss(anchor, labels)
    with backends.backend("reference"):
        expected = af.triplet_margin_loss(anchor.double(), labels)
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("together", ["1", "1000"])
def test_attack_step_needs_no_room_for_a_cluster(backend, together, monkeypatch):
    """A part of a device may have fewer multiprocessors than the blocks that share a sample."""
    monkeypatch.setenv("AMKD_EMULATE_TOGETHER", together)
    x, grad = torch.rand(2, 40_000), torch.randn(2, 40_000)
    step = {"step_size": 0.5, "norm": "l2", "x0": x * 0.99, "eps": 1.0}
    found = af.attack_step(x, grad, **step)
    with backends.backend("reference"):
        expected = af.attack_step(x.double(), grad.double(), **{**step, "x0": step["x0"].double()})
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-6)
