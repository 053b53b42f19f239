"""FBGEMM's sequence kernel, which has a vector for every id, against its pooled one with bags of one id: same result.

TorchRec uses the sequence kernel for `EmbeddingCollection`. Row-wise Adagrad; look up, backward and update together.
Vectors, weights and sums of squared gradients are compared: Adagrad divides by the root of that sum, so that a gradient
wrong by a factor would move the weights alike.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation, PoolingMode
from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
    ComputeDevice,
    SplitTableBatchedEmbeddingBagsCodegen,
)
from torch import Tensor

from stack.base.dist import own_device
from tools.bench.harness import Figure, interleaved, ratio, seconds_of

NUM_ROWS, DIM = 1_000_000, 32
NUM_IDS = (25_600, 204_800)
NUM_COMPARED = 3  # steps
_POOLING = {"sequence kernel": PoolingMode.NONE, "one-id bags": PoolingMode.SUM}


def measure(*, num_rounds: int) -> list[Figure]:
    """Millions of ids a second, one thread. Raises `AssertionError` where the kernels come to other numbers."""
    torch.set_num_threads(1)
    device = own_device()
    figures: list[Figure] = []
    for num_ids in NUM_IDS:
        kernels = {name: _kernel(pooling, device) for name, pooling in _POOLING.items()}
        for number in range(NUM_COMPARED):
            one, other = (_step(kernel, _draw(number, num_ids, device)) for kernel in kernels.values())
            torch.testing.assert_close(one, other)
        found = interleaved(
            {name: _timed(kernel, num_ids, device) for name, kernel in kernels.items()}, num_rounds=num_rounds
        )
        figures += [
            Figure(name=f"{num_ids:,} ids, {name}", unit="M ids/s", values=tuple(num_ids / s / 1e6 for s in seconds))
            for name, seconds in found.items()
        ]
        slow, fast = found.values()
        figures.append(ratio(f"{num_ids:,} ids, one-id bags over sequence kernel", slow, fast))
    return figures


def _kernel(pooling: PoolingMode, device: torch.device) -> SplitTableBatchedEmbeddingBagsCodegen:
    on_cuda = device.type == "cuda"
    location = EmbeddingLocation.DEVICE if on_cuda else EmbeddingLocation.HOST
    compute = ComputeDevice.CUDA if on_cuda else ComputeDevice.CPU
    kernel = SplitTableBatchedEmbeddingBagsCodegen(
        [(NUM_ROWS, DIM, location, compute)],
        optimizer=EmbOptimType.EXACT_ROWWISE_ADAGRAD,
        pooling_mode=pooling,
        learning_rate=0.02,
        eps=1e-8,
    )
    weight = kernel.split_embedding_weights()[0]
    weight.copy_(torch.rand(weight.shape, generator=torch.Generator().manual_seed(1)))
    return kernel


def _draw(number: int, num_ids: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Uniform ids (N,) and gradients (N, D) of step `number`."""
    generator = torch.Generator().manual_seed(number)
    ids_N = torch.randint(NUM_ROWS, (num_ids,), generator=generator)
    return ids_N.to(device), torch.randn(num_ids, DIM, generator=generator).to(device)


def _step(kernel: SplitTableBatchedEmbeddingBagsCodegen, drawn: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """The vectors of a step (N, D), and what is held after it: weights (rows, D), and a sum for each row."""
    ids_N, gradient_ND = drawn
    offsets = torch.arange(len(ids_N) + 1, device=ids_N.device)
    vector_ND: Tensor = kernel(ids_N, offsets)
    vector_ND.backward(gradient_ND)  # type: ignore[no-untyped-call]
    if ids_N.is_cuda:
        torch.cuda.synchronize()
    return vector_ND.detach(), kernel.split_embedding_weights()[0], kernel.split_optimizer_states()[0][0]


def _timed(kernel: SplitTableBatchedEmbeddingBagsCodegen, num_ids: int, device: torch.device) -> Callable[[], float]:
    numbers = itertools.count(NUM_COMPARED)

    def timed() -> float:
        drawn = _draw(next(numbers), num_ids, device)
        return seconds_of(lambda: _step(kernel, drawn))

    return timed
