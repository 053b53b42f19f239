"""A few steps of all maps on one rank; prints what it saw as JSON. Batches are cut between ranks unevenly."""

from __future__ import annotations

import json
import sys

import torch
from torch import Tensor

from stack.base.dist import World, process_group
from stack.ids.config import IdMode, IdSpec, Implementation, ManagedConfig, Policy
from stack.ids.hashing import HashVariant
from stack.ids.maps import IdMaps

NUM_STEPS = 12


def specs(num_rows: int, implementation: Implementation) -> list[IdSpec]:
    managed = ManagedConfig(
        implementation=implementation, policy=Policy.lru, admit_after=2, interval_steps=1, waiting_per_row=10_000.0
    )
    modes = {"direct": IdMode.direct, "hashed": IdMode.hashed, "managed": IdMode.managed}
    return [
        IdSpec(name=name, mode=mode, num_rows=num_rows, hash=HashVariant.modulo, managed=managed)
        for name, mode in modes.items()
    ]


def keys_of_step(number: int) -> Tensor:
    """Of all ranks together; some are negative, 0 is among them."""
    generator = torch.Generator().manual_seed(number)
    return (torch.rand(80, generator=generator).pow(3) * 300).long() + 10 * number - 20


def share_of(keys: Tensor, world: World) -> Tensor:
    """Rank 0 of 2 has three quarters of a batch; ranks have keys in common. Rank 1 has none of the last step."""
    if world.size == 1:
        return torch.unique(keys)
    return torch.unique(keys[:60] if world.rank == 0 else keys[50:])


def run(world: World, *, num_rows: int, implementation: Implementation) -> dict[str, object]:
    maps = IdMaps(specs(num_rows, implementation))
    seen: dict[str, list[list[int]]] = {name: [] for name in maps.specs}
    resets: list[list[int]] = []
    for number in range(NUM_STEPS):
        keys = share_of(keys_of_step(number), world)
        if world.rank == 1 and number == NUM_STEPS - 1:
            keys = keys[:0]
        for name in maps.specs:
            seen[name] += zip(keys.tolist(), maps(name, keys).tolist(), [number] * len(keys), strict=True)
        resets.append(maps.drain_resets().get("managed", torch.empty(0)).tolist())
    maps.eval()
    every = torch.arange(-50, 500)
    figures = maps.figures()["managed"]
    state = maps.state()["managed"]
    return {
        "seen": seen,
        "resets": resets,
        "final": maps("managed", every).tolist(),
        "sightings": figures.num_sightings,
        "admitted": figures.num_admitted,
        "evicted": figures.num_evicted,
        "state": {name: value.tolist() for name, value in state.tensors().items()},
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    with process_group(device=torch.device("cpu")) as here:
        cases = [argument.split(":") for argument in sys.argv[1:]]
        found = {
            f"{name}:{num_rows}": run(here, num_rows=int(num_rows), implementation=Implementation(name))
            for name, num_rows in cases
        }
        sys.stdout.write(json.dumps(found))
