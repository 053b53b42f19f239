"""`make demo`, `make full`: a log becomes a served model, by the same verbs that anyone would type.

    python -m tools.demo demo [option=value ...]

runs the steps of `configs/experiment/demo.yaml`; the options are passed to every verb.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from stack.base.errors import UserError
from stack.data.dataset import Dataset
from stack.export.package import read_manifest
from stack.export.requests import held_out_requests
from stack.job import CHOICES, Composer, Job, configs_folder
from stack.serve.client import ask, running_server
from stack.telemetry.console import say

VERBS = ("ingest", "train", "evaluate", "export")
NUM_SHOWN = 5


def main(words: Sequence[str]) -> int:
    """Runs all steps; stops at the first that fails and returns its status."""
    if not words or "=" in words[0]:
        say("usage: python -m tools.demo <experiment> [option=value ...]", file=sys.stderr)
        return 2
    options = [f"experiment={words[0]}", *words[1:]]
    start = time.monotonic()
    for verb in VERBS:
        status = run_verb([verb, *_options(verb, options)])
        if status:
            return status
    try:
        job = Composer(root=Job, choices=CHOICES, folder=configs_folder()).compose(options)
        _ask_server(job)
    except UserError as error:
        say(f"demo: {error}", file=sys.stderr)
        return 2
    folder, minutes = job.run.folder, (time.monotonic() - start) / 60
    say(f"\ndone in {minutes:.1f} minutes: report, curves, checkpoints and package are in {folder}")
    say(f"curves: tensorboard --logdir {folder}    server: stack serve serve.package={folder}/package")
    return 0


def _options(verb: str, options: Sequence[str]) -> list[str]:
    """A demo may be repeated: its package is replaced."""
    return [*options, "export.overwrite=true"] if verb == "export" else list(options)


def run_verb(words: Sequence[str]) -> int:
    """Runs `stack` with these words, and tells how long it took; its status."""
    say(f"\n$ stack {shlex.join(words)}")
    start = time.monotonic()
    status = subprocess.run([sys.executable, "-m", "stack", *words], check=False).returncode
    say(
        f"  {words[0]}: {time.monotonic() - start:.0f} s"
        if status == 0
        else f"  {words[0]} failed with status {status}"
    )
    return status


def _ask_server(job: Job) -> None:
    """Starts `stack serve`, asks for the vector of a held-out user, scores of what they saw, and the next items."""
    package = job.run.folder / "package"
    say(f"\n$ stack serve serve.package={package}")
    manifest = read_manifest(package)
    dataset = Dataset(Path(job.data.out))
    day = _first_unseen_day(dataset, manifest.lineage.last_day)
    bodies = held_out_requests(
        dataset, manifest.schema, day=day, group="impression", max_events=manifest.max_events
    )  # fmt: skip
    body = next(bodies, None)
    if body is None:
        raise UserError(f"day {day} of {dataset.path} has no impression to ask for")
    with running_server(package, options=["serve.workers=1"]) as server:
        user = {name: body[name] for name in ("now", "events", "profile", "query")}
        for path, asked in (
            ("/v1/users:embed", user), ("/v1/items:score", body), ("/v1/users:retrieve", {**user, "k": NUM_SHOWN}),
        ):  # fmt: skip
            if path != "/v1/users:retrieve" or manifest.retrieval is not None:
                say(f"POST {path} -> {short(ask(server.address, path, asked))}")


def _first_unseen_day(dataset: Dataset, last_trained: str) -> str:
    later = [day for day in dataset.days() if day > last_trained]
    if not later:
        raise UserError(f"{dataset.path} has no day after the last trained one, {last_trained}")
    return later[0]


def short(answer: object) -> str:
    """JSON with long lists cut, so that a person can read it."""
    return msgspec.json.encode(_cut(answer)).decode()


def _cut(value: object) -> object:
    if isinstance(value, dict):
        return {name: _cut(one) for name, one in value.items()}
    if isinstance(value, list):
        shown = [_cut(one) for one in value[:NUM_SHOWN]]
        return [*shown, f"... {len(value)} in all"] if len(value) > NUM_SHOWN else shown
    return round(value, 4) if isinstance(value, float) else value


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
