"""AMKDLoss with distributed=True: the ranks together get the value and the gradients of one process with all rows."""

from __future__ import annotations

import itertools

import processes
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

import amkd_fast as af
from amkd_fast.losses import NEGATIVES, SELECTORS, VARIANTS, Adversarial, AMKDLoss

WORLD, K = 2, 5
# Clean and attacked rows of each rank: uneven, none attacked on one rank, none at all on one rank.
SHARES = (((7, 5), (4, 3)), ((6, 6), (5, 0)), ((9, 0), (4, 0)))
CASES = [
    (variant, negatives, selector, remember)
    for variant, negatives, selector, remember in itertools.product(VARIANTS, NEGATIVES, SELECTORS, (False, True))
    if variant != "batch_hard" or selector == "hardest"
]


def problem(shares):
    """All rows, and where the attacked ones came from within their rank's clean rows."""
    (clean, attacked), draws = shares, torch.Generator().manual_seed(1)

    def normal(count):
        return torch.randn(count, K, generator=draws, dtype=torch.float64)

    count = sum(attacked)
    labels = torch.arange(sum(clean)) % K
    source = torch.cat([torch.arange(m) % max(n, 1) for n, m in zip(clean, attacked, strict=True)])
    first = torch.cat([torch.full((m,), sum(clean[:rank])) for rank, m in enumerate(attacked)])
    base = labels[source + first]
    return {
        "student": normal(sum(clean)),
        "teacher": normal(sum(clean)),
        "labels": labels,
        "attacked": normal(count),
        "taught": normal(count),
        "base": base,
        "target": (base + 1) % K,
        "source": source,
        "first": first,
        "weight": torch.tensor([1.0, 0.0, 2.0, 1.0, 0.5, 1.0, 1.0], dtype=torch.float64)[:count],
    }


def part(whole, shares, rank):
    """What one rank has; ``rank`` None: everything."""
    if rank is None:
        return {**whole, "source": whole["source"] + whole["first"]}
    return {
        name: value.split(shares[0] if name in ("student", "teacher", "labels") else shares[1])[rank]
        for name, value in whole.items()
    }


def run(case, shares, rank):
    """Loss terms and gradients of two batches in a row, the second of which meets the first in the memory."""
    variant, negatives, selector, remember = case
    memory = af.CrossBatchMemory(8, K, dtype=torch.float64) if remember else None
    criterion = AMKDLoss(
        variant=variant,
        negatives=negatives,
        selector=selector,
        margin=4.0,
        memory=memory,
        kl_weight=1.3,
        distributed=rank is not None,
    )
    found = []
    whole = problem(shares)
    for seed in (1, 2):
        own = part({**whole, "student": whole["student"] * seed}, shares, rank)
        student, attacked = own["student"].requires_grad_(), own["attacked"].clone().requires_grad_()
        rows = Adversarial(attacked, own["taught"], own["base"], own["target"], own["source"], own["weight"])
        loss = criterion(student, own["teacher"], own["labels"], rows, seed=seed)
        grads = torch.autograd.grad(loss.total, (student, attacked), materialize_grads=True, allow_unused=True)
        found.append(([float(term.detach()) for term in loss], grads))
    return found


def work(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=WORLD)
    torch.save([[run(case, shares, rank) for shares in SHARES] for case in CASES], f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    mp.start_processes(work, (str(folder),), nprocs=WORLD, start_method=processes.METHOD)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(WORLD)]


@pytest.mark.parametrize("shares", range(len(SHARES)), ids=str)
@pytest.mark.parametrize("case", range(len(CASES)), ids=lambda i: "-".join(map(str, CASES[i])))
def test_as_one_process(found, case, shares):
    expected = run(CASES[case], SHARES[shares], None)
    for batch, (terms, grads) in enumerate(expected):
        of_ranks = [found[rank][case][shares][batch] for rank in range(WORLD)]
        for values, _ in of_ranks:
            assert values == pytest.approx(terms, abs=1e-12)
        for place, grad in enumerate(grads):
            torch.testing.assert_close(torch.cat([own[place] for _, own in of_ranks]), grad, rtol=1e-10, atol=1e-12)


def test_without_a_group():
    criterion = AMKDLoss(distributed=True)
    with pytest.raises(RuntimeError, match="distributed=True: needs the default process group"):
        criterion(torch.zeros(2, K), torch.zeros(2, K), torch.tensor([0, 1]))
