"""The binary, what it exports and needs, and how the package is built and imported."""

from __future__ import annotations

import importlib
import itertools
import os
import platform
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from amkd_fast import backends, info

ROOT = Path(__file__).resolve().parent.parent
NATIVE = pytest.mark.skipif(backends.build_info() is None, reason="the extension is not built")


LEVELS = ("baseline", "avx2", "avx512")
by_level = pytest.mark.parametrize("level", LEVELS)


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "0", **environment},
    )


def python(code: str, **environment: str) -> str:
    result = run_python(code, **environment)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def failure(code: str, **environment: str) -> str:
    """The last line that the code dies with, by an exception and not by a signal."""
    result = run_python(code, **environment)
    assert result.returncode == 1, result
    return result.stderr.strip().splitlines()[-1]


def skip_unless_usable(level: str) -> None:
    if level not in backends.build_info()["simd_usable"]:
        pytest.skip(f"this machine has no {level}")


# ---- import ---------------------------------------------------------------------------------------------------------


IMPORTS = """
import sys, time, torch
before, start = set(sys.modules), time.process_time()
import amkd_fast
print(time.process_time() - start)
print(*sys.modules.keys() - before)
import amkd_fast.losses, amkd_fast.distill.adapters, amkd_fast.distill.cli, amkd_fast.methods
import amkd_fast.distill.networks
print(*sys.modules)
"""
# What only some users have, and what takes long: packages of the extra, frameworks that the adapters are for.
EXTRA = {"lightning", "matplotlib", "sklearn", "torchmetrics", "rich", "PIL"}
FRAMEWORKS = {"timm", "torchvision", "torchdistill", "mdistiller", "transformers"}


@pytest.fixture(scope="module")
def imported():
    """Seconds that the import adds to torch's; modules that it adds; all of them, with the libraries' parts."""
    seconds, own, everything = python(IMPORTS).splitlines()
    return float(seconds), set(own.split()), set(everything.split())


def test_import_is_lean(imported):
    _, loaded, _ = imported
    assert "amkd_fast.ops.kl" in loaded
    heavy = {"triton", "torch._dynamo", "torch.fx.experimental"}
    assert not (heavy | EXTRA | FRAMEWORKS) & loaded
    assert not [name for name in loaded if name.startswith("amkd_fast.distill")]


def test_import_adds_less_than_300_ms(imported):
    repeated = (float(python(IMPORTS).split()[0]) for _ in range(2))  # where the first was on a busy machine
    assert any(seconds < 0.3 for seconds in itertools.chain(imported[:1], repeated))


def test_the_library_imports_no_trainer_and_no_framework(imported):
    _, _, loaded = imported
    assert {"amkd_fast.distill.adapters", "amkd_fast.distill.cli", "amkd_fast.distill.networks"} <= loaded
    assert not (EXTRA | FRAMEWORKS) & loaded


def test_without_the_extension_auto_falls_back_once_and_a_name_raises():
    code = """
import sys, warnings
sys.modules["amkd_fast._C"] = None
import torch, amkd_fast as af
logits = torch.zeros(2, 3)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    af.kl_div(logits, logits); af.kl_div(logits, logits)
print(len(caught), af.backends.last("kl"))
try:
    with af.backends.backend("cpu"):
        af.kl_div(logits, logits)
except RuntimeError as error:
    print(error)
"""
    first, second = python(code).splitlines()
    assert first == "1 reference"
    assert second.startswith("backend 'cpu' was asked for by name")


def test_report_names_every_backend_and_a_reason_for_each_gap():
    text = info.report()
    for op, reasons in backends.available().items():
        assert f"\n{op} " in text
        assert all(reason in text for reason in reasons.values())


@NATIVE
@pytest.mark.parametrize("level", ["AVX2", ""])
def test_a_misspelt_simd_level_is_an_error(level):
    said = failure("import amkd_fast", AMKD_FAST_SIMD=level)
    assert said == f"ValueError: AMKD_FAST_SIMD='{level}': must be 'baseline', 'avx2' or 'avx512'"


@NATIVE
def test_a_simd_level_that_this_cpu_lacks_is_an_error():
    usable = backends.build_info()["simd_usable"]
    for level in LEVELS[len(usable) :]:
        said = failure("import amkd_fast", AMKD_FAST_SIMD=level)
        assert said == f"ValueError: AMKD_FAST_SIMD='{level}': must be at most '{usable[-1]}' on this CPU"


