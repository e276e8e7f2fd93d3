"""A private copy of a network with its BatchNorms folded into the convolutions before them."""

from __future__ import annotations

import copy
import operator
from collections import Counter
from collections.abc import Callable, Iterable
from itertools import groupby
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm
from torch.nn.modules.conv import _ConvNd as Convolution

from amkd_fast import backends
from amkd_fast.attacks.guards import Guards, has_hooks
from amkd_fast.ops import schemas
from amkd_fast.ops.attack.operators import serving

_fold = schemas.operator("attack_fold", "cpu")
_CONVOLUTIONS: tuple[type[nn.Module], ...] = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_BATCHNORMS: tuple[type[nn.Module], ...] = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


class UnfoldableError(Exception):
    """The network cannot be folded; the message says why."""


class FoldedNetwork:
    """The copy. What its ``forward`` does is that of the moment it was made; its numbers come from :meth:`values`.

    Args:
        model: The user's network; only read.
        guards: What it holds besides tensors.

    Raises:
        UnfoldableError: It has hooks, cannot be copied or traced, or holds nothing to fold, or what cannot be followed.
    """

    def __init__(self, model: nn.Module, guards: Guards) -> None:
        if has_hooks(model):
            raise UnfoldableError("the model has hooks, which a folded copy would not run")
        if guards.loose:
            raise UnfoldableError(f"the model holds {guards.loose[0]}, whose changes nobody would see")
        try:
            copied = copy.deepcopy(model).requires_grad_(False)
            sources = _sources(model, copied, guards)
            for module in copied.modules():
                module.training = False
            graph = _Tracer().trace(copied)
        except Exception as error:  # tracing runs the user's forward, which may raise anything
            raise UnfoldableError(f"torch.fx cannot trace the model: {error}") from error
        modules = dict(copied.named_modules(remove_duplicate=False))
        pairs: list[tuple[Convolution, BatchNorm]] = []
        folded: list[Convolution] = []
        for convolution, norm in _foldable(graph, modules):
            name = f"folded_{len(pairs)}"
            # _foldable has looked at their types.
            own = cast(Convolution, model.get_submodule(_called(convolution)))
            pairs.append((own, cast(BatchNorm, model.get_submodule(_called(norm)))))
            folded.append(_with_bias(cast(Convolution, modules[_called(convolution)])))
            copied.add_module(name, folded[-1])
            convolution.target = name
            norm.replace_all_uses_with(convolution)
            graph.erase_node(norm)
        if not pairs:
            raise UnfoldableError("no convolution is followed by a BatchNorm alone")
        _overwrite(graph, modules)
        self._network = fx.GraphModule(copied, graph)
        self._folds = Folds(pairs)
        # Where the network reads its tensors: those of the folded convolutions first, as Folds gives them.
        self._slots = [(folded[i]._parameters, name) for i in self._folds.order for name in ("weight", "bias")]
        stores = {id(store) for store, _ in self._slots}
        self._others = [(store, name) for store, name in _slots(self._network) if id(store) not in stores]
        self._copies = Copies([sources.get(id(store[name]), (store[name], True)) for store, name in self._others])
        self.convert(dtype=None, channels_last=False)

    def convert(self, *, dtype: torch.dtype | None, channels_last: bool) -> None:
        """Change the copy's dtype and memory format."""
        self._folds.convert(dtype, channels_last)
        self._copies.convert(dtype, channels_last)
        self.use(self.values())

    def fits(self) -> bool:
        """Whether the model's tensors still are of the shapes, dtypes and devices that they had."""
        return self._folds.fits() and self._copies.fits()

    def shared(self) -> list[bool]:
        """Which of the values are the model's own memory."""
        return [False] * len(self._slots) + self._copies.shared()

    @torch.no_grad()
    def values(self) -> list[Tensor]:
        """What the network has to run on, made of the model's present tensors."""
        return self._folds.values() + self._copies.values()

    def use(self, values: list[Tensor]) -> None:
        """Run on these values."""
        for (store, name), value in zip(self._slots + self._others, values, strict=True):
            store[name] = value

    def __call__(self, x: Tensor):
        return self._network(x)


class Copies:
    """Tensors as a view needs them: the model's own memory where that serves, else copies, made in few launches."""

    def __init__(self, sources: list[tuple[Tensor, bool]]) -> None:
        self._sources = [source for source, _ in sources]
        self._written = [written for _, written in sources]  # forward may write into a buffer
        self._kinds = _kinds(self._sources)
        self.convert(None, False)

    def convert(self, dtype: torch.dtype | None, channels_last: bool) -> None:
        """Choose the dtype and the memory format."""
        self._likes: list[tuple[torch.dtype, torch.memory_format] | None] = []
        self._batches: dict[tuple, list[int]] = {}  # what one launch can copy
        for i, (source, written) in enumerate(zip(self._sources, self._written, strict=True)):
            kind = dtype if dtype is not None and source.is_floating_point() else source.dtype
            last = channels_last and source.dim() == 4
            last = last and not source.is_contiguous(memory_format=torch.channels_last)
            like = (kind, torch.channels_last if last else torch.preserve_format)
            if written or last or kind != source.dtype or source.is_inference():
                self._batches.setdefault((source.dtype, source.device, *like), []).append(i)
                self._likes.append(like)
            else:
                self._likes.append(None)

    def fits(self) -> bool:
        """As :meth:`FoldedNetwork.fits`."""
        return all(map(_is_kind, self._sources, self._kinds))

    def shared(self) -> list[bool]:
        """As :meth:`FoldedNetwork.shared`."""
        return [like is None for like in self._likes]

    def values(self) -> list[Tensor]:
        """The present values."""
        values = [
            source.detach() if like is None else torch.empty_like(source, dtype=like[0], memory_format=like[1])
            for source, like in zip(self._sources, self._likes, strict=True)
        ]
        for batch in self._batches.values():
            torch._foreach_copy_([values[i] for i in batch], [self._sources[i] for i in batch])
        return values


