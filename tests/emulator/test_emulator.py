"""The emulator's own tests: the kernels of faults/, of which every fault is found and every right one passes."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import shutil
import subprocess
import sys
from functools import lru_cache
from pathlib import Path

import pytest

from tests.emulator.__main__ import environment
from tests.emulator.build import build, compiler
from tests.emulator.instructions import instructions
from tests.emulator.translate import translate

HAS_COMPILER = platform.machine() in ("x86_64", "AMD64") and shutil.which(compiler()[0]) is not None
pytestmark = pytest.mark.skipif(not HAS_COMPILER, reason="the emulator needs g++ on x86-64")

FAULTS = Path(__file__).resolve().parent / "faults"

# By name: the number that a right kernel gives, whatever the order.
RIGHT = [
    "pass_on",
    "inside_shared",
    "inside_dynamic",
    "inside_global",
    "aligned_bytes",
    "count",
    "meet",
    "leave_early",
    "meet_in_pairs",
    "vote",
    "bounded",
    "add_up",
    "add_up_half",
    "scan",
    "warp_pass_on",
    "halves",
    "cluster",
    "grid",
    "product",
]

# What every build finds.
ALWAYS = {
    "too_much_dynamic": "invalid argument",
    "meet_in_branches": r"divergent barrier: __syncthreads at .*barriers.cu:\d+, where thread \d+ waits in .*:\d+",
    "loop_unevenly": "divergent barrier",
    "meet_too_few": "deadlock: .* wait in bar.sync at .*barriers.cu",
    "out_of_launch_bounds": r"more threads than __launch_bounds__\(128\)",
    "too_many_threads": "invalid configuration",
    "mask_without_oneself": "takes no part|not in its own mask",
    "mask_of_absent_lanes": r"deadlock: 16 wait in __syncwarp at .*; 16 wait in a shuffle at .*warps.cu",
    "mask_too_narrow": "takes no part|not in its own mask",
    "cluster_not_started": "block [1-3] may not have started",
    "cluster_without_rank": "the cluster has no block 4",
    "grid_too_large": "too many blocks in cooperative launch",
    "grid_not_cooperative": "the launch is not cooperative",
    "product_without_fence": "without wgmma.fence",
    "product_without_wait": "ends before its products are waited for",
    "product_read_early": "wrong numbers",
    "descriptor_stride": "wrong numbers",
    "descriptor_base_offset": "base offset",
    "descriptor_outside": "leaves its swizzled row|no address",
    "product_of_half_a_warp": "deadlock: .* wait in wgmma",
    "descriptors_differ": "different operands",
    "copy_misaligned": "not aligned",
}

# What takes the race checker.
RACES = {
    "read_before_barrier": r"race: read after write at .*memory.cu:\d+ by thread \d+ of block 0; before at .*memory.cu",
    "write_before_barrier": "race: write after read",
    "write_together": "race: write after write",
    "read_unwritten": "read of shared memory that nobody has written",
    "outside_shared": "outside of every shared variable",
    "outside_dynamic": "outside of every shared variable",
    "misaligned_bytes": "misaligned access",
    "blocks_write_together": "race: write after write .* of block [01]; before at .* of block [01]",
    "count_read_early": "race: ",
    "meet_in_pairs_across": "race: read after write",
    "warp_without_sync": "race: read after write",
    "shuffle_is_no_barrier": "race: read after write",
    "halves_across": "race: read after write",
    "cluster_not_met": "race: read after write|nobody has written",
    "grid_not_met": "race: read after write",
    "product_without_proxy_fence": "fence.proxy.async has not made visible",
    "product_without_barrier": "race: read after write|nobody has written|has not made visible",
}

# What takes the sanitizers of addresses and of undefined behaviour, which end the process.
OUT_OF_BOUNDS = {
    "outside_global": "heap-buffer-overflow",
    "outside_shared": "index 64 out of bounds",
    "outside_dynamic": "use-after-poison",
    "misaligned_bytes": "misaligned address",
    "shift_too_far": "shift exponent 32 is too large",
}


@lru_cache
def _library(mode: str) -> ctypes.CDLL:
    library = ctypes.CDLL(str(build(mode, FAULTS)))
    library.run_case.restype = ctypes.c_uint64
    return library


def run(mode: str, name: str) -> tuple[int, str]:
    """A case's number, and what it threw."""
    message = ctypes.create_string_buffer(4096)
    number = _library(mode).run_case(name.encode(), message, len(message))
    return number, message.value.decode()


