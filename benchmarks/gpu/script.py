"""What the programs for a GPU have in common: options, parts that may fail alone, one JSON file, a table at the end."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks import machine
from benchmarks.gpu.guard import caught

Part = Callable[[str, list[str]], Any]


def options(about: str, arguments: list[str] | None, more: Callable[[argparse.ArgumentParser], None] | None = None):
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="JSON file")
    parser.add_argument("--dry-run", action="store_true", help="on a CPU, with small sizes")
    if more is not None:
        more(parser)
    return parser.parse_args(arguments)


def run(kind: str, options: argparse.Namespace, parts: dict[str, Part], table: Callable[[dict[str, Any]], str]) -> int:
    """Run ``part(device, faults)`` one after the other; 1 when something was wrong.

    The file has what every file here has (``kind``, ``device``, ``machine``), each part's result by its name, the
    seconds that it took, and ``faults``. It is written after each part: whatever happens next, this much is kept.
    """
    device = "cpu" if options.dry_run else "cuda"
    if options.dry_run:
        torch.set_num_threads(1)  # sizes that two threads would only wait for each other in
    faults: list[str] = []
    report: dict[str, Any] = {
        "kind": kind,
        "device": device,
        "machine": machine.describe(),
        "seconds": {},
        "faults": faults,
    }
    for name, part in parts.items():
        start = time.monotonic()
        with caught(name, faults):
            report[name] = part(device, faults)
        report["seconds"][name] = round(time.monotonic() - start, 1)
        print(f"{name}: {report['seconds'][name]} s, faults so far: {len(faults)}", flush=True)
        if options.out:
            options.out.write_text(json.dumps(report, indent=1) + "\n")
    print(table(report))
    for fault in faults:
        print("FAULT", fault)
    return 1 if faults else 0
