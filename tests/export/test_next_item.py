"""Packages with the next-item task score it as it was trained, with and without a temperature."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from stack.export.export import Trained
from stack.export.package import Link, open_package
from stack.export.requests import held_out_requests
from stack.tasks import NextItemTask
from tests.export.recorded import Asked


@pytest.mark.parametrize(
    ("run", "folder", "temperature"), [("small", "small_package", 0.07), ("published", "package", None)]
)
def test_the_package_scores_the_next_item_as_it_was_trained(
    run: str, folder: str, temperature: float | None, request: pytest.FixtureRequest
) -> None:
    trained: Trained = request.getfixturevalue(run)
    manifest = open_package(request.getfixturevalue(folder))
    head = trained.model.task("next_item")
    assert isinstance(head, NextItemTask)
    assert head.temperature == temperature
    assert "next_item" in manifest.parity.max_abs_difference
    assert manifest.parity.worst < 1e-5
    (answer,) = (task for task in manifest.tasks if task.name == "next_item")
    assert (answer.link, answer.graph, answer.columns) == (Link.IDENTITY, "score_next_item", ())


def test_the_index_scores_each_item_as_the_graph_scores_the_example_it_was_taken_from(
    published: Trained, package: Path
) -> None:
    """The user's vector by one graph and the item's by the index, or the score of both by another graph."""
    asked = Asked(package)
    retrieval = asked.manifest.retrieval
    assert retrieval is not None
    nearest: dict[object, float] = {}
    bodies = held_out_requests(
        published.dataset, asked.manifest.schema, day=published.dataset.days()[0], group="impression", max_events=512
    )
    for body in bodies:
        user, scores, _ = asked.score(body)
        of_index = dict(zip(*asked.predictor.retrieve(user, retrieval.num_items), strict=True))
        for item, score in zip(body["candidates"]["item"], scores["next_item"], strict=True):
            assert isinstance(score, float)
            nearest[item] = min(nearest.get(item, np.inf), abs(of_index[item] - score))
    assert len(nearest) == retrieval.num_items > 90
    assert max(nearest.values()) < 1e-5
