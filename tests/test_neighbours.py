"""The neighbouring methods against their formulas, written out with plain PyTorch or plain Python, in fp64."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import amkd_fast as af
from amkd_fast.distill.networks import Spec, build
from amkd_fast.methods import CCD, DKD, MKD, RKD, TALD, Batch, ExtendedKD, LogitsOf, StepContext, TripletKD
from amkd_fast.methods.extended_kd import find_stages

B, K = 12, 4
NOW = StepContext(epoch=4, epochs=60, draw=5)
MEAN, STD = (0.5, 0.4, 0.6), (0.5, 0.3, 0.4)


@pytest.fixture
def case():
    """A batch of pixels in [0, 1], normalised; a teacher and a student without BatchNorm's ties among rows."""
    draws = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (B, 3, 8, 8), generator=draws) / 255.0
    images = ((pixels.double() - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)).double()
    teacher = build(Spec("small-4-1", 3, K), 1).double().eval()
    student = build(Spec("small-2-2", 3, K), 2).double().eval()
    return Batch(images, torch.arange(B) % 3), teacher, student


def answers(network, images):
    with torch.no_grad():
        return network(images)


def gradients(loss, network):
    network.zero_grad()
    loss.backward()
    return torch.cat([part.grad.flatten() for part in network.parameters()])


