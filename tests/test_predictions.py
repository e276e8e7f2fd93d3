"""Predictions from machine code: the right loop is counted, the arithmetic is right, and the page is what they give."""

from __future__ import annotations

import json

import pytest
from gates import cuda_aot, sass, triton_aot
from gates.loops import Way, all_loops, inner_loops, loops_with, way_through

from benchmarks import machine
from benchmarks.predictions import chip, machine_code, page
from benchmarks.predictions.cases import Case, Launch, Loop, all_cases
from benchmarks.predictions.machine_code import Kernel

# Two loops, the second of which has another one inside. It loads 32 bytes, 16 of them behind a branch over what a call
# may ask for, and 16 others where those before have been used.
LISTING = """
        /*0000*/                   MOV R1, c[0x0][0x28] ;
        /*0010*/                   LDG.E R2, desc[UR4][R8.64] ;
        /*0020*/                   FADD R3, R3, R2 ;
        /*0030*/              @!P1 BRA 0x10 ;
        /*0040*/                   LDG.E.128 R4, desc[UR4][R8.64] ;
        /*0050*/              @!P2 BRA 0x80 ;
        /*0060*/                   MUFU.EX2 R11, R10 ;
        /*0070*/                   DADD R12, R12, R14 ;
        /*0080*/                   FFMA R20, R4, R4, R20 ;
        /*0090*/                   LDG.E.128 R4, desc[UR4][R8.64+0x10] ;
        /*00a0*/               @P3 LDG.E.64 R16, desc[UR4][R18.64] ;
        /*00b0*/                   IADD3 R21, R21, 0x1, RZ ;
        /*00c0*/                   LDS R22, [R21] ;
        /*00d0*/              @!P4 BRA 0xb0 ;
        /*00e0*/                   STG.E.128 desc[UR4][R8.64], R4 ;
        /*00f0*/               @P0 BRA 0x40 ;
        /*0100*/                   EXIT ;
        /*0110*/                   BRA 0x110;
"""
CODE = sass.instructions(LISTING)


def addresses(bodies) -> list[tuple[int, int]]:
    return [(body[0][0], body[-1][0]) for body in bodies]


def test_loops_are_found_by_what_they_hold():
    assert addresses(all_loops(CODE)) == [(0x10, 0x30), (0xB0, 0xD0), (0x40, 0xF0)]
    assert addresses(inner_loops(CODE)) == [(0x10, 0x30), (0xB0, 0xD0)]
    assert addresses(loops_with(CODE, r"LDG\S*128")) == [(0x40, 0xF0)]
    assert addresses(loops_with(CODE, r"LDS")) == [(0xB0, 0xD0)]  # the inner one
    assert addresses(loops_with(CODE, r"\bLDG\b")) == [(0x10, 0x30), (0x40, 0xF0)]
    assert addresses(loops_with(CODE, r"\bLDG\b", without="FADD")) == [(0x40, 0xF0)]
    assert not loops_with(CODE, "HGMMA")


def test_the_way_through_a_loop_leaves_out_what_a_branch_jumps_over():
    (body,) = loops_with(CODE, r"LDG\S*128")
    short, long = way_through(body), way_through(body, longest=True)
    # Without the MUFU and the DADD; the first load is used before the others are asked for.
    assert short == Way(10, 1, 1, 0, 0, 5, loaded=40, stored=16, ahead=24)
    assert long == Way(12, 1, 1, 1, 1, 5, loaded=40, stored=16, ahead=24)


def test_of_ways_that_load_more_or_less_the_one_asked_for_is_taken():
    text = """
        /*0000*/                   LDG.E.128 R4, desc[UR4][R8.64] ;
        /*0010*/              @!P2 BRA 0x30 ;
        /*0020*/                   LDG.E.128 R12, desc[UR4][R10.64] ;
        /*0030*/                   FADD R4, R4, R12 ;
        /*0040*/               @P0 BRA 0x0 ;
    """
    (body,) = all_loops(sass.instructions(text))
    assert way_through(body).loaded == 32  # the most
    assert way_through(body, moves=(16, 0)) == Way(4, 1, 0, 0, 0, 1, 16, 0, 16)
    with pytest.raises(ValueError, match="no way to the last instruction moves"):
        way_through(body, moves=(64, 0))
    with pytest.raises(ValueError, match="1 loops hold"):
        machine_code.ways(sass.instructions(text), (Loop(holds="FADD", place=1),))


@pytest.mark.parametrize(
    ("threads", "registers", "shared", "blocks", "expected"),
    [
        (256, 32, 0, 1056, (8, 64, 1.0)),  # all warps
        (256, 80, 0, 8192, (3, 24, 8192 / 396)),  # 80 · 32 registers a warp, six warps a quarter
        (256, 168, 0, 132, (1, 8, 1.0)),
        (128, 32, 56 * 1024, 132, (4, 16, 0.25)),  # with what the driver takes
        (32, 16, 0, 132, (32, 32, 1 / 32)),  # all blocks
    ],
)
def test_occupancy(threads, registers, shared, blocks, expected):
    assert chip.occupancy(threads, registers, shared, blocks) == pytest.approx(expected)


