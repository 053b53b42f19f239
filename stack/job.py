"""The whole configuration of a job as one tree of dataclasses, and its way from the command line. The only Hydra file.

Each group of options is a dataclass beside its owner; `configs/<group>/<choice>.yaml` holds values only. A group
whose choices have different dataclasses (another source of data has other options) is listed in `CHOICES`; its YAML
begins with

    defaults:
      - /schema/data@_here_: events
      - _self_

What Hydra would let pass is refused here: unknown keys also where they are added with `+`.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Generic, TypeVar, cast, get_origin, get_type_hints

import hydra
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.utils import get_args_parser
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from stack.audits.config import AuditConfig
from stack.audits.data_config import DataAuditConfig
from stack.base.errors import ConfigError
from stack.base.run import RunConfig
from stack.checkpoint.config import CheckpointConfig
from stack.daily.config import DailyConfig
from stack.dashboard.config import DashboardConfig
from stack.data.canonical import DataConfig
from stack.data.ingest_config import IngestConfig
from stack.data.sources import SOURCES
from stack.evaluate.config import EvaluateConfig
from stack.export.config import ExportConfig
from stack.ids.config import IdsConfig
from stack.launch.config import LaunchConfig
from stack.serve.config import ServeConfig
from stack.tables.cluster import ClusterConfig
from stack.tables.config import TablesConfig
from stack.tables.plan_config import PlanConfig
from stack.tasks import TasksConfig
from stack.telemetry.config import TelemetryConfig
from stack.towers.config import ModelConfig
from stack.train.config import TrainConfig
from stack.train.optim import OptimConfig

Choices = Mapping[str, Mapping[str, type]]


@dataclass(kw_only=True)
class Job:
    """All options of all verbs, one group for each owner. Each verb reads the groups it needs."""

    data: DataConfig = MISSING
    ingest: IngestConfig = field(default_factory=IngestConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    plan: PlanConfig = field(default_factory=PlanConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    tables: TablesConfig = field(default_factory=TablesConfig)
    ids: IdsConfig = field(default_factory=IdsConfig)
    tasks: TasksConfig = field(default_factory=TasksConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    daily: DailyConfig = field(default_factory=DailyConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    audit: AuditConfig = field(default_factory=AuditConfig)
    audit_data: DataAuditConfig = field(default_factory=DataAuditConfig)
    export: ExportConfig = field(default_factory=ExportConfig)
    serve: ServeConfig = field(default_factory=ServeConfig)
    dashboard: DashboardConfig = field(default_factory=DashboardConfig)
    launch: LaunchConfig = field(default_factory=LaunchConfig)
    telemetry: TelemetryConfig = field(default_factory=TelemetryConfig)
    run: RunConfig = field(default_factory=RunConfig)


CHOICES: Choices = {"data": {name: source.options for name, source in SOURCES.items()}}
"""Groups whose choices have dataclasses of their own: group -> choice -> dataclass (a subclass of the group's type)."""

T = TypeVar("T")


def configs_folder() -> Path:
    """The folder of YAML files: inside the package when it is installed from a wheel, beside it in a checkout."""
    inside = Path(__file__).parent / "configs"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "configs"


class Composer(Generic[T]):
    """Composes `config.yaml` of a folder, with overrides, into an object of the dataclass `root`."""

    def __init__(self, *, root: type[T], choices: Choices, folder: Path) -> None:
        self._root = root
        self._folder = folder.resolve()
        store = ConfigStore.instance()
        store.store(name="schema", node=root)
        for group, classes in choices.items():
            for choice, node in classes.items():
                store.store(group=f"schema/{group}", name=choice, node=node)

    def compose(self, overrides: Sequence[str]) -> T:
        """The job that `overrides` describe (Hydra's grammar: `run.seed=3`, `data=events`, `experiment=demo`).

        Raises: `ConfigError` in one line for an unknown key or choice, a value of the wrong type or out of its limits.
        """
        overrides = [_into_dictionary(one, self._root) for one in overrides]
        try:
            with hydra.initialize_config_dir(config_dir=str(self._folder), version_base="1.3"):
                config = hydra.compose(config_name="config", overrides=list(overrides))
            _refuse_unknown(config, self._root, "")
            _refuse_missing(config)
            return cast(T, OmegaConf.to_object(config))
        except (HydraException, OmegaConfBaseException) as error:
            raise ConfigError(_one_line(error, overrides)) from error
        except ConfigError:
            raise
        except ValueError as error:  # a check in some dataclass's __post_init__
            given = f" (options given: {' '.join(overrides)})" if "Config group override" in str(error) else ""
            raise ConfigError(f"{error}{given}") from error

    def launch(self, verb: str, arguments: Sequence[str], action: Callable[[T], None]) -> None:
        """Does what the arguments after a verb say: overrides, and Hydra's own flags."""
        arguments = [_into_dictionary(one, self._root) for one in arguments]
        parser = get_args_parser()
        flags, unknown = parser.parse_known_args(list(arguments))
        if unknown:
            raise ConfigError(f"unknown flag {unknown[0]!r}: `stack {verb} --help` shows the flags there are")
        asked = {name for name, value in vars(flags).items() if value and name != "overrides"}
        if not asked:
            action(self.compose(flags.overrides))
            return
        if "multirun" in asked:
            for overrides in _sweep(flags.overrides):
                self.compose(overrides)
        elif not asked & {"help", "hydra_help", "shell_completion", "version"}:
            self.compose(flags.overrides)
        self._hand_over(verb, arguments, action)

    def _hand_over(self, verb: str, arguments: Sequence[str], action: Callable[[T], None]) -> None:
        """Runs Hydra's own entry point, which answers its flags and runs sweeps."""

        def run(config: DictConfig) -> None:
            try:
                action(cast(T, OmegaConf.to_object(config)))
            except Exception as error:
                raise _PastHydra(error) from error

        before, root = sys.argv, logging.getLogger()
        handlers, level = list(root.handlers), root.level
        sys.argv = [f"stack {verb}".strip(), *arguments]
        try:
            hydra.main(version_base="1.3", config_path=str(self._folder), config_name="config")(run)()
        except _PastHydra as carrier:
            raise carrier.error from None
        finally:
            sys.argv = before
            root.handlers[:] = handlers  # `--info` sets up logging for the whole process
            root.setLevel(level)


class _PastHydra(BaseException):
    """Carries a verb's error past Hydra, which would print it in its own way and exit with status 1."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error


def to_yaml(job: Job) -> str:
    """The job as text, to keep beside a run."""
    return OmegaConf.to_yaml(OmegaConf.structured(job))


def from_yaml(text: str) -> Job:
    """The job that `to_yaml` wrote.

    Raises: `ConfigError` where it has options that this version of the code does not know.
    """
    config = OmegaConf.create(text)
    schema = OmegaConf.structured(Job)
    try:
        schema.data = CHOICES["data"][config.data.source]
        merged = OmegaConf.merge(schema, config)
    except (OmegaConfBaseException, KeyError) as error:
        raise ConfigError(f"the saved configuration is not of this version: {' '.join(str(error).split())}") from error
    return cast(Job, OmegaConf.to_object(merged))


def _into_dictionary(word: str, kind: object) -> str:
    """`tables.dims.item=32` as `++tables.dims.item=32`: a dictionary takes any key, and Hydra wants to be told."""
    path, equals, _ = word.partition("=")
    for name in path.split(".")[:-1]:
        kind = get_type_hints(kind).get(name) if isinstance(kind, type) and is_dataclass(kind) else None
    return f"++{word}" if equals and get_origin(kind) is dict else word


def _sweep(overrides: Sequence[str]) -> Iterator[list[str]]:
    """The overrides of each job of a sweep (`a=1,2`), as Hydra's basic sweeper would split them."""
    try:
        parsed = OverridesParser.create().parse_overrides(list(overrides))
    except HydraException as error:
        raise ConfigError(_one_line(error, overrides)) from error
    for batch in BasicSweeper.split_arguments(parsed, max_batch_size=None):
        yield from (list(job) for job in batch)


def _refuse_unknown(config: DictConfig, kind: type, path: str) -> None:
    """Raises `ConfigError` for the first key of the tree that its dataclass does not have."""
    known = [one.name for one in fields(kind)]
    for name in map(str, config):
        if name not in known:
            raise ConfigError(_unknown_key(f"{path}{name}", path, known))
        if OmegaConf.is_missing(config, name):
            continue
        child = config._get_node(name)
        if isinstance(child, DictConfig) and not child._is_none():
            inner = OmegaConf.get_type(child)
            if inner is not None and is_dataclass(inner):
                _refuse_unknown(child, inner, f"{path}{name}.")


def _unknown_key(key: str, path: str, known: Sequence[str]) -> str:
    where = f"{path.rstrip('.')!r} knows" if path else "known groups"
    return f"unknown option {key!r}; {where}: {', '.join(sorted(known))}"


def _refuse_missing(config: DictConfig) -> None:
    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        raise ConfigError(f"the option {missing[0]!r} has no value and no default: give it as {missing[0]}=...")


def _one_line(error: HydraException | OmegaConfBaseException, overrides: Sequence[str]) -> str:
    """Says what Hydra or OmegaConf found wrong, in one line that names the key and the way out."""
    if isinstance(error, OverrideParseException):
        return f"cannot read the option {error.override!r}: write it as name=value, quoted where it has spaces or '='"
    if isinstance(error, MissingConfigException) and error.options is not None:
        group, _, choice = (error.missing_cfg_file or "").rpartition("/")
        known = ", ".join(sorted(error.options)) or "none"
        return f"unknown choice {choice!r} for {group!r}; known: {known}"
    if str(error).startswith("Ambiguous value"):
        option = str(error).splitlines()[0].partition("'")[2].removesuffix("'")
        return f"the option {option!r} is a sweep: add --multirun, or quote the value"
    cause = _omegaconf_cause(error)
    if cause is None or not cause.full_key:
        lines = (line.strip() for line in str(error).splitlines())
        return f"{'; '.join(line for line in lines if line)} (options given: {' '.join(overrides) or 'none'})"
    parent = cause.parent_node
    closed = isinstance(parent, DictConfig) and OmegaConf.get_type(parent) is not dict
    if closed and cause.key is not None and cause.key not in parent:
        path = cause.full_key.removesuffix(str(cause.key))
        return _unknown_key(cause.full_key, path, [str(name) for name in parent if name != "hydra"])
    said = str(cause).splitlines()[0].removesuffix(".")
    way_out = f": write a list as {cause.full_key}=[a,b]" if "ListConfig" in said else ""
    return f"{cause.full_key}: {said}{way_out}"


def _omegaconf_cause(error: BaseException | None) -> OmegaConfBaseException | None:
    """The first error of OmegaConf in the chain of causes: it knows the key."""
    while error is not None and not isinstance(error, OmegaConfBaseException):
        error = error.__cause__ or error.__context__
    return error
