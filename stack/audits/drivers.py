"""Which inputs make a layer drift: what each adds to the difference between live traffic and the sample.

The first norm of a head normalises W x + b, where x is [user ; candidate]. The mean that a channel c has on live
traffic less the one it has on the sample (all rows weighing 1) is therefore a sum over the columns k of x::

    sum over k of W_ck (live mean of x_k - sample mean of x_k)

told in the deviations that the channel has learnt. Columns without a name of their own are taken together: the user's
representation, the encoded candidate, the interest. A layer that standardises features names its channels itself.

Legend: E examples, C candidate columns, K columns of x, D channels.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import msgspec
import numpy as np
import torch
from torch import Tensor, nn

from stack.audits.moments import Floats
from stack.audits.norm_stats import LayerDrift, NormLayer, norm_layers
from stack.audits.traffic import WeightOf
from stack.data.batch import Batch, to_device
from stack.data.schema import Schema
from stack.layers.mlp import JoinedMLP
from stack.layers.norm import Standardize
from stack.model import UserModel
from stack.tasks import Task

NUM_TOLD = 5
USER, CANDIDATE, INTEREST = "user representation", "encoded candidate", "interest"


class Driver(msgspec.Struct, frozen=True, kw_only=True):
    """An input of a layer: by how many deviations it moves the channels (root mean square), and the one that it moves
    most."""

    name: str
    shift: float
    most: float


@dataclass(kw_only=True)
class _Means:
    """Of the columns of a join's input, over examples that weigh what they stand for, and over examples alike."""

    names: Sequence[str]
    live_K: Floats = field(init=False)
    sample_K: Floats = field(init=False)
    weight: float = 0.0
    num_sampled: int = 0

    def __post_init__(self) -> None:
        self.live_K, self.sample_K = np.zeros(len(self.names)), np.zeros(len(self.names))

    def add_live(self, x_EK: Floats, weight_E: Floats) -> None:
        self.live_K += weight_E @ x_EK
        self.weight += float(weight_E.sum())

    def add_sample(self, x_EK: Floats) -> None:
        self.sample_K += x_EK.sum(axis=0)
        self.num_sampled += len(x_EK)

    @property
    def known(self) -> bool:
        return self.weight > 0 and self.num_sampled > 0

    def differences(self) -> Floats:
        return np.asarray(self.live_K / self.weight - self.sample_K / self.num_sampled)


def drivers(
    model: UserModel, batches: Iterable[Batch], weight_of: WeightOf, *, schema: Schema,
    drifts: Mapping[str, LayerDrift], sample: Iterable[Batch] | None = None,
) -> dict[str, tuple[Driver, ...]]:  # fmt: skip
    """By layer, those inputs first that move its channels most. Layers behind others are left out: what moves them are
    the layers before. `model` in evaluation mode. `sample`: None where the rows of `batches` are the sample, too."""
    joins = dict(_joins(model))
    means = {name: _Means(names=_columns(model, name, join, schema)) for name, join in joins.items()}
    device = next(model.user.parameters()).device

    def inputs(of: Iterable[Batch]) -> Iterator[tuple[_Means, Floats, Floats]]:
        """Of each join and batch: its means, its rows, and what these stand for."""
        with _inputs(joins) as given, torch.no_grad():
            for batch in of:
                model(to_device(batch, device))
                for name, x_EK in given.items():
                    weight_E = weight_of(batch.groups[_task(model, name).group]).cpu().numpy()
                    if weight_E.sum() > 0:
                        yield means[name], x_EK.double().cpu().numpy(), weight_E
                given.clear()

    for mean, x_EK, weight_E in inputs(batches):
        mean.add_live(x_EK, weight_E)
        if sample is None:
            mean.add_sample(x_EK)
    for mean, x_EK, _ in inputs(sample or ()):
        mean.add_sample(x_EK)
    layers = norm_layers(model)
    found = {name: _of_join(joins[name], layers[name], means[name]) for name in joins if means[name].known}
    for name, layer in layers.items():
        if isinstance(layer, Standardize):
            dense = schema.group(_task(model, name).group).dense
            found[name] = _first(zip(dense, drifts[name].moments.shift_D[:, None], strict=True))
    return found


def _of_join(join: JoinedMLP, layer: NormLayer, means: _Means) -> tuple[Driver, ...]:
    weight_DK = join.first.weight.detach().double().cpu().numpy()
    deviation_D = (layer.statistics.running_var_D.double() + layer.eps).sqrt().cpu().numpy()
    part_DK = weight_DK * means.differences() / deviation_D[:, None]
    names = np.array(means.names)
    return _first((name, part_DK[:, names == name].sum(axis=1)) for name in dict.fromkeys(means.names))


def _first(shifts: Iterable[tuple[str, Floats]]) -> tuple[Driver, ...]:
    found = [
        Driver(name=name, shift=float(np.sqrt(np.mean(shift_D**2))), most=float(shift_D[np.abs(shift_D).argmax()]))
        for name, shift_D in shifts
        if np.isfinite(shift_D).all()
    ]
    return tuple(sorted(found, key=lambda one: -one.shift)[:NUM_TOLD])


def _joins(model: UserModel) -> Iterator[tuple[str, JoinedMLP]]:
    """Those whose first map is followed by a norm with running statistics, by the norm's name."""
    layers = norm_layers(model)
    for task in model.tasks:
        for path, module in model.task(task).named_modules():
            name = f"{task}.{path}.activate.0"
            if isinstance(module, JoinedMLP) and name in layers:
                yield name, module


def _task(model: UserModel, layer: str) -> Task:
    return model.task(layer.partition(".")[0])


def _columns(model: UserModel, layer: str, join: JoinedMLP, schema: Schema) -> list[str]:
    """The name of each column of x."""
    task = _task(model, layer)
    dense = list(schema.group(task.group).dense) if getattr(task, "standardize", None) is not None else []
    target = getattr(task, "target", None)
    num_interest = 0 if target is None else target.num_values
    num_candidate = join.first.in_features - join.num_user - num_interest - len(dense)
    return [USER] * join.num_user + [CANDIDATE] * num_candidate + [INTEREST] * num_interest + dense


@contextmanager
def _inputs(joins: Mapping[str, JoinedMLP]) -> Iterator[dict[str, Tensor]]:
    """What each was last given, (E, K), for as long as the block runs."""
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> object:
        def hook(_: nn.Module, arguments: tuple[Tensor, Tensor, Tensor]) -> None:
            user_MR, candidate_EC, moment_E = arguments
            seen[name] = torch.cat([user_MR[moment_E], candidate_EC], dim=1)

        return joins[name].register_forward_pre_hook(hook)

    handles = [keep(name) for name in joins]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()  # type: ignore[attr-defined]
