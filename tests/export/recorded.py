"""Asks packages as a server does."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from stack.export.answers import Recorded
from stack.export.package import REQUESTS, USER_VECTOR, open_package
from stack.serve.predictor import Computed, Predictor, Value
from stack.serve.request import Decoder, Limits

LIMITS = Limits(num_events=512, num_candidates=100, num_ids=64)


class Asked:
    """A package, opened and checked."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest = open_package(folder)
        self.predictor = Predictor(folder, self.manifest)
        self._decoder = Decoder(self.manifest, LIMITS)

    def score(self, body: Mapping[str, Any]) -> tuple[Computed, dict[str, list[Value]], dict[str, int]]:
        """The user computed, scores by task, and what was unknown."""
        asked = self._decoder.score(msgspec.json.encode(body))
        assert asked.who.user is not None
        (user,) = self.predictor.compute([asked.who.user])
        return user, *self.predictor.score(
            user, asked.group, asked.candidates, asked.dense, asked.num_candidates
        )  # fmt: skip

    def assert_answers_as_recorded(self) -> list[Recorded]:
        """The recorded requests, each of which it has answered."""
        recorded = msgspec.json.decode((self.folder / REQUESTS).read_bytes(), type=list[Recorded])
        assert recorded == self.predictor.recorded()
        for one in recorded:
            user, scores, _ = self.score(one.body)
            np.testing.assert_allclose(user.outputs[USER_VECTOR][0], one.vector, rtol=0, atol=2e-6)
            assert set(scores) == set(one.scores)
            for task, values in one.scores.items():
                np.testing.assert_allclose(scores[task], values, rtol=1e-5, atol=2e-6, err_msg=task)
        return recorded
