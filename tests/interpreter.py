"""Makes Triton's interpreter find what it leaves to luck: accesses beyond a launch's tensors, and races.

The interpreter runs one program after the other, each as if on a single thread, on addresses that nobody looks at. On a
GPU the programs of a launch run at once, the elements of a block are many threads', and only ``tl.debug_barrier`` makes
one thread of a program wait for another. So a launch is refused in which

- an active element of a load, a store or an atomic lies outside of all tensors that the launch was given, or is not
  aligned to its size;
- two programs touch one element, one of them to write it, and not both atomically;
- a program reads what it has written without a barrier between them, or two places of its blocks touch one element,
  one of them to write it. Which threads have a block's elements is the compiler's choice, from block to block; what
  is written where it was read depends on it, so there every place of a shape counts as a thread of its own.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from triton.runtime import interpreter

READ, WRITE, ATOMIC = range(3)
_NAMES = {READ: "reads", WRITE: "writes", ATOMIC: "updates"}


class MemoryFault(Exception):
    """What a GPU would do is not defined."""


class _Region(NamedTuple):
    """The bytes of one tensor, or of several that overlap."""

    begin: int
    end: int
    name: str


class _Launch:
    """The accesses of one launch so far."""

    def __init__(self, kernel: str, names: list[str], arguments: list) -> None:
        self._kernel = kernel
        self._regions = _merged(sorted(_regions(names, arguments), key=lambda r: r.begin))
        self._begins = np.array([r.begin for r in self._regions], np.uint64)
        self._ends = np.array([r.end for r in self._regions], np.uint64)
        self._log: list[tuple[np.ndarray, ...]] = []
        self.program, self.barriers = -1, 0
        self.patched: set[int] = set()  # modules, by their globals

    def touch(self, pointers: interpreter.TensorHandle, mask: np.ndarray | None, kind: int) -> None:
        """Check and note one operation on a block of addresses."""
        size = max(pointers.get_element_ty().primitive_bitwidth // 8, 1)
        every = np.ravel(pointers.data).astype(np.uint64)
        places = np.arange(len(every))
        if mask is not None:
            places = np.flatnonzero(np.broadcast_to(mask, pointers.data.shape))
        addresses = every[places]
        if not len(addresses):
            return
        region = np.searchsorted(self._begins, addresses, side="right") - 1
        outside = (region < 0) | (addresses + np.uint64(size) > self._ends[region])
        if outside.any():
            self._refuse(f"{_NAMES[kind]} {self._near(addresses[outside][0], size)}, outside of its tensors")
        if (addresses % np.uint64(size)).any():
            self._refuse(f"{_NAMES[kind]} addresses that are not aligned to {size} bytes")
        lanes = places + (len(every) << 32)
        time = len(self._log)
        self._log.append(tuple(np.broadcast_to(x, addresses.shape) for x in (
            addresses, size, kind, self.program, self.barriers, lanes, time)))  # fmt: skip

    def end(self) -> None:
        """Look for races among all accesses."""
        if not any((kind == WRITE).any() or (kind == ATOMIC).any() for _, _, kind, *_ in self._log):
            return
        address, *others = (np.concatenate(x) for x in zip(*self._log, strict=True))
        region = np.searchsorted(self._begins, address, side="right") - 1
        for r in np.unique(region[others[1] != READ]):
            here = region == r
            self._races(self._regions[r], *(x[here] for x in (address, *others)))

    def _races(self, region: _Region, address, size, kind, program, barriers, lane, time) -> None:
        grain = int(size.min())
        repeats = size // grain  # of wide accesses, one for each grain
        element = (address - np.uint64(region.begin)).astype(np.int64) // grain
        if (repeats > 1).any():
            within = np.arange(repeats.sum()) - np.repeat(repeats.cumsum() - repeats, repeats)
            element = np.repeat(element, repeats) + within
            kind, program, barriers, lane, time = (np.repeat(x, repeats) for x in (kind, program, barriers, lane, time))
        written = np.unique(element[kind != READ])
        plain = np.unique(element[kind != ATOMIC])
        there = np.isin(element, np.intersect1d(written, plain, assume_unique=True))
        element, kind, program, barriers, lane, time = (
            x[there] for x in (element, kind, program, barriers, lane, time)
        )
        if not len(element):
            return
        if both := _disagree(element, program):
            self._refuse(f"programs {program[both[0]]} and {program[both[1]]} touch element {element[both[0]]} of "
                         f"{region.name}, and one {_NAMES[kind[list(both)].max()]} it")  # fmt: skip
        writes = kind != READ
        moment = (element * (program.max() + 1) + program) * (barriers.max() + 1) + barriers
        _, group = np.unique(moment, return_inverse=True)
        there = np.isin(group, group[writes])
        if both := _disagree(group[there], lane[there]):
            first, second = np.flatnonzero(there)[list(both)]
            self._refuse(f"program {program[first]} touches element {element[first]} of {region.name} from two places "
                         f"of its blocks without a barrier, {lane[first] & 0xFFFFFFFF} of {lane[first] >> 32} and "
                         f"{lane[second] & 0xFFFFFFFF} of {lane[second] >> 32}")  # fmt: skip
        written = np.full(group.max() + 1, len(self._log))
        np.minimum.at(written, group[writes], time[writes])
        if len(late := np.flatnonzero(~writes & (time > written[group]))):
            self._refuse(f"program {program[late[0]]} reads element {element[late[0]]} of {region.name}, which it has "
                         f"written, without a barrier")  # fmt: skip

    def _near(self, address: int, size: int) -> str:
        """An address by the tensor that begins last before it."""
        before = [r for r in self._regions if r.begin <= address]
        if not before:
            return "an address before every tensor"
        return f"element {(int(address) - before[-1].begin) // size} of {before[-1].name}"

    def _refuse(self, what: str) -> None:
        raise MemoryFault(f"{self._kernel}: {what}")


def _regions(names: list[str], arguments: list):
    for name, x in zip(names, arguments, strict=False):
        if isinstance(x, tuple):
            yield from _regions([f"{name}[{i}]" for i in range(len(x))], list(x))
        elif hasattr(x, "data_ptr"):
            x = interpreter._unwrap_tensor(x)
            if x.numel():
                last = sum((n - 1) * stride for n, stride in zip(x.shape, x.stride(), strict=True))
                yield _Region(x.data_ptr(), x.data_ptr() + (last + 1) * x.element_size(), name)


def _merged(regions: list[_Region]) -> list[_Region]:
    found: list[_Region] = []
    for region in regions:
        if found and region.begin < found[-1].end:
            last = found.pop()
            region = _Region(last.begin, max(last.end, region.end), f"{last.name}, {region.name}")
        found.append(region)
    return found


def _disagree(group: np.ndarray, value: np.ndarray) -> tuple[int, int] | None:
    """Two entries of one group whose values differ."""
    order = np.lexsort((value, group))
    same = group[order][1:] == group[order][:-1]
    differs = np.flatnonzero(same & (value[order][1:] != value[order][:-1]))
    return (int(order[differs[0]]), int(order[differs[0] + 1])) if len(differs) else None


def check() -> None:
    """From now on every launch of this process is checked."""
    builder, executor = interpreter.interpreter_builder, interpreter.GridExecutor
    run, prepare, index = executor.__call__, executor._init_args_hst, builder.set_grid_idx
    patch = interpreter._patch_lang
    launches: list[_Launch] = []

    def prepared(self, arguments, named):
        found, found_named = prepare(self, arguments, named)
        names = [*self.arg_names[: len(found)], *found_named]
        launches.append(_Launch(self.fn.__name__, names, [*found, *found_named.values()]))
        return found, found_named

    def call(self, *arguments, **named):
        depth = len(launches)
        try:
            run(self, *arguments, **named)
            launches[-1].end()
        except interpreter.InterpreterError as error:
            if isinstance(error.__cause__, MemoryFault):
                raise error.__cause__ from None
            raise
        finally:
            del launches[depth:]

    def patched(function):
        # The interpreter would patch the language again in every function that a kernel calls, for half of its time.
        known, module = launches[-1].patched, id(function.__globals__)
        if module in known:
            return interpreter._LangPatchScope()
        known.add(module)
        return patch(function)

    def next_program(*place):
        launches[-1].program, launches[-1].barriers = launches[-1].program + 1, 0
        index(*place)

    def barrier():
        launches[-1].barriers += 1

    def watched(name: str, mask_at: int | None, kind: int, pointers_at: int = 0) -> None:
        original = getattr(builder, name)

        def operation(*arguments):
            mask = None if mask_at is None else arguments[mask_at].data
            launches[-1].touch(arguments[pointers_at], mask, kind)
            return original(*arguments)

        setattr(builder, name, operation)

    executor._init_args_hst, executor.__call__ = prepared, call
    # On a CPU a launch works on the tensors themselves: copying their whole storages onto themselves is of no use.
    executor._restore_args_dev = lambda *_: None
    builder.set_grid_idx, builder.create_barrier = next_program, barrier
    interpreter._patch_lang = patched
    watched("create_masked_load", 1, READ)
    watched("create_masked_store", 2, WRITE)
    watched("create_atomic_rmw", 3, ATOMIC, pointers_at=1)
    watched("create_atomic_cas", None, ATOMIC)
