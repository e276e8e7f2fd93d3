"""What is special to joint augmentation: each operation is Pillow's own, images of one level, the draws."""

import math

import pytest
import torch
from cases import images
from cases.images import Pictures, draw_pictures
from places import moving, stand_on

import amkd_fast as af
from amkd_fast import backends
from amkd_fast.ops.images.augment_reference import OPERATIONS

OPERATION = "images"
FEW = backends.INTERPRETING  # images: Triton's interpreter takes a fraction of a second for each
joint_augment = moving(af.joint_augment)


@pytest.fixture(autouse=True)
def _on_each_backend(device):
    before = stand_on(device)
    yield
    stand_on(before)


def draw_pixels(count, shape, seed=0):
    return draw_pictures(Pictures(count, shape), seed=seed)["pixels"]


def draw_rows(count, seed=1):
    return torch.randint(-(2**63), 2**63 - 1, (count,), generator=torch.Generator().manual_seed(seed))


def by_pillow(pixels, seed, rows, probability, fill, operations=None):
    pytest.importorskip("PIL")
    return images.by_pillow(pixels, seed, rows, probability=probability, fill=fill, operations=operations)


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 33, 17), (3, 16, 18)], ids=str)
def test_each_operation_is_that_of_pillow(backend, operation, shape):
    count = 2 if FEW else 16
    pixels, rows = draw_pixels(count, shape), draw_rows(count)
    got = joint_augment(pixels, probability=1.0, seed=3, rows=rows, fill=99, operations=[operation])
    assert torch.equal(got, by_pillow(pixels, 3, rows, 1.0, 99, [operation]))
    assert backends.last("images") == backend
    assert not torch.equal(got, pixels) or (operation, shape[0]) == ("color", 1)


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


def test_rows_may_have_any_strides(backend):
    pixels, rows = draw_pixels(2 if FEW else 9, (3, 8, 8)), draw_rows(18)
    rows = rows[: 2 * len(pixels) : 2]
    assert torch.equal(joint_augment(pixels, seed=3, rows=rows), by_pillow(pixels, 3, rows, 0.5, 0))
