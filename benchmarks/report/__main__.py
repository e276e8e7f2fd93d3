"""Make docs/benchmarks of the files in benchmarks/results: ``python -m benchmarks.report``.

Refuses files that were made with --quick, or with changes that no commit has, unless --draft says otherwise.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks import machine
from benchmarks.report import markers, pages, rule
from benchmarks.report.load import Results, load, shortened
from benchmarks.report.tables import TABLES


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 where files are not the results'")
    parser.add_argument("--draft", action="store_true", help="take files that are not fit to be published, and say so")
    parser.add_argument("--results", type=Path, default=machine.RESULTS, help="folder of the JSON files")
    parser.add_argument("--root", type=Path, default=machine.ROOT, help="folder of docs/")
    options = parser.parse_args(arguments)
    results = load(options.results)
    faults = {**results.unread, **results.doubts}
    for name, reason in faults.items():
        print(f"{name}: {reason}")
    if faults and not options.draft:
        print("refused: measure again at a commit, or say --draft")
        return 1
    texts = written(results, options.root)
    complaints = rule.complaints(results)
    for line in complaints:
        print(line)
    folder = options.root / "docs" / "benchmarks"
    pictures = {folder / name for name in pages.pictures(results)}
    there = (path for ending in ("md", "png") for path in folder.glob(f"*.{ending}"))
    surplus = sorted(path for path in there if path not in texts and path not in pictures)
    if options.check:  # pictures need only be there: matplotlib's versions draw differently
        stale = [path for path, text in texts.items() if not path.exists() or path.read_text() != text]
        stale += sorted(path for path in pictures if not path.exists())
        for path in stale:
            print(f"{path}: differs from the results, or is missing")
        for path in surplus:
            print(f"{path}: nothing makes it any more")
        return 1 if stale or surplus or complaints else 0
    folder.mkdir(parents=True, exist_ok=True)
    for path, text in texts.items():
        path.write_text(text)
    from benchmarks.report import plots  # needs the extra `train`, which a check does without

    for name, png in plots.drawn(results):
        (folder / name).write_bytes(png)
    for name, found in (("digits", results.digits), ("digits-dropped", results.dropped)):
        if found is not None and "runs" in found:
            machine.write(options.results / f"{name}.json", shortened(found))
    for path in surplus:
        print(f"{path}: nothing makes it any more, remove it")
    return 0


def written(results: Results, root: Path) -> dict[Path, str]:
    """The pages as they should be."""
    filled = markers.filled_pages(root, {name: table(results) for name, table in TABLES.items()})
    return {**filled, **{root / "docs" / "benchmarks" / name: text for name, text in pages.pages(results).items()}}


if __name__ == "__main__":
    sys.exit(main())
