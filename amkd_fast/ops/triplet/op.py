"""Triplet losses with hard-negative selection, the triplets they select, and the nearest negatives."""

from __future__ import annotations

import torch
from torch import Tensor

from amkd_fast import backends, checks
from amkd_fast.ops.triplet import all_pairs_cpu, all_pairs_gpu, arguments, mined, ranks
from amkd_fast.ops.triplet import reference as specification
from amkd_fast.ops.triplet.distances import DISTANCES
from amkd_fast.ops.triplet.operators import OPERATORS, Operators
from amkd_fast.ops.triplet.types import REDUCTIONS, Outcome, Rows, Rule, Statistics, statistics_dtype

MINING = ("hard", "semihard", "all", "topk")


def triplet_margin_loss(
    anchor: Tensor,
    labels: Tensor | None = None,
    *,
    positive: Tensor | None = None,
    reference: Tensor | None = None,
    reference_labels: Tensor | None = None,
    exclude_labels: Tensor | None = None,
    self_offset: int | None = None,
    margin: float = 1.0,
    mining: str = "hard",
    k: int = 1,
    semihard_fallback: bool = False,
    distance: str = "euclidean",
    soft_margin: bool = False,
    swap: bool = False,
    weight: Tensor | None = None,
    reduction: str = "mean",
    distributed: bool = False,
    return_statistics: bool = False,
) -> Tensor | tuple[Tensor, Statistics]:
    r"""Triplet loss over triplets that are selected from the batch, a reference set or both.

    A triplet costs :math:`[D_{ap} − D_{an} + m]_+`, with ``soft_margin`` :math:`\log(1 + e^{D_{ap} − D_{an}})`. The
    positives of an anchor are the reference rows of its label, or the one row of ``positive``; its negatives are the
    reference rows of every other label that ``exclude_labels`` does not name. An anchor that lies in the reference set
    is neither to itself, which is decided by position alone. ``mining`` says which of the triplets count, and what a
    *term* is:

    ============  ==============================================================  =====================================
    mining        triplets                                                        term
    ============  ==============================================================  =====================================
    ``hard``      farthest positive, nearest negative                             one an anchor
    ``topk``      farthest positive, each of the k nearest negatives (all, where  one an anchor: the mean over its
                  there are fewer)                                                triplets
    ``semihard``  each positive with the nearest negative in                      one an anchor: the mean over its
                  D_ap < D_an < D_ap + margin; without one the pair is dropped,   pairs that are left
                  or takes the farthest negative (``semihard_fallback``)
    ``all``       every positive with every negative                              one a triplet
    ============  ==============================================================  =====================================

    An anchor without a triplet, or of weight 0, is left out of everything. If none is left the loss is 0 with zero
    gradients. Of equal distances the lowest index is selected, and it alone gets the gradient; at distance 0 the
    gradient is 0. A row with a NaN or an infinity wins every selection that it takes part in: loss and gradients become
    NaN.

    Args:
        anchor: Rows [N, D], fp32, fp64, fp16 or bf16; N ≥ 0. Mixed dtypes among the rows are allowed.
        labels: Labels of the anchors [N], int64 or int32, of any value. None: no label is shared, so that all reference
            rows but the anchor itself are negatives; ``positive`` must be given then.
        positive: The positives [N, D], one an anchor, in place of those of the same label.
        reference: Rows [P, D] to select from, P ≥ 0. None: the anchors.
        reference_labels: Their labels [P], given with ``reference`` unless ``labels`` is None.
        exclude_labels: Classes [N] or [N, E], E ≤ 2, that are no negatives of the anchor, besides its own. Fill with
            the anchor's own label, or with any value that no reference row has.
        self_offset: Anchor i is reference row ``self_offset + i``. None: the anchors are not in the reference set
            (0 where ``reference`` is None).
        margin: m ≥ 0. With ``soft_margin`` it only bounds the semi-hard negatives.
        mining: ``"hard"``, ``"semihard"``, ``"all"`` or ``"topk"``.
        k: Number of negatives for ``topk``, at least 1; no other mode reads it.
        semihard_fallback: Keep semi-hard pairs without a semi-hard negative, with the farthest one.
        distance: ``"euclidean"``, ``"sqeuclidean"`` or ``"cosine"`` (1 − cos; a row whose norm is at most the root of
            the dtype's smallest normal number has distance 1 to all rows, and no gradient).
        soft_margin: Use the soft margin.
        swap: Take min(D_an, D_pn) for D_an in the cost, D_pn from the rows of positive and negative; the selection does
            not change (Balntas et al.). With ``all`` and ``semihard`` only the reference does it.
        weight: Factor w ≥ 0 on every term of an anchor [N]; a bool tensor is a mask.
        reduction: ``"mean"`` is Σ w·term / Σ w, both over all terms that are left; ``"mean_nonzero"`` over those above
            0; ``"sum"`` is Σ w·term; ``"none"`` gives each anchor's share [N] of that sum, 0 for one left out.
        distributed: Take the reference rows of all ranks; see below.
        return_statistics: Return ``(loss, Statistics)``; they come out of the same pass, stay on the device and have
            no graph.

    Returns:
        The loss in fp32 (fp64 where a row tensor is fp64), a scalar or [N]. Gradients flow to anchor, positive,
        reference and weight. With ``return_statistics`` also ``active`` (the fraction of the terms above 0),
        ``positive_distance`` and ``negative_distance`` (means over the triplets) and ``without_triplet`` (the number of
        anchors, of those with a weight other than 0).

    Across ranks:
        With ``distributed`` each rank's anchors meet the reference rows of all ranks in rank order; where ``reference``
        is None, the anchors of all ranks. ``self_offset`` counts in the local rows. Ranks may have different numbers of
        rows, or none. Every rank returns the loss that one process with all rows would compute (``"none"``: the share
        of its own anchors), and gets that loss's gradient for its own rows and weights. Statistics are those of the
        local anchors.

        DistributedDataParallel averages the parameters' gradients over the ranks, where this loss needs their sum: call
        ``(world_size * loss).backward()`` to train as one process with the whole batch does.

        Forward and backward pass are collectives of the default process group: all ranks call both, in the same order,
        with the same options and the same factor on the loss. The numbers of rows are exchanged first, for which the
        host waits, so that such a call is not captured in a CUDA graph or compiled into a full graph. A second
        derivative raises.

    Raises:
        TypeError: An argument has the wrong type or dtype.
        ValueError: A shape, device or value breaks the rules above.
        RuntimeError: ``distributed`` without an initialised default process group.

    Numerics and memory:
        ``hard`` and ``topk`` select by products of centred rows and settle what rounding leaves open by distances from
        differences, also in collapsed sets; those enter the loss. ``all`` and ``semihard`` take a few anchors at a time
        and distances from products, except for narrow rows (D ≤ 16) and close pairs; on a GPU the products follow
        ``torch.get_float32_matmul_precision()``. On a CPU their forward pass computes the gradient as well.
        No backend but the reference holds anything of size N × P.

    Source:
        Schroff, Kalenichenko and Philbin, FaceNet (2015), semi-hard; Hermans, Beyer and Leibe, In Defense of the
        Triplet Loss (2017), hard, all and the soft margin; Balntas et al., Learning local feature descriptors with
        triplets and shallow convolutional neural networks (2016), swap.

    Example:
        >>> import torch, amkd_fast as af
        >>> anchor = torch.tensor([[0.0], [1.0], [3.0]], requires_grad=True)
        >>> loss = af.triplet_margin_loss(anchor, torch.tensor([0, 0, 1]), margin=2.0)
        >>> loss.backward()
        >>> loss.item(), anchor.grad.flatten().tolist()
        (0.5, [-0.5, 1.0, -0.5])
    """
    checks.choice("reduction", reduction, REDUCTIONS)
    rule = _rule(mining, margin, k, semihard_fallback, distance, soft_margin, swap)
    rows = arguments.rows(anchor, labels, positive, reference, reference_labels, exclude_labels, self_offset)
    if weight is not None:
        if not isinstance(weight, Tensor) or weight.dtype != torch.bool:
            checks.floating("weight", weight)
        checks.shape("weight", weight, (anchor.shape[0],), "one weight a row of anchor")
        checks.same_device(anchor=anchor, weight=weight)
    if distributed:  # after the checks: a rank that raises alone would leave the others waiting
        rows = ranks.gather(arguments.widened(rows))
    every = mining in ("all", "semihard")
    lacking = f"swap with mining={mining!r} needs the distances among the reference rows" if every and swap else ""
    operators, rows = _serving(rows, lacking, every)
    if weight is not None:
        weight = weight.to(statistics_dtype(rows.anchor.dtype))
    family = specification if operators is None else mined
    if operators is not None and every:
        family = all_pairs_gpu if operators.every_pair is None else all_pairs_cpu

    def local(rule: Rule, reduction: str) -> Outcome:
        call = (rows, rule, weight, reduction)
        return family.loss(*call) if operators is None else family.loss(operators, *call)

    outcome = ranks.loss(local, rows, rule, weight, reduction) if distributed else local(rule, reduction)
    return (outcome.value, outcome.statistics()) if return_statistics else outcome.value


