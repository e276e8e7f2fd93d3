"""What a network's ``forward`` may read besides tensors, looked at again in one cheap pass before every call."""

from __future__ import annotations

import enum
import functools
import operator
import sys
import types
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

_MOST = 100_000  # objects; whoever holds a whole program in an attribute is not followed into it
_BUILT_IN = (types.BuiltinFunctionType, types.MethodDescriptorType, types.WrapperDescriptorType)
_PLAIN = (
    *(type(None), bool, int, float, complex, str, bytes, range, slice, type(Ellipsis), enum.Enum, types.ModuleType),
    *(torch.dtype, torch.device, torch.layout, torch.memory_format, *_BUILT_IN),
)
_SETTINGS = ("OrderedDict", "SimpleNamespace", "Namespace")  # of the standard library, entered all the same
_OWN = ("_parameters", "_buffers", "_modules")
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_BARE = frozenset(vars(nn.Module())) - set(_OWN)  # what every module has, "training" and hooks among it


class Guards:
    """What a network holds, and what its classes' functions name, down to plain values and tensors.

    Followed are attributes of modules and other objects, lists, sets and dicts, the variables of closures, attributes
    of classes, and global variables that functions name; neither the standard library nor torch's own code is entered.
    Tensors are compared by identity: their numbers are taken over anew in every call.

    Attributes:
        loose: Kinds of what cannot be followed: arrays, and tensors that no module of the network has for its own.
    """

    def __init__(self, model: nn.Module) -> None:
        self.loose: list[str] = []
        self._held: list[tuple[Any, Any, object]] = []  # (container, key, the very object there)
        self._places: list[tuple[Any, Any, set]] = []  # (container, its copy, keys that are overlooked)
        self._cells: list[tuple[types.CellType, object]] = []
        self._modules = {id(module) for module in model.modules()}
        self._seen: dict[int, object] = {}  # keeps them alive, so that an id stays theirs
        self._waiting: deque[Any] = deque([model])
        while self._waiting and len(self._seen) < _MOST:
            self._visit(self._waiting.popleft())
        if self._waiting:
            self.loose.append("more objects than can be followed")
            self._waiting.clear()
        self._hooks = [vars(module)[kind] for module in model.modules() for kind in _HOOKS]
        self._sort()

    def hooked(self) -> bool:
        """:func:`has_hooks` of the model, as long as nothing has :meth:`changed`."""
        return any(_everywhere()) or any(self._hooks)

    def changed(self) -> bool:
        """Whether a value, or an object, is another one than at the start."""
        try:
            # Objects first: where all are the same, comparing containers asks none of them whether it is equal.
            if not all(map(operator.is_, map(operator.getitem, *self._containers), self._parts)):
                return True
            for container, kept, overlooked in self._overlooking:
                for key in overlooked:
                    kept[key] = container[key]
            if self._now != self._kept:
                return True
            return any(cell.cell_contents is not kept for cell, kept in self._cells)
        except (LookupError, ValueError, RuntimeError):  # a key or a variable is gone
            return True

    def steady(self, module: nn.Module, name: str) -> bool:
        """Whether an attribute of a module is watched, and not overlooked."""
        return any(container is vars(module) and key == name for container, key, _ in self._held)

    def forgive(self) -> None:
        """Overlook from now on what has changed, because the model changes it whenever it runs."""
        held, places = self._held, self._places
        self._held = [entry for entry in held if _get(entry[0], entry[1]) is entry[2]]
        self._places = []
        for container, kept, overlooked in places:
            if isinstance(kept, dict):
                own = {key: container[key] for key in container}
                other = {key for key in {*own, *kept} if not _alike(_get(own, key), _get(kept, key))}
                if other <= own.keys():  # else it comes and goes
                    self._places.append((container, own, overlooked | other))
            elif len(container) == len(kept) and all(map(_alike, container, kept)):
                self._places.append((container, kept, overlooked))
        self._cells = [(cell, kept) for cell, kept in self._cells if cell.cell_contents is kept]
        self._sort()

    def _sort(self) -> None:
        """What :meth:`changed` walks over, column by column."""
        self._containers = [container for container, _, _ in self._held], [key for _, key, _ in self._held]
        self._parts = [part for _, _, part in self._held]
        self._now, self._kept = [place[0] for place in self._places], [place[1] for place in self._places]
        self._overlooking = [place for place in self._places if place[2]]

    def _visit(self, value: Any) -> None:
        if isinstance(value, nn.Module):
            self._module(value)
        elif isinstance(value, (dict, list, set, deque)):
            self._enter(value)
        elif isinstance(value, (tuple, frozenset)):
            self._wait(*value)
        elif isinstance(value, types.FunctionType):
            self._function(value)
        elif isinstance(value, types.MethodType):
            self._wait(value.__self__, value.__func__)
        elif isinstance(value, functools.partial):
            self._wait(value.func, value.args, value.keywords)
        elif isinstance(value, type):
            self._class(value)
        elif isinstance(value, Tensor):
            self.loose.append("a tensor that no module has for a parameter, a buffer or an attribute")
        elif type(value).__module__.partition(".")[0] == "numpy":
            self.loose.append(f"a NumPy {type(value).__name__}")
        elif hasattr(value, "__dict__"):
            self._class(type(value))
            self._enter(vars(value))

    def _module(self, module: nn.Module) -> None:
        own = id(module) in self._modules
        attributes = vars(module)
        self._class(type(module))
        self._places.append((attributes, dict(attributes), {"training"} & attributes.keys()))
        for name in _OWN:
            self._enter(attributes[name], follow=name == "_modules" or not own)
        for name, part in attributes.items():
            if name not in _BARE and name not in _OWN and not _plain(part):
                self._held.append((attributes, name, part))
                if not (own and isinstance(part, Tensor)):
                    self._wait(part)

    def _class(self, cls: type) -> None:
        for base in cls.__mro__:
            if not _foreign(base) and id(base) not in self._seen:
                self._seen[id(base)] = base
                self._enter(vars(base))

    def _function(self, function: types.FunctionType) -> None:
        for cell in function.__closure__ or ():
            try:
                self._cells.append((cell, cell.cell_contents))
            except ValueError:  # nothing is in it yet
                continue
            self._wait(cell.cell_contents)
        self._wait(*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values())
        outside = function.__globals__
        for name in {name for code in _codes(function.__code__) for name in code.co_names} & outside.keys():
            self._held.append((outside, name, outside[name]))
            self._wait(outside[name])

    def _enter(self, container: Any, follow: bool = True) -> None:
        """Remember what a container holds, and go on to that."""
        pairs: Iterable[tuple[Any, Any]] = ()
        if hasattr(container, "keys"):
            kept = dict(container)
            pairs = kept.items()
        else:
            kept = type(container)(container)
            pairs = enumerate(kept) if isinstance(container, (list, deque)) else ()
        self._places.append((container, kept, set()))
        self._held += [(container, key, part) for key, part in pairs if not _plain(part)]
        if follow:
            self._wait(*(kept.values() if isinstance(kept, dict) else kept))

    def _wait(self, *values: Any) -> None:
        for value in values:
            if isinstance(value, (staticmethod, classmethod, property)):
                value = value.fget if isinstance(value, property) else value.__func__
            if not _plain(value) and id(value) not in self._seen and not _foreign(value):
                self._seen[id(value)] = value
                self._waiting.append(value)


