"""The figures that predictions rest on: read from the machine code of the kernels, and kept beside the results.

Each entry has the gate's key of what it was compiled from, so that a change of a kernel shows.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import machine
from benchmarks.predictions.cases import Case, Launch, Loop
from tests.gates import cuda_aot, sass, triton_aot, triton_calls
from tests.gates.loops import Code, Way, all_loops, loops_with, way_through

PATH = machine.RESULTS / "predictions-h200.json"
CUDA, TRITON = "90a", 90


class Kernel(NamedTuple):
    """What the machine code of one launch says."""

    key: str
    registers: int
    shared: int
    ways: list[Way]
    blocks: int = 0  # of a Triton launch, which its launcher decides
    threads: int = 0


def name_of(case: Case, launch: Launch) -> str:
    if case.backend == "triton":
        return f"{launch.kernel} {case.sizes} {case.dtype}"
    return launch.kernel + "".join(f" | {_words(loop)}" for loop in launch.loops)


def _words(loop: Loop) -> str:
    """Which loop it is and which way through it; not how often, which the machine code does not depend on."""
    words = [loop.holds or "all of it", str(loop.place), "longest" * loop.longest, "around" * loop.around]
    words += [] if loop.moves is None else [f"moves {loop.moves[0]} {loop.moves[1]}"]
    return " ".join(word for word in words if word)


def ways(code: Code, loops: tuple[Loop, ...]) -> list[Way]:
    return [way_through(_body(code, loop), loop.longest, loop.moves) for loop in loops]


def _body(code: Code, loop: Loop) -> Code:
    if not loop.holds:
        ends = [i for i, (_, line) in enumerate(code) if line == "EXIT"]
        return code[: ends[-1] + 1]
    bodies = loops_with(code, loop.holds)
    if loop.place >= len(bodies):
        raise ValueError(f"{len(bodies)} loops hold {loop.holds}, asked for is number {loop.place}")
    body = bodies[loop.place]
    if not loop.around:
        return body
    inside = {at for inner in all_loops(body) if len(inner) < len(body) for at, _ in inner}
    return [(at, line) for at, line in body if at not in inside]


def of_cuda(cases: list[Case], kept: dict[str, Kernel], jobs: int) -> dict[str, Kernel]:
    """Of all CUDA C++ launches; only sources whose figures are not in ``kept`` are compiled."""
    launches = {name_of(case, launch): launch for case in cases if case.backend == "cuda" for launch in case.launches}
    keys = {source.name: (source.key(cuda_aot.versions()), source) for source in cuda_aot.sources(cuda_aot.FAMILIES)}
    found, missing = {}, {}
    for name, launch in launches.items():
        key, source = keys[launch.kernel.partition(" ")[0]]
        if name in kept and kept[name].key == key:
            found[name] = kept[name]
        else:
            missing.setdefault(source, {})[name] = launch
    if missing and (failed := cuda_aot.build(missing, jobs)):
        raise RuntimeError(failed)
    for source, wanted in missing.items():
        binary = cuda_aot.object_of(source)
        code = cuda_aot.machine_code(binary, "--gpu-architecture", f"sm_{CUDA}")
        usages = {symbol: usage for arch, symbol, usage in sass.resource_usage(binary) if arch == CUDA}
        symbols = {f"{source.name} {cuda_aot.readable(symbol)}": symbol for symbol in usages}
        for name, launch in wanted.items():
            symbol = symbols[launch.kernel]
            usage = usages[symbol]
            taken = ways(code[CUDA, symbol], launch.loops)
            found[name] = Kernel(keys[source.name][0], usage["REG"], usage["SHARED"], taken)
    return found


def of_triton(cases: list[Case], kept: dict[str, Kernel]) -> dict[str, Kernel]:
    """Of all Triton launches, which are compiled where their key is not in ``kept``."""
    found: dict[str, Kernel] = {}
    for case in cases:
        if case.backend != "triton":
            continue
        recorded = {launch.kernel: launch for launch in triton_aot.record(triton_call(case))}
        for launch in case.launches:
            name, made = name_of(case, launch), recorded[launch.kernel]
            if name in kept and kept[name].key == made.key:
                found[name] = kept[name]
                continue
            compiled = triton_aot.compile_launch(made, TRITON)
            (code,) = sass.disassemble([compiled.asm["cubin"]], triton_aot.TARGETS[str(TRITON)])
            with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
                file.write(compiled.asm["cubin"])
                file.flush()
                ((_, _, usage),) = sass.resource_usage(Path(file.name))
            threads = 32 * compiled.metadata.num_warps
            taken = ways(code, launch.loops)
            found[name] = Kernel(made.key, usage["REG"], compiled.metadata.shared, taken, made.blocks, threads)
    return found


def triton_call(case: Case) -> triton_calls.Call:
    import torch

    shape = tuple(int(part.split(" = ")[1]) for part in case.sizes.split(", "))
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[case.dtype]
    return triton_calls.kl_call(case.direction, shape, dtype, "forward")


def read(path: Path = PATH) -> tuple[dict[str, str], dict[str, Kernel]]:
    """(versions of the compilers, figures by launch)."""
    if not path.is_file():
        return {}, {}
    found = json.loads(path.read_text())
    if found["figures"] != list(Way._fields):
        return {}, {}
    kernels = {}
    for entry in found["kernels"]:
        name, taken = entry.pop("name"), [Way(*numbers) for numbers in entry.pop("ways")]
        kernels[name] = Kernel(ways=taken, **entry)
    return found["versions"], kernels


def write(versions: dict[str, str], kernels: dict[str, Kernel], path: Path = PATH) -> None:
    entries: list[dict[str, Any]] = [{"name": name, **kernel._asdict()} for name, kernel in sorted(kernels.items())]
    head = {"kind": "predictions", "device": "H200", "versions": versions, "figures": list(Way._fields)}
    machine.write(path, {**head, "kernels": entries})