def assert_same(method, expected, case):
    """Value and gradients of a method and of a formula of the student."""
    batch, teacher, student = case
    found = method(batch, teacher, student, NOW)
    torch.testing.assert_close(found.total, expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(gradients(found.total, student), gradients(expected, student), rtol=1e-7, atol=1e-10)
    return found


def kl(student, teacher, temperature):
    p, q = (F.softmax(logits / temperature, 1) for logits in (teacher, student))
    return (p * (p / q).log()).sum(1)


def test_dkd(case):
    batch, teacher, student = case
    z_t, z_s, own = answers(teacher, batch.images), student(batch.images), F.one_hot(batch.labels, K).bool()
    p, q = (F.softmax(logits / 4.0, 1) for logits in (z_t, z_s))
    p_own, q_own = p[own], q[own]
    target = p_own * (p_own / q_own).log() + (1 - p_own) * ((1 - p_own) / (1 - q_own)).log()
    p, q = (x[~own].view(B, K - 1) / (1 - x[own])[:, None] for x in (p, q))
    other = (p * (p / q).log()).sum(1)
    expected = F.cross_entropy(z_s, batch.labels) + 0.25 * (16.0 * (target + 8.0 * other)).mean()  # a fifth epoch of 20
    assert_same(DKD(), expected, case)


def test_rkd(case):
    batch, teacher, student = case

    def relations(x):
        apart = x[None] - x[:, None]  # [i, j]: from i to j
        length = torch.where(torch.eye(B, dtype=torch.bool), 1.0, apart.square().sum(-1)).sqrt() * (1 - torch.eye(B))
        unit = apart / (length + torch.eye(B))[..., None]
        return length / (length.sum() / (B * (B - 1))), torch.einsum("ijd,ikd->ijk", unit, unit)

    (d_t, a_t), (d_s, a_s) = relations(answers(teacher, batch.images)), relations(student(batch.images))
    ce = F.cross_entropy(student(batch.images), batch.labels)
    expected = ce + 25.0 * F.smooth_l1_loss(d_s, d_t) + 50.0 * F.smooth_l1_loss(a_s, a_t)
    assert_same(RKD(space="logits"), expected, case)


def test_rkd_compares_what_the_classifiers_see(case):
    batch, teacher, student = case
    z_s, mine = student(batch.images), student.embed(batch.images)
    with torch.no_grad():
        theirs = teacher.embed(batch.images)
    expected = F.cross_entropy(z_s, batch.labels) + 25.0 * af.rkd_distance_loss(mine, theirs)
    assert_same(RKD(angle_weight=0.0), expected, case)


@pytest.mark.parametrize("kl_weight", [0.0, 1.0])
def test_triplet_kd(case, kl_weight):
    batch, teacher, student = case
    z_t, z_s, labels = answers(teacher, batch.images), student(batch.images), batch.labels.tolist()
    terms = []
    for i in range(B):
        nearest = min(
            ((z_t[i] - z_s[j]).norm() for j in range(B) if labels[j] != labels[i]), key=lambda distance: distance.item()
        )
        terms.append(((z_t[i] - z_s[i]).norm() - nearest + 5.0).clamp(min=0.0))
    expected = (
        F.cross_entropy(z_s, batch.labels) + 2.0 * torch.stack(terms).mean() + kl_weight * kl(z_s, z_t, 1.0).mean()
    )
    found = assert_same(TripletKD(kl_weight=kl_weight), expected, case)
    assert set(found.parts) == {"ce", "triplet", *(["kl"] if kl_weight else [])}


def test_ccd(case):
    batch, teacher, student = case
    mean, std = (torch.tensor(numbers, dtype=torch.float64).view(3, 1, 1) for numbers in (MEAN, STD))
    levels = ((batch.images * std + mean) * 255.0).round().to(torch.uint8)
    other = (af.joint_augment(levels, probability=0.7, seed=NOW.draw).double() / 255.0 - mean) / std
    assert not torch.equal(other, batch.images)
    z_t, o_t = answers(teacher, batch.images), answers(teacher, other)
    z_s, o_s = student(batch.images), student(other)
    confidence = F.cosine_similarity(z_t, o_t) + 1.0
    soft = 16.0 * 0.5 * (kl(z_s, z_t, 4.0).mean() + (confidence * kl(o_s, o_t, 4.0)).mean())
    expected = 0.3 * F.cross_entropy(z_s, batch.labels) + 0.7 * soft
    assert_same(CCD(mean=MEAN, std=STD, probability=0.7, ce_weight=0.3), expected, case)


def test_ccd_without_augmentation_sees_the_same_image_twice(case):
    batch, teacher, student = case
    found = CCD(mean=MEAN, std=STD, probability=0.0)(batch, teacher, student, NOW)
    torch.testing.assert_close(found.parts["augmented"], 2.0 * found.parts["kl"])


def test_tald(case):
    batch, teacher, student = case
    method = TALD(eps=0.2, particles=3, steps=2, lower=-1.0, upper=1.0, temperature=2.0, particle_weight=0.5)
    batch = batch._replace(images=batch.images.clamp(-1.0, 1.0))
    samples = method._attack_of(teacher)(batch.images, batch.labels, seed=NOW.draw)
    assert samples.images.shape == (B, 3, 3, 8, 8)
    assert (samples.images - batch.images[:, None]).abs().max() <= 0.2 + 1e-12
    assert samples.images.abs().max() <= 1.0
    z_t, z_s = answers(teacher, batch.images), student(batch.images)
    around = samples.images.flatten(0, 1)
    pull = method.weights(NOW)["kl"]
    expected = F.cross_entropy(z_s, batch.labels) + pull * kl(z_s, z_t, 2.0).mean()
    expected = expected + 0.5 * kl(student(around), answers(teacher, around), 2.0).mean()
    assert_same(method, expected, (batch, teacher, student))


def test_mkd(case):
    batch, teacher, student = case
    method = MKD(ce_weight=0.5)
    mixed = method._mixed(batch, NOW.draw)
    assert 0.0 <= mixed.share.min() < 0.5 < mixed.share.max() < 1.0

    # Every image is the partner of one image.
    rest = [
        (mixed.images[i] - mixed.share[i].double() * batch.images[i]) / (1 - mixed.share[i].double()) for i in range(B)
    ]
    partners = [min(range(B), key=lambda j, i=i: (rest[i] - batch.images[j]).abs().max().item()) for i in range(B)]
    assert sorted(partners) == list(range(B))
    assert batch.labels[partners].tolist() == mixed.labels.tolist()

    z_t, z_s = answers(teacher, mixed.images), student(mixed.images)
    standard = [logits / logits.std(1, keepdim=True) for logits in (z_s, z_t)]
    ce = mixed.share * F.cross_entropy(z_s, batch.labels, reduction="none")
    ce = ce + (1.0 - mixed.share) * F.cross_entropy(z_s, mixed.labels, reduction="none")
    assert_same(method, kl(*standard, 1.0).mean() + 0.5 * ce.mean(), case)
    assert set(MKD()(batch, teacher, student, NOW).parts) == {"kl"}


def test_mixtures_follow_the_seed(case):
    batch, _, _ = case
    one, same, other = (MKD()._mixed(batch, seed).images for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def stage_outputs(network, images):
    found, x = [], F.relu(network.bn(network.conv(images)))
    for block in network.stages:
        x = block(x)
        found.append(x)
    return found, network.head(x.mean((2, 3)))


def test_extended_kd(case):
    batch, teacher, student = case
    method = ExtendedKD(logit_weight=0.5, segment_weight=2.0, ce_weight=0.25)
    method.prepare(batch.images, teacher, student)
    assert [type(part) for part in method.projections] == [nn.Conv2d] * 3
    mine, z_s = stage_outputs(student, batch.images)
    with torch.no_grad():
        theirs, z_t = stage_outputs(teacher, batch.images)
    mine = mine[1::2]  # two blocks a stage
    terms = [F.mse_loss(project(a), b) for project, a, b in zip(method.projections, mine, theirs, strict=True)]
    expected = 0.5 * F.mse_loss(z_s, z_t) + 2.0 * sum(terms) + 0.25 * F.cross_entropy(z_s, batch.labels)
    assert_same(method, expected, case)
    assert all(parameter.grad.abs().sum() > 0 for parameter in method.parameters())


def test_preparing_changes_nothing_and_happens_once(case):
    batch, teacher, student = case
    student.train()
    before = copy.deepcopy(student.state_dict())
    method = ExtendedKD()
    method.prepare(batch.images, teacher, student)
    weights = [part.weight for part in method.projections]
    method.prepare(batch.images, teacher, student)
    method(batch, teacher, student.eval(), NOW)
    assert all(one is other.weight for one, other in zip(weights, method.projections, strict=True))
    assert all(torch.equal(before[name], value) for name, value in student.state_dict().items())


class Layers(nn.Module):
    """Stages as torchvision names them, of another number, shape and size."""

    def __init__(self, sizes):
        super().__init__()
        self.sizes = sizes
        for place in range(1, len(sizes) + 1):
            setattr(self, f"layer{place}", nn.Conv2d(3, 3, 1))
        self.fc = nn.Linear(3, K)

    def forward(self, x):
        for place, size in enumerate(self.sizes, 1):
            x = getattr(self, f"layer{place}")(F.adaptive_avg_pool2d(x, size))
        return self.fc(x.mean((2, 3)))


def test_stages_of_other_networks(case):
    batch, teacher, student = case
    assert find_stages(teacher, batch.images) == ["stages.0", "stages.1", "stages.2"]
    assert find_stages(student, batch.images) == ["stages.1", "stages.3", "stages.5"]
    other = Layers((6, 6, 3, 2)).double()
    assert find_stages(other, batch.images) == ["layer2", "layer3", "layer4"]
    with pytest.warns(RuntimeWarning, match="made its projections in its first call"):
        found = ExtendedKD()(batch, teacher, other, NOW)  # 6 × 6 and 3 × 3 against 8 × 8 and 4 × 4
    assert found.total.isfinite()
    assert find_stages(LogitsOf(other), batch.images) == ["network.layer2", "network.layer3", "network.layer4"]
    with pytest.raises(ValueError, match=r"must be given for a network without modules stages\.0"):
        ExtendedKD()(batch, teacher, nn.Sequential(nn.Flatten(), nn.Linear(192, K)).double(), NOW)
    with pytest.raises(ValueError, match="must be as many as teacher_stages"):
        ExtendedKD()(batch, teacher, Layers((6, 3)).double(), NOW)
    with pytest.raises(ValueError, match="has no module 'stage'"):
        ExtendedKD(student_stages=["stage"], teacher_stages=["stages.2"])(batch, teacher, student, NOW)
    with pytest.raises(ValueError, match="same number of dimensions"):
        ExtendedKD(student_stages=["head"], teacher_stages=["stages.2"])(batch, teacher, student, NOW)


def test_rows_of_a_layer_are_compared_by_a_linear_projection(case):
    batch, teacher, student = case
    method = ExtendedKD(student_stages=["head"], teacher_stages=["head"], logit_weight=0.0)
    method.prepare(batch.images, teacher, student)
    (project,) = method.projections
    assert isinstance(project, nn.Linear)
    expected = F.mse_loss(project(student(batch.images)), answers(teacher, batch.images))
    assert_same(method, expected, case)


@pytest.mark.parametrize(
    "method",
    [DKD(), RKD(), TripletKD(), CCD(mean=MEAN, std=STD), TALD(eps=0.1), MKD(), ExtendedKD()],
    ids=lambda method: type(method).__name__,
)
def test_a_teacher_in_train_mode_is_refused(case, method):
    batch, teacher, student = case
    with pytest.raises(ValueError, match=r"teacher\.training=True"):
        method(batch, teacher.train(), student, NOW)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: DKD(temperature=0.0), "temperature=0.0"),
        (lambda: DKD(other_weight=-1.0), "other_weight=-1.0"),
        (lambda: RKD(space="pixels"), "space='pixels'"),
        (lambda: RKD(angle_weight=math.inf), "angle_weight=inf"),
        (lambda: TripletKD(margin=-1.0), "margin=-1.0"),
        (lambda: TripletKD(distance="l1"), "distance='l1'"),
        (lambda: CCD(mean=MEAN, std=(1.0, 1.0)), "must have 3 numbers"),
        (lambda: CCD(mean=MEAN, std=0.0), "std=0.0"),
        (lambda: CCD(mean=MEAN, std=1.0, probability=1.5), "probability=1.5"),
        (lambda: TALD(eps=-0.1), "eps=-0.1"),
        (lambda: TALD(eps=0.1, particles=0), "particles=0"),
        (lambda: MKD(kl_weight=-1.0), "kl_weight=-1.0"),
        (lambda: ExtendedKD(segment_weight=-1.0), "segment_weight=-1.0"),
    ],
)
def test_bad_arguments_are_named(make, words):
    with pytest.raises(ValueError, match=words):
        make()
