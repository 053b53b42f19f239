"""The one assembly: from options to dataset, model, optimizers and loop. Every verb that needs a model calls it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import torch
import torch.distributed as dist
from torchrec.distributed.model_parallel import DistributedModelParallel

from stack.base.errors import CheckpointError, ConfigError, DataError
from stack.base.run import RunConfig
from stack.base.seed import derive
from stack.checkpoint.chain import chain_of
from stack.checkpoint.config import CheckpointConfig
from stack.checkpoint.load import Checkpoint
from stack.checkpoint.manifest import Lineage, LoopState
from stack.checkpoint.retain import Retention
from stack.checkpoint.save import ChainWriter
from stack.data.dataset import Dataset
from stack.data.loader import Cursor, Loader
from stack.ids.config import IdsConfig
from stack.ids.maps import IdMaps
from stack.layers.norm import freeze_statistics, set_sum_over_ranks
from stack.model import build_model, enabled_tasks, places_of
from stack.tables.choose import plan_for
from stack.tables.cluster import ClusterConfig
from stack.tables.collection import Tables
from stack.tables.config import TablesConfig, table_specs
from stack.tables.optim import fuse_optimizer
from stack.tables.plan_config import PlanConfig
from stack.tables.plan_file import save_plan
from stack.tables.shard import dense_parameters, shard, tables_in
from stack.tables.touched import track_touched
from stack.tables.with_ids import managed_blocks, specs_with_ids
from stack.tasks import TASKS, TasksConfig
from stack.telemetry.config import TelemetryConfig
from stack.telemetry.console import say
from stack.towers.config import ModelConfig
from stack.train.config import TrainConfig
from stack.train.id_log import IdLog
from stack.train.id_state import id_maps
from stack.train.loop import Loop
from stack.train.meter import Meter, SaveMeter, tell_data
from stack.train.optim import Decay, OptimConfig, Schedule, build_dense_optimizer, build_schedule
from stack.train.periodic import Bar, Curves, Line, Periodic, RefusalLimit, Save, StepLog
from stack.train.ranks import same_on_all_ranks, sum_over_ranks
from stack.train.restore import restore_model, restore_optimizer
from stack.train.run_folder import CHECKPOINTS, CURVES, IDS, PLAN, STEPS
from stack.train.saving import Saver, context_of, crew
from stack.train.step import Stepper
from stack.train.steps import steps_of
from stack.train.tally import Tally
from stack.train.telemetry import Telemetry


@dataclass(frozen=True, kw_only=True)
class Setup:
    """All groups of options that make a trained model what it is, and the composed configuration as YAML."""

    dataset: Path
    model: ModelConfig
    tasks: TasksConfig
    tables: TablesConfig
    optim: OptimConfig
    train: TrainConfig
    run: RunConfig
    composed: str
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    plan: PlanConfig = field(default_factory=PlanConfig)
    ids: IdsConfig = field(default_factory=IdsConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    telemetry: TelemetryConfig = field(default_factory=TelemetryConfig)

    @property
    def chain_place(self) -> Path | str:
        """Where the versions of the run are."""
        return self.checkpoint.store or self.run.folder / CHECKPOINTS


def training_days(dataset: Dataset, config: TrainConfig) -> tuple[str, ...]:
    """The days from `train.from_day` to `train.to_day`; raises `DataError` if there are none."""
    days = dataset.days()
    first, last = config.from_day or days[0], config.to_day or days[-1]
    chosen = tuple(day for day in days if first <= day <= last)
    if not chosen:
        raise DataError(
            f"no day from {first} to {last} in {dataset.path}, which has {days[0]} to {days[-1]}: "
            "set train.from_day and train.to_day"
        )
    return chosen


def build_sharded_model(
    setup: Setup, dataset: Dataset, *, last_day: str, device: torch.device, plan_path: Path | None = None
) -> DistributedModelParallel:
    """The model as it is before the first step, sized by the vocabularies at the end of `last_day` (the last training
    day: ids that come later are unknown to it). Its plan is written to `plan_path`. Needs a process group."""
    names = places_of(setup.model, setup.tasks, dataset.schema).tables()
    num_rows = dataset.num_rows(last_day)
    sized = table_specs(setup.tables, names=names, num_rows=num_rows)
    specs, maps = specs_with_ids(sized, setup.ids, schema=dataset.schema)
    plan = plan_for(
        setup.tables,
        specs,
        optimizer=setup.optim.tables,
        device=device.type,
        cluster=setup.cluster,
        options=setup.plan,
        ids=setup.ids,
    )
    if not same_on_all_ranks(msgspec.json.encode(plan)):
        raise ConfigError(
            "the ranks would follow different plans: give all of them the same options, and the same tables.plan"
        )
    if plan_path is not None and dist.get_rank() == 0:
        save_plan(plan_path, plan)
    blocks = managed_blocks(plan, maps, rank=dist.get_rank())
    tables = Tables(specs, ids=IdMaps(maps, blocks=blocks, device=device))
    fuse_optimizer(
        tables,
        optimizer=setup.optim.tables,
        learning_rate=setup.optim.tables_learning_rate,
        eps=setup.optim.tables_eps,
    )
    torch.manual_seed(derive(setup.run.seed, "dense"))
    model = build_model(
        setup.model,
        tasks=setup.tasks,
        schema=dataset.schema,
        num_rows=num_rows,
        max_history=dataset.manifest.max_history,
        tables=tables,
        table_dims=tables.dims,
    )
    set_sum_over_ranks(model, sum_over_ranks)
    return shard(
        model,
        plan=plan,
        device=device,
        seed=setup.run.seed,
        init_range=setup.tables.init_range,
        communication=setup.tables.communication,
        stochastic_rounding=setup.tables.stochastic_rounding,
    )


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """What is learnt in one go.

    `days` in the order of the loader; `learnt`: all days that the model has seen when it is done; `resumes`: the
    checkpoint is a save on this stretch, not what comes before it; `rate_share`: constant share of the full learning
    rates (None: the schedule of `optim`); `shares`: of some days, the share of timelines that is taken; `metrics`: told
    by its versions beside the losses, read when they are saved.
    """

    days: tuple[str, ...]
    learnt: tuple[str, ...]
    lineage: Lineage
    resumes: bool = True
    rate_share: float | None = None
    shares: Mapping[str, float] = field(default_factory=dict)
    metrics: Mapping[str, float | None] = field(default_factory=dict)


def full_training(setup: Setup, checkpoint: Checkpoint | None, origin: Checkpoint | None = None) -> Stretch:
    """The stretch of `stack train`: all its days. Raises `CheckpointError` where the run has learnt other days."""
    days = training_days(Dataset(setup.dataset), setup.train)
    saved = () if checkpoint is None else checkpoint.manifest.context.data_days
    if checkpoint is not None and checkpoint.manifest.lineage.day is not None:
        raise CheckpointError(
            f"run {setup.run.folder} goes on by days, {checkpoint.manifest.lineage.day} is its last: go on with "
            "`stack daily`, or choose another run.name"
        )
    if days[: len(saved)] != saved:
        raise CheckpointError(
            f"run {setup.run.folder} has learnt {saved[0]} to {saved[-1]}, and these options ask for {days[0]} to "
            f"{days[-1]}: go on from it with `stack daily`, or choose another run.name"
        )
    began = None if origin is None else f"{origin.name} {origin.manifest.digest[:12]}"
    return Stretch(days=days, learnt=days, lineage=Lineage(verb="train", origin=began))


def build_loop(
    setup: Setup,
    *,
    device: torch.device,
    checkpoint: Checkpoint | None,
    newest: int | None = None,
    origin: Checkpoint | None = None,
    stretch: Stretch | None = None,
    telemetry: Telemetry | None = None,
) -> Loop:
    """Everything ready to learn from a stretch of days (None: all of `train`), from the beginning or from `checkpoint`.

    Its versions go into the chain of the run, with `checkpoint` as the parent of the first; `newest` is the number of
    the newest version when that was chosen (None: now). Without a checkpoint the model begins with the numbers of
    `origin`, a version of another chain, or with its first values. `telemetry`: of this process (None: it is counted,
    and nobody is shown).
    """
    telemetry = telemetry or Telemetry(setup.telemetry)
    dataset = Dataset(setup.dataset)
    stretch = stretch or full_training(setup, checkpoint, origin)
    model = build_sharded_model(
        setup, dataset, last_day=stretch.learnt[-1], device=device, plan_path=setup.run.folder / PLAN
    ).train()
    if setup.train.frozen_norms:
        freeze_statistics(model)
    touched = track_touched(model)
    parameters = dense_parameters(model)
    optimizer = build_dense_optimizer(parameters, setup.optim)
    start = LoopState(step=0, first_step=0, epoch=0, cursor=Cursor())
    restored = None
    source = checkpoint or origin
    if source is not None:
        restored = restore_model(model, source, dataset=dataset, allow=setup.checkpoint.allow)
        restore_optimizer(optimizer, parameters, source, anew=restored.anew)
    if checkpoint is not None:
        start = checkpoint.loop()
        if not stretch.resumes:
            start = LoopState(step=start.step, first_step=start.step, epoch=0, cursor=Cursor())
    loader = _build_loader(setup, dataset, stretch, start.cursor)
    num_steps = start.first_step + min(loader.num_steps, setup.train.max_steps or loader.num_steps)
    _announce(setup, dataset, stretch, num_timelines=loader.num_timelines, start=start, num_steps=num_steps)
    stepper = Stepper(
        model,
        parameters=parameters,
        optimizer=optimizer,
        schedule=_schedule(setup.optim, stretch, num_steps=num_steps),
        dense_learning_rate=setup.optim.dense_learning_rate,
        tables_learning_rate=setup.optim.tables_learning_rate,
        clip_norm=setup.optim.clip_norm,
        task_weights={name: getattr(setup.tasks, name).weight for name in TASKS},
        seed=setup.run.seed,
        dense={group.name: group.dense for group in dataset.schema.groups},
    )
    places = places_of(setup.model, setup.tasks, dataset.schema)
    vocabularies = {*places.tables(), *(feature.table for feature in places.property)}
    sizes = {name: spec.num_rows for _, part in tables_in(model) for name, spec in part.specs.items()}
    tell_data(telemetry.metrics, dataset, days=stretch.days, num_rows=sizes)
    chain = chain_of(setup.chain_place)
    meter = SaveMeter(telemetry.metrics, then=Retention(chain, setup.checkpoint))
    saver = Saver(
        ChainWriter(
            chain,
            options=setup.checkpoint,
            crew=crew(patience_seconds=setup.train.collective_timeout_seconds),
            parent=None if checkpoint is None else checkpoint.manifest,
            newest=newest,
            clocks={} if restored is None or checkpoint is None else restored.clocks,
            rewritten=() if restored is None else restored.rewritten,
            after=meter.committed,
        ),
        model=model,
        optimizer=optimizer,
        touched=touched,
        context=context_of(dataset, days=stretch.learnt, vocabularies=sorted(vocabularies), composed=setup.composed),
        lineage=stretch.lineage,
        first_step=start.first_step,
        metrics=stretch.metrics,
        dataset=dataset,
        meter=meter,
    )
    return Loop(
        loader=loader,
        steps=steps_of(setup.train, stepper, device=device),
        periodics=_periodics(
            setup, saver, telemetry, maps=id_maps(model), device=device, first_step=start.step, num_steps=num_steps
        ),
        step=start.step,
        num_steps=num_steps,
        tally=Tally.of_numbers(start.numbers),
    )


def _schedule(optim: OptimConfig, stretch: Stretch, *, num_steps: int) -> Schedule:
    if stretch.rate_share is None:
        return build_schedule(optim, num_steps=num_steps)
    return Schedule(num_steps=num_steps, warmup_steps=0, decay=Decay.constant, final_share=1.0, peak=stretch.rate_share)


def _build_loader(setup: Setup, dataset: Dataset, stretch: Stretch, cursor: Cursor) -> Loader:
    """This rank's batches, with the example groups of the trained tasks alone."""
    trained, _ = enabled_tasks(setup.tasks, dataset.schema)
    return Loader(
        dataset,
        days=stretch.days,
        shares=stretch.shares,
        global_batch_size=setup.train.batch_size,
        rank=dist.get_rank(),
        world_size=dist.get_world_size(),
        seed=setup.run.seed if stretch.lineage.day is None else derive(setup.run.seed, "day", stretch.lineage.day),
        days_per_block=setup.train.days_per_block,
        num_epochs=setup.train.num_epochs,
        groups=sorted({TASKS[name].group for name in trained}),
        num_prefetch=setup.train.num_prefetch,
        cursor=cursor,
    )


