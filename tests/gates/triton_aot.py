"""Ahead-of-time gate of the Triton kernels, without a GPU: compile what the launchers would launch, read the cubins.

The launchers themselves run, on tensors without storage, while every launch is written down as Triton's JIT would
specialize it (types, divisibility, constants, options). The calls are those of triton_calls.py.
"""

from __future__ import annotations

import importlib.util
import os
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import cache
from math import prod
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple
from unittest import mock

from . import fingerprints, sass
from .ledger import FOLDER, Entry
from .triton_calls import CALLS, Call

LEDGER = FOLDER / "triton.jsonl"
TARGETS = {"80": "SM80", "90": "SM90a", "100": "SM100a", "120": "SM120a"}  # as the disassembler calls them
FAMILIES = tuple(CALLS)
BATCH = 12  # launches that share a process of the disassembler for each architecture


class Launch(NamedTuple):
    """One specialization of one kernel, picklable."""

    family: str
    label: str
    module: str
    kernel: str
    signature: tuple
    constants: tuple
    attributes: tuple
    options: tuple
    wide: bool = False  # must load 16 bytes at a time
    wide_stores: bool = False  # must store 16 bytes at a time
    blocks: int = 0  # that this call launches

    @property
    def name(self) -> str:
        return f"{self.kernel} {self.label}"

    @property
    def key(self) -> str:
        launched = (self.signature, self.constants, self.attributes, self.options)
        return fingerprints.digest(self.kernel, _fingerprint(self.module, self.kernel), launched, versions())

    def faults(self, entry: Entry) -> list[str]:
        """What the gate does not accept, in words."""
        faults = [f"sm_{arch}: not compiled" for arch in TARGETS if arch not in entry.figures]
        for arch, figures in entry.figures.items():
            found = figures.spills
            if self.wide and not figures.wide_loads:
                found.append("no 16-byte loads (LDG.E.128)")
            if self.wide_stores and not figures.wide_stores:
                found.append("no 16-byte stores (STG.E.128)")
            faults += [f"sm_{arch}: {fault}" for fault in found]
        return faults


@cache
def _fingerprint(module: str, kernel: str) -> str:
    return fingerprints.of_triton(getattr(importlib.import_module(module), kernel))


def cannot_compile() -> str:
    """Why the gate can neither compile nor list its launches here, empty when it can."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not here"
    return "Triton interprets in this process" if os.environ.get("TRITON_INTERPRET") == "1" else ""


@cache
def versions() -> dict[str, str]:
    import triton

    return {"triton": triton.__version__}


def record(call: Call, family: str = "") -> list[Launch]:
    """Run a call and write down its launches instead of launching."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler.compiler import make_backend
    from triton.runtime.jit import JITFunction, create_function_from_signature

    backend = make_backend(GPUTarget("cuda", 90, 32))  # the specialization does not depend on the architecture
    launches = []

    def run(kernel, *args, grid, warmup, **kwargs):
        binder = create_function_from_signature(kernel.signature, kernel.params, backend)
        bound, specialization, given = binder(*args, debug=False, **kwargs)
        _, signature, constants, attributes = kernel._pack_args(
            backend, {**kwargs, "debug": False}, bound, specialization, given
        )
        freeze = lambda pairs: tuple((key, _plain(value)) for key, value in pairs.items())  # noqa: E731
        name = kernel.fn.__name__
        launches.append(
            Launch(
                family, call.label, kernel.fn.__module__, name, freeze(signature), freeze(constants),
                freeze(attributes), tuple(sorted(given.items())), name in call.wide, name in call.wide_stores,
                prod(grid(bound) if callable(grid) else grid),
            )
        )  # fmt: skip

    with mock.patch.object(JITFunction, "run", run):
        call.function()
    return launches


def _plain(value):
    if callable(value):
        raise TypeError(f"a launch passes {value!r}, whose source the keys do not cover")
    return tuple(map(tuple, value)) if isinstance(value, list) else value


def units(families: Iterable[str]) -> dict[str, Launch]:
    """The distinct specializations that the families' calls launch, by key; each as wide as any of its calls asks."""
    found: dict[str, Launch] = {}
    for family in families:
        seen = Counter()
        for call in CALLS[family](False):
            for launch in record(call, family):
                if (key := launch.key) in found:
                    wide, wide_stores = found[key].wide or launch.wide, found[key].wide_stores or launch.wide_stores
                    found[key] = found[key]._replace(wide=wide, wide_stores=wide_stores)
                    continue
                seen[launch.name] += 1
                if seen[launch.name] > 1:
                    launch = launch._replace(label=f"{launch.label} #{seen[launch.name]}")
                found[key] = launch
    return found


def compile_units(missing: dict[str, Launch], jobs: int) -> Iterator[tuple[list[Entry], list[str]]]:
    """(entries, errors) of every batch of launches as it is done, in processes of their own."""
    chosen = list(missing.items())
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        parts = [pool.submit(compile_batch, chosen[at : at + BATCH]) for at in range(0, len(chosen), BATCH)]
        yield from (part.result() for part in as_completed(parts))


def compile_batch(batch: list[tuple[str, Launch]]) -> tuple[list[Entry], list[str]]:
    from triton import knobs

    figures: dict[str, dict[str, sass.Figures]] = {key: {} for key, _ in batch}
    errors = []
    with tempfile.TemporaryDirectory() as folder:
        knobs.cache.dir = folder  # what is compiled here was compiled now
        for arch, target in TARGETS.items():
            done = {}
            for key, launch in batch:
                try:
                    done[key] = compile_launch(launch, int(arch))
                except Exception as error:
                    errors.append(f"sm_{arch} {launch.family} {launch.name} does not compile: {error}")
            path = Path(folder) / "kernel.cubin"
            codes = sass.disassemble((compiled.asm["cubin"] for compiled in done.values()), target)
            for (key, compiled), code in zip(done.items(), codes, strict=True):
                path.write_bytes(compiled.asm["cubin"])
                ((_, _, usage),) = sass.resource_usage(path)
                figures[key][arch] = sass.read_figures(code, usage, compiled.metadata.shared)
    entries = [Entry(key, launch.family, launch.name, figures[key]) for key, launch in batch]
    return [entry for entry in entries if len(entry.figures) == len(TARGETS)], errors


def compile_launch(launch: Launch, arch: int):
    """Compile one specialization for one architecture."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = getattr(importlib.import_module(launch.module), launch.kernel)
    attributes = {key: [list(pair) for pair in value] for key, value in launch.attributes}
    source = ASTSource(kernel, dict(launch.signature), dict(launch.constants), attributes)
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=dict(launch.options))
