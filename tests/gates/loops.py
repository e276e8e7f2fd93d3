"""Loops in machine code: where they are, the way a thread takes through one, and the units that its instructions need.

A loop reaches from where a branch leads back to, to that branch. A branch to itself fills the end of a kernel.
"""

from __future__ import annotations

import re
from typing import NamedTuple

Code = list[tuple[int, str]]  # addresses and instructions

# By the first word of an instruction; what is in none of these only takes its turn at the issue.
UNITS = {
    "fma": r"[FH](?:ADD|MUL|FMA)2?|IMAD|IDP",
    "alu": r"FMNMX|FSETP?|FSEL|FCHK|HMNMX2|HSETP?2|F2FP|I2FP|IADD3?|IABS|IMNMX|ISETP|LEA|MOV|PRMT|P?LOP3|SEL|SH[FLR]|"
    r"VI\w+|VABSDIFF\w*|P2R|R2P|BMSK|SGXT|VOTE",
    "special": r"MUFU|F2F|F2I|I2F|FRND|POPC|FLO|BREV",
    "fp64": r"D(?:FMA|ADD|MUL|SETP|MNMX)",
    "memory": r"LD\w*|ST\w*|ATOM\w*|RED\w*|SHFL",
}
_OPCODE = re.compile(r"(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9]*)([.\w]*)")
_BRANCH = re.compile(r"(@!?U?P\w+\s+)?BRA(?:\.\w+)*\s(.*?)\b0x([0-9a-f]+)$")


class Way(NamedTuple):
    """What one thread issues and moves on its way through a loop, or through a kernel without one."""

    instructions: int
    fma: int  # fp32 and half-precision sums and products, and those of integers
    alu: int  # comparisons, selections, bits, conversions to and from 16-bit numbers
    special: int  # exponentials, logarithms, roots, reciprocals; conversions of 64-bit numbers and integers
    fp64: int
    memory: int  # accesses, also of shared memory, and shuffles
    loaded: int  # bytes from device memory, also those that go past the registers into shared memory
    stored: int  # bytes into device memory
    ahead: int  # most bytes asked for before the first of them is used


def all_loops(code: Code) -> list[Code]:
    """The instructions of every loop."""
    found = []
    for at, line in code:
        if (match := _BRANCH.search(line)) and int(match[3], 16) < at:
            first = int(match[3], 16)
            found.append([(a, text) for a, text in code if first <= a <= at])
    return found


def inner_loops(code: Code) -> list[Code]:
    """Those with no other in them."""
    found = all_loops(code)
    ranges = [(body[0][0], body[-1][0]) for body in found]
    return [
        body
        for body, (first, last) in zip(found, ranges, strict=True)
        if not any(first <= a and b <= last and (a, b) != (first, last) for a, b in ranges)
    ]


def loops_with(code: Code, pattern: str, without: str = "") -> list[Code]:
    """Loops that hold an instruction of a pattern and none of another one; of nested ones the innermost.

    They come in the order of the code.
    """
    holding = [body for body in all_loops(code) if any(re.search(pattern, line) for _, line in body)]
    holding = [body for body in holding if not without or not any(re.search(without, line) for _, line in body)]
    ranges = [(body[0][0], body[-1][0]) for body in holding]
    return [
        body
        for body, (first, last) in sorted(zip(holding, ranges, strict=True), key=lambda pair: pair[1])
        if not any(first <= a and b <= last and (a, b) != (first, last) for a, b in ranges)
    ]


def way_through(code: Code, longest: bool = False, moves: tuple[int, int] | None = None) -> Way:
    """The shortest way from the first instruction to the last that meets the most 16-byte accesses.

    What branches jump over is left out: where a kernel decides by its arguments, the longest way is that with all
    that can be asked for. Loops inside are gone through once.

    Args:
        code: The instructions of a loop.
        longest: The longest such way instead.
        moves: Bytes that the way has to load and to store, 16 at a time, where that is not the most.

    Raises:
        ValueError: No way leads to the last instruction, or none moves as much.
    """
    index = {at: i for i, (at, _) in enumerate(code)}
    # For each instruction, and what was moved on the way to it: instructions so far, and the instruction before.
    best: list[dict[tuple[int, int], tuple[int, int]]] = [{} for _ in code]
    best[0][0, 0] = (0, -1)
    for i, (_, line) in enumerate(code):
        for moved, (steps, _) in best[i].items():
            after = _moved(line, moved)
            for j in _next(code, index, i):
                other = best[j].setdefault(after, (steps + 1, i))
                if (steps + 1 > other[0]) if longest else (steps + 1 < other[0]):
                    best[j][after] = (steps + 1, i)
    ends = {_moved(code[-1][1], moved): moved for moved in best[-1]}
    if not ends or moves not in (None, *ends):
        raise ValueError(f"no way to the last instruction moves {moves or 'anything'}, but {sorted(ends)}")
    moved = ends[moves or max(ends, key=sum)]
    taken, i = [], len(code) - 1
    while i >= 0:
        taken.append(code[i][1])
        before = best[i][moved][1]
        if before >= 0:
            moved = next(m for m in best[before] if _moved(code[before][1], m) == moved)
        i = before
    return count(taken[::-1])


def _moved(line: str, before: tuple[int, int]) -> tuple[int, int]:
    """Bytes loaded and stored 16 at a time after an instruction; a product of a warpgroup counts as a load."""
    loads, stores = before
    if re.search(r"\b(LDG|LDGSTS)\.\S*128\b|\bHGMMA\b", line):
        loads += 16
    elif re.search(r"\bSTG\.\S*128\b", line):
        stores += 16
    return loads, stores


def _next(code: Code, index: dict[int, int], i: int) -> list[int]:
    """Where instruction i leads to, forwards and inside of the code."""
    line = code[i][1]
    found = []
    branch = _BRANCH.search(line)
    if branch and (target := index.get(int(branch[3], 16), -1)) > i:
        found.append(target)
    # A second predicate stands behind the branch.
    conditional = line.startswith("@") or bool(branch and re.search(r"U?P\d", branch[2]))
    ends = re.match(r"(BRA|EXIT|RET|BRX|JMP)\b", line)
    if i + 1 < len(code) and (conditional or not ends):
        found.append(i + 1)
    return found


def count(lines: list[str]) -> Way:
    """Of instructions that follow each other."""
    units = dict.fromkeys(UNITS, 0)
    loaded = stored = ahead = outstanding = 0
    waited_for: set[int] = set()
    for line in lines:
        opcode, rest = _OPCODE.match(line).groups()
        for name, pattern in UNITS.items():
            units[name] += bool(re.fullmatch(pattern, opcode))
        registers = [int(number) for number in re.findall(r"\bR(\d+)", line)]
        loads, size = opcode in ("LDG", "LDGSTS"), _size(rest)
        sources = registers[1:] if loads else registers
        if waited_for.intersection(sources):
            waited_for, outstanding = set(), 0
        if loads:
            loaded += size
            outstanding += size
            ahead = max(ahead, outstanding)
            if opcode == "LDG" and registers:
                waited_for.update(range(registers[0], registers[0] + max(size // 4, 1)))
        stored += size if opcode == "STG" else 0
    return Way(len(lines), *units.values(), loaded, stored, ahead)


def _size(suffix: str) -> int:
    """Bytes that an access moves for a thread."""
    bits = re.search(r"\.(?:[US])?(8|16|64|128)(?=\.|$)", suffix)
    return int(bits[1]) // 8 if bits else 4
