"""What a network answers: its logits alone, or also the features that its classifier saw."""

from __future__ import annotations

from torch import Tensor, fx, nn

from amkd_fast.attacks.parallel import refuse_replicas


class LogitsOf(nn.Module):
    """A network that answers with more than its logits, as the methods take it: images in, logits [B, K] out.

    The logits are the first of a tuple or list, or the attribute ``logits``; a tensor is passed through. Parameters,
    buffers and layers are the network's own; the mode is the one that the network has now.

    Args:
        network: The network; its ``forward`` takes the images as its first argument.

    Raises:
        TypeError: When called: the network's answer holds no logits in a place above.

    Example:
        >>> import torch
        >>> from amkd_fast.methods import LogitsOf
        >>> class Network(torch.nn.Module):
        ...     def forward(self, images):
        ...         return 2.0 * images, {"feats": [images]}
        >>> LogitsOf(Network())(torch.ones(1, 2))
        tensor([[2., 2.]])
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.training = network, network.training

    def forward(self, images: Tensor) -> Tensor:
        outputs = self.network(images)
        if isinstance(outputs, (tuple, list)):
            return outputs[0]
        if isinstance(outputs, Tensor):
            return outputs
        if isinstance(outputs, fx.Proxy):  # when the attack traces the network to fold it
            return outputs  # type: ignore[return-value]  # it stands for the tensor
        if not hasattr(outputs, "logits"):
            raise TypeError(
                f"{type(self.network).__name__} returned a {type(outputs).__name__}: must be a tensor, a tuple that "
                "begins with one, or an object with logits"
            )
        return outputs.logits


def with_features(
    network: nn.Module, images: Tensor, role: str = "student", asked: str = "space='features'"
) -> tuple[Tensor, Tensor]:
    """Logits [B, K] of ``images``, and the features [B, D] that the network's last linear layer made them of.

    ``role`` is the network's name in an error, ``asked`` what wants the features.

    Raises:
        ValueError: The network is spread over devices, has no linear layer, or its forward pass did not go through the
            last one (a compiled network's does not).
    """
    refuse_replicas(network, role)
    linear = [module for module in network.modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise ValueError(f"{asked}: {role} must have a torch.nn.Linear as its classifier, it has none")
    seen: list[Tensor] = []
    hook = linear[-1].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        logits = network(images)
    finally:
        hook.remove()
    if len(seen) != 1:
        raise ValueError(
            f"{asked}: {role} must run its last torch.nn.Linear once, it ran {len(seen)} times "
            "(a compiled network hides it)"
        )
    return logits, seen[0].flatten(1)
