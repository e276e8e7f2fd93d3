"""What the checks of Triton's interpreter find, and what they let pass."""

import pytest
import torch

from amkd_fast import backends

if not backends.INTERPRETING:
    pytest.skip("needs TRITON_INTERPRET=1", allow_module_level=True)

import triton
import triton.language as tl

from tests.interpreter import MemoryFault

pytestmark = pytest.mark.kernels


@triton.jit
def shift(x, out, n, BY: tl.constexpr, GUARD: tl.constexpr, BLOCK: tl.constexpr):
    """out[i] = x[i + BY], the last ones 0 where GUARD."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = (i < n) & (i + BY < n) if GUARD else i < n
    tl.store(out + i, tl.load(x + i + BY, mask=inside, other=0), mask=i < n)


@triton.jit
def twice(x, BLOCK: tl.constexpr, BARRIER: tl.constexpr):
    """Every program mirrors its block, and mirrors it back."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mirrored = tl.program_id(0) * BLOCK + BLOCK - 1 - tl.arange(0, BLOCK)
    for _ in tl.static_range(2):
        values = tl.load(x + mirrored)
        if BARRIER:
            tl.debug_barrier()
        tl.store(x + i, values)
        if BARRIER:
            tl.debug_barrier()


@triton.jit
def pass_on(x, out, BLOCK: tl.constexpr, BARRIER: tl.constexpr):
    """Doubles x, then copies it."""
    i = tl.arange(0, BLOCK)
    tl.store(x + i, 2 * tl.load(x + i))
    if BARRIER:
        tl.debug_barrier()
    tl.store(out + i, tl.load(x + i))


@triton.jit
def total(x, out, n, ATOMIC: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    part = tl.sum(tl.load(x + i, mask=i < n, other=0), 0)
    if ATOMIC:
        tl.atomic_add(out, part, sem="relaxed")
    else:
        tl.store(out, part)


@triton.jit
def bytes_and_words(x, out, BLOCK: tl.constexpr):
    """Every program writes four bytes as one word, and reads the byte behind them."""
    place = tl.program_id(0)
    tl.store((x + 4 * place).to(tl.pointer_type(tl.int32)), place)
    tl.debug_barrier()
    tl.store(out + place, tl.load(x + 4 * place + BLOCK))


@pytest.fixture(autouse=True)
def triton_alone(backend):
    if backend != "triton":
        pytest.skip("is about Triton's interpreter")


def launch(kernel, programs, *arguments, **options):
    kernel[(programs,)](*arguments, **options)


@pytest.fixture
def x():
    return torch.arange(10.0)


def test_right_kernels_pass(backend, x):
    out = torch.empty(10)
    launch(shift, 3, x, out, 10, BY=1, GUARD=True, BLOCK=4)
    assert out.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0]
    launch(twice, 2, x[:8], BLOCK=4, BARRIER=True)
    assert x.tolist() == list(range(10))
    out = torch.zeros(1)
    launch(total, 3, x, out, 10, ATOMIC=True, BLOCK=4)
    assert out.item() == 45


def test_in_place_is_no_race(backend, x):
    launch(shift, 3, x, x, 10, BY=0, GUARD=True, BLOCK=4)
    assert x.tolist() == list(range(10))


@pytest.mark.parametrize("view", [slice(0, 9), slice(1, 10)], ids=str)
def test_beyond_a_tensor_is_refused(backend, x, view):
    """Also where there is more memory behind a view, or before it."""
    by = 1 if view.start == 0 else -1
    with pytest.raises(MemoryFault, match=r"shift: reads .* outside of its tensors"):
        launch(shift, 3, x[view], torch.empty(9), 9, BY=by, GUARD=False, BLOCK=4)


def test_stores_beyond_a_tensor_are_refused(backend, x):
    with pytest.raises(MemoryFault, match=r"shift: writes element 9 of out, outside of its tensors"):
        launch(shift, 3, x, torch.empty(10)[:9], 10, BY=0, GUARD=True, BLOCK=4)


def test_misaligned_access_is_refused(backend):
    data = torch.zeros(16, dtype=torch.uint8)
    with pytest.raises(MemoryFault, match="not aligned to 4 bytes"):
        launch(bytes_and_words, 2, data[1:], torch.zeros(2, dtype=torch.uint8), BLOCK=0)


def test_programs_that_race_are_named(backend, x):
    with pytest.raises(MemoryFault, match=r"total: programs 0 and 1 touch element 0 of out, and one writes it"):
        launch(total, 3, x, torch.zeros(1), 10, ATOMIC=False, BLOCK=4)
    with pytest.raises(MemoryFault, match=r"shift: programs 0 and 1 touch element 4 of x, out, and one writes it"):
        launch(shift, 3, x, x, 10, BY=1, GUARD=True, BLOCK=4)


def test_accesses_of_different_width_race(backend):
    data = torch.zeros(16, dtype=torch.uint8)
    launch(bytes_and_words, 3, data, torch.zeros(3, dtype=torch.uint8), BLOCK=0)
    with pytest.raises(MemoryFault, match=r"programs 0 and 1 touch element 4 of x"):
        launch(bytes_and_words, 3, data, torch.zeros(3, dtype=torch.uint8), BLOCK=4)


def test_missing_barrier_is_named(backend, x):
    launch(pass_on, 1, x, torch.empty(8), BLOCK=8, BARRIER=True)
    with pytest.raises(MemoryFault, match=r"pass_on: program 0 reads element 0 of x, which it has written"):
        launch(pass_on, 1, x, torch.empty(8), BLOCK=8, BARRIER=False)
    with pytest.raises(MemoryFault, match=r"twice: program 0 touches element 0 of x from two places"):
        launch(twice, 2, x, BLOCK=4, BARRIER=False)
