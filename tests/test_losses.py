"""The torch.nn modules, and AMKDLoss against its formula written out by hand."""

from __future__ import annotations

import doctest
import itertools

import pytest
import torch
import torch.nn.functional as F

import amkd_fast as af
from amkd_fast import losses
from amkd_fast.losses import Adversarial, AMKDLoss, DistillationLoss, KLDivLoss, TripletMarginLoss, amkd, kl, triplet
from amkd_fast.ops.kl import distillation_loss, kl_div
from amkd_fast.ops.triplet import triplet_margin_loss

B, M, K, D = 24, 9, 5, 7


@pytest.fixture
def batch():
    draws = torch.Generator().manual_seed(3)

    def normal(*shape):
        return torch.randn(*shape, generator=draws, dtype=torch.float64)

    def whole(high, *shape):
        return torch.randint(high, shape, generator=draws)

    student, teacher = normal(B, K).requires_grad_(), normal(B, K)
    labels = torch.arange(B) % K
    source = whole(B, M)
    base = labels[source]
    target = (base + 1 + whole(K - 1, M)) % K
    weight = torch.tensor([1, 1, 0, 1, 0, 1, 1, 1, 1], dtype=torch.float64)
    rows = Adversarial(
        normal(M, K).requires_grad_(), normal(M, K), base, target, source, weight, normal(M, D).requires_grad_()
    )
    return student, teacher, labels, rows, normal(B, D).requires_grad_()


def soft_kl(student, teacher, temperature):
    """Per row, without T²."""
    log_q, log_p = F.log_softmax(student / temperature, 1), F.log_softmax(teacher / temperature, 1)
    return (log_p.exp() * (log_p - log_q)).sum(1)


def triplet_by_hand(student, labels, rows, features, variant, negatives, space, margin, temperature):
    """Row by row, as docs/methods.md has it (AMKD); hardest selector, euclidean."""
    if space == "features":
        clean, attacked, taught = features, rows.student_features, None
    elif space == "probabilities":
        clean, attacked, taught = ((x / temperature).softmax(1) for x in (student, rows.student, rows.teacher))
    else:
        clean, attacked, taught = student, rows.student, rows.teacher
    total, weights = 0.0, 0.0
    for i in range(M):
        base, target = int(rows.base[i]), int(rows.target[i])
        wanted = {"other": lambda y: y not in (base, target), "not_base": lambda y: y != base}  # noqa: B023
        allowed = wanted.get(negatives, lambda y: y == target)  # noqa: B023
        pool = [j for j in range(B) if allowed(int(labels[j]))]
        anchor = taught[i].detach() if variant == "teacher_anchor" else attacked[i]
        if variant == "teacher_anchor":
            d_ap = (anchor - attacked[i]).norm()
        elif variant == "student_space":
            d_ap = (anchor - clean[rows.source[i]]).norm()
        else:
            d_ap = max((anchor - clean[j]).norm() for j in range(B) if int(labels[j]) == base)
        d_an = min((anchor - clean[j]).norm() for j in pool)
        total = total + rows.weight[i] * F.relu(d_ap - d_an + margin)
        weights += float(rows.weight[i])
    return total / weights


CASES = [
    case
    for case in itertools.product(losses.VARIANTS, losses.NEGATIVES, losses.SPACES)
    if not (case[0] == "teacher_anchor" and case[2] == "features")
]


@pytest.mark.parametrize(("variant", "negatives", "space"), CASES)
def test_amkd_is_its_formula(batch, variant, negatives, space):
    student, teacher, labels, rows, features = batch
    criterion = AMKDLoss(
        temperature=2.0,
        kl_weight=1.5,
        boundary_weight=0.8,
        triplet_weight=0.3,
        margin=2.0,
        variant=variant,
        negatives=negatives,
        space=space,
    )
    found = criterion(student, teacher, labels, rows, student_features=features)
    boundary = (rows.weight * soft_kl(rows.student, rows.teacher, 2.0)).sum() / rows.weight.sum()
    triplet = triplet_by_hand(student, labels, rows, features, variant, negatives, space, 2.0, 2.0)
    clean = F.cross_entropy(student, labels) + 1.5 * soft_kl(student, teacher, 2.0).mean()
    expected = clean + 0.8 * (boundary + 0.3 * triplet)
    torch.testing.assert_close(found.total, expected)
    torch.testing.assert_close(found.boundary, boundary)
    torch.testing.assert_close(found.triplet, triplet)
    leaves = [student, rows.student, rows.student_features, features]
    ours = torch.autograd.grad(found.total, leaves, allow_unused=True, materialize_grads=True)
    theirs = torch.autograd.grad(expected, leaves, allow_unused=True, materialize_grads=True)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("negatives", losses.NEGATIVES)
