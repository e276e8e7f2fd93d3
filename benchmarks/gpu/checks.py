"""Launches, waiting, and the selection at its largest: ``python -m benchmarks.gpu.checks [--out FILE] [--dry-run]``.

Times are compared by ``python -m benchmarks.compare --device cuda``. ``--dry-run`` goes through it all on a CPU, where
launches cannot be counted and sizes are small. The exit code is 1 when a check failed.
"""

from __future__ import annotations

import sys
from typing import Any

from amkd_fast import backends
from benchmarks import contest
from benchmarks.gpu import calls, kernels, script, selection
from benchmarks.gpu.calls import Call
from benchmarks.gpu.guard import caught, waits


def operations(device: str, faults: list[str]) -> list[dict[str, Any]]:
    """Launches of every small call by every backend that runs here, and where it waits for the device."""
    rows = []
    for call in calls.small():
        for name in contest.backend_names(call.family, device):
            with caught(f"{name} {call}", faults), backends.backend(name):
                rows.append({"call": str(call), "backend": name, **look(call, name, device, faults)})
    return rows


def look(call: Call, backend: str, device: str, faults: list[str]) -> dict[str, Any]:
    run, promised = call.make(device), call.launches.get(backend)
    run()
    waited = waits(run, device)
    if waited:
        faults.append(f"{backend} {call} waits for the device: {waited}")
    count = kernels.launches(run, device)
    if None not in (count, promised) and count > promised:
        faults.append(f"{backend} {call}: {count} launches, promised are {promised}")
    return {"launches": count, "promised": promised, "waits": waited}


def table(report: dict[str, Any]) -> str:
    lines = [f"{'call':44}{'backend':9}{'launches':>9}{'promised':>9}  waits"]
    for row in report.get("operations", []):
        counts = "".join(f"{'-' if row[key] is None else row[key]:>9}" for key in ("launches", "promised"))
        lines.append(f"{row['call']:44}{row['backend']:9}{counts}  {row['waits'] or 'no'}")
    for row in report.get("selection", []):
        held = f"{row['held']} holds {row['peak_bytes'] / 2**20:.1f} MiB beyond its inputs"
        lines.append(f"{row['backend']:9}{row['wrong']} anchors with a worse pair than fp64; {held}")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    options = script.options(__doc__, arguments)
    parts = {"operations": operations, "selection": selection.check}
    return script.run("gpu checks", options, parts, table)


if __name__ == "__main__":
    sys.exit(main())
