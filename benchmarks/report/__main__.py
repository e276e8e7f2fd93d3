"""Make docs/benchmarks of the files in benchmarks/results: ``python -m benchmarks.report``.

Refuses files that were made with --quick, or with changes that no commit has, unless --draft says otherwise.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks import machine
from benchmarks.report import markers, pages, targets
from benchmarks.report.load import Results, load
from benchmarks.report.tables import TABLES


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit 1 where files differ from the results"
    )
    parser.add_argument(
        "--draft", action="store_true", help="take files that are not fit to be published; tables say so"
    )
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
    complaints = targets.complaints(results)
    for line in complaints:
        print(line)
    if options.check:
        stale = differing(texts, results, options.root)
        for line in stale:
            print(line)
        return 1 if stale or complaints else 0
    folder = options.root / "docs" / "benchmarks"
    folder.mkdir(parents=True, exist_ok=True)
    for path, text in texts.items():
        path.write_text(text)
    from benchmarks.report import plots  # needs the extra `train`, which a check does without

    for name, png in plots.drawn(results):
        (folder / name).write_bytes(png)
    for path in surplus(texts, results, options.root):
        print(f"{path}: nothing makes it any more, remove it")
    return 0


def written(results: Results, root: Path) -> dict[Path, str]:
    """The pages as they should be."""
    filled = markers.filled_pages(root, {name: table(results) for name, table in TABLES.items()})
    return {**filled, **{root / "docs" / "benchmarks" / name: text for name, text in pages.pages(results).items()}}


def differing(texts: dict[Path, str], results: Results, root: Path) -> list[str]:
    """What is not as the results have it. Pictures need only be there: matplotlib's versions draw differently."""
    folder = root / "docs" / "benchmarks"
    found = [
        f"{path}: differs from the results"
        for path, text in texts.items()
        if not path.exists() or path.read_text() != text
    ]
    found += [f"{folder / name}: missing" for name in sorted(pages.pictures(results)) if not (folder / name).exists()]
    return found + [f"{path}: nothing makes it" for path in surplus(texts, results, root)]


def surplus(texts: dict[Path, str], results: Results, root: Path) -> list[Path]:
    """Pages and pictures of results that are gone."""
    folder = root / "docs" / "benchmarks"
    made = {*texts, *(folder / name for name in pages.pictures(results))}
    return sorted(path for ending in ("md", "png") for path in folder.glob(f"*.{ending}") if path not in made)


if __name__ == "__main__":
    sys.exit(main())