def test_uniform_draws_from_the_allowed_negatives_alone(batch, negatives):
    student, teacher, labels, rows, _ = batch
    criterion = AMKDLoss(selector="uniform", negatives=negatives, triplet_weight=1.0, margin=3.0)
    values = {round(float(criterion(student, teacher, labels, rows, seed=seed).triplet), 12) for seed in range(40)}
    assert len(values) > 20  # the seed decides
    again = criterion(student, teacher, labels, rows, seed=7).triplet
    assert torch.equal(again, criterion(student, teacher, labels, rows, seed=7).triplet)
    hardest = AMKDLoss(negatives=negatives, triplet_weight=1.0, margin=3.0)(student, teacher, labels, rows).triplet
    assert max(values) <= float(hardest) + 1e-12  # no negative is nearer than the nearest


def test_choosing_path_agrees_with_the_fused_one(batch):
    student, _, labels, rows, _ = batch
    for variant, selector in (("student_space", "hardest"), ("student_space", "semihard"), ("batch_hard", "hardest")):
        criterion = AMKDLoss(variant=variant, selector=selector, margin=2.0)
        fused = criterion._triplet(student, labels, rows, None, 0, False)
        positive = student[rows.source] if variant == "student_space" else None
        chosen = criterion._chosen(rows.student, positive, student, labels, rows, 0, False)
        torch.testing.assert_close(fused, chosen)


