"""What is special to batches of cropped and mirrored images: every level's bits, the draws, numbers of any kind."""

import math

import pytest
import torch
from cases.images import cropped_one_by_one
from places import moving, stand_on

import amkd_fast as af
from amkd_fast import backends

OPERATION = "images"
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
FORMATS = (torch.contiguous_format, torch.channels_last)
SCALE, SHIFT = 1 / 255 / 0.2471, (-1.99, -1.98, -1.71, 0.3, 1e-3)
AUGMENTED = {"pad": 2, "flip": True, "seed": 11}
crop_flip = moving(af.crop_flip)
by_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
by_format = pytest.mark.parametrize("memory_format", FORMATS, ids=str)


@pytest.fixture(autouse=True)
def _on_each_backend(device):
    before = stand_on(device)
    yield
    stand_on(before)


def draw_pixels(count, shape, seed=0):
    return torch.randint(0, 256, (count, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def draw_index(rows, count, seed=1):
    return torch.randint(0, count, (rows,), generator=torch.Generator().manual_seed(seed))


def one_by_one(pixels, index, scale, shift, dtype=torch.float32, **given):
    work = torch.promote_types(dtype, torch.float32)
    shift = torch.tensor(shift, dtype=work)
    return cropped_one_by_one(pixels, index, scale=scale, shift=shift, **given).to(dtype)


@by_dtype
def test_every_level_has_the_specified_bits(backend, dtype):
    """A fused product and sum would differ in the last bit of many of them."""
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).repeat(40, 1, 1, 1)
    numbers = torch.randn(40, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    for i, (scale, shift) in enumerate(numbers.tolist()):
        got = crop_flip(pixels, torch.tensor([i]), scale=scale, shift=[shift], dtype=dtype)
        assert torch.equal(got, one_by_one(pixels, torch.tensor([i]), scale, [shift], dtype=dtype))


def test_all_rows_in_order_without_an_index(backend):
    pixels = draw_pixels(5, (3, 8, 6))
    want = crop_flip(pixels, torch.arange(5), scale=SCALE, shift=SHIFT[:3], **AUGMENTED)
    assert torch.equal(crop_flip(pixels, scale=SCALE, shift=SHIFT[:3], **AUGMENTED), want)
    narrow = crop_flip(pixels, torch.arange(5, dtype=torch.int32), scale=SCALE, shift=SHIFT[:3], **AUGMENTED)
    assert torch.equal(narrow, want)


def test_an_image_is_the_same_in_any_batch(backend):
    pixels, order = draw_pixels(40, (3, 8, 8)), torch.randperm(40, generator=torch.Generator().manual_seed(5))
    whole = crop_flip(pixels, scale=SCALE, shift=SHIFT[:3], **AUGMENTED)
    for index in (order, order[:7], order[3:4], order[::2].repeat(2)):
        assert torch.equal(crop_flip(pixels, index, scale=SCALE, shift=SHIFT[:3], **AUGMENTED), whole[index])


def test_seeds_are_ints_or_tensors_and_make_other_draws(backend):
    pixels = draw_pixels(30, (1, 9, 9))
    results = []
    for seed in (0, 1, -1, 2**40 + 3, 2**63 - 1, -(2**63)):
        numbers = {"scale": SCALE, "shift": [0.0], "pad": 2, "flip": True}
        results.append(crop_flip(pixels, seed=seed, **numbers))
        assert torch.equal(results[-1], crop_flip(pixels, seed=torch.tensor(seed), **numbers))
        assert torch.equal(results[-1], one_by_one(pixels, torch.arange(30), seed=seed, **numbers))
    assert all(not torch.equal(a, b) for i, a in enumerate(results) for b in results[:i])
    assert torch.equal(crop_flip(pixels, seed=2**64 + 1, **numbers), results[1])  # the low 64 bits count


def test_offsets_and_flips_are_uniform(backend):
    """Level 1 + 16 y + x tells where the centre of a window came from."""
    count, pad, side = 300 if backends.INTERPRETING else 20_000, 2, 5
    place = 1 + 16 * torch.arange(side)[:, None] + torch.arange(side)
    pixels = place.to(torch.uint8).expand(count, 1, side, side).contiguous()
    got = crop_flip(pixels, scale=1.0, shift=[0.0], pad=pad, flip=True, seed=3)[:, 0]
    centre = got[:, 2, 2].long() - 1
    counts = torch.bincount((centre // 16) * side + centre % 16, minlength=side * side)
    mirrored = (got[:, 2, 1] - got[:, 2, 2] == 1) | (got[:, 2, 2] - got[:, 2, 3] == 1)
    expected = count / side**2
    assert len(counts) == side**2
    assert ((counts - expected).square() / expected).sum() < 60  # chi-square of 24 degrees: 52 has p = 0.001
    assert abs(mirrored.double().mean() - 0.5) < 4 / (2 * math.sqrt(count))


def test_nothing_is_drawn_without_crop_and_flip(backend):
    pixels = draw_pixels(6, (3, 5, 4))
    want = pixels * 0.5 + torch.tensor([1.0, 2.0, 3.0])[:, None, None]
    for seed in (0, 1):
        assert torch.equal(crop_flip(pixels, scale=0.5, shift=[1.0, 2.0, 3.0], seed=seed), want)


def test_shift_is_a_tensor_or_numbers(backend):
    pixels = draw_pixels(4, (3, 6, 6))
    want = crop_flip(pixels, scale=SCALE, shift=SHIFT[:3])
    tensor = torch.tensor(SHIFT[:3])
    strided = torch.stack([tensor, tensor], 1)[:, 0]
    for shift in (list(SHIFT[:3]), tensor, tensor.double(), strided, tensor.clone().requires_grad_()):
        got = crop_flip(pixels, scale=SCALE, shift=shift)
        assert torch.equal(got, want)
        assert not got.requires_grad
    wide = crop_flip(pixels, scale=SCALE, shift=torch.tensor(SHIFT[:3], dtype=torch.float64), dtype=torch.float64)
    assert torch.equal(wide, one_by_one(pixels, torch.arange(4), SCALE, SHIFT[:3], dtype=torch.float64))


@by_format
def test_the_batch_lies_as_it_was_asked_for(backend, memory_format):
    numbers = {"scale": SCALE, "shift": SHIFT[:3], "memory_format": memory_format}
    for index in (None, torch.tensor([1, 0, 1]), torch.zeros(0, dtype=torch.int64)):
        got = crop_flip(draw_pixels(4, (3, 6, 7)), index, **numbers, **AUGMENTED)
        assert got.is_contiguous(memory_format=memory_format)
        assert not got.requires_grad


def test_rows_out_of_range(backend, device):
    pixels = draw_pixels(5, (1, 4, 4))
    for row in (-1, 5, 2**40):
        index = torch.tensor([0, row])
        if device.type == "cpu" and backend not in ("triton", "cuda"):
            with pytest.raises(ValueError, match=f"^index holds {row}: must lie in \\[0, 5\\)"):
                crop_flip(pixels, index, scale=1.0, shift=[0.0])
        else:  # never read out of bounds
            got = crop_flip(pixels, index, scale=1.0, shift=[0.0], **AUGMENTED)
            want = crop_flip(pixels, index.clamp(0, 4), scale=1.0, shift=[0.0], **AUGMENTED)
            assert torch.equal(got, want)
