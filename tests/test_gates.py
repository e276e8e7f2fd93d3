"""The ledgers of the ahead-of-time gates cover every GPU kernel of the tree, and the gates see what they are there for.

Nothing is compiled here: `make gates` compiles what a ledger lacks and writes it down.
"""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from gates import cuda_aot, fingerprints, sass, triton_aot
from gates.__main__ import run
from gates.ledger import Entry, Ledger, rises


def why_not() -> str:
    """Why the launches of Triton kernels cannot be compared with the ledger here."""
    made_by = Ledger(triton_aot.LEDGER).versions
    if (reason := triton_aot.cannot_compile()) or made_by in ({}, triton_aot.versions()):
        return reason
    return f"the ledger is of {made_by}, here is {triton_aot.versions()}: its entries say nothing of that"


triton = pytest.mark.skipif(bool(why_not()), reason=why_not())
FIGURES = sass.Figures(64, 0, 0, 0, 2, 0, 2, 100, 4, 0, 0)


def judge(gate, units: dict) -> None:
    """All units are in the ledger, nothing else is, and what the ledger says of them is what the gate accepts."""
    ledger = Ledger(gate.LEDGER)
    missing = [f"{unit.family} {unit.name}: not compiled" for key, unit in units.items() if key not in ledger.entries]
    stale = [f"{entry.family} {entry.name}: no longer in the tree" for entry in ledger if entry.key not in units]
    found = [*missing, *stale]
    assert not found, "\n".join([f"`make gates` brings {gate.LEDGER.name} up to date:", *found])
    faults = [f"{entry.name} {fault}" for entry in ledger for fault in units[entry.key].faults(entry)]
    assert not faults, "\n".join(faults)


@triton
def test_every_triton_launch_was_compiled_and_has_no_fault():
    units = triton_aot.units(triton_aot.FAMILIES)
    for family in triton_aot.FAMILIES:
        assert any(unit.wide or unit.wide_stores for unit in units.values() if unit.family == family), family
    judge(triton_aot, units)


def test_every_cuda_source_was_compiled_and_has_no_fault():
    ledger = Ledger(cuda_aot.LEDGER)
    judge(cuda_aot, cuda_aot.units(cuda_aot.FAMILIES, ledger.versions))
    for key, entries in ledger.entries.items():
        assert {arch for entry in entries for arch in entry.figures} == set(cuda_aot.ARCHITECTURES), key


@pytest.mark.parametrize("gate", [triton_aot, cuda_aot], ids=["triton", "cuda"])
def test_ledgers_are_of_the_pinned_versions(gate):
    pins = dict(re.findall(r"^\w+ \?= (torch|triton)==(\S+)", (cuda_aot.ROOT / "Makefile").read_text(), re.MULTILINE))
    made_by = {name: version for name, version in Ledger(gate.LEDGER).versions.items() if name in pins}
    assert made_by
    assert made_by.items() <= pins.items()


# ---- what changes a key ---------------------------------------------------------------------------------------------

KERNELS = '''
import triton
import triton.language as tl

WIDTH = tl.constexpr(4)


@triton.jit
def helper(x):
    return x * 2


@triton.jit
def other_kernel(x):
    tl.store(x, 0.0)


@triton.jit
def some_kernel(x, N: tl.constexpr):
    """Doubles."""
    at = tl.arange(0, N)  # a comment
    tl.store(x + at, helper(tl.load(x + at)) + WIDTH)
'''
SAME = {
    "a comment": ("# a comment", "# other words"),
    "a docstring": ('    """Doubles."""\n', ""),
    "white space": ("x * 2", "x  *  2"),
    "a moved kernel": ("WIDTH = ", "\n\n\nWIDTH = "),
    "another kernel": ("tl.store(x, 0.0)", "tl.store(x, 1.0)"),
}
OTHER = {
    "the kernel": ("tl.load(x + at)", "tl.load(x + at + 1)"),
    "what it calls": ("x * 2", "x * 3"),
    "a constant": ("constexpr(4)", "constexpr(8)"),
    "how it is called": ("def helper", "def helper_of"),
    "no inlining": ("@triton.jit\ndef helper", "@triton.jit(noinline=True)\ndef helper"),
}


