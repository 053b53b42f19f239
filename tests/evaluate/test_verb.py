"""`stack evaluate` on a run that `stack train` left behind."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from stack.__main__ import main
from stack.base.dist import process_group
from stack.base.errors import CheckpointError
from stack.base.run import RunConfig
from stack.data.dataset import Dataset
from stack.data.loader import Loader
from stack.evaluate.report import read
from stack.tables.config import TablesConfig
from stack.tasks import TasksConfig
from stack.towers.config import ModelConfig
from stack.train.build import Setup, build_loop
from stack.train.config import TrainConfig
from stack.train.optim import OptimConfig
from stack.train.trained import open_run

CPU = torch.device("cpu")


def test_the_run_opened_again_scores_like_the_model_that_was_trained(dataset: Dataset, tmp_path: Path) -> None:
    days = dataset.days()
    setup = Setup(
        dataset=dataset.path, model=ModelConfig(), tasks=TasksConfig(), tables=TablesConfig(), optim=OptimConfig(),
        train=TrainConfig(to_day=days[3], batch_size=32), run=RunConfig(dir=str(tmp_path)), composed="",
    )  # fmt: skip
    setup.run.folder.mkdir()
    batch = next(iter(Loader(dataset, days=days[4:], global_batch_size=50, shuffle=False)))
    with process_group(device=CPU):
        loop = build_loop(setup, device=CPU, checkpoint=None)
        untrained = {name: output.score_E.detach() for name, output in loop.stepper.model.eval()(batch).items()}
        loop.stepper.model.train()
        loop.run()
        expected = loop.stepper.model.eval()(batch)
        run = open_run(replace(setup, run=RunConfig(dir=str(tmp_path), seed=9)), version=None, device=CPU)
        found = run.model(batch)
        with pytest.raises(CheckpointError, match="has no version 999; it has versions 1 to 1"):
            open_run(setup, version="999", device=CPU)
    assert run.days == days[:4]
    assert run.step == loop.num_steps
    for name, output in expected.items():
        assert torch.equal(found[name].score_E, output.score_E), name
        assert not torch.allclose(output.score_E, untrained[name]), name


def test_the_command_line_trains_then_evaluates_the_days_that_training_left(
    dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = [f"run.dir={tmp_path}", "run.name=small"]
    data = ["data=events", f"data.out={dataset.path}", "data.path=none"]
    assert main(["train", *data, *run, f"train.to_day={dataset.days()[3]}", "train.batch_size=64"]) == 0
    assert (
        main(["evaluate", *run, "evaluate.num_replicates=20", "evaluate.plots=false", "evaluate.baselines=false"]) == 0
    )
    report = read(tmp_path / "small" / "report.json")
    assert report.held_out_days == dataset.days()[4:]
    assert {task.task for task in report.tasks} == {"ctr", "rank", "power", "follow"}
    capsys.readouterr()
    assert main(["evaluate", f"run.dir={tmp_path}", "run.name=other"]) == 2
    assert capsys.readouterr().err == (
        f"stack: {tmp_path}/other is not a run (no config.yaml): set run.dir and run.name, or run `stack train` first\n"
    )
