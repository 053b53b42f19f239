"""Options of the dense model."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from stack.base.errors import ConfigError
from stack.layers.attention import TargetWeights
from stack.layers.norm import Norm
from stack.towers.behavior import Behavior, PropertyUse
from stack.towers.user import Pooling


class Attention(Enum):
    """Who attends over the events: nobody, the moment's query and user (DUPN), the candidate (DIN), or both."""

    none = "none"
    query = "query"
    target = "target"
    both = "both"

    @property
    def by_query(self) -> bool:
        return self in (Attention.query, Attention.both)

    @property
    def by_target(self) -> bool:
        return self in (Attention.target, Attention.both)


@dataclass(kw_only=True)
class ModelConfig:
    """The user model. The defaults are DUPN-all as published."""

    behavior: Behavior = Behavior.lstm
    # encoder of the events: lstm (property-gated), transformer, mean, cnn_max
    property: PropertyUse = PropertyUse.both
    # where properties enter: none, lstm (the encoder, whichever it is), attention, both
    attention: Attention = Attention.query
    # who attends over the events: none, query, target (by candidate, CTR alone), both
    pooling: Pooling = Pooling.mean
    # how states become one vector where the query does not attend: mean, max
    norm: Norm = Norm.none
    # between the linear maps and activations of the heads: batch, layer, none
    query: bool = True
    # let the moment's query (its features, hour and weekday) steer the attention
    user_id: bool = False
    # the user's id as one more profile feature
    dropout: float = 0.0
    # share of hidden units dropped in heads and transformer
    num_states: int = 128
    # width of the encoder's states; cnn_max has 640 whatever stands here
    num_layers: int = 2
    # layers of the transformer
    num_heads: int = 4
    # heads of the transformer
    property_headroom: int = 8
    # rows kept free in each property embedding for values that later days bring
    target_keys: int = 32
    # width of the keys of the attention by candidate
    target_hidden: int = 8
    # hidden units of its activation
    target_weights: TargetWeights = TargetWeights.softmax
    # softmax (DIN's code) or sum (DIN's equation 3)

    def __post_init__(self) -> None:
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"model.dropout is {self.dropout}: it is the share dropped, from 0 up to but not 1")
        for name in ("num_states", "num_layers", "num_heads", "target_keys", "target_hidden"):
            if getattr(self, name) < 1:
                raise ConfigError(f"model.{name} is {getattr(self, name)}: at least 1 is needed")
        if self.property_headroom < 0:
            raise ConfigError(f"model.property_headroom is {self.property_headroom}: it must be 0 or more")
        if not self.attention.by_query and (self.property.in_attention or self.query):
            raise ConfigError(
                f"model.attention={self.attention.name} leaves out the attention by query, where the query and "
                "the properties beside the encoder enter: set model.query=false and model.property=lstm or none"
            )
