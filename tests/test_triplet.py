"""The triplet family against the loops of oracles_triplet.py, and the promises that its docstrings make."""

import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles_triplet import Oracle
from torch._subclasses.fake_tensor import FakeTensorMode

import amkd_fast as af
from amkd_fast import backends
from amkd_fast.ops.triplet import reference as specification

OPERATION = "triplet"
DISTANCES = ("euclidean", "sqeuclidean", "cosine")
REDUCTIONS = ("mean", "mean_nonzero", "sum", "none")
MODES = {
    "hard": {"mining": "hard"},
    "topk": {"mining": "topk", "k": 3},
    "semihard": {"mining": "semihard"},
    "fallback": {"mining": "semihard", "semihard_fallback": True},
    "all": {"mining": "all"},
}
SELECTION = ("labels", "positive", "reference", "reference_labels", "exclude_labels", "self_offset", "distance")
by_mode = pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
by_distance = pytest.mark.parametrize("distance", DISTANCES)
_place = torch.device("cpu")


@pytest.fixture(autouse=True)
def _on_each_backend(backend, device):
    """Every test runs on every backend; the calls below carry its tensors to the device and back."""
    global _place
    before, _place = _place, device
    yield
    _place = before


def _there_and_back(function, **arguments):
    moved = {n: x.to(_place) if isinstance(x, torch.Tensor) and not x.is_meta else x for n, x in arguments.items()}
    found = function(**moved)
    return found.cpu() if isinstance(found, torch.Tensor) else tuple(x.cpu() for x in found)


def triplet_margin_loss(anchor, labels=None, **arguments):
    if only_the_reference_serves(arguments):
        with pytest.raises(RuntimeError, match="by name, but for 'triplet': swap"):
            af.triplet_margin_loss(anchor, labels, **arguments)
        with backends.backend("reference"):
            return af.triplet_margin_loss(anchor, labels, **arguments)
    return _there_and_back(af.triplet_margin_loss, anchor=anchor, labels=labels, **arguments)


def mine_triplets(anchor, labels=None, **arguments):
    return _there_and_back(af.mine_triplets, anchor=anchor, labels=labels, **arguments)


def nearest_negatives(anchor, labels, reference, reference_labels, **arguments):
    rows = {"anchor": anchor, "labels": labels, "reference": reference, "reference_labels": reference_labels}
    return _there_and_back(af.nearest_negatives, **rows, **arguments)


def only_the_reference_serves(call):
    """The combination that the other backends, asked for by name, refuse."""
    return backends._forced.get() != "reference" and call.get("swap") and call.get("mining") in ("all", "semihard")


@functools.cache
def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rows(*shape, seed=0):
    return random(*shape, seed=seed).clone().requires_grad_()


def problem(source, n=8, p=11, d=4):
    """The arguments of a call, in the three ways in which positives and negatives are given."""
    labels = torch.arange(n) % 3
    if source == "batch":
        return {"anchor": rows(n, d), "labels": labels}
    more = {"reference": rows(p, d, seed=1), "reference_labels": torch.arange(p) % 4}
    if source == "reference":
        return {"anchor": rows(n, d), "labels": labels, **more, "exclude_labels": (labels + 1) % 4}
    exclude = torch.stack([(labels + 1) % 4, torch.full_like(labels, -7)], 1)
    return {"anchor": rows(n, d), "labels": labels, "positive": rows(n, d, seed=2), **more, "exclude_labels": exclude}


by_source = pytest.mark.parametrize("source", ["batch", "reference", "explicit"])


def leaves(arguments):
    return [x for x in arguments.values() if isinstance(x, torch.Tensor) and x.requires_grad]


def oracle_loss(anchor, **arguments):
    selection = {name: arguments.pop(name) for name in SELECTION if name in arguments}
    return Oracle(anchor, selection.pop("labels", None), **selection).loss(**arguments)


def value_and_grads(function, arguments):
    loss = function(**arguments)
    upstream = torch.arange(1.0, loss.numel() + 1, dtype=loss.dtype).reshape(loss.shape)
    inputs = leaves(arguments)
    if not loss.requires_grad:  # the oracle found nothing
        return loss, [torch.zeros_like(x) for x in inputs]
    return loss, list(torch.autograd.grad(loss, inputs, upstream, allow_unused=True, materialize_grads=True))