class Folds:
    """Weights and biases of norm(convolution(x)) in eval mode, worked out in float64 for all pairs at once.

    Attributes:
        order: Positions of the pairs in the order of their values, weight and bias of each.
    """

    def __init__(self, pairs: list[tuple[Convolution, BatchNorm]]) -> None:
        def form(i: int) -> tuple:
            weight = pairs[i][0].weight
            return (tuple(weight.shape), str(weight.dtype), str(weight.device))

        self.order = sorted(range(len(pairs)), key=form)  # weights of a form are one tensor, folded in one launch
        pairs = [pairs[i] for i in self.order]
        self._groups = [list(group) for _, group in groupby(range(len(pairs)), key=lambda i: form(self.order[i]))]
        self._weights = [convolution.weight for convolution, _ in pairs]

        def vectors(each: Iterable[Tensor | None], default: float) -> list[Tensor]:
            return [
                weight.new_full((weight.shape[0],), default) if value is None else value
                for weight, value in zip(self._weights, each, strict=True)
            ]

        # A norm without statistics is not folded: none is left out here.
        self._means = [norm.running_mean for _, norm in pairs if norm.running_mean is not None]
        self._variances = [norm.running_var for _, norm in pairs if norm.running_var is not None]
        self._gains = vectors((norm.weight for _, norm in pairs), 1.0)
        self._shifts = vectors((norm.bias for _, norm in pairs), 0.0)
        self._biases = vectors((convolution.bias for convolution, _ in pairs), 0.0)
        self._each_eps = eps = [norm.eps for _, norm in pairs]
        self._eps = torch.cat(
            [torch.full_like(x, each, dtype=torch.float64) for x, each in zip(self._variances, eps, strict=True)]
        )
        self._every = [*self._weights, *self._means, *self._variances, *self._gains, *self._shifts, *self._biases]
        self._kinds = _kinds(self._every)
        self._alike = {value.dtype for value in self._every} in (
            {torch.float32},
            {torch.float64},
        )  # as the operator asks
        self.convert(None, False)

    def convert(self, dtype: torch.dtype | None, channels_last: bool) -> None:
        """Choose the dtype and the memory format."""
        self._dtype, self._channels_last = dtype, channels_last

    def fits(self) -> bool:
        """As :meth:`FoldedNetwork.fits`."""
        return all(map(_is_kind, self._every, self._kinds))

    def values(self) -> list[Tensor]:
        """Weight, bias, weight, bias …, in ``order``."""
        if self._alike and self._dtype in (None, self._weights[0].dtype) and serving(self._weights[0])[0] == "cpu":
            parts = (self._means, self._variances, self._gains, self._shifts, self._biases)
            return _fold(self._weights, *parts, self._each_eps, self._channels_last)
        mean, variance, gain, shift, bias = (
            torch.cat(parts).double()
            for parts in (self._means, self._variances, self._gains, self._shifts, self._biases)
        )
        scale = (variance + self._eps).rsqrt_().mul_(gain)
        shift += (bias - mean) * scale
        values: list[Tensor] = []
        start = 0
        for group in self._groups:
            weights = torch.stack([self._weights[i] for i in group])  # [n, O, I, ...]
            count, channels = weights.shape[:2]
            folded = _empty(weights, self._dtype or weights.dtype, self._channels_last)
            these = slice(start, start + count * channels)
            start = these.stop
            folded.copy_(weights.double().mul_(scale[these].view(count, channels, *[1] * (weights.dim() - 2))))
            biases = shift[these].view(count, channels).to(folded.dtype)
            for i in range(count):
                values += (folded[i], biases[i])
        return values


class _Tracer(fx.Tracer):
    proxy_buffer_attributes = True  # what is computed from a buffer is computed in every call


