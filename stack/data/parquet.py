"""Reads bucket files of prepared data into NumPy columns: only the columns asked for, no Python loop over rows.

Shape legend: R timelines, K owners of a level (events, moments or examples of all R timelines), N ids of a
multi-valued feature, F dense features.

An Arrow list column is its values in one piece plus offsets; both are taken as they lie::

    event_item   [[7, 8], [], [9]]          values [7 8 9]      offsets [0 2 2 3]
    event_tags   [[[1], [2, 3]], [], [[]]]  values [1 2 3]      inner   [0 1 3 3]     offsets [0 2 2 3]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stack.base.errors import DataError
from stack.data.schema import Feature, Group, Schema

Offsets = npt.NDArray[np.int64]
Values = npt.NDArray[Any]
"""int32, int64 or float32, as the column types say."""


@dataclass(frozen=True, kw_only=True)
class Ragged:
    """Owner k has `values_N[offsets[k] : offsets[k + 1]]`."""

    values_N: Values
    offsets: Offsets


Column = Values | Ragged
"""One value for each owner, or any number of them."""


@dataclass(frozen=True, kw_only=True)
class Level:
    """The events, the moments, or the examples of one group: timeline r owns `offsets[r] : offsets[r + 1]`."""

    offsets: Offsets
    columns: dict[str, Column]


@dataclass(frozen=True, kw_only=True)
class Block:
    """Timelines in memory. Column names are those of the schema without their prefix; `timeline` has `user`,
    `num_carried` and the profile; `dense` of a group is (K, F)."""

    timeline: dict[str, Column]
    event: Level
    moment: Level
    groups: dict[str, Level]

    @property
    def num_timelines(self) -> int:
        return len(self.event.offsets) - 1


def read_block(files: Sequence[Path], *, schema: Schema, groups: Sequence[Group], num_rows: Mapping[str, int]) -> Block:
    """The timelines of `files`, one file after the other, with the examples of `groups` alone. `num_rows` are the sizes
    of the vocabularies, row 0 counted.

    Raises `DataError` naming the file and column that is missing, has nulls, ids that are no row of their
    vocabulary, or lists of unequal lengths.
    """
    types = column_types(schema, groups)
    tables = [_read_file(file, types) for file in files]
    for name, table in _vocabularies(schema, groups).items():
        for file, rows in zip(files, tables, strict=True):
            _check_rows(file, name, rows[name], table, num_rows[table])
    whole = {name: _concatenate([_decode(table[name], kind) for table in tables], kind) for name, kind in types.items()}
    where = f"{files[0]}" if len(files) == 1 else f"the {len(files)} files from {files[0]}"
    event = _level(whole, "event_", ["time", *_names((*schema.event, *schema.property))], where)
    moment = _level(whole, "moment_", ["time", "position"], where)
    query = _level(whole, "query_", _names(schema.query), where)
    if schema.query:
        _same_offsets(moment.offsets, query.offsets, "query_" + schema.query[0].name, where)
        moment.columns.update(query.columns)
    profile = {name: _scalar_or_ragged(whole["profile_" + name]) for name in _names(schema.profile)}
    return Block(
        timeline={"user": whole["user"].values_N, "num_carried": whole["num_carried"].values_N, **profile},
        event=event,
        moment=moment,
        groups={group.name: _group_level(whole, group, moment.offsets, where) for group in groups},
    )


def column_types(schema: Schema, groups: Sequence[Group]) -> dict[str, pa.DataType]:
    """The Arrow type of every column of prepared data for these groups, as `stack.data.schema` documents them."""

    def ids(feature: Feature) -> pa.DataType:
        return pa.list_(id_type(schema, feature))

    types = {"user": pa.int32(), "num_carried": pa.int32(), "event_time": pa.list_(pa.int64())}
    types |= {f"event_{feature.name}": ids(feature) for feature in (*schema.event, *schema.property)}
    types |= {f"profile_{feature.name}": id_type(schema, feature) for feature in schema.profile}
    types |= {"moment_time": pa.list_(pa.int64()), "moment_position": pa.list_(pa.int32())}
    types |= {f"query_{feature.name}": ids(feature) for feature in schema.query}
    for group in groups:
        types[f"{group.name}_moment"] = pa.list_(pa.int32())
        types |= {f"{group.name}_{feature.name}": ids(feature) for feature in group.candidate}
        floats = [*(["dense"] if group.dense else []), *group.labels]
        types |= {f"{group.name}_{name}": pa.list_(pa.float32()) for name in floats}
    return types


def _vocabularies(schema: Schema, groups: Sequence[Group]) -> dict[str, str]:
    """The vocabulary whose rows each column has."""
    features = [("event", (*schema.event, *schema.property)), ("profile", schema.profile), ("query", schema.query)]
    features += [(group.name, group.candidate) for group in groups]
    return {"user": "user"} | {
        f"{prefix}_{feature.name}": feature.table
        for prefix, some in features
        for feature in some
        if schema.without_vocabulary(feature.table) is None
    }


def _check_rows(file: Path, name: str, column: pa.ChunkedArray, table: str, num_rows: int) -> None:
    while pa.types.is_list(column.type):
        column = pc.list_flatten(column)
    found = pc.min_max(column)
    for row in (found["min"].as_py(), found["max"].as_py()):
        if row is not None and not 0 <= row < num_rows:
            raise DataError(
                f"{file}: column '{name}' has the id {row}, but the vocabulary '{table}' had the rows 0 to "
                f"{num_rows - 1} on its day: ingest that day again"
            )


def id_type(schema: Schema, feature: Feature) -> pa.DataType:
    """The Arrow type of one owner's ids: rows are int32, keys int64."""
    kind = pa.int32() if schema.without_vocabulary(feature.table) is None else pa.int64()
    return pa.list_(kind) if feature.multi else kind


