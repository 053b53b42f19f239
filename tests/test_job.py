"""The way from the command line to the dataclasses, on a small tree of groups of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

import pytest
from omegaconf import MISSING

from stack.base.errors import ConfigError, DataError
from stack.base.run import RunConfig
from stack.job import CHOICES as REAL_CHOICES
from stack.job import Composer, Job, configs_folder, from_yaml, to_yaml


class Engine(Enum):
    duckdb = "duckdb"
    spark = "spark"


@dataclass(kw_only=True)
class SourceConfig:
    path: str = MISSING


@dataclass(kw_only=True)
class ShopConfig(SourceConfig):
    path: str = "shop"
    num_weeks: int = 52


@dataclass(kw_only=True)
class EventsConfig(SourceConfig):
    columns: dict[str, str] = field(default_factory=dict)
    # our name -> the log's name


@dataclass(kw_only=True)
class IngestConfig:
    engine: Engine = Engine.duckdb
    max_bad_share: float = 0.01

    def __post_init__(self) -> None:
        if not 0 <= self.max_bad_share <= 1:
            raise ValueError(f"ingest.max_bad_share={self.max_bad_share} must be from 0 to 1")


@dataclass(kw_only=True)
class Root:
    data: SourceConfig = MISSING
    ingest: IngestConfig = field(default_factory=IngestConfig)
    run: RunConfig = field(default_factory=RunConfig)


CHOICES = {"data": {"shop": ShopConfig, "events": EventsConfig}}
FILES = {
    "config.yaml": "defaults: [schema, data: shop, ingest: default, _self_, experiment: null,\n"
    "  override hydra/job_logging: none, override hydra/hydra_logging: none]\n"
    "hydra: {run: {dir: .}, sweep: {dir: '${run.dir}', subdir: .}, output_subdir: null, job: {chdir: false}}\n",
    "data/shop.yaml": "defaults: [{/schema/data@_here_: shop}, _self_]\nnum_weeks: 40\n",
    "data/events.yaml": "defaults: [{/schema/data@_here_: events}, _self_]\n",
    "ingest/default.yaml": "max_bad_share: 0.02\n",
    "experiment/small.yaml": "# @package _global_\ndefaults: [override /data: events]\n"
    "data: {path: small.csv, columns: {user: visitor}}\ningest: {engine: spark}\nrun: {name: small}\n",
    "experiment/wrong.yaml": "# @package _global_\ningest: {workers: 3}\n",
}


@pytest.fixture
def composer(tmp_path: Path) -> Composer[Root]:
    for name, text in FILES.items():
        file = tmp_path / "configs" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return Composer(root=Root, choices=CHOICES, folder=tmp_path / "configs")


def test_yaml_overrides_the_dataclass_and_the_command_line_overrides_both(composer: Composer[Root]) -> None:
    job = composer.compose(["ingest.engine=spark", "run.seed=3"])
    assert job == Root(
        data=ShopConfig(path="shop", num_weeks=40),
        ingest=IngestConfig(engine=Engine.spark, max_bad_share=0.02),
        run=RunConfig(seed=3),
    )


def test_each_choice_of_a_group_has_the_options_of_its_own_dataclass(composer: Composer[Root]) -> None:
    job = composer.compose(["data=events", "data.path=log.csv", "+data.columns.user=visitorid"])
    assert job.data == EventsConfig(path="log.csv", columns={"user": "visitorid"})


def test_an_experiment_overrides_choices_and_values_across_groups(composer: Composer[Root]) -> None:
    job = composer.compose(["experiment=small", "run.seed=1"])
    assert job.data == EventsConfig(path="small.csv", columns={"user": "visitor"})
    assert (job.ingest.engine, job.run.name, job.run.seed) == (Engine.spark, "small", 1)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["ingest.worker=3"], "unknown option 'ingest.worker'; 'ingest' knows: engine, max_bad_share"),
        (["+ingest.worker=3"], "unknown option 'ingest.worker'; 'ingest' knows: engine, max_bad_share"),
        (["++ingest.worker=3"], "unknown option 'ingest.worker'; 'ingest' knows: engine, max_bad_share"),
        (["modle.size=3"], "unknown option 'modle'; known groups: data, ingest, run"),
        (["+modle.size=3"], "unknown option 'modle'; known groups: data, ingest, run"),
        (["+modle=3"], "unknown option 'modle'; known groups: data, ingest, run"),
        (["data.columns.user=a"], "unknown option 'data.columns'; 'data' knows: num_weeks, path"),
        (["data=evnts"], "unknown choice 'evnts' for 'data'; known: events, shop"),
        (["experiment=none_such"], "unknown choice 'none_such' for 'experiment'; known: small, wrong"),
        (["experiment=wrong"], "unknown option 'ingest.workers'; 'ingest' knows: engine, max_bad_share"),
        (["data=events"], "the option 'data.path' has no value and no default: give it as data.path=..."),
        (["run.seed=abc"], "run.seed: Value 'abc' of type 'str' could not be converted to Integer"),
        (["ingest.engine=dask"], "ingest.engine: Invalid value 'dask', expected one of [duckdb, spark]"),
        (["ingest.max_bad_share=2"], "ingest.max_bad_share=2.0 must be from 0 to 1"),
        (["run.name=a/b"], "run.name='a/b' must be letters, digits, '.', '_' or '-', and begin with a letter or digit"),
        (["run.name"], "cannot read the option 'run.name': write it as name=value, quoted where it has spaces or '='"),
        (["run.seed=1,2"], "the option 'run.seed=1,2' is a sweep: add --multirun, or quote the value"),
        (["~ingest.engine"], "ingest.engine: IngestConfig (DictConfig) does not support deletion"),
        (["ingest=3"], "Config group override must be a string or a list. Got int (options given: ingest=3)"),
        (["data=null"], "Config group override must be a string or a list. Got NoneType (options given: data=null)"),
        (["run=null"], "run: field 'run' is not Optional"),
    ],
)
def test_what_is_wrong_is_refused_in_one_line(composer: Composer[Root], overrides: Sequence[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        composer.compose(overrides)
    assert str(caught.value) == message


@pytest.mark.parametrize("flag", ["--cfg", "--info"])
def test_hydras_flags_answer_and_do_not_run_the_verb(
    composer: Composer[Root], capsys: pytest.CaptureFixture[str], flag: str
) -> None:
    composer.launch("ingest", [flag, {"--cfg": "job", "--info": "defaults"}[flag], "run.seed=7"], _never)
    shown = capsys.readouterr().out
    assert "seed: 7" in shown if flag == "--cfg" else "data/shop" in shown


def test_multirun_runs_the_verb_once_for_each_value_and_leaves_no_folders(
    composer: Composer[Root], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    seen: list[object] = []
    composer.launch("train", ["--multirun", "run.seed=1,2", "run.dir=all"], seen.append)
    assert [job.run.seed for job in seen if isinstance(job, Root)] == [1, 2]
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if "configs" not in path.parts) == [
        "all",
        "all/multirun.yaml",
    ]


def test_a_single_run_leaves_no_file_or_folder(
    composer: Composer[Root], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    composer.launch("train", ["run.seed=1"], lambda job: None)
    assert list((tmp_path / "empty").iterdir()) == []


def test_a_wrong_value_anywhere_in_a_sweep_is_refused_before_the_first_run(composer: Composer[Root]) -> None:
    with pytest.raises(ConfigError, match="run.seed: Value 'x' of type 'str' could not be converted to Integer"):
        composer.launch("train", ["--multirun", "run.seed=1,x"], _never)


def test_an_error_of_the_verb_comes_through_a_sweep_unchanged(
    composer: Composer[Root], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(job: object) -> None:
        raise DataError("no such day")

    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="^no such day$"):
        composer.launch("train", ["--multirun", "run.seed=1,2"], fail)


def test_an_unknown_flag_is_refused(composer: Composer[Root]) -> None:
    with pytest.raises(ConfigError, match="unknown flag '--fast': `stack train --help` shows the flags there are"):
        composer.launch("train", ["--fast"], _never)


@pytest.mark.parametrize("source", sorted(REAL_CHOICES["data"]))
def test_every_source_composes_and_comes_back_from_its_saved_text(source: str) -> None:
    real = Composer(root=Job, choices=REAL_CHOICES, folder=configs_folder())
    job = real.compose([f"data={source}", "run.name=first", "train.batch_size=7"])
    assert (job.data.source, type(job.data)) == (source, REAL_CHOICES["data"][source])
    assert from_yaml(to_yaml(job)) == job


def test_a_saved_configuration_of_another_version_is_refused() -> None:
    real = Composer(root=Job, choices=REAL_CHOICES, folder=configs_folder())
    text = to_yaml(real.compose(["data=events"]))
    with pytest.raises(ConfigError, match="^the saved configuration is not of this version: Key 'batch_sise' not in"):
        from_yaml(text.replace("batch_size", "batch_sise"))
    with pytest.raises(ConfigError, match="^the saved configuration is not of this version: 'gone'$"):
        from_yaml(text.replace("source: events", "source: gone"))


@pytest.mark.parametrize(
    "file", sorted(configs_folder().glob("*/*.yaml")), ids=lambda file: f"{file.parent.name}-{file.stem}"
)
def test_every_file_of_values_composes(file: Path) -> None:
    real = Composer(root=Job, choices=REAL_CHOICES, folder=configs_folder())
    real.compose([f"{file.parent.name}={file.stem}"])


def test_one_value_where_a_list_is_asked_for_is_told_how_to_be_one() -> None:
    real = Composer(root=Job, choices=REAL_CHOICES, folder=configs_folder())
    with pytest.raises(ConfigError, match=r"ingest\.raw_ids: .*: write a list as ingest\.raw_ids=\[a,b\]$"):
        real.compose(["ingest.raw_ids=item"])


def _never(job: object) -> None:
    raise AssertionError("the verb must not run")


def test_a_dictionary_takes_any_key_and_refuses_values_of_the_wrong_type() -> None:
    composer = Composer(root=Job, choices=REAL_CHOICES, folder=configs_folder())
    tables = composer.compose(["tables.dims.item=64", "tables.dims.colour=8", "+tables.dims.size=4"]).tables
    assert (tables.dims["item"], tables.dims["colour"], tables.dims["size"]) == (64, 8, 4)
    with pytest.raises(
        ConfigError, match=r"tables.shardings.item: Invalid value 'diagonal', expected one of \[row_wise"
    ):
        composer.compose(["tables.shardings.item=diagonal"])