def fingerprint_of(folder: Path, text: str) -> str:
    path = folder / f"kernels_{abs(hash(text))}.py"
    path.write_text(text)
    spec = importlib.util.spec_from_file_location("kernels", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return fingerprints.of_triton(module.some_kernel)


@triton
@pytest.mark.parametrize("change", [*SAME, *OTHER])
def test_fingerprints_of_triton_kernels(tmp_path, change):
    before, after = (SAME | OTHER)[change]
    text = KERNELS.replace("helper", "helper_of") if change == "how it is called" else KERNELS.replace(before, after)
    assert text != KERNELS
    same = fingerprint_of(tmp_path, KERNELS) == fingerprint_of(tmp_path, text)
    assert same == (change in SAME)


@triton
def test_a_launch_has_its_own_key(monkeypatch):
    launch = next(iter(triton_aot.units(["relations"]).values()))
    assert launch.key == launch._replace(label="other", wide=not launch.wide).key
    for field in ("signature", "constants", "attributes", "options"):
        assert launch.key != launch._replace(**{field: (*getattr(launch, field), ("more", 1))}).key
    key = launch.key
    monkeypatch.setattr(triton_aot, "versions", lambda: {"triton": "0"})
    assert launch.key != key


SOURCES = {
    "kl/kernels.cu": '#include <cuda.h>\n#include "kl/rows.cuh"\n__global__ void f(float* x) { x[0] = 1.f; }  // one\n',
    "kl/rows.cuh": '#include "../common/math.cuh"\n#define WIDE 4\n',
    "common/math.cuh": "/* sums */\ninline float sum(float a) { return a; }\n",
    "common/other.cuh": "int unused;\n",
}


@pytest.mark.parametrize(
    ("name", "before", "after", "same"),
    [
        ("kl/kernels.cu", "// one", "// two // more", True),
        ("kl/kernels.cu", "f(float* x) {", "f(\n    float* x) {\n", True),
        ("common/math.cuh", "/* sums */", "", True),
        ("common/other.cuh", "unused", "still_unused", True),
        ("kl/kernels.cu", "1.f", "2.f", False),
        ("kl/rows.cuh", "WIDE 4", "WIDE 8", False),
        ("common/math.cuh", "return a", "return -a", False),
    ],
)
def test_fingerprints_of_cuda_sources(tmp_path, name, before, after, same):
    found = []
    for changed in (False, True):
        for path, text in SOURCES.items():
            (tmp_path / path).parent.mkdir(exist_ok=True)
            assert path != name or before in text
            (tmp_path / path).write_text(text.replace(before, after) if changed and path == name else text)
        found.append(fingerprints.of_cuda(tmp_path / "kl" / "kernels.cu", tmp_path))
    assert (found[0] == found[1]) == same


def test_cuda_keys_follow_compiler_and_architectures(monkeypatch):
    source = cuda_aot.sources(["images"])[0]
    keys = {source.key({"nvcc": "13.0"}), source.key({"nvcc": "13.1"})}
    monkeypatch.setattr(cuda_aot, "ARCHITECTURES", ("80",))
    keys.add(source.key({"nvcc": "13.0"}))
    monkeypatch.setattr(cuda_aot, "settings", dict)
    keys.add(source.key({"nvcc": "13.0"}))
    assert len(keys) == 4


# ---- what the machine code says -------------------------------------------------------------------------------------

LISTING = """
        /*0000*/                   LDG.E.128 R4, desc[UR4][R2.64] ;
        /*0010*/                   LDGSTS.E.BYPASS.128 [R3], desc[UR4][R2.64] ;
        /*0020*/                   MUFU.EX2 R1, R2 ;
        /*0030*/                   STL [R1], R2 ;
        /*0040*/              @!P1 BRA 0x20 ;
        /*0050*/                   HGMMA.64x64x16.F32 R24, gdesc[UR4], R24 ;
        /*0060*/                   STG.E.EF.128 desc[UR4][R2.64], R4 ;
        /*0070*/               @P0 BRA 0x0 ;
        /*0080*/                   EXIT ;
        /*0090*/                   BRA 0x90;
"""


def test_figures_are_read_from_machine_code():
    figures = sass.read_figures(sass.instructions(LISTING), {"REG": 32, "STACK": 8, "LOCAL": 0}, shared=16)
    assert figures == sass.Figures(32, 8, 1, 16, 1, 1, 1, 3, 1, 1, 1)


def test_triton_faults_are_seen():
    launch = triton_aot.Launch("kl", "label", "module", "kernel", (), (), (), (), wide=True, wide_stores=True)
    good = dict.fromkeys(triton_aot.TARGETS, FIGURES)

    def faults(**more):
        return launch.faults(Entry("key", "kl", launch.name, good | {"90": FIGURES._replace(**more)}))

    assert not faults()
    for fault in ({"stack": 8}, {"local_accesses": 1}, {"wide_loads": 0}, {"wide_stores": 0}):
        (found,) = faults(**fault)
        assert found.startswith("sm_90: ")
    del good["120"]
    assert faults() == ["sm_120: not compiled"]


def test_cuda_faults_are_seen():
    def faults(family, kernel, arch="90a", **more):
        source = cuda_aot.Source(family, cuda_aot.ROOT / "csrc" / family / "some.cu")
        return source.faults(Entry("key", family, f"{source.name} {kernel}", {arch: FIGURES._replace(**more)}))

    assert not faults("kl", "forward_kernel f")
    assert len(faults("kl", "forward_kernel f", stack=8, local_accesses=2, wide_loads=0)) == 2
    assert faults("images", "crop_flip_kernel fLb1", wide_stores=0) == ["sm_90a: no 16-byte store (STG.E.128)"]
    assert not faults("images", "crop_flip_kernel fLb0", wide_stores=0)
    assert faults("triplet", "products_kernel") == ["sm_90a: no product of a warpgroup (HGMMA)"]
    assert not faults("triplet", "products_kernel", arch="80", wide_loads=0)


# ---- the ledger and the command -------------------------------------------------------------------------------------


def test_only_rises_of_more_than_a_tenth_are_shown():
    def entry(**more):
        return [Entry("key", "kl", "kernel label", {"90": FIGURES._replace(**more)})]

    assert not rises(entry(), entry(registers=70, loop=110))
    assert not rises(entry(), entry(registers=32, loop=50))
    assert rises(entry(), entry(registers=71)) == ["sm_90 kl kernel label: registers 64 -> 71"]
    assert rises(entry(), entry(loop=111)) == ["sm_90 kl kernel label: loop 100 -> 111"]
    assert not rises([], entry(loop=111))


def gate_of(path: Path, units: dict[str, str], **figures):
    """A gate whose units are (key, name), and whose kernels all have these figures."""
    compiled = []

    def compile_units(missing, jobs):
        for key, unit in missing.items():
            compiled.append(key)
            yield [Entry(key, "kl", unit.name, {"90": FIGURES._replace(**figures)})], []

    def unit(name):
        return SimpleNamespace(family="kl", name=name, faults=lambda entry: entry.figures["90"].spills)

    return SimpleNamespace(
        LEDGER=path, FAMILIES=("kl",), cannot_compile=str, versions=lambda: {"triton": "1"}, compiled=compiled,
        units=lambda families, of=None: {key: unit(name) for key, name in units.items()}, compile_units=compile_units,
    )  # fmt: skip


def test_the_command_compiles_what_is_missing_and_forgets_what_is_not_needed(tmp_path, capsys):
    path = tmp_path / "some.jsonl"
    first = gate_of(path, {"a": "one", "b": "two"})
    assert run(first, ["kl"], fresh=False, jobs=1) == 0
    assert first.compiled == ["a", "b"]
    second = gate_of(path, {"a": "one", "c": "two"}, registers=80)
    assert run(second, ["kl"], fresh=False, jobs=1) == 0
    assert second.compiled == ["c"]
    assert "more than before  sm_90 kl two: registers 64 -> 80" in capsys.readouterr().out
    assert list(Ledger(path).entries) == ["a", "c"]
    assert run(second, ["kl"], fresh=True, jobs=1) == 0
    assert second.compiled == ["c", "a", "c"]


def test_the_command_fails_for_stored_faults_and_where_it_cannot_compile(tmp_path, capsys):
    path = tmp_path / "some.jsonl"
    assert run(gate_of(path, {"a": "one"}, stack=8), ["kl"], fresh=False, jobs=1) == 1
    again = gate_of(path, {"a": "one"})
    assert run(again, ["kl"], fresh=False, jobs=1) == 1
    assert not again.compiled
    lacking = gate_of(path, {"b": "two"})
    lacking.cannot_compile = lambda: "nvcc is not here"
    assert run(lacking, ["kl"], fresh=False, jobs=1) == 1
    assert "kl two: not in the ledger, and nvcc is not here" in capsys.readouterr().out
    assert list(Ledger(path).entries) == ["a"]


def test_what_was_compiled_stays_when_the_command_is_interrupted(tmp_path):
    gate = gate_of(tmp_path / "some.jsonl", {"a": "one", "b": "two"})

    def interrupted(missing, jobs):
        yield [Entry("a", "kl", "one", {"90": FIGURES})], []
        raise KeyboardInterrupt

    gate.compile_units = interrupted
    with pytest.raises(KeyboardInterrupt):
        run(gate, ["kl"], fresh=False, jobs=1)
    assert list(Ledger(gate.LEDGER)) == [Entry("a", "kl", "one", {"90": FIGURES})]
