"""Philox against Random123's published known answers, and the properties that the draws rely on."""

import pytest
import torch

from amkd_fast import philox

# counter (four words), key (two words), answer (four words): the philox4x32-10 lines of Random123's kat_vectors.
KNOWN = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def join(low: str, high: str) -> int:
    value = int(high, 16) << 32 | int(low, 16)
    return value - 2**64 if value >= 2**63 else value


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN)
@pytest.mark.parametrize("as_tensor", [False, True])
def test_known_answers(counter, key, answer, as_tensor):
    c, seed = counter.split(), join(*key.split())
    drawn = philox.words(torch.tensor(seed) if as_tensor else seed, torch.tensor([join(*c[:2])]), stream=join(*c[2:]))
    assert [f"{int(word):08x}" for word in drawn] == answer.split()


def test_uniform_is_what_the_words_say():
    counter = torch.arange(1000)
    first, second, _, _ = philox.words(11, counter)
    single, double = philox.uniform(11, counter), philox.uniform(11, counter, dtype=torch.float64)
    assert single.dtype == torch.float32
    assert torch.equal(single.double(), (first // 256).double() / 2**24)
    # 53 bits fit a Python integer exactly
    exact = [((int(a) << 32 | int(b)) >> 11) / 2**53 for a, b in zip(first, second, strict=True)]
    assert double.tolist() == exact
    assert double.min() >= 0
    assert double.max() < 1
    assert abs(float(double.mean()) - 0.5) < 4 * (1 / 12 / 1000) ** 0.5


def test_largest_draw_stays_below_one():
    ones = torch.tensor(0xFFFFFFFF)
    assert float(philox.unit(ones, ones)) < 1
    assert float((ones >> 8).float() * 2.0**-24) < 1


def test_seeds_streams_and_counters_differ():
    counter = torch.arange(64)
    draws = [philox.uniform(s, counter + o, stream=t) for s, t, o in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 64))]
    assert len({tuple(draw.tolist()) for draw in draws}) == 4
    assert torch.equal(draws[0].view(8, 8), philox.uniform(0, counter.view(8, 8)))


def test_global_generator_is_not_touched():
    before = torch.get_rng_state()
    philox.uniform(3, torch.arange(10))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("seed", "counter", "error", "words"),
    [
        (1.5, torch.arange(2), TypeError, "seed is a float"),
        (True, torch.arange(2), TypeError, "seed is a bool"),
        (torch.zeros(2, dtype=torch.int64), torch.arange(2), ValueError, "seed.shape"),
        (torch.tensor(1.0), torch.arange(2), TypeError, "seed.dtype"),
        (1, torch.arange(2.0), TypeError, "counter.dtype"),
        (1, [1], TypeError, "counter is a list"),
    ],
)
def test_errors_name_the_argument(seed, counter, error, words):
    with pytest.raises(error, match=words):
        philox.uniform(seed, counter)


def test_compiles_in_one_graph():
    compiled = torch.compile(lambda c: philox.uniform(5, c), fullgraph=True, backend="eager")
    assert torch.equal(compiled(torch.arange(9)), philox.uniform(5, torch.arange(9)))
