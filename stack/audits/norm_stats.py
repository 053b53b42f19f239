"""The statistics that normalisation layers have learnt, against those of traffic.

A layer (`stack.layers.norm.BatchNorm`, `Standardize`) is served with the running mean and variance of what training
saw. Where training saw a sample (clicks kept, negatives thinned), these are not those of live traffic: figures on
sampled days rise, and users are scored by numbers that are shifted. Here each layer's input is taken from the model as
it is served, weighted to be live traffic, and compared channel by channel. What is different is told in the layer's own
deviations, with its error.

Legend: N rows (examples of a task, or moments), D channels of a layer.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from stack.audits.moments import ChannelSums, Floats, Moments
from stack.audits.traffic import WeightOf
from stack.data.batch import Batch, to_device
from stack.layers.norm import BatchNorm, Standardize
from stack.model import UserModel

NormLayer = BatchNorm | Standardize
_DEAD = 1e-12
"""Variance below which a channel never varies."""


@dataclass(frozen=True, kw_only=True)
class LayerDrift:
    """One layer: `moments` of its input, in deviations from the running mean (sqrt of running variance + eps), and what
    the layer has learnt. A channel (D,) is `dead` where it never varied in training or in traffic, `broken` where what
    was learnt is not finite."""

    name: str
    task: str
    kind: str
    momentum: float
    num_batches: int
    num_rows: int
    mean_D: Floats
    variance_D: Floats
    eps: float
    moments: Moments

    @property
    def broken(self) -> NDArray[np.bool_]:
        return ~(np.isfinite(self.mean_D) & np.isfinite(self.variance_D))

    @property
    def dead(self) -> NDArray[np.bool_]:
        return np.asarray((self.variance_D < _DEAD) | (self.moments.ratio_D * (self.variance_D + self.eps) < _DEAD))

    def live_statistics(self) -> tuple[Floats, Floats]:
        """Mean and variance (D,) of the traffic, as the layer would have them."""
        scale_D = self.variance_D + self.eps
        return self.mean_D + self.moments.shift_D * np.sqrt(scale_D), self.moments.ratio_D * scale_D


def norm_layers(model: UserModel) -> dict[str, NormLayer]:
    """All layers with running statistics, by name (`ctr.head.activate.0`), in the order in which data meet them."""
    return {
        f"{task}.{path}": layer
        for task in model.tasks
        for path, layer in model.task(task).named_modules()
        if isinstance(layer, NormLayer)
    }


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What a layer was given: sums over its channels, in deviations from what it has learnt, and how many rows."""

    sums: ChannelSums
    num_rows: int = 0

    def __add__(self, other: Seen) -> Seen:
        return Seen(sums=self.sums + other.sums, num_rows=self.num_rows + other.num_rows)


def seen_by(model: UserModel, batches: Iterable[Batch], weight_of: WeightOf) -> dict[str, Seen]:
    """What all layers of a model in evaluation mode are given on `batches`, by layer.

    Raises: `ValueError` for a model that is in training mode: it would learn from what it is shown.
    """
    layers = norm_layers(model)
    for name, layer in layers.items():
        if layer.training:
            raise ValueError(f"layer {name!r} is in training mode: audit a model in evaluation mode")
    sums = {name: ChannelSums(num_channels=len(layer.statistics.running_mean_D)) for name, layer in layers.items()}
    num_rows = dict.fromkeys(layers, 0)
    device = next(model.user.parameters()).device
    with _inputs(layers) as given, torch.no_grad():
        for batch in batches:
            model(to_device(batch, device))
            for name, x_ND in given.items():
                weight_N, request_N = _rows(model, name, batch, weight_of)
                assert len(x_ND) == len(weight_N), f"{name} is given {len(x_ND)} rows, {len(weight_N)} are known"
                sums[name].add(_relative(layers[name], x_ND), weight_N, request_N)
                num_rows[name] += len(x_ND)
            given.clear()
    return {name: Seen(sums=sums[name], num_rows=num_rows[name]) for name in layers}


def drift(model: UserModel, batches: Iterable[Batch], weight_of: WeightOf) -> dict[str, LayerDrift]:
    """Compares all layers with the input that they get on `batches` (`seen_by`)."""
    seen = seen_by(model, batches, weight_of)
    return {name: _drift(name, layer, seen[name]) for name, layer in norm_layers(model).items()}


