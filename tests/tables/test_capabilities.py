"""What is said to be possible on the CPU is, and what is said not to be is not, with the installed FBGEMM."""

from __future__ import annotations

import logging
import re

import pytest
import torch
from fbgemm_gpu.split_embedding_configs import EmbOptimType, SparseType
from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation
from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
    ComputeDevice,
    SplitTableBatchedEmbeddingBagsCodegen,
)
from torchrec.distributed.fbgemm_qcomm_codec import CommType, QCommsConfig, get_qcomm_codecs_registry

from stack.base.errors import ConfigError, UnknownNameError
from stack.tables.capabilities import capabilities, check_capable
from stack.tables.config import Communication, RowType, Sharding, TableOptimizer, TablesConfig, TableSpec

ITEM = TableSpec(name="item", num_rows=1000, dim=32)
FBGEMM = {
    TableOptimizer.rowwise_adagrad: EmbOptimType.EXACT_ROWWISE_ADAGRAD,
    TableOptimizer.adagrad: EmbOptimType.EXACT_ADAGRAD,
    TableOptimizer.sgd: EmbOptimType.EXACT_SGD,
    TableOptimizer.adam: EmbOptimType.ADAM,
    TableOptimizer.partial_rowwise_adam: EmbOptimType.PARTIAL_ROWWISE_ADAM,
    TableOptimizer.lamb: EmbOptimType.LAMB,
}
CPU = capabilities("cpu")


def kernel(
    optimizer: EmbOptimType = EmbOptimType.EXACT_SGD,
    weights: SparseType = SparseType.FP32,
    *,
    stochastic_rounding: bool = False,
) -> SplitTableBatchedEmbeddingBagsCodegen:
    """A table of 4,096 rows of 4 on the CPU."""
    made = SplitTableBatchedEmbeddingBagsCodegen(
        [(4096, 4, EmbeddingLocation.HOST, ComputeDevice.CPU)],
        optimizer=optimizer,
        weights_precision=weights,
        learning_rate=1.0,
        stochastic_rounding=stochastic_rounding,
    )
    made.split_embedding_weights()[0].fill_(1.0)
    return made


def step(made: SplitTableBatchedEmbeddingBagsCodegen, gradient: float) -> torch.Tensor:
    """The weights after every row had the same gradient."""
    answer = made(torch.arange(4096), torch.arange(4097))
    (answer.float() * gradient).sum().backward()
    weight: torch.Tensor = made.split_embedding_weights()[0].float()
    return weight


@pytest.mark.parametrize("optimizer", TableOptimizer)
def test_optimizers_of_the_cpu(optimizer: TableOptimizer) -> None:
    if optimizer in CPU.optimizers:
        assert (step(kernel(FBGEMM[optimizer]), 0.5) < 1.0).all()
    else:
        with pytest.raises(AssertionError, match="is not supported in CPU mode"):
            kernel(FBGEMM[optimizer])


@pytest.mark.parametrize("row_type", RowType)
def test_row_types_of_the_cpu(row_type: RowType) -> None:
    weights = SparseType[row_type.name.upper()]
    if row_type in CPU.row_types:
        assert (step(kernel(weights=weights), 0.5) == 0.5).all()
    else:
        with pytest.raises((NotImplementedError, RuntimeError)):
            step(kernel(weights=weights), 0.5)


def test_the_cpu_rounds_fp16_to_the_nearest_whatever_it_is_asked() -> None:
    # 1 - 2^-13 lies a quarter of the way from 1 to the fp16 number below it
    for asked in (False, True):
        made = kernel(weights=SparseType.FP16, stochastic_rounding=asked)
        assert set(step(made, 2.0**-13).flatten().tolist()) == {1.0}
    assert not CPU.stochastic_rounding


def test_torchrec_would_send_bf16_as_fp16_over_gloo_without_an_error(caplog: pytest.LogCaptureFixture) -> None:
    config = QCommsConfig(forward_precision=CommType.BF16, backward_precision=CommType.BF16)
    with caplog.at_level(logging.WARNING):
        get_qcomm_codecs_registry(config, device=torch.device("cpu"))
    assert "falling back to FP16" in caplog.text
    assert Communication.bf16 not in CPU.communications


@pytest.mark.parametrize(
    ("spec", "options", "text"),
    [
        (ITEM, {"optimizer": TableOptimizer.adam}, "optim.tables=adam is not possible on cpu: choose "
         "rowwise_adagrad, adagrad or sgd"),
        (ITEM, {"communication": Communication.bf16}, "tables.communication=bf16 is not possible on cpu: choose "
         "fp32, fp16 or int8"),
        (ITEM, {"communication": Communication.int8}, "tables.communication=int8 is not possible for table 'item', "
         "which is row_wise: its vectors are summed on the way; choose fp16, or the sharding table_wise or column"),
        (ITEM, {"stochastic_rounding": True}, "tables.stochastic_rounding=true is not possible on cpu, which rounds"),
        (TableSpec(name="item", num_rows=9, dim=4, dtype=RowType.bf16), {}, "tables.row_type of table 'item'=bf16 is "
         "not possible on cpu: choose fp32 or fp16"),
        (TableSpec(name="item", num_rows=9, dim=4, dtype=RowType.bf16), {"device": "cuda"}, "is not possible on cuda"),
        (TableSpec(name="item", num_rows=10**6, dim=32, sharding=Sharding.data_parallel), {}, "table 'item' has "
         "122.07 MiB, too much for tables.sharding=data_parallel with tables.data_parallel_mib=1"),
        (TableSpec(name="item", num_rows=9, dim=4, sharding=Sharding.data_parallel),
         {"device": "cuda", "optimizer": TableOptimizer.lamb}, "table 'item' is data_parallel, which works with "
         "optim.tables=rowwise_adagrad, adagrad or sgd, not with lamb"),
    ],
)  # fmt: skip
def test_what_a_device_cannot_do_is_refused_with_the_alternatives(spec: TableSpec, options: dict, text: str) -> None:
    asked = {"device": "cpu", "optimizer": TableOptimizer.rowwise_adagrad, "data_parallel_mib": 1.0} | options
    with pytest.raises(ConfigError, match=re.escape(text)) as error:
        check_capable([spec], **asked)
    assert "\n" not in str(error.value)


def test_what_it_can_do_is_not_refused() -> None:
    for device in ("cpu", "cuda"):
        able = capabilities(device)
        for sharding in able.shardings:
            for dtype in able.row_types:
                spec = TableSpec(name="item", num_rows=9, dim=4, sharding=sharding, dtype=dtype)
                for communication in set(able.communications) - {Communication.int8}:
                    check_capable(
                        [spec], device=device, optimizer=TableOptimizer.adagrad, data_parallel_mib=1.0,
                        stochastic_rounding=able.stochastic_rounding, communication=communication,
                    )  # fmt: skip


def test_unknown_devices_and_limits_below_zero_are_refused() -> None:
    with pytest.raises(UnknownNameError, match="unknown device 'tpu'; known: cpu, cuda"):
        capabilities("tpu")
    with pytest.raises(ConfigError, match=r"tables\.data_parallel_mib=-1 must be 0 or more"):
        TablesConfig(data_parallel_mib=-1)
