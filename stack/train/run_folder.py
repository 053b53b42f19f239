"""The folder of a run: what may be in it before training starts, and what training writes at the start.

::

    runs/<name>/
      config.yaml       the composed configuration
      versions.json     code, packages, machine and seed of each start, the latest last
      plan.json         where the tables went
      steps.jsonl       a line for every step
      ids.jsonl         what managed tables did, where there are any
      tensorboard/      curves
      checkpoints/      the chain of versions (`stack.checkpoint.manifest`), unless checkpoint.store is elsewhere
      logs/             what each process wrote, where `stack launch` started them
"""

from __future__ import annotations

import platform
from collections.abc import Collection, Iterator
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import msgspec
import torch
import yaml  # type: ignore[import-untyped]

from stack.base.errors import CheckpointError, ConfigError
from stack.base.files import make_folder, write_bytes, write_text
from stack.base.version import code_version
from stack.checkpoint.chain import Chain

CONFIG = "config.yaml"
VERSIONS = "versions.json"
STEPS = "steps.jsonl"
CURVES = "tensorboard"
IDS = "ids.jsonl"
PLAN = "plan.json"
CHECKPOINTS = "checkpoints"
LOGS = "logs"

_GROUPS = ("data", "model", "tasks", "tables", "ids", "optim", "train", "run")
_MAY_CHANGE = frozenset(
    {"tables.planner", "tables.plan", "ids.default_rows"}  # a checkpoint's rows go anywhere
    | {"run.dir", "run.name", "train.resume", "train.num_threads", "train.num_prefetch", "train.save_every_steps"}
    | {
        "train.log_every_steps",
        "train.pipeline",
        "train.max_refused_batches",
        "train.frozen_norms",
        "train.collective_timeout_seconds",
    }
)
_PACKAGES = ("torch", "torchrec", "fbgemm-gpu-cpu", "fbgemm-gpu", "numpy", "pyarrow", "safetensors", "hydra-core")

Value = str | int | float | bool | None


def saved_configuration(folder: Path) -> str:
    """The composed configuration of a run, as YAML; raises `CheckpointError` where `folder` is not a run's."""
    path = folder / CONFIG
    if not path.is_file():
        raise CheckpointError(
            f"{folder} is not a run (no {CONFIG}): set run.dir and run.name, or run `stack train` first"
        )
    return path.read_text()


def check_start(
    folder: Path, *, chain: Chain, composed: str, resume: bool, free: Collection[str] = frozenset()
) -> None:
    """Raises where training may not begin or go on in a run's folder. Reads only, so every rank can ask. Options in
    `free` may be others than before.

    A run that has saved nothing begins anew, also with other options: what a mistake in them left is no reason to
    give up its name.

    Raises:
        CheckpointError: the folder is not empty and not to be resumed, is not a run's, or holds older checkpoints.
        ConfigError: an option that matters differs from that of the run's versions.
    """
    saved = bool(chain.numbers())
    old = [path.name for path in (folder / CHECKPOINTS).glob("*") if path.name.isdecimal()]
    if old:
        raise CheckpointError(
            f"{folder / CHECKPOINTS} holds checkpoints of format version 2 ({max(old)}); this code reads version 3: "
            "use the code that wrote them, or choose another run.name"
        )
    if not saved and (not folder.exists() or all(path.name == LOGS for path in folder.iterdir())):
        return  # the launcher makes the folder of logs before there is a run
    if not resume:
        raise CheckpointError(
            f"run folder {folder} is not empty: go on from it with train.resume=true, or choose another run.name"
        )
    if not (folder / CONFIG).is_file():
        if saved and not folder.exists():
            return  # its versions are in a store, and the folder was on a machine that is gone
        raise CheckpointError(f"{folder} is not empty and not a run (no {CONFIG}): choose another run.name")
    if saved:
        _refuse_changes(folder, before=(folder / CONFIG).read_text(), now=composed, free=free)


def write_facts(
    folder: Path, *, composed: str, seed: int, world_size: int, device: torch.device, first_step: int = 0
) -> None:
    """Writes `config.yaml` and adds this start, after step `first_step`, to `versions.json`; for rank 0.

    Raises: `ConfigError` where the folder cannot be written, `CheckpointError` where its `versions.json` is damaged.
    """
    make_folder(folder, option="the run folder run.dir/run.name")
    facts: dict[str, Value] = {
        "after_step": first_step,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "code": code_version(),
        "seed": seed,
        "processes": world_size,
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "machine": platform.platform(),
        "python": platform.python_version(),
        **{name: _version(name) for name in _PACKAGES},
    }
    starts = [*_starts(folder / VERSIONS), facts]
    write_text(folder / CONFIG, composed)  # first: without it the folder is no run
    write_bytes(folder / VERSIONS, msgspec.json.format(msgspec.json.encode(starts)) + b"\n")


def _starts(path: Path) -> list[dict[str, Value]]:
    """The starts there have been: rows of a checkpoint may come from another version than those that follow."""
    if not path.is_file():
        return []
    try:
        return msgspec.json.decode(path.read_bytes(), type=list[dict[str, Value]])
    except msgspec.DecodeError as error:
        raise CheckpointError(f"{path} is damaged ({error}): move it away to go on without it") from error


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _refuse_changes(folder: Path, *, before: str, now: str, free: Collection[str]) -> None:
    """Raises `ConfigError` naming the first option that was different when the run started."""
    old, new = options_of(before), options_of(now)
    for key in sorted(old.keys() | new.keys()):
        may_change = key in _MAY_CHANGE or key in free or key.startswith("ids.rows.")
        if key.split(".")[0] in _GROUPS and not may_change and old.get(key) != new.get(key):
            raise ConfigError(
                f"run {folder} was started with {key}={old.get(key)}, now it is {new.get(key)}: "
                "resume with the same value, or choose another run.name"
            )


def options_of(composed: str) -> dict[str, object]:
    """The leaves of a composed configuration by their dotted names."""
    return dict(_options(yaml.safe_load(composed)))


def composed_of_run(folder: Path, *, now: str, free: Collection[str]) -> str:
    """The configuration to keep with a run: that of now, but the options in `free` as the run has them."""
    if not (folder / CONFIG).is_file():
        return now
    old, new = yaml.safe_load((folder / CONFIG).read_text()), yaml.safe_load(now)
    for key in sorted(free):
        group, _, name = key.partition(".")
        if isinstance(old.get(group), dict) and name in old[group] and isinstance(new.get(group), dict):
            new[group][name] = old[group][name]
    return str(yaml.safe_dump(new, sort_keys=False))


def _options(tree: object, path: str = "") -> Iterator[tuple[str, object]]:
    """Leaves of the configuration with their dotted names."""
    if isinstance(tree, dict) and tree:
        for name, value in tree.items():
            yield from _options(value, f"{path}.{name}" if path else str(name))
    else:
        yield path, tree
