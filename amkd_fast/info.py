"""``python -m amkd_fast.info``: what is installed, what is compiled for which chips, and what runs here."""

from __future__ import annotations

import importlib.util
import platform
from importlib.metadata import PackageNotFoundError, version

import torch

from amkd_fast import backends
from amkd_fast.version import __version__


def report() -> str:
    """The whole report as text.

    Example:
        >>> from amkd_fast import info
        >>> info.report().splitlines()[0].split()[0]
        'amkd_fast'
    """
    lines = [f"{name:<14}{value}" for name, value in (*_versions(), *_build(), *_gpus())]
    return "\n".join([*lines, "", *_table()])


def _versions():
    yield "amkd_fast", __version__
    yield "python", platform.python_version()
    yield "torch", f"{torch.__version__} (CUDA {torch.version.cuda or 'no'})"
    # Looked up, not imported: importing triton takes a second and may touch a driver.
    yield "triton", _installed("triton") + (" (interpreter)" if backends.INTERPRETING else "")


def _build():
    build = backends.build_info()
    if build is None:
        yield "extension", "none"
        return
    yield "extension", f"built against torch {build['torch']} with gcc {build['compiler']}"
    yield "decision", build["decision"]
    yield (
        "CPU kernels",
        f"{build['simd_compiled']}; this CPU has {' '.join(build['simd_usable'])}; in use: {build['simd']}",
    )
    missing = backends.autograd_missing()
    yield "autograd", f"in Python: {missing}" if missing else "in C++"
    if backends.EMULATED:
        yield "CUDA kernels", f"emulated on CPU tensors, for tests alone (AMKD_FAST_EMULATE={backends.EMULATED})"
        return
    yield "CUDA kernels", f"nvcc {build['cuda']} for {build['cuda_archs']}" if build["cuda"] else "none"


def _gpus():
    if not torch.cuda.is_available():
        yield "GPU", "none"
        return
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        size = properties.total_memory / 2**30
        yield f"GPU {index}", f"{properties.name}, sm_{properties.major}{properties.minor}, {size:.0f} GiB"


def _table():
    available = backends.available()
    width = max(map(len, available)) + 2
    yield " " * width + "".join(f"{name:<12}" for name in backends.BACKENDS)
    for op, reasons in available.items():
        yield f"{op:<{width}}" + "".join(f"{'-' if reason else 'yes':<12}" for reason in reasons.values())
    for name in backends.BACKENDS:
        for reason in sorted({reasons[name] for reasons in available.values()} - {""}):
            ops = ", ".join(op for op in available if available[op][name] == reason)
            yield f"{name} misses {ops}: {reason}"


def _installed(package: str) -> str:
    if importlib.util.find_spec(package) is None:
        return "not installed"
    try:
        return version(package)
    except PackageNotFoundError:  # a source tree on the path
        return "installed"


if __name__ == "__main__":
    print(report())
