"""The triplet kernels of every backend where they tile, share, search and approximate, against the reference."""

import pytest
import torch
import torch.nn.functional as F

import amkd_fast as af
from amkd_fast import backends

OPERATION = "triplet"
DISTANCES = ("euclidean", "sqeuclidean", "cosine")
MODES = {
    "hard": {"mining": "hard"},
    "topk": {"mining": "topk", "k": 5},
    "semihard": {"mining": "semihard"},
    "fallback": {"mining": "semihard", "semihard_fallback": True},
    "all": {"mining": "all"},
    "all soft": {"mining": "all", "soft_margin": True},
    "hard soft swap": {"mining": "hard", "soft_margin": True, "swap": True},
}
by_mode = pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
by_distance = pytest.mark.parametrize("distance", DISTANCES)


@pytest.fixture(autouse=True)
def _fast(backend):
    if backend == "reference":
        pytest.skip("backend reference: it is what the others are compared with")


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def loss_and_grads(device, call, tensors, dtype=torch.float32):
    """Loss, statistics and gradients of ``tensors`` (by name), on the CPU in fp64."""
    leaves = {n: x.to(device, dtype).requires_grad_() for n, x in tensors.items()}
    rest = {n: x.to(device) if isinstance(x, torch.Tensor) else x for n, x in call.items()}
    loss, statistics = af.triplet_margin_loss(**leaves, **rest, return_statistics=True)
    grads = torch.autograd.grad(loss, list(leaves.values()))
    return loss.double().cpu(), torch.stack(statistics).double().cpu(), [g.double().cpu() for g in grads]


def truth(call, tensors, dtype=torch.float64):
    with backends.backend("reference"):
        return loss_and_grads("cpu", call, tensors, dtype)


def relative(got, expected):
    return ((got - expected).norm() / expected.norm()).item()


def bank(n=150, p=420, d=40, classes=7):
    return (
        {"anchor": draw(n, d), "reference": draw(p, d, seed=1)},
        {"labels": torch.arange(n) % classes, "reference_labels": torch.arange(p) % (classes + 1)},
    )


@by_mode
@by_distance
@pytest.mark.parametrize("width", [3, 40, 130])
def test_fp64_equals_the_reference(device, mode, distance, width):
    tensors, call = bank(d=width)
    call |= mode | {"distance": distance, "margin": {"euclidean": 1.0, "sqeuclidean": 5.0, "cosine": 0.2}[distance]}
    loss, statistics, grads = loss_and_grads(device, call, tensors, torch.float64)
    expected, expected_statistics, expected_grads = truth(call, tensors)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(statistics, expected_statistics, rtol=1e-12, atol=1e-13)
    for g, e in zip(grads, expected_grads, strict=True):
        assert relative(g, e) <= 1e-12
    assert expected > 0


def decided_margin(tensors, call):
    """A margin next to that of ``call``, as far as can be from every D_an - D_ap: none is the rounding to decide."""
    anchor, reference = tensors["anchor"].double(), tensors["reference"].double()
    if call["distance"] == "cosine":
        d = 1 - F.normalize(anchor) @ F.normalize(reference).T
    else:
        d = torch.cdist(anchor, reference, compute_mode="donot_use_mm_for_euclid_dist")
        d = d.square() if call["distance"] == "sqeuclidean" else d
    same = call["labels"][:, None] == call["reference_labels"]
    apart = torch.cat([(row[~s] - row[s][:, None]).flatten() for row, s in zip(d, same, strict=True)])
    near = apart[(apart / call["margin"] - 1).abs() < 0.1].sort().values
    widest = near.diff().argmax()
    return near[widest : widest + 2].mean().item()


