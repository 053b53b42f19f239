"""Two processes that train are scraped over HTTP while they do; and the figures of a window against other ways to
compute them."""

from __future__ import annotations

import json
import math
import socket
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from urllib.request import urlopen

import msgspec
import numpy as np
import pytest
import torch
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families
from sklearn.metrics import log_loss, roc_auc_score

from stack.checkpoint.chain import chain_of
from stack.data.dataset import Dataset
from stack.tasks import TaskOutput
from stack.tasks.ctr import CtrTask
from stack.tasks.next_item import MOMENT, NextItemTask
from stack.tasks.power import PowerTask
from stack.tasks.rank import RankTask
from stack.tasks.sampling import Sampling
from stack.telemetry.metrics import TrainMetrics
from stack.train.meter import end_of_day, tell_data
from stack.train.window import Window
from tests.clocks import wait_for
from tests.distributed.launch import run_ranks
from tests.prepared import write_prepared
from tests.train.metered import PAUSED_STEP
from tests.train.worker import Run, losses, setup_of

WINDOW_STEPS = 4
POISONED_STEP = 6
BAD_ROWS = {"bad_item": 3, "duplicate": 2}

Series = Mapping[tuple[str, str], float]
"""By name and value of the first label, which is enough here."""


@dataclass(frozen=True, kw_only=True)
class Scraped:
    """What each rank showed after step `PAUSED_STEP`, and where; files for Prometheus then, and at the end."""

    run: Run
    texts: list[str]
    ports: list[int]
    labels: list[dict[str, str]]
    taken: int
    files: set[str]
    files_after: set[str]

    @property
    def ranks(self) -> list[Series]:
        return [_series(text) for text in self.texts]

    @property
    def steps(self) -> list[dict[str, float]]:
        """Lines of steps.jsonl until then."""
        lines = (self.run.folder / "steps.jsonl").read_bytes().splitlines()
        return [json.loads(line) for line in lines][:PAUSED_STEP]


@pytest.fixture(scope="module")
def scraped(tmp_path_factory: pytest.TempPathFactory) -> Scraped:
    """The second rank's port is taken, a larger start of the run has left its files, and one batch holds a NaN."""
    folder = tmp_path_factory.mktemp("metered")
    targets = folder / "targets"
    targets.mkdir()
    for left in ("metered.train.2.json", "metered.train.x.train.3.json", "other.train.2.json"):
        (targets / left).write_text("[]")
    data = write_prepared(folder / "data")
    manifest = min((data / "days").glob("*/manifest.json"))
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"dropped": BAD_ROWS}))
    with closing(_taken()) as taken, ThreadPoolExecutor(1) as pool:
        port = taken.getsockname()[1]
        run = Run(
            dataset=str(data), runs=str(folder), name="metered", managed_rows=30, poisoned_step=POISONED_STEP,
            train={"log_every_steps": WINDOW_STEPS},
            telemetry={"enabled": True, "port": port - 1, "window_steps": WINDOW_STEPS},
        )  # fmt: skip
        training = pool.submit(
            run_ranks, "tests.train.metered", msgspec.json.encode(run).decode(), folder, world_size=2
        )
        try:
            while not training.done() and len(list(folder.glob("paused-*"))) < 2:
                time.sleep(0.02)  # a training that does not come to the step is ended by `run_ranks`
            if training.done():
                training.result()
            files = {path.name for path in targets.glob("*.json")}
            told = [json.loads((targets / f"metered.train.{rank}.json").read_text()) for rank in (0, 1)]
            wait_for(
                lambda: _series(_get(told[0]))["stack_train_checkpoints_total", "committed"] > 0, "nothing is saved"
            )
            texts = [_get(one) for one in told]
        finally:
            (folder / "go").touch()
        training.result()
    return Scraped(
        run=run, texts=texts, ports=[int(one[0]["targets"][0].split(":")[1]) for one in told],
        labels=[one[0]["labels"] for one in told], taken=port, files=files,
        files_after={path.name for path in targets.glob("*.json")},
    )  # fmt: skip


def test_prometheus_is_told_of_both_ranks_while_they_run_and_of_none_that_is_gone(scraped: Scraped) -> None:
    assert scraped.labels == [{"run": "metered", "role": "train", "rank": str(rank)} for rank in (0, 1)]
    others = {"metered.train.x.train.3.json", "other.train.2.json"}
    assert scraped.files == {"metered.train.0.json", "metered.train.1.json", *others}
    assert scraped.files_after == others


def test_a_rank_whose_port_is_taken_takes_another_and_counts_it(scraped: Scraped) -> None:
    assert scraped.ports[0] == scraped.taken - 1
    assert scraped.ports[1] != scraped.taken
    counts = [one.get(("stack_telemetry_errors_total", "exporter")) for one in scraped.ranks]
    assert counts == [None, 1.0]


