"""A causal transformer over events.

Legend: B rows, L positions, D inputs, S state features, A heads.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


def causal_bias(num_positions: int, num_heads: int, *, device: torch.device, dtype: torch.dtype) -> Tensor:
    """(A, L, L): minus infinity on later positions, -slope x distance on others (ALiBi, ICLR 2022, section 3),
    with slopes 2^(-8 a / A) for a = 1..A: order is known without any largest length."""
    place_L = torch.arange(num_positions, device=device)
    distance_LL = (place_L.unsqueeze(1) - place_L.unsqueeze(0)).to(dtype)
    slope_A = torch.exp2(-8.0 * torch.arange(1, num_heads + 1, device=device) / num_heads).to(dtype)
    bias_ALL = -slope_A.view(-1, 1, 1) * distance_LL
    return bias_ALL.masked_fill(distance_LL < 0, float("-inf"))


class _Block(nn.Module):
    """x + attention(norm(x)), then x + feed-forward(norm(x))."""

    def __init__(self, *, num_states: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm_attention = nn.LayerNorm(num_states)
        self.query_key_value = nn.Linear(num_states, 3 * num_states)
        self.out = nn.Linear(num_states, num_states)
        self.norm_feed = nn.LayerNorm(num_states)
        self.feed = nn.Sequential(
            nn.Linear(num_states, 2 * num_states), nn.ReLU(), nn.Linear(2 * num_states, num_states)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BLS: Tensor, bias_ALL: Tensor) -> Tensor:
        heads = (self.num_heads, x_BLS.shape[2] // self.num_heads)
        query, key, value = (
            part.unflatten(2, heads).transpose(1, 2)
            for part in self.query_key_value(self.norm_attention(x_BLS)).chunk(3, 2)
        )
        mixed_BALs = functional.scaled_dot_product_attention(query, key, value, attn_mask=bias_ALL)
        x_BLS = x_BLS + self.dropout(self.out(mixed_BALs.transpose(1, 2).flatten(2)))
        fed_BLS: Tensor = self.dropout(self.feed(self.norm_feed(x_BLS)))
        return x_BLS + fed_BLS


class CausalTransformer(nn.Module):
    """(B, L, D) -> (B, L, S). A position sees itself and earlier ones; padding stands behind the events, so the causal
    mask also keeps it out."""

    def __init__(
        self, *, num_inputs: int, num_states: int = 128, num_layers: int = 2, num_heads: int = 4, dropout: float = 0.0
    ) -> None:
        super().__init__()
        if num_states % num_heads:
            raise ValueError(
                f"num_states = {num_states} cannot be split over num_heads = {num_heads}: choose a divisor"
            )
        self.num_states = num_states
        self.num_heads = num_heads
        self.enter = nn.Linear(num_inputs, num_states)
        self.blocks = nn.ModuleList(
            _Block(num_states=num_states, num_heads=num_heads, dropout=dropout) for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(num_states)

    def forward(self, input_BLD: Tensor) -> Tensor:
        x_BLS = self.enter(input_BLD)
        bias_ALL = causal_bias(x_BLS.shape[1], self.num_heads, device=x_BLS.device, dtype=x_BLS.dtype)
        for block in self.blocks:
            x_BLS = block(x_BLS, bias_ALL)
        states_BLS: Tensor = self.norm(x_BLS)
        return states_BLS
