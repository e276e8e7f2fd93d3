"""Batches of augmented images: a loop over samples with F.pad and slices, the specification bit for bit, the draws."""

import math

import pytest
import torch
from places import moving, stand_on, there
from torch.nn import functional as F
from traps import NothingWaits

import amkd_fast as af
from amkd_fast import backends, philox
from amkd_fast.ops.images import reference

OPERATION = "images"
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
FORMATS = (torch.contiguous_format, torch.channels_last)
SCALE, SHIFT = 1 / 255 / 0.2471, (-1.99, -1.98, -1.71, 0.3, 1e-3)
AUGMENTED = {"pad": 2, "flip": True, "seed": 11}
crop_flip = moving(af.crop_flip)
by_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
by_format = pytest.mark.parametrize("memory_format", FORMATS, ids=str)
# One and three channels; widths of no vector, of a vector and a rest, above a tile of several programs; a pixel.
by_shape = pytest.mark.parametrize(
    "shape", [(3, 32, 32), (1, 28, 28), (3, 7, 5), (1, 31, 17), (5, 9, 33), (3, 40, 41), (2, 1, 1), (1, 3, 8)], ids=str
)


@pytest.fixture(autouse=True)
def _on_each_backend(device):
    before = stand_on(device)
    yield
    stand_on(before)


