"""Fully connected layers: linear, norm, ReLU, dropout.

Legend: N rows, M moments, E examples, R user features, C candidate features, O outputs.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional

from stack.layers.norm import Norm, build_norm


def _after_linear(width: int, norm: Norm, dropout: float) -> list[nn.Module]:
    layers: list[nn.Module] = [] if norm is Norm.none else [build_norm(norm, num_features=width)]
    layers.append(nn.ReLU())
    return [*layers, nn.Dropout(dropout)] if dropout else layers


class MLP(nn.Sequential):
    """(N, num_inputs) -> (N, num_outputs): hidden layers of `widths`, then a linear map without activation."""

    def __init__(
        self, *, num_inputs: int, widths: Sequence[int], num_outputs: int, norm: Norm = Norm.none, dropout: float = 0.0
    ) -> None:
        layers: list[nn.Module] = []
        for width in widths:
            layers += [nn.Linear(num_inputs, width), *_after_linear(width, norm, dropout)]
            num_inputs = width
        super().__init__(*layers, nn.Linear(num_inputs, num_outputs))


class JoinedMLP(nn.Module):
    """An `MLP` on [user ; candidate] that computes the user's part of the first layer once for each moment.

    The same function as concatenating `user_MR[moment_E]` and `candidate_EC`, at a fraction of the cost when many
    candidates share a moment (and, when serving, a request).
    """

    def __init__(
        self,
        *,
        num_user: int,
        num_candidate: int,
        widths: Sequence[int],
        num_outputs: int,
        norm: Norm = Norm.none,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_user = num_user
        self.first = nn.Linear(num_user + num_candidate, widths[0])
        self.activate = nn.Sequential(*_after_linear(widths[0], norm, dropout))
        self.rest = MLP(num_inputs=widths[0], widths=widths[1:], num_outputs=num_outputs, norm=norm, dropout=dropout)

    @property
    def last(self) -> nn.Linear:
        """The map that gives the outputs."""
        last = self.rest[-1]
        assert isinstance(last, nn.Linear)
        return last

    def forward(self, user_MR: Tensor, candidate_EC: Tensor, moment_E: Tensor | None) -> Tensor:
        """(E, O). `moment_E` None: all candidates belong to the one moment there is (M = 1)."""
        user_MW = functional.linear(user_MR, self.first.weight[:, : self.num_user], self.first.bias)
        candidate_EW = functional.linear(candidate_EC, self.first.weight[:, self.num_user :])
        user_EW = user_MW if moment_E is None else user_MW.index_select(0, moment_E)
        hidden_EW = self.activate(user_EW + candidate_EW)
        logits_EO: Tensor = self.rest(hidden_EW)
        return logits_EO
