"""Whether a model that is about to be scored or exported computes as it is served.

A batch norm that is left in training mode normalises each request by the candidates that came with it, and learns from
them: scores depend on who else is asked for. `eval()` does not reach a module that keeps its mode, nor one that lies in
a plain list and so is no part of the model; and a batch norm without running statistics computes so in any mode.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from stack.audits.findings import Finding, Level
from stack.base.errors import AuditError
from stack.layers.norm import BatchNorm, BatchStatistics, Standardize

_WRAPPERS = frozenset({"_dmp_wrapped_module", "module"})
_NORMS = (BatchNorm, Standardize, BatchStatistics, _BatchNorm)
_REMEDY = "call model.eval() before, and register the layer as a part of its module; go by the layer's name"


def check(model: nn.Module) -> list[Finding]:
    """By layer, for a model that was put in evaluation mode: what computes as in training, and statistics that are not
    finite."""
    found: list[Finding] = []
    trains: list[str] = []
    for name, module in _parts(model):
        inner = module is not model and (model.training or name.startswith(tuple(f"{one}." for one in trains)))
        if module.training and not inner:
            trains.append(name)
            found.append(_critical(f"training mode: {name}", f"{type(module).__name__} computes as in training"))
        if isinstance(module, _BatchNorm) and module.running_mean is None:
            found.append(_critical(f"batch statistics: {name}", "it has no running statistics to be served with"))
        if isinstance(module, BatchStatistics | _BatchNorm):
            found += _not_finite(name, module)
    return found


def refuse_modes(model: nn.Module, *, what: str) -> None:
    """Raises `AuditError` naming the layers of a model with which `what` would not be what is served."""
    found = check(model)
    if found:
        more = f", and {len(found) - 1} more: {'; '.join(one.name for one in found[1:5])}" if len(found) > 1 else ""
        raise AuditError(f"{what} stops: {found[0].line}{more}")


def _parts(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """All modules by name, and the norms that are held where `eval()` does not find them."""
    for path, module in model.named_modules():
        name = ".".join(part for part in path.split(".") if part not in _WRAPPERS) or type(module).__name__
        yield name, module
        for key, held in vars(module).items():
            if not key.startswith("_"):
                yield from _hidden(f"{name}.{key}", held)


def _hidden(name: str, held: object) -> Iterator[tuple[str, nn.Module]]:
    if isinstance(held, nn.Module):
        yield from (
            (f"{name}.{path}".rstrip("."), one) for path, one in held.named_modules() if isinstance(one, _NORMS)
        )
    elif isinstance(held, list | tuple):
        for place, one in enumerate(held):
            yield from _hidden(f"{name}[{place}]", one)
    elif isinstance(held, Mapping):
        for key, one in held.items():
            yield from _hidden(f"{name}[{key!r}]", one)


def _not_finite(name: str, norm: nn.Module) -> Iterator[Finding]:
    for key, value in norm.named_buffers(recurse=False):
        num = int((~torch.isfinite(value)).sum())
        if num:
            yield Finding(
                level=Level.critical, name=f"statistics that are not finite: {name}.{key}", allowed="none",
                measured=f"{num} of {value.numel()} channels",
                remedy="go back to a version before it (`stack checkpoint list`)",
            )  # fmt: skip


def _critical(name: str, measured: str) -> Finding:
    return Finding(level=Level.critical, name=name, measured=measured, allowed="evaluation mode", remedy=_REMEDY)