def draw_pixels(count, shape, seed=0):
    return torch.randint(0, 256, (count, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def draw_index(rows, count, seed=1):
    return torch.randint(0, count, (rows,), generator=torch.Generator().manual_seed(seed))


def one_by_one(pixels, index, scale, shift, pad=0, flip=False, seed=0, dtype=torch.float32):
    """What the docstring says, sample by sample, with Python's own integers for the draws."""
    work = torch.float64 if dtype == torch.float64 else torch.float32
    height, width = pixels.shape[2:]
    samples = []
    for row in index.tolist():
        words = [int(word) for word in philox.words(seed, torch.tensor(row), stream=reference.STREAM)]
        dy, dx = (word * (2 * pad + 1) >> 32 for word in words[:2])
        window = F.pad(pixels[row], (pad, pad, pad, pad))[:, dy : dy + height, dx : dx + width]
        if flip and words[2] >> 31:
            window = window.flip(-1)
        samples.append((window.to(work) * scale + torch.tensor(shift, dtype=work)[:, None, None]).to(dtype))
    return torch.stack(samples)


@by_shape
@by_format
@pytest.mark.parametrize(("pad", "flip"), [(0, False), (4, True), (3, False), (0, True), (50, True)])
def test_is_padding_slicing_and_flipping_bit_for_bit(backend, shape, memory_format, pad, flip):
    pixels, index, shift = draw_pixels(23, shape), draw_index(9, 23), SHIFT[: shape[0]]
    augmented = {"pad": pad, "flip": flip, "seed": 7}
    got = crop_flip(pixels, index, scale=SCALE, shift=shift, **augmented, memory_format=memory_format)
    assert torch.equal(got, one_by_one(pixels, index, SCALE, shift, **augmented))
    assert got.is_contiguous(memory_format=memory_format)
    assert backends.last("images") == backend


@by_shape
@by_dtype
@by_format
def test_dtypes_round_once_from_the_arithmetic(backend, shape, dtype, memory_format):
    pixels, index, shift = draw_pixels(8, shape), draw_index(6, 8), SHIFT[: shape[0]]
    got = crop_flip(
        pixels, index, scale=SCALE, shift=shift, **AUGMENTED, dtype=dtype, memory_format=memory_format
    )  # fmt: skip
    assert got.dtype == dtype
    assert torch.equal(got, one_by_one(pixels, index, SCALE, shift, **AUGMENTED, dtype=dtype))


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
def test_empty_batches_and_images(backend, memory_format):
    pixels, none = draw_pixels(4, (3, 6, 6)), torch.zeros(0, dtype=torch.int64)
    for images, index, shape in (
        (pixels, none, (0, 3, 6, 6)),
        (pixels[:0], None, (0, 3, 6, 6)),
        (pixels[:0], none, (0, 3, 6, 6)),
        (torch.zeros(4, 3, 0, 6, dtype=torch.uint8), None, (4, 3, 0, 6)),
    ):
        got = crop_flip(images, index, scale=1.0, shift=[0.0] * 3, **AUGMENTED, memory_format=memory_format)
        assert got.shape == shape


def test_many_rows_and_large_images(backend):
    if backends.INTERPRETING:
        pytest.skip("too slow in Triton's interpreter")
    pixels, index = draw_pixels(6, (3, 64, 72)), draw_index(300, 6)
    numbers = {"scale": SCALE, "shift": SHIFT[:3], **AUGMENTED}
    got = crop_flip(pixels, index, **numbers)
    assert torch.equal(got, one_by_one(pixels, torch.arange(6), **numbers)[index])
    assert torch.equal(crop_flip(pixels, index, **numbers), got)


def test_nothing_waits_for_the_device(backend):
    pixels, index = there(draw_pixels(9, (3, 6, 6))), there(draw_index(4, 9))
    numbers = {"scale": SCALE, "shift": SHIFT[:3], **AUGMENTED, "seed": there(torch.tensor(3))}
    with NothingWaits():
        af.crop_flip(pixels, **numbers)
        if backend != "reference":  # which looks at the rows on a CPU
            af.crop_flip(pixels, index, **numbers)


def test_compiles_in_one_graph(backend, device):
    def batch(pixels, index, seed):
        return af.crop_flip(
            pixels, index, scale=SCALE, shift=SHIFT[:3], pad=2, flip=True, seed=seed, memory_format=torch.channels_last
        )

    arguments = there(draw_pixels(9, (3, 6, 6))), there(draw_index(4, 9)), there(torch.tensor(3))
    torch._dynamo.reset()
    compiled = torch.compile(batch, fullgraph=True, backend="aot_eager")
    want = batch(*arguments)
    got = compiled(*arguments)
    assert torch.equal(got, want)
    assert got.stride() == want.stride()


@pytest.mark.skipif(backends.INTERPRETING, reason="opcheck runs each operator a dozen times")
def test_opcheck(backend, device):
    if backend == "reference":
        pytest.skip("backend reference: has no operator")
    operator = getattr(torch.ops.amkd_fast, f"images_crop_flip{'_triton' if backend == 'triton' else ''}").default
    pixels, index, shift = there(draw_pixels(5, (3, 6, 7))), there(draw_index(4, 5)), there(torch.tensor(SHIFT[:3]))
    for chosen, seeds in ((None, there(torch.tensor(3))), (index, None)):
        out = torch.empty(5 if chosen is None else 4, 3, 6, 7, device=device)
        checks = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
        torch.library.opcheck(operator, (out, pixels, chosen, shift, seeds, SCALE, 2, True, 3), test_utils=checks)


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


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"pixels": [1]}, TypeError, "pixels is a list"),
        ({"pixels": torch.zeros(4, 3, 5, 5)}, TypeError, "pixels.dtype"),
        ({"pixels": torch.zeros(3, 5, 5, dtype=torch.uint8)}, ValueError, "pixels.shape"),
        ({"pixels": torch.zeros(4, 3, 5, 6, dtype=torch.uint8)[..., ::2]}, ValueError, "pixels.stride"),
        ({"index": torch.zeros(2)}, TypeError, "index.dtype"),
        ({"index": torch.zeros(2, 1, dtype=torch.int64)}, ValueError, "index.shape"),
        ({"pixels": torch.zeros(0, 3, 5, 5, dtype=torch.uint8)}, ValueError, "index.shape.*no image"),
        ({"scale": math.inf}, ValueError, "scale=inf"),
        ({"scale": 1e39}, ValueError, r"scale=1e\+39"),
        ({"scale": "1"}, TypeError, "scale is a str"),
        ({"shift": 0.5}, TypeError, "shift is a float"),
        ({"shift": [0.0, 1.0]}, ValueError, "shift=.*must have 3 numbers"),
        ({"shift": [0.0, 1.0, math.nan]}, ValueError, "shift=nan"),
        ({"shift": torch.zeros(2)}, ValueError, "shift.shape"),
        ({"shift": torch.zeros(3, dtype=torch.int64)}, TypeError, "shift.dtype"),
        ({"pad": -1}, ValueError, "pad=-1"),
        ({"pad": 2**30}, ValueError, "pad=1073741824"),
        ({"pad": 1.0}, TypeError, "pad is a float"),
        ({"pad": True}, TypeError, "pad is a bool"),
        ({"flip": 1}, TypeError, "flip is a int"),
        ({"seed": 0.5}, TypeError, "seed is a float"),
        ({"seed": torch.zeros(1, dtype=torch.int64)}, ValueError, "seed.shape"),
        ({"dtype": torch.int32}, ValueError, "dtype=torch.int32"),
        ({"memory_format": torch.preserve_format}, ValueError, "memory_format=torch.preserve_format"),
    ],
)
def test_errors_name_the_argument(backend, change, error, words):
    usual = {"pixels": torch.zeros(4, 3, 5, 5, dtype=torch.uint8), "index": torch.zeros(2, dtype=torch.int64)}
    usual |= {"scale": 1.0, "shift": [0.0] * 3, "pad": 1, "flip": True}
    with pytest.raises(error, match=words):
        crop_flip(**{**usual, **change})
