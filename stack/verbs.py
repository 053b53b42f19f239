"""What each verb does with its job: hands the groups of options to their owners, which are imported when called."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from stack.base.dist import own_device, process_group, world
from stack.base.errors import ConfigError, DataError
from stack.data.sources import SOURCES
from stack.job import CHOICES, Composer, Job, configs_folder, from_yaml, to_yaml
from stack.telemetry.console import say, show

if TYPE_CHECKING:
    import torch

    from stack.train.build import Setup
    from stack.train.trained import TrainedRun

OF_THE_RUN = frozenset({"data", "ingest", "model", "tables", "ids", "tasks", "optim", "train"})
"""Groups that verbs on a trained run take from its folder, as it was trained."""
ON_A_RUN = ("evaluate", "audit", "export")
AUDIT = "audit"
"""Folder of a run where its last audit is."""


def launch(verb: str, arguments: Sequence[str]) -> None:
    """Composes the job that the words after a verb describe, and does what the verb says.

    Raises: `ConfigError` for options that cannot be used, also those that the verb would not heed.
    """
    if verb == "launch":
        _launch(arguments)
        return
    if verb == "dashboard" and {"-h", "--help"} & set(arguments):
        from stack.dashboard.verb import HELP

        say(HELP)
    if verb in ON_A_RUN:
        _refuse_options_of_the_run(verb, arguments)
    if verb == "daily":
        arguments = _daily_words(arguments)
    if verb == "audit":
        arguments = _audit_words(arguments)
    Composer(root=Job, choices=CHOICES, folder=configs_folder()).launch(verb, arguments, ACTIONS.get(verb, _complete))


def checkpoint(words: Sequence[str]) -> int:
    """`stack checkpoint`: options of the configuration select the run, whose own `checkpoint` options count where they
    are not given anew. Returns the exit status."""
    from stack.checkpoint.verb import checkpoint as act
    from stack.checkpoint.verb import split_words
    from stack.train.run_folder import CHECKPOINTS, CONFIG

    if world().size > 1:
        raise ConfigError(f"stack checkpoint runs in one process, not {world().size}: start it without torchrun")
    own, options = split_words(words)
    if {"-h", "--help"} & set(own):
        return act(own, where="", options=Job().checkpoint)
    job = Composer(root=Job, choices=CHOICES, folder=configs_folder()).compose(options)
    told = job.checkpoint
    if (job.run.folder / CONFIG).is_file():
        given = {word.lstrip("+~").partition("=")[0].partition(".")[2] for word in options if "checkpoint." in word}
        told = replace(
            from_yaml((job.run.folder / CONFIG).read_text()).checkpoint,
            **{name: getattr(told, name) for name in given if hasattr(told, name)},
        )
    return act(own, where=told.store or job.run.folder / CHECKPOINTS, options=told, run=job.run.folder)


def setup_of(job: Job) -> Setup:
    """What the one assembly (`stack.train.build`) is given."""
    from stack.train.build import Setup

    return Setup(
        dataset=Path(job.data.out),
        model=job.model,
        tasks=job.tasks,
        tables=job.tables,
        ids=job.ids,
        optim=job.optim,
        train=job.train,
        checkpoint=job.checkpoint,
        run=job.run,
        composed=to_yaml(job),
        cluster=job.cluster,
        plan=job.plan,
        telemetry=job.telemetry,
    )


def _ingest(job: Job) -> None:
    from stack.data.ingest import ingest
    from stack.data.ingest_report import report_table

    _check_source(job)
    show(report_table(ingest(job.data, job.ingest)))


def _check_source(job: Job) -> None:
    if type(job.data) is not SOURCES[job.data.source].options:
        raise ConfigError(f"data.source={job.data.source!r} belongs to another choice: write data={job.data.source}")


def _plan(job: Job) -> None:
    from stack.train.planning import plan

    plan(setup_of(job))


def _train(job: Job) -> None:
    from stack.train.verb import train

    train(setup_of(job))


def _daily(job: Job) -> None:
    from stack.daily.verb import daily

    _check_source(job)
    daily(
        setup_of(job),
        data=job.data,
        ingest=job.ingest,
        config=job.daily,
        timelines_per_batch=job.evaluate.timelines_per_batch,
        today=datetime.date.today().isoformat(),
        audit_data=job.audit_data,
    )
    if job.daily.audit:
        _audit(job)
    if job.daily.export:
        _export(job)


def _daily_words(words: Sequence[str]) -> list[str]:
    """As options of the group `daily`; the help begins with examples."""
    from stack.daily.words import HELP, translated

    if {"-h", "--help"} & set(words):
        say(HELP)
    return translated(words)


def _audit_words(words: Sequence[str]) -> list[str]:
    """`--fix rebuild` as the option that it is."""
    flags = [place for place, word in enumerate(words) if word == "--fix"]
    joined = list(words)
    for place in reversed(flags):
        joined[place : place + 2] = [f"audit.fix={'' if place + 1 == len(words) else words[place + 1]}"]
    return [f"audit.fix={word.removeprefix('--fix=')}" if word.startswith("--fix=") else word for word in joined]


def _evaluate(job: Job) -> None:
    from stack.evaluate.evaluate import Trained, evaluate
    from stack.evaluate.scorer import scorer_of

    with run_of_job(job, verb="evaluate", version=job.evaluate.version) as (run, device):
        tasks = {name: run.user_model.task(name) for name in run.user_model.tasks}
        trained = Trained(
            name=run.name,
            step=run.step,
            dataset=run.dataset,
            training_days=run.days,
            tasks={name: task.sampling for name, task in tasks.items()},
            scorer=scorer_of(run.model, device=device),
        )
        evaluate(trained, folder=job.run.folder, settings=job.evaluate)


def _audit(job: Job) -> None:
    from stack.audits.audit import audit, refuse
    from stack.audits.telemetry import audit_metrics
    from stack.telemetry.textfile import write_textfile
    from stack.train.audited import VERB, audited_run

    whole = job.run.folder / AUDIT
    folder = Path(job.audit.out or (whole if job.audit.whole else whole / "parts"))
    with run_of_job(job, verb="audit", version=job.audit.version, dataset=job.audit.dataset) as (run, _):
        audited = audited_run(run, config=job.audit, data=job.audit_data, folder=job.run.folder / AUDIT)
        report = audit(audited, folder=folder, config=job.audit)
    if job.telemetry.enabled:
        textfiles = job.telemetry.textfile_folder(job.run.dir)
        write_textfile(audit_metrics(report), textfiles, run=report.run, job=VERB)
    refuse(report)


def _export(job: Job) -> None:
    if job.export.delta_of is not None:
        _export_delta(job)
        return
    from stack.export.export import export
    from stack.train.audited import trained_of

    with run_of_job(job, verb="export", version=job.export.version) as (run, _):
        folder = Path(job.export.out) if job.export.out else job.run.folder / "package"
        export(trained_of(run), folder=folder, config=job.export, audit=job.run.folder / AUDIT)


def _export_delta(job: Job) -> None:
    """Of rows alone: without the model, and what it needs."""
    from stack.checkpoint.chain import chain_of
    from stack.export.rows_alone import export_delta
    from stack.train.run_folder import CHECKPOINTS, saved_configuration

    _refuse_several_processes("export")
    saved = from_yaml(saved_configuration(job.run.folder))
    store = job.checkpoint.store or saved.checkpoint.store or job.run.folder / CHECKPOINTS
    export_delta(chain_of(store), config=job.export, verify=job.checkpoint.verify)


def _serve(job: Job) -> None:
    from stack.serve.serve import Watched, serve

    told = job.telemetry
    watched = Watched(targets=told.targets_folder(job.run.dir), address=told.address) if told.enabled else None
    serve(job.serve, watched=watched)


def _dashboard(job: Job) -> None:
    from stack.dashboard.verb import dashboard

    dashboard(job.dashboard)


def _launch(words: Sequence[str]) -> None:
    """Composes the job here first, so that what is wrong with it is said before anything waits in a queue."""
    from stack.launch.command import run_torchx
    from stack.launch.request import VERBS, Place, read_request

    if words[:1] in (["-h"], ["--help"]):
        say(f"stack launch <verb> [options of the verb, of cluster and of launch] [--dry-run]: {', '.join(VERBS)}\n")
        words = ["train", *words]
    request = read_request(words)
    if request.verb in ON_A_RUN:
        _refuse_options_of_the_run(request.verb, request.options)
    if request.verb == "daily":
        request = replace(request, options=_daily_words(request.options))

    def start(job: Job) -> None:
        place = Place(
            folder=job.run.folder,
            name=job.run.name,
            num_buckets=_num_buckets(job, request.verb),
            serve_host=job.serve.host,
            serve_port=job.serve.port,
        )
        run_torchx(request, launch=job.launch, cluster=job.cluster, place=place)

    Composer(root=Job, choices=CHOICES, folder=configs_folder()).launch("launch", request.options, start)


def _num_buckets(job: Job, verb: str) -> int | None:
    """Of the data that a launched verb will train on, where they are seen from here."""
    from stack.data.dataset import Dataset

    try:
        return Dataset(Path(job.data.out)).num_buckets if verb in ("train", "daily") else None
    except DataError:  # elsewhere, or not ingested yet
        return None


def _complete(job: Job) -> None:
    raise AssertionError("completing a command line runs no verb")


ACTIONS: Mapping[str, Callable[[Job], None]] = {
    "ingest": _ingest,
    "plan": _plan,
    "train": _train,
    "daily": _daily,
    "evaluate": _evaluate,
    "audit": _audit,
    "export": _export,
    "serve": _serve,
    "dashboard": _dashboard,
}


@contextmanager
def run_of_job(
    job: Job, *, verb: str, version: str | None, dataset: str | None = None
) -> Iterator[tuple[TrainedRun, torch.device]]:
    """The run of `job.run`, configured as it was trained; `version` None is its newest, `dataset` None the data that it
    was trained on."""
    from stack.train.run_folder import saved_configuration
    from stack.train.trained import open_run

    _refuse_several_processes(verb)
    saved = from_yaml(saved_configuration(job.run.folder))
    saved.run = job.run
    saved.checkpoint = replace(job.checkpoint, store=job.checkpoint.store or saved.checkpoint.store)
    device = own_device()
    with process_group(device=device):
        data = None if dataset is None else Path(dataset)
        yield open_run(setup_of(saved), version=version, device=device, dataset=data), device


def _refuse_several_processes(verb: str) -> None:
    if world().size > 1:
        raise ConfigError(f"stack {verb} runs in one process, not {world().size}: start it without torchrun")


def _refuse_options_of_the_run(verb: str, arguments: Sequence[str]) -> None:
    for argument in arguments:
        key = argument.lstrip("+~").partition("=")[0]
        if key.partition(".")[0] in OF_THE_RUN:
            raise ConfigError(
                f"stack {verb} takes {key.partition('.')[0]!r} from the run's own config.yaml, as it was trained: "
                f"leave out {argument!r}"
            )