@contextmanager
def replaced(layers: Mapping[str, NormLayer], statistics: Mapping[str, tuple[Floats, Floats]]) -> Iterator[None]:
    """Other means and variances (D,) in some layers, for as long as the block runs."""
    before = {
        name: (
            layers[name].statistics.running_mean_D.numpy(force=True).copy(),
            layers[name].statistics.running_var_D.numpy(force=True).copy(),
        )
        for name in statistics
    }
    try:
        for name, (mean_D, variance_D) in statistics.items():
            put(layers[name], mean_D, variance_D)
        yield
    finally:
        for name, (mean, variance) in before.items():
            put(layers[name], mean, variance)


def live_statistics(
    model: UserModel, batches: Iterable[Batch], weight_of: WeightOf
) -> dict[str, tuple[Floats, Floats]]:
    """The mean and variance of each layer's input where all layers before it have those of the traffic, too: one pass
    over `batches`, which must be the same each time they are gone through, for each layer that stands behind others.

    ("Precise" batch norm of Wu and Johnson 2021, "Rethinking 'Batch' in BatchNorm", with weights. Where a channel has
    no finite value, it keeps what was learnt.)
    """
    layers = norm_layers(model)
    found: dict[str, tuple[Floats, Floats]] = {}
    waiting = {task: [name for name in layers if name.startswith(f"{task}.")] for task in model.tasks}
    while any(waiting.values()):
        next_of_each = [names.pop(0) for names in waiting.values() if names]
        with replaced(layers, found):
            drifts = drift(model, batches, weight_of)
        for name in next_of_each:
            mean_D, variance_D = drifts[name].live_statistics()
            known_D = np.isfinite(mean_D) & np.isfinite(variance_D)
            found[name] = (
                np.where(known_D, mean_D, drifts[name].mean_D), np.where(known_D, variance_D, drifts[name].variance_D),
            )  # fmt: skip
    return found


@contextmanager
def _inputs(layers: Mapping[str, NormLayer]) -> Iterator[dict[str, Tensor]]:
    """What each layer was last given, for as long as the block runs."""
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> object:
        def hook(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            seen[name] = arguments[0].detach()

        return layers[name].register_forward_pre_hook(hook)

    handles = [keep(name) for name in layers]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()  # type: ignore[attr-defined]


def _rows(model: UserModel, layer: str, batch: Batch, weight_of: WeightOf) -> tuple[Floats, NDArray[np.int64]]:
    """Of each row that a layer is given: its weight, and the moment it belongs to. A request of live traffic is a
    moment, whether its candidates are drawn or not."""
    task, _, path = layer.partition(".")
    if path.partition(".")[0] in model.task(task).per_moment:
        return np.ones(batch.num_moments), np.arange(batch.num_moments)
    examples = batch.groups[model.task(task).group]
    return weight_of(examples).cpu().numpy(), examples.moment_E.cpu().numpy()


def _relative(layer: NormLayer, x_ND: Tensor) -> Floats:
    mean_D, variance_D = layer.statistics.running_mean_D.double(), layer.statistics.running_var_D.double()
    return np.asarray(((x_ND.double() - mean_D) * torch.rsqrt(variance_D + layer.eps)).cpu().numpy())


def _drift(name: str, layer: NormLayer, seen: Seen) -> LayerDrift:
    statistics = layer.statistics
    return LayerDrift(
        name=name, task=name.partition(".")[0], kind="batch norm" if isinstance(layer, BatchNorm) else "standardize",
        momentum=statistics.momentum, num_batches=int(statistics.num_batches), num_rows=seen.num_rows,
        mean_D=statistics.running_mean_D.double().cpu().numpy(),
        variance_D=statistics.running_var_D.double().cpu().numpy(), eps=layer.eps, moments=seen.sums.moments(),
    )  # fmt: skip


def put(layer: NormLayer, mean_D: NDArray[np.floating], variance_D: NDArray[np.floating]) -> None:
    """Gives a layer other statistics."""
    layer.statistics.running_mean_D.copy_(torch.from_numpy(mean_D))
    layer.statistics.running_var_D.copy_(torch.from_numpy(variance_D))
