"""The maps of ids in a model."""

from __future__ import annotations

from torch import nn

from stack.ids.maps import IdMaps


def id_maps(model: nn.Module) -> IdMaps | None:
    """The maps in a model's tables, None where all ids are rows already."""
    return next((module for module in model.modules() if isinstance(module, IdMaps)), None)