def mine_triplets(
    anchor: Tensor,
    labels: Tensor | None = None,
    *,
    positive: Tensor | None = None,
    reference: Tensor | None = None,
    reference_labels: Tensor | None = None,
    exclude_labels: Tensor | None = None,
    self_offset: int | None = None,
    margin: float = 1.0,
    mining: str = "hard",
    k: int = 1,
    semihard_fallback: bool = False,
    distance: str = "euclidean",
    distributed: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Indices of the triplets that :func:`triplet_margin_loss` selects, for the losses of other libraries.

    Their number depends on the data, so that this function waits for the device and does not compile into a full graph.
    It does not look at the cost: a triplet that costs nothing is there too.

    Args:
        anchor: As in :func:`triplet_margin_loss`, like all arguments here; rows [N, D].
        labels: Labels of the anchors [N].
        positive: Explicit positives [N, D].
        reference: Rows [P, D] to select from.
        reference_labels: Their labels [P].
        exclude_labels: Classes [N] or [N, E], E ≤ 2, that are no negatives of the anchor.
        self_offset: Anchor i is reference row ``self_offset + i``.
        margin: Bounds the semi-hard negatives; no other mode reads it.
        mining: ``"hard"``, ``"semihard"``, ``"all"`` or ``"topk"``.
        k: Number of negatives for ``topk``.
        semihard_fallback: Keep semi-hard pairs without a semi-hard negative, with the farthest one.
        distance: ``"euclidean"``, ``"sqeuclidean"`` or ``"cosine"``.
        distributed: Take the reference rows of all ranks. Their indices then count in the rows of all ranks, in rank
            order; those of anchors and explicit positives in the local ones.

    Returns:
        ``(anchor, positive, negative)``, int64 [T] each: rows of anchor, of reference (of ``positive`` where that is
        given) and of reference. In ascending order of the anchor, for one anchor of the positive; for one pair ``topk``
        lists the negatives from the nearest on, ``all`` by index.

    Raises:
        TypeError: An argument has the wrong type or dtype.
        ValueError: A shape, device or value breaks the rules of :func:`triplet_margin_loss`.
        RuntimeError: ``distributed`` without an initialised default process group.

    Source:
        Schroff, Kalenichenko and Philbin, FaceNet (2015), semi-hard; Hermans, Beyer and Leibe, In Defense of the
        Triplet Loss (2017), hard and all.

    Example:
        >>> import torch, amkd_fast as af
        >>> anchor, labels = torch.tensor([[0.0], [1.0], [3.0]]), torch.tensor([0, 0, 1])
        >>> [index.tolist() for index in af.mine_triplets(anchor, labels)]
        [[0, 1], [1, 0], [2, 2]]
    """
    rule = _rule(mining, margin, k, semihard_fallback, distance)
    rows = arguments.rows(anchor, labels, positive, reference, reference_labels, exclude_labels, self_offset)
    if distributed:
        rows = ranks.gather(arguments.widened(rows))
    operators, rows = _serving(rows)
    if operators is None or mining in ("all", "semihard"):  # whose lists are what the fast loss does without
        return specification.mine_triplets(arguments.widened(rows), rule)
    return mined.mine(operators, rows, rule)


def nearest_negatives(
    anchor: Tensor,
    labels: Tensor,
    reference: Tensor,
    reference_labels: Tensor,
    *,
    k: int = 1,
    exclude_labels: Tensor | None = None,
    self_offset: int | None = None,
    distance: str = "euclidean",
    distributed: bool = False,
) -> tuple[Tensor, Tensor]:
    """The k nearest reference rows of other classes, for every anchor.

    Of equal distances the lowest index comes first. A row with a NaN or an infinity comes before all others, with a NaN
    distance.

    Args:
        anchor: Rows [N, D], fp32, fp64, fp16 or bf16; N ≥ 0. Mixed dtypes are allowed.
        labels: Labels of the anchors [N], int64 or int32, of any value.
        reference: Rows [P, D], P ≥ 0.
        reference_labels: Their labels [P].
        k: Number of negatives, at least 1.
        exclude_labels: Classes [N] or [N, E], E ≤ 2, that are no negatives of the anchor, besides its own. Fill with
            the anchor's own label, or with any value that no reference row has.
        self_offset: Anchor i is reference row ``self_offset + i`` and not its own negative. None: not in the set.
        distance: ``"euclidean"``, ``"sqeuclidean"`` or ``"cosine"``, as in :func:`triplet_margin_loss`.
        distributed: Take the reference rows of all ranks, in rank order; the indices count in them. ``self_offset``
            counts in the local rows. As in :func:`triplet_margin_loss`, forward and backward pass are collectives.

    Returns:
        ``(distances, indices)``, both [N, k] in ascending order of the distance. Distances are fp32 (fp64 where a row
        tensor is fp64) with gradients to anchor and reference, indices int64. Where an anchor has fewer than k
        negatives the rest is +inf, without a gradient, and −1.

    Raises:
        TypeError: An argument has the wrong type or dtype.
        ValueError: A shape, device or value breaks the rules above.
        RuntimeError: ``distributed`` without an initialised default process group.

    Source:
        The distances' definitions; Hermans, Beyer and Leibe, In Defense of the Triplet Loss (2017), for k = 1.

    Example:
        >>> import torch, amkd_fast as af
        >>> reference, labels = torch.tensor([[0.0], [1.0], [3.0]]), torch.tensor([0, 0, 1])
        >>> distances, indices = af.nearest_negatives(reference, labels, reference, labels, k=2)
        >>> distances.tolist(), indices.tolist()
        ([[3.0, inf], [2.0, inf], [2.0, 3.0]], [[2, -1], [2, -1], [1, 0]])
    """
    k = checks.whole("k", k, 1)
    checks.choice("distance", distance, DISTANCES)
    for name, value in (("labels", labels), ("reference", reference), ("reference_labels", reference_labels)):
        checks.tensor(name, value)
    rows = arguments.rows(anchor, labels, None, reference, reference_labels, exclude_labels, self_offset)
    if distributed:
        rows = ranks.gather(arguments.widened(rows))
    operators, rows = _serving(rows)
    if operators is None:
        return specification.nearest_negatives(rows, k, distance)
    return mined.nearest_negatives(operators, rows, k, distance)


def _serving(rows: Rows, lacking: str = "", wide: bool = False) -> tuple[Operators | None, Rows]:
    """The operators of the backend that serves this call, None for the reference, which also serves empty sets.

    With them the rows as they want them: in two bytes where they came so and a GPU selects, unless ``wide``.
    """
    name = backends.select("triplet", rows.anchor.device.type, lacking)
    if name == "reference" or 0 in (*rows.anchor.shape, rows.reference.shape[0]):
        return None, arguments.widened(rows)
    on_gpu = rows.anchor.is_cuda or name == "cuda"  # also where tests emulate it
    return OPERATORS[name], rows if on_gpu and not wide else arguments.widened(rows)


def _rule(
    mining: str,
    margin: float,
    k: int,
    semihard_fallback: bool,
    distance: str,
    soft_margin: bool = False,
    swap: bool = False,
) -> Rule:
    checks.choice("mining", mining, MINING)
    checks.choice("distance", distance, DISTANCES)
    k = checks.whole("k", k, 1)
    margin = checks.non_negative("margin", margin)
    return Rule(mining, margin, k, semihard_fallback, distance, soft_margin, swap)
