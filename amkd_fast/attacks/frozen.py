"""The attack-ready view of a network: eval mode, no parameter gradients, BatchNorm folded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils import _pytree as pytree

from amkd_fast import checks
from amkd_fast.attacks.folding import Copies, FoldedNetwork, UnfoldableError, tensors
from amkd_fast.attacks.guards import Guards, has_hooks
from amkd_fast.attacks.parallel import refuse_replicas, unwrapped

Network = TypeVar("Network", FoldedNetwork, "_PlainNetwork")
# How far a folded network may be from the original on the batch it is first tried on, relative to the largest output.
_AGREEMENT = {torch.float64: 1e-9, torch.float32: 1e-3, torch.float16: 3e-2, torch.bfloat16: 2e-1}


class FrozenModel:
    """What :func:`frozen` returns. Call it like the model; its outputs have a graph to the input alone.

    Attributes:
        model: The network it shows; never changed.
        folded: Whether BatchNorm is folded. Decided when a batch is first seen, False before.
        reason: Why it is not folded although it was asked for; empty otherwise.
        generation: Rises whenever recordings of the network read tensors that are no longer its own.
    """

    def __init__(self, model: nn.Module, fold_batchnorm: bool, channels_last: bool, dtype: torch.dtype | None) -> None:
        self.model = model
        self.folded = False
        self.reason = ""
        self.generation = 0
        self._fold_batchnorm = fold_batchnorm
        self._channels_last = channels_last
        self._dtype = dtype
        self._run: FoldedNetwork | _PlainNetwork | None = None
        self._run_channels_last = False
        self._native: torch.dtype | None = None
        self._guards: Guards | None = None  # None: the next call builds
        self._hooked = False
        self._kept: list[Tensor] | None = None  # what recordings read
        self._held: bool | None = None  # in a block of `held`: whether the model has been looked at in it

    def __call__(self, x: Tensor):
        """Evaluate the network on images [B, ...]; the outputs are those of the model in eval mode."""
        return self.network(x)(x)

    def network(self, x: Tensor, *, recorded: bool = False) -> Callable[[Tensor], object]:
        """Take over what the model is now and return the network, for a loop that leaves the model alone.

        Args:
            x: Images of the kind that it will see.
            recorded: Run on the tensors that recordings of it read; they get the new numbers.
        """
        guards, run = self._guards, self._run
        if self._held and not recorded and guards is not None:
            return self._evaluate
        stale = guards is None or guards.changed() or self._hooked != guards.hooked()
        if stale or run is None or not run.fits():
            self._guards = None  # should the building fail
            with forked_rng(x.device), torch.no_grad():
                guards, run = self._build(x)
            self._run = run
            self._guards = guards if x.shape[0] else None  # an empty batch proves nothing: build again next time
        with torch.inference_mode(False), torch.no_grad():
            values = run.values()
            run.use(self._for_recordings(values, run.shared()) if recorded else values)
        if self._held is not None:
            self._held = True
        return self._evaluate

    @contextmanager
    def held(self) -> Iterator[None]:
        """Take over what the model is once for all calls in the block, in which nobody may change it."""
        self._held = False
        try:
            yield
        finally:
            self._held = None

    def memory_format(self, images: Tensor) -> torch.memory_format:
        """The memory format that ``images`` are run in, once :meth:`network` has seen such a batch."""
        last = self._run_channels_last and images.dim() == 4
        return torch.channels_last if last else torch.contiguous_format

    def _for_recordings(self, values: list[Tensor], shared: list[bool]) -> list[Tensor]:
        """The tensors that recordings read, with these values in them."""
        kept = self._kept
        if kept is None or any(
            same and one.data_ptr() != other.data_ptr() for same, one, other in zip(shared, kept, values, strict=True)
        ):
            self.generation += 1
            self._kept = values
            return values
        own = [i for i, same in enumerate(shared) if not same]
        if own:
            torch._foreach_copy_([kept[i] for i in own], [values[i] for i in own])
        return kept

    def _evaluate(self, x: Tensor):
        return _evaluate(self._run, x, self._run_channels_last, self._native, self._dtype)

    def _build(self, x: Tensor) -> tuple[Guards, FoldedNetwork | _PlainNetwork]:
        self.folded, self.reason, self._kept = False, "", None
        self._hooked, guards = has_hooks(self.model), Guards(self.model)
        self._native = next((value.dtype for value in tensors(self.model).values() if value.is_floating_point()), None)
        plain = _PlainNetwork(self.model)
        # Whatever the model itself raises comes out here, before anything is tried on it.
        expected = _evaluate(plain, x.detach(), False, self._native, None) if x.shape[0] else None
        guards.forgive()
        try:
            if self._fold_batchnorm and expected is not None:
                folded = self._verified(FoldedNetwork(self.model, guards), x, expected)
                self.folded = True
                guards.forgive()
                return guards, folded
        except UnfoldableError as error:
            self.reason = str(error)
        try:
            if expected is not None:
                self._verified(plain, x, expected)
        except UnfoldableError:  # a model with random outputs differs from itself
            self._run_channels_last = False
        if expected is None:
            self._run_channels_last = False
        plain.convert(dtype=self._dtype, channels_last=self._run_channels_last)
        guards.forgive()
        return guards, plain

    def _verified(self, run: Network, x: Tensor, expected: object) -> Network:
        """Accept ``run`` in the memory format in which it gives the expected outputs on ``x``."""
        reason = ""
        for channels_last in (True, False) if self._channels_last else (False,):
            run.convert(dtype=None, channels_last=channels_last)
            try:
                outputs = _evaluate(run, x.detach(), channels_last, self._native, None)
            except RuntimeError as error:  # .view() on a channels_last tensor
                reason = str(error)
                continue
            if _agree(outputs, expected):
                self._run_channels_last = channels_last
                run.convert(dtype=self._dtype, channels_last=channels_last)
                return run
            reason = "its outputs differ from the model's"
        raise UnfoldableError(f"the folded copy was tried and dropped: {reason}")


def frozen(
    model: nn.Module, *, fold_batchnorm: bool = True, channels_last: bool = True, dtype: torch.dtype | None = None
) -> FrozenModel:
    """Make the attack-ready view of a network.

    The view computes what ``model.eval()`` would, whatever mode the model is in. Only inputs get gradients. The
    model's parameters, gradients, modes, buffers and hooks stay as they are, also when it raises. BatchNorms that
    alone follow a convolution are folded into a private copy. A model that cannot be folded (hooks, data-dependent
    ``forward``, arrays or loose tensors among its attributes, a copy that does not give the model's own outputs on the
    first batch) runs unfolded; :attr:`FrozenModel.reason` says why.

    Every call, of the view or of an attack on it, uses what the model is by then, however it came to be: the weights
    are taken over and folded anew (one pass over them), and where an attribute, a layer, a hook, or a variable that its
    functions name has changed, the view is built anew on the call's images.

    Args:
        model: The network. Its ``forward`` takes one tensor of images. Of ``nn.DataParallel`` and
            ``DistributedDataParallel`` the module within is taken, which runs on one device.
        fold_batchnorm: Fold BatchNorm into convolutions, in float64 arithmetic.
        channels_last: Run images [B, C, H, W] in the channels_last memory format where the model allows it.
        dtype: Run in this dtype; outputs come back in float32 at least. None keeps the model's. Images are cast to
            the network's dtype in any case.

    Returns:
        A callable view of the model.

    Raises:
        TypeError: ``model`` is not a ``torch.nn.Module`` or is a TorchScript module, or ``dtype`` is no dtype.
        ValueError: ``dtype`` is not float32, float64, float16 or bfloat16, or a part of ``model`` is a
            ``DataParallel`` over several devices.

    Example:
        >>> import torch, amkd_fast as af
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2), torch.nn.Flatten())
        >>> view = af.attacks.frozen(model)
        >>> view(torch.zeros(4, 1, 5, 5)).requires_grad, view.folded, model.training
        (False, True, True)
    """
    if not isinstance(model, nn.Module) or isinstance(model, torch.jit.ScriptModule):
        raise TypeError(f"model is a {type(model).__name__}: must be a torch.nn.Module that is not scripted")
    if dtype is not None:
        if not isinstance(dtype, torch.dtype):
            raise TypeError(f"dtype is a {type(dtype).__name__}: must be a torch.dtype or None")
        checks.choice("dtype", dtype, checks.FLOATING)
    model = unwrapped(model)
    refuse_replicas(model, "model")
    return FrozenModel(model, fold_batchnorm, channels_last, dtype)


def as_frozen(model: nn.Module | FrozenModel) -> FrozenModel:
    """Take a view as it is; make the default one of a module."""
    return model if isinstance(model, FrozenModel) else frozen(model)


@contextmanager
def forked_rng(device: torch.device) -> Iterator[None]:
    """Put the random state back after the block, whatever happens in it, and leave inference mode for its length.

    Within a CUDA graph of the caller's the device's random state cannot be read, and is left alone.
    """
    gpu = device.type == "cuda" and not torch.cuda.is_current_stream_capturing()
    with torch.inference_mode(False), torch.random.fork_rng([device] if gpu else []):
        yield


class _PlainNetwork:
    """The user's own modules with detached parameters, set to eval mode for the length of a call."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        own = tensors(model)
        self._names = list(own)
        self._copies = Copies([(value, not isinstance(value, nn.Parameter)) for value in own.values()])
        self.fits, self.shared = self._copies.fits, self._copies.shared
        self.convert(dtype=None, channels_last=False)

    def convert(self, *, dtype: torch.dtype | None, channels_last: bool) -> None:
        self._copies.convert(dtype, channels_last)
        self.use(self.values())

    @torch.no_grad()
    def values(self) -> list[Tensor]:
        return self._copies.values()

    def use(self, values: list[Tensor]) -> None:
        self._tensors = dict(zip(self._names, values, strict=True))

    def __call__(self, x: Tensor):
        with _evaluating(self._model):
            return functional_call(self._model, self._tensors, (x,))


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode by setting the flags alone, so that an overridden ``train()`` cannot interfere with their return."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        for module, _ in modes:
            module.training = False
        yield
    finally:
        for module, training in modes:
            module.training = training


