"""What a kernel's machine code depends on, as text to hash: its source, without what no compiler sees, and all it uses.

Comments, docstrings, line breaks and a kernel's place in its file leave a fingerprint as it is; nothing of a machine,
of Python's version or of the order of a hash enters it.
"""

from __future__ import annotations

import ast
import hashlib
import re
from pathlib import Path
from types import ModuleType

_PLAIN = (bool, int, float, str, type(None))


def digest(*parts: object) -> str:
    """16 hexadecimal digits of what the parts' `repr` says."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def of_triton(kernel) -> str:
    """Of a Triton function: its source, that of the functions it calls, and the constants that any of them names.

    Triton's own key has the line in it that a function begins on.
    """
    from triton.runtime.jit import JITCallable

    parts, left = {}, [kernel]
    while left:
        function = left.pop()
        name = f"{function.__module__}.{function.__qualname__}"
        if name in parts:
            continue
        tree, values = ast.parse(function.src).body[0], {}
        for dotted, value in _globals_of(tree, function.get_capture_scope()):
            if isinstance(value, JITCallable):
                if not value.__module__.startswith("triton."):  # the library's are what its version says
                    left.append(value)
                    values[dotted] = f"{value.__module__}.{value.__qualname__}"
            elif (text := _constant(value)) is not None:
                values[dotted] = text
        parts[name] = (_plain_tree(tree), sorted(values.items()), bool(getattr(function, "noinline", False)))
    return digest(sorted(parts.items()))


def _globals_of(tree: ast.FunctionDef, scope: dict):
    """(name, value) of every `name` and `module.name` in a function that is not a variable of its own."""
    local = {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    local |= {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    for node in ast.walk(tree):
        path, root = [], node
        while isinstance(root, ast.Attribute):
            path.insert(0, root.attr)
            root = root.value
        if not isinstance(root, ast.Name) or root.id in local or root.id not in scope:
            continue
        value = scope[root.id]
        for attribute in path:
            if not isinstance(value, ModuleType):
                break  # the attribute of a value, which is seen by itself
            value = getattr(value, attribute)
        else:
            yield ".".join((root.id, *path)), value


def _constant(value) -> str | None:
    """A constant in words that are the same everywhere; None for what Triton's version says all about."""
    if type(value).__name__ == "constexpr":
        return f"constexpr {_constant(value.value)}"
    if isinstance(value, (tuple, list)):
        return repr([_constant(item) for item in value])
    if isinstance(value, _PLAIN):
        return repr(value)
    if type(value).__name__ == "dtype":
        return str(value)
    if isinstance(value, (ModuleType, type)) or getattr(value, "__module__", "").startswith(("triton.", "builtins")):
        return None
    raise TypeError(f"a kernel uses {value!r}, of which no fingerprint is known")


def _plain_tree(node):
    """A syntax tree in tuples: no places, docstrings or empty fields, which differ between versions of Python."""
    if isinstance(node, list):
        return [_plain_tree(item) for item in node if not _is_docstring(item)]
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = [(name, value) for name, value in ast.iter_fields(node) if value not in (None, []) or name == "value"]
    return (type(node).__name__, *((name, _plain_tree(value)) for name, value in fields))


def _is_docstring(node) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def of_cuda(source: Path, folder: Path) -> str:
    """Of a CUDA source and of every header under `folder` that it includes, directly or not."""
    texts, left = {}, [source.resolve()]
    while left:
        path = left.pop()
        if path in texts:
            continue
        texts[path] = _plain_text(path.read_text())
        for name in re.findall(r'^#\s*include\s*"([^"]+)"', texts[path], re.MULTILINE):
            found = [place for place in ((path.parent / name).resolve(), (folder / name).resolve()) if place.is_file()]
            left += found[:1]
    return digest(sorted((path.relative_to(folder.resolve()).as_posix(), text) for path, text in texts.items()))


def _plain_text(text: str) -> str:
    """C++ without comments and with as little white space as means the same; directives keep their lines."""
    text = re.sub(r"\\\n", " ", text)
    text = re.sub(
        r"//[^\n]*|/\*.*?\*/|(\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])*')",
        lambda found: found[1] or " ",
        text,
        flags=re.S,
    )
    parts: list[str] = []
    for line in (" ".join(line.split()) for line in text.split("\n")):
        if line.startswith("#") or not parts or parts[-1].startswith("#"):
            parts.append(line)
        elif line:
            parts[-1] += " " + line
    return "\n".join(
        part if part.startswith("#") else re.sub(r" ?([(){}\[\],;]) ?", r"\1", part) for part in parts if part
    )