@by_mode
@by_distance
def test_fp32_is_as_precise_as_eager(device, mode, distance):
    """At most twice the error that the reference makes in fp32, three times for gradients; rounding itself is free."""
    tensors, call = bank(n=200, p=300, d=64)
    call |= mode | {"distance": distance, "margin": {"euclidean": 1.0, "sqeuclidean": 10.0, "cosine": 0.2}[distance]}
    if mode == MODES["all"]:  # two million triplets, of which rounding would take one into the loss or out of it
        call["margin"] = decided_margin(tensors, call)
    loss, _, grads = loss_and_grads(device, call, tensors)
    expected, _, expected_grads = truth(call, tensors)
    eager, _, eager_grads = truth(call, tensors, torch.float32)
    assert relative(loss, expected) <= max(2 * relative(eager, expected), 1e-6)
    if call["mining"] == "semihard":
        return  # one pair in thousands that rounding takes over a bound moves the gradient by more than all rounding
    for g, e, x in zip(grads, eager_grads, expected_grads, strict=True):
        assert relative(g, x) <= max(3 * relative(e, x), 1e-6)


@pytest.mark.parametrize("k", [1, 4, 5, 33, 300, 420])
@by_distance
def test_nearest_negatives_of_a_large_set(device, k, distance):
    tensors, call = bank()
    arguments = [*tensors.values(), *call.values()]
    order = (arguments[0], arguments[2], arguments[1], arguments[3])
    with backends.backend("reference"):
        expected, index = af.nearest_negatives(
            *(x.double() if x.is_floating_point() else x for x in order), k=k, distance=distance
        )
    got, found = af.nearest_negatives(*(x.to(device) for x in order), k=k, distance=distance)
    assert found.cpu().ne(index).float().mean() <= 1e-4
    torch.testing.assert_close(got.double().cpu(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_rows_tie_exactly(device, dtype):
    """Every row four times over, in steps that land in different tiles and lanes: the lowest index wins."""
    rows = draw(90, 33).to(dtype).repeat(4, 1).to(device)
    labels = (torch.arange(360) % 90 % 6).to(device)
    _, positive, negative = af.mine_triplets(rows, labels)
    assert positive.max() < 90 + 90  # a copy of itself is never the farthest, and of the farthest the first is taken
    assert negative.max() < 90
    _, index = af.nearest_negatives(rows, labels, rows, labels, k=4)
    assert index.diff(dim=1).cpu().tolist() == [[90] * 3] * 360


def test_one_vector_for_all(device):
    rows = torch.ones(300, 40, device=device) * 0.3
    labels = torch.arange(300, device=device) % 3
    anchor, positive, negative = af.mine_triplets(rows, labels)
    assert anchor.tolist() == list(range(300))
    assert positive.tolist() == [3 if i == 0 else 4 if i == 1 else 5 if i == 2 else i % 3 for i in range(300)]
    assert negative.tolist() == [1 if i % 3 == 0 else 0 for i in range(300)]


@by_distance
@pytest.mark.parametrize("clusters", [1, 5])
def test_collapsed_clusters_are_selected_as_in_fp64(device, distance, clusters):
    """Tight clusters far from each other: the common vector of all does not help, exact distances do."""
    n, d = 600, 48
    rows = draw(clusters, d, seed=2).repeat(n // clusters, 1) * 3 + 1e-3 * draw(n, d)
    labels = torch.arange(n) % 11
    with backends.backend("reference"):
        expected = af.mine_triplets(rows.double(), labels, distance=distance)
    got = af.mine_triplets(rows.to(device), labels.to(device), distance=distance)
    for g, e in zip(got, expected, strict=True):
        assert g.cpu().ne(e).float().mean() <= 1e-3


@by_mode
def test_a_row_far_out_costs_the_others_no_digits(device, mode):
    tensors, call = bank(n=64, p=300)
    tensors["reference"][17] *= 1e8
    call["reference_labels"][17] = 1000
    call |= mode | {"distance": "euclidean", "margin": 2.0}
    if call["mining"] == "all":
        call |= {"soft_margin": False}
    loss, _, grads = loss_and_grads(device, call, tensors)
    expected, _, expected_grads = truth(call, tensors)
    assert relative(loss, expected) <= 1e-5
    if call["mining"] != "semihard":
        assert relative(grads[0], expected_grads[0]) <= 1e-4


@by_distance
@pytest.mark.parametrize("rows", [[0], [7, 8, 300], range(0, 420, 3)], ids=["one", "some", "many"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_rows_that_are_not_finite(device, distance, rows, value):
    tensors, call = bank(n=40)
    tensors["reference"][list(rows), 3] = value
    order = (tensors["anchor"], call["labels"], tensors["reference"], call["reference_labels"])
    with backends.backend("reference"):
        expected, index = af.nearest_negatives(
            *(x.double() if x.is_floating_point() else x for x in order), k=3, distance=distance
        )
    got, found = af.nearest_negatives(*(x.to(device) for x in order), k=3, distance=distance)
    assert found.cpu().tolist() == index.tolist()
    torch.testing.assert_close(got.double().cpu().isnan(), expected.isnan())


@by_distance
@pytest.mark.parametrize("spread", [1e-1, 1e-2, 1e-3])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_close_pairs_keep_the_digits_of_their_gradient(backend, device, distance, spread, reduction):
    """Tight clusters: a pair's gradient is a difference of vectors a thousand times its size."""
    rows = draw(5, 48, seed=2).repeat(40, 1) * 3 + spread * draw(200, 48)
    call = {"labels": torch.arange(200) % 5, "mining": "all", "distance": distance, "margin": 5000.0}
    tensors = {"anchor": rows}
    if reduction == "none":
        call["weight"] = torch.arange(200.0) / 100
    loss, _, (grad,) = loss_and_grads(device, call, tensors)
    expected, _, (expected_grad,) = truth(call, tensors)
    assert relative(loss, expected) <= 1e-6
    assert relative(grad, expected_grad) <= 2e-6


@by_mode
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 3, 1), (5, 2, 4096), (64, 65, 17), (97, 257, 16)])
def test_odd_sizes(device, mode, shape):
    n, p, d = shape
    tensors = {"anchor": draw(n, d), "reference": draw(p, d, seed=1)}
    call = {"labels": torch.arange(n) % 2, "reference_labels": torch.arange(p) % 3, **mode}
    loss, statistics, grads = loss_and_grads(device, call, tensors, torch.float64)
    expected, expected_statistics, expected_grads = truth(call, tensors)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(statistics, expected_statistics, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(grads, expected_grads, rtol=1e-10, atol=1e-12)


@by_mode
def test_labels_of_any_value_and_width(device, mode):
    tensors, call = bank(n=60, p=90)
    plain = loss_and_grads(device, call | mode, tensors)
    wide = {n: x * (1 << 40) - 5 for n, x in call.items()}  # differ only above 32 bits
    mixed = {"labels": call["labels"].int(), "reference_labels": call["reference_labels"]}
    for other in (wide, mixed):
        loss, _, grads = loss_and_grads(device, other | mode, tensors)
        assert loss == plain[0]
        assert all(torch.equal(a, b) for a, b in zip(grads, plain[2], strict=True))


@by_mode
def test_many_positives(device, mode):
    """More thresholds than are counted one by one."""
    rows, call = draw(430, 24), {"labels": torch.arange(430) % 2, "margin": 0.3, **mode}
    loss, statistics, (grad,) = loss_and_grads(device, call, {"anchor": rows}, torch.float64)
    expected, expected_statistics, (expected_grad,) = truth(call, {"anchor": rows})
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(statistics, expected_statistics, rtol=1e-12, atol=0)
    assert relative(grad, expected_grad) <= 1e-12


@by_mode
def test_the_same_bits_again(device, mode):
    tensors, call = bank()
    call |= mode
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        first, second = (loss_and_grads(device, call, tensors) for _ in range(2))
    finally:
        torch.use_deterministic_algorithms(before)
    assert first[0] == second[0]
    assert all(torch.equal(a, b) for a, b in zip(first[2], second[2], strict=True))


@by_mode
def test_a_graph_serves_twice(device, mode):
    rows = draw(50, 20).to(device).requires_grad_()
    loss = af.triplet_margin_loss(rows, torch.arange(50, device=device) % 5, **mode)
    (first,) = torch.autograd.grad(loss, rows, retain_graph=True)
    (second,) = torch.autograd.grad(loss, rows)
    torch.testing.assert_close(first, second, rtol=1e-6, atol=1e-8)


@by_mode
def test_outputs_are_written_everywhere(device, mode, monkeypatch):
    """Fresh memory is filled with NaN; whoever reads what was not written shows it."""
    torch.use_deterministic_algorithms(True)
    try:
        tensors, call = bank(n=70, p=130)
        call |= mode
        assert torch.utils.deterministic.fill_uninitialized_memory
        loss, _, grads = loss_and_grads(device, call, tensors)
    finally:
        torch.use_deterministic_algorithms(False)
    assert loss.isfinite()
    assert all(g.isfinite().all() for g in grads)


@by_mode
@by_distance
def test_compiles_into_one_graph(device, mode, distance):
    torch.compiler.reset()
    tensors, call = bank(n=30, p=44, d=20)
    tensors, call = ({n: x.to(device) for n, x in y.items()} for y in (tensors, call))

    def function(anchor, reference):
        return af.triplet_margin_loss(anchor, reference=reference, **call, **mode, distance=distance)

    leaves = [x.requires_grad_() for x in tensors.values()]
    expected = function(*leaves)
    expected_grads = torch.autograd.grad(expected, leaves)
    loss = torch.compile(function, fullgraph=True, backend="aot_eager")(*leaves)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(torch.autograd.grad(loss, leaves), expected_grads, rtol=1e-4, atol=1e-6)


def test_opcheck(backend, device):
    from amkd_fast.ops import triplet

    af.triplet_margin_loss(draw(4, 3).to(device), torch.arange(4, device=device) % 2)  # registers what comes late
    operators = triplet._OPERATORS[backend]
    rows, labels = draw(20, 18).to(device), torch.arange(20, device=device) % 3
    check = torch.library.opcheck
    sample = (rows, None, labels, labels, None, 0, 0, 3, True)
    check(operators.select, sample)
    positive, negative = operators.select(*sample)
    for swap, reduction in ((False, 0), (True, 3)):
        scalars = (0, 1.0, False, swap, reduction)
        sample = (rows, None, None, positive, negative, None, *scalars)
        check(operators.terms, sample)
        loss, stats = operators.terms(*sample)
        check(operators.backward, (loss, rows, None, None, positive, negative, None, stats, *scalars, True))
    if operators.every_pair is not None:
        scalars = (0, 0, 1.0, False, False, False)
        for with_gradient in (False, True):
            check(operators.every_pair, (rows, *(None,) * 4, labels, None, None, *scalars, with_gradient))
            given = (rows, rows * 2, rows[:, 0].abs(), labels == 0, rows[:, 1].contiguous(), labels, labels, None)
            check(operators.every_pair, (*given, *scalars, with_gradient))
        return
    square, rest = (rows * rows).sum(1), (None, None, labels, labels, None, 0, 0, 1.0, False, False, False)
    product = rows @ rows.mT
    check(operators.rows_forward, (product, rows, rows, square, square, *rest))
    grads = torch.zeros_like(rows), torch.zeros_like(rows)
    check(operators.rows_backward, (product, *grads, square, rows, rows, square, square, *rest))


@by_distance
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("exclusions", [0, 1, 2])
def test_rows_among_themselves(device, distance, dtype, exclusions):
    """Each product serves two rows where the anchors are the reference set: blocks on, above and below the diagonal."""
    rows, labels = draw(489, 20), torch.arange(489) % 9
    rows[400] = rows[3]
    call = {"distance": distance}
    if exclusions:
        call["exclude_labels"] = (labels[:, None] + torch.tensor([1, 5])[:exclusions]) % 9
    with backends.backend("reference"):
        expected = af.mine_triplets(rows.double(), labels, **call)
    moved = {n: x.to(device) if isinstance(x, torch.Tensor) else x for n, x in call.items()}
    got = af.mine_triplets(rows.to(device, dtype), labels.to(device), **moved)
    for g, e in zip(got, expected, strict=True):
        assert g.tolist() == e.tolist()
    positive = draw(489, 20, seed=4).to(device)  # without labels all other rows are negatives
    _, _, negative = af.mine_triplets(rows.to(device, dtype), positive=positive, distance=distance)
    with backends.backend("reference"):
        assert (
            negative.tolist() == af.mine_triplets(rows.double(), positive=positive.cpu(), distance=distance)[2].tolist()
        )
