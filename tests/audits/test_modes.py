"""What of a model computes as in training is found by name."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from stack.audits.modes import check, refuse_modes
from stack.base.errors import AuditError
from stack.layers.norm import BatchNorm


class _Head(nn.Module):
    def __init__(self, **held: object) -> None:
        super().__init__()
        self.norm = BatchNorm(num_features=3)
        self.held = held


def _names(model: nn.Module) -> list[str]:
    return [finding.name for finding in check(model)]


def test_a_model_in_evaluation_mode_has_no_findings() -> None:
    assert _names(nn.Sequential(_Head(), nn.Dropout(0.1), nn.BatchNorm1d(4)).eval()) == []


def test_the_outermost_layer_in_training_mode_is_named_without_wrappers() -> None:
    model = nn.Sequential(_Head()).eval()
    model[0].norm.train()
    wrapped = nn.ModuleDict({"module": model}).eval()
    model[0].norm.train()
    assert _names(model) == _names(wrapped) == ["training mode: 0.norm"]
    assert _names(model.train()) == ["training mode: Sequential"]


def test_norms_that_eval_does_not_reach_are_found() -> None:
    model = nn.Sequential(_Head(towers=[{"a": BatchNorm(num_features=2)}], other=nn.Linear(2, 2))).eval()
    assert _names(model) == ["training mode: 0.held['towers'][0]['a']"]


def test_norms_without_running_statistics_and_with_broken_ones_are_found() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3, track_running_stats=False), _Head()).eval()
    model[1].norm.statistics.running_var_D[1] = torch.nan
    named = ["batch statistics: 0", "statistics that are not finite: 1.norm.statistics.running_var_D"]
    assert _names(model) == named
    with pytest.raises(AuditError, match=r"export stops: batch statistics: 0: .*, and 1 more: statistics that are not"):
        refuse_modes(model, what="export")
