"""The nearest rows of other classes by libraries of vector search, none of which knows labels.

With labels their users search more than they want and drop what is of the own class, or search class by class.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.baselines import there
from benchmarks.contest import Contestant

Found = tuple[Tensor, Tensor]  # distances and indices, [N, k] each, the nearest first
Search = Callable[[Tensor, Tensor, int], Found]
SPARE = 4  # more than k; of rows in any order hardly one has all of them in its own class


def faiss(rows: Tensor, reference: Tensor, k: int) -> Found:
    """What ``IndexFlatL2`` calls."""
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())
    square, index = faiss.knn(rows.numpy(), reference.numpy(), k)
    return torch.from_numpy(square).clamp_(min=0.0).sqrt_(), torch.from_numpy(index)


def scikit_learn(rows: Tensor, reference: Tensor, k: int) -> Found:
    """The kernel of ``pairwise_distances_argmin``, for any k."""
    from sklearn.neighbors import NearestNeighbors
    from threadpoolctl import threadpool_limits

    with threadpool_limits(torch.get_num_threads()):
        found = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(reference.numpy()).kneighbors(rows.numpy())
    distance, index = map(torch.from_numpy, found)
    return distance.to(rows), index


def cuvs(rows: Tensor, reference: Tensor, k: int) -> Found:
    """Distances and selection in one kernel, as far as its k allows."""
    from cuvs.neighbors import brute_force

    square, index = (
        torch.as_tensor(part, device=rows.device) for part in brute_force.search(brute_force.build(reference), rows, k)
    )
    return square.clamp_(min=0.0).sqrt_(), index.long()


def dropping(search: Search, k: int) -> Callable[..., Found]:
    """Some more than k, of which those of the own class are dropped; twice as many where too few are left."""

    def call(rows: Tensor, labels: Tensor, reference: Tensor, reference_labels: Tensor) -> Found:
        count = min(k + SPARE, len(reference))
        while True:
            distance, index = search(rows, reference, count)
            order = (reference_labels[index] == labels[:, None]).sort(dim=1, stable=True)  # others first, nearest first
            if count == len(reference) or not order.values[:, k - 1].any():
                best = order.indices[:, :k]
                return distance.gather(1, best), index.gather(1, best)
            count = min(2 * count, len(reference))

    return call


def by_class(search: Search, k: int) -> Callable[..., Found]:
    """The rows of a class among the rows of all others."""

    def call(rows: Tensor, labels: Tensor, reference: Tensor, reference_labels: Tensor) -> Found:
        distance, index = rows.new_empty(len(rows), k), labels.new_empty(len(rows), k)
        for own in labels.unique():
            mine, others = labels == own, (reference_labels != own).nonzero()[:, 0]
            distance[mine], found = search(rows[mine], reference[others], k)
            index[mine] = others[found]
        return distance, index

    return call


def hardest(search: Search) -> Callable[..., Found]:
    """The farthest row of the own class by ``torch.cdist`` of each class, the nearest of the others by ``search``."""
    nearest = dropping(search, 1)

    def call(rows: Tensor, labels: Tensor, *_: Tensor) -> Found:
        positive = torch.empty_like(labels)
        for own in labels.unique():
            mine = (labels == own).nonzero()[:, 0]
            positive[mine] = mine[torch.cdist(rows[mine], rows[mine]).argmax(1)]
        return positive, nearest(rows, labels, rows, labels)[1]

    return call


LIBRARIES: dict[str, Search] = {"faiss": faiss, "scikit-learn": scikit_learn, "cuvs": cuvs}
UNLABELLED = {f"unlabelled {name}": search for name, search in LIBRARIES.items()}  # these compute less


def libraries(k: int) -> list[Contestant]:
    """Of rows among reference rows; each in both ways, and without the labels."""
    found = []
    for name, search in _there().items():
        ways = {name: dropping(search, k), f"{name} by class": by_class(search, k)}
        found += [Contestant(*way) for way in ways.items()]
        found.append(
            Contestant(f"unlabelled {name}", lambda rows, _, reference, *__, own=search: own(rows, reference, k))
        )
    return found


def hard_libraries() -> list[Contestant]:
    """Of rows among themselves: the hardest triplet of each; and without the labels the nearest row beside itself."""
    found = []
    for name, search in _there().items():
        found.append(Contestant(name, hardest(search)))
        found.append(Contestant(f"unlabelled {name}", lambda rows, *_, own=search: own(rows, rows, 2)))
    return found


def _there() -> dict[str, Search]:
    return {name: search for name, search in LIBRARIES.items() if there(name)}
