"""Equations 2 to 6 of DUPN as a loop over positions, one row at a time."""

from __future__ import annotations

import numpy as np


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def property_gated_lstm(
    item_LI: np.ndarray,
    property_LP: np.ndarray,
    *,
    weight_item: np.ndarray,
    weight_property: np.ndarray,
    weight_hidden: np.ndarray,
    bias: np.ndarray,
) -> np.ndarray:
    """(L, H). Blocks of `weight_item`, `weight_hidden`, `bias`: i, f, c, o; of `weight_property`: i, f, o."""
    ei, ef, ec, eo = np.split(weight_item, 4)
    pi, pf, po = np.split(weight_property, 3)
    hi, hf, hc, ho = np.split(weight_hidden, 4)
    bi, bf, bc, bo = np.split(bias, 4)
    h = np.zeros(hi.shape[0])
    c = np.zeros(hi.shape[0])
    states = []
    for e, p in zip(item_LI, property_LP, strict=True):
        i = sigmoid(ei @ e + pi @ p + hi @ h + bi)
        f = sigmoid(ef @ e + pf @ p + hf @ h + bf)
        o = sigmoid(eo @ e + po @ p + ho @ h + bo)
        c = f * c + i * np.tanh(ec @ e + hc @ h + bc)
        h = o * np.tanh(c)
        states.append(h)
    return np.array(states)
