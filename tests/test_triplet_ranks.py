"""distributed=True: the ranks together get the value and the gradients of one process that has all rows."""

import functools
import itertools
from typing import NamedTuple

import processes
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import amkd_fast as af

OPERATION = "triplet"
MODES = {
    "hard": {"mining": "hard"},
    "topk": {"mining": "topk", "k": 3},
    "semihard": {"mining": "semihard"},
    "fallback": {"mining": "semihard", "semihard_fallback": True},
    "all": {"mining": "all"},
}
REDUCTIONS = ("mean", "mean_nonzero", "sum", "none")
# Rows of anchor and of reference on each rank: uneven ones, and ranks with none of the one or the other.
COUNTS = {2: (((5, 3), (2, 6)), ((0, 7), (5, 4))), 3: (((4, 0, 5), (3, 5, 0)), ((3, 3, 3), (4, 4, 4)))}
BY_REFERENCE = ("reference", "reference_labels")
D = 4


class Case(NamedTuple):
    counts: tuple[tuple[int, ...], tuple[int, ...]]
    source: str
    mode: str
    reduction: str
    weighted: bool = False
    dtype: torch.dtype = torch.float64
    more: tuple[tuple[str, object], ...] = ()

    def __str__(self):
        words = [str(list(self.counts[0])), self.source, self.mode, self.reduction, *(f"{k}={v}" for k, v in self.more)]
        return "-".join([*words, *(["weighted"] if self.weighted else []), str(self.dtype).removeprefix("torch.")])


def cases(world):
    uneven, other = COUNTS[world]
    modes = MODES if world == 2 else ("hard", "all")
    for source, mode, reduction in itertools.product(("batch", "reference", "explicit"), modes, REDUCTIONS):
        if reduction in ("mean", "mean_nonzero") or mode in ("hard", "all"):
            yield Case(uneven, source, mode, reduction, weighted=(source == "explicit"))
    for mode, reduction in itertools.product(modes, REDUCTIONS[:2]):
        yield Case(uneven, "batch", mode, reduction, weighted=True)
        yield Case(other, "reference", mode, reduction, weighted=True)
        yield Case(other, "batch", mode, reduction, dtype=torch.float32)
    for mode, distance in itertools.product(("hard", "all"), ("sqeuclidean", "cosine")):
        yield Case(other, "reference", mode, "mean", weighted=True, more=(("distance", distance),))
        yield Case(other, "explicit", mode, "mean", more=(("soft_margin", True), ("distance", distance)))
    yield Case(other, "batch", "hard", "mean", more=(("swap", True),))


across_ranks = functools.partial(af.triplet_margin_loss, distributed=True)


