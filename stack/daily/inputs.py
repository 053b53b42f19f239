"""What a version of a day is made from, as one digest: the same inputs give the same version."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import msgspec

from stack.checkpoint.chain import Chain
from stack.checkpoint.manifest import VersionManifest
from stack.daily.config import DailyConfig
from stack.data.dataset import Dataset
from stack.train.run_folder import options_of

NOT_OF_DAYS = frozenset(
    {"train.from_day", "train.to_day", "train.num_epochs", "train.max_steps", "train.days_per_block"}
    | {"optim.warmup_steps", "optim.decay", "optim.final_share"}
    | {"data.from_day", "data.to_day", "data.path"}
)
"""Options that may be others than those of the full training: of a day's they say nothing."""

_SHAPING_GROUPS = ("model", "tasks", "tables", "ids", "optim", "train")
_NOT_SHAPING = frozenset(
    {"tables.planner", "tables.plan", "train.resume", "train.num_threads", "train.num_prefetch", "train.pipeline"}
    | {"train.save_every_steps", "train.log_every_steps", "train.collective_timeout_seconds"}
    | {"train.max_refused_batches"}
)


_AS_BEFORE = (("train.frozen_norms", False),)
"""Options that came later than versions which know nothing of them, with the value that changes nothing."""


def inputs_of(
    day: str, *, replayed: Sequence[str], dataset: Dataset, base: str, composed: str, seed: int, config: DailyConfig
) -> str:
    """`base`: the `content` of the version that the day is learnt on top of. `composed`: the configuration as YAML."""
    said = {
        "day": {day: _files(dataset, day)},
        "replayed": {one: _files(dataset, one) for one in replayed},
        "base": base,
        "seed": seed,
        "options": _options(composed),
        "daily": {
            "num_epochs": config.num_epochs,
            "rate_share": config.rate_share,
            "replay_share": config.replay_share if replayed else None,
        },
    }
    return hashlib.sha256(msgspec.json.encode(said, order="deterministic")).hexdigest()


def content(chain: Chain, version: VersionManifest) -> str:
    """What a finished version holds, whenever and wherever it was made."""
    while version.lineage.restores is not None:
        version = chain.linked(version.lineage.restores)
    if version.lineage.inputs:
        return version.lineage.inputs
    files = {name: entry.sha256 for name, entry in version.files.items()}
    said = {"step": version.step, "days": version.context.data_days, "files": files}
    return hashlib.sha256(msgspec.json.encode(said, order="deterministic")).hexdigest()


def _options(composed: str) -> dict[str, object]:
    left_out = NOT_OF_DAYS | _NOT_SHAPING
    return {
        key: value
        for key, value in options_of(composed).items()
        if key.split(".")[0] in _SHAPING_GROUPS and key not in left_out and (key, value) not in _AS_BEFORE
    }


def _files(dataset: Dataset, day: str) -> Mapping[str, object]:
    manifest = dataset.day(day)
    return {"buckets": [bucket.sha256 for bucket in manifest.buckets], "rows": manifest.num_rows}
