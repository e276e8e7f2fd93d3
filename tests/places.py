"""Calls whose tensors travel to the device of the backend under test and back."""

from __future__ import annotations

import torch

_device = torch.device("cpu")


def stand_on(device: torch.device) -> torch.device:
    """Make ``device`` the one that calls go to; returns the one before."""
    global _device
    before, _device = _device, device
    return before


def there(value):
    """A tensor on the device; anything else as it is."""
    return value.to(_device) if isinstance(value, torch.Tensor) else value


def here(value):
    """A result's tensors on the CPU."""
    if isinstance(value, torch.Tensor):
        return value.cpu()
    parts = map(here, value)
    return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)


def moving(function, in_place=()):
    """The function on the device; tensors that it changes ``in_place`` change here too."""

    def call(*arguments, **options):
        if _device.type == "cpu":
            return function(*arguments, **options)
        moved = {name: there(value) for name, value in options.items()}
        result = here(function(*map(there, arguments), **moved))
        for name in in_place:
            if options.get(name) is not None:
                options[name].copy_(moved[name])
        return result if options.get("out") is None else options["out"]

    return call
