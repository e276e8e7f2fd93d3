"""Machine code of NVIDIA's chips: what a kernel's SASS and its resource usage say, and the tools that print them."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from .loops import inner_loops

INSTRUCTION_BYTES = 16


class Figures(NamedTuple):
    """What the machine code of one kernel says of itself."""

    registers: int
    stack: int  # bytes, of the stack and of other local memory
    local_accesses: int
    shared: int  # bytes
    wide_loads: int  # of 16 bytes
    wide_copies: int  # of 16 bytes, to shared memory without a register between
    wide_stores: int  # of 16 bytes
    loop: int  # instructions in the main loop
    transcendentals: int  # MUFU: exponentials, logarithms, roots, reciprocals
    tensor_products: int  # instructions of the tensor cores
    warpgroup_products: int  # of these, a warpgroup's

    @property
    def spills(self) -> list[str]:
        """No kernel may keep a thread's values outside the registers."""
        if not (self.stack or self.local_accesses):
            return []
        return [f"{self.stack} bytes of stack, {self.local_accesses} local accesses: registers spill"]


def find_tool(name: str) -> Path | None:
    """A CUDA tool: of the toolkit (CUDA_HOME, PATH), else of Triton's wheel."""
    folders = [Path(home) / "bin" for home in (os.environ.get("CUDA_HOME"), "/usr/local/cuda") if home]
    on_path = shutil.which(name)
    candidates = [folders[0] / name, *([Path(on_path)] if on_path else []), *(folder / name for folder in folders)]
    if spec := importlib.util.find_spec("triton"):
        candidates.append(Path(spec.origin).parent / "backends" / "nvidia" / "bin" / name)
    return next((path for path in candidates if path.is_file()), None)


def run_tool(name: str, *arguments: str | Path) -> str:
    command = [find_tool(name), *arguments]
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True).stdout


def resource_usage(binary: Path) -> list[tuple[str, str, dict[str, int]]]:
    """(architecture, symbol, usage) of every kernel of a cubin or an object; a bare cubin names no architecture."""
    found, arch = [], ""
    for line in run_tool("cuobjdump", "--dump-resource-usage", binary).splitlines():
        if match := re.match(r"arch = sm_(\w+)", line):
            arch = match[1]
        elif match := re.match(r"\s*Function (\S+):", line):
            symbol = match[1]
        elif match := re.findall(r"\b(REG|STACK|SHARED|LOCAL):(\d+)", line):
            found.append((arch, symbol, {key: int(value) for key, value in match}))
    return found


def instructions(text: str) -> list[tuple[int, str]]:
    """(address, instruction) of every line of a listing."""
    return [(int(at, 16), line) for at, line in re.findall(r"^\s*/\*([0-9a-f]{4,})\*/\s+(.*?)\s*;", text, re.MULTILINE)]


def main_loop(code: list[tuple[int, str]]) -> int:
    """Instructions of the longest loop that has no other in it; 0 without a loop."""
    return max((len(body) for body in inner_loops(code)), default=0)


def read_figures(code: list[tuple[int, str]], usage: dict[str, int], shared: int) -> Figures:
    text = "\n".join(line for _, line in code)

    def count(pattern: str) -> int:
        return len(re.findall(rf"\b{pattern}", text))

    return Figures(
        registers=usage["REG"],
        stack=usage["STACK"] + usage.get("LOCAL", 0),
        local_accesses=count(r"(?:LDL|STL)\b"),
        shared=shared,
        wide_loads=count(r"LDG\.E[.\w]*\.128\b"),
        wide_copies=count(r"LDGSTS\.E[.\w]*\.128\b"),
        wide_stores=count(r"STG\.E[.\w]*\.128\b"),
        loop=main_loop(code),
        transcendentals=count(r"MUFU\b"),
        tensor_products=count(r"(?:[A-Z]MMA|HGMMA|QGMMA|IGMMA|BGMMA|UTC[A-Z]*MMA)\b"),
        warpgroup_products=count(r"HGMMA\b"),
    )


def disassemble(cubins: Iterable[bytes], target: str) -> list[list[tuple[int, str]]]:
    """The code of every cubin, all by one process: starting the disassembler takes longer than compiling a kernel."""
    codes = [_machine_code(cubin) for cubin in cubins]
    if not codes:
        return []
    with tempfile.NamedTemporaryFile(suffix=".bin") as file:
        file.write(b"".join(codes))
        file.flush()
        lines = instructions(run_tool("nvdisasm", "--binary", target, file.name))
    if len(lines) * INSTRUCTION_BYTES != sum(map(len, codes)):
        raise RuntimeError(f"nvdisasm printed {len(lines)} instructions for {sum(map(len, codes))} bytes of {target}")
    parts, first = [], 0
    for code in codes:
        parts.append(lines[first : first + len(code) // INSTRUCTION_BYTES])
        first += len(code) // INSTRUCTION_BYTES
    return parts


def _machine_code(cubin: bytes) -> bytes:
    """The sections of code of an ELF file, one after the other."""
    (table,) = struct.unpack_from("<Q", cubin, 0x28)
    size, count, names_at = struct.unpack_from("<HHH", cubin, 0x3A)
    headers = [struct.unpack_from("<IIQQQQ", cubin, table + size * i) for i in range(count)]
    names = headers[names_at][4]
    return b"".join(
        cubin[at : at + n] for name, _, _, _, at, n in headers if cubin[names + name :].startswith(b".text")
    )