def has_hooks(model: nn.Module) -> bool:
    """Whether a module of the network, or every module there is, has a hook around its forward or backward."""
    if any(_everywhere()):
        return True
    return any(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
        for module in model.modules()
    )


def _everywhere() -> Iterator[dict]:
    """The hooks of every module there is."""
    everywhere = vars(sys.modules["torch.nn.modules.module"])
    return (everywhere[f"_global{kind}"] for kind in _HOOKS)


def _get(container: Any, key: Any) -> Any:
    try:
        return container[key]
    except LookupError:
        return _get  # which no container holds


def _alike(one: Any, other: Any) -> bool:
    return one is other or (_plain(one) and _plain(other) and one == other)


def _plain(value: Any) -> bool:
    """Whether equal values of this kind are one thing to a forward, and hold nothing else."""
    if isinstance(value, (tuple, frozenset)):
        return all(map(_plain, value))
    return isinstance(value, _PLAIN)


def _foreign(value: Any) -> bool:
    """Code and objects of torch and of the standard library, but for containers, modules, tensors and settings."""
    if isinstance(value, (nn.Module, Tensor, dict, list, set, deque, tuple, frozenset, functools.partial)):
        return False
    if isinstance(value, types.MethodType):
        return False
    named = value if isinstance(value, (type, types.FunctionType)) else type(value)
    root = (getattr(named, "__module__", None) or "builtins").partition(".")[0]
    if named.__name__ in _SETTINGS and value is not named:
        return False
    return root == "torch" or root in sys.stdlib_module_names


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _codes(constant)
