"""Joint augmentation: Pillow's own functions one after another, the specification bit for bit, the draws."""

import math

import pytest
import torch
from places import moving, stand_on, there
from traps import NothingWaits

import amkd_fast as af
from amkd_fast import backends
from amkd_fast.ops.images.augment_reference import OPERATIONS

OPERATION = "images"
# Odd and even sides, one and three channels; no inside; a row, a column, a pixel; several of Triton's tiles.
SHAPES = [(3, 8, 8), (3, 33, 17), (1, 32, 32), (1, 33, 17), (3, 2, 5), (1, 1, 9), (1, 9, 1), (3, 1, 1), (3, 40, 41)]
FEW = backends.INTERPRETING  # images: Triton's interpreter takes a fraction of a second for each
joint_augment = moving(af.joint_augment)
by_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


@pytest.fixture(autouse=True)
def _on_each_backend(device):
    before = stand_on(device)
    yield
    stand_on(before)


def draw_pixels(count, shape, seed=0):
    """Noise; and, every other image, a slope of few levels with noise of its own: tables and means of another kind."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (count, *shape), dtype=torch.uint8, generator=generator)
    slope = pixels // 4 + 20 + 3 * (torch.arange(shape[2]) % 40).to(torch.uint8)
    return torch.where((torch.arange(count) % 2 == 0)[:, None, None, None], pixels, slope)


def draw_rows(count, seed=1):
    return torch.randint(-(2**63), 2**63 - 1, (count,), generator=torch.Generator().manual_seed(seed))


def by_pillow(pixels, seed, rows, probability, fill, operations=OPERATIONS):
    pytest.importorskip("PIL")
    from benchmarks.peers import pillow

    drawn = pillow.draws(seed, rows.tolist(), probability, pixels.shape[2:])
    drawn = [[(name, size) for name, size in draw if name in operations] for draw in drawn]
    return pillow.batch(pixels, drawn, fill)


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 33, 17), (3, 16, 18)], ids=str)
def test_each_operation_is_that_of_pillow(backend, operation, shape):
    count = 2 if FEW else 16
    pixels, rows = draw_pixels(count, shape), draw_rows(count)
    got = joint_augment(pixels, probability=1.0, seed=3, rows=rows, fill=99, operations=[operation])
    assert torch.equal(got, by_pillow(pixels, 3, rows, 1.0, 99, [operation]))
    assert backends.last("images") == backend
    assert not torch.equal(got, pixels) or (operation, shape[0]) == ("color", 1)


@by_shape
@pytest.mark.parametrize("probability", [0.5, 1.0])
def test_chains_are_those_of_pillow(backend, shape, probability):
    """Every pixel of every chain: nothing is left of a difference that a later operation could widen."""
    count = 2 if FEW else 24
    for seed in (7,) if FEW else (7, -1, 2**40 + 3):
        pixels, rows = draw_pixels(count, shape, seed % 1000), draw_rows(count, seed % 1000)
        got = joint_augment(pixels, probability=probability, seed=seed, rows=rows, fill=128)
        difference = (got.int() - by_pillow(pixels, seed, rows, probability, 128).int()).abs()
        assert difference.max() <= 1
        assert (difference == 0).float().mean() == 1.0


@pytest.mark.parametrize("level", [0, 1, 77, 255])
def test_images_of_one_level(backend, level):
    pixels = torch.full((2 if FEW else 30, 3, 20, 20), level, dtype=torch.uint8)
    rows = torch.arange(len(pixels))
    got = joint_augment(pixels, probability=0.9, seed=5, fill=level)
    assert torch.equal(got, by_pillow(pixels, 5, rows, 0.9, level))


def test_probability_says_how_often(backend):
    """An inverted image of zeros is white, one that is not stays black."""
    count = 100 if FEW else 20_000
    pixels = torch.zeros(count, 1, 1, 1, dtype=torch.uint8)
    for probability in (0.0, 0.2, 1.0):
        share = (joint_augment(pixels, probability=probability, seed=1, operations=["invert"]) == 255).double().mean()
        assert abs(share - probability) <= 4 * math.sqrt(probability * (1 - probability) / count)


def test_magnitudes_are_uniform(backend):
    """A lone bright column tells how far its image was translated, and a threshold which levels it inverts."""
    if FEW:
        pytest.skip("too slow in Triton's interpreter")
    count, width = 2000, 331
    pixels = torch.zeros(count, 1, 1, width, dtype=torch.uint8)
    pixels[..., width // 2] = 255
    moved = joint_augment(pixels, probability=1.0, seed=2, operations=["translate_x"])[:, 0, 0].long().argmax(1)
    moved -= width // 2
    assert moved.min() >= -150
    assert moved.max() <= 150
    expected = count / 10
    counts = torch.histc(moved.double(), 10, -150, 150)
    assert ((counts - expected).square() / expected).sum() < 33  # chi-square of 9 degrees: 27.9 has p = 0.001
    levels = torch.arange(256, dtype=torch.uint8).expand(count, 1, 1, 256).contiguous()
    kept = (joint_augment(levels, probability=1.0, seed=2, operations=["solarize"]) == levels).flatten(1).sum(1)
    assert abs(kept.double().mean() - 128) < 4 * 257 / math.sqrt(12 * count)


def test_an_image_is_the_same_in_any_batch(backend):
    count = 4 if FEW else 40
    pixels, order = draw_pixels(count, (3, 8, 9)), torch.randperm(count, generator=torch.Generator().manual_seed(5))
    whole = joint_augment(pixels, seed=11)
    for rows in (order, order[:3], order[:1]):
        assert torch.equal(joint_augment(pixels[rows], seed=11, rows=rows), whole[rows])
    assert torch.equal(joint_augment(pixels, seed=11), whole)


def test_seeds_are_ints_or_tensors_and_make_other_draws(backend):
    pixels = draw_pixels(2 if FEW else 20, (1, 9, 9))
    results = []
    for seed in (0, 1, -1, 2**40 + 3, 2**63 - 1, -(2**63)):
        results.append(joint_augment(pixels, seed=seed))
        assert torch.equal(results[-1], joint_augment(pixels, seed=torch.tensor(seed)))
    assert all(not torch.equal(a, b) for i, a in enumerate(results) for b in results[:i])
    assert torch.equal(joint_augment(pixels, seed=2**64 + 1), results[1])  # the low 64 bits count


def test_leaving_operations_out_changes_no_draw(backend):
    pixels = draw_pixels(2 if FEW else 20, (3, 9, 9))
    rows = torch.arange(len(pixels))
    chosen = ["rotate", "equalize", "sharpness"]
    got = joint_augment(pixels, seed=4, operations=chosen[::-1])
    assert torch.equal(got, by_pillow(pixels, 4, rows, 0.5, 0, chosen))
    assert torch.equal(joint_augment(pixels, seed=4, operations=[]), pixels)


def test_empty_batches_and_images(backend):
    for shape in ((0, 3, 6, 6), (4, 3, 0, 6), (4, 1, 6, 0)):
        got = joint_augment(torch.zeros(shape, dtype=torch.uint8), seed=0, probability=1.0)
        assert got.shape == shape
        assert got.dtype == torch.uint8


def test_any_number_of_threads_and_strided_rows(backend, device):
    if device.type != "cpu" or FEW:
        pytest.skip("threads of a CPU")
    pixels, rows = draw_pixels(90, (3, 16, 16)), draw_rows(180)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(af.joint_augment(pixels, seed=3, rows=rows[::2]))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(result, results[0]) for result in results)
    assert torch.equal(results[0], by_pillow(pixels, 3, rows[::2], 0.5, 0))


def test_large_images(backend):
    if FEW:
        pytest.skip("too slow in Triton's interpreter")
    pixels = draw_pixels(4, (3, 120, 200))
    rows = torch.arange(4)
    for seed in range(2):
        got = joint_augment(pixels, seed=seed, probability=0.7, fill=3)
        assert torch.equal(got, by_pillow(pixels, seed, rows, 0.7, 3))


def test_nothing_waits_for_the_device(backend):
    pixels, rows, seed = there(draw_pixels(2, (3, 6, 6))), there(draw_rows(2)), there(torch.tensor(3))
    with NothingWaits():
        af.joint_augment(pixels, seed=seed, rows=rows)


def test_compiles_in_one_graph(backend, device):
    def batch(pixels, rows, seed):
        return af.joint_augment(pixels, seed=seed, rows=rows)

    arguments = there(draw_pixels(3, (3, 6, 6))), there(draw_rows(3)), there(torch.tensor(3))
    torch._dynamo.reset()
    got = torch.compile(batch, fullgraph=True, backend="aot_eager")(*arguments)
    assert torch.equal(got, batch(*arguments))


@pytest.mark.skipif(backends.INTERPRETING, reason="opcheck runs each operator a dozen times")
def test_opcheck(backend, device):
    if backend == "reference":
        pytest.skip("backend reference: has no operator")
    operator = getattr(torch.ops.amkd_fast, f"images_joint_augment{'_triton' if backend == 'triton' else ''}").default
    pixels, rows, seeds = there(draw_pixels(5, (3, 6, 7))), there(draw_rows(5)), there(torch.tensor(3))
    for arguments in ((pixels, rows, None), (pixels, None, seeds)):
        checks = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
        torch.library.opcheck(operator, (*arguments, 2**31, 2**14 - 1, 7, 3), test_utils=checks)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"pixels": [1]}, TypeError, "pixels is a list"),
        ({"pixels": torch.zeros(4, 3, 5, 5)}, TypeError, "pixels.dtype"),
        ({"pixels": torch.zeros(3, 5, 5, dtype=torch.uint8)}, ValueError, "pixels.shape"),
        ({"pixels": torch.zeros(4, 2, 5, 5, dtype=torch.uint8)}, ValueError, r"pixels.shape=\(4, 2, 5, 5\)"),
        ({"pixels": torch.zeros(0, 1, 1, 2**14 + 1, dtype=torch.uint8)}, ValueError, "pixels.shape.*2\\^14"),
        ({"pixels": torch.zeros(4, 3, 5, 6, dtype=torch.uint8)[..., ::2]}, ValueError, "pixels.stride"),
        ({"rows": torch.zeros(4)}, TypeError, "rows.dtype"),
        ({"rows": torch.zeros(3, dtype=torch.int64)}, ValueError, "rows.shape"),
        ({"probability": 1.1}, ValueError, "probability=1.1"),
        ({"probability": -0.1}, ValueError, "probability=-0.1"),
        ({"probability": math.nan}, ValueError, "probability=nan"),
        ({"probability": "1"}, TypeError, "probability is a str"),
        ({"fill": 256}, ValueError, "fill=256"),
        ({"fill": 0.5}, TypeError, "fill is a float"),
        ({"operations": "rotate"}, TypeError, "operations is a str"),
        ({"operations": ["cutout"]}, ValueError, "operations='cutout'"),
        ({"seed": 0.5}, TypeError, "seed is a float"),
        ({"seed": torch.zeros(1, dtype=torch.int64)}, ValueError, "seed.shape"),
    ],
)
def test_errors_name_the_argument(backend, change, error, words):
    usual = {"pixels": torch.zeros(4, 3, 5, 5, dtype=torch.uint8), "seed": 0}
    with pytest.raises(error, match=words):
        joint_augment(**{**usual, **change})
