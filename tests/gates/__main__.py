"""Compile every GPU kernel ahead of time, without a GPU, and judge its registers, local memory and wide accesses.

    python -m tests.gates [--fresh] [--family kl]

Only what the ledgers (ledger.py) do not hold is compiled; --fresh compiles all of it. Either way all is judged, and
what the tree no longer needs leaves the ledgers. What was compiled stays when the run is interrupted.
"""

from __future__ import annotations

import argparse
import time

from . import cuda_aot, triton_aot
from .ledger import Ledger, rises


def run(gate, families: list[str], fresh: bool, jobs: int) -> int:
    """Bring the ledger of one gate up to the tree and judge it; the number of faults."""
    name, ledger = gate.LEDGER.stem, Ledger(gate.LEDGER)
    reason, before = gate.cannot_compile(), list(ledger)
    units = gate.units(families, ledger.versions) if reason else gate.units(families)
    missing = {key: unit for key, unit in units.items() if key not in ledger.entries or (fresh and not reason)}
    errors = []
    if reason and missing:
        errors = [f"{unit.family} {unit.name}: not in the ledger, and {reason}" for unit in missing.values()]
    elif missing:
        ledger.versions = gate.versions()
        started, done = time.monotonic(), 0
        for entries, more in gate.compile_units(missing, jobs):
            for key in {entry.key for entry in entries}:
                ledger.entries.pop(key, None)
                done += 1
            ledger.add(entries)
            ledger.write()
            errors += more
            print(f"{name}: {done} of {len(missing)}, {time.monotonic() - started:.0f} s", flush=True)

    needed = [entry for key in units for entry in ledger.entries.get(key, ())]
    for rise in rises([entry for entry in before if entry not in needed], needed):
        print(f"more than before  {rise}")
    faults = [f"{entry.family} {entry.name} {fault}" for entry in needed for fault in units[entry.key].faults(entry)]
    for fault in [*errors, *faults]:
        print(f"fault  {fault}")
    gone = {entry.family for entry in before} - set(gate.FAMILIES)
    if not errors and not reason:
        for entry in ledger.stale(units, gone.union(families)):
            ledger.entries.pop(entry.key, None)
        ledger.write()
    compiled = 0 if reason else len(missing)
    print(f"{name}: {len(units)} units, {compiled} compiled, {len(needed)} entries, {len(errors) + len(faults)} faults")
    return len(errors) + len(faults)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    gates = (triton_aot, cuda_aot)
    families = sorted({family for gate in gates for family in gate.FAMILIES})
    parser.add_argument("--family", choices=families, action="append", help="only this family, which may be repeated")
    parser.add_argument("--fresh", action="store_true", help="compile also what the ledgers hold")
    parser.add_argument("--only", choices=("triton", "cuda"), help="only one of the two gates")
    parser.add_argument("--jobs", type=int, default=2, help="processes that compile (default: %(default)s)")
    options = parser.parse_args()
    faults = 0
    if reason := triton_aot.cannot_compile():
        print(f"triton: not judged, {reason}")
        gates = (cuda_aot,)
    for gate in gates:
        if options.only in (None, gate.LEDGER.stem):
            chosen = [family for family in gate.FAMILIES if family in (options.family or families)]
            faults += run(gate, chosen, options.fresh, options.jobs)
    return 1 if faults else 0


if __name__ == "__main__":
    raise SystemExit(main())
