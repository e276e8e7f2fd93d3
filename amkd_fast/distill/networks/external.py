"""Networks that are not ours: ``module:factory`` and ``timm:NAME``. Finding and building them runs their code."""

from __future__ import annotations

import importlib
import re
import sys
from functools import partial
from types import ModuleType
from typing import Any

from torch import nn

from amkd_fast.distill import broken_torchvision, state_dict_file
from amkd_fast.distill.errors import UserError
from amkd_fast.distill.networks import timm_weights
from amkd_fast.distill.networks.names import Factory

_TIMM, PRETRAINED = "timm:", "@pretrained"


def find(name: str, what: str) -> Factory:
    """What builds the network called ``name``, a name with a colon.

    Raises:
        UserError: There is no such module, factory or model; the message begins with ``what``.
    """
    return _timm(name.removeprefix(_TIMM), what) if name.startswith(_TIMM) else _factory(name, what)


def attribute(name: str, what: str, form: str) -> object:
    """What an importable module has by the name behind the colon.

    Args:
        name: ``module:attribute``, the module as in an import statement.
        what: Where the name was given; it begins the message.
        form: How such a name is written, for the message.

    Raises:
        UserError: There is no such module or attribute, or its import fails.
    """
    module, _, attribute = name.partition(":")
    if not attribute.isidentifier() or not all(part.isidentifier() for part in module.split(".")):
        raise UserError(f"{what}: must be {form}")
    if "" not in sys.path:
        sys.path.insert(0, "")  # for good, like `python -m`: the factory or the network may import more later
    found = _import(module, what, f"there is no module {module}, also not in this folder")
    if not hasattr(found, attribute):
        raise UserError(f"{what}: module {module} has no {attribute}")
    return getattr(found, attribute)


def _factory(name: str, what: str) -> Factory:
    factory = attribute(name, what, "module:factory, the module as in an import statement, or timm:NAME")
    attribute_name = name.partition(":")[2]
    if not callable(factory):
        raise UserError(f"{what}: {attribute_name} is a {type(factory).__name__}: must be a function or class")
    return partial(_build, what, f"{attribute_name}(channels=…, classes=…)", factory)


def _timm(model: str, what: str) -> Factory:
    if broken_torchvision.is_aside():
        raise UserError(f"{what}: timm needs a torchvision that matches your torch; the one installed does not")
    timm = _import(
        "timm", what, "timm is not installed: run `pip install timm` with a torchvision that matches your torch"
    )
    model, pretrained = model.removesuffix(PRETRAINED), model.endswith(PRETRAINED)
    if "@" in model:
        raise UserError(f"{what}: nothing but {PRETRAINED} may stand behind a model of timm")
    if not timm.is_model(model):
        raise UserError(f"{what}: timm has no model {model}; timm.list_models() lists them")
    path = timm_weights.find(timm, model, what) if pretrained else None

    def create(*, channels: int, classes: int) -> nn.Module:
        options: dict[str, Any] = {"in_chans": channels, "num_classes": classes}
        if path is not None:
            options["pretrained_cfg_overlay"] = {"state_dict": state_dict_file.read(path)}
        with timm_weights.offline():
            return timm.create_model(model, pretrained=path is not None, **options)

    return partial(_build, what, "timm.create_model", create)


def _import(name: str, what: str, absent: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError) and error.name and f"{name}.".startswith(f"{error.name}."):
            raise UserError(f"{what}: {absent}") from error
        raise UserError(f"{what}: importing {name} raised {told(error)}") from error


def _build(what: str, call: str, factory: Factory, *, channels: int, classes: int) -> nn.Module:
    try:
        network = factory(channels=channels, classes=classes)
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        raise UserError(f"{what}: {call} raised {told(error)}") from error
    if not isinstance(network, nn.Module):
        raise UserError(f"{what}: {call} returned a {type(network).__name__}: must be a torch.nn.Module")
    return network


def told(error: BaseException) -> str:
    """An error of the user's code in one line."""
    text = re.sub(r"\s+", " ", str(error)).strip()[:200]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
