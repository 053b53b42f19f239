"""Vectors and gradients between processes in fewer bytes: TorchRec's codecs, none of its silent replacements."""

from __future__ import annotations

import torch
from torchrec.distributed.fbgemm_qcomm_codec import CommType, QCommsConfig, get_qcomm_codecs_registry
from torchrec.distributed.types import QuantizedCommCodecs

from stack.tables.config import Communication

_TYPES = {
    Communication.fp32: CommType.FP32,
    Communication.fp16: CommType.FP16,
    Communication.bf16: CommType.BF16,
    Communication.int8: CommType.INT8,
}


def codecs(communication: Communication, device: torch.device) -> dict[str, QuantizedCommCodecs] | None:
    """For `EmbeddingBagCollectionSharder`; None for fp32. On the CPU TorchRec would send bf16 as fp16 and say so in its
    log: that is refused before (`stack.tables.capabilities`)."""
    kind = _TYPES[communication]
    config = QCommsConfig(forward_precision=kind, backward_precision=kind)
    found: dict[str, QuantizedCommCodecs] | None = get_qcomm_codecs_registry(config, device=device)
    return found
