"""Networks that answer with more than their logits."""

from __future__ import annotations

from torch import Tensor, fx, nn


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
        >>> from amkd_fast.distill.methods import LogitsOf
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
        if isinstance(outputs, (Tensor, fx.Proxy)):  # a proxy: when the attack traces the network to fold it
            return outputs
        if not hasattr(outputs, "logits"):
            raise TypeError(
                f"{type(self.network).__name__} returned a {type(outputs).__name__}: must be a tensor, a tuple that "
                "begins with one, or an object with logits"
            )
        return outputs.logits
