"""A model with plain tables, its checkpoint and a prepared dataset, as `stack export` gets them from a run."""

from __future__ import annotations

from pathlib import Path

import torch

from stack.checkpoint.chain import chain_of
from stack.checkpoint.config import CheckpointConfig
from stack.checkpoint.load import open_version
from stack.checkpoint.manifest import Context, Lineage, LoopState
from stack.checkpoint.save import ChainWriter, Facts
from stack.checkpoint.snapshot import State
from stack.data.dataset import Dataset
from stack.data.loader import Cursor, Loader
from stack.export.export import Trained
from stack.model import UserModel
from stack.tables.rows import TableShard
from stack.tasks import Enabled, FollowConfig, PowerConfig, RankConfig, TasksConfig
from stack.tasks.next_item import NextItemConfig
from stack.towers.config import ModelConfig
from tests.batches import small_model
from tests.plain_tables import PlainTables


def trained_run(
    folder: Path, dataset: Dataset, config: ModelConfig | None = None, *, tasks: TasksConfig | None = None
) -> Trained:
    """A model after two forward passes in training mode (so that running statistics are not the first ones)."""
    model = small_model(config, tasks=tasks, max_history=dataset.manifest.max_history)
    assert isinstance(model.tables, PlainTables)
    days = dataset.days()[:-1]
    model.train()
    for batch in Loader(dataset, days=days[:1], global_batch_size=16, num_prefetch=0):
        model(batch)
    shards = _shards(model.tables)
    context = Context(
        schema=dataset.schema, config_digest="", data_days=days, vocabulary_digests={}, code_version="test"
    )
    chain = chain_of(folder / "checkpoints", for_writing=True)
    writer = ChainWriter(chain, options=CheckpointConfig(asynchronous=False))
    writer.save(
        State(
            tables=tuple(shard.name for shard in shards),
            shards=shards,
            dense={},
            optimizer={},
            loop=LoopState(step=2, epoch=0, cursor=Cursor()),
        ),
        Facts(step=2, complete=True, context=context, lineage=Lineage(verb="train")),
    )
    return Trained(name="small", model=model.eval(), checkpoint=open_version(chain, chain.find(None)), dataset=dataset)


def ctr_alone(next_item: NextItemConfig | None = None) -> TasksConfig:
    """Clicks, and the next item where asked for."""
    return TasksConfig(
        rank=RankConfig(enabled=Enabled.never), power=PowerConfig(enabled=Enabled.never),
        follow=FollowConfig(enabled=Enabled.never), next_item=next_item or NextItemConfig(enabled=Enabled.never),
    )  # fmt: skip


def _shards(tables: PlainTables) -> list[TableShard]:
    shards = []
    for name, table in tables.tables.items():
        assert isinstance(table, torch.nn.Embedding)
        weight_ND = table.weight.detach()
        shards.append(
            TableShard(
                name=name.removeprefix("t_"),
                num_rows=len(weight_ND),
                dim=int(weight_ND.shape[1]),
                first_row=0,
                weight_ND=weight_ND,
                state={},
            )
        )
    return shards


def damage(model: UserModel) -> None:
    """Moves one parameter of the dense part."""
    with torch.no_grad():
        next(model.user.parameters()).add_(0.05)