@NATIVE
@pytest.mark.skipif(platform.machine() != "x86_64" or not Path("/proc/cpuinfo").exists(), reason="reads /proc/cpuinfo")
def test_usable_simd_levels_are_those_of_the_cpu():
    flags = set(re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)[1].split())
    needed = {"baseline": set(), "avx2": {"avx2", "fma", "f16c"}}
    needed["avx512"] = needed["avx2"] | {"avx512f", "avx512bw", "avx512dq", "avx512vl"}
    assert backends.build_info()["simd_usable"] == [level for level in LEVELS if needed[level] <= flags]


@pytest.mark.parametrize("name", ["gpu", ""])
def test_unknown_backend_is_refused(name):
    with (
        pytest.raises(ValueError, match="must be one of 'auto', 'reference', 'cpu', 'triton', 'cuda'"),
        backends.backend(name),
    ):
        pass


# ---- the binary -----------------------------------------------------------------------------------------------------


@NATIVE
def test_needs_no_unstable_symbol():
    binary = importlib.import_module("amkd_fast._C").__file__
    symbols = subprocess.run(["nm", "-DC", "--undefined-only", binary], capture_output=True, text=True, check=True)
    undefined = [line.split("U ", 1)[-1].strip() for line in symbols.stdout.splitlines()]
    assert any(name.startswith("aoti_torch_") for name in undefined)
    assert [name for name in undefined if name.startswith(("at::", "c10::", "torch::", "cuda", "cu"))] == []


@NATIVE
def test_exports_nothing_but_the_module():
    binary = importlib.import_module("amkd_fast._C").__file__
    symbols = subprocess.run(["nm", "-DC", "--defined-only", binary], capture_output=True, text=True, check=True)
    ours = [line for line in symbols.stdout.splitlines() if "amkd" in line]
    assert ours == []
    assert "PyInit__C" in symbols.stdout


@NATIVE
def test_links_neither_cuda_nor_python_bindings_of_torch():
    binary = importlib.import_module("amkd_fast._C").__file__
    needed = subprocess.run(["readelf", "-d", binary], capture_output=True, text=True, check=True).stdout
    libraries = [line.split("[")[1].rstrip("]") for line in needed.splitlines() if "(NEEDED)" in line]
    assert not [
        name for name in libraries if name.startswith(("libcuda", "libtorch_python", "libtorch_cuda", "libc10_cuda"))
    ]


IN_PYTHON = """
import sys, torch
{before}
import amkd_fast as af
student = torch.zeros(2, 3, requires_grad=True)
af.kl_div(student, torch.eye(3)[:2]).backward()
print(af.backends.last("kl"), f"{{student.grad[0, 0].item():.4f}}")
print(af.backends.autograd_missing())
"""


@NATIVE
@pytest.mark.parametrize(
    ("before", "autograd", "reason"),
    [
        ("", "python", "as AMKD_FAST_AUTOGRAD says"),
        ("torch.__version__ = '2.99.0'", "auto", r"the node in C\+\+ was built for torch \S+ and this is 2\.99\.0"),
        ("sys.modules['amkd_fast._autograd'] = None", "auto", r"the node in C\+\+ is not there \(.*\)"),
    ],
)
def test_without_the_autograd_node_python_does_its_work(before, autograd, reason):
    found, why = python(IN_PYTHON.format(before=before), AMKD_FAST_AUTOGRAD=autograd).splitlines()
    assert found == "cpu -0.1214"
    assert re.fullmatch(reason, why)


def test_a_misspelt_autograd_is_an_error():
    said = failure("import amkd_fast", AMKD_FAST_AUTOGRAD="c++")
    assert said == "ValueError: AMKD_FAST_AUTOGRAD='c++': must be one of 'auto', 'python'"


SIMD = """
import torch, amkd_fast as af
print(af.backends.build_info()["simd"])
# The KL family against fp64, over dtypes, divergences and awkward widths.
worst = 0.0
for dtype, unit in ((torch.float32, 1e-6), (torch.float64, 1e-13), (torch.float16, 2e-3), (torch.bfloat16, 1.6e-2)):
    for divergence in ("forward", "reverse", "js"):
        for classes in (1, 3, 7, 8, 9, 16, 31, 100, 5000):
            torch.manual_seed(classes)
            s, t = (torch.randn(2, 6, classes, dtype=torch.float64) * 3).to(dtype)
            grads = []
            for name, a, b in (("cpu", s, t), ("reference", s.double(), t.double())):
                a = a.clone().requires_grad_()
                with af.backends.backend(name):
                    loss = af.distillation_loss(a, b, torch.zeros(6, dtype=torch.int64), divergence=divergence)
                loss.total.backward()
                grads.append((loss.total.double(), a.grad.double()))
            (value, grad), (exact, exact_grad) = grads
            exact_unit = 1e-13 if dtype == torch.float64 else 2e-6
            worst = max(worst, ((value - exact).abs() / (exact.abs() + 1e-3) / exact_unit).item())
            worst = max(worst, ((grad - exact_grad).abs().max() / (exact_grad.abs().max() + 1e-3) / unit).item())
print(worst)
# Images, bit for bit: no level may fuse a product and a sum, or round other halves.
equal = True
for shape in ((3, 32, 32), (3, 7, 5), (1, 5, 33), (5, 3, 17)):
    pixels = torch.randint(0, 256, (40, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    shift = torch.linspace(-1.9, 0.7, shape[0])
    for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        for memory_format in (torch.contiguous_format, torch.channels_last):
            batches = []
            for name in ("cpu", "reference"):
                with af.backends.backend(name):
                    batches.append(af.crop_flip(
                        pixels, scale=0.0157, shift=shift, pad=3, flip=True, seed=0, dtype=dtype,
                        memory_format=memory_format,
                    ))
            equal &= torch.equal(*batches)
print(equal)
"""


