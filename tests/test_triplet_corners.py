"""Corners of the triplet family that take a set of their own to be reached, small enough for the interpreter."""

import pytest
import torch

import amkd_fast as af
from amkd_fast import backends

OPERATION = "triplet"
pytestmark = pytest.mark.kernels


@pytest.mark.parametrize("k", [2, 3])
def test_ties_in_several_tiles_go_to_the_lowest_index(backend, device, k):
    reference = torch.full((130, 1), 2.0, device=device)
    reference[100] = 1.0  # drives one of the equals out again
    labels = torch.zeros(131, dtype=torch.int64, device=device)
    _, index = af.nearest_negatives(torch.zeros(1, 1, device=device), labels[:1] + 1, reference, labels[1:], k=k)
    assert index.tolist() == [[100, *range(k - 1)]]


def test_both_excluded_classes_are_left_out(backend, device):
    rows, classes = torch.tensor([[1.0], [2.0], [3.0]], device=device), torch.tensor([1, 2, 3], device=device)
    anchor, label = torch.zeros(1, 1, device=device), torch.tensor([0], device=device)
    _, index = af.nearest_negatives(anchor, label, rows, classes, exclude_labels=classes[None, :2])
    assert index.tolist() == [[2]]


@pytest.mark.parametrize("soft_margin", [False, True])
def test_swap_has_the_gradient_of_the_specification(backend, device, soft_margin):
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randn(n, 4, dtype=torch.float64, generator=generator).to(device) for n in (9, 9, 12)]
    labels, reference_labels = torch.arange(9, device=device) % 3, torch.arange(12, device=device) % 4
    found = []
    for name in (backend, "reference"):
        anchor, positive, reference = leaves = [x.clone().requires_grad_() for x in rows]
        more = {"positive": positive, "reference": reference, "reference_labels": reference_labels}
        with backends.backend(name):
            loss = af.triplet_margin_loss(anchor, labels, **more, swap=True, soft_margin=soft_margin, margin=3.0)
        found.append(torch.autograd.grad(loss, leaves))
    torch.testing.assert_close(found[0], found[1], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("positives", [3, 40, 200])  # on a CPU: one by one, ranks by counting, ranks by bisection
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_triplets_that_just_satisfy_the_margin_are_not_trained_on(backend, device, positives, dtype):
    rows = torch.tensor([[0.0], *[[1.0]] * positives, [2.0]], dtype=dtype, device=device)
    labels = torch.tensor([0] * (positives + 1) + [1], device=device)
    anchor = rows[:1].clone().requires_grad_()
    loss, statistics = af.triplet_margin_loss(
        anchor, labels[:1], reference=rows, reference_labels=labels, self_offset=0, margin=1.0, mining="all",
        reduction="sum", return_statistics=True,
    )  # fmt: skip
    loss.backward()
    assert loss == 0
    assert statistics.active == 0
    assert not anchor.grad.any()
