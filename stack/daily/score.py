"""A restored model judged on a day before it learns it, by all processes together.

Legend: E examples, U users, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torchrec.distributed.model_parallel import DistributedModelParallel

from stack.data.batch import Batch, Ids, Jagged
from stack.data.dataset import Dataset
from stack.data.schema import PADDING_ROW, Feature, Schema
from stack.evaluate.figures import Figures, figures_of
from stack.evaluate.predict import Predictions, predict
from stack.evaluate.rows import Rows
from stack.evaluate.scorer import scorer_of
from stack.model import UserModel
from stack.tables.shard import dense_module
from stack.tasks.metrics import Array


def score_day(
    model: DistributedModelParallel,
    dataset: Dataset,
    *,
    day: str,
    known: Mapping[str, int],
    device: torch.device,
    timelines_per_batch: int,
) -> Figures:
    """The figures on process 0; none on the others. The model is left in training mode.

    `known`: by table of rows, how many of them the version has that the model comes from. The model may be larger; ids
    beyond are unknown here, as they are to whoever serves that version.
    """
    user_model = dense_module(model)
    assert isinstance(user_model, UserModel)
    scorer = scorer_of(model, device=device)

    def score(batch: Batch) -> Mapping[str, Tensor]:
        return scorer(only_known(batch, known, schema=dataset.schema))

    try:
        own = predict(
            score, dataset, days=[day], tasks={name: user_model.task(name).sampling for name in user_model.tasks},
            timelines_per_batch=timelines_per_batch, rank=dist.get_rank(), world_size=dist.get_world_size(),
        )  # fmt: skip
    finally:
        model.train()
    gathered = {task: _gathered(one) for task, one in own.items()}
    return figures_of(gathered) if dist.get_rank() == 0 else {}


def only_known(batch: Batch, known: Mapping[str, int], *, schema: Schema) -> Batch:
    """The batch with ids that are beyond the `known` rows of their table made unknown; tables not in it stay."""

    def keep(ids: Ids, limit: int) -> Ids:
        if isinstance(ids, Jagged):
            return Jagged(values_N=torch.where(ids.values_N < limit, ids.values_N, PADDING_ROW), lengths=ids.lengths)
        return torch.where(ids < limit, ids, PADDING_ROW)

    def keep_all(columns: dict[str, Ids], features: tuple[Feature, ...]) -> dict[str, Ids]:
        limits = {feature.name: known[feature.table] for feature in features if feature.table in known}
        return {name: keep(ids, limits[name]) if name in limits else ids for name, ids in columns.items()}

    user = Feature(name="user", table="user")
    users = keep_all({user.name: batch.user_B}, (user,))[user.name]
    assert isinstance(users, Tensor)
    return replace(
        batch,
        user_B=users,
        event=keep_all(batch.event, schema.event),
        property=keep_all(batch.property, schema.property),
        profile=keep_all(batch.profile, schema.profile),
        query=keep_all(batch.query, schema.query),
        groups={
            name: replace(examples, ids=keep_all(examples.ids, schema.group(name).candidate))
            for name, examples in batch.groups.items()
        },
    )


def _gathered(own: Predictions) -> Predictions:
    """The predictions of all processes on process 0, in the order of ranks; what figures do not read is left out."""
    names = sorted(own.rows.labels)
    user_E = _gather(np.asarray(own.rows.user_E, dtype=np.int64)[:, None])[:, 0]
    label_EL = _gather(np.stack([own.rows.labels[name].astype(np.float64) for name in names], axis=1))
    score = _gather((own.score if own.score.ndim == 2 else own.score[:, None]).astype(np.float64))
    rows = Rows(
        group=own.rows.group,
        user_E=user_E,
        ids={},
        dense_EF=np.zeros((len(user_E), 0), dtype=np.float32),
        labels={name: label_EL[:, place] for place, name in enumerate(names)},
    )
    return Predictions(rows=rows, score=score if own.score.ndim == 2 else score[:, 0], sampling=own.sampling)


def _gather(own_EK: Array) -> Array:
    """The lines of all processes behind each other on process 0; the own ones elsewhere."""
    if dist.get_world_size() == 1:
        return own_EK
    sizes = torch.zeros(dist.get_world_size(), dtype=torch.int64)
    sizes[dist.get_rank()] = len(own_EK)
    dist.all_reduce(sizes)
    padded = torch.zeros(int(sizes.max()), own_EK.shape[1], dtype=torch.from_numpy(own_EK[:0]).dtype)
    padded[: len(own_EK)] = torch.from_numpy(own_EK)
    if dist.get_rank() > 0:
        dist.gather(padded)
        return own_EK
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.gather(padded, parts)
    return torch.cat([part[:size] for part, size in zip(parts, sizes.tolist(), strict=True)]).numpy()
