"""The way from the command line to the dataclasses, on a small tree of groups of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

import pytest
from omegaconf import MISSING

from stack.base.errors import ConfigError
from stack.base.run import RunConfig
from stack.job import Composer


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
    "config.yaml": "defaults: [schema, data: shop, ingest: default, _self_, experiment: null]\n"
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
        (["run.seed=1,2"], "the option 'run.seed=1,2' is a sweep: add --multirun, or quote it"),
        (["~ingest.engine"], ""),
        (["ingest=3"], ""),
        (["data=null"], ""),
        (["run=null"], ""),
    ],
)
def test_what_is_wrong_is_refused_in_one_line(composer: Composer[Root], overrides: Sequence[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        composer.compose(overrides)
    assert str(caught.value) == message
