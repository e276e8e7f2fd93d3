"""Brackets and commas in C++ that is taken apart."""

from __future__ import annotations


def closing(text: str, start: int, opens: str, closes: str) -> int:
    """The index of what closes the bracket at ``start``."""
    depth = 0
    for i in range(start, len(text)):
        depth += (text[i] == opens) - (text[i] == closes)
        if depth == 0:
            return i
    raise ValueError(f"no {closes} for {text[start : start + 40]!r}")


def opening(text: str, end: int, opens: str, closes: str) -> int:
    """The index of what opens the bracket that ``end`` closes."""
    depth = 0
    for i in range(end, -1, -1):
        depth += (text[i] == closes) - (text[i] == opens)
        if depth == 0:
            return i
    raise ValueError(f"no {opens} for {text[max(end - 40, 0) : end]!r}")


def split_commas(text: str) -> list[str]:
    """Split at the commas that stand in no bracket."""
    parts, depth = [""], 0
    for character in text:
        depth += (character in "<[({") - (character in ">])}")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return parts