@pytest.mark.parametrize("name", RIGHT)
def test_right_kernels_pass_in_every_order(name, monkeypatch):
    numbers = {}
    for mode in ("1", "race"):
        for seed in range(20):
            monkeypatch.setenv("AMKD_EMULATE_SEED", str(seed))
            numbers[mode, seed], message = run(mode, name)
            assert message == ""
    assert len(set(numbers.values())) == 1, numbers
    if name == "product":
        assert numbers["1", 0] == 0  # of its numbers that are wrong


@pytest.mark.parametrize("mode", ["1", "race"])
@pytest.mark.parametrize("name", ALWAYS)
def test_faults_are_found(name, mode, monkeypatch):
    for seed in ("0", "7"):
        monkeypatch.setenv("AMKD_EMULATE_SEED", seed)
        assert re.search(ALWAYS[name], run(mode, name)[1])


@pytest.mark.parametrize("name", RACES)
def test_races_are_found_in_every_order(name, monkeypatch):
    for seed in range(5):
        monkeypatch.setenv("AMKD_EMULATE_SEED", str(seed))
        assert re.search(RACES[name], run("race", name)[1])


@pytest.mark.parametrize("name", [*OUT_OF_BOUNDS, *RIGHT])
def test_accesses_out_of_bounds_are_found(name):
    program = "import ctypes, sys; ctypes.CDLL(sys.argv[1]).run_case(sys.argv[2].encode(), bytes(99), 99)"
    command = [sys.executable, "-c", program, str(build("asan", FAULTS)), name]
    done = subprocess.run(command, env=os.environ | environment("asan"), capture_output=True, text=True, timeout=120)
    assert (done.returncode == 0) == (name in RIGHT), done.stderr
    assert name in RIGHT or re.search(OUT_OF_BOUNDS[name], done.stderr)


def test_a_result_that_depends_on_the_order_changes_with_the_seed(monkeypatch):
    numbers = set()
    for seed in range(4):
        monkeypatch.setenv("AMKD_EMULATE_SEED", str(seed))
        number, message = run("1", "tickets")
        numbers.add(number)
        assert message == ""
        assert run("1", "tickets")[0] != number or seed == 0  # the seed begins a sequence of orders
    assert len(numbers) == 4


def test_an_error_stays_the_last_one_until_it_is_asked_for():
    assert run("1", "last_error") == (90, "")  # cudaErrorInvalidConfiguration, then none


def test_an_error_that_is_reported_is_not_found_again():
    assert run("1", "error_is_reported_once") == (1, "")


def test_what_a_device_could_not_answer_is_asked_again():
    assert run("1", "failures_are_asked_again") == (212, "")  # yes twice of 3 times; asked twice and once


def test_lines_stay_where_they_were():
    for folder in (FAULTS, FAULTS.parents[2] / "csrc"):
        for source in folder.rglob("*.cu*"):
            text = source.read_text()
            assert translate(text, source.name).count("\n") == text.count("\n") + 1, source


def test_instructions_that_are_not_modelled_do_not_pass():
    assert "::emulator::ptx::mbarrier_init_shared_b64((bar), 1);" in instructions(
        'asm volatile("mbarrier.init.shared.b64 [%0], 1;\\n" ::"r"(bar));'
    )  # of which there is none in ptx.h
    with pytest.raises(ValueError, match="not modelled"):
        instructions('asm("@p bra somewhere;" ::: "memory");')
