"""Writes C++ for a compiler of the host from CUDA sources, line for line: lines in messages are the source's.

What C++ has no words for is put into words here: launches, ``__shared__`` declarations, built-in indices, launch bounds
and inline PTX (:mod:`tests.emulator.instructions`); and what ties an operator to CUDA tensors: the key that it is
registered under, the device guard and the stream. All else is in ``runtime/``.
"""

from __future__ import annotations

import re
from pathlib import Path

from tests.emulator.brackets import closing, opening, split_commas
from tests.emulator.instructions import instructions

SUFFIXES = (".h", ".cuh", ".cu")
BUILT_IN = {"threadIdx": "thread_index", "blockIdx": "block_index", "blockDim": "block_size", "gridDim": "grid_size"}
SHARED = re.compile(r"(extern\s+)?__shared__\s+(?:__align__\((\d+)\)\s*)?([^;]+);")
DECLARATION = re.compile(r"(?P<type>.*?)(?P<name>\w+)\s*(?P<bounds>(?:\[.*\])*)", re.DOTALL)
BOUNDS = "__launch_bounds__("

# Of the host's side, by what stands there: each has to be found wherever the first of its words is.
HOST = (
    (re.compile(r"STABLE_TORCH_LIBRARY_IMPL\((\w+), CUDA,"), r"STABLE_TORCH_LIBRARY_IMPL(\1, CPU,"),
    (re.compile(r"torch::stable::accelerator::DeviceGuard"), "::emulator::DeviceGuard"),
    (re.compile(r'dlopen\("libtorch_cuda\.so", [^)]*\)'), "dlopen(nullptr, RTLD_LAZY)"),
    (re.compile(r'dlsym\(library, "aoti_torch_get_current_cuda_stream"\)'), "::emulator::current_stream"),
)
DEVICE_INDEX = re.compile(r"([\w.>-]+?)(?:\.|->)get_device_index\(\)")


def launches(text: str) -> str:
    """``kernel<A><<<grid, block>>>(x)`` becomes ``::emulator::launcher(kernel<A>, grid, block)(x)``."""
    while (at := text.find("<<<")) >= 0:
        end = text.index(">>>(", at)
        name_end = len(text[:at].rstrip())
        start = opening(text, name_end - 1, "<", ">") if text[name_end - 1] == ">" else name_end
        while re.match(r"[\w:]", text[start - 1]):
            start -= 1
        kernel, gap, arguments = text[start:name_end], text[name_end:at], text[at + 3 : end]
        text = f"{text[:start]}::emulator::launcher({kernel},{gap}{arguments}){text[end + 3 :]}"
    return text


def shared(match: re.Match) -> str:
    """Of a declaration in shared memory: a slot for all blocks, and a reference to its place in this block's memory."""
    is_extern, alignment, declaration = match.groups()
    first, *others = split_commas(declaration)
    kind = DECLARATION.fullmatch(first.strip())["type"].strip()
    out = []
    for declarator in (first.strip()[len(kind) :], *others):
        found = DECLARATION.fullmatch(declarator.strip())
        name, bounds = found["name"], found["bounds"]
        if is_extern:
            at = f"::emulator::dynamic_shared({alignment or f'alignof({kind})'})"
            out.append(f"{kind}* const {name} = static_cast<{kind}*>({at});")
        else:
            arguments = f"{name}_slot{f', {alignment}' if alignment else ''}"
            out.append(f"static ::emulator::Slot {name}_slot;")
            out.append(f"auto& {name} = ::emulator::shared<{kind}{bounds}>({arguments});")
    return " ".join(out) + "\n" * match.group().count("\n")


def bounds(text: str) -> str:
    """``__launch_bounds__(n, ...)`` becomes a check at the start of the kernel."""
    while (at := text.find(BOUNDS)) >= 0:
        end = closing(text, at + len(BOUNDS) - 1, "(", ")")
        most = split_commas(text[at + len(BOUNDS) : end])[0]
        body = text.index("{", closing(text, text.index("(", end), "(", ")"))
        check = f" ::emulator::check_launch_bounds({most});"
        text = text[:at] + "\n" * text[at:end].count("\n") + text[end + 1 : body + 1] + check + text[body + 1 :]
    return text


def translate(text: str, name: str) -> str:
    """The C++ for one source; ``name`` is what messages call it."""
    text = bounds(launches(SHARED.sub(shared, instructions(text))))
    text = re.sub(rf"(?<![.\w])({'|'.join(BUILT_IN)})\b", lambda m: f"::emulator::{BUILT_IN[m[1]]}()", text)
    for pattern, replacement in HOST:
        text = pattern.sub(replacement, text)
    if name.endswith(".cu"):  # that of a CPU tensor is -1
        text = DEVICE_INDEX.sub(r"::emulator::device_index(\1)", text)
    return f'#line 1 "{name}"\n{text}'


def write_if_changed(path: Path, text: str) -> None:
    """What has not changed keeps its time, so that nothing is compiled again for it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() or path.read_text() != text:
        path.write_text(text)


def translate_folder(sources: Path, out: Path) -> list[Path]:
    """Translate all of a folder into another; returns the translated units."""
    units = []
    for source in sorted(path for path in sources.rglob("*") if path.suffix in SUFFIXES):
        relative = source.relative_to(sources)
        target = out / (relative.with_suffix(".cpp") if source.suffix == ".cu" else relative)
        write_if_changed(target, translate(source.read_text(), f"{sources.name}/{relative.as_posix()}"))
        if source.suffix == ".cu":
            units.append(target)
    return units
