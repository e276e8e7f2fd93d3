"""Corners of the attack family that nothing else visits."""

import pytest
import torch
from test_capture import Rehearsed, Told, assert_same, make_net

import amkd_fast as af
from amkd_fast.attacks import PGD, capture
from amkd_fast.attacks.loop import random_start

OPERATION = "attack"
pytestmark = pytest.mark.kernels


@pytest.mark.parametrize(("step_size", "eps"), [(1e20, 8.0), (1e-20, 1e-19)])
def test_an_l2_ball_holds_at_any_scale(backend, device, step_size, eps):
    x0 = torch.zeros(1, 4, device=device)
    moved = af.attack_step(x0, torch.ones_like(x0), x0=x0, step_size=step_size, eps=eps, norm="l2")
    torch.testing.assert_close(moved.double().norm().item(), min(step_size, eps), rtol=1e-5, atol=0)


@pytest.mark.parametrize("at", [0, 1500, 2999])
def test_a_nan_anywhere_in_a_large_image_takes_its_particle_out(backend, device, at):
    x0 = torch.zeros(1, 3000, device=device)
    x = x0[:, None] + torch.linspace(-0.1, 0.1, 3, device=device)[:, None]
    x[0, 1, at] = torch.nan
    moved = af.svgd_step(x, torch.ones_like(x), x0, step_size=0.01, eps=0.5)
    assert torch.equal(moved[0, 1].nan_to_num(7.0), x[0, 1].nan_to_num(7.0))
    assert moved[0, ::2].isfinite().all()
    assert not torch.equal(moved[0, ::2], x[0, ::2])


@pytest.mark.parametrize(("norm", "order"), [("l2", 2), ("l1", 1)])
def test_starts_are_even_in_the_ball(norm, order):
    x = random_start(torch.zeros(4000, 3, dtype=torch.float64), 2.0, norm, torch.arange(4000), 0, 0)
    share = (torch.linalg.vector_norm(x, order, dim=1) / 2.0) ** 3  # of the volume
    assert abs(share.mean() - 0.5) < 0.02
    assert abs((share < 0.1).double().mean() - 0.1) < 0.02


def test_every_restart_starts_elsewhere():
    one, two = (random_start(torch.zeros(2, 5), 1.0, "linf", torch.arange(2), 0, restart) for restart in (0, 1))
    assert not torch.isclose(one, two).any()


def test_a_batch_of_another_shape_has_a_recording_of_its_own():
    net, labels = make_net(), torch.arange(4)
    attack = PGD(net, eps=0.1, steps=3)
    attack.capture, attack.graphs = True, capture.Graphs(Rehearsed, Told)
    for size in (6, 8):
        images = torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(size)).double()
        assert_same(attack(images, labels), PGD(net, eps=0.1, steps=3, capture=False)(images, labels))
