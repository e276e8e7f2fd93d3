"""CrossBatchMemory against a plain list of past rows."""

import pytest
import torch

import amkd_fast as af

OPERATION = "triplet"
SIZE, D = 7, 3


class Listed:
    """The model: the last rows in a list, oldest first."""

    def __init__(self, size):
        self.size, self.rows, self.labels = size, [], []

    def update(self, embeddings, labels):
        self.rows = (self.rows + list(embeddings.detach()))[-self.size :]
        self.labels = (self.labels + labels.tolist())[-self.size :]

    def loss(self, embeddings, labels, **options):
        """Of a batch against itself and what is in the list: no slot is empty here, so that none is excluded."""
        rows = torch.cat([embeddings, *(row[None] for row in self.rows)])
        reference_labels = torch.cat([labels, labels.new_tensor(self.labels)])
        call = {"reference": rows, "reference_labels": reference_labels, "self_offset": 0}
        return af.triplet_margin_loss(embeddings, labels, **call, **options)


def batch(n, seed, device):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(n, D, generator=generator, dtype=torch.float64)
    return rows.to(device).requires_grad_(), torch.randint(3, (n,), generator=generator).to(device)


def memory(device, size=SIZE):
    return af.CrossBatchMemory(size, D, device=device, dtype=torch.float64)


def held(ring):
    """The rows of the ring, oldest first."""
    at = (torch.arange(len(ring.labels), device=ring.cursor.device) + ring.cursor) % len(ring.labels)
    at = at[len(at) - int(ring.filled) :]
    return ring.embeddings[at], ring.labels[at]


@pytest.mark.parametrize("counts", [(2, 2, 2, 2, 2, 2), (3, 4, 7, 1, 0, 6), (5, 9, 2, 20, 3)], ids=str)
def test_the_ring_holds_the_last_rows(counts, device):
    ring, model = memory(device), Listed(SIZE)
    for seed, n in enumerate(counts):
        rows, labels = batch(n, seed, device)
        ring.update(rows, labels)
        model.update(rows, labels)
        found, found_labels = held(ring)
        assert found_labels.tolist() == model.labels
        assert torch.equal(found, torch.stack(model.rows))
        assert int(ring.filled) == len(model.rows)
        assert not ring.embeddings.requires_grad


@pytest.mark.parametrize("mining", ["hard", "topk", "semihard", "all"])
@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_loss_and_gradient_equal_those_without_empty_slots(mining, distance, device):
    """Empty slots hold a row of the batch: were they candidates, they would be the nearest to some."""
    ring, model = memory(device), Listed(SIZE)
    options = {"mining": mining, "k": 30, "margin": 0.8, "distance": distance}  # k: more than there are
    for seed in range(6):
        rows, labels = batch(3, seed, device)
        expected = model.loss(rows, labels, **options)
        (expected_grad,) = torch.autograd.grad(expected, rows)
        loss = af.triplet_margin_loss(rows, labels, **ring(rows, labels), **options)
        (grad,) = torch.autograd.grad(loss, rows)  # after the update, which must not reach it
        model.update(rows, labels)
        torch.testing.assert_close((loss, grad), (expected, expected_grad), rtol=1e-12, atol=1e-12)


def test_empty_slots_are_never_selected(device):
    ring = memory(device, size=50)
    rows, labels = batch(6, 0, device)
    for dtype in (torch.int64, torch.int32):
        call = ring.reference(rows, labels.to(dtype))
        for mining in ("hard", "topk", "semihard", "all"):
            _, positive, negative = af.mine_triplets(rows, labels.to(dtype), **call, mining=mining, k=60, margin=5.0)
            assert len(positive) > 0
            assert max(positive.max(), negative.max()) < 6
        distances, _ = af.nearest_negatives(rows, labels.to(dtype), **call, k=60)
        assert distances[:, 5:].isinf().all()
    alone = af.triplet_margin_loss(rows[:1], labels[:1], **ring.reference(rows[:1], labels[:1]))
    assert alone.item() == 0.0  # neither a positive nor a negative


def test_a_row_is_not_its_own_positive_and_a_past_copy_is(device):
    ring = memory(device)
    rows = torch.tensor([[1.0, 0.0, 0.0], [4.0, 0.0, 0.0]], dtype=torch.float64, device=device)
    labels = torch.tensor([0, 1], device=device)
    assert len(af.mine_triplets(rows, labels, **ring(rows, labels))[0]) == 0
    found = af.mine_triplets(rows, labels, **ring(rows, labels))
    assert [x.tolist() for x in found] == [[0, 1], [2, 3], [1, 0]]


