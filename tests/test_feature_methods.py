"""The methods that compare features against their formulas, written out in plain PyTorch, in fp64; what they keep."""

from __future__ import annotations

import copy
import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from amkd_fast.distill.adapters import MDistillerMethod
from amkd_fast.distill.networks import Spec, build
from amkd_fast.methods import AT, CRD, SP, Batch, FitNet, ReviewKD, Rising, StepContext
from amkd_fast.methods.reviewkd import hierarchical_context_loss

B, K, N = 6, 3, 40
NOW = StepContext(epoch=4, epochs=60, draw=5)
LABELS = torch.arange(N) % K


@pytest.fixture
def case():
    """A batch, and two networks of other widths and depths in fp64."""
    images = torch.rand(B, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    teacher = build(Spec("small-4-1", 3, K), 1).double().eval()
    student = build(Spec("small-2-2", 3, K), 2).double().eval()
    index = torch.arange(B) * 5
    return Batch(images, LABELS[index], index), teacher, student


class Layers(nn.Module):
    """Stages of given image sizes, as torchvision names them."""

    def __init__(self, *sizes, width=3):
        super().__init__()
        self.sizes = sizes
        for place in range(1, len(sizes) + 1):
            setattr(self, f"layer{place}", nn.Conv2d(3 if place == 1 else width, width, 1))
        self.fc = nn.Linear(width, K)

    def forward(self, x):
        for place, size in enumerate(self.sizes, 1):
            x = getattr(self, f"layer{place}")(F.adaptive_avg_pool2d(x, size))
        return self.fc(x.mean((2, 3)))


def stage_outputs(network, images):
    """Of the three stages; the features; the logits."""
    found, x = [], F.relu(network.bn(network.conv(images)))
    for block in network.stages:
        x = block(x)
        found.append(x)
    count = len(found) // 3
    features = x.mean((2, 3))
    return found[count - 1 :: count], features, network.head(features)


def both(case):
    batch, teacher, student = case
    with torch.no_grad():
        theirs = stage_outputs(teacher, batch.images)
    mine = stage_outputs(student, batch.images)
    return mine, theirs, F.cross_entropy(mine[2], batch.labels)


def gradients(loss, *modules):
    parameters = [part for module in modules for part in module.parameters()]
    found = torch.autograd.grad(loss, parameters, retain_graph=True)
    return torch.cat([grad.flatten() for grad in found])


def assert_same(method, expected, case):
    """Value, and gradients in the student and in what the method trains."""
    batch, teacher, student = case
    found = method(batch, teacher, student, NOW)
    torch.testing.assert_close(found.total, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(
        gradients(found.total, student, method), gradients(expected, student, method), rtol=1e-8, atol=1e-10
    )
    assert found.total.dtype == torch.float64


def prepared(method, case):
    batch, teacher, student = case
    torch.manual_seed(0)
    method.prepare(batch.images, teacher, student)
    return method


@pytest.mark.parametrize("relu", [True, False])
def test_fitnet(case, relu):
    method = prepared(FitNet(ce_weight=0.5, hint_weight=10.0, relu=relu), case)
    mine, theirs, ce = both(case)
    convolution, norm = method.regressor[:2]
    x = F.batch_norm(F.conv2d(mine[0][1], convolution.weight), None, None, norm.weight, norm.bias, training=True)
    x = x.clamp(min=0.0) if relu else x
    assert_same(method, 0.5 * ce + 10.0 * (x - theirs[0][1]).square().mean(), case)


@pytest.mark.parametrize(
    ("size", "hint", "kernel", "stride"), [(8, 4, 3, 2), (4, 8, 4, 2), (5, 5, 1, 1), (7, 4, 4, 1), (1, 2, 4, 2)]
)
def test_regressors_bring_a_stage_to_the_size_of_the_hint(case, size, hint, kernel, stride):
    batch, _, _ = case
    teacher, student = Layers(8, hint, width=5).double().eval(), Layers(6, size).double()
    teacher.layer1.weight.data.mul_(2.0)
    method = prepared(FitNet(student_stages=["layer2"], teacher_stages=["layer2"]), (batch, teacher, student))
    convolution = method.regressor[0]
    assert (convolution.kernel_size, convolution.stride) == ((kernel, kernel), (stride, stride))
    losses = method(batch, teacher, student, NOW)
    losses.total.backward()
    assert losses.total.isfinite()
    assert student.layer2.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("power", [2.0, 1.0, 4.0])
def test_at(case, power):
    mine, theirs, ce = both(case)

    def attention(output):
        rows = output.abs().pow(power).sum(1).flatten(1)
        return rows / rows.norm(dim=1, keepdim=True)

    terms = [(attention(a) - attention(b)).square().mean() for a, b in zip(mine[0], theirs[0], strict=True)]
    assert_same(AT(attention_weight=20.0, power=power), ce + 20.0 * sum(terms), case)


def test_attention_of_other_sizes_is_that_of_the_smaller_one(case):
    batch, _, _ = case
    teacher, student = Layers(8, (2, 6)).double().eval(), Layers(4, (4, 3)).double()
    kept = {}
    for name, network in (("teacher", teacher), ("student", student)):
        for layer in ("layer1", "layer2"):
            getattr(network, layer).register_forward_hook(
                lambda _, __, output, key=(name, layer): kept.update({key: output})
            )
    found = AT()(batch, teacher, student, NOW).parts["attention"]
    expected = 0.0
    for layer, size in (("layer1", 4), ("layer2", (2, 3))):
        maps = [
            F.adaptive_avg_pool2d(kept[name, layer], size).square().sum(1).flatten(1) for name in ("student", "teacher")
        ]
        maps = [rows / rows.norm(dim=1, keepdim=True) for rows in maps]
        expected = expected + F.mse_loss(*maps)
    torch.testing.assert_close(found, expected.detach())


def test_sp(case):
    mine, theirs, ce = both(case)

    def similarities(output):
        rows = output.flatten(1)
        gram = torch.einsum("id,jd->ij", rows, rows)
        return gram / gram.norm(dim=1, keepdim=True)

    expected = (similarities(mine[0][2]) - similarities(theirs[0][2])).square().sum() / B**2
    assert_same(SP(similarity_weight=30.0), ce + 30.0 * expected, case)
    names = {"student_stages": ["stages.1", "stages.5"], "teacher_stages": ["stages.0", "stages.2"]}
    expected = expected + (similarities(mine[0][0]) - similarities(theirs[0][0])).square().sum() / B**2
    assert_same(SP(similarity_weight=30.0, **names), ce + 30.0 * expected, case)


def test_reviewkd(case):
    method = prepared(ReviewKD(review_weight=Rising(2.0, 20)), case)  # in the fifth epoch 0.5
    mine, theirs, ce = both(case)

    def norm(layer, x):
        return F.batch_norm(x, None, None, layer.weight, layer.bias, training=True)

    behind, total = None, 0.0
    for fusion, x, wanted in reversed(
        list(
            zip(
                method.fusions,
                [*mine[0], mine[1][:, :, None, None]],
                [*theirs[0], theirs[1][:, :, None, None]],
                strict=True,
            )
        )
    ):
        x = norm(fusion.enter[1], F.conv2d(x, fusion.enter[0].weight))
        if behind is not None:
            times = x.shape[2] // behind.shape[2]
            behind = behind.repeat_interleave(times, 2).repeat_interleave(times, 3)
            a = F.conv2d(torch.cat([x, behind], 1), fusion.attention[0].weight, fusion.attention[0].bias)
            a = 1 / (1 + (-a).exp())
            x = x * a[:, :1] + behind * a[:, 1:]
        behind = x
        out = norm(fusion.leave[1], F.conv2d(x, fusion.leave[0].weight, padding=1))
        side, terms, weights = wanted.shape[2], [(out - wanted).square().mean()], [1.0]
        for pooled in [small for small in (4, 2, 1) if small < side]:
            a, b = (F.avg_pool2d(y, side // pooled) for y in (out, wanted))
            terms.append((a - b).square().mean())
            weights.append(weights[-1] / 2)
        total = total + sum(w * t for w, t in zip(weights, terms, strict=True)) / sum(weights)
    assert_same(method, ce + 0.5 * total, case)
    assert method.fusions[0].enter[0].out_channels == 8  # the student's features


def test_review_of_other_sizes(case):
    batch, _, _ = case
    teacher, student = Layers(8, 3, width=4).double().eval(), Layers((6, 4), 4).double()
    method = prepared(ReviewKD(), (batch, teacher, student))
    losses = method(batch, teacher, student, NOW)
    losses.total.backward()
    assert losses.total.isfinite()
    assert all(part.grad.isfinite().all() for part in method.parameters())
    assert hierarchical_context_loss([torch.ones(2, 3, 1, 1)], [torch.zeros(2, 3, 1, 1)]) == 1.0


def crd(**more):
    return CRD(LABELS, **{"negatives": 16, "features": 8, "temperature": 0.3, **more})


def crd_by_hand(method, memories, constants, case):
    """L_s + L_t row by row, the memories after it, and the constants that a first step would set."""
    batch = case[0]
    mine, theirs, ce = both(case)
    rows = [
        F.normalize(layer(x))
        for layer, x in ((method.student_projection, mine[1]), (method.teacher_projection, theirs[1]))
    ]
    negatives = method._drawn(batch.index, NOW)
    total, found, after = 0.0, [], []
    for place in (0, 1):
        other = memories[1 - place]
        h = torch.stack(
            [
                torch.stack(
                    [(rows[place][i] @ other[k] / method.temperature).exp() for k in [batch.index[i], *negatives[i]]]
                )
                for i in range(B)
            ]
        )
        found.append(h.mean().item() * N)
        h = h / (constants[place] if constants else found[place])
        c = negatives.shape[1] / N
        total = total - ((h[:, 0] / (h[:, 0] + c)).log().sum() + (c / (h[:, 1:] + c)).log().sum()) / B
        memory = memories[place].clone()
        for i, row in zip(batch.index, rows[place], strict=True):
            mixed = 0.5 * memory[i] + 0.5 * row.detach()
            memory[i] = mixed / mixed.norm()
        after.append(memory)
    return ce + method.contrast_weight * total, after, constants or found


def test_crd(case):
    method, constants = prepared(crd(), case), None
    for _ in range(2):  # the constants are the first step's, the second's memories its results
        before = [method.student_memory.clone(), method.teacher_memory.clone()]
        expected, after, constants = crd_by_hand(method, before, constants, case)
        assert_same(method, expected, case)
        torch.testing.assert_close(method.log_constants.exp().tolist(), constants)
        for memory, values in zip((method.student_memory, method.teacher_memory), after, strict=True):
            torch.testing.assert_close(memory, values)


def test_a_large_memory_is_read_row_by_row(case, monkeypatch):
    one, other = (prepared(crd(), case) for _ in range(2))
    batch, teacher, student = case
    expected = one(batch, teacher, student, NOW).total
    monkeypatch.setattr("amkd_fast.methods.crd._DENSE", 0)
    found = other(batch, teacher, student, NOW).total
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradients(found, student, other), gradients(expected, student, one))


def test_negatives_are_of_other_classes_and_of_all_of_them():
    labels = torch.tensor([7, 7, 7, 2, 2, 9])
    method = CRD(labels, negatives=6)
    index = torch.arange(6)
    draws = torch.stack([method._drawn(index, NOW._replace(draw=draw)) for draw in range(500)], 1).flatten(1)
    for row, label in enumerate(labels):
        others = (labels != label).nonzero()[:, 0].tolist()
        counts = draws[row].bincount(minlength=6)
        assert counts[others].sum() == 3000
        expected = 3000 / len(others)
        assert (counts[others] - expected).abs().max() < 5 * math.sqrt(expected)  # five sigma
    assert torch.equal(method._drawn(index, NOW), method._drawn(index, NOW))
    assert CRD(labels).negatives == 6


def test_gradients_of_the_contrast_are_not_differentiated_twice(case):
    batch, teacher, student = case
    loss = prepared(crd(ce_weight=0.0), case)(batch, teacher, student, NOW).total
    with pytest.raises(RuntimeError, match="CRD: has no second derivatives"):
        torch.autograd.grad(loss, student.conv.weight, create_graph=True)


@pytest.mark.parametrize("make", [FitNet, ReviewKD, crd], ids=["fitnet", "reviewkd", "crd"])
def test_what_a_method_learns_and_remembers_goes_on_from_its_state(case, make):
    """A single image too, of which torch's BatchNorm makes nothing."""
    batch, teacher, student = case
    small = Batch(*(part[:1] for part in batch[:3]))

    def step(method, network, batch):
        optimizer = torch.optim.SGD([*network.parameters(), *method.parameters()], lr=0.01)
        optimizer.zero_grad()
        method(batch, teacher, network, NOW).total.backward()
        optimizer.step()

    method = prepared(make(), case)
    step(method, student, batch)
    other, again = copy.deepcopy(student), make()
    again.prepare(batch.images, teacher, other)
    again.load_state_dict(method.state_dict())
    for one, network in ((method, student), (again, other)):
        step(one, network, batch)
        step(one, network, small)
    for one, two in ((method, again), (student, other)):
        assert all(torch.equal(value, two.state_dict()[name]) for name, value in one.state_dict().items())


@pytest.mark.parametrize(
    ("make", "lr"),
    [(FitNet, 0.002), (AT, 0.002), (SP, 0.002), (ReviewKD, 0.01), (crd, 0.1)],
    ids=["fitnet", "at", "sp", "reviewkd", "crd"],
)
def test_a_student_learns(case, make, lr):
    batch, teacher, student = case
    method = prepared(make(), case)
    optimizer = torch.optim.SGD([*student.train().parameters(), *method.parameters()], lr=lr)
    values = []
    for step in range(8):
        losses = method(batch, teacher, student, NOW._replace(draw=step))
        optimizer.zero_grad()
        losses.total.backward()
        optimizer.step()
        values.append(losses.total.item())
    assert values[-1] < values[1]  # the first step meets memories of noise


@pytest.mark.parametrize("make", [SP, FitNet, crd], ids=["sp", "fitnet", "crd"])
def test_as_a_distiller_of_mdistiller(case, make):
    batch, teacher, student = case
    distiller = MDistillerMethod(student, teacher, prepared(make(), case) if make is crd else make(), epochs=60).train()
    expected = copy.deepcopy(student)(batch.images)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # FitNet is not prepared
        logits, losses = distiller(image=batch.images, target=batch.labels, index=batch.index, epoch=1)
    torch.testing.assert_close(logits, expected)
    assert losses["loss"].requires_grad
    assert student.training
    assert not teacher.training


def test_layers_that_come_late_are_told_of(case):
    batch, teacher, student = case
    for make, words in ((FitNet, "its regressor"), (ReviewKD, "its fusions"), (crd, "its projections")):
        with pytest.warns(RuntimeWarning, match=f"made {words} in its first call"):
            make()(batch, teacher, student, NOW)


@pytest.mark.parametrize(
    ("make", "student", "teacher", "words"),
    [
        (FitNet(stage=4), Layers(8, 4), Layers(8, 4), r"stage=4: must be at most 2, the student has stages \['layer1"),
        (FitNet(), Layers(8, 3), Layers(8, 5), "3 × 3 places must not be smaller than the teacher's of 5 × 5"),
        (FitNet(student_stages=["fc"]), Layers(8, 3), Layers(8, 5), r"the student's stage must be \[B, C, H, W\]"),
        (AT(), Layers(8, 4), Layers(8, 4, 2), "must be as many as teacher_stages"),
        (AT(), Layers(8, 1), Layers(8, 4), "must have more than one place"),
        (AT(), nn.Sequential(nn.Flatten(), nn.Linear(192, K)), Layers(8), r"without modules stages\.0"),
        (AT(student_stages=["layer9"]), Layers(8), Layers(8), "has no module 'layer9'"),
        (ReviewKD(teacher_stages=["fc"]), Layers(8), Layers(8), r"the teacher's stage must be \[B, C, H, W\]"),
        (crd(), nn.Conv2d(3, K, 1), Layers(8), r"features: .* must have a torch.nn.Linear"),
    ],
)
def test_networks_that_cannot_be_compared(case, make, student, teacher, words):
    batch, _, _ = case
    with pytest.raises(ValueError, match=words):
        make(batch, teacher.double().eval(), student.double(), NOW)


def test_crd_needs_to_know_the_images(case):
    batch, teacher, student = case
    with pytest.raises(ValueError, match=r"batch\.index=None: must be int64"):
        crd()(batch._replace(index=None), teacher, student, NOW)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: FitNet(hint_weight=-1.0), "hint_weight=-1.0"),
        (lambda: FitNet(stage=0), "stage=0: must be at least 1"),
        (lambda: FitNet(teacher_stages=["a", "b"]), "must be one name"),
        (lambda: AT(power=0.5), "power=0.5: must be at least 1"),
        (lambda: AT(attention_weight=math.inf), "attention_weight=inf"),
        (lambda: SP(similarity_weight=-1.0), "similarity_weight=-1.0"),
        (lambda: ReviewKD(review_weight=-1.0), "review_weight=-1.0"),
        (lambda: crd(temperature=0.0), "temperature=0.0"),
        (lambda: crd(negatives=0), "negatives=0"),
        (lambda: crd(features=0), "features=0"),
        (lambda: crd(momentum=1.0), "momentum=1.0: must be below 1"),
        (lambda: CRD(torch.zeros(5).long()), "must have at least two classes"),
        (lambda: CRD(torch.zeros(5, 2).long()), r"must be \[N\]"),
    ],
)
def test_bad_arguments_are_named(make, words):
    with pytest.raises(ValueError, match=words):
        make()
    with pytest.raises(TypeError, match=r"labels\.dtype"):
        CRD(torch.zeros(5))
