"""With pytorch-metric-learning: their losses take our triplets; the faults that examples/metric_learning.py names."""

import pathlib
import runpy

import processes
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.utils._python_dispatch import TorchDispatchMode

import amkd_fast as af

pytest.importorskip("pytorch_metric_learning")
from pytorch_metric_learning import distances, losses, miners
from pytorch_metric_learning.reducers import MeanReducer
from pytorch_metric_learning.utils import distributed

OPERATION = "triplet"
L2 = distances.LpDistance(normalize_embeddings=False)
THEIR_DISTANCE = {
    "euclidean": L2,
    "sqeuclidean": distances.LpDistance(normalize_embeddings=False, power=2),
    "cosine": distances.CosineSimilarity(),
}
MARGIN = 0.5


def random(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def batch(device):
    return random(12, 5, seed=0).to(device), torch.arange(12, device=device) % 3


@pytest.fixture
def references(device):
    return random(20, 5, seed=1).to(device), torch.arange(20, device=device) % 4


def their_loss(distance="euclidean", margin=MARGIN, **options):
    return losses.TripletMarginLoss(margin=margin, distance=THEIR_DISTANCE[distance], **options)


def our_loss(anchor, labels, **options):
    return af.triplet_margin_loss(anchor, labels, **{"margin": MARGIN, "reduction": "mean_nonzero"} | options)


def value_and_grad(function, x):
    x = x.detach().requires_grad_()
    loss = function(x)
    return loss.detach(), torch.autograd.grad(loss, x)[0]


# --- what fits together -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("distance", THEIR_DISTANCE)
@pytest.mark.parametrize("mining", ["hard", "topk", "semihard", "all"])
@pytest.mark.parametrize("with_references", [False, True])
def test_their_loss_of_our_triplets_is_our_loss(distance, mining, with_references, batch, references):
    x, y = batch
    more = dict(zip(("reference", "reference_labels"), references, strict=True)) if with_references else {}
    options = {"mining": mining, "k": 3, "margin": MARGIN, "distance": distance, **more}
    triplets = af.mine_triplets(x, y, **options)
    if mining in ("topk", "semihard"):  # a term is the mean over an anchor's triplets, theirs is each triplet
        share = torch.bincount(triplets[0], minlength=len(x)).double() / len(triplets[0])
        options |= {"weight": share, "reduction": "sum"}
    loss = their_loss(distance, reducer=MeanReducer())
    theirs = value_and_grad(lambda x: loss(x, y, triplets, *(references if with_references else ())), x)
    ours = value_and_grad(lambda x: af.triplet_margin_loss(x, y, **options), x)
    assert ours[0] > 0
    torch.testing.assert_close(theirs, ours, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("mining", ["hard", "all"])
def test_their_default_reduction_is_our_mean_nonzero(mining, batch):
    x, y = batch
    theirs = value_and_grad(lambda x: their_loss()(x, y, af.mine_triplets(x, y, mining=mining)), x)
    torch.testing.assert_close(value_and_grad(lambda x: our_loss(x, y, mining=mining), x), theirs)


def test_our_hard_triplets_are_those_of_their_miner(batch, references):
    x, y = batch
    miner = miners.BatchHardMiner(distance=L2)
    assert all(torch.equal(a, b) for a, b in zip(miner(x, y), af.mine_triplets(x, y), strict=True))
    found = af.mine_triplets(x, y, reference=references[0], reference_labels=references[1])
    assert all(torch.equal(a, b) for a, b in zip(miner(x, y, *references), found, strict=True))


@pytest.mark.parametrize("name", ["ContrastiveLoss", "MarginLoss", "MultiSimilarityLoss", "CircleLoss", "NTXentLoss"])
def test_their_other_losses_take_our_triplets(name, batch):
    x, y = batch
    loss, grad = value_and_grad(lambda x: getattr(losses, name)()(x, y, af.mine_triplets(x, y)), x)
    assert loss > 0
    assert grad.isfinite().all()
    assert grad.any()


def test_the_example_trains_alike_in_all_three_ways(backend, device):
    pytest.importorskip("sklearn")
    if device.type != "cpu":
        pytest.skip("the example runs on the CPU")
    path = pathlib.Path(__file__).parents[1] / "examples" / "metric_learning.py"
    assert len(path.read_text().splitlines()) < 80
    found = runpy.run_path(str(path))["main"](steps=5)
    assert list(found) == ["theirs", "our_triplets", "our_loss"]
    for numbers in found.values():
        assert numbers["loss"] == pytest.approx(found["theirs"]["loss"], rel=1e-4)
        assert numbers["recall@1"] == pytest.approx(found["theirs"]["recall@1"], abs=0.5)


# --- the faults that the example names ----------------------------------------------------------------------------


def test_swap_with_references(batch, references):
    x, y = batch
    near, labels = references[0][:12], references[1][:12]
    a, p, n = af.mine_triplets(x, y, reference=near, reference_labels=labels)
    d_ap, d_an, d_pn = ((u - v).norm(dim=1) for u, v in ((x[a], near[p]), (x[a], near[n]), (near[p], near[n])))
    right = (d_ap - torch.minimum(d_an, d_pn) + 5.0).relu().mean()
    ours = our_loss(x, y, reference=near, reference_labels=labels, margin=5.0, swap=True)
    torch.testing.assert_close(ours, right)
    theirs = their_loss(margin=5.0, swap=True)
    assert (theirs(x, y, (a, p, n), near, labels) - right).abs() > 0.01
    if x.device.type == "cpu":  # elsewhere an index beyond the end takes the device down
        a, p, n = af.mine_triplets(x, y, reference=references[0], reference_labels=references[1])
        with pytest.raises(IndexError):
            theirs(x, y, (a, p, n), *references)
        assert our_loss(x, y, reference=references[0], reference_labels=references[1], swap=True).isfinite()


def test_a_nan_row(batch):
    x, y = batch
    x = x.clone()
    x[1, 0] = torch.nan
    mined, mined_grad = value_and_grad(lambda x: their_loss()(x, y, miners.BatchHardMiner(distance=L2)(x, y)), x)
    assert mined.isnan()
    assert mined_grad.isfinite().all()
    every, every_grad = value_and_grad(lambda x: their_loss()(x, y), x)
    assert every.isfinite()
    assert every_grad.isnan().any()
    for mining in ("hard", "all"):
        loss, grad = value_and_grad(lambda x, mining=mining: our_loss(x, y, mining=mining), x)
        assert loss.isnan()
        assert grad.isnan().any()


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor that any operation makes."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        for x in found if isinstance(found, (tuple, list)) else (found,):
            if isinstance(x, torch.Tensor):
                self.elements = max(self.elements, x.numel())
        return found


def test_all_triplets_without_a_tensor_of_them(device):
    x, y = random(64, 8, seed=0).to(device), torch.arange(64, device=device) % 8
    with Largest() as theirs:
        their_loss()(x, y)
    with Largest() as ours:
        our_loss(x, y, mining="all")
    assert theirs.elements >= 64**3
    assert ours.elements <= 64**2


def test_the_cursor_of_a_memory_survives_a_state_dict(device):
    theirs, ours = losses.CrossBatchMemory(their_loss(), 5, memory_size=8), af.CrossBatchMemory(8, 5, device=device)
    x, y = random(3, 5, seed=0).float().to(device), torch.tensor([0, 0, 1], device=device)
    theirs = theirs.to(device)
    for _ in range(2):
        theirs(x, y)
        ours(x, y)
    their_new, our_new = losses.CrossBatchMemory(their_loss(), 5, memory_size=8), af.CrossBatchMemory(8, 5)
    their_new.load_state_dict(theirs.state_dict())
    our_new.load_state_dict(ours.state_dict())
    assert (theirs.queue_idx, their_new.queue_idx) == (6, 0)
    assert int(our_new.cursor) == int(our_new.filled) == 6


def test_an_anchor_leaves_its_own_candidates_before_the_mining(batch):
    x, y = batch
    easy = miners.BatchEasyHardMiner(pos_strategy="easy", neg_strategy="hard", distance=L2)
    memory = losses.CrossBatchMemory(their_loss(margin=100.0), 5, memory_size=24, miner=easy).to(x.device)
    assert memory(x, y) == 0.0  # every nearest positive was the anchor's own copy
    ours = af.CrossBatchMemory(24, 5, device=x.device, dtype=x.dtype)
    anchor, positive, _ = af.mine_triplets(x, y, **ours(x, y), mining="all")
    assert len(anchor) == 12 * 3 * 8
    assert (anchor != positive).all()


def work(rank, folder, backends):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    x, y = random(12, 5, seed=0).split(6)[rank], (torch.arange(12) % 3)[6 * rank : 6 * rank + 6]
    found = {}
    for efficient in (False, True):
        loss = distributed.DistributedLossWrapper(their_loss(), efficient=efficient)
        found[efficient] = value_and_grad(lambda x, loss=loss: loss(x, y), x)
    for backend in backends:
        with af.backends.backend(backend):
            found[backend] = value_and_grad(lambda x: 2 * our_loss(x, y, mining="all", distributed=True), x)
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    there = [name for name in ("reference", "cpu") if not af.backends.available()["triplet"][name]]
    mp.start_processes(work, (str(folder), there), nprocs=2, start_method=processes.METHOD)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def test_the_gradient_across_ranks(ranks, backend, device):
    if device.type != "cpu":
        pytest.skip("test_triplet_ranks.py has the devices")
    y = torch.arange(12) % 3
    _, expected = value_and_grad(lambda x: their_loss()(x, y), random(12, 5, seed=0))

    def error(name):
        """Of half the gradient, which is what the averaging of DistributedDataParallel leaves."""
        grad = torch.cat([found[name][1] for found in ranks]) / 2
        return ((grad - expected).norm() / expected.norm()).item()

    assert error(backend) < 1e-12
    assert error(False) < 1e-12
    assert error(True) > 0.5