def test_empty_slots_cost_no_digits(device):
    """Far from the origin, zeros in them would: an error of 1e-3 here."""
    rows = (100.0 + 0.01 * torch.randn(128, 32, generator=torch.Generator().manual_seed(0))).to(device).requires_grad_()
    labels = torch.arange(128, device=device) % 8
    ring = af.CrossBatchMemory(512, 32, device=device)
    (expected,) = torch.autograd.grad(af.triplet_margin_loss(rows.double(), labels, mining="all", margin=0.0), rows)
    call = ring.reference(rows, labels)
    (grad,) = torch.autograd.grad(af.triplet_margin_loss(rows, labels, **call, mining="all", margin=0.0), rows)
    assert (grad - expected).norm() < 2e-4 * expected.norm()


def test_classes_of_the_user_are_excluded_too(device):
    ring = memory(device)
    rows, labels = batch(5, 0, device)
    ring.update(*batch(5, 1, device))
    exclude = (labels + 1) % 3
    call = ring.reference(rows, labels, exclude)
    _, _, negative = af.mine_triplets(rows, labels, **call, mining="topk", k=99)
    assert len(negative) > 0
    anchor, _, negative = af.mine_triplets(rows, labels, **call, mining="all")
    assert (call["reference_labels"][negative] == (labels + 2)[anchor] % 3).all()


def test_a_state_dict_resumes_in_the_middle_of_the_ring(device):
    one, other = memory(device), memory(device)
    for seed in range(4):
        one.update(*batch(3, seed, device))
    state = {name: x.clone() for name, x in one.state_dict().items()}
    assert set(state) == {"embeddings", "labels", "cursor", "filled"}
    assert int(state["cursor"]) == 12 % SIZE
    other.load_state_dict(state)
    for ring in (one, other):
        ring.update(*batch(4, 9, device))
    assert all(torch.equal(x, y) for x, y in zip(one.buffers(), other.buffers(), strict=True))
    one.reset()
    assert all(torch.equal(x, y) for x, y in zip(one.buffers(), memory(device).buffers(), strict=True))


def test_half_precision_rows_keep_their_graph(device):
    ring = af.CrossBatchMemory(4, D, device=device, dtype=torch.bfloat16)
    rows = torch.randn(4, D, device=device, requires_grad=True)
    labels = torch.tensor([0, 0, 1, 1], device=device)
    for _ in range(2):
        loss = af.triplet_margin_loss(rows, labels, **ring(rows, labels), margin=9.0)
        assert loss.dtype == torch.float32
        (grad,) = torch.autograd.grad(loss, rows)
        assert grad.any()
    assert ring.embeddings.dtype == torch.bfloat16
    assert torch.equal(ring.embeddings, rows.detach().bfloat16())


def test_an_empty_batch_changes_nothing(device):
    ring = memory(device)
    ring.update(*batch(3, 0, device))
    before = [x.clone() for x in ring.buffers()]
    rows, labels = batch(0, 1, device)
    assert af.triplet_margin_loss(rows, labels, **ring(rows, labels)).item() == 0.0
    assert all(torch.equal(x, y) for x, y in zip(ring.buffers(), before, strict=True))


@pytest.mark.parametrize("mining", ["hard", "all"])
def test_compiles_into_one_full_graph(mining, device, backend):
    if backend == "triton" and device.type == "cpu":
        pytest.skip("the interpreter does not compile")
    plain, compiled = memory(device), memory(device)

    def step(ring, rows, labels):
        return af.triplet_margin_loss(rows, labels, **ring(rows, labels), mining=mining)

    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    # Inductor takes its time for the formulas of the loss, which test_triplet.py compiles with it: not here.
    compiler = "aot_eager" if backend == "reference" or mining == "all" else "inductor"
    graph = torch.compile(step, fullgraph=True, backend=compiler)
    for seed in range(4):  # wraps around
        rows, labels = batch(3, seed, device)
        losses = step(plain, rows, labels), graph(compiled, rows, labels)
        expected, found = ((loss, torch.autograd.grad(loss, rows)) for loss in losses)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert all(torch.equal(x, y) for x, y in zip(plain.buffers(), compiled.buffers(), strict=True))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ((0, 3), ValueError, "size=0"),
        ((3, 0), ValueError, "dim=0"),
        ((3.0, 3), TypeError, "size is a float"),
    ],
)
def test_a_bad_size_is_named(arguments, error, words):
    with pytest.raises(error, match=words):
        af.CrossBatchMemory(*arguments)
    with pytest.raises(TypeError, match=r"dtype=torch\.int64"):
        af.CrossBatchMemory(4, 3, dtype=torch.int64)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ((torch.zeros(2, 4), torch.arange(2)), ValueError, r"embeddings.shape=\(2, 4\)"),
        ((torch.zeros(2, 3), torch.arange(3)), ValueError, r"labels.shape=\(3,\)"),
        ((torch.zeros(2, 3), torch.zeros(2)), TypeError, "labels.dtype"),
        ((torch.zeros(2, 3), torch.arange(2), torch.zeros(2, 2).long()), ValueError, "exclude_labels.shape"),
    ],
)
def test_a_bad_batch_is_named(arguments, error, words):
    ring = af.CrossBatchMemory(4, 3)
    with pytest.raises(error, match=words):
        ring(*arguments)
    assert int(ring.filled) == 0
