"""Inline PTX in C++: every instruction becomes a call of the function of its name in ``runtime/emulator/ptx.h``.

``asm volatile("bar.sync %0, 128;\\n" ::"r"(group) : "memory")`` becomes ``::emulator::ptx::bar_sync((group), 128);``.
An instruction that is not modelled is one that does not compile.
"""

from __future__ import annotations

import re

from tests.emulator.brackets import closing, split_commas

ASM = re.compile(r"\basm\s*(?:volatile\s*)?\(")
LITERAL = re.compile(r'\s*"((?:[^"\\]|\\.)*)"')
OPERAND = re.compile(r'"[=+&]*[a-z]"\s*\(')
PREDICATE = re.compile(r"\.reg\s+\.pred\s+(\w+)")


def instructions(text: str) -> str:
    """The text with its inline PTX replaced, of as many lines."""
    while match := ASM.search(text):
        end = closing(text, match.end() - 1, "(", ")")
        template, rest = "", text[match.end() : end]
        while literal := LITERAL.match(rest):
            template += literal[1].replace("\\n", " ")
            rest = rest[literal.end() :]
        stop = text.index(";", end) + 1
        lines = "\n" * text[match.start() : stop].count("\n")
        calls = " ".join(_call(statement, _operands(rest)) for statement in template.split(";"))
        text = text[: match.start()] + (calls.strip() or ";") + lines + text[stop:]
    return text


def _operands(text: str) -> list[str]:
    found, at = [], 0
    while match := OPERAND.search(text, at):
        at = closing(text, match.end() - 1, "(", ")")
        found.append(f"({text[match.end() : at]})")
    return found


def _call(statement: str, operands: list[str]) -> str:
    statement = statement.strip()
    if statement in ("", "}"):
        return statement
    if statement.startswith("{"):
        return "{ " + _call(statement[1:], operands)
    if predicate := PREDICATE.fullmatch(statement):
        return f"bool {predicate[1]} = false;"
    name, _, rest = statement.partition(" ")
    if not re.match(r"[a-z]", name):
        raise ValueError(f"PTX that is not modelled: {statement!r}")
    arguments = [_argument(argument.strip(), operands) for argument in split_commas(rest) if argument.strip()]
    return f"::emulator::ptx::{re.sub('[^a-z0-9]+', '_', name)}({', '.join(arguments)});"


def _argument(text: str, operands: list[str]) -> str:
    if text.startswith("{"):
        values = ", ".join(_argument(value.strip(), operands) for value in split_commas(text[1:-1]))
        return f"::emulator::ptx::registers({values})"
    if text.startswith("["):
        return _argument(text[1:-1].strip(), operands)
    return operands[int(text[1:])] if text.startswith("%") else text