def random(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def problem(case):
    """The call of the single process; its rows of a rank are slices of all of them."""
    n, p = map(sum, case.counts)
    labels = torch.arange(n) % 3
    call = {"anchor": random(n, D, seed=0), "labels": labels, "margin": 1.5, "reduction": case.reduction}
    call |= MODES[case.mode] | dict(case.more)
    if case.source != "batch":
        call |= {"reference": random(p, D, seed=1), "reference_labels": torch.arange(p, dtype=torch.int32) % 4}
        call |= {"exclude_labels": (labels + 1) % 4}
    if case.source == "explicit":
        call |= {"positive": random(n, D, seed=2)}
    if case.weighted:
        call |= {"weight": torch.tensor([0.5, 2.0, 0.0, 1.0, 0.25, 3.0], dtype=torch.float64).repeat(2)[:n]}
    return {name: x.to(case.dtype) if torch.is_tensor(x) and x.is_floating_point() else x for name, x in call.items()}


def local(call, counts, rank):
    """The part of one rank."""
    parts = {}
    for name, x in call.items():
        rows = counts[1 if name in BY_REFERENCE else 0]
        parts[name] = x.split(rows)[rank] if torch.is_tensor(x) else x
    return parts


def leaves(call):
    floating = {name: x for name, x in call.items() if torch.is_tensor(x) and x.is_floating_point()}
    return {name: x.detach().requires_grad_() for name, x in floating.items()}


def value_and_grads(function, call, upstream=None):
    inputs = leaves(call)
    loss = function(**call | inputs)
    upstream = torch.ones_like(loss) if upstream is None else upstream
    grads = torch.autograd.grad(loss, list(inputs.values()), upstream, allow_unused=True, materialize_grads=True)
    return loss.detach(), dict(zip(inputs, grads, strict=True))


def factors(case):
    """The gradient that arrives at the unreduced loss."""
    return torch.arange(1.0, sum(case.counts[0]) + 1, dtype=case.dtype) if case.reduction == "none" else None


# --- what each process runs ---------------------------------------------------------------------------------------


def work(rank, folder, backends):
    """Join the worlds that have this rank, one after the other."""
    torch.set_num_threads(1)
    for world in filter(lambda world: rank < world, COUNTS):
        dist.init_process_group("gloo", init_method=f"file://{folder}/meet-{world}", rank=rank, world_size=world)
        for backend in backends:
            with af.backends.backend(backend):
                found = {str(case): run(case, rank) for case in cases(world)}
                found |= {check.__name__: check(rank, world) for check in CHECKS}
            torch.save(found, f"{folder}/{world}-{backend}-{rank}.pt")
        dist.destroy_process_group()


def run(case, rank):
    upstream = factors(case)
    upstream = None if upstream is None else upstream.split(case.counts[0])[rank]
    return value_and_grads(across_ranks, local(problem(case), case.counts, rank), upstream)


def offset_of_each_rank(rank, world):
    """The anchors stand among the reference rows of their rank."""
    found = {}
    for source, (name, mode) in itertools.product(OFFSETS, MODES.items()):
        call = source(world, rank) | mode
        found[source.__name__, name] = value_and_grads(across_ranks, call)
    return found


def in_the_middle(world, rank):
    anchor, labels = rows_of_rank(world, rank)
    bank, bank_labels = random(2 + rank, D, seed=3 + rank), torch.arange(2 + rank) % 3
    call = {"anchor": anchor, "labels": labels, "margin": 1.5, "self_offset": 1 + rank}
    call["reference"] = torch.cat([bank[: 1 + rank], anchor, bank[1 + rank :]])
    call["reference_labels"] = torch.cat([bank_labels[: 1 + rank], labels, bank_labels[1 + rank :]])
    return call


def before_a_ring(world, rank):
    anchor, labels = rows_of_rank(world, rank)
    memory = af.CrossBatchMemory(5, D, dtype=torch.float64)  # some slots stay empty
    memory.update(random(2 + rank, D, seed=3 + rank), torch.arange(2 + rank) % 3)
    return {"anchor": anchor, "labels": labels, "margin": 1.5, **memory.reference(anchor, labels)}


def rows_of_rank(world, rank):
    counts = COUNTS[world][0][0]
    return random(sum(counts), D, seed=0).split(counts)[rank], (torch.arange(sum(counts)) % 3).split(counts)[rank]


OFFSETS = (in_the_middle, before_a_ring)


def mined(rank, world):
    case = Case(COUNTS[world][0], "reference", "hard", "mean")
    part = local(problem(case), case.counts, rank)
    names = ("anchor", "labels", "reference", "reference_labels", "exclude_labels")
    part = {name: part[name] for name in names}
    found = {mode: af.mine_triplets(**part, margin=1.5, **MODES[mode], distributed=True) for mode in MODES}
    batch = {name: part[name] for name in names[:2]}
    found["batch"] = af.mine_triplets(**batch, distributed=True)
    return found


def nearest(rank, world):
    case = Case(COUNTS[world][0], "reference", "hard", "mean")
    part = local(problem(case), case.counts, rank)
    anchor, reference = part["anchor"].requires_grad_(), part["reference"].requires_grad_()
    labels, more = (part["labels"], part["reference_labels"]), {"k": 2, "exclude_labels": part["exclude_labels"]}
    distances, indices = af.nearest_negatives(anchor, labels[0], reference, labels[1], **more, distributed=True)
    grads = torch.autograd.grad(distances[indices >= 0].square().sum(), (anchor, reference))
    return [x.detach() for x in (distances, indices, *grads)]


def statistics(rank, world):
    case = Case(COUNTS[world][0], "reference", "hard", "mean")
    part = local(problem(case), case.counts, rank)
    _, found = across_ranks(**part, return_statistics=True)
    return [float(x) for x in found]


def one_rank_in_double(rank, world):
    part = local(problem(Case(COUNTS[world][0], "batch", "all", "mean")), COUNTS[world][0], rank)
    part["anchor"] = part["anchor"].float() if rank == 0 else part["anchor"].float().double()
    return value_and_grads(across_ranks, part)


def one_rank_without_gradient(rank, world):
    case = Case(COUNTS[world][0], "reference", "all", "mean")
    part = local(problem(case), case.counts, rank)
    part["anchor"].requires_grad_()
    if rank == 0:
        part["reference"].requires_grad_()
    across_ranks(**part).backward()
    return part["anchor"].grad, part["reference"].grad


def a_nan_row(rank, world):
    part = local(problem(Case(COUNTS[world][0], "batch", "hard", "mean")), COUNTS[world][0], rank)
    part["anchor"] = part["anchor"].clone()
    if rank == 0:
        part["anchor"][1, 0] = torch.nan
    return value_and_grads(across_ranks, part)


def nothing_to_select(rank, world):
    """One class on all ranks; then no row on any."""
    found = []
    for n in (3, 0):
        for reduction in REDUCTIONS:
            call = {"anchor": random(n, D, seed=rank), "labels": torch.zeros(n, dtype=torch.int64)}
            call |= {"weight": torch.ones(n, dtype=torch.float64), "reduction": reduction}
            found.append(value_and_grads(across_ranks, call))
    return found


def refused(rank, world):
    """Ranks that do not fit are told so, all of them, and can go on."""
    words = []
    labels = torch.zeros(2, dtype=torch.int64)
    narrow = {"anchor": torch.zeros(2, 3 + (rank == 1)), "labels": labels}
    unlabelled = {"anchor": torch.zeros(2, 3), "positive": torch.ones(2, 3), "labels": None if rank == 1 else labels}
    for call in (narrow, unlabelled):
        try:
            across_ranks(**call)
        except ValueError as error:
            words.append(str(error))
    rows = torch.ones(2, 3, requires_grad=True)
    loss = across_ranks(rows, labels + rank)
    (grad,) = torch.autograd.grad(loss, rows, create_graph=True)
    try:
        grad.sum().backward()
    except RuntimeError as error:
        words.append(str(error))
    return words


def parallel_model(rank, world):
    """DistributedDataParallel with one process's gradient: the loss times the number of ranks."""
    counts = COUNTS[world][0][0]
    found = []
    for mode, factor in (("all", world), ("hard", world), ("hard", 1)):
        torch.manual_seed(0)
        batch = {"x": random(sum(counts), 6, seed=0), "labels": torch.arange(sum(counts)) % 3}
        batch = local(batch, (counts,), rank)
        model = network()
        parallel = DistributedDataParallel(model)
        loss = across_ranks(parallel(batch["x"]), batch["labels"], **MODES[mode])
        (factor * loss).backward()
        found.append((loss.detach(), [p.grad for p in model.parameters()]))
    return found


def network():
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, D)).double()