def compare(arguments, tolerance=1e-10):
    loss, grads = value_and_grads(triplet_margin_loss, arguments)
    expected, expected_grads = value_and_grads(oracle_loss, arguments)
    torch.testing.assert_close(loss, expected, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(grads, expected_grads, rtol=tolerance, atol=tolerance)
    return loss


@by_mode
@by_distance
@by_source
@pytest.mark.parametrize(("soft_margin", "swap"), [(False, False), (True, False), (False, True)])
def test_value_and_gradients_equal_the_oracle(mode, distance, source, soft_margin, swap):
    arguments = problem(source, n=6, p=9) | mode | {"distance": distance, "soft_margin": soft_margin, "swap": swap}
    arguments["margin"] = {"euclidean": 1.5, "sqeuclidean": 6.0, "cosine": 0.4}[distance]
    weight = torch.tensor([0.5, 2.0, 0.0, 1.0, 0.25, 3.0], dtype=torch.float64).requires_grad_()
    for more in ({}, {"reduction": "mean_nonzero"}, *({"reduction": r, "weight": weight} for r in REDUCTIONS)):
        loss = compare(arguments | more)
        assert (loss > 0).any()  # nothing was compared otherwise


@st.composite
def calls(draw):
    """Small integer rows: ties, equal rows, empty sets and missing candidates are the rule, distances are exact."""
    n, d = draw(st.integers(0, 6)), draw(st.integers(1, 3))

    def lattice(count):
        values = draw(st.lists(st.integers(-2, 2), min_size=count * d, max_size=count * d))
        return torch.tensor(values, dtype=torch.float64).reshape(count, d).requires_grad_()

    def label(count):
        return torch.tensor(draw(st.lists(st.integers(0, 2), min_size=count, max_size=count)), dtype=torch.int64)

    call = {"anchor": lattice(n), "labels": label(n)}
    if draw(st.booleans()):
        call["positive"] = lattice(n)
    if draw(st.booleans()):
        p = draw(st.integers(0, 7))
        call |= {"reference": lattice(p), "reference_labels": label(p)}
        if p >= n:
            call["self_offset"] = draw(st.none() | st.integers(0, p - n))
    if draw(st.booleans()):
        call["exclude_labels"] = label(n)
    if draw(st.booleans()):
        call["weight"] = torch.tensor(draw(st.lists(st.sampled_from([0.0, 0.5, 2.0]), min_size=n, max_size=n))).double()
    call |= draw(st.sampled_from(list(MODES.values())))
    call["distance"] = draw(st.sampled_from(["euclidean", "sqeuclidean"]))
    call["margin"] = draw(st.sampled_from([0.0, 0.5, 1.0, 4.0]))
    call["soft_margin"], call["swap"] = draw(st.booleans()), draw(st.booleans())
    call["reduction"] = draw(st.sampled_from(REDUCTIONS))
    return call


@settings(max_examples=200, deadline=None, derandomize=True)
@given(calls())
def test_ties_zero_distances_and_empty_sets_equal_the_oracle(call):
    compare(call)
    call = {name: x for name, x in call.items() if name not in ("weight", "soft_margin", "swap", "reduction")}
    assert mined(call) == expected_triplets(call)


def mined(call):
    return list(zip(*(x.tolist() for x in mine_triplets(**call)), strict=True))


def expected_triplets(call):
    call = dict(call)
    selection = {name: call.pop(name) for name in SELECTION if name in call}
    anchor = call.pop("anchor")
    oracle = Oracle(anchor, selection.pop("labels", None), **selection)
    return [(i, p, n) for i in range(len(anchor)) for p, n in oracle.mined(i, **call)]


@by_mode
@by_distance
@by_source
def test_mined_triplets_equal_the_oracle(mode, distance, source):
    call = problem(source) | mode | {"distance": distance, "margin": 3.0 if distance == "sqeuclidean" else 0.5}
    triplets = mine_triplets(**call)
    assert all(x.dtype == torch.int64 and x.ndim == 1 for x in triplets)
    assert mined(call) == expected_triplets(call) != []


def test_the_self_is_excluded_by_position_and_offset():
    anchor = torch.tensor([[0.0], [1.0]])
    bank = torch.tensor([[9.0], [0.0], [1.0], [5.0]])
    call = {"reference": bank, "reference_labels": torch.tensor([1, 0, 0, 1])}
    labels = torch.tensor([0, 0])
    assert mined({"anchor": anchor, "labels": labels, **call, "self_offset": 1}) == [(0, 2, 3), (1, 1, 3)]
    # without an offset the equal row is a positive like any other: identity of the object decides nothing
    bank = torch.tensor([[0.0], [8.0]])
    call = {"reference": bank, "reference_labels": torch.tensor([0, 1]), "mining": "all"}
    assert mined({"anchor": bank, "labels": torch.tensor([0, 1]), **call}) == [(0, 0, 1), (1, 1, 0)]
    # a row is not its own negative either, even where the labels say so
    _, index = nearest_negatives(bank, torch.tensor([1, 0]), bank, torch.tensor([0, 1]), self_offset=0)
    assert index.tolist() == [[-1], [-1]]


def test_without_labels_all_other_rows_are_negatives():
    anchor, positive = torch.tensor([[0.0], [4.0]]), torch.tensor([[1.0], [5.0]])
    assert mined({"anchor": anchor, "positive": positive}) == [(0, 0, 1), (1, 1, 0)]
    assert mined({"anchor": anchor, "positive": positive, "reference": positive, "self_offset": 0}) == [
        (0, 0, 1),
        (1, 1, 0),
    ]
    compare({"anchor": rows(5, 3), "positive": rows(5, 3, seed=1), "mining": "all"})


def test_equal_distances_give_the_whole_gradient_to_the_lowest_index():
    anchor = torch.tensor([[0.0, 0.0]])
    reference = torch.tensor([[0.0, 2.0], [0.0, 2.0], [2.0, 0.0], [0.0, 1.0], [0.0, 1.0], [1.0, 0.0]])
    labels = torch.tensor([0, 0, 0, 1, 1, 1])
    for mode in MODES.values():
        if mode["mining"] == "all" or mode["mining"] == "topk":
            continue
        reference.requires_grad_().grad = None
        margin = 9.0 if mode["mining"] == "hard" else 0.0
        loss = triplet_margin_loss(
            anchor, torch.tensor([0]), reference=reference, reference_labels=labels, margin=margin, **mode
        )
        loss.backward()
        moved = reference.grad.ne(0).any(1).tolist()
        # semi-hard without a margin finds nothing; its fallback takes every positive and one of the equally far
        expected = {9.0: [0, 3], 0.0: [0, 1, 2, 3] if mode.get("semihard_fallback") else []}[margin]
        assert [j for j, m in enumerate(moved) if m] == expected
    _, index = nearest_negatives(anchor, torch.tensor([0]), reference, labels, k=3)
    assert index.tolist() == [[3, 4, 5]]


@by_mode
@by_distance
def test_zero_distance_has_gradient_zero(mode, distance):
    anchor = torch.ones(4, 3, requires_grad=True)
    loss = triplet_margin_loss(anchor, torch.tensor([0, 0, 1, 1]), distance=distance, **mode)
    loss.backward()
    assert loss.item() == (0.0 if mode == MODES["semihard"] else 1.0)
    assert anchor.grad.tolist() == torch.zeros(4, 3).tolist()


@by_mode
def test_cosine_of_a_row_without_direction(mode):
    anchor = rows(6, 3).detach()
    anchor[0] = 0.0
    anchor[3] = 1e-200
    compare({"anchor": anchor[1:3].requires_grad_(), "labels": torch.tensor([0, 1])} | mode | {"distance": "cosine"})
    anchor = anchor.detach().requires_grad_()
    labels = torch.arange(6) % 2
    loss = triplet_margin_loss(anchor, labels, distance="cosine", margin=2.0, **mode)
    loss.backward()
    assert loss.isfinite()
    assert anchor.grad.isfinite().all()
    assert anchor.grad[[0, 3]].eq(0).all()
    d, _ = nearest_negatives(anchor, labels, anchor, labels, distance="cosine", k=3)
    assert d[0].tolist() == [1.0, 1.0, 1.0]


@by_mode
@by_distance
@by_source
@pytest.mark.parametrize("soft_margin", [False, True])
def test_nan_reaches_loss_and_gradients(mode, distance, source, soft_margin):
    for name in ("anchor", "positive", "reference"):
        call = problem(source)
        if name not in call:
            continue
        call[name].data[4, 1] = float("nan")
        call |= mode | {"distance": distance, "soft_margin": soft_margin}
        for more in ({"reduction": "mean"}, {"reduction": "mean_nonzero"}, {"swap": True}):
            loss, grads = value_and_grads(triplet_margin_loss, call | more)
            assert loss.isnan(), (name, more)
            assert any(g.isnan().any() for g in grads)
            assert dict(zip([id(x) for x in leaves(call)], grads, strict=True))[id(call[name])][4].isnan().any()


def test_nan_wins_the_selection():
    anchor, labels = torch.tensor([[0.0], [1.0], [2.0], [3.0], [4.0]]), torch.tensor([0, 0, 1, 1, 0])
    anchor[3] = float("nan")
    triplets = mined({"anchor": anchor, "labels": labels})
    assert triplets == [(0, 4, 3), (1, 4, 3), (2, 3, 1), (3, 2, 0), (4, 0, 3)]
    d, index = nearest_negatives(anchor[:1], labels[:1], anchor, labels, k=3)
    assert index.tolist() == [[3, 2, -1]]
    assert d[0, 0].isnan()
    assert d[0, 1:].tolist() == [2.0, float("inf")]


def test_an_empty_slot_brings_no_nan_in():
    anchor = torch.tensor([[0.0], [1.0]], requires_grad=True)
    reference, labels = torch.tensor([[float("nan")], [2.0]]), torch.tensor([0, 1])
    d, index = nearest_negatives(anchor, labels, reference, labels, k=2)  # the NaN row is a negative of anchor 1 only
    assert index.tolist() == [[1, -1], [0, -1]]
    (grad,) = torch.autograd.grad(d[0, 0], anchor)
    assert grad[0].tolist() == [-1.0]


@by_mode
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_a_triplet_that_just_satisfies_the_margin_costs_nothing(mode, reduction):
    call = {
        "anchor": torch.zeros(1, 1),
        "positive": torch.ones(1, 1),
        "reference": torch.tensor([[2.0], [-2.0]]),
    }
    call = {name: x.requires_grad_() for name, x in call.items()} | mode | {"margin": 1.0, "reduction": reduction}
    loss, grads = value_and_grads(triplet_margin_loss, call)
    assert loss.sum() == 0
    assert all(g.eq(0).all() for g in grads)


@pytest.mark.parametrize("explicit", [False, True])
def test_a_negative_a_whole_margin_farther_is_not_semihard(explicit):
    """With a soft margin a triplet of it would cost log 2."""
    call = {"anchor": torch.zeros(1, 1), "soft_margin": True, "margin": 1.0, "mining": "semihard"}
    if explicit:
        call |= {"positive": torch.ones(1, 1), "reference": torch.tensor([[2.0]])}
    else:
        call |= {"labels": torch.tensor([0]), "reference": torch.tensor([[1.0], [2.0]])}
        call |= {"reference_labels": torch.tensor([0, 1])}
    assert triplet_margin_loss(**call) == 0
    call["reference"] = call["reference"].where(call["reference"] < 2.0, 1.5)
    assert triplet_margin_loss(**call) > 0


@by_mode
@by_distance
def test_nan_that_takes_no_part_stays_out(mode, distance, backend):
    """A rejected sample (weight 0), an anchor without negatives and a row nobody may use can hold anything."""
    call = problem("explicit") | mode | {"distance": distance, "margin": 3.0}
    n = call["anchor"].shape[0]
    call["labels"][2] = 77
    call["reference_labels"][5] = 66
    call["exclude_labels"] = torch.full((n, 1), 66)
    call["weight"] = torch.ones(n, dtype=torch.float64).index_fill(0, torch.tensor(2), 0.0)
    clean, clean_grads = value_and_grads(triplet_margin_loss, call)
    for name, row in (("anchor", 2), ("positive", 2), ("reference", 5)):
        call[name].data[row] = float("nan")
    loss, grads = value_and_grads(triplet_margin_loss, call)
    tolerance = 0 if backend == "reference" else 1e-13  # the others centre the rows about those that are finite
    torch.testing.assert_close(loss, clean, rtol=tolerance, atol=0)
    torch.testing.assert_close(grads, clean_grads, rtol=tolerance, atol=tolerance)
    assert loss > 0


@by_mode
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize(
    "call",
    [
        {"anchor": torch.randn(4, 3), "labels": torch.zeros(4, dtype=torch.int64)},  # no negative
        {"anchor": torch.randn(4, 3), "labels": torch.arange(4)},  # no positive
        {"anchor": torch.randn(1, 3), "labels": torch.zeros(1, dtype=torch.int32)},
        {"anchor": torch.randn(0, 3), "labels": torch.zeros(0, dtype=torch.int64)},
        {"anchor": torch.full((4, 3), float("nan")), "labels": torch.arange(4)},
        {
            "anchor": torch.randn(4, 3),
            "labels": torch.arange(4),
            "positive": torch.full((4, 3), float("inf")),
            "reference": torch.randn(0, 3),
            "reference_labels": torch.zeros(0, dtype=torch.int64),
        },
        {"anchor": torch.randn(4, 3), "labels": torch.arange(4) % 2, "weight": torch.zeros(4)},
    ],
    ids=["one class", "all classes differ", "one row", "no row", "nan", "no reference", "no weight"],
)
def test_nothing_left_is_a_differentiable_zero(mode, reduction, call):
    call = {name: x.clone().requires_grad_() if x.is_floating_point() else x for name, x in call.items()}
    loss, grads = value_and_grads(triplet_margin_loss, call | mode | {"reduction": reduction})
    assert loss.requires_grad
    assert loss.tolist() == ([0.0] * len(call["anchor"]) if reduction == "none" else 0.0)
    assert all(g.eq(0).all() for g in grads)
    if "weight" not in call:
        assert [x.tolist() for x in mine_triplets(**call, **mode)] == [[], [], []]


@by_distance
@by_source
@pytest.mark.parametrize("k", [1, 3, 9, 20])
def test_nearest_negatives_equal_the_oracle(distance, source, k):
    call = problem("reference" if source == "batch" else source)
    call.pop("positive", None)
    oracle = Oracle(**call, distance=distance)
    d, index = nearest_negatives(**call, k=k, distance=distance)
    assert d.shape == index.shape == (8, k)
    assert (d.dtype, index.dtype) == (torch.float64, torch.int64)
    for i, candidates in enumerate(oracle.negatives):
        near = sorted(candidates, key=lambda n, i=i: oracle.an(i, n))[:k]
        rest = k - len(near)
        assert index[i].tolist() == near + [-1] * rest
        expected = torch.tensor([oracle.an(i, n) for n in near] + [float("inf")] * rest, dtype=torch.float64)
        torch.testing.assert_close(d[i], expected, rtol=1e-12, atol=1e-12)


def test_nearest_negatives_of_nothing():
    d, index = nearest_negatives(
        torch.randn(2, 3, requires_grad=True), torch.zeros(2).int(), torch.randn(0, 3), torch.zeros(0).int(), k=2
    )
    assert d.tolist() == [[float("inf")] * 2] * 2
    assert index.tolist() == [[-1, -1]] * 2
    assert index.dtype == torch.int64
    d, index = nearest_negatives(torch.randn(0, 3), torch.zeros(0).int(), torch.randn(2, 3), torch.zeros(2).int())
    assert d.shape == index.shape == (0, 1)


@by_mode
@by_distance
def test_collapsed_rows_are_selected_as_in_fp64(mode, distance):
    n, d = 512, 64
    generator = torch.Generator().manual_seed(3)
    common = torch.randn(1, d, generator=generator)
    anchor = common + 1e-3 * torch.randn(n, d, generator=generator)
    call = {"labels": torch.arange(n) % 8, "distance": distance, **mode, "margin": 1e-4}
    if mode["mining"] == "all":
        call["mining"] = "hard"  # "all" selects nothing
    single = set(mined({"anchor": anchor, **call}))
    double = set(mined({"anchor": anchor.double(), **call}))
    wrong = {i for i, _, _ in single ^ double}
    if mode["mining"] == "semihard":  # thousands of pairs an anchor, of which one may change: count the pairs
        assert len(single ^ double) <= 1e-3 * len(double)
    else:
        assert len(wrong) <= 1e-3 * n
    index = nearest_negatives(anchor, call["labels"], anchor, call["labels"], distance=distance)[1]
    exact = nearest_negatives(anchor.double(), call["labels"], anchor.double(), call["labels"], distance=distance)[1]
    assert index.ne(exact).sum() <= 1e-3 * n


@by_mode
@by_distance
def test_collapsed_rows_keep_loss_and_gradient(mode, distance):
    """A large common offset cancels before anything is rounded."""
    n, d = 96, 16
    generator = torch.Generator().manual_seed(5)
    anchor = torch.randn(1, d, generator=generator) * 10 + 1e-2 * torch.randn(n, d, generator=generator)
    scale = {"euclidean": 1.0, "sqeuclidean": 1e-2, "cosine": 1e-5}[distance]
    call = {"labels": torch.arange(n) % 4, "distance": distance, **mode, "margin": 0.01 * scale}
    single = {"anchor": anchor.clone().requires_grad_(), **call}
    double = {"anchor": anchor.double().requires_grad_(), **call}
    loss, (grad,) = value_and_grads(triplet_margin_loss, single)
    expected, (expected_grad,) = value_and_grads(triplet_margin_loss, double)
    relative = 1e-5
    assert abs(loss.double() - expected) <= relative * expected
    assert (grad.double() - expected_grad).norm() <= 10 * relative * expected_grad.norm()


@by_mode
@pytest.mark.parametrize("swap", [False, True])
def test_tiles_do_not_change_the_result(backend, mode, swap, monkeypatch):
    if backend != "reference":
        pytest.skip("the tiles are the reference's")
    call = problem("batch", n=13) | mode | {"swap": swap, "soft_margin": True, "reduction": "none"}
    loss, grads = value_and_grads(triplet_margin_loss, call)
    monkeypatch.setattr(specification, "TILE", 300)
    tiled, tiled_grads = value_and_grads(triplet_margin_loss, call)
    torch.testing.assert_close(tiled, loss, rtol=1e-12, atol=0)
    torch.testing.assert_close(tiled_grads, grads, rtol=1e-12, atol=1e-14)


def test_mixed_dtypes_take_the_widest():
    call = problem("explicit")
    call["anchor"] = call["anchor"].detach().bfloat16()
    call["positive"] = call["positive"].detach().half()
    assert triplet_margin_loss(**call).dtype == torch.float64
    call["reference"] = call["reference"].detach().float()
    assert triplet_margin_loss(**call).dtype == torch.float32


@by_mode
@by_source
@pytest.mark.parametrize("swap", [False, True])
def test_graph_capture_and_no_value_is_read(mode, source, swap):
    """On fake tensors ``.item()``, ``bool()`` and shapes that depend on data all raise."""
    call = problem(source)
    with FakeTensorMode() as fake:
        call = {n: fake.from_tensor(x) if isinstance(x, torch.Tensor) else x for n, x in call.items()}
        inputs = [call[n].detach().requires_grad_() for n in ("anchor", "positive", "reference") if n in call]
        call |= dict(zip([n for n in ("anchor", "positive", "reference") if n in call], inputs, strict=True))
        loss = triplet_margin_loss(**call, **mode, swap=swap, weight=torch.rand(8), reduction="mean_nonzero")
        torch.autograd.grad(loss, inputs)


def test_distances_that_overflow_stay_ordered():
    anchor = torch.tensor([[0.0], [1.0], [3e38], [-3e38]])
    labels = torch.tensor([0, 0, 1, 1])
    assert mined({"anchor": anchor, "labels": labels, "mining": "hard"})[:2] == [(0, 1, 2), (1, 0, 2)]
    call = {"anchor": anchor[2:], "labels": torch.tensor([0, 1]), "positive": anchor[2:]}
    assert mined(call) == [(0, 0, 1), (1, 1, 0)]


@by_mode
@by_distance
def test_statistics_are_those_of_the_triplets(mode, distance):
    """Means over the triplets that are mined; of the terms, of which `all` has one a triplet, the share above 0."""
    call = problem("reference", n=9) | mode | {"distance": distance, "margin": 0.5}
    call["labels"][4] = 77  # without a positive
    weight = torch.ones(9, dtype=torch.float64).index_fill(0, torch.tensor([1]), 0.0)
    moved = {n: x.to(_place) if isinstance(x, torch.Tensor) else x for n, x in (call | {"weight": weight}).items()}
    found = [x.item() for x in af.triplet_margin_loss(**moved, return_statistics=True)[1]]
    oracle = Oracle(**{n: call[n] for n in (*SELECTION, "anchor") if n in call})
    triplets = [t for t in expected_triplets(call) if t[0] != 1]
    pairs = [(oracle.ap(i, p), oracle.an(i, n)) for i, p, n in triplets]
    costs = {}
    for at, (i, _, _) in enumerate(triplets):
        cost = max(pairs[at][0] - pairs[at][1] + 0.5, 0.0)
        costs.setdefault(at if mode["mining"] == "all" else i, []).append(cost)
    active = sum(any(c) for c in costs.values()) / len(costs)
    means = [sum(column) / len(pairs) for column in zip(*pairs, strict=True)]
    assert found == pytest.approx([active, *means, 8 - len({i for i, _, _ in triplets})], rel=1e-12)