def _announce(
    setup: Setup, dataset: Dataset, stretch: Stretch, *, num_timelines: int, start: LoopState, num_steps: int
) -> None:
    trained, left_out = enabled_tasks(setup.tasks, dataset.schema)
    say(
        f"training {', '.join(trained)} on {_told(stretch)}: {num_timelines:,} timelines, "
        f"{num_steps - start.first_step:,} steps"
        + (f"; without {', '.join(left_out)}, which the data have no examples for" if left_out else "")
        + (f"; going on after step {start.step:,}" if start.step else "")
    )


def _told(stretch: Stretch) -> str:
    """The days, for people."""
    whole = [day for day in stretch.days if day not in stretch.shares]
    days = whole[0] if len(whole) == 1 else f"{len(whole)} days, {whole[0]} to {whole[-1]}"
    return f"{days}, with some of {len(stretch.shares)} days before" if stretch.shares else days


def _periodics(
    setup: Setup,
    saver: Saver,
    telemetry: Telemetry,
    *,
    maps: IdMaps | None,
    device: torch.device,
    first_step: int,
    num_steps: int,
) -> Sequence[Periodic]:
    """In the order in which they come after each step; what writes for all is on rank 0 alone."""
    metrics, mishaps = telemetry.metrics, telemetry.mishaps
    everywhere: list[Periodic] = [
        RefusalLimit(limit=setup.train.max_refused_batches),
        Save(saver, every_steps=setup.train.save_every_steps),
    ]
    folder, every_steps = setup.run.folder, setup.train.log_every_steps
    first = dist.get_rank() == 0
    if setup.telemetry.enabled:
        window = setup.telemetry.window_steps
        everywhere.insert(0, Meter(metrics, window_steps=window, num_steps=num_steps, device=device))
    if maps is not None and maps.managed_names:
        curves = folder / CURVES / "ids"
        log = IdLog(
            maps, folder / IDS, curves, every_steps=every_steps, first_step=first_step, writes=first, metrics=metrics,
            mishaps=mishaps,
        )  # fmt: skip
        everywhere.insert(0, log)
    if not first:
        return everywhere
    return [
        StepLog(folder / STEPS, first_step=first_step, mishaps=mishaps),
        Curves(folder / CURVES, every_steps=every_steps, first_step=first_step, mishaps=mishaps),
        Line(every_steps=every_steps),
        Bar(num_steps=num_steps, num_steps_done=first_step),
        *everywhere,
    ]
