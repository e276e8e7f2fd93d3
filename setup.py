"""Builds the native binary of amkd_fast with ninja: C++ CPU kernels and, by the rule below, CUDA kernels.

AMKD_FAST_BUILD   auto  the CPU part where a C++ compiler is; the CUDA part too where nvcc is and torch is a CUDA build
                  cpu   without the CUDA part
                  cuda  with the CUDA part, also against a CPU build of torch; no nvcc is an error
                  none  nothing: the package runs on Triton and the reference
TORCH_CUDA_ARCH_LIST   chips of the CUDA part ("8.0 9.0a+PTX"); by default the visible GPUs', else the release list
CUDA_HOME, CXX, CXXFLAGS, MAX_JOBS   as everywhere

The binary uses the stable ABI of LibTorch alone, so torch is needed for its headers and libraries, never imported: the
torch of the interpreter is found even from an isolated build, and only where there is none is one asked for. A second,
small one, the autograd node, is for that very torch; where it cannot be built Python does its work.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

ROOT = Path(__file__).resolve().parent
TORCH_TARGET_VERSION = "0x020B000000000000"  # 2.11
KERNELS, AUTOGRAD = "amkd_fast._C", "amkd_fast._autograd"
RELEASE_ARCHS = "8.0 9.0a 10.0a 12.0+PTX"
# The machine code of a CUDA source depends on these and on nvcc: tests/gates reads them by name.
COMMON_FLAGS = ["-O3", "-std=c++17"]
NVCC_FLAGS = ["-Werror", "all-warnings", "--threads", "0"]
# gcc warns about the self-initialised variables of its own AVX-512 header.
GCC_HEADER_NOISE = ["-Wno-uninitialized", "-Wno-maybe-uninitialized"]
SIMD_FLAGS = {
    "baseline": [],
    "avx2": ["-mavx2", "-mfma", "-mf16c"],
    "avx512": [*(f"-mavx512{part}" for part in ("f", "bw", "dq", "vl")), "-mfma", "-mf16c", *GCC_HEADER_NOISE],
}


def torch_folder() -> Path | None:
    """The installed torch, also when an isolated build hides the interpreter's packages from the import system."""
    spec = importlib.util.find_spec("torch")
    if spec is not None and spec.origin:
        return Path(spec.origin).parent
    for key in ("platlib", "purelib"):
        folder = Path(sysconfig.get_path(key)) / "torch"
        if (folder / "version.py").is_file():
            return folder
    return None


def torch_versions(folder: Path) -> tuple[str, str | None]:
    """(version, CUDA version or None), read from torch/version.py without importing torch."""
    text = (folder / "version.py").read_text()
    version = re.search(r"__version__ = '([^']+)'", text).group(1)
    cuda = re.search(r"^cuda[^=]*= '([^']+)'", text, re.MULTILINE)
    return version, cuda.group(1) if cuda else None


def find_nvcc() -> Path | None:
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    for home in filter(None, homes):
        if (nvcc := Path(home) / "bin" / "nvcc").is_file():
            return nvcc
    found = shutil.which("nvcc")
    return Path(found).resolve() if found else None


def find_compiler() -> list[str] | None:
    command = shlex.split(os.environ.get("CXX", "")) or ["g++" if shutil.which("g++") else "c++"]
    return command if shutil.which(command[0]) else None


class Plan:
    """What gets built, and the sentence that says why."""

    def __init__(self) -> None:
        self.wanted = os.environ.get("AMKD_FAST_BUILD", "auto")
        if self.wanted not in ("auto", "cpu", "cuda", "none"):
            raise SystemExit(f"AMKD_FAST_BUILD={self.wanted!r}: must be auto, cpu, cuda or none")
        self.torch, self.compiler, self.nvcc = torch_folder(), find_compiler(), find_nvcc()
        self.native = self.wanted != "none" and self.compiler is not None
        if self.wanted in ("cpu", "cuda") and self.compiler is None:
            raise SystemExit(f"AMKD_FAST_BUILD={self.wanted}: no C++ compiler was found (CXX names one)")
        if self.wanted == "cuda" and self.nvcc is None:
            raise SystemExit("AMKD_FAST_BUILD=cuda: nvcc was not found (CUDA_HOME names its folder)")
        torch_cuda = torch_versions(self.torch)[1] if self.torch else None
        self.cuda = self.wanted == "cuda" or (self.wanted == "auto" and self.nvcc is not None and bool(torch_cuda))
        if self.wanted == "none":
            self.decision = "none: nothing is compiled, as asked"
        elif not self.native:
            self.decision = "auto: nothing is compiled, there is no C++ compiler"
        elif self.wanted != "auto":
            self.decision = f"{self.wanted}: as asked"
        elif self.cuda:
            self.decision = f"auto: CPU and CUDA, nvcc is there and torch is a CUDA {torch_cuda} build"
        else:
            why = "there is no nvcc" if self.nvcc is None else "torch is a CPU build"
            self.decision = f"auto: CPU alone, {why}"