@pytest.fixture(scope="module", params=["baseline", "avx2", "avx512"])
def simd(request):
    """What a process of that level found."""
    skip_unless_usable(request.param)
    used, worst, equal = python(SIMD, AMKD_FAST_SIMD=request.param).splitlines()
    assert used == request.param
    return float(worst), equal


@NATIVE
def test_every_simd_level_computes_the_same(simd):
    assert simd[0] < 1.0


@NATIVE
def test_every_simd_level_makes_the_same_images(simd):
    assert simd[1] == "True"


# ---- building -------------------------------------------------------------------------------------------------------


def build_report(tmp_path: Path, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "setup.py", "--version"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", **environment},
    )


@pytest.mark.parametrize(("wanted", "said"), [("none", "none: nothing is compiled"), ("cpu", "cpu: as asked")])
def test_decision_is_printed(tmp_path, wanted, said):
    result = build_report(tmp_path, AMKD_FAST_BUILD=wanted)
    assert result.returncode == 0
    assert said in result.stderr


def test_unknown_decision_is_refused(tmp_path):
    result = build_report(tmp_path, AMKD_FAST_BUILD="gpu")
    assert result.returncode != 0
    assert "AMKD_FAST_BUILD='gpu': must be auto, cpu, cuda or none" in result.stderr


def test_cuda_without_nvcc_is_an_error(tmp_path):
    empty = {"PATH": str(tmp_path), "CUDA_HOME": str(tmp_path), "CUDA_PATH": str(tmp_path), "AMKD_FAST_BUILD": "cuda"}
    (tmp_path / "g++").symlink_to(shutil.which("g++") or sys.executable)
    if Path("/usr/local/cuda/bin/nvcc").exists():
        pytest.skip("nvcc is in its usual place, which cannot be hidden")
    result = subprocess.run(
        [sys.executable, "setup.py", "--version"], capture_output=True, text=True, cwd=ROOT, env=empty
    )
    assert result.returncode != 0
    assert "nvcc was not found" in result.stderr


def test_missing_compiler_leaves_everything_out_with_auto_alone(tmp_path):
    for wanted, code in (("auto", 0), ("cpu", 1)):
        result = build_report(tmp_path, AMKD_FAST_BUILD=wanted, CXX="no-such-compiler")
        assert (result.returncode != 0) == bool(code)
        assert "no C++ compiler" in result.stderr


# Not even what other tests are writing meanwhile.
NO_SOURCES = (".*", "__pycache__", "build", "runs", "*.so", "*.egg-info")


@pytest.mark.parametrize("isolation", [True, False], ids=["isolated", "not_isolated"])
def test_wheel_without_the_extension(tmp_path, isolation):
    """Pure wheels build fast and take the same road through the build backend as the others."""
    source = tmp_path / "source"
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(*NO_SOURCES))
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(tmp_path), str(source)]
    if not isolation:
        command.insert(5, "--no-build-isolation")
    result = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "AMKD_FAST_BUILD": "none"})
    if isolation and "No matching distribution" in result.stderr:
        pytest.skip("an isolated build needs a package index")
    assert result.returncode == 0, result.stderr
    (wheel,) = tmp_path.glob("amkd_fast-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        assert {"amkd_fast/distill/report/page.html.jinja", "amkd_fast/py.typed", "amkd_fast/_C.pyi"} <= {
            *archive.namelist()
        }


def test_a_driver_of_an_older_major_version_is_the_reason():
    assert [backends._too_old("13.0", driver) for driver in (13000, 13020, 14000)] == [""] * 3
    assert backends._too_old("13.0", 12040) == "it needs a driver for CUDA 13.0, and this one is for CUDA 12.4"
    assert backends._too_old("12.6", 12020) == ""
