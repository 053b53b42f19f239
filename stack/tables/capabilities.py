"""What a device can do with tables, and the one line that refuses the rest with the alternatives.

Facts about torchrec 1.8 and fbgemm-gpu 1.8, each tried by `tests/tables/test_capabilities.py` where there is the
device for it: a new version that can do more fails there.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import TypeVar

from stack.base.errors import ConfigError, UnknownNameError
from stack.tables.config import Communication, TableSpec
from stack.tables.placement import RowType, Sharding, TableOptimizer

SHARDED_ANYWHERE = tuple(Sharding)
"""One-id bags, padded to one number, are the same work for all of them. Tried over gloo; over NCCL nothing was run."""

REPLICATED_OPTIMIZERS = (TableOptimizer.rowwise_adagrad, TableOptimizer.adagrad, TableOptimizer.sgd)
"""What `stack.tables.replicated` writes out; a row without a gradient stays as it is under all of them."""


SUMMED_ON_THE_WAY = (Sharding.row_wise, Sharding.table_row_wise, Sharding.grid)
"""Their answers come through a reduce-scatter, which cannot add numbers in int8."""


@dataclass(frozen=True, kw_only=True)
class Capabilities:
    """What one kind of device can do."""

    device: str
    shardings: tuple[Sharding, ...]
    optimizers: tuple[TableOptimizer, ...]
    row_types: tuple[RowType, ...]
    communications: tuple[Communication, ...]
    stochastic_rounding: bool


CAPABILITIES = {
    "cpu": Capabilities(
        device="cpu",
        shardings=SHARDED_ANYWHERE,
        optimizers=(TableOptimizer.rowwise_adagrad, TableOptimizer.adagrad, TableOptimizer.sgd),
        row_types=(RowType.fp32, RowType.fp16),
        communications=(Communication.fp32, Communication.fp16, Communication.int8),
        stochastic_rounding=False,
    ),
    "cuda": Capabilities(
        device="cuda",
        shardings=SHARDED_ANYWHERE,
        optimizers=tuple(TableOptimizer),
        row_types=(RowType.fp32, RowType.fp16),
        communications=tuple(Communication),
        stochastic_rounding=True,
    ),
}


def capabilities(device: str) -> Capabilities:
    """Of "cpu" or "cuda"; raises `UnknownNameError` for another."""
    if device not in CAPABILITIES:
        raise UnknownNameError("device", device, CAPABILITIES)
    return CAPABILITIES[device]


def check_capable(
    specs: Iterable[TableSpec],
    *,
    device: str,
    optimizer: TableOptimizer,
    data_parallel_mib: float,
    stochastic_rounding: bool = False,
    communication: Communication = Communication.fp32,
) -> None:
    """Raises `ConfigError` naming the first thing that the device cannot do, and what it can do instead."""
    able = capabilities(device)
    specs = list(specs)
    _check("optim.tables", optimizer, able.optimizers, device)
    _check("tables.communication", communication, able.communications, device)
    if stochastic_rounding and not able.stochastic_rounding:
        raise ConfigError(
            f"tables.stochastic_rounding=true is not possible on {device}, which rounds to the nearest: set it to "
            "false, and tables.row_type=fp32 where small steps must count"
        )
    for spec in specs:
        _check(f"tables.row_type of table '{spec.name}'", spec.dtype, able.row_types, device)
        _check(f"tables.sharding of table '{spec.name}'", spec.sharding, able.shardings, device)
        if communication is Communication.int8 and spec.sharding in SUMMED_ON_THE_WAY:
            raise ConfigError(
                f"tables.communication=int8 is not possible for table '{spec.name}', which is {spec.sharding.value}: "
                "its vectors are summed on the way; choose fp16, or the sharding table_wise or column_wise"
            )
        if spec.sharding is Sharding.data_parallel:
            _check_replicated(spec, optimizer, data_parallel_mib)


def _check_replicated(spec: TableSpec, optimizer: TableOptimizer, limit_mib: float) -> None:
    mib = spec.weight_bytes / 2**20
    if mib > limit_mib:
        raise ConfigError(
            f"table '{spec.name}' has {mib:,.2f} MiB, too much for tables.sharding=data_parallel with "
            f"tables.data_parallel_mib={limit_mib:g}, since its whole gradient is summed in every step: choose "
            "row_wise or table_wise, or raise the limit"
        )
    if optimizer not in REPLICATED_OPTIMIZERS:
        raise ConfigError(
            f"table '{spec.name}' is data_parallel, which works with optim.tables="
            f"{_names(REPLICATED_OPTIMIZERS)}, not with {optimizer.value}: choose one of them, or table_wise"
        )


_Choice = TypeVar("_Choice", bound=Enum)


def _check(option: str, chosen: _Choice, possible: tuple[_Choice, ...], device: str) -> None:
    if chosen not in possible:
        raise ConfigError(f"{option}={chosen.value} is not possible on {device}: choose {_names(possible)}")


def _names(choices: Iterable[Enum]) -> str:
    *most, last = [choice.value for choice in choices]
    return f"{', '.join(most)} or {last}" if most else str(last)