def tensors(model: nn.Module) -> dict[str, Tensor]:
    """All parameters and buffers by name, each of a tied family once."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _kinds(sources: list[Tensor]) -> list[tuple]:
    return [(source.shape, source.dtype, source.device) for source in sources]


def _is_kind(source: Tensor, kind: tuple) -> bool:
    return source.shape == kind[0] and source.dtype == kind[1] and source.device == kind[2]


def _empty(weights: Tensor, dtype: torch.dtype, channels_last: bool) -> Tensor:
    """Room for weights [n, O, I, ...], each in the memory format asked for."""
    if not channels_last or weights.dim() != 5:
        return torch.empty(weights.shape, dtype=dtype, device=weights.device)
    n, out, into, height, width = weights.shape
    room = torch.empty((n, out, height, width, into), dtype=dtype, device=weights.device)
    return room.permute(0, 1, 4, 2, 3)


def _slots(model: nn.Module) -> list[tuple[dict, str]]:
    """Where the modules keep their tensors."""
    stores = (store for module in model.modules() for store in (module._parameters, module._buffers))
    return [(store, name) for store in stores for name, value in store.items() if isinstance(value, Tensor)]


def _sources(model: nn.Module, copied: nn.Module, guards: Guards) -> dict[int, tuple[Tensor, bool]]:
    """For each tensor of the copy, by its id, the model's own and whether forward may write into it.

    Tensors that are mere attributes become buffers of the copy, which the trace follows.
    """
    own, others = _slots(model), _slots(copied)
    for module, twin in zip(model.modules(), copied.modules(), strict=True):
        steady = [
            name for name, part in vars(module).items() if isinstance(part, Tensor) and guards.steady(module, name)
        ]
        own += [(vars(module), name) for name in steady]
        for name in steady:
            value = vars(twin).pop(name)
            twin.register_buffer(name, value)
            others.append((twin._buffers, name))
    found = {}
    for (store, name), (other, other_name) in zip(own, others, strict=True):
        if name != other_name or store[name].shape != other[name].shape:
            raise ValueError(f"its copy has {other_name} in place of {name}")
        found[id(other[name])] = (store[name], not isinstance(store[name], nn.Parameter))
    return found


def _called(node: fx.Node) -> str:
    """The name of the module that a node calls."""
    return str(node.target)


def _foldable(graph: fx.Graph, modules: dict[str, nn.Module]) -> list[tuple[fx.Node, fx.Node]]:
    calls = [node for node in graph.nodes if node.op == "call_module"]
    times = Counter(id(modules[_called(node)]) for node in calls)
    read = tuple(str(node.target) for node in graph.nodes if node.op == "get_attr")  # weights used outside their module
    pairs = []
    for norm in calls:
        if type(modules[_called(norm)]) not in _BATCHNORMS or len(norm.args) != 1 or norm.kwargs:
            continue
        convolution = norm.args[0]
        if (
            isinstance(convolution, fx.Node)
            and convolution.op == "call_module"
            and type(modules[_called(convolution)]) in _CONVOLUTIONS
            and len(convolution.users) == 1
            and times[id(modules[_called(convolution)])] == times[id(modules[_called(norm)])] == 1
            and modules[_called(norm)].running_mean is not None
            and not any(name.startswith(f"{convolution.target}.") for name in read)
        ):
            pairs.append((convolution, norm))
    return pairs


def _overwrite(graph: fx.Graph, modules: dict[str, nn.Module]) -> None:
    """Let ReLUs and sums overwrite what they alone read and no gradient needs: a folded convolution's output, a sum."""
    for node in list(graph.nodes):
        module = modules.get(node.target) if node.op == "call_module" else None
        called = node.target if node.op == "call_function" else None
        terms = [source for source in node.args if isinstance(source, fx.Node)]
        free = [source for source in terms if len(source.users) == 1 and _is_free(source, modules)]
        if not free:
            continue
        if type(module) is nn.ReLU or called in (F.relu, torch.relu):
            over: Callable = relu_over
        elif called in (operator.add, torch.add) and len(terms) == 2 and not node.kwargs:
            over = add_over
            terms.sort(key=lambda source: source is not free[0])
        else:
            continue
        with graph.inserting_after(node):
            overwriting = graph.call_function(over, tuple(terms))
        node.replace_all_uses_with(overwriting)
        graph.erase_node(node)


def _is_free(source: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Whether what a node makes is its own, and not kept for a gradient."""
    if source.op == "call_module":
        return source.target not in modules  # a folded convolution
    return source.op == "call_function" and source.target in (operator.add, torch.add, add_over)


def relu_over(x: Tensor) -> Tensor:
    """``relu(x)`` in the place of ``x``."""
    node = None if torch.compiler.is_compiling() else backends.autograd_node()
    result = None if node is None else node.relu(x)
    return F.relu(x, inplace=True) if result is None else result


def add_over(x: Tensor, y: Tensor) -> Tensor:
    """``x + y``, in the place of ``x`` where it has the form of the sum."""
    fits = isinstance(x, Tensor) and isinstance(y, Tensor) and x.shape == y.shape and x.dtype == y.dtype
    return x.add_(y) if fits else x + y


def _with_bias(convolution: Convolution) -> Convolution:
    folded = copy.deepcopy(convolution)
    weight = folded.weight
    folded.weight = nn.Parameter(weight.detach().clone(), requires_grad=False)
    folded.bias = nn.Parameter(weight.new_zeros(weight.shape[0]), requires_grad=False)
    return folded
