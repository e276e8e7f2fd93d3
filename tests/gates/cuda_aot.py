"""Ahead-of-time gate of the CUDA C++ kernels, without a GPU: compile every csrc/**/*.cu without a warning, then read
registers, stack and machine code of every kernel from the object.

    python -m tests.gates.cuda_aot [--family kl]
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
ARCHITECTURES = ("80", "90a")
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


class Kernel(NamedTuple):
    """What the machine code of one kernel says."""

    family: str
    arch: str
    name: str
    registers: int
    stack: int
    shared: int
    local_accesses: int
    wide_loads: int
    warpgroup_products: int = 0
    wide_stores: int = 0

    @property
    def faults(self) -> list[str]:
        """What the gate does not accept, in words."""
        faults = []
        if self.stack or self.local_accesses:
            faults.append(f"{self.stack} bytes of stack, {self.local_accesses} local accesses: registers spill")
        if self.name.startswith(WIDE.get(self.family, ())) and not self.wide_loads:
            faults.append("no 16-byte load (LDG.E.128)")
        stores = WIDE_STORES.get(self.family)
        if stores and stores.match(self.name) and not self.wide_stores:
            faults.append("no 16-byte store (STG.E.128)")
        if self.name.startswith(MATRIX.get((self.family, self.arch), ("no name",))):
            if not self.warpgroup_products:
                faults.append("no product of a warpgroup (HGMMA)")
            if not self.wide_loads:
                faults.append("no 16-byte copy (LDGSTS.E.128)")
        return faults


def missing() -> str:
    """Why the gate cannot run here, empty when it can."""
    if find_tool("nvcc") is None:
        return "nvcc is not here"
    return "" if find_tool("cuobjdump") else "cuobjdump is not here"


def find_tool(name: str) -> Path | None:
    """A CUDA tool: of the toolkit (CUDA_HOME, PATH), else of Triton's wheel."""
    folders = [Path(home) / "bin" for home in (os.environ.get("CUDA_HOME"), "/usr/local/cuda") if home]
    if spec := importlib.util.find_spec("triton"):
        folders.append(Path(spec.origin).parent / "backends" / "nvidia" / "bin")
    on_path = shutil.which(name)
    candidates = [folders[0] / name, *([Path(on_path)] if on_path else []), *(folder / name for folder in folders)]
    return next((path for path in candidates if path.is_file()), None)


def sources() -> list[Path]:
    return sorted((ROOT / "csrc").rglob("*.cu"))


def compile_source(source: Path, target: Path) -> None:
    """Compile for every architecture, with every warning an error.

    Raises:
        RuntimeError: The compiler's words.
    """
    torch = Path(importlib.util.find_spec("torch").origin).parent
    command = [find_tool("nvcc"), "-c", source, "-o", target, "-O3", "-std=c++17", "-isystem", torch / "include"]
    command += ["-DTORCH_TARGET_VERSION=0x020B000000000000", "-DUSE_CUDA"]
    command += ["-Werror", "all-warnings", "-Xcompiler", "-fPIC,-Wall,-Wextra,-Werror", "--threads", "0"]
    for arch in ARCHITECTURES:
        command += ["-gencode", f"arch=compute_{arch},code=sm_{arch}"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{source.relative_to(ROOT)} does not compile:\n{done.stdout}{done.stderr}")


def inspect(family: str, binary: Path) -> list[Kernel]:
    """Every kernel of an object, per architecture."""
    tool = find_tool("cuobjdump")

    def dump(option: str) -> str:
        return subprocess.run([tool, option, binary], capture_output=True, text=True, check=True).stdout

    code = {}
    for arch, text in _by_arch(dump("--dump-sass")):
        for function in re.split(r"^\s*Function : ", text, flags=re.MULTILINE)[1:]:
            symbol, _, body = function.partition("\n")
            code[arch, symbol.strip()] = (
                len(re.findall(r"\b(?:LDL|STL)\b", body)),
                len(re.findall(r"\bLDG(?:STS)?\.E(?:\.\w+)*\.128\b", body)),
                len(re.findall(r"\bHGMMA\b", body)),
                len(re.findall(r"\bSTG\.E(?:\.\w+)*\.128\b", body)),
            )
    kernels = []
    for arch, text in _by_arch(dump("--dump-resource-usage")):
        for symbol, registers, stack, shared in re.findall(
            r"Function (\S+?):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+)", text
        ):
            numbers = map(int, (registers, stack, shared))
            kernels.append(Kernel(family, arch, readable(symbol), *numbers, *code[arch, symbol]))
    return kernels


def readable(symbol: str) -> str:
    """`forward_kernel 6__half FormE0` from a mangled name: enough to know the instance."""
    if not (match := re.search(r"\d+([a-z_]+_kernel)(?:I(.*?)E+v)?", symbol)):
        return symbol
    arguments = re.sub(r"LNS\d*_\d*", "", match[2] or "")
    return f"{match[1]} {arguments}".strip()


def _by_arch(text: str) -> list[tuple[str, str]]:
    parts = re.split(r"^arch = sm_(\w+)$", text, flags=re.MULTILINE)
    return list(zip(parts[1::2], parts[2::2], strict=True))


def check(source: Path) -> list[Kernel]:
    """Compile one source and read its kernels."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "kernels.o"
        compile_source(source, target)
        return inspect(source.parent.name, target)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", help="only this folder of csrc")
    options = parser.parse_args()
    if reason := missing():
        print(f"cuda_aot: not run, {reason}")
        return 0
    faults = 0
    for source in sources():
        if options.family in (None, source.parent.name):
            for kernel in check(source):
                faults += len(kernel.faults)
                print(
                    f"{kernel.family:8} sm_{kernel.arch:4} {kernel.name:50} {kernel.registers:3} registers "
                    f"{kernel.shared:5} B shared {kernel.wide_loads:2} wide loads {kernel.wide_stores:2} wide stores "
                    f"{kernel.warpgroup_products:3} HGMMA  "
                    f"{'; '.join(kernel.faults) or 'ok'}"
                )
    return 1 if faults else 0


if __name__ == "__main__":
    raise SystemExit(main())
