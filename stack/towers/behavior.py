"""Encoders of a row of events: what turns items and properties into one state for each position.

Legend: B rows, L positions, I item features, P property features, N property columns, S state features.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum

import torch
from torch import Tensor, nn

from stack.layers.convolution import CausalConvolution
from stack.layers.recurrent import PropertyGatedLSTM
from stack.layers.transformer import CausalTransformer
from stack.towers.time import NUM_GAPS, CalendarEmbedding, gap_to_previous

PROPERTY_DIM = 16
"""Width of each property, the time among them (DUPN section 4.1)."""


class Behavior(Enum):
    """The encoder of events."""

    lstm = "lstm"
    transformer = "transformer"
    mean = "mean"
    cnn_max = "cnn_max"


class PropertyUse(Enum):
    """Where the properties of an event enter: nowhere (DUPN-nobp), in the encoder (-bplstm), in the attention (-bpatt),
    or in both (-all)."""

    none = "none"
    lstm = "lstm"
    attention = "attention"
    both = "both"

    @property
    def in_encoder(self) -> bool:
        return self in (PropertyUse.lstm, PropertyUse.both)

    @property
    def in_attention(self) -> bool:
        return self in (PropertyUse.attention, PropertyUse.both)


class PropertyEncoder(nn.Module):
    """Properties as vectors: one embedding of 16 for each id column, then the time property of 16.

    The time property is hour bucket + weekend + gap, summed. In the encoder the gap is the time since the event before,
    in the attention the time from the event to the moment: the paper's gap "to the current search" inside the gates
    would need one encoder pass for each moment. The second gap is therefore kept apart, as `gap_table`.
    """

    def __init__(self, *, sizes: Sequence[int], use: PropertyUse) -> None:
        super().__init__()
        self.num_outputs = PROPERTY_DIM * (len(sizes) + 1)
        self.columns = nn.ModuleList(nn.Embedding(size, PROPERTY_DIM) for size in sizes)
        self.calendar = CalendarEmbedding(num_outputs=PROPERTY_DIM)
        self.gap_to_previous = nn.Embedding(NUM_GAPS, PROPERTY_DIM) if use.in_encoder else None
        self.gap_to_moment = nn.Embedding(NUM_GAPS, PROPERTY_DIM) if use.in_attention else None

    def forward(self, property_BLN: Tensor, seconds_BL: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """(B, L, P) for the encoder, and for the attention without its gap; None where it is not used.

        Ids at or above a column's size (or negative) are unknown: row 0.
        """
        vectors = []
        for embedding, ids_BL in zip(self.columns, property_BLN.unbind(2), strict=True):
            assert isinstance(embedding, nn.Embedding)
            vectors.append(embedding(ids_BL * ((ids_BL >= 0) & (ids_BL < embedding.num_embeddings))))
        calendar_BLD = self.calendar(seconds_BL)
        in_encoder = in_attention = None
        if self.gap_to_previous is not None:
            in_encoder = torch.cat([*vectors, calendar_BLD + self.gap_to_previous(gap_to_previous(seconds_BL))], dim=2)
        if self.gap_to_moment is not None:
            in_attention = torch.cat([*vectors, calendar_BLD], dim=2)
        return in_encoder, in_attention

    def gap_table(self) -> Tensor | None:
        """(NUM_GAPS, P): what each gap to the moment adds to the attention's property; 0 but for the time columns."""
        if self.gap_to_moment is None:
            return None
        weight = self.gap_to_moment.weight
        return torch.cat([weight.new_zeros(NUM_GAPS, self.num_outputs - PROPERTY_DIM), weight], dim=1)


class ConcatenatingEncoder(nn.Module):
    """An encoder of [item ; property] for those that treat both alike."""

    def __init__(self, encoder: CausalTransformer | CausalConvolution | Pointwise) -> None:
        super().__init__()
        self.num_states = encoder.num_states
        self.encoder = encoder

    def forward(self, item_BLI: Tensor, property_BLP: Tensor | None) -> Tensor:
        states_BLS: Tensor = self.encoder(
            item_BLI if property_BLP is None else torch.cat([item_BLI, property_BLP], dim=2)
        )
        return states_BLS


class Pointwise(nn.Module):
    """(B, L, D) -> (B, L, S): a linear map of each event by itself; averaged over the window, the mean baseline."""

    def __init__(self, *, num_inputs: int, num_states: int = 128) -> None:
        super().__init__()
        self.num_states = num_states
        self.map = nn.Linear(num_inputs, num_states)

    def forward(self, input_BLD: Tensor) -> Tensor:
        states_BLS: Tensor = self.map(input_BLD)
        return states_BLS


def build_encoder(
    behavior: Behavior,
    *,
    num_item: int,
    num_property: int,
    num_states: int,
    num_layers: int,
    num_heads: int,
    dropout: float,
) -> PropertyGatedLSTM | ConcatenatingEncoder:
    """An encoder called with (item_BLI, property_BLP or None); `num_property` is 0 where it gets None.

    `num_layers`, `num_heads` and `dropout` are the transformer's. The convolution has 640 states whatever is asked.
    """
    if behavior is Behavior.lstm:
        return PropertyGatedLSTM(num_item=num_item, num_property=num_property, num_hidden=num_states)
    num_inputs = num_item + num_property
    if behavior is Behavior.transformer:
        return ConcatenatingEncoder(
            CausalTransformer(
                num_inputs=num_inputs,
                num_states=num_states,
                num_layers=num_layers,
                num_heads=num_heads,
                dropout=dropout,
            )
        )
    if behavior is Behavior.cnn_max:
        return ConcatenatingEncoder(CausalConvolution(num_inputs=num_inputs))
    return ConcatenatingEncoder(Pointwise(num_inputs=num_inputs, num_states=num_states))
