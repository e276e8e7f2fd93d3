"""Ahead-of-time gate of the CUDA C++ kernels, without a GPU: registers, stack and machine code of every kernel of the
objects that setup.py builds, which compiles every csrc/**/*.cu with warnings as errors.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

from . import fingerprints, sass
from .ledger import FOLDER, Entry

LEDGER = FOLDER / "cuda.jsonl"
ROOT = Path(__file__).resolve().parents[2]
ARCHITECTURES = ("80", "90a")
ARCH_LIST = "8.0 9.0a"  # the same as TORCH_CUDA_ARCH_LIST has it
# Kernels that read rows and so must load 16 bytes at a time, by family.
WIDE = {
    "kl": (
        "forward_kernel",
        "mixture_kernel",
        "backward_kernel",
        "decoupled_forward",
        "decoupled_backward",
        "consistency_forward_kernel",
        "consistency_backward_kernel",
        "standardised_forward_kernel",
        "standardised_backward_kernel",
    ),
    "segments": ("scale_kernel", "sweep_kernel"),
    "attack": (
        "bases_kernel",
        "draw_kernel",
        "keys_kernel",
        "objective_kernel",
        "particles_kernel",
        "ranks_kernel",
        "step_kernel",
        "weights_kernel",
    ),
    "triplet": (
        "columns_kernel",
        "gather_kernel",
        "rerank_kernel",
        "rows_backward_kernel",
        "rows_forward_kernel",
        "scatter_kernel",
        "select_kernel",
        "terms_kernel",
    ),
}
# Kernels that read single bytes and must store 16 at a time, where they are compiled for whole vectors.
WIDE_STORES = {"images": re.compile(r"crop_flip_kernel .*Lb1")}
# Kernels of the tensor cores: on that architecture they multiply by warpgroups and copy 16 bytes at a time; elsewhere
# they are empty.
MATRIX = {("triplet", "90a"): ("products_kernel",)}
# What setup.py says of the compilation that the machine code can depend on.
SETTINGS = ("COMMON_FLAGS", "NVCC_FLAGS", "TORCH_TARGET_VERSION")


class Source(NamedTuple):
    """One file, which is compiled as a whole."""

    family: str
    path: Path

    @property
    def name(self) -> str:
        return self.path.relative_to(ROOT / "csrc").as_posix()

    def key(self, of: dict[str, str]) -> str:
        built = (fingerprints.of_cuda(self.path, ROOT / "csrc"), settings(), ARCHITECTURES)
        return fingerprints.digest(self.name, built, sorted(of.items()))

    def faults(self, entry: Entry) -> list[str]:
        """What the gate does not accept in one kernel of this file, in words."""
        kernel, faults = entry.name.partition(" ")[2], []
        for arch, figures in entry.figures.items():
            found = figures.spills
            if kernel.startswith(WIDE.get(self.family, ())) and not figures.wide_loads + figures.wide_copies:
                found.append("no 16-byte load (LDG.E.128)")
            stores = WIDE_STORES.get(self.family)
            if stores and stores.match(kernel) and not figures.wide_stores:
                found.append("no 16-byte store (STG.E.128)")
            if kernel.startswith(MATRIX.get((self.family, arch), ("no name",))):
                if not figures.warpgroup_products:
                    found.append("no product of a warpgroup (HGMMA)")
                if not figures.wide_loads + figures.wide_copies:
                    found.append("no 16-byte copy (LDGSTS.E.128)")
            faults += [f"sm_{arch}: {fault}" for fault in found]
        return faults


def settings() -> dict[str, object]:
    """The constants of setup.py, which cannot be imported."""
    assigned = (node for node in ast.parse((ROOT / "setup.py").read_text()).body if isinstance(node, ast.Assign))
    found = {node.targets[0].id: node.value for node in assigned if isinstance(node.targets[0], ast.Name)}
    return {name: ast.literal_eval(found[name]) for name in SETTINGS}


def cannot_compile() -> str:
    """Why the gate cannot compile here, empty when it can."""
    return next((f"{tool} is not here" for tool in ("nvcc", "cuobjdump") if sass.find_tool(tool) is None), "")


@cache
def versions() -> dict[str, str]:
    """Of the compiler and of the headers that are not in the fingerprints."""
    import torch

    release = re.search(r"release ([\d.]+)", sass.run_tool("nvcc", "--version"))[1]
    return {"nvcc": release, "torch": torch.__version__.partition("+")[0]}


def sources(families: Iterable[str]) -> list[Source]:
    chosen = set(families)
    found = (Source(path.parent.name, path) for path in sorted((ROOT / "csrc").rglob("*.cu")))
    return [source for source in found if source.family in chosen]


FAMILIES = tuple(sorted({path.parent.name for path in (ROOT / "csrc").rglob("*.cu")}))


def units(families: Iterable[str], of: dict[str, str] | None = None) -> dict[str, Source]:
    """The sources by key, for the compiler that is here or for `of`."""
    of = versions() if of is None else of
    return {source.key(of): source for source in sources(families)}


def compile_units(missing: dict[str, Source], jobs: int) -> Iterator[tuple[list[Entry], list[str]]]:
    """(entries, errors) of every source. Ninja keeps what it compiled, also when this is interrupted."""
    if failed := build(missing.values(), jobs):
        yield [], [f"the CUDA sources do not compile:\n{failed}"]
        return
    for key, source in missing.items():
        entries = inspect(key, source, object_of(source))
        lacking = set(ARCHITECTURES) - {arch for entry in entries for arch in entry.figures}
        yield entries, [f"{source.name} has no kernel for sm_{arch}" for arch in sorted(lacking)]


def build(sources: Iterable[Source], jobs: int) -> str:
    """Compile them; what the compiler said where it failed."""
    folder = build_folder()
    command = [
        sys.executable,
        "setup.py",
        "-q",
        "build_ext",
        "--build-temp",
        folder,
        "--targets",
        " ".join(object_of(source).name for source in sources),
    ]
    environment = {
        "AMKD_FAST_BUILD": "cuda",
        "TORCH_CUDA_ARCH_LIST": ARCH_LIST,
        "CXXFLAGS": "-Werror",
        "MAX_JOBS": str(jobs),
    }
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return done.stdout if done.returncode else ""


def object_of(source: Source) -> Path:
    return build_folder() / (source.name.removesuffix(".cu").replace("/", "_") + ".o")


def build_folder() -> Path:
    """Where the extension was built, if that was with the gate's architectures and warnings; else one of its own."""
    targets = " ".join(f"-gencode arch=compute_{arch},code=sm_{arch}" for arch in ARCHITECTURES)
    for path in sorted((ROOT / "build").glob("temp*/build.ninja")):
        flags = re.search(r"^nvccflags = (.*)$", path.read_text(), re.MULTILINE)
        if flags and flags[1].endswith(targets) and "-Werror" in flags[1].replace("-Werror all-warnings", ""):
            return path.parent
    return ROOT / "build" / "gates"


