"""Does a training step on a GPU do what it should? ``python -m benchmarks.gpu.training [--out FILE] [--dry-run]``.

ResNet26 teaches ResNet8, 128 images of 32 x 32, at most 32 attacked. Recorded and eager steps from the same weights end
in the same (tolerances in training_checks.py), neither waits for the device, ``amkd-distill train`` learns with and
without --whole-step and in low precision. How long steps take is the business of ``benchmarks.compare training``.
--dry-run goes through it all on a CPU with small sizes, a tape (benchmarks/tape.py) in place of the graph.

Students of three seeds by five methods on CIFAR-10, as JPEG files in FOLDER/train/<class>/ and FOLDER/test/<class>/,
in about ten minutes of an H100 (an estimate from launches and passes: nobody has run it; without --whole-step the
attacks' launches make it several times that)::

    amkd-distill compare --data FOLDER --methods student,kd,bss-official,bss-near_boundary,amkd --seeds 3 \
        --teacher-network resnet26 --student-network resnet8 --batch-size 128 --boundary-samples 32 \
        --teacher-epochs 15 --student-fraction 0.2 --epochs 30 --device cuda --whole-step --output runs/cifar10
"""

from __future__ import annotations

import argparse
import sys
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks import training_case
from benchmarks.gpu import script, training_checks
from benchmarks.training_case import Case


def table(report: dict[str, Any]) -> str:
    lines = []
    for row in report.get("agreement", []):
        if "fixed_shape" in row:
            apart = "  ".join(
                f"{kind}: first {row[kind]['first']:.0e}, losses {row[kind]['losses']:.0e},"
                f" weights {row[kind]['weights']:.0e}"
                for kind in ("fixed_shape", "by value")
            )
            lines.append(f"recorded against eager, {row['method']:18}{row['dtype']:8} {apart}")
    waiting = {name: ways for name, ways in report.get("waits", {}).items() if any(ways.values())}
    lines.append(f"waits for the device: {waiting or 'none of ' + ', '.join(report.get('waits', {}))}")
    for name, rows in report.get("train", {}).items():
        told = ", ".join(f"{row['total']:.3f} ({row['accuracy']:.0f} %)" for row in rows)
        lines.append(f"train {name:16}{rows[-1]['ms_per_step']:8.1f} ms a step, losses and accuracies: {told}")
    return "\n".join(lines)


def images(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cifar", type=Path, help="CIFAR-10 as JPEG files, an archive or a folder")
    parser.add_argument("--teacher", type=Path, help="what benchmarks.cifar_teacher saved")


def main(arguments: list[str] | None = None) -> int:
    options = script.options(__doc__, arguments, images)

    @cache
    def case(device: str) -> Case:
        return training_case.case(options.cifar, options.teacher, device)

    parts: dict[str, script.Part] = {
        "setting": lambda device, faults: case(device).about,
        "agreement": lambda device, faults: training_checks.agreement(case(device), faults),
        "waits": lambda device, faults: training_checks.synchronisations(case(device), faults),
        "train": training_checks.command_line,
    }
    return script.run("training checks", options, parts, table)


if __name__ == "__main__":
    sys.exit(main())
