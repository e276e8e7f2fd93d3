"""Run tests at every SIMD level of this CPU, ours and torch's own: one line for each pair of levels.

    python -m tests.levels [pytest arguments]

Without arguments the operations' tests on the CPU backend. A kernel depends on our level and what it is compared with
on torch's, so each has its turn at every level, side by side; the two pairs that are furthest apart come on top, with
the autograd nodes in Python where the others have them in C++.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

from amkd_fast import backends

ROOT = Path(__file__).resolve().parent.parent
OPERATIONS = ("--backend", "cpu", "tests")
TORCH = {"baseline": "default", "avx2": "avx2", "avx512": "avx512"}  # names of ATEN_CPU_CAPABILITY


def usable() -> list[str]:
    """The extension's levels that this CPU has, the lowest first."""
    build = backends.build_info()
    return [] if build is None else list(build["simd_usable"])


def pairs(levels: list[str]) -> list[tuple[str, str]]:
    """What AMKD_FAST_SIMD and ATEN_CPU_CAPABILITY are, in each run."""
    corners = [(levels[0], levels[-1]), (levels[-1], levels[0])] if len(levels) > 1 else []
    return [(ours, TORCH[theirs]) for ours, theirs in (*zip(levels, levels, strict=True), *corners)]


def run(ours: str, torch: str, arguments: list[str]) -> bool:
    """Run pytest at a pair of levels and print how it went; whether all passed."""
    began = time.monotonic()
    autograd = "auto" if torch == TORCH[ours] else "python"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments],
        env={**os.environ, "AMKD_FAST_SIMD": ours, "ATEN_CPU_CAPABILITY": torch, "AMKD_FAST_AUTOGRAD": autograd},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    lines = done.stdout.strip().splitlines() or ["pytest said nothing"]
    faults = [line for line in lines if re.match("FAILED|ERROR", line)]
    print(f"{ours:<10}{torch:<10}{lines[-1].strip('= ')}  [{time.monotonic() - began:.0f} s]", *faults, sep="\n  ")
    return done.returncode == 0


def main(arguments: list[str]) -> int:
    levels = usable()
    if not levels:
        print("levels: not run, the extension is not built")
        return 1
    print(f"{'amkd_fast':<10}{'torch':<10}")
    passed = [run(ours, torch, arguments or list(OPERATIONS)) for ours, torch in pairs(levels)]
    return 0 if all(passed) else 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