def test_counts_are_those_of_the_step_log(scraped: Scraped) -> None:
    learnt = [step for step in scraped.steps if not step["refused"]]
    assert len(learnt) == PAUSED_STEP - 1
    for rank in scraped.ranks:
        assert rank["stack_train_steps_total", ""] == rank["stack_train_step", ""] == PAUSED_STEP
        assert rank["stack_train_planned_steps", ""] == len(losses(scraped.run.folder))
        assert rank["stack_train_examples_total", ""] == sum(step["num_examples"] for step in learnt)
        assert rank["stack_train_refused_batches_total", ""] == 1
        assert rank["stack_train_gradient_norm", ""] == learnt[-1]["gradient_norm"]
        assert rank["stack_train_step_seconds_count", ""] == PAUSED_STEP
    first = scraped.ranks[0]
    assert math.isclose(first["stack_train_step_seconds_sum", ""], sum(step["seconds"] for step in scraped.steps))
    waited = sum(step["wait_seconds"] for step in scraped.steps)
    assert math.isclose(first["stack_train_loader_wait_seconds_total", ""], waited)


def test_figures_of_a_window_are_of_its_learnt_steps(scraped: Scraped) -> None:
    window = [step for step in scraped.steps[-WINDOW_STEPS:] if not step["refused"]]
    mean = sum(step["losses"]["ctr"] for step in window) / len(window)  # type: ignore[index]
    ranks = scraped.ranks
    for rank in ranks:
        assert math.isclose(rank["stack_train_loss", "ctr"], mean)
        assert 0 < rank["stack_train_auc", "ctr"] < 1
        assert 0.5 < rank["stack_train_normalized_entropy_ratio", "ctr"] < 2
        assert ("stack_train_auc", "power") not in rank
    assert ranks[0]["stack_train_auc", "ctr"] != ranks[1]["stack_train_auc", "ctr"]


def test_exchanges_of_tables_are_a_part_of_the_steps(scraped: Scraped) -> None:
    for rank in scraped.ranks:
        assert 0 < rank["stack_train_exchange_seconds_total", ""] < rank["stack_train_step_seconds_sum", ""]


def test_managed_ids_are_told_by_the_rank_that_has_them(scraped: Scraped) -> None:
    ranks = scraped.ranks
    lines = [json.loads(line) for line in (scraped.run.folder / "ids.jsonl").read_bytes().splitlines()]
    until = [line for line in lines if line["step"] <= PAUSED_STEP]
    assert [line["step"] for line in until] == [4, 8]
    for name, key in (("admitted", "num_admitted"), ("evicted", "num_evicted")):
        found = sum(rank[f"stack_train_{name}_ids_total", "item"] for rank in ranks)
        assert found == sum(line[key] for line in until)
    held = [rank["stack_train_table_held_rows", "item"] for rank in ranks]
    assert min(held) > 0
    assert sum(held) == until[-1]["num_held"]
    assert all(rank["stack_train_table_rows", "item"] == 30 for rank in ranks)


def test_lookups_of_a_batch_repeat_ids(scraped: Scraped) -> None:
    for rank in scraped.ranks:
        assert rank["stack_train_lookups_total", "item"] > rank["stack_train_lookups_total", "icon"] > 0
        assert 0 < rank["stack_train_unique_ids_ratio", "item"] < 0.5


def test_a_version_is_told_by_the_first_rank_when_it_is_out(scraped: Scraped) -> None:
    first, second = scraped.ranks
    assert first["stack_train_checkpoints_total", "committed"] == first["stack_train_checkpoint_seconds_count", ""] == 1
    assert first["stack_train_checkpoints_total", "failed"] == 0  # and not left out: so the first one is an increase
    assert ("stack_train_checkpoints_total", "committed") not in second
    assert (
        first["stack_train_checkpoint_bytes_total", ""]
        == chain_of(setup_of(scraped.run).chain_place).manifest(1).num_bytes
    )
    assert second["stack_train_checkpoint_bytes_total", ""] == 0


def test_the_process_is_shown_and_no_series_says_when_it_began(scraped: Scraped) -> None:
    for text in scraped.texts:
        assert "process_resident_memory_bytes" in text
        assert "_created" not in text


def test_bad_rows_and_sizes_are_of_the_days_learnt(scraped: Scraped) -> None:
    assert scraped.ranks[0]["stack_train_bad_rows", "bad_item"] == BAD_ROWS["bad_item"]
    dataset, registry = Dataset(Path(scraped.run.dataset)), CollectorRegistry()
    metrics = TrainMetrics(registry)
    first, second = dataset.days()[:2]
    tell_data(metrics, dataset, days=[first, second], num_rows={"item": 7})
    assert registry.get_sample_value("stack_train_bad_rows", {"reason": "duplicate"}) == BAD_ROWS["duplicate"]
    assert registry.get_sample_value("stack_train_table_rows", {"table": "item"}) == 7
    tell_data(metrics, dataset, days=[second], num_rows={})
    assert registry.get_sample_value("stack_train_bad_rows", {"reason": "duplicate"}) is None


def test_a_day_ends_at_midnight() -> None:
    assert end_of_day("1970-01-01") == 86_400


def _output(
    task: CtrTask | RankTask | PowerTask | NextItemTask, score_E: torch.Tensor, labels: dict[str, torch.Tensor]
) -> TaskOutput:
    loss_E, weight_E, label_E = task.loss(score_E, labels)
    return TaskOutput(group=task.group, score_E=score_E, loss_E=loss_E, weight_E=weight_E, label_E=label_E)


