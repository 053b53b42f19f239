"""A stage of runs that change their number of processes and the sharding of their tables on the way:

python -m tests.distributed.worlds_worker <arguments of `Run` as JSON> <sharding> ...

Each goes on from its newest version, for as many steps as `train.max_steps` has more than the version. What the model
holds after it is restored, and again at the end, is compared bit for bit with what the chain gives.
"""

from __future__ import annotations

import sys
from dataclasses import replace

import msgspec
import torch
from torch import Tensor, nn

from stack.base.dist import process_group
from stack.checkpoint.chain import chain_of
from stack.checkpoint.load import Checkpoint
from stack.tables.config import Sharding
from stack.tables.shard import dense_module, dense_parameters, dense_tensors, table_shards
from stack.train.build import build_loop
from stack.train.id_state import id_maps
from stack.train.optim import optimizer_state
from stack.train.ranks import barrier
from stack.train.resume import sound_checkpoint
from stack.train.run_folder import write_facts
from tests.train.worker import Run, setup_of

CPU = torch.device("cpu")


def assert_same(model: nn.Module, optimizer: torch.optim.Optimizer, checkpoint: Checkpoint) -> int:
    """Everything that this process holds is what the version says; returns the numbers of tables compared."""
    maps = id_maps(model)
    managed = {} if maps is None else maps.state()
    num_values = 0
    for shard in table_shards(model):
        saved_shape = checkpoint.manifest.tables[shard.name].shape
        if shard.name in managed:
            own, saved = managed[shard.name], checkpoint.map_state(shard.name)
            place = torch.searchsorted(saved.key_N, own.key_N)
            assert torch.equal(saved.key_N[place], own.key_N), f"{shard.name}: keys"
            assert torch.equal(saved.count_N[place], own.count_N), f"{shard.name}: counts"
            here, there = own.row_N - shard.first_row, saved.row_N[place]
            read = checkpoint.table_rows(shard.name, 0, saved_shape.num_rows)
        else:
            here = torch.arange(len(shard.weight_ND))
            there = here
            read = checkpoint.table_rows(
                shard.name, shard.first_row, len(here), first_column=shard.first_column, num_columns=shard.num_columns
            )  # fmt: skip
        pairs = [(shard.weight_ND, read.weight_ND), *((value, read.state[key]) for key, value in shard.state.items())]
        for ours, theirs in pairs:
            assert _bits(ours[here], theirs[there]), f"{shard.name}: numbers"
            num_values += here.numel()
    for ours, theirs in (
        (dense_tensors(model), checkpoint.dense()),
        (_optimizer(model, optimizer), checkpoint.optimizer()),
    ):
        assert ours.keys() == theirs.keys()
        assert all(_bits(value, theirs[name]) for name, value in ours.items())
    return num_values


def _optimizer(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    return optimizer_state(optimizer, dense_parameters(model))


def _bits(one: Tensor, other: Tensor) -> bool:
    one, other = one.detach().contiguous(), other.detach().contiguous()
    same = one.shape == other.shape and one.dtype == other.dtype
    return same and torch.equal(one.reshape(-1).view(torch.uint8), other.reshape(-1).view(torch.uint8))


def stage(run: Run, sharding: Sharding, *, first: bool, world_size: int) -> None:
    setup = setup_of(run)
    setup = replace(setup, tables=replace(setup.tables, sharding=sharding, data_parallel_mib=0.0))
    chain = chain_of(setup.chain_place)
    checkpoint = sound_checkpoint(chain, setup.checkpoint)
    barrier()
    if first:
        chain_of(setup.chain_place, for_writing=True)
        step = 0 if checkpoint is None else checkpoint.manifest.step
        write_facts(
            run.folder, composed=setup.composed, seed=0, world_size=world_size, device=CPU, first_step=step
        )  # fmt: skip
    barrier()
    loop = build_loop(setup, device=CPU, checkpoint=checkpoint)
    model, optimizer = loop.stepper.model, loop.stepper.optimizer
    if checkpoint is not None:
        assert assert_same(model, optimizer, checkpoint) > 0
        assert loop.step == checkpoint.manifest.step
    assert loop.run()
    saved = sound_checkpoint(chain, setup.checkpoint)
    assert saved is not None
    assert saved.manifest.step == loop.num_steps
    assert saved.manifest.world_size == world_size
    assert assert_same(model, optimizer, saved) > 0
    assert dict(dense_module(model).named_parameters())
    barrier()


if __name__ == "__main__":
    torch.set_num_threads(1)
    with process_group(device=CPU) as world:
        for text, name in zip(sys.argv[1::2], sys.argv[2::2], strict=True):
            stage(msgspec.json.decode(text, type=Run), Sharding[name], first=world.first, world_size=world.size)
