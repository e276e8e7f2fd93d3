"""Builds the emulated CUDA kernels, and runs tests with them.

python -m tests.emulator build [--race | --asan]
python -m tests.emulator test  [--race | --asan] [--seed N] ...   the operations' tests; what follows goes to pytest
python -m tests.emulator plans [--race | --asan] [--seed N] ...  every plan of the table of cases; likewise
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys

from tests.emulator.build import build, compiler

# Python's own allocations are not freed at its end, and the first run over a tensor's end is reason enough to stop.
ASAN_OPTIONS = "detect_leaks=0:detect_stack_use_after_return=0"


def environment(mode: str, seed: int | None = None) -> dict[str, str]:
    """What the environment of a process lacks in which the kernels of a mode are loaded."""
    found = {"AMKD_FAST_EMULATE": mode}
    if seed is not None:
        found["AMKD_EMULATE_SEED"] = str(seed)
    if mode == "asan":
        # The second is there for what is thrown to be found: Python itself does not load it.
        ask = [[*compiler(), f"-print-file-name={name}"] for name in ("libasan.so", "libstdc++.so")]
        paths = [subprocess.run(each, capture_output=True, text=True, check=True).stdout.strip() for each in ask]
        found["LD_PRELOAD"] = " ".join(paths)
        found["ASAN_OPTIONS"] = ASAN_OPTIONS
    return found


def main() -> int:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.emulator", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=("build", "test", "plans"))
    modes = parser.add_mutually_exclusive_group()
    modes.add_argument("--race", dest="mode", action="store_const", const="race", default="1", help="find races")
    modes.add_argument("--asan", dest="mode", action="store_const", const="asan", help="find accesses out of bounds")
    parser.add_argument("--seed", type=int, help="the order in which threads and blocks take their turns")
    options, rest = parser.parse_known_args()
    library = build(options.mode)
    if options.command == "build":
        print(library)
        return 0
    plans = ["tests/test_contract.py", "-k", "test_value_and_gradient"] if options.command == "plans" else []
    command = [sys.executable, "-m", "pytest", "--backend", "cuda", *plans, *rest]
    return subprocess.run(command, env=os.environ | environment(options.mode, options.seed)).returncode


if __name__ == "__main__":
    sys.exit(main())