def inspect(key: str, source: Source, binary: Path) -> list[Entry]:
    """Every kernel of an object, with its figures for each architecture."""
    code = machine_code(binary)
    figures: dict[str, dict[str, sass.Figures]] = {}
    for arch, symbol, usage in sorted(sass.resource_usage(binary), key=lambda found: found[:2]):
        figures.setdefault(symbol, {})[arch] = sass.read_figures(code[arch, symbol], usage, usage["SHARED"])
    entries, seen = [], Counter()
    for symbol, by_arch in sorted(figures.items()):
        name = f"{source.name} {readable(symbol)}"
        seen[name] += 1
        entries.append(Entry(key, source.family, name + (f" #{seen[name]}" if seen[name] > 1 else ""), by_arch))
    return entries


def machine_code(binary: Path, *options: str) -> dict[tuple[str, str], list[tuple[int, str]]]:
    """The instructions of every kernel of an object, by architecture and symbol."""
    code, arch = {}, ""
    listing = sass.run_tool("cuobjdump", *options, "--dump-sass", binary)
    for part in re.split(r"^(?=arch = |\s*Function : )", listing, flags=re.MULTILINE):
        first, _, body = part.partition("\n")
        if first.startswith("arch = sm_"):
            arch = first.removeprefix("arch = sm_").strip()
        elif "Function : " in first:
            code[arch, first.split()[-1]] = sass.instructions(body)
    return code


def readable(symbol: str) -> str:
    """`forward_kernel 6__half FormE0` from a mangled name: enough to know the instance."""
    if not (match := re.search(r"\d+([a-z_]+_kernel)(?:I(.*?)E+v)?", symbol)):
        return symbol
    arguments = re.sub(r"LNS\d*_\d*", "", match[2] or "")
    return f"{match[1]} {arguments}".strip()
