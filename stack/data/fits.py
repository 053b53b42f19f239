"""Whether an ingest fits the dataset that it adds to."""

from __future__ import annotations

from pathlib import Path

from stack.base.errors import DataError
from stack.data.days import day_name
from stack.data.layout import DatasetManifest


def refuse_other(old: DatasetManifest, new: DatasetManifest, dataset: Path) -> None:
    """Raises `DataError` where the dataset was made with other settings, naming the first that differs."""
    for name in ("format_version", "source", "num_buckets", "max_history", "settings", "schema"):
        before, now = getattr(old, name), getattr(new, name)
        if before == now:
            continue
        if name == "settings":
            key = next(key for key in {**before, **now} if before.get(key) != now.get(key))
            name, before, now = f"ingest.{key}", before.get(key), now.get(key)
        what = f"another {name}" if name == "schema" else f"{name}={before}, and {now} is asked for"
        raise DataError(f"the dataset {dataset} was made with {what}: choose another data.out, or delete the dataset")


def refuse_gap(existing: list[int], *, first: int, last: int, dataset: Path) -> None:
    """Raises `DataError` where days would be missing between those of the dataset and `first`..`last`.

    Histories and counts would lack what happened on them.
    """
    before = [day for day in existing if day < first]
    after = [day for day in existing if day > last]
    gaps = [(before[-1] + 1, first - 1)] if before else []
    gaps += [(last + 1, after[0] - 1)] if after else []
    for start, end in gaps:
        if start <= end:
            raise DataError(
                f"the dataset {dataset} has no days from {day_name(start)} to {day_name(end)}, which lie between its "
                f"own and those asked for ({day_name(first)} to {day_name(last)}): ingest them first or too, or set "
                f"ingest.allow_gap=true if the log has nothing on them"
            )
