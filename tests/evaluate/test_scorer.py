"""The trained model as a function: what evaluation sees is what the tasks compute."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from stack.data.dataset import Dataset
from stack.data.loader import Loader
from stack.evaluate.config import EvaluateConfig
from stack.evaluate.evaluate import Trained, evaluate
from stack.evaluate.predict import predict
from stack.evaluate.scorer import corrections, scorer_of
from stack.tasks import TASKS, Enabled, TasksConfig
from stack.tasks.ctr import CtrConfig, Sampling, sampling_shift
from stack.tasks.shop import ShopConfig
from stack.towers.config import ModelConfig
from tests.batches import small_model

CPU = torch.device("cpu")


def all_tasks(model: nn.Module) -> dict[str, object]:
    return {name: model.task(name) for name in model.tasks}  # type: ignore[operator, attr-defined]


def test_only_scores_trained_with_the_correction_count_as_corrected() -> None:
    model = small_model(tasks=TasksConfig(ctr=CtrConfig(sampling=Sampling.logq)))
    assert corrections(all_tasks(model)) == {"ctr": True, "rank": False, "power": True, "follow": True}
    assert corrections(all_tasks(small_model()))["ctr"] is False


@pytest.mark.parametrize(
    ("name", "sampling"), [("ctr", Sampling.logq), ("ctr", Sampling.none), ("rank", Sampling.none)]
)
def test_what_counts_as_corrected_is_what_the_loss_does(name: str, sampling: Sampling) -> None:
    """The slope of the loss is sigmoid(logit) - label, so it tells the logit that the loss was taken of."""
    task = small_model(tasks=TasksConfig(ctr=CtrConfig(sampling=sampling))).task(name)
    labels = {
        "clicked": torch.zeros(5), "weight": torch.ones(5), "rate_uniform": torch.rand(5) + 0.1,
        "rate_popularity": torch.rand(5) + 0.1,
    }  # fmt: skip
    score_E = torch.randn(5, requires_grad=True)
    task.loss(score_E, labels)[0].sum().backward()
    shift_E = sampling_shift(labels) if corrections({name: task})[name] else 0.0
    assert torch.allclose(torch.logit(score_E.grad), score_E.detach() - shift_E, atol=1e-5)


def test_predictions_equal_a_forward_pass_over_the_whole_days_at_once(dataset: Dataset) -> None:
    model = small_model(ModelConfig(dropout=0.5))
    tasks = corrections(all_tasks(model))
    days = dataset.days()[4:]
    found = predict(scorer_of(model, device=CPU), dataset, days=days, tasks=tasks, timelines_per_batch=1000)
    batch = next(iter(Loader(dataset, days=days[:1], global_batch_size=1000, shuffle=False)))
    with torch.no_grad():
        outputs = model.eval()(batch)
    for name, output in outputs.items():
        first = len(output.score_E)
        assert torch.allclose(torch.from_numpy(found[name].score[:first]).float(), output.score_E, atol=1e-6)
        assert found[name].corrected is tasks[name]


def test_every_registered_task_is_evaluated_from_end_to_end(dataset: Dataset, tmp_path: Path) -> None:
    model = small_model(ModelConfig(query=False), tasks=TasksConfig(shop=ShopConfig(enabled=Enabled.always)))
    trained = Trained(
        name="untrained",
        step=0,
        dataset=dataset,
        training_days=dataset.days()[:4],
        tasks=corrections(all_tasks(model)),
        scorer=scorer_of(model, device=CPU),
    )
    report = evaluate(
        trained, folder=tmp_path, settings=EvaluateConfig(num_replicates=20, baselines=False, plots=False)
    )
    assert {task.task for task in report.tasks} == set(TASKS)
    for task in report.tasks:
        for part in task.sets:
            assert part.scores[0].metrics[task.headline].value is not None or task.task == "follow"
