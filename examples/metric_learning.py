"""Hard-negative triplets on handwritten digits: pytorch-metric-learning, then two ways to put amkd_fast into its loop.

python examples/metric_learning.py          (needs pytorch-metric-learning and scikit-learn)

All three select the same triplets, until rounding lets the trajectories part. Where ours corrects theirs, shown with
pytorch-metric-learning 2.9.0 in tests/test_metric_learning.py:

* References with ``swap``: theirs takes D_pn from the rows of the batch, or raises where the batch has too few.
* A NaN row: theirs with a miner has a NaN loss with finite gradients, without one the reverse. Ours has NaN in both.
* Ranks: theirs with ``efficient=True`` loses the gradient of a row as another rank's reference. Ours has it.
* All triplets: theirs makes tensors of [N, N, N]. Ours makes none.
* CrossBatchMemory: theirs forgets its cursor in a state dict and removes self-pairs after the mining, ours before it.
"""

import time
from statistics import fmean, median

import torch
from pytorch_metric_learning import distances, losses, miners
from sklearn.datasets import load_digits
from torch import nn

import amkd_fast as af

MARGIN, BATCH = 0.2, 128
distance = distances.LpDistance(normalize_embeddings=False)  # the network normalises; theirs would do it by default
mining_func = miners.BatchHardMiner(distance=distance)
loss_func = losses.TripletMarginLoss(margin=MARGIN, distance=distance)


def theirs(embeddings, labels):
    return loss_func(embeddings, labels, mining_func(embeddings, labels))


def our_triplets(embeddings, labels):
    return loss_func(embeddings, labels, af.mine_triplets(embeddings, labels))


def our_loss(embeddings, labels):
    return af.triplet_margin_loss(embeddings, labels, margin=MARGIN, reduction="mean_nonzero")


def recall_at_1(embeddings: torch.Tensor, labels: torch.Tensor) -> float:
    """Percentage of rows whose nearest other row has their label; precision@1 is the same number."""
    table = torch.cdist(embeddings, embeddings).fill_diagonal_(torch.inf)
    return 100.0 * float((labels[table.argmin(1)] == labels).float().mean())


def train(criterion, x: torch.Tensor, y: torch.Tensor, steps: int) -> dict[str, float]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 32))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    seconds, costs = [], []
    for _ in range(steps):
        rows = torch.randperm(1000)[:BATCH]  # the other 797 are for the test
        start = time.perf_counter()
        optimizer.zero_grad()
        loss = criterion(nn.functional.normalize(model(x[rows])), y[rows])
        loss.backward()
        optimizer.step()
        seconds.append(time.perf_counter() - start)
        costs.append(loss.item())
    with torch.no_grad():
        recall = recall_at_1(nn.functional.normalize(model(x[1000:])), y[1000:])
    return {"loss": fmean(costs[-steps // 5 :]), "recall@1": recall, "ms/step": 1e3 * median(seconds)}


def main(steps: int = 300) -> dict[str, dict[str, float]]:
    x, y = map(torch.tensor, load_digits(return_X_y=True))
    x = x.float() / 16.0
    found = {}
    for criterion in (theirs, our_triplets, our_loss):
        numbers = found[criterion.__name__] = train(criterion, x, y, steps)
        print(f"{criterion.__name__:12}", *(f"  {key} {value:.3f}" for key, value in numbers.items()))
    return found


if __name__ == "__main__":
    main()
