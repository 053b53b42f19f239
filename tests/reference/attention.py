"""Attention one pair at a time, over the events that are given (no masks: cut the arrays)."""

from __future__ import annotations

import numpy as np


def relu(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0)


def softmax(x: np.ndarray) -> np.ndarray:
    powers = np.exp(x - x.max())
    return powers / powers.sum()


def query_attention(
    states_LS: np.ndarray,
    property_LP: np.ndarray,
    context_C: np.ndarray,
    *,
    first: tuple[np.ndarray, np.ndarray],
    second: tuple[np.ndarray, np.ndarray],
    scalar: np.ndarray,
) -> np.ndarray:
    """DUPN's equation 7: (S,). `first` and `second` are (weight, bias); the first sees [h_t ; p_t ; q ; u]."""
    logits = []
    for h, p in zip(states_LS, property_LP, strict=True):
        hidden = relu(first[0] @ np.concatenate([h, p, context_C]) + first[1])
        logits.append(float(scalar @ relu(second[0] @ hidden + second[1])))
    return np.sum([a * h for a, h in zip(softmax(np.array(logits)), states_LS, strict=True)], axis=0)


def target_logits(
    candidate_K: np.ndarray,
    keys_LK: np.ndarray,
    *,
    unit_key: np.ndarray,
    unit_candidate: tuple[np.ndarray, np.ndarray],
    unit_product: np.ndarray,
    scalar: tuple[np.ndarray, float],
) -> np.ndarray:
    """(L,): w . relu(A k + B v + C (k * v) + b) + bias for each key."""
    return np.array(
        [
            scalar[0]
            @ relu(
                unit_key @ k + unit_candidate[0] @ candidate_K + unit_product @ (k * candidate_K) + unit_candidate[1]
            )
            + scalar[1]
            for k in keys_LK
        ]
    )