def _labels(rng: np.random.Generator, num_examples: int) -> dict[str, torch.Tensor]:
    values = {
        "clicked": rng.random(num_examples) < 0.3, "weight": rng.uniform(0.5, 3.0, num_examples),
        "rate_uniform": rng.uniform(0.1, 0.9, num_examples), "rate_popularity": rng.uniform(0.1, 9.0, num_examples),
    }  # fmt: skip
    return {name: torch.tensor(value, dtype=torch.float32) for name, value in values.items()}


@pytest.mark.parametrize("sampling", list(Sampling))
@pytest.mark.parametrize("kind", [CtrTask, RankTask])
def test_a_window_s_figures_are_scikit_learn_s_of_the_sample(
    kind: type[CtrTask] | type[RankTask], sampling: Sampling
) -> None:
    """`RankTask` weighs its examples; `sampling` is how the score counts negatives."""
    task = (
        kind(num_rep=2, num_candidate=2, num_dense=2, sampling=sampling)
        if kind is CtrTask
        else kind(num_rep=2, num_dense=2, sampling=sampling)
    )  # type: ignore[call-arg]
    rng = np.random.default_rng(0)
    window, scores, all_labels = Window(), [], []
    for num_examples in (300, 1, 500):
        labels = _labels(rng, num_examples)
        score_E = torch.tensor(rng.normal(size=num_examples), dtype=torch.float32) + labels["clicked"]
        window.add({task_name(task): _output(task, score_E, labels)})
        scores.append(score_E.numpy())
        all_labels.append({name: value.numpy() for name, value in labels.items()})
    score_E = np.concatenate(scores).astype(np.float64)
    label = {name: np.concatenate([one[name] for one in all_labels]).astype(np.float64) for name in all_labels[0]}
    both_E = label["rate_uniform"] + label["rate_popularity"]
    counted_E = {Sampling.logq: np.ones(801), Sampling.uniform: label["rate_uniform"], Sampling.none: both_E}[sampling]
    predicted_E = 1 / (1 + np.exp(-(score_E - np.log(both_E / counted_E))))
    weight_E = label["weight"] if kind is RankTask else np.ones(801)
    share = float(weight_E @ label["clicked"] / weight_E.sum())
    (found,) = window.take().values()
    assert math.isclose(found.auc, roc_auc_score(label["clicked"], score_E), rel_tol=1e-6)
    entropy = -share * math.log(share) - (1 - share) * math.log(1 - share)
    expected = log_loss(label["clicked"], predicted_E, sample_weight=weight_E) / entropy
    assert math.isclose(found.normalized_entropy, expected, rel_tol=1e-5)
    assert math.isclose(found.calibration, weight_E @ predicted_E / (weight_E @ label["clicked"]), rel_tol=1e-5)
    assert window.take() == {}


def test_scores_that_are_no_log_odds_have_an_order_alone_and_classes_not_even_that() -> None:
    rng = np.random.default_rng(0)
    labels = _labels(rng, 40) | {MOMENT: torch.zeros(40, dtype=torch.int64)}
    score_E = torch.tensor(rng.normal(size=40), dtype=torch.float32)
    window = Window()
    window.add(
        {
            "next_item": _output(NextItemTask(num_rep=2, num_candidate=2), score_E, labels),
            "power": _output(PowerTask(num_rep=2), torch.zeros(40, 7), {"tier": torch.zeros(40)}),
        }
    )
    found = window.take()
    assert list(found) == ["next_item"]
    assert math.isclose(found["next_item"].auc, roc_auc_score(labels["clicked"], score_E), rel_tol=1e-6)
    assert math.isnan(found["next_item"].calibration)
    assert math.isnan(found["next_item"].normalized_entropy)


def test_a_window_of_one_label_or_of_no_example_has_no_figures() -> None:
    task = CtrTask(num_rep=2, num_candidate=2, num_dense=2)
    for num_examples in (5, 0):
        labels = _labels(np.random.default_rng(0), num_examples) | {"clicked": torch.zeros(num_examples)}
        window = Window()
        window.add({"ctr": _output(task, torch.zeros(num_examples), labels)})
        (found,) = window.take().values()
        assert all(map(math.isnan, (found.auc, found.normalized_entropy, found.calibration)))


def task_name(task: CtrTask | RankTask) -> str:
    return "ctr" if isinstance(task, CtrTask) else "rank"


def _get(told: list[dict[str, list[str]]]) -> str:
    with urlopen(f"http://{told[0]['targets'][0]}/metrics") as answer:
        return str(answer.read().decode())


def _series(text: str) -> dict[tuple[str, str], float]:
    return {
        (sample.name, next(iter(sample.labels.values()), "")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def _taken() -> socket.socket:
    """A port that is listened on, of which the one below is free."""
    while True:
        taken = socket.create_server(("127.0.0.1", 0))
        try:
            socket.create_server(("127.0.0.1", taken.getsockname()[1] - 1)).close()
        except OSError:
            taken.close()
            continue
        return taken
