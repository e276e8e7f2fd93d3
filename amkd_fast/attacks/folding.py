"""A private copy of a network with its BatchNorms folded into the convolutions before them."""

from __future__ import annotations

import copy
import operator
from collections import Counter

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_BATCHNORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


class UnfoldableError(Exception):
    """The network cannot be folded; the message says why."""


class FoldedNetwork:
    """The copy. Plain Python attributes and the path through ``forward`` are those of the moment it was made.

    Args:
        model: The user's network; only read.

    Raises:
        UnfoldableError: It has hooks, cannot be copied or traced, or holds nothing to fold.
    """

    def __init__(self, model: nn.Module) -> None:
        if has_hooks(model):
            raise UnfoldableError("the model has hooks, which a folded copy would not run")
        self._model = model
        try:
            self._copy = copy.deepcopy(model).requires_grad_(False)
            for module in self._copy.modules():
                module.training = False
            graph = fx.Tracer().trace(self._copy)
        except Exception as error:  # tracing runs the user's forward, which may raise anything
            raise UnfoldableError(f"torch.fx cannot trace the model: {error}") from error
        modules = dict(self._copy.named_modules(remove_duplicate=False))
        self._pairs = []  # (name of the convolution, name of the BatchNorm, folded convolution)
        for convolution, norm in _foldable(graph, modules):
            name = f"folded_{len(self._pairs)}"
            folded = _with_bias(modules[convolution.target])
            self._copy.add_module(name, folded)
            self._pairs.append((convolution.target, norm.target, folded))
            convolution.target = name
            norm.replace_all_uses_with(convolution)
            graph.erase_node(norm)
        if not self._pairs:
            raise UnfoldableError("no convolution is followed by a BatchNorm alone")
        _relu_in_place(graph, modules)
        self._network = fx.GraphModule(self._copy, graph)
        self.update()

    def convert(self, *, dtype: torch.dtype | None, channels_last: bool) -> None:
        """Change the copy's dtype and memory format."""
        layout = torch.channels_last if channels_last else torch.contiguous_format
        for value in (*tensors(self._copy).values(), *tensors(self._network).values()):
            if value.is_floating_point():
                value.data = value.data.to(dtype or value.dtype)
            if value.dim() == 4:
                value.data = value.data.contiguous(memory_format=layout)
        self.update()

    @torch.no_grad()
    def update(self) -> bool:
        """Take over the present parameters and buffers; False: in place."""
        own = tensors(self._copy)
        for name, value in tensors(self._model).items():
            own[name].copy_(value)
        for convolution, norm, folded in self._pairs:
            weight, bias = _fold(self._model.get_submodule(convolution), self._model.get_submodule(norm))
            folded.weight.copy_(weight)
            folded.bias.copy_(bias)
        return False

    def __call__(self, x: Tensor):
        return self._network(x)


def tensors(model: nn.Module) -> dict[str, Tensor]:
    """All parameters and buffers by name, each of a tied family once."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def has_hooks(model: nn.Module) -> bool:
    """Whether any module of the network has a hook around its forward or backward."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(getattr(module, kind) for module in model.modules() for kind in kinds)


def _foldable(graph: fx.Graph, modules: dict[str, nn.Module]) -> list[tuple[fx.Node, fx.Node]]:
    calls = [node for node in graph.nodes if node.op == "call_module"]
    times = Counter(id(modules[node.target]) for node in calls)
    read = tuple(node.target for node in graph.nodes if node.op == "get_attr")  # weights used outside their module
    pairs = []
    for norm in calls:
        if type(modules[norm.target]) not in _BATCHNORMS or len(norm.args) != 1 or norm.kwargs:
            continue
        convolution = norm.args[0]
        if (
            isinstance(convolution, fx.Node)
            and convolution.op == "call_module"
            and type(modules[convolution.target]) in _CONVOLUTIONS
            and len(convolution.users) == 1
            and times[id(modules[convolution.target])] == times[id(modules[norm.target])] == 1
            and modules[norm.target].running_mean is not None
            and not any(name.startswith(f"{convolution.target}.") for name in read)
        ):
            pairs.append((convolution, norm))
    return pairs


def _relu_in_place(graph: fx.Graph, modules: dict[str, nn.Module]) -> None:
    """Let a ReLU overwrite what only it reads: the output of a folded convolution or a sum, which no gradient needs."""
    for node in list(graph.nodes):
        module = modules.get(node.target) if node.op == "call_module" else None
        if not (type(module) is nn.ReLU or (node.op == "call_function" and node.target in (F.relu, torch.relu))):
            continue
        source = node.args[0] if node.args else None
        if not isinstance(source, fx.Node) or len(source.users) > 1:
            continue
        folded = source.op == "call_module" and source.target not in modules
        if folded or (source.op == "call_function" and source.target in (operator.add, torch.add)):
            with graph.inserting_after(node):
                overwriting = graph.call_function(F.relu, (source,), {"inplace": True})
            node.replace_all_uses_with(overwriting)
            graph.erase_node(node)


def _with_bias(convolution: nn.Module) -> nn.Module:
    folded = copy.deepcopy(convolution)
    weight = folded.weight
    folded.weight = nn.Parameter(weight.detach().clone(), requires_grad=False)
    folded.bias = nn.Parameter(weight.new_zeros(weight.shape[0]), requires_grad=False)
    return folded


def _fold(convolution: nn.Module, norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Weight and bias of norm(convolution(x)) in eval mode, worked out in float64."""
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.double()
    shift = -norm.running_mean.double() * scale
    if convolution.bias is not None:
        shift = shift + convolution.bias.double() * scale
    if norm.bias is not None:
        shift = shift + norm.bias.double()
    weight = convolution.weight.double()
    return weight * scale.view(-1, *[1] * (weight.dim() - 1)), shift