def _evaluate(run, x: Tensor, channels_last: bool, native: torch.dtype | None, dtype: torch.dtype | None):
    x = x.to(dtype or native or x.dtype)
    if channels_last and x.dim() == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    outputs = run(x)
    if dtype is None:
        return outputs
    return pytree.tree_map_only(Tensor, _at_least_float32, outputs)


def _at_least_float32(output: Tensor) -> Tensor:
    return output.to(torch.promote_types(output.dtype, torch.float32)) if output.is_floating_point() else output


def _agree(outputs: object, expected: object) -> bool:
    outputs, form = pytree.tree_flatten(outputs)
    expected, expected_form = pytree.tree_flatten(expected)
    if form != expected_form:
        return False
    for output, wanted in zip(outputs, expected, strict=True):
        if not isinstance(wanted, Tensor):
            if output != wanted:
                return False
        elif output.shape != wanted.shape or output.dtype != wanted.dtype:
            return False
        elif wanted.is_floating_point():
            largest = torch.nan_to_num(wanted.abs(), 0, 0, 0).amax().item() if wanted.numel() else 0.0
            allowed = _AGREEMENT.get(wanted.dtype, 1e-3) * max(largest, 1e-6)
            if not torch.allclose(output, wanted, rtol=0.0, atol=allowed, equal_nan=True):
                return False
        elif not torch.equal(output, wanted):
            return False
    return True
