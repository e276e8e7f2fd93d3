"""A network's logits together with what its classifier saw."""

from __future__ import annotations

from torch import Tensor, nn

from amkd_fast.attacks.parallel import refuse_replicas


def with_features(network: nn.Module, images: Tensor, role: str = "student") -> tuple[Tensor, Tensor]:
    """Logits [B, K] of ``images``, and the features [B, D] that the network's last linear layer made them of.

    ``role`` is the network's name in an error.

    Raises:
        ValueError: The network is spread over devices, has no linear layer, or its forward pass did not go through the
            last one (a compiled network's does not).
    """
    refuse_replicas(network, role)
    linear = [module for module in network.modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise ValueError(f"space='features': {role} must have a torch.nn.Linear as its classifier, it has none")
    seen: list[Tensor] = []
    hook = linear[-1].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        logits = network(images)
    finally:
        hook.remove()
    if len(seen) != 1:
        raise ValueError(
            f"space='features': {role} must run its last torch.nn.Linear once, it ran {len(seen)} times "
            "(a compiled network hides it)"
        )
    return logits, seen[0].flatten(1)