CHECKS = (
    offset_of_each_rank,
    mined,
    nearest,
    statistics,
    one_rank_in_double,
    one_rank_without_gradient,
    a_nan_row,
    nothing_to_select,
    refused,
    parallel_model,
)


# --- the tests: one start of the processes for all worlds and backends --------------------------------------------


ON_THE_CPU = ("reference", "cpu")


def on_the_cpu(backend):
    if backend not in ON_THE_CPU:
        pytest.skip(f"backend {backend}: the ranks meet on the CPU")


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    there = [name for name in ON_THE_CPU if af.backends.available()["triplet"][name] == ""]
    mp.start_processes(work, (str(folder), there), nprocs=max(COUNTS), start_method=processes.METHOD)
    return folder


@pytest.fixture
def ranks(world, backend, started):
    """What every rank found, in rank order."""
    on_the_cpu(backend)
    return found_by_ranks(started, world, backend)


@functools.cache
def found_by_ranks(folder, world, backend):
    return [torch.load(folder / f"{world}-{backend}-{rank}.pt", weights_only=False) for rank in range(world)]


by_world = pytest.mark.parametrize("world", [2, 3])
close = functools.partial(torch.testing.assert_close, rtol=1e-12, atol=1e-12)


def together(ranks, name):
    """One value, and the gradients of all ranks in rank order."""
    values, grads = zip(*(found[name] for found in ranks), strict=True)
    return values, {name: torch.cat([grad[name] for grad in grads]) for name in grads[0]}


