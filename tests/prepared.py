"""Writes a small prepared dataset (layout of `stack.data.layout`) with random but learnable content.

For tests of everything after ingest. Candidates bought before are bought again more often, so a model that
reads history beats popularity; `seed` fixes every byte.

With `raw_ids` items and brands have no vocabulary: the raw id of the item that would have row r is the whole number
2^40 + r, that of the brand the text "brand-r", as it is in the vocabulary of the other kind. All else is the same.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stack.data.keys import hash_texts
from stack.data.layout import (
    FORMAT_VERSION,
    BucketFile,
    DatasetManifest,
    DayManifest,
    bucket_name,
    day_folder,
)
from stack.data.parquet import id_type
from stack.data.schema import IMPRESSION_LABELS, Feature, Group, RawIds, Schema

ITEM_FEATURES = (
    Feature(name="item", table="item"),
    Feature(name="shop", table="shop"),
    Feature(name="brand", table="brand"),
    Feature(name="category", table="category"),
    Feature(name="tags", table="tags", multi=True),
)
SCHEMA = Schema(
    event=ITEM_FEATURES,
    property=(Feature(name="scenario", table="scenario"), Feature(name="type", table="type")),
    profile=(Feature(name="age", table="age"), Feature(name="income", table="income")),
    query=(Feature(name="shop", table="shop"),),
    groups=(
        Group(
            name="impression",
            candidate=ITEM_FEATURES,
            dense=("item_count", "user_item_count", "price"),
            labels=IMPRESSION_LABELS,
        ),
        Group(name="price", labels=("tier",)),
        Group(
            name="follow",
            candidate=(Feature(name="icon", table="icon"),),
            dense=("user_offer_count", "user_response_count"),
            labels=("responded",),
        ),
        Group(name="shop", candidate=(Feature(name="shop", table="shop"),), labels=("visited",)),
    ),
)
NUM_ROWS = {
    "item": 200, "shop": 9, "brand": 20, "category": 12, "tags": 30, "scenario": 5, "type": 4,
    "age": 6, "income": 8, "icon": 4, "user": 60,
}  # fmt: skip
RAW_IDS = (RawIds(table="brand", text=True), RawIds(table="item", text=False))
FIRST_ITEM = 2**40
FIRST_DAY = 17_000
SECONDS_PER_DAY = 86_400


def write_prepared(
    path: Path, *, num_days: int = 4, num_users: int = 40, num_buckets: int = 2, max_history: int = 10, seed: int = 0,
    raw_ids: bool = False,
) -> Path:  # fmt: skip
    """Writes the dataset under `path` and returns `path`."""
    rng = np.random.default_rng(seed)
    schema = msgspec.structs.replace(SCHEMA, raw_ids=RAW_IDS) if raw_ids else SCHEMA
    manifest = DatasetManifest(
        format_version=FORMAT_VERSION, source="test", schema=schema, num_buckets=num_buckets, max_history=max_history
    )
    path.mkdir(parents=True)
    (path / "dataset.json").write_bytes(msgspec.json.encode(manifest))
    favourites = rng.integers(1, NUM_ROWS["item"], (num_users + 1, 5))
    history: dict[int, list[dict[str, object]]] = {user: [] for user in range(1, num_users + 1)}
    parent: str | None = None
    for day in range(num_days):
        parent = _write_day(path, rng, FIRST_DAY + day, history, favourites, manifest, parent)
    for table, size in num_rows_of(schema).items():
        folder = path / "vocab" / table
        folder.mkdir(parents=True)
        day_name = str(np.datetime64(FIRST_DAY, "D"))
        rows = pa.table(
            {"raw": [f"{table}-{row}" for row in range(1, size)], "row": pa.array(range(1, size), pa.int32())}
        )
        pq.write_table(
            rows.append_column("first_day", pa.array([day_name] * (size - 1))), folder / f"{day_name}.parquet"
        )
    return path


def num_rows_of(schema: Schema) -> dict[str, int]:
    """Sizes of the vocabularies."""
    return {table: size for table, size in NUM_ROWS.items() if schema.without_vocabulary(table) is None}


def keys_of_rows(table: str) -> np.ndarray:
    """The keys of a table in `RAW_IDS`, by the rows of the vocabulary that it would have."""
    rows = range(1, NUM_ROWS[table])
    known = [FIRST_ITEM + row for row in rows] if table == "item" else hash_texts([f"brand-{row}" for row in rows])
    return np.array([0, *known], dtype=np.int64)


def _event(rng: np.random.Generator, time: int, item: int) -> dict[str, object]:
    return {
        "time": time, "item": item, "shop": int(rng.integers(1, NUM_ROWS["shop"])), "brand": 1 + item % 19,
        "category": 1 + item % 11, "tags": [1 + item % 29, 1 + item % 7],
        "scenario": int(rng.integers(1, NUM_ROWS["scenario"])), "type": int(rng.integers(1, NUM_ROWS["type"])),
    }  # fmt: skip


def _write_day(
    path: Path,
    rng: np.random.Generator,
    day: int,
    history: dict[int, list[dict[str, object]]],
    favourites: np.ndarray,
    dataset: DatasetManifest,
    parent: str | None,
) -> str:
    schema, num_buckets, max_history = dataset.schema, dataset.num_buckets, dataset.max_history
    name = str(np.datetime64(day, "D"))
    folder = day_folder(path, name)
    folder.mkdir(parents=True)
    rows: list[list[dict[str, object]]] = [[] for _ in range(num_buckets)]
    for user, carried in history.items():
        if rng.random() < 0.3:
            continue
        rows[user % num_buckets].append(_timeline(rng, user, day, carried, favourites[user], max_history))
    buckets = []
    num_events = num_moments = 0
    num_examples = {group.name: 0 for group in SCHEMA.groups}
    for bucket, timelines in enumerate(rows):
        file = folder / bucket_name(bucket)
        for raw in schema.raw_ids or ():
            keys = keys_of_rows(raw.table)
            for timeline in timelines:
                timeline |= {f"{at}_{raw.table}": keys[timeline[f"{at}_{raw.table}"]] for at in ("event", "impression")}
        pq.write_table(pa.Table.from_pylist(timelines, schema=_arrow_schema(schema)), file, compression="zstd")
        data = file.read_bytes()
        buckets.append(
            BucketFile(
                name=file.name,
                num_timelines=len(timelines),
                num_bytes=len(data),
                sha256=hashlib.sha256(data).hexdigest(),
            )
        )
        for timeline in timelines:
            num_events += len(timeline["event_time"]) - timeline["num_carried"]  # type: ignore[arg-type, operator]
            num_moments += len(timeline["moment_time"])  # type: ignore[arg-type]
            for group in SCHEMA.groups:
                num_examples[group.name] += len(timeline[f"{group.name}_moment"])  # type: ignore[arg-type]
    manifest = DayManifest(
        day=name, parent=parent, buckets=tuple(buckets), num_rows=num_rows_of(schema), num_events=num_events,
        num_moments=num_moments, num_examples=num_examples, num_source_rows={"events": num_events}, dropped={},
        code_version="test",
    )  # fmt: skip
    encoded = msgspec.json.encode(manifest)
    (folder / "manifest.json").write_bytes(encoded)
    return hashlib.sha256(encoded).hexdigest()


def _timeline(
    rng: np.random.Generator,
    user: int,
    day: int,
    history: list[dict[str, object]],
    favourite: np.ndarray,
    max_history: int,
) -> dict[str, object]:
    carried = history[-max_history:]
    times = np.sort(rng.integers(0, SECONDS_PER_DAY, 2)) + day * SECONDS_PER_DAY
    events = list(carried)
    moments: list[tuple[int, int]] = []
    group: dict[str, list[object]] = {
        f"impression_{key}": [] for key in ("moment", "item", "shop", "brand", "category", "tags", "dense")
    }
    labels: dict[str, list[float]] = {f"impression_{label}": [] for label in IMPRESSION_LABELS}
    tiers: list[float] = []
    for index, time in enumerate(map(int, times)):
        moments.append((time, sum(int(event["time"]) < time for event in events)))  # type: ignore[call-overload]
        bought = rng.choice(favourite, 2, replace=False)
        for item, clicked in [
            (int(bought[0]), 1.0),
            *((int(rng.integers(1, NUM_ROWS["item"])), 0.0) for _ in range(4)),
        ]:
            seen = sum(event["item"] == item for event in events)
            candidate = _event(rng, time, item)
            group["impression_moment"].append(index)
            for key in ("item", "shop", "brand", "category", "tags"):
                group[f"impression_{key}"].append(candidate[key])
            group["impression_dense"].extend([float(item % 5), float(seen), 1.0 + item % 3])
            values = (clicked, 1.0 + clicked, 0.0 if clicked else float(1 + index % 2), 0.02, 0.03)
            for label, value in zip(IMPRESSION_LABELS, values, strict=True):
                labels[f"impression_{label}"].append(value)
        tiers.append(float(bought[0] % 7))
        events.extend(_event(rng, time, int(item)) for item in bought)
    history[:] = events
    row: dict[str, object] = {
        "user": user,
        "num_carried": len(carried),
        "event_time": [event["time"] for event in events],
    }
    for key in ("item", "shop", "brand", "category", "tags", "scenario", "type"):
        row[f"event_{key}"] = [event[key] for event in events]
    row |= {"profile_age": user % 6, "profile_income": user % 8}
    row |= {"moment_time": [time for time, _ in moments], "moment_position": [position for _, position in moments]}
    row["query_shop"] = [1 + user % 8] * len(moments)
    row |= group | labels
    row |= {"price_moment": list(range(len(moments))), "price_dense": [], "price_tier": tiers}
    row |= {
        "follow_moment": [0],
        "follow_icon": [1 + user % 3],
        "follow_dense": [1.0 + (day + user) % 3, float(user % 5)],
        "follow_responded": [float(user % 2)],
    }
    row |= {
        "shop_moment": [0, 0],
        "shop_shop": [1 + user % 8, 1 + (user + 3) % 8],
        "shop_dense": [],
        "shop_visited": [1.0, 0.0],
    }
    return row


def _arrow_schema(schema: Schema) -> pa.Schema:
    """Column types as `stack.data.schema` documents them."""
    places, floats, times = pa.list_(pa.int32()), pa.list_(pa.float32()), pa.list_(pa.int64())

    def ids(feature: Feature) -> pa.DataType:
        return pa.list_(id_type(schema, feature))

    fields: list[tuple[str, pa.DataType]] = [("user", pa.int32()), ("num_carried", pa.int32()), ("event_time", times)]
    fields += [(f"event_{f.name}", ids(f)) for f in (*schema.event, *schema.property)]
    fields += [(f"profile_{f.name}", id_type(schema, f)) for f in schema.profile]
    fields += [("moment_time", times), ("moment_position", places)]
    fields += [(f"query_{f.name}", ids(f)) for f in schema.query]
    for group in schema.groups:
        fields.append((f"{group.name}_moment", places))
        fields += [(f"{group.name}_{f.name}", ids(f)) for f in group.candidate]
        fields.append((f"{group.name}_dense", floats))
        fields += [(f"{group.name}_{label}", floats) for label in group.labels]
    return pa.schema(fields)
