"""The triplet kernels of every backend where rounding, ties and rows of no number decide, against the reference."""

import pytest
import torch

import amkd_fast as af
from amkd_fast import backends
from amkd_fast.ops.triplet.operators import OPERATORS

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


@pytest.mark.parametrize("k", [300, 420])
@by_distance
def test_more_negatives_than_there_are(device, k, distance):
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


@by_distance
@pytest.mark.parametrize("k", [1, 3, 16, 40])
@pytest.mark.parametrize("kind", ["random", "tied", "clusters"])
def test_nearest_among_the_anchors_themselves(device, distance, k, kind):
    """As with a copy of them for a reference, in tiles whose products serve two anchors each."""
    n, d = 437, 24
    rows = draw(n, d)
    if kind == "tied":
        rows = rows.round()
        rows[200:] = rows[:237].clone()
    elif kind == "clusters":
        rows = draw(9, d, seed=3).repeat(n // 9 + 1, 1)[:n] + 1e-3 * rows
    rows, labels = rows.to(device), (torch.arange(n) % 7).to(device)
    select = OPERATORS[backends.select("triplet", device.type)].select
    options = (0, DISTANCES.index(distance), k, True)  # anchor i is row i; its farthest positive, too
    alone = select(rows, None, labels, None, None, *options)
    beside = select(rows, rows.clone(), labels, labels, None, *options)
    for one, two in zip(alone, beside, strict=True):
        assert one.tolist() == two.tolist()


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


@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_long_rows_are_selected_as_in_fp64(backend, device, scale):
    """Each has near copies, whose distances are less than what products of the rows are rounded by.

    On a GPU it is the tensor cores' own way of adding up that the bound of that rounding has to cover.
    """
    copies = draw(50, 1, 64) + 1e-4 * draw(50, 22, 64, seed=1)
    rows = scale * copies.flatten(0, 1)  # [1100, 64]
    labels = torch.arange(len(rows), device=device)
    reference = rows.to(device)
    _, index = af.nearest_negatives(reference, labels, reference, labels, k=2, self_offset=0)
    exact = (rows.double()[:, None] - rows.double()).norm(dim=2).fill_diagonal_(torch.inf)
    nearest = exact.topk(2, largest=False).values
    assert (exact.gather(1, index.cpu()) <= nearest * (1.0 + 1e-6)).all()
    by_products = torch.cdist(rows, rows, compute_mode="use_mm_for_euclid_dist").fill_diagonal_(torch.inf)
    assert (exact.gather(1, by_products.argmin(1, keepdim=True)) > nearest[:, :1] * 1.01).sum() > 500


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


@pytest.mark.parametrize("mode", [MODES["topk"], MODES["hard soft swap"]], ids=["topk", "hard soft swap"])
@pytest.mark.parametrize("is_batch", [False, True], ids=["bank", "batch"])
def test_the_order_of_its_sums_changes_no_gradient(device, mode, is_batch):
    """Deterministic algorithms take another way to the gradient, on a GPU from some size on."""
    tensors, call = bank(n=20, p=30, d=20)
    if is_batch:
        tensors, call = {"anchor": tensors["reference"]}, {"labels": call["reference_labels"]}
    _, _, expected = loss_and_grads(device, call | mode, tensors, torch.float64)
    torch.use_deterministic_algorithms(True)
    try:
        _, _, found = loss_and_grads(device, call | mode, tensors, torch.float64)
    finally:
        torch.use_deterministic_algorithms(False)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-13)


@pytest.mark.kernels
@pytest.mark.parametrize("distance", ["euclidean", "cosine"])  # whose squares order it alike
@pytest.mark.parametrize("is_batch", [False, True], ids=["bank", "batch"])
@pytest.mark.parametrize("k", [1, 3])
def test_tiles_of_products_select_as_differences_do(backend, device, distance, is_batch, k, monkeypatch):
    """They are for large sets; here they take a small one, of which they leave a row of no number to differences."""
    if backend != "triton":
        pytest.skip("these tiles are Triton's")
    monkeypatch.setattr("amkd_fast.ops.triplet.triton_select.LARGE", 0)
    tensors, call = bank(n=9, p=70, d=20, classes=3)
    if is_batch:
        tensors, call = {"anchor": tensors["reference"]}, {"labels": call["reference_labels"]}
    given = {**tensors, **call, "mining": "topk", "k": k, "distance": distance}
    for value in (1.0, torch.nan):
        next(reversed(tensors.values()))[5, 3] = value
        moved = {n: x.to(device) if isinstance(x, torch.Tensor) else x for n, x in given.items()}
        found = af.mine_triplets(**moved)
        with backends.backend("reference"):
            expected = af.mine_triplets(**given)
        assert [x.tolist() for x in found] == [x.tolist() for x in expected]
