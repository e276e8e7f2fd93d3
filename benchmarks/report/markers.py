"""Pages in which what stands between markers, and nothing else, is made of the results."""

from __future__ import annotations

import re
from pathlib import Path

PAGES = ("docs/benchmarks/accuracy.md", "docs/benchmarks/cifar10.md", "docs/benchmarks/summary.md")
_MARKER = re.compile(r"^<!-- (?:benchmarks: (?P<name>\S+)|(?P<end>/benchmarks)) -->$", re.MULTILINE)


def filled_pages(root: Path, tables: dict[str, str]) -> dict[Path, str]:
    """The pages below ``root`` as they should be."""
    return {root / page: filled((root / page).read_text(), tables) for page in PAGES}


def filled(text: str, tables: dict[str, str]) -> str:
    """``text`` with ``tables[name]`` between each ``<!-- benchmarks: name -->`` and ``<!-- /benchmarks -->``.

    Raises:
        ValueError: A marker without its counterpart, or of a table that does not exist.
    """
    parts, at, open_ = [], 0, None
    for marker in _MARKER.finditer(text):
        if (marker["end"] is None) != (open_ is None):
            line = text.count("\n", 0, marker.start()) + 1
            raise ValueError(f"line {line}: {marker[0]!r} where the other kind of marker is due")
        if open_ is None:
            open_ = marker["name"]
            if open_ not in tables:
                raise ValueError(f"{marker[0]!r}: there are {', '.join(tables)}")
            parts += [text[at : marker.end()], f"\n{tables[open_]}\n"]
        else:
            open_ = None
        at = marker.start() if open_ is None else marker.end()
    if open_ is not None:
        raise ValueError(f"<!-- benchmarks: {open_} --> has no end")
    return "".join([*parts, text[at:]])
