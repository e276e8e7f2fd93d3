"""The autograd node of row losses, in C++ and in Python: one and the same to whatever users do with a graph."""

from __future__ import annotations

import gc
import threading
from functools import partial

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import amkd_fast as af
from amkd_fast import backends
from amkd_fast.ops import row_loss

pytestmark = pytest.mark.skipif(backends.build_info() is None, reason="the extension is not built")
LABELS = torch.tensor([0, 1, 2, 3, 0, 1])
CLASSES = torch.tensor([0, 0, 1, 1, 2, 2])
IN_CPP = "amkd::RowLoss>"
IN_PYTHON = "FusedRowLossBackward"


def consistency(student, teacher):
    return af.consistency_kl(student, teacher, 2.0 * student, teacher.flip(1)).total


def triplets(student, teacher, **options):
    return af.triplet_margin_loss(student, CLASSES, reference=teacher, reference_labels=CLASSES, **options)


# Every loss of this kind, of a student's and a teacher's logits [6, 4].
LOSSES = {
    "kl_div": partial(af.kl_div, temperature=2.0),
    "rows": lambda s, t: (af.kl_div(s, t, reduction="none") * torch.arange(6.0)).sum(),
    "weighted": lambda s, t: af.kl_div(s, t, weight=torch.linspace(0.0, 1.0, 6)),
    "distillation_loss": lambda s, t: af.distillation_loss(s, t, LABELS, ce_weight=torch.ones(6)).total,
    "dkd_loss": lambda s, t: af.dkd_loss(s, t, LABELS),
    "consistency_kl": consistency,
    "standardised_kl_div": af.standardised_kl_div,
    "hard triplets": triplets,
    "weighted triplets": partial(triplets, weight=torch.linspace(0.0, 1.0, 6), mining="topk", k=2, swap=True),
}
by_loss = pytest.mark.parametrize("loss", LOSSES)


@pytest.fixture(params=["cpp", "python"])
def node(request, monkeypatch):
    """Where the node is, and the name that PyTorch gives it."""
    if request.param == "python":
        monkeypatch.setattr(row_loss, "_node", None)
        return IN_PYTHON
    if backends.autograd_missing():
        pytest.skip(backends.autograd_missing())
    return IN_CPP


def logits(learns=True, seed=0):
    draws = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(6, 4, generator=draws), torch.randn(6, 4, generator=draws)
    return student.requires_grad_(learns), teacher


def gradient(loss, *tensors, **options):
    return torch.autograd.grad(loss, tensors, **options)


def name_of(loss):
    """Of the node, which may have others behind it."""
    found = loss.grad_fn
    while found is not None and not any(name in found.name() for name in (IN_CPP, IN_PYTHON)):
        found = found.next_functions[0][0]
    return found and found.name()


@by_loss
def test_both_have_the_same_bits(loss, monkeypatch):
    if backends.autograd_missing():
        pytest.skip(backends.autograd_missing())
    found = []
    for place in (row_loss._node, None):
        monkeypatch.setattr(row_loss, "_node", place)
        student, teacher = logits()
        teacher.requires_grad_()
        value = LOSSES[loss](student, teacher)
        assert (IN_PYTHON if place is None else IN_CPP) in name_of(value)
        (second,) = gradient(gradient(value, student, create_graph=True)[0].square().sum(), student, retain_graph=True)
        found.append((value, *gradient(value, student, teacher), second))
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)