def _names(features: Sequence[Feature]) -> list[str]:
    return [feature.name for feature in features]


def _read_file(file: Path, types: dict[str, pa.DataType]) -> pa.Table:
    try:
        with pq.ParquetFile(pa.memory_map(str(file))) as parquet:
            found = parquet.schema_arrow
            for name, kind in types.items():
                if name not in found.names:
                    raise DataError(f"{file} has no column '{name}', which the dataset's schema asks for")
                if not _same_type(found.field(name).type, kind):
                    raise DataError(f"{file}: column '{name}' is {found.field(name).type}, not {kind}")
            table = parquet.read(columns=list(types), use_threads=False)
    except FileNotFoundError as error:
        raise DataError(f"{file} is missing: ingest its day again") from error
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{file} cannot be read as Parquet: {error}") from error
    for name in types:
        if any(_has_nulls(chunk) for chunk in table[name].chunks):
            raise DataError(f"{file}: column '{name}' has nulls; prepared data has none")
    return table


def _same_type(found: pa.DataType, wanted: pa.DataType) -> bool:
    """Equal but for the name and nullability of list elements, which differ by writer."""
    if pa.types.is_list(found) and pa.types.is_list(wanted):
        return _same_type(found.value_type, wanted.value_type)
    return bool(found == wanted)


def _has_nulls(array: pa.Array) -> bool:
    return array.null_count > 0 or (pa.types.is_list(array.type) and _has_nulls(array.values))


@dataclass(frozen=True, kw_only=True)
class _Nested:
    """A column as values and the offsets of each list level, outermost first."""

    values_N: Values
    offsets: list[Offsets]


def _depth(kind: pa.DataType) -> int:
    return 1 + _depth(kind.value_type) if pa.types.is_list(kind) else 0


def _decode(column: pa.ChunkedArray, kind: pa.DataType) -> _Nested:
    return _concatenate([_decode_array(chunk) for chunk in column.chunks], kind)


def _decode_array(array: pa.Array) -> _Nested:
    """Views of the array's buffers; offsets are counted from zero also where the array is a slice."""
    offsets: list[Offsets] = []
    while pa.types.is_list(array.type):
        raw = array.offsets.to_numpy().astype(np.int64)
        first, last = (int(raw[0]), int(raw[-1])) if len(raw) else (0, 0)
        offsets.append(raw - first if len(raw) else np.zeros(1, dtype=np.int64))
        array = array.values.slice(first, last - first)
    return _Nested(values_N=array.to_numpy(zero_copy_only=True), offsets=offsets)


def _concatenate(parts: list[_Nested], kind: pa.DataType) -> _Nested:
    if len(parts) == 1:
        return parts[0]
    depth, scalar = _depth(kind), kind
    while pa.types.is_list(scalar):
        scalar = scalar.value_type
    offsets: list[Offsets] = []
    for level in range(depth):
        lengths = [np.diff(part.offsets[level]) for part in parts]
        offsets.append(_offsets_of(np.concatenate(lengths)) if lengths else np.zeros(1, dtype=np.int64))
    values = [part.values_N for part in parts]
    return _Nested(
        values_N=np.concatenate(values) if values else np.empty(0, dtype=scalar.to_pandas_dtype()), offsets=offsets
    )


def _offsets_of(lengths: Offsets) -> Offsets:
    offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def _scalar_or_ragged(column: _Nested) -> Column:
    if not column.offsets:
        return column.values_N
    return Ragged(values_N=column.values_N, offsets=column.offsets[-1])


def _level(whole: dict[str, _Nested], prefix: str, names: Sequence[str], where: str) -> Level:
    """Columns whose outer lists must have the same lengths in every row."""
    columns: dict[str, Column] = {}
    offsets = whole[prefix + names[0]].offsets[0] if names else np.zeros(1, dtype=np.int64)
    for name in names:
        column = whole[prefix + name]
        _same_offsets(offsets, column.offsets[0], prefix + name, where)
        columns[name] = _scalar_or_ragged(_Nested(values_N=column.values_N, offsets=column.offsets[1:]))
    return Level(offsets=offsets, columns=columns)


def _same_offsets(expected: Offsets, offsets: Offsets, name: str, where: str) -> None:
    if not np.array_equal(expected, offsets):
        row = int(np.argmax(np.diff(expected) != np.diff(offsets)))
        raise DataError(
            f"{where}: column '{name}' has {np.diff(offsets)[row]} entries in row {row}, "
            f"where the first column of its kind has {np.diff(expected)[row]}"
        )


def _group_level(whole: dict[str, _Nested], group: Group, moment_offsets: Offsets, where: str) -> Level:
    level = _level(whole, f"{group.name}_", ["moment", *_names(group.candidate), *group.labels], where)
    num_dense = len(group.dense)
    dense = np.zeros((int(level.offsets[-1]), 0), dtype=np.float32)
    if num_dense:
        column = whole[f"{group.name}_dense"]
        _same_offsets(level.offsets * num_dense, column.offsets[0], f"{group.name}_dense", where)
        dense = column.values_N.reshape(-1, num_dense)
    level.columns["dense"] = dense
    moment_K = whole[f"{group.name}_moment"].values_N
    num_moments_K = np.repeat(np.diff(moment_offsets), np.diff(level.offsets))
    if bool(np.any((moment_K < 0) | (moment_K >= num_moments_K))):
        raise DataError(f"{where}: column '{group.name}_moment' points beyond the moments of its row")
    return level