@pytest.mark.parametrize(("world", "case"), [(w, c) for w in COUNTS for c in cases(w)], ids=str)
def test_value_and_gradients_equal_one_process(world, case, ranks):
    expected, expected_grads = value_and_grads(af.triplet_margin_loss, problem(case), factors(case))
    values, grads = together(ranks, str(case))
    tolerance = 1e-12 if case.dtype == torch.float64 else 1e-6
    if case.reduction == "none":
        close(torch.cat(values), expected, rtol=tolerance, atol=tolerance)
    else:
        assert all(torch.equal(value, values[0]) for value in values)
        close(values[0], expected, rtol=tolerance, atol=tolerance)
    assert (expected > 0).any()
    close(grads, expected_grads, rtol=tolerance, atol=tolerance)


@by_world
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("source", OFFSETS)
def test_self_offset_counts_in_the_local_rows(world, source, mode, ranks):
    parts = [source(world, rank) for rank in range(world)]
    before = [sum(len(part["reference"]) for part in parts[:rank]) for rank in range(world)]
    inputs = [{name: part[name].detach().requires_grad_() for name in ("anchor", "reference")} for part in parts]
    whole = {"reference": torch.cat([x["reference"] for x in inputs])}
    whole["reference_labels"] = torch.cat([part["reference_labels"] for part in parts])
    total = size = 0
    for rank, part in enumerate(parts):
        call = part | inputs[rank] | whole | MODES[mode] | {"self_offset": before[rank] + part["self_offset"]}
        total = total + af.triplet_margin_loss(**call, reduction="sum")
        triplets, _, _ = af.mine_triplets(**call)
        size += len(triplets if mode == "all" else triplets.unique())
    flat = [x for part in inputs for x in part.values()]
    expected = torch.autograd.grad(total / size, flat, allow_unused=True, materialize_grads=True)
    found = [part["offset_of_each_rank"][source.__name__, mode] for part in ranks]
    assert total > 0
    close([value for value, _ in found], [total.detach() / size] * world)
    close([x for _, grads in found for x in grads.values()], list(expected))


@by_world
def test_mined_indices_count_in_the_rows_of_all_ranks(world, ranks):
    case = Case(COUNTS[world][0], "reference", "hard", "mean")
    call = problem(case)
    names = ("anchor", "labels", "reference", "reference_labels", "exclude_labels")
    for name in (*MODES, "batch"):
        selection = {x: call[x] for x in (names[:2] if name == "batch" else names)}
        expected = af.mine_triplets(**selection, margin=1.5, **MODES.get(name, {}))
        found = [[x.clone() for x in part["mined"][name]] for part in ranks]
        for rank, triplets in enumerate(found):
            triplets[0] += sum(case.counts[0][:rank])
        assert len(expected[0]) > 0
        close([torch.cat(x) for x in zip(*found, strict=True)], list(expected))


