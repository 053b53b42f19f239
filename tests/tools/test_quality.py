"""The study of items on a log: its cases, and what it reads of their runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from stack.base.errors import UserError
from stack.data.dataset import Dataset
from stack.evaluate import report
from stack.verbs import OF_THE_RUN
from tests.prepared import NUM_ROWS, write_prepared
from tools.bench import quality


def test_cases_are_exact_then_each_way_at_each_share_with_runs_of_their_own() -> None:
    cases = list(quality.cases(1000, (0.001, 0.5), run="study"))
    assert [case.num_rows for case in cases] == [1001, 4, 4, 501, 501]
    assert len({case.run for case in cases}) == len(cases)
    assert cases[0].overrides == ()
    assert cases[-2].overrides == ("ids.modes.item=hashed", "ids.rows.item=501")
    assert cases[-1].overrides == ("ids.modes.item=managed", "ids.rows.item=501")


def test_cases_that_have_their_report_are_read_and_not_run_again(tmp_path: Path) -> None:
    overrides = _study(tmp_path, task="ctr")
    exact, *others = quality.study(overrides, shares=(0.1,))
    assert (exact.name, exact.num_rows) == ("exact", NUM_ROWS["item"])
    assert exact.gauc == {"uniform": report.Estimate(value=0.5, low=0.4, high=0.6)}
    assert exact.hit_share is None
    assert [one.hit_share for one in others] == [None, 0.75]
    assert quality.as_table([exact, *others]).row_count == 3


def test_a_case_without_a_report_is_trained_and_judged_with_options_that_each_verb_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = [*_study(tmp_path, task="ctr"), "tasks=ctr"]
    folder = tmp_path / "runs" / "study-exact"
    written = (folder / "report.json").read_bytes()
    (folder / "report.json").unlink()
    typed: list[tuple[str, ...]] = []

    def stack(*words: str) -> None:
        typed.append(words)
        if words[0] == "evaluate":
            (folder / "report.json").write_bytes(written)

    monkeypatch.setattr(quality, "_stack", stack)
    quality.study(overrides, shares=())
    assert typed == [
        ("train", *overrides, "run.name=study-exact"),
        ("evaluate", f"run.dir={folder.parent}", "run.name=study-exact", "evaluate.baselines=false"),
    ]
    assert not {word.partition(".")[0] for word in typed[1]} & OF_THE_RUN


def test_a_study_without_the_task_that_judges_items_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no task 'ctr', by which items are judged: train it, as tasks=ctr does"):
        quality.study(_study(tmp_path, task="rank"), shares=())


def _study(folder: Path, *, task: str) -> list[str]:
    """A dataset, and runs of all cases with a report and, if managed, the log of their ids."""
    prepared = write_prepared(folder / "prepared", num_days=2, num_users=12)
    num_distinct = Dataset(prepared).num_rows(Dataset(prepared).days()[-1])["item"] - 1
    for case in quality.cases(num_distinct, (0.1,), run="study"):
        run = folder / "runs" / case.run
        run.mkdir(parents=True)
        report.write(_report(task), run / "report.json")
        if "managed" in case.name:
            lines = [f'{{"step": {s}, "table": "{t}", "hit_share": {h}}}' for s, t, h in _LINES]
            (run / "ids.jsonl").write_text("\n".join(lines) + "\n")
    return [f"data.out={prepared}", f"run.dir={folder / 'runs'}", "run.name=study"]


_LINES = ((50, "item", 0.25), (100, "item", 0.75), (100, "shop", 0.1))


def _report(task: str) -> report.Report:
    gauc = {"gauc": report.Estimate(value=0.5, low=0.4, high=0.6)}
    scores = (report.Score(name="model", kind="model", metrics=gauc),)
    judged = report.SetReport(
        set="uniform", num_examples=1, num_positives=1, num_users=1, num_users_with_both_labels=1, num_left_out=0,
        num_training_rows=0, scores=scores, comparisons=(),
    )  # fmt: skip
    task_report = report.TaskReport(task=task, group="impression", label="clicked", headline="gauc", sets=(judged,))
    return report.Report(
        run="study", step=1, dataset="prepared", created="", training_days=(), held_out_days=(), num_replicates=1,
        confidence=0.95, seed=0, tasks=(task_report,),
    )  # fmt: skip
