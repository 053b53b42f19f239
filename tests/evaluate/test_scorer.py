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
from stack.evaluate.scorer import scorer_of
from stack.tasks import TASKS, Enabled, TasksConfig
from stack.tasks.ctr import CtrConfig
from stack.tasks.next_item import NextItemConfig
from stack.tasks.rank import RankConfig
from stack.tasks.sampling import Sampling
from stack.tasks.shop import ShopConfig
from stack.towers.config import ModelConfig
from tests.batches import small_model

CPU = torch.device("cpu")


def samplings(model: nn.Module) -> dict[str, Sampling]:
    return {name: model.task(name).sampling for name in model.tasks}  # type: ignore[operator, union-attr, attr-defined]


@pytest.mark.parametrize("name", ["ctr", "rank"])
@pytest.mark.parametrize("sampling", list(Sampling))
def test_the_sampling_that_a_task_tells_is_what_its_loss_does(name: str, sampling: Sampling) -> None:
    """The slope of the loss is sigmoid(logit) - label, so it tells the logit that the loss was taken of."""
    config = TasksConfig(ctr=CtrConfig(sampling=sampling), rank=RankConfig(sampling=sampling))
    task = small_model(tasks=config).task(name)
    assert task.sampling is sampling
    labels = {
        "clicked": torch.zeros(5), "weight": torch.ones(5), "rate_uniform": torch.rand(5) + 0.1,
        "rate_popularity": torch.rand(5) + 0.1,
    }  # fmt: skip
    score_E = torch.randn(5, requires_grad=True)
    task.loss(score_E, labels)[0].sum().backward()
    both_E = labels["rate_uniform"] + labels["rate_popularity"]
    above_E = {Sampling.logq: both_E, Sampling.uniform: both_E / labels["rate_uniform"], Sampling.none: torch.ones(5)}
    assert torch.allclose(torch.logit(score_E.grad), score_E.detach() - torch.log(above_E[sampling]), atol=1e-5)


def test_predictions_equal_a_forward_pass_over_the_whole_days_at_once(dataset: Dataset) -> None:
    model = small_model(ModelConfig(dropout=0.5))
    tasks = samplings(model)
    days = dataset.days()[4:]
    found = predict(scorer_of(model, device=CPU), dataset, days=days, tasks=tasks, timelines_per_batch=1000)
    batch = next(iter(Loader(dataset, days=days[:1], global_batch_size=1000, shuffle=False)))
    with torch.no_grad():
        outputs = model.eval()(batch)
    for name, output in outputs.items():
        first = len(output.score_E)
        assert torch.allclose(torch.from_numpy(found[name].score[:first]).float(), output.score_E, atol=1e-6)
        assert found[name].sampling is tasks[name]


def test_every_registered_task_is_evaluated_from_end_to_end(dataset: Dataset, tmp_path: Path) -> None:
    asked = TasksConfig(shop=ShopConfig(enabled=Enabled.always), next_item=NextItemConfig(enabled=Enabled.always))
    model = small_model(ModelConfig(query=False), tasks=asked)
    trained = Trained(
        name="untrained",
        step=0,
        dataset=dataset,
        training_days=dataset.days()[:4],
        tasks=samplings(model),
        scorer=scorer_of(model, device=CPU),
    )
    report = evaluate(
        trained, folder=tmp_path, settings=EvaluateConfig(num_replicates=20, baselines=False, plots=False)
    )
    assert {task.task for task in report.tasks} == set(TASKS)
    for task in report.tasks:
        for part in task.sets:
            assert part.scores[0].metrics[task.headline].value is not None or task.task == "follow"
