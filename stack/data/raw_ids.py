"""Which tables of a log may go without a vocabulary (`ingest.raw_ids`), and the schema that says so."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from stack.base.errors import ConfigError
from stack.data import coding
from stack.data.canonical import Canonical
from stack.data.schema import RawIds, Schema
from stack.data.vocabulary import USER


def schema_with_raw_ids(canonical: Canonical, tables: Sequence[str]) -> Schema:
    """The source's schema where the ids of `tables` have no vocabulary.

    Raises: `ConfigError` where one is no table of the log, or its rows are needed.
    """
    if not tables:
        return canonical.schema
    kinds, needed = coding.id_types(canonical), _needed(canonical.schema)
    for table in tables:
        if table not in kinds:
            raise ConfigError(f"ingest.raw_ids names {table!r}; the tables of the log are: {', '.join(sorted(kinds))}")
        if table in needed:
            raise ConfigError(
                f"ingest.raw_ids names {table!r}, which needs a vocabulary: {needed[table]}; leave it out of "
                f"ingest.raw_ids"
            )
    raw_ids = tuple(RawIds(table=table, text=kinds[table] == "string") for table in sorted(set(tables)))
    return msgspec.structs.replace(canonical.schema, raw_ids=raw_ids)


def _needed(schema: Schema) -> dict[str, str]:
    """Tables whose rows something counts on, and what."""
    needed = {USER: "timelines are spread over buckets and sorted by its rows"}
    needed |= {feature.table: f"property {feature.name!r} is embedded by its rows" for feature in schema.property}
    shops = [feature for group in schema.groups if group.name == "shop" for feature in group.candidate]
    return needed | {feature.table: "other shops of the group 'shop' are drawn among its rows" for feature in shops}
