"""The user half: events, profile and query to the representation, DUPN section 4.

Legend: B rows, L positions, M moments, I item features of an event, N property columns, S state features,
U profile features looked up, Q query features looked up, R = rep.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor, nn

from stack.layers.attention import QueryAttention, TargetAttention
from stack.layers.recurrent import PropertyGatedLSTM
from stack.layers.window import max_over, mean_over, window_before
from stack.towers.behavior import ConcatenatingEncoder, PropertyEncoder, PropertyUse
from stack.towers.time import CalendarEmbedding, gap_bucket

QUERY_DIM = 32
"""Width of the query embedding; the paper does not say."""


class Pooling(Enum):
    """How states become one vector where the query does not attend."""

    mean = "mean"
    max = "max"


@dataclass(frozen=True, kw_only=True)
class UserInputs:
    """Padded rows, and moments in them. `row_M` is None where moment i belongs to row i.

    `item_BLI`: looked-up item features of each event. `property_BLN`: ids. Times are epoch seconds (int64).
    `position_M`: how many events of its row a moment may see.
    """

    item_BLI: Tensor
    property_BLN: Tensor
    seconds_BL: Tensor
    profile_BU: Tensor
    query_MQ: Tensor
    moment_seconds_M: Tensor
    position_M: Tensor
    row_M: Tensor | None


@dataclass(frozen=True, kw_only=True)
class UserState:
    """What heads and scorer need of the user, for each moment.

    `rep_MR` = [rep_s (128) ; u (128)]. `keys_MLK`, `values_MLV`, `mask_ML` are for the candidate's attention and None
    without it; they are zero-padded and only positions in the mask count.
    """

    rep_MR: Tensor
    keys_MLK: Tensor | None
    values_MLV: Tensor | None
    mask_ML: Tensor


class UserTower(nn.Module):
    """One encoder pass over each row, then a window of states for each moment.

    "State carried": the encoder starts at the row's first event and runs through the day; a moment uses the states of
    the last `max_history` events before it. What a moment gets equals the pass over its row cut at its position.
    """

    def __init__(
        self,
        *,
        num_profile: int,
        num_query: int | None,
        encoder: PropertyGatedLSTM | ConcatenatingEncoder,
        properties: PropertyEncoder | None,
        property_use: PropertyUse,
        attend_by_query: bool,
        pooling: Pooling,
        max_history: int,
        num_sequence: int = 128,
        num_user: int = 128,
    ) -> None:
        super().__init__()
        self.max_history = max_history
        self.num_outputs = num_sequence + num_user
        self.pooling = pooling
        self.encoder = encoder
        self.properties = properties
        self.profile = nn.Linear(num_profile, num_user) if num_profile else None
        self.no_profile_U = None if num_profile else nn.Parameter(torch.zeros(num_user))
        self.query = nn.Linear(num_query + QUERY_DIM, QUERY_DIM) if num_query is not None else None
        self.calendar = CalendarEmbedding(num_outputs=QUERY_DIM) if num_query is not None else None
        self.attention: QueryAttention | None = None
        if attend_by_query:
            num_property = properties.num_outputs if properties is not None and property_use.in_attention else 0
            num_context = num_user + (QUERY_DIM if num_query is not None else 0)
            self.attention = QueryAttention(
                num_states=encoder.num_states, num_property=num_property, num_context=num_context
            )
        narrow = encoder.num_states == num_sequence
        self.narrow = nn.Identity() if narrow else nn.Linear(encoder.num_states, num_sequence)

    def forward(self, inputs: UserInputs, target: TargetAttention | None) -> UserState:
        in_encoder = in_attention = None
        if self.properties is not None:
            in_encoder, in_attention = self.properties(inputs.property_BLN, inputs.seconds_BL)
        states_BLS = self.encoder(inputs.item_BLI, in_encoder)
        num_positions = inputs.item_BLI.shape[1]
        window = window_before(
            inputs.position_M, num_positions=num_positions, max_history=self.max_history, row_M=inputs.row_M
        )
        user_MU = self._user(inputs)
        gap_ML = gap_bucket(inputs.moment_seconds_M.unsqueeze(1) - window.gather(inputs.seconds_BL))
        if self.attention is not None:
            sequence_MS = self.attention(
                states_BLS,
                self._context(inputs, user_MU),
                window,
                property_BLP=in_attention,
                gap_table_NP=None if self.properties is None else self.properties.gap_table(),
                gap_ML=gap_ML,
            )
        else:
            sequence_MS = (max_over if self.pooling is Pooling.max else mean_over)(window, states_BLS)
        keys_MLK = values_MLV = None
        if target is not None:
            keys_MLK, values_MLV = target.keys_and_values(inputs.item_BLI, states_BLS, gap_ML, window)
        return UserState(
            rep_MR=torch.cat([self.narrow(sequence_MS), user_MU], dim=1),
            keys_MLK=keys_MLK,
            values_MLV=values_MLV,
            mask_ML=window.mask_ML,
        )

    def _user(self, inputs: UserInputs) -> Tensor:
        """(M, U): the profile embedding u of each moment's user; one learnt vector if there are no profiles."""
        if self.profile is None:
            assert self.no_profile_U is not None
            return self.no_profile_U.expand(inputs.position_M.shape[0], -1)
        user_BU: Tensor = self.profile(inputs.profile_BU)
        return user_BU if inputs.row_M is None else user_BU.index_select(0, inputs.row_M)

    def _context(self, inputs: UserInputs, user_MU: Tensor) -> Tensor:
        """[q ; u]: the query is the moment's features and its hour and weekday."""
        if self.query is None or self.calendar is None:
            return user_MU
        query_MQ = torch.cat([inputs.query_MQ, self.calendar(inputs.moment_seconds_M)], dim=1)
        return torch.cat([self.query(query_MQ), user_MU], dim=1)


class UserHalf(nn.Module):
    """The user half as tensors in, tensors out, to be exported: one moment a row, after all its events.

    Inputs, in the order of features that `stack.model.Places` names: `item_BLI` looked-up vectors of the events, zeros
    behind the last one; `property_BLN` ids (int64); `seconds_BL`, `now_B` epoch seconds (int64); `lengths_B` events of
    each row (int64, 0 to L); `profile_BU`, `query_BQ` looked-up vectors (width 0 without such features). L is at least
    1. Returns `rep_BR`, then `keys_BLK`, `values_BLV`, `mask_BL` if there is attention by candidate.
    """

    def __init__(self, user: UserTower, target: TargetAttention | None) -> None:
        super().__init__()
        self.user = user
        self.target = target

    def forward(
        self,
        item_BLI: Tensor,
        property_BLN: Tensor,
        seconds_BL: Tensor,
        lengths_B: Tensor,
        profile_BU: Tensor,
        query_BQ: Tensor,
        now_B: Tensor,
    ) -> tuple[Tensor, ...]:
        inputs = UserInputs(
            item_BLI=item_BLI, property_BLN=property_BLN, seconds_BL=seconds_BL, profile_BU=profile_BU,
            query_MQ=query_BQ, moment_seconds_M=now_B, position_M=lengths_B, row_M=None,
        )  # fmt: skip
        state: UserState = self.user(inputs, self.target)
        if state.keys_MLK is None or state.values_MLV is None:
            return (state.rep_MR,)
        return state.rep_MR, state.keys_MLK, state.values_MLV, state.mask_ML