def predicted(way: Way, **launch) -> page.Prediction:
    """A case of 2^30 elements of 4 bytes, read once by a grid that fills the chip."""
    loop = Loop(reads=4 * 2**30)
    case = Case("kl_div", "B = 1, K = 1", "fp32", "forward", (Launch("k", 1056, 256, (loop,), **launch),), 2**30)
    kernel = Kernel("key", 32, 0, [way])
    return page.predict(case, {machine_code.name_of(case, case.launches[0]): kernel})


def test_what_needs_the_most_time_binds():
    way = Way(40, 20, 10, 2, 0, 1, loaded=32, stored=0, ahead=32)  # eight elements a trip
    found = predicted(way, bytes=4 * 2**30)
    assert found.time.order[0] == "bytes"
    assert found.seconds == pytest.approx(4 * 2**30 / 4.3e12)
    # Five instructions an element, four warps' a cycle.
    assert found.time.parts["issue"] == pytest.approx(5 * 2**30 / (132 * 128 * 1.98e9))
    assert found.time.parts["special"] == pytest.approx(0.25 * 2**30 / (132 * 16 * 1.98e9))
    assert found.time.parts["latency"] == pytest.approx(4 * 2**30 * chip.LATENCY / (32 * 2048 * 132))
    assert predicted(way._replace(special=40), bytes=4 * 2**30).time.order[0] == "special"
    assert predicted(way._replace(ahead=4), bytes=4 * 2**30).time.order[0] == "latency"
    assert predicted(way, bytes=4 * 2**30, operations=1e12).time.order[0] == "tensor cores"


def test_every_launch_takes_the_time_of_one_and_a_small_grid_leaves_multiprocessors_idle():
    case = Case("kl_div", "B = 1, K = 1", "fp32", "forward", (Launch("a"), Launch("b", times=2)))
    found = page.predict(case, {"a": Kernel("", 32, 0, []), "b": Kernel("", 32, 0, [])})
    assert found.seconds == pytest.approx(3 * chip.LAUNCH_SECONDS)
    assert found.time.order[0] == "launch"
    way = Way(128, 0, 0, 0, 0, 0, 0, 0, 0)
    few, many = (
        chip.time([(way, 1e6)], bytes_moved=0, operations=0, resident=1, blocks=n, asked=0).parts["issue"]
        for n in (1, 1000)
    )
    assert few == pytest.approx(132 * many)


def test_the_page_is_what_the_figures_give():
    versions, kernels = machine_code.read()
    expected = page.text(all_cases(), versions, kernels, page.measured(machine.RESULTS))
    assert page.PATH.read_text() == expected, "`python -m benchmarks.predictions --page` writes it"


def test_figures_are_of_the_kernels_that_are_here():
    versions, kernels = machine_code.read()
    of = {name: versions[name] for name in ("nvcc", "torch")}
    keys = {source.name: source.key(of) for source in cuda_aot.sources(cuda_aot.FAMILIES)}
    judge({name: keys[launch.kernel.partition(" ")[0]] for name, launch in launches("cuda").items()}, kernels)


@pytest.mark.skipif(bool(triton_aot.cannot_compile()), reason=triton_aot.cannot_compile())
def test_figures_are_of_the_triton_kernels_that_are_here():
    versions, kernels = machine_code.read()
    if versions["triton"] != triton_aot.versions()["triton"]:
        pytest.skip(f"the figures are of triton {versions['triton']}")
    keys = {}
    for case in all_cases():
        if case.backend == "triton":
            recorded = {launch.kernel: launch.key for launch in triton_aot.record(machine_code.triton_call(case))}
            keys |= {machine_code.name_of(case, launch): recorded[launch.kernel] for launch in case.launches}
    judge(keys, kernels)


def launches(backend: str) -> dict[str, Launch]:
    cases = [case for case in all_cases() if case.backend == backend]
    return {machine_code.name_of(case, launch): launch for case in cases for launch in case.launches}


def judge(keys: dict[str, str], kernels: dict[str, Kernel]) -> None:
    stale = [name for name, key in keys.items() if name not in kernels or kernels[name].key != key]
    assert keys
    assert not stale, "\n".join(["`python -m benchmarks.predictions` brings up to date:", *stale])


def test_a_measurement_stands_beside_its_prediction(tmp_path):
    case = all_cases()[0]
    sizes = {name: int(size) for name, size in (part.split(" = ") for part in case.sizes.split(", "))}
    row = {"operation": case.operation, "sizes": sizes, "dtype": case.dtype, "direction": case.direction}
    ours, theirs = ({"ours": own, "form": "", "us": {"median": us}} for own, us in ((True, 123.25), (False, 1.0)))
    row["contestants"] = {"amkd_fast cuda": ours, "eager log target": theirs}
    (tmp_path / "kl-cuda.json").write_text(json.dumps({"groups": [row]}))
    versions, kernels = machine_code.read()

    def last(folder) -> str:
        lines = page.text([case], versions, kernels, page.measured(folder)).splitlines()
        (line,) = [line for line in lines if f"| {case.sizes}, {case.dtype} |" in line]
        return line.split(" | ")[-1]

    assert last(tmp_path) == "123.2 |"
    assert last(tmp_path / "none") == "not yet |"