def visible_archs() -> str:
    """Compute capabilities of the visible GPUs, asked of the driver's own tool; empty without any."""
    try:
        command = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
        lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    except (OSError, subprocess.CalledProcessError):
        return ""
    # The chips with an "a" target have instructions that only it admits.
    return " ".join(sorted({f"{line}a" if line in ("9.0", "10.0") else line for line in lines}))


def nvcc_targets(archs: str) -> list[str]:
    flags = []
    for arch in archs.replace(";", " ").replace(",", " ").split():
        name, _, ptx = arch.partition("+")
        number = name.replace(".", "")
        flags += ["-gencode", f"arch=compute_{number},code=sm_{number}"]
        if ptx:
            flags += ["-gencode", f"arch=compute_{number},code=compute_{number}"]
    return flags


class NinjaBuild(build_ext):
    """build_ext that writes a build.ninja and runs it for an extension, all of it or, by --targets, what is named."""

    user_options = [*build_ext.user_options, ("targets=", None, "what ninja is to make (default: the extension)")]  # noqa: RUF012

    def initialize_options(self) -> None:
        super().initialize_options()
        self.targets = ""

    def build_extension(self, ext: Extension) -> None:
        plan: Plan = ext.plan
        if plan.torch is None:
            raise SystemExit("torch is not installed: the build needs its headers (AMKD_FAST_BUILD=none does not)")
        target, autograd = (Path(self.get_ext_fullpath(name)).resolve() for name in (KERNELS, AUTOGRAD))
        target.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(self.build_temp).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "build.ninja").write_text(self.ninja_file(plan, target, autograd))
        jobs = ["-j", os.environ["MAX_JOBS"]] if "MAX_JOBS" in os.environ else []
        command = [*ninja_command(), "-C", str(folder), *jobs]
        if ext.name == KERNELS:
            print(f"amkd_fast build {plan.decision}", file=sys.stderr)
            subprocess.run([*command, *(self.targets.split() or [str(target)])], check=True)
        elif not self.targets and subprocess.run([*command, str(autograd)]).returncode != 0:
            for old in (autograd, ROOT / "amkd_fast" / autograd.name):  # for another torch
                old.unlink(missing_ok=True)
            raise CompileError("the autograd node in C++ was not built: calls take the one in Python, which is slower")

    def ninja_file(self, plan: Plan, target: Path, autograd: Path) -> str:
        import pybind11

        version, _ = torch_versions(plan.torch)
        x86 = platform.machine().lower() in ("x86_64", "amd64")
        levels = list(SIMD_FLAGS) if x86 else ["baseline"]
        archs = (os.environ.get("TORCH_CUDA_ARCH_LIST") or visible_archs() or RELEASE_ARCHS) if plan.cuda else ""
        cuda_version = nvcc_version(plan.nvcc) if plan.cuda else ""
        common = [*COMMON_FLAGS, *(["-DAMKD_X86"] if x86 else [])]
        torch_flags = [f"-DTORCH_TARGET_VERSION={TORCH_TARGET_VERSION}", *(["-DUSE_CUDA"] if plan.cuda else [])]
        torch_flags += ["-isystem", str(plan.torch / "include")]
        info = {
            "AMKD_BUILD_DECISION": plan.decision,
            "AMKD_CUDA_VERSION": cuda_version,
            "AMKD_CUDA_ARCHS": archs,
            "AMKD_TORCH_VERSION": version,
            "AMKD_SIMD_LEVELS": " ".join(levels),
        }
        warnings = shlex.split(os.environ.get("CXXFLAGS", ""))  # CI adds -Werror; a user's newer compiler may warn
        # The module knows no torch: the copy of pybind11 among torch's headers refuses a TORCH_TARGET_VERSION.
        module_flags = ["-isystem", pybind11.get_include(), "-isystem", sysconfig.get_path("include")]
        module_flags += [f'-D{name}="{value}"' for name, value in info.items()]
        cxx_flags = [*common, "-fPIC", "-fvisibility=hidden", "-fno-math-errno", "-Wall", "-Wextra", *warnings]

        lines = [f"cxx = {join(plan.compiler)}", f"cxxflags = {join(cxx_flags)}"]
        lines += ["rule cxx", "  command = $cxx -MMD -MF $out.d $cxxflags $flags -c $in -o $out", "  depfile = $out.d"]
        lines += ["  deps = gcc", "rule link", "  command = $cxx -shared -o $out $in $libs"]
        if plan.cuda:
            host_flags = ["-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra"]
            host_flags += [flag for flag in warnings if flag.startswith("-W") and "," not in flag]  # nvcc splits there
            nvcc_flags = [*common, *torch_flags, "-Xcompiler", ",".join(host_flags), *NVCC_FLAGS]
            # Its version, so that another nvcc in the same place compiles anew.
            nvcc_flags += [f"-DAMKD_NVCC={cuda_version}", "-ccbin", plan.compiler[0], *nvcc_targets(archs)]
            lines += [f"nvcc = {plan.nvcc}", f"nvccflags = {join(nvcc_flags)}", "rule nvcc"]
            lines += ["  command = $nvcc -MD -MF $out.d $nvccflags -c $in -o $out"]
            lines += ["  depfile = $out.d", "  deps = gcc"]

        objects = []

        def compile_one(rule: str, source: Path, name: str, flags: list[str]) -> None:
            objects.append(f"{name}.o")
            lines.append(f"build {name}.o: {rule} {source}")
            if flags:
                lines.append(f"  flags = {join(flags)}")

        for source in sorted((ROOT / "csrc").rglob("*.cpp")):
            if source.stem == "autograd":
                continue
            name = "_".join(source.relative_to(ROOT / "csrc").with_suffix("").parts)
            if source.stem.endswith("_cpu_kernels"):
                for level in levels:
                    compile_one("cxx", source, f"{name}_{level}", [f"-DAMKD_SIMD={level}", *SIMD_FLAGS[level]])
            else:
                compile_one("cxx", source, name, module_flags if source.stem == "module" else torch_flags)
        libraries = ["-L" + str(plan.torch / "lib"), "-ltorch_cpu", "-lc10", "-Wl,--exclude-libs,ALL"]
        if plan.cuda:
            for source in sorted((ROOT / "csrc").rglob("*.cu")):
                name = "_".join(source.relative_to(ROOT / "csrc").with_suffix("").parts)
                compile_one("nvcc", source, name, [])
            libraries += [f"-L{cudart_folder(plan.nvcc)}", "-lcudart_static", "-ldl", "-lrt", "-lpthread"]
        lines += [f"build {target}: link {' '.join(objects)}", f"  libs = {join(libraries)}"]
        # With its version, so that another torch in the same place compiles anew.
        node_flags = [f'-DAMKD_TORCH="{version}"', "-isystem", sysconfig.get_path("include")]
        for part in ("include", "include/torch/csrc/api/include"):
            node_flags += ["-isystem", str(plan.torch / part)]
        libraries = ["-L" + str(plan.torch / "lib"), "-ltorch_python", "-ltorch_cpu", "-lc10", "-Wl,--exclude-libs,ALL"]
        lines += [f"build autograd.o: cxx {ROOT / 'csrc/autograd.cpp'}", f"  flags = {join(node_flags)}"]
        lines += [f"build {autograd}: link autograd.o", f"  libs = {join(libraries)}"]
        return "\n".join(lines) + "\n"


def cudart_folder(nvcc: Path) -> Path:
    folders = [nvcc.parent.parent / name for name in ("lib64", "lib")]
    for folder in folders:
        if (folder / "libcudart_static.a").is_file():
            return folder
    raise SystemExit(f"libcudart_static.a is in none of {', '.join(map(str, folders))}")


def nvcc_version(nvcc: Path) -> str:
    text = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    return re.search(r"release ([\d.]+)", text).group(1)


def ninja_command() -> list[str]:
    found = shutil.which("ninja")
    return [found] if found else [sys.executable, "-m", "ninja"]


def join(arguments: list[str]) -> str:
    return shlex.join(arguments).replace("$", "$$")


plan = Plan()
extensions = []
if plan.native:
    extensions = [Extension(KERNELS, sources=[]), Extension(AUTOGRAD, sources=[], optional=True)]
    for extension in extensions:
        extension.plan = plan
print(f"amkd_fast build {plan.decision}", file=sys.stderr)

setup(
    ext_modules=extensions,
    cmdclass={"build_ext": NinjaBuild},
    # Build backends add these to the build's requirements; where a torch is already there none is downloaded.
    setup_requires=["torch>=2.11"] if plan.native and plan.torch is None else [],
)