@by_loss
def test_a_graph_that_is_kept_and_one_that_is_not(node, loss):
    student, teacher = logits()
    value = LOSSES[loss](student, teacher)
    assert node in name_of(value)
    first, second = (gradient(value, student, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)
    gradient(value, student)
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        gradient(value, student)


@by_loss
def test_no_graph_where_nobody_asks_for_one(node, loss):
    student, teacher = logits()
    expected = LOSSES[loss](student, teacher)
    with torch.no_grad():
        value = LOSSES[loss](student, teacher)
    assert not value.requires_grad
    assert torch.equal(value, expected)
    with torch.inference_mode():
        assert torch.equal(LOSSES[loss](student, teacher), expected)
    assert not LOSSES[loss](*logits(learns=False)).requires_grad


@by_loss
def test_a_tensor_changed_before_the_backward_pass_is_an_error(node, loss):
    student, teacher = logits()
    value = LOSSES[loss](student, teacher)
    teacher.mul_(2.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        gradient(value, student)


@by_loss
def test_a_tensor_made_in_inference_mode(node, loss):
    student, teacher = logits()
    (expected,) = gradient(LOSSES[loss](student, teacher), student)
    with torch.inference_mode():
        teacher = teacher.clone()
    assert torch.equal(gradient(LOSSES[loss](student, teacher), student)[0], expected)


@by_loss
def test_hooks_of_saved_tensors_and_checkpoints(node, loss):
    student, teacher = logits()
    (expected,) = gradient(LOSSES[loss](student, teacher), student)
    packed = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda x: packed.append(x.clone()) or len(packed) - 1, packed.__getitem__
    ):
        value = LOSSES[loss](student, teacher)
    assert len(packed) >= 3  # both logits and the statistics
    assert torch.equal(gradient(value, student)[0], expected)
    value = checkpoint(LOSSES[loss], student, teacher, use_reentrant=False)
    assert torch.equal(gradient(value, student)[0], expected)


@by_loss
def test_memory_is_given_back(node, loss):
    student, teacher = logits()
    kept = StorageWeakRef(teacher.untyped_storage())
    value = LOSSES[loss](student, teacher)
    assert node in name_of(value)
    del teacher
    assert not kept.expired()
    gradient(value, student)
    gc.collect()
    assert kept.expired()


@by_loss
@pytest.mark.filterwarnings("ignore:Anomaly Detection", "ignore:Error detected in")
def test_hooks_of_the_node_and_detection_of_anomalies(node, loss):
    student, teacher = logits()
    with torch.autograd.detect_anomaly(check_nan=True):
        value = LOSSES[loss](student, teacher)
        seen = []
        value.grad_fn.register_hook(lambda made, given: seen.append((made, given)))
        gradient(value, student)
        assert len(seen) == 1
        student = (student.detach() * torch.nan).requires_grad_()
        with pytest.raises(RuntimeError, match="returned nan values"):
            gradient(LOSSES[loss](student, teacher), student)


@by_loss
def test_only_the_loss_that_is_used(node, loss):
    """A graph of which one loss is not asked for, and gradients of tensors that do not enter."""
    student, teacher = logits()
    other = torch.ones(2, requires_grad=True)
    first, unused = LOSSES[loss](student, teacher), LOSSES[loss](2.0 * student, teacher)
    found = gradient(first, student, other, allow_unused=True)
    assert found[1] is None
    assert unused.requires_grad


def test_a_batch_of_gradients(node):
    student, teacher = logits()
    values = af.kl_div(student, teacher, reduction="none")
    (jacobian,) = gradient(values, student, grad_outputs=torch.eye(6), is_grads_batched=True, retain_graph=True)
    for i in range(6):
        torch.testing.assert_close(jacobian[i], gradient(values[i], student, retain_graph=True)[0])


@by_loss
def test_threads(node, loss):
    student, teacher = logits()
    (expected,) = gradient(LOSSES[loss](student, teacher), student)
    shared = LOSSES[loss](student, teacher)
    found, start = [], threading.Barrier(4)

    def work():
        start.wait()
        for _ in range(20):
            found.append(gradient(LOSSES[loss](student, teacher), student)[0])
            found.append(gradient(shared, student, retain_graph=True)[0])

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 160
    assert all(torch.equal(x, expected) for x in found)


class Named(torch.Tensor):
    """A subclass that counts what is done with it."""

    calls = 0

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        cls.calls += 1
        return super().__torch_function__(function, types, args, kwargs or {})


class Calls(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.seen.append(str(function))
        return function(*args, **(kwargs or {}))


class Functions(TorchFunctionMode):
    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.seen.append(str(function))
        return function(*args, **(kwargs or {}))


def test_what_wants_to_see_the_calls_sees_them(node):
    student, teacher = logits()
    (expected,) = gradient(af.kl_div(student, teacher), student)
    with Calls() as calls:
        gradient(af.kl_div(student, teacher), student)
    assert {"amkd_fast.kl_forward.default", "amkd_fast.kl_backward.default"} <= set(calls.seen)
    with Functions() as functions:
        found = gradient(af.kl_div(student, teacher), student)
    assert any("kl_forward" in name for name in functions.seen)
    assert torch.equal(found[0], expected)
    own = student.detach().as_subclass(Named).requires_grad_()
    assert torch.equal(gradient(af.kl_div(own, teacher), own)[0], expected)
    assert Named.calls > 0
    parameter = torch.nn.Parameter(student.detach())
    assert node in name_of(af.kl_div(parameter, teacher))


def test_compiled_autograd(node):
    """The graph of the backward pass, compiled."""
    student, teacher = logits()
    (expected,) = gradient(LOSSES["dkd_loss"](student, teacher), student)
    with torch._dynamo.compiled_autograd._enable(torch.compile(backend="eager")):
        LOSSES["dkd_loss"](student, teacher).backward()
    assert torch.equal(student.grad, expected)


def test_numbers_are_looked_at(node):
    """What no public function lets through."""
    if node == IN_PYTHON:
        pytest.skip("the operator itself looks")
    from amkd_fast.ops.kl.op import _OPERATORS

    student, teacher = logits()
    call = partial(row_loss.row_loss, _OPERATORS["cpu"])
    with pytest.raises(ValueError, match="8"):
        call((1.0,), student, teacher)
    with pytest.raises(TypeError):
        call(("four", 0, 0.5, 1.0, 1.0, 0.0, -100, 1), student, teacher)