@by_world
def test_nearest_negatives_equal_one_process(world, ranks):
    case = Case(COUNTS[world][0], "reference", "hard", "mean")
    call = problem(case)
    anchor, reference = call["anchor"].requires_grad_(), call["reference"].requires_grad_()
    more = {"k": 2, "exclude_labels": call["exclude_labels"]}
    distances, indices = af.nearest_negatives(anchor, call["labels"], reference, call["reference_labels"], **more)
    grads = torch.autograd.grad(distances[indices >= 0].square().sum(), (anchor, reference))
    found = [torch.cat(x) for x in zip(*(part["nearest"] for part in ranks), strict=True)]
    close(found, [x.detach() for x in (distances, indices, *grads)])


@by_world
def test_statistics_are_those_of_the_local_anchors(world, ranks):
    case = Case(COUNTS[world][0], "reference", "hard", "mean")
    call = problem(case)
    whole = {name: call[name] for name in BY_REFERENCE}
    for rank, found in enumerate(ranks):
        part = local(call, case.counts, rank) | whole
        _, expected = af.triplet_margin_loss(**part, return_statistics=True)
        assert found["statistics"] == pytest.approx([float(x) for x in expected])


@by_world
def test_fp64_on_one_rank_makes_all_compute_in_it(world, ranks):
    call = problem(Case(COUNTS[world][0], "batch", "all", "mean"))
    call["anchor"] = call["anchor"].float().double()
    expected, grads = value_and_grads(af.triplet_margin_loss, call)
    parts = grads["anchor"].split(COUNTS[world][0][0])
    for rank, found in enumerate(ranks):
        value, grad = found["one_rank_in_double"]
        close(value, expected)
        assert grad["anchor"].dtype == (torch.float32 if rank == 0 else torch.float64)
        torch.testing.assert_close(grad["anchor"], parts[rank].to(grad["anchor"].dtype), rtol=1e-6, atol=1e-7)


@by_world
def test_a_rank_whose_rows_have_no_gradient_serves_the_others(world, ranks):
    case = Case(COUNTS[world][0], "reference", "all", "mean")
    _, expected = value_and_grads(af.triplet_margin_loss, problem(case))
    found = [part["one_rank_without_gradient"] for part in ranks]
    close(torch.cat([anchor for anchor, _ in found]), expected["anchor"])
    close(found[0][1], expected["reference"][: case.counts[1][0]])
    assert all(reference is None for _, reference in found[1:])


@by_world
def test_a_nan_row_reaches_every_rank(world, ranks):
    for found, rows in zip(ranks, COUNTS[world][0][0], strict=True):
        value, grads = found["a_nan_row"]
        assert value.isnan()
        assert rows == 0 or grads["anchor"].isnan().any()


@by_world
def test_without_triplets_the_loss_is_a_differentiable_zero(world, ranks):
    for found in ranks:
        for value, grads in found["nothing_to_select"]:
            assert not value.any()
            assert not any(grad.any() for grad in grads.values())


@by_world
def test_ranks_that_do_not_fit_are_refused_on_all_of_them(world, ranks):
    for found in ranks:
        width, labels, twice = found["refused"]
        assert "one width D" in width
        assert "labels must be given on all ranks or on none" in labels
        assert "once_differentiable" in twice


@by_world
def test_a_parallel_model_gets_the_gradient_of_one_process(world, ranks):
    counts = COUNTS[world][0][0]
    for i, (mode, factor) in enumerate((("all", 1.0), ("hard", 1.0), ("hard", 1.0 / world))):
        torch.manual_seed(0)
        model = network()
        batch = {"x": random(sum(counts), 6, seed=0), "labels": torch.arange(sum(counts)) % 3}
        loss = af.triplet_margin_loss(model(batch["x"]), batch["labels"], **MODES[mode])
        loss.backward()
        for found in ranks:
            value, grads = found["parallel_model"][i]
            close(value, loss.detach())
            close(grads, [factor * p.grad for p in model.parameters()])


def test_one_rank_alone(tmp_path, backend):
    on_the_cpu(backend)
    case = Case(((6,), (5,)), "reference", "hard", "mean", weighted=True)
    call = problem(case)
    expected = value_and_grads(af.triplet_margin_loss, call)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        close(value_and_grads(across_ranks, call), expected)
    finally:
        dist.destroy_process_group()
