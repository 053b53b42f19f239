"""The package against the trained model, on moments of real data: the same examples must get the same numbers.

The trained model makes one pass over each timeline for all its moments; the package is asked moment by moment, as a
server would ask it. So the check covers rows, pooling, graphs and the sharing of the pass. With rows that a type rounds
there is no trained model to compare with: there the graphs are compared with the modules they were traced from, on the
same rounded rows.

Legend: M moments, E examples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from stack.base.errors import PackageError
from stack.data.batch import Batch, to_device
from stack.export.engines import Array
from stack.export.moments import KeysOf, by_moment, candidates_of, users_of
from stack.export.package import USER_VECTOR, PackageManifest, Parity, scorers_of
from stack.export.runner import Runner
from stack.export.user_half import STATES, vector_of, weights_of
from stack.model import UserModel
from stack.tasks import NextItemTask, RankTask

Answers = dict[str, NDArray[np.float32]]
"""By output: a line for each moment, or for each example of the group."""


class ModuleEngine:
    """Runs the modules that graphs are traced from (`stack.export.engines.Engine`)."""

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        self._modules = modules

    def run(self, graph: str, inputs: Sequence[Array]) -> list[Array]:
        with torch.inference_mode():
            outputs = self._modules[graph](*(torch.from_numpy(np.ascontiguousarray(one)) for one in inputs))
        return [output.numpy() for output in outputs]


def trained_answers(model: UserModel, batch: Batch) -> tuple[Answers, Answers]:
    """What the trained model says of all moments and examples of a batch; and the labels of the tasks that give each
    example one number."""
    moved = to_device(batch, next(model.user.parameters()).device)
    with torch.no_grad():  # in inference mode FBGEMM finds no kernel for its lookup
        vector_MR = model.representation(moved).rep_MR
        outputs = model(moved)
        said = {USER_VECTOR: vector_MR} | {name: output.score_E for name, output in outputs.items()}
        for name in model.tasks:
            task = model.task(name)
            if isinstance(task, RankTask):
                said[weights_of(name)] = task.feature_weights(vector_MR)
            if isinstance(task, NextItemTask):
                said[vector_of(name)] = task.user_vector(vector_MR)
    labels = {name: output.label_E for name, output in outputs.items() if output.score_E.dim() == 1}
    return _arrays(said), _arrays(labels)


def _arrays(tensors: Mapping[str, Tensor]) -> Answers:
    return {name: tensor.float().cpu().numpy() for name, tensor in tensors.items()}


def package_answers(
    runner: Runner, manifest: PackageManifest, batch: Batch, keys_of: KeysOf, groups: Mapping[str, str]
) -> Answers:
    """The same from a package: the user half once for each moment, a scorer once for each moment that has examples.
    `groups`: of each task of the model; what is about the user alone is said of each example of its moment."""
    user = runner.user_half(users_of(batch, manifest.schema, keys_of))
    answers: Answers = {
        name: value[batch.groups[groups[name]].moment_E.cpu().numpy()] if name in groups else value
        for name, value in user.items()
        if name not in STATES
    }
    for group in manifest.schema.groups:
        examples, names = batch.groups[group.name], scorers_of(manifest, group.name)
        scores = {
            output: np.zeros(examples.num_examples, dtype=np.float32)
            for name in names
            for output in manifest.graphs[name].outputs
        }
        for moment, example_E in by_moment(examples):
            one = {output: value[moment : moment + 1] for output, value in user.items()}
            candidates = candidates_of(examples, group.candidate, example_E, keys_of)
            for output, score_E in runner.score(names, candidates, one).items():
                scores[output][example_E] = score_E
        answers |= scores
    return answers


class Differences:
    """The largest absolute difference of every output, over the batches it is shown."""

    def __init__(self) -> None:
        self._worst: dict[str, float] = {}
        self._num_examples: dict[str, int] = {}
        self._num_moments = 0

    def add(self, batch: Batch, ours: Answers, theirs: Answers) -> None:
        self._num_moments += batch.num_moments
        for name in sorted(ours.keys() & theirs.keys()):
            if name != USER_VECTOR:
                self._num_examples[name] = self._num_examples.get(name, 0) + len(ours[name])
            self._compare(name, ours[name], theirs[name])

    def result(self, tolerance: float, *, what: str) -> Parity:
        """The findings. `what` names the variant.

        Raises: `PackageError` where an output differs by more than `tolerance`, or nothing was compared.
        """
        if not self._num_moments:
            raise PackageError("parity cannot be checked: the day after training holds no moment: ingest it again")
        name = max(self._worst, key=lambda name: np.nan_to_num(self._worst[name], nan=np.inf))
        if not self._worst[name] <= tolerance:
            raise PackageError(
                f"export refused: output {name!r} of the package ({what}) differs from the trained model by "
                f"{self._worst[name]:.3g}, export.tolerance is {tolerance:.3g}; nothing was written"
            )
        return Parity(
            tolerance=tolerance,
            num_moments=self._num_moments,
            num_examples=self._num_examples,
            max_abs_difference=self._worst,
        )

    def _compare(self, name: str, ours: Array, theirs: Array) -> None:
        assert ours.shape == theirs.shape, f"{name}: {ours.shape} exported, {theirs.shape} trained"
        if ours.size:
            # max() of floats would drop a NaN that comes second
            self._worst[name] = float(np.maximum(self._worst.get(name, 0.0), np.abs(ours - theirs).max()))
