"""Compiles the emulated CUDA kernels below ``build/emulator``, which nothing installs or ships.

By content: sources and the runtime are copied there, translated, only where that changes what lies there already.
"""

from __future__ import annotations

import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from tests.emulator.translate import translate_folder, write_if_changed

ROOT = Path(__file__).resolve().parents[2]
CSRC = ROOT / "csrc"
FOLDER = ROOT / "build" / "emulator"
RUNTIME = Path(__file__).resolve().parent / "runtime"
TORCH_TARGET_VERSION = "0x020B000000000000"  # as in setup.py

# By the value of AMKD_FAST_EMULATE: flags for the kernels, for the runtime, and to link.
MODES = {
    "1": ("-O2", "", ""),
    # The compiler's calls before every access go to race.cpp: nothing is linked with libtsan.
    "race": ("-O1 -fsanitize=thread", "-DEMULATOR_RACE", ""),
    "asan": (
        "-O1 -fsanitize=address,undefined -fno-sanitize=vptr -fno-sanitize-recover=undefined",
        "-DEMULATOR_ASAN",
        "-fsanitize=address,undefined",
    ),
}
# Two products and a sum are rounded one by one, whatever the compiler would contract.
COMMON = "-std=c++20 -fPIC -fvisibility=hidden -ffp-contract=off -g1 -D__CUDA_ARCH_FEAT_SM90_ALL"
WARNINGS = "-Wall -Wextra -Werror"


def compiler() -> list[str]:
    """The compiler: CXX, or g++, whose output the race checker is written for."""
    return shlex.split(os.environ.get("CXX", "")) or ["g++"]


def build(mode: str, sources: Path = CSRC) -> Path:
    """Compile a folder of CUDA sources for one mode; returns the library. What has not changed stays as it is."""
    units = translate_folder(sources, FOLDER / "sources" / sources.name)
    if sources != CSRC:  # which they may include
        translate_folder(CSRC, FOLDER / "sources" / CSRC.name)
    for path in RUNTIME.rglob("*"):
        if path.is_file():
            write_if_changed(FOLDER / "runtime" / path.relative_to(RUNTIME), path.read_text())
    target = FOLDER / mode / f"{sources.name}.so"
    target.parent.mkdir(parents=True, exist_ok=True)
    ninja_file = target.with_suffix(".ninja")
    write_if_changed(ninja_file, _ninja(mode, units, target))
    ninja = [shutil.which("ninja")] if shutil.which("ninja") else [sys.executable, "-m", "ninja"]
    jobs = ["-j", os.environ["MAX_JOBS"]] if "MAX_JOBS" in os.environ else []
    environment = {key: value for key, value in os.environ.items() if key != "LD_PRELOAD"}
    command = [*ninja, "--quiet", "-C", str(target.parent), "-f", ninja_file.name, *jobs]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"the emulated kernels do not compile:\n{done.stdout[-4000:]}{done.stderr[-2000:]}")
    return target


def _ninja(mode: str, units: list[Path], target: Path) -> str:
    torch = Path(importlib.util.find_spec("torch").origin).parent
    kernels, runtime, link = MODES[mode]
    include = [
        f"-I{FOLDER / 'runtime'}",
        f"-DTORCH_TARGET_VERSION={TORCH_TARGET_VERSION}",
        "-isystem",
        torch / "include",
    ]
    lines = ["ninja_required_version = 1.5", f"cxx = {_join(compiler())}", f"common = {COMMON} {_join(include)}"]
    lines += ["rule cxx", "  command = $cxx $common $flags -MMD -MF $out.d -c $in -o $out", "  depfile = $out.d"]
    lines += ["  deps = gcc", "rule link", "  command = $cxx -shared -o $out $in $libs"]
    objects = []
    for source in sorted(RUNTIME.glob("*.cpp")):
        objects.append(f"{source.stem}.o")
        lines += [f"build {objects[-1]}: cxx {FOLDER / 'runtime' / source.name}", f"  flags = -O2 {runtime} {WARNINGS}"]
    for unit in units:
        parts = unit.relative_to(FOLDER / "sources").with_suffix("").parts
        objects.append(f"{'_'.join(parts)}.o")
        lines += [f"build {objects[-1]}: cxx {unit}", f"  flags = {kernels} {runtime} -w"]
    libraries = [f"-L{torch / 'lib'}", f"-Wl,-rpath,{torch / 'lib'},--as-needed", "-ltorch_cpu", "-lc10", "-ldl"]
    lines += [f"build {target.name}: link {' '.join(objects)}", f"  libs = {link} {_join(libraries)}"]
    return "\n".join(lines) + "\n"


def _join(arguments: list) -> str:
    return shlex.join(map(str, arguments)).replace("$", "$$")
