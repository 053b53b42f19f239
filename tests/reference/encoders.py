"""A causal transformer and causal convolutions, position by position, from a module's parameters as NumPy arrays."""

from __future__ import annotations

import numpy as np

from tests.reference.attention import relu, softmax

Parameters = dict[str, np.ndarray]


def layer_norm(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    return (x - x.mean()) / np.sqrt(x.var() + 1e-5) * weight + bias


def linear(x: np.ndarray, parameters: Parameters, name: str) -> np.ndarray:
    return parameters[f"{name}.weight"] @ x + parameters[f"{name}.bias"]


def transformer(input_LD: np.ndarray, parameters: Parameters, *, num_layers: int, num_heads: int) -> np.ndarray:
    """(L, S): pre-norm blocks, ALiBi slopes 2^(-8 a / A), each position attending to itself and earlier ones."""
    x = [linear(d, parameters, "enter") for d in input_LD]
    size = len(x[0]) // num_heads
    for layer in range(num_layers):
        name = f"blocks.{layer}"
        normed = [
            layer_norm(v, parameters[f"{name}.norm_attention.weight"], parameters[f"{name}.norm_attention.bias"])
            for v in x
        ]
        query, key, value = zip(
            *(np.split(linear(v, parameters, f"{name}.query_key_value"), 3) for v in normed), strict=True
        )
        for t in range(len(x)):
            heads = []
            for head in range(num_heads):
                part = slice(head * size, (head + 1) * size)
                slope = 2.0 ** (-8 * (head + 1) / num_heads)
                logits = [query[t][part] @ key[s][part] / np.sqrt(size) - slope * (t - s) for s in range(t + 1)]
                heads.append(sum(a * value[s][part] for s, a in enumerate(softmax(np.array(logits)))))
            x[t] = x[t] + linear(np.concatenate(heads), parameters, f"{name}.out")
        for t, v in enumerate(x):
            normed_v = layer_norm(v, parameters[f"{name}.norm_feed.weight"], parameters[f"{name}.norm_feed.bias"])
            x[t] = v + linear(relu(linear(normed_v, parameters, f"{name}.feed.0")), parameters, f"{name}.feed.2")
    return np.array([layer_norm(v, parameters["norm.weight"], parameters["norm.bias"]) for v in x])


def convolutions(input_LD: np.ndarray, parameters: Parameters, *, num_widths: int) -> np.ndarray:
    """(L, S): for each width the ReLU maps of the events that end at the position, zeros before the first."""
    states = []
    for t in range(len(input_LD)):
        maps = []
        for width in range(1, num_widths + 1):
            weight, bias = (parameters[f"convolutions.{width - 1}.{kind}"] for kind in ("weight", "bias"))
            total = bias.copy()
            for back in range(width):
                if t - back >= 0:
                    total = total + weight[:, :, width - 1 - back] @ input_LD[t - back]
            maps.append(relu(total))
        states.append(np.concatenate(maps))
    return np.array(states)
