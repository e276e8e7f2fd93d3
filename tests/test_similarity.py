"""MagSim and AngSim against a loop over single samples, closed forms of linear networks, and what must not matter."""

import copy
import math

import pytest
import torch
from torch import nn

from amkd_fast.attacks import BoundaryAttack, Status, boundary_similarity, frozen

CLASSES = 4


class Pair(nn.Module):
    """Logits and features, as some networks give them."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x), x


def make_net(seed):
    """Two layers in float64, in train mode; the dropout shows whether eval mode is honoured."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Flatten(), nn.Linear(18, 24), nn.BatchNorm1d(24), nn.Tanh(), nn.Dropout(0.5), nn.Linear(24, CLASSES)
        ).double()


def relative(net, noise, seed=9):
    """A network like another one, so that they agree on most images but not on their boundaries."""
    other = copy.deepcopy(net)
    draws = torch.Generator().manual_seed(seed)
    for parameter in other.parameters():
        parameter.data += noise * torch.randn(parameter.shape, generator=draws, dtype=parameter.dtype)
    return other


def make_images(count=20, seed=0):
    return torch.randn(count, 2, 3, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def predict(net, images):
    return copy.deepcopy(net).eval()(images).detach()


def linear(weight, bias=None):
    net = nn.Linear(2, len(weight), bias=bias is not None).double()
    net.weight.data = torch.tensor(weight, dtype=torch.float64)
    if bias is not None:
        net.bias.data = torch.tensor(bias, dtype=torch.float64)
    return net


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def networks():
    teacher = make_net(1)
    return relative(teacher, 0.1), teacher


def eager_search(net, image, base, target, *, steps, eta, lower, upper):
    """The preset ``paper`` (docs/methods.md, Boundary samples): one sample. None where it does not cross."""
    x = image[None].clone()
    for _ in range(steps):
        x = x.detach().requires_grad_()
        logits = net(x)
        if int(logits.argmax()) != base:
            break
        gap = logits[0, base] - logits[0, target]
        grad = torch.autograd.grad(-gap, x)[0]
        x = (x + eta * (gap + 1e-4) * grad / grad.norm()).detach().clamp(lower, upper)
    return (x.detach()[0] - image).flatten() if int(net(x).argmax()) == target else None


@pytest.mark.parametrize("labelled", [True, False])
def test_equals_a_loop_over_samples(networks, labelled):
    student, teacher = networks
    images = make_images(20)
    labels = predict(teacher, images).argmax(1)
    labels[::5] = (labels[::5] + 1) % CLASSES
    settings = {"steps": 10, "lower": -2.0, "upper": 2.0}
    nets = [copy.deepcopy(net).eval() for net in networks]
    images = images.clamp(-2, 2)
    rows = []
    for number, image in enumerate(images):
        classes = [int(net(image[None]).argmax()) for net in nets]
        if classes[0] != classes[1] or (labelled and classes[0] != labels[number]):
            continue
        for target in range(CLASSES):
            if target == classes[0]:
                continue
            v, w = (eager_search(net, image, classes[0], target, eta=4.0, **settings) for net in nets)
            if v is None or w is None:
                continue
            a, b = float(v.norm()), float(w.norm())
            rows.append((number, target, min(a, b) / max(a, b), float(v @ w) / (a * b), a, b))
    batches = (images, labels) if labelled else images
    got = boundary_similarity(student, teacher, batches, preset="paper", step_size=4.0, pairs_at_once=7, **settings)
    number, target, magnitude, angle, a, b = (torch.tensor(column) for column in zip(*rows, strict=True))
    used = got.pairs.used
    assert got.count == len(rows)
    assert 8 < got.count < got.attempted
    assert torch.equal(got.pairs.image[used], number)
    assert torch.equal(got.pairs.target[used], target)
    for name, want in (("magnitude", magnitude), ("angle", angle), ("student_distance", a), ("teacher_distance", b)):
        torch.testing.assert_close(getattr(got.pairs, name)[used], want.double(), rtol=0, atol=1e-6)
    assert got.magnitude == pytest.approx(float(got.pairs.magnitude[used].mean()), abs=1e-12)
    assert got.angle == pytest.approx(float(angle.double().mean()), abs=1e-6)


@pytest.mark.parametrize("preset", ["official", "paper", "near_boundary"])
@pytest.mark.parametrize("targets", ["every", "drawn", "runner_up"])
def test_a_network_is_like_itself(preset, targets):
    net = make_net(2)
    got = boundary_similarity(net, copy.deepcopy(net), make_images(), preset=preset, targets=targets, step_size=1.0)
    assert got.count > 0
    assert got.attempted == got.bases * (CLASSES - 1 if targets == "every" else 1)
    assert got.bases == got.images == 20
    assert got.magnitude == 1.0
    assert got.angle == pytest.approx(1.0, abs=1e-12)
    assert got.magnitude_error == 0.0
    assert got.angle_error == pytest.approx(0.0, abs=1e-12)


def test_linear_networks_have_closed_forms():
    """The Newton step goes along w₁ − w₀ and 1.02 times as far as the boundary; 1e-4 is the step's own push."""
    student, teacher = linear([[1.0, 0.5], [-1.0, 0.0]], [0.2, 0.0]), linear([[0.0, 1.0], [0.3, -2.0]], [0.0, -0.5])
    images = 2.0 * torch.randn(64, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    logits = [predict(net, images) for net in (student, teacher)]
    gaps = [(z[:, 0] - z[:, 1]).abs() for z in logits]
    normals = [net.weight.data[1] - net.weight.data[0] for net in (student, teacher)]
    distances = [1.02 * (gap + 1e-4) / normal.norm() for gap, normal in zip(gaps, normals, strict=True)]
    agree = (logits[0].argmax(1) == logits[1].argmax(1)) & (torch.minimum(*gaps) > 0.02)
    assert 20 < agree.sum() < 60
    got = boundary_similarity(student, teacher, images[agree])
    assert got.count == got.images == int(agree.sum())
    near, far = torch.minimum(*distances)[agree], torch.maximum(*distances)[agree]
    torch.testing.assert_close(got.pairs.magnitude, near / far, rtol=1e-9, atol=0)
    torch.testing.assert_close(got.pairs.student_distance, distances[0][agree], rtol=1e-9, atol=0)
    cosine = float(normals[0] @ normals[1] / (normals[0].norm() * normals[1].norm()))
    assert got.angle == pytest.approx(cosine, abs=1e-9)
    assert got.angle_error == pytest.approx(0.0, abs=1e-9)
    opposite = linear([[0.0, 1.0], [2.0, 1.0]])  # the boundary x₀ = 0 seen from the other side
    turned = boundary_similarity(linear([[1.0, 0.0], [-1.0, 0.0]], [9.0, 0.0]), opposite, torch.tensor([[-1.0, 0.0]]))
    assert turned.count == 1
    assert turned.angle == pytest.approx(-1.0)


@pytest.mark.parametrize("targets", ["every", "drawn", "runner_up"])
def test_batches_do_not_matter(networks, targets):
    student, teacher = networks
    images = make_images(23)
    labels = predict(teacher, images).argmax(1)
    whole = boundary_similarity(student, teacher, (images, labels), targets=targets, seed=5)
    parts = list(zip(images.split(5), labels.int().split(5), ["extra"] * 5, strict=True))
    for batches in (parts, iter(parts), [(images, labels)], torch.utils.data.TensorDataset(images, labels)):
        if isinstance(batches, torch.utils.data.Dataset):
            batches = torch.utils.data.DataLoader(batches, 4)
        got = boundary_similarity(student, teacher, batches, targets=targets, seed=5, pairs_at_once=8)
        assert (got.count, got.attempted, got.bases, got.images) == whole[4:8]
        assert got.images_left_out == whole.images_left_out
        assert got.pairs_left_out == whole.pairs_left_out
        for one, other in zip(got.pairs, whole.pairs, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-9, equal_nan=True)
        assert got[:4] == pytest.approx(whole[:4], abs=1e-9)
    alone = boundary_similarity(student, teacher, images, targets=targets, seed=5, pairs_at_once=6)
    without = boundary_similarity(student, teacher, images.split(8), targets=targets, seed=5)
    assert alone[:8] == pytest.approx(without[:8], abs=1e-9)


@pytest.mark.parametrize("targets", ["every", "runner_up"])
def test_order_does_not_matter(networks, targets):
    images = make_images(20)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(1))
    one = boundary_similarity(*networks, images, targets=targets)
    other = boundary_similarity(*networks, images[order], targets=targets)
    assert one[:8] == pytest.approx(other[:8], abs=1e-9)
    moved = other.pairs._replace(image=order[other.pairs.image])
    place = (moved.image * CLASSES + moved.target).argsort()
    assert torch.equal(moved.image[place], one.pairs.image)
    torch.testing.assert_close(moved.angle[place], one.pairs.angle, rtol=0, atol=1e-9, equal_nan=True)


def test_drawn_targets_depend_on_the_seed(networks):
    images = make_images(40)
    drawn = [boundary_similarity(*networks, images, targets="drawn", seed=seed).pairs.target for seed in (1, 1, 2)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_roles_are_symmetric(networks):
    one = boundary_similarity(*networks, make_images())
    other = boundary_similarity(*networks[::-1], make_images())
    assert one.magnitude == pytest.approx(other.magnitude, abs=1e-12)
    assert one.angle == pytest.approx(other.angle, abs=1e-12)
    assert one.pairs_left_out["student_missed"] == other.pairs_left_out["teacher_missed"]


def test_what_is_left_out_is_counted(networks):
    student, teacher = networks
    images = make_images(60)
    labels = torch.randint(CLASSES, (60,), generator=torch.Generator().manual_seed(2))
    labels[3] = -1
    got = boundary_similarity(student, teacher, (images, labels), steps=1)
    right = [predict(net, images).argmax(1) == labels for net in networks]
    assert got.images_left_out == {
        "student_wrong": int((~right[0] & right[1]).sum()),
        "teacher_wrong": int((right[0] & ~right[1]).sum()),
        "both_wrong": int((~right[0] & ~right[1]).sum()),
    }
    assert got.bases + sum(got.images_left_out.values()) == got.images == 60
    assert got.count + sum(got.pairs_left_out.values()) == got.attempted == 3 * got.bases
    crossed = [status == Status.CROSSED for status in (got.pairs.student_status, got.pairs.teacher_status)]
    assert got.pairs_left_out["student_missed"] == int((crossed[1] & ~crossed[0]).sum())
    assert got.pairs_left_out["both_missed"] == int((~crossed[0] & ~crossed[1]).sum()) > 0
    assert torch.equal(got.pairs.used, crossed[0] & crossed[1])
    disagree = predict(student, images).argmax(1) != predict(teacher, images).argmax(1)
    assert boundary_similarity(student, teacher, images).images_left_out == {"disagree": int(disagree.sum())}


def test_a_third_class_is_no_pair():
    """Toward class 2 the way leads into class 1 first: retargeting would make a pair of it."""
    net = linear([[0.0, 0.0], [4.0, 0.0], [3.0, 1.0]], [3.0, 0.0, 0.0])
    image = torch.tensor([[0.0, 0.0]], dtype=torch.float64)
    assert BoundaryAttack(net)(image, torch.tensor([0]), torch.tensor([2])).target.tolist() == [1]
    got = boundary_similarity(net, net, image)
    assert got.pairs.target.tolist() == [1, 2]
    assert got.pairs.teacher_status.tolist() == [Status.CROSSED, Status.THIRD]
    assert got.pairs_left_out == {"student_missed": 0, "teacher_missed": 0, "both_missed": 1, "no_angle": 0}
    assert got.count == 1


def test_no_perturbation_has_no_angle(monkeypatch):
    def stay(self, images, base, target):
        samples = search(self, images, base, target)
        return samples._replace(images=images.clone()) if self.model.model is student else samples

    student, teacher = linear([[1.0, 0.0], [0.0, 0.0]]), linear([[1.0, 0.0], [0.0, 0.0]])
    search = BoundaryAttack.__call__
    monkeypatch.setattr(BoundaryAttack, "__call__", stay)
    got = boundary_similarity(student, teacher, torch.tensor([[1.0, 0.0], [2.0, 0.0]], dtype=torch.float64))
    assert got.pairs_left_out["no_angle"] == got.attempted == 2
    assert got.pairs.magnitude.tolist() == [0.0, 0.0]
    assert got.pairs.angle.isnan().all()
    assert math.isnan(got.magnitude)


@pytest.mark.parametrize("batches", [[], torch.zeros(0, 2, 3, 3), [torch.zeros(0, 2, 3, 3)] * 2, torch.zeros(0, 18)])
def test_nothing_to_compare_is_nan(networks, batches):
    got = boundary_similarity(*networks, batches)
    assert (got.count, got.attempted, got.bases, got.images) == (0, 0, 0, 0)
    assert all(math.isnan(number) for number in got[:4])
    assert [column.numel() for column in got.pairs] == [0] * 10


def test_no_image_is_eligible_and_a_single_one(networks):
    images = make_images()
    nobody = boundary_similarity(*networks, (images, torch.full((20,), -1)))
    assert (nobody.bases, nobody.count, nobody.images_left_out["both_wrong"]) == (0, 0, 20)
    assert math.isnan(nobody.angle)
    net = networks[1]
    one = boundary_similarity(net, net, images[:1])
    assert one.count == 3
    assert one.magnitude == 1.0
    assert math.isnan(one.magnitude_error)  # one cluster


def test_standard_errors_are_those_of_clusters(networks):
    got = boundary_similarity(*networks, make_images(40), targets="runner_up")
    values = got.pairs.magnitude[got.pairs.used]
    assert got.magnitude_error == pytest.approx(float(values.std() / len(values) ** 0.5), rel=1e-9)
    every = boundary_similarity(*networks, make_images(40))
    image, values = every.pairs.image[every.pairs.used], every.pairs.angle[every.pairs.used]
    clusters = [values[image == number] for number in image.unique()]
    total = sum(float((part - values.mean()).sum()) ** 2 for part in clusters)
    want = math.sqrt(total * len(clusters) / (len(clusters) - 1)) / len(values)
    assert every.angle_error == pytest.approx(want, rel=1e-9)


def test_models_and_images_stay_as_they_are(networks):
    images = make_images().requires_grad_()
    before = [copy.deepcopy(net.state_dict()) for net in networks]
    kept, random = images.detach().clone(), torch.get_rng_state()
    networks[1].eval()
    got = boundary_similarity(*networks, images, targets="drawn")
    assert torch.equal(images, kept)
    assert images.grad is None
    assert torch.equal(torch.get_rng_state(), random)
    assert networks[0].training
    assert not networks[1].training
    assert not got.pairs.angle.requires_grad
    for net, state in zip(networks, before, strict=True):
        assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())
        assert all(parameter.grad is None and parameter.requires_grad for parameter in net.parameters())


def test_views_and_networks_with_several_outputs(networks):
    images = make_images()
    want = boundary_similarity(*networks, images)
    views = boundary_similarity(*(frozen(net, fold_batchnorm=False) for net in networks), images)
    assert views[:8] == pytest.approx(want[:8], abs=1e-9)
    first = boundary_similarity(*map(Pair, networks), images, logits_of=lambda outputs: outputs[0])
    assert first[:8] == pytest.approx(want[:8], abs=1e-9)
    with torch.inference_mode():
        assert boundary_similarity(*networks, images)[:8] == pytest.approx(want[:8], abs=1e-9)


def test_progress_is_called_after_every_batch(networks):
    calls = []
    boundary_similarity(*networks, make_images(10), pairs_at_once=4, progress=lambda *call: calls.append(call))
    assert calls == [(1, 3), (2, 3), (3, 3)]
    calls.clear()
    boundary_similarity(*networks, iter(make_images(10).split(5)), progress=lambda *call: calls.append(call))
    assert calls == [(1, None), (2, None)]


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"targets": "all"}, ValueError, "targets='all'"),
        ({"preset": "bss"}, ValueError, "preset='bss'"),
        ({"steps": 0}, ValueError, "steps=0"),
        ({"pairs_at_once": 0}, ValueError, "pairs_at_once=0"),
        ({"pairs_at_once": 2.0}, TypeError, "pairs_at_once is a float"),
        ({"seed": 1.5}, TypeError, "seed is a float"),
        ({"lower": torch.zeros(5)}, ValueError, "lower.shape"),
        ({"progress": 3}, TypeError, "progress is a int"),
        ({"batches": 3}, TypeError, "batches is a int"),
        ({"batches": ["images"]}, TypeError, "batches holds a str"),
        ({"batches": [()]}, TypeError, "batches holds a tuple"),
        ({"batches": make_images().long()}, TypeError, "images.dtype"),
        ({"batches": torch.zeros(4)}, ValueError, "images.shape"),
        ({"batches": (make_images(4), torch.zeros(3).long())}, ValueError, "labels.shape"),
        ({"batches": [(make_images(4), torch.zeros(4))]}, TypeError, "labels.dtype"),
        ({"batches": [(make_images(4), [0, 1, 2, 3])]}, TypeError, "labels is a list"),
        ({"student": lambda x: x}, TypeError, "model is a function"),
        ({"student": nn.Sequential(nn.Flatten(), nn.Linear(18, 3).double())}, ValueError, "3 classes and teacher 4"),
        ({"logits_of": lambda outputs: outputs[:, :1]}, ValueError, "1 class"),
        ({"student": Pair(make_net(0))}, ValueError, "logits_of can pick them"),
    ],
)
def test_errors_name_the_argument(networks, change, error, words):
    arguments = {"student": networks[0], "teacher": networks[1], "batches": make_images(), **change}
    with pytest.raises(error, match=words):
        boundary_similarity(arguments.pop("student"), arguments.pop("teacher"), arguments.pop("batches"), **arguments)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("devices", [("cuda", "cuda"), ("cuda", "cpu"), ("cpu", "cuda")])
def test_devices_do_not_matter(networks, devices):
    want = boundary_similarity(*networks, make_images(), targets="drawn")
    moved = [net.to(device) for net, device in zip(networks, devices, strict=True)]
    bound = torch.full((2,), 9.0)
    got = boundary_similarity(*moved, make_images(), targets="drawn", lower=-bound, upper=bound)
    assert got[:8] == pytest.approx(want[:8], abs=1e-9)
    assert got.pairs.angle.device.type == "cpu"