@pytest.fixture
def past():
    """Rows that are gone, and their classes."""
    rows = torch.randn(6, K, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
    return rows, torch.tensor([0, 1, 2, 3, 4, 0])


def remembering(past, size=10):
    memory = af.CrossBatchMemory(size, K, dtype=torch.float64)
    memory.update(*past)
    return memory


@pytest.mark.parametrize("selector", ["hardest", "semihard"])
@pytest.mark.parametrize("negatives", losses.NEGATIVES)
@pytest.mark.parametrize("variant", losses.VARIANTS)
def test_past_rows_are_negatives_and_nothing_else(batch, past, variant, negatives, selector):
    """Against the past rows appended to the clean batch by hand, for each anchor without those of its base class."""
    if variant == "batch_hard" and selector != "hardest":
        pytest.skip("batch_hard selects the hardest alone")
    student, teacher, labels, rows, _ = batch
    options = {"variant": variant, "negatives": negatives, "selector": selector, "margin": 3.0}
    memory = remembering(past)
    found = AMKDLoss(memory=memory, **options)(student, teacher, labels, rows)
    plain = AMKDLoss(**options)
    total, weights = torch.zeros((), dtype=torch.float64), 0.0
    for i in range(M):
        others = past[1] != rows.base[i]
        one = Adversarial(*(None if x is None else x[i : i + 1] for x in rows))._replace(weight=None)
        widened, classes = torch.cat([student, past[0][others]]), torch.cat([labels, past[1][others]])
        value = plain._triplet(widened, classes, one, None, 0, False)
        total = total + rows.weight[i] * value
        if selector == "hardest" or value > 0:  # a triplet that is semi-hard costs something
            weights += rows.weight[i]
    torch.testing.assert_close(found.triplet, total / weights)
    assert found.total.requires_grad
    latest = memory.embeddings[memory.embeddings[:, 0].argsort()]
    assert torch.equal(latest, student.detach()[-10:][student.detach()[-10:, 0].argsort()])  # the batch has gone in


def test_uniform_draws_from_past_rows_too(batch, past):
    student, teacher, labels, rows, _ = batch
    one = Adversarial(*(None if x is None else x[:1] for x in rows))
    options = {"variant": "student_space", "selector": "uniform", "negatives": "not_base", "margin": 9.0}
    allowed = [row for row, label in zip(*past, strict=True) if label != one.base[0]]
    near = (one.student[0] - student[one.source[0]]).norm()
    costs = torch.stack([near - (one.student[0] - row).norm() + 9.0 for row in allowed]).detach()
    drawn = torch.stack(
        [
            AMKDLoss(memory=remembering(past), **options)(student, teacher, labels, one, seed=s).triplet
            for s in range(99)
        ]
    )
    assert ((drawn[:, None] - costs).abs() < 1e-9).any(0).sum() >= len(allowed) - 1


def test_an_empty_memory_changes_nothing(batch):
    student, teacher, labels, rows, _ = batch
    for variant, negatives in itertools.product(losses.VARIANTS, losses.NEGATIVES):
        options = {"variant": variant, "negatives": negatives, "margin": 2.0}
        memory = af.CrossBatchMemory(8, K, dtype=torch.float64)
        found = AMKDLoss(memory=memory, **options)(student, teacher, labels, rows)
        torch.testing.assert_close(found.triplet, AMKDLoss(**options)(student, teacher, labels, rows).triplet)
    criterion = AMKDLoss(memory=memory)
    assert {"memory.embeddings", "memory.labels", "memory.cursor"} <= set(criterion.state_dict())
    with pytest.raises(TypeError, match="memory is a int"):
        AMKDLoss(memory=8)


def test_weights_may_be_tensors(batch):
    student, teacher, labels, rows, _ = batch
    criterion = AMKDLoss(margin=2.0)
    expected = criterion(student, teacher, labels, rows, kl_weight=1.7, boundary_weight=0.6, seed=3)
    alpha, beta = (torch.tensor(value, dtype=torch.float64) for value in (1.7, 0.6))
    found = criterion(student, teacher, labels, rows, kl_weight=alpha, boundary_weight=beta, seed=torch.tensor(3))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_rejected_rows_have_no_influence(batch):
    student, teacher, labels, rows, _ = batch
    criterion = AMKDLoss(margin=3.0)
    whole = criterion(student, teacher, labels, rows)
    kept = rows.weight > 0
    part = criterion(student, teacher, labels, Adversarial(*(x[kept] for x in rows)))
    for one, other in zip(whole, part, strict=True):
        torch.testing.assert_close(one, other)
    gradient = torch.autograd.grad(whole.total, rows.student)[0]
    assert not gradient[~kept].any()
    assert gradient[kept].any(1).all()


@pytest.mark.parametrize("selector", losses.SELECTORS)
def test_nothing_left_is_a_differentiable_zero(batch, selector):
    student, teacher, labels, rows, _ = batch
    rejected = rows._replace(weight=torch.zeros_like(rows.weight))
    loss = AMKDLoss(selector=selector)(student, teacher, labels, rejected)
    assert loss.boundary == 0
    assert loss.triplet == 0
    assert torch.isfinite(torch.autograd.grad(loss.total, student)[0]).all()
    only_base = torch.full_like(labels, int(rows.base[0]))  # no row of another class: no negatives
    alone = rows._replace(base=torch.full_like(rows.base, int(rows.base[0])))
    assert AMKDLoss(selector=selector)(student, teacher, only_base, alone).triplet == 0


def test_without_attacked_rows_it_is_distillation(batch):
    student, teacher, labels, rows, _ = batch
    plain = distillation_loss(
        student, teacher, labels, temperature=3.0, ce_weight=1.0, kl_weight=2.0, scale_by_t2=False
    )
    criterion = AMKDLoss(kl_weight=2.0)
    for loss in (
        criterion(student, teacher, labels),
        criterion(student, teacher, labels, rows, boundary_weight=0.0),
        criterion(student, teacher, labels, Adversarial(*(x[:0] for x in rows))),
    ):
        torch.testing.assert_close(loss.total, plain.total)
        assert loss.boundary == 0


def test_t2_scales_each_divergence_by_its_own_switch(batch):
    student, teacher, labels, rows, _ = batch
    plain = AMKDLoss(temperature=2.0)(student, teacher, labels, rows)
    clean = AMKDLoss(temperature=2.0, scale_by_t2=True)(student, teacher, labels, rows)
    boundary = AMKDLoss(temperature=2.0, boundary_scale_by_t2=True)(student, teacher, labels, rows)
    torch.testing.assert_close(clean.kl, 4.0 * plain.kl)
    torch.testing.assert_close(clean.boundary, plain.boundary)
    torch.testing.assert_close(boundary.boundary, 4.0 * plain.boundary)


def test_modules_are_their_functions(batch):
    student, teacher, labels, _, _ = batch
    weight = torch.rand(B, dtype=torch.float64)
    module = KLDivLoss(2.0, divergence="js", beta=0.3, reduction="mean")
    expected = kl_div(student, teacher, 2.0, divergence="js", beta=0.3, weight=weight, reduction="mean")
    assert torch.equal(module(student, teacher, weight), expected)
    found = DistillationLoss(2.0, ce_weight=0.4, kl_weight=0.6)(student, teacher, labels)
    assert torch.equal(
        found.total, distillation_loss(student, teacher, labels, temperature=2.0, ce_weight=0.4, kl_weight=0.6).total
    )
    module = TripletMarginLoss(0.5, mining="topk", distance="cosine", k=2)
    expected = triplet_margin_loss(student, labels, margin=0.5, mining="topk", distance="cosine", k=2)
    assert torch.equal(module(student, labels), expected)
    assert "margin=0.5" in repr(module)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"variant": "other"}, "variant='other'"),
        ({"negatives": "none"}, "negatives='none'"),
        ({"selector": "easy"}, "selector='easy'"),
        ({"space": "pixels"}, "space='pixels'"),
        ({"distance": "manhattan"}, "distance='manhattan'"),
        ({"temperature": 0.0}, "temperature=0.0"),
        ({"margin": -1.0}, "margin=-1.0"),
        ({"triplet_weight": float("nan")}, "triplet_weight=nan"),
        ({"variant": "teacher_anchor", "space": "features"}, "space='features'"),
        ({"variant": "batch_hard", "selector": "semihard"}, "selector='semihard'"),
    ],
)
def test_bad_arguments_are_named(arguments, words):
    with pytest.raises(ValueError, match=words):
        AMKDLoss(**arguments)


def test_features_must_be_given_for_their_space(batch):
    student, teacher, labels, rows, _ = batch
    with pytest.raises(ValueError, match="student_features"):
        AMKDLoss(variant="student_space", space="features")(student, teacher, labels, rows)


def test_examples_in_the_docstrings():
    for module in (kl, triplet, amkd):
        assert doctest.testmod(module).failed == 0
