"""Asks a server as another program would: starts `stack serve`, sends the requests of a held-out user, stops it.

The raw ids and times of a request come out of prepared data, so what is asked is what the log had at that moment.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec
import numpy as np

from stack.base.errors import DataError, UserError
from stack.data.batch import Batch, Ids, Jagged
from stack.data.dataset import Dataset, Vocabulary
from stack.data.keys import UNKNOWN_KEY
from stack.data.loader import Loader
from stack.data.schema import Feature, Schema

_TIMEOUT_SECONDS = 60.0
_STOP_SECONDS = 20.0


class RefusedError(UserError):
    """The server refused a request; the text is what it said."""


@contextmanager
def running_server(package: Path, *, options: Sequence[str] = ()) -> Iterator[str]:
    """Runs `stack serve` for `package` on a free port of this machine; gives its address, and stops it at the end.

    Raises: `UserError` with what the server said, where it does not start.
    """
    command = [sys.executable, "-m", "stack", "serve", f"serve.package={package}", "serve.port=0", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            address = next(
                (word for line in server.stdout for word in line.split() if word.startswith("http://")), None
            )
            if address is None:
                raise UserError(f"the server of {package} ended before it could answer: its reason is above")
            yield address
        finally:
            server.terminate()
            try:
                server.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                server.kill()


def ask(address: str, path: str, body: Mapping[str, object] | None = None) -> dict[str, Any]:
    """GET, or POST of a JSON body; the answer.

    Raises: `RefusedError` with the server's line.
    """
    parts = urlsplit(address)
    connection = HTTPConnection(parts.hostname or "", parts.port, timeout=_TIMEOUT_SECONDS)
    try:
        if body is None:
            connection.request("GET", path)
        else:
            connection.request("POST", path, msgspec.json.encode(body), {"content-type": "application/json"})
        response = connection.getresponse()
        answer = msgspec.json.decode(response.read(), type=dict[str, Any])
    finally:
        connection.close()
    if response.status != 200:
        raise RefusedError(f"{path} answered {response.status}: {answer['error']}")
    return answer


def held_out_request(dataset: Dataset, schema: Schema, *, day: str, group: str, max_events: int) -> dict[str, Any]:
    """The body of `items:score` for the first user of `day` with history and examples of `group`, in raw ids.
    `schema` is the package's: the features it reads.

    Raises: `DataError` where the day has none, or a feature has texts without a vocabulary.
    """
    loader = Loader(dataset, days=[day], global_batch_size=64, shuffle=False, groups=[group], num_prefetch=0)
    for batch in loader:
        position_E = batch.moment_position_M[batch.groups[group].moment_E]
        for example in (position_E > 0).nonzero()[:1].flatten().tolist():
            moment = int(batch.groups[group].moment_E[example])
            return _Asker(dataset, schema, batch).request(moment, group, max_events)
    raise DataError(f"day {day} of {dataset.path} has no example of {group!r} whose user has any history")


class _Asker:
    """Turns the rows of a batch back into the raw ids of a request."""

    def __init__(self, dataset: Dataset, schema: Schema, batch: Batch) -> None:
        self._dataset = dataset
        self._schema = schema
        self._batch = batch
        self._vocabularies: dict[str, Vocabulary] = {}

    def request(self, moment: int, group: str, max_events: int) -> dict[str, Any]:
        batch, schema = self._batch, self._schema
        row = int(batch.moment_row_M[moment])
        first = int(batch.num_events_B[:row].sum())
        end = first + int(batch.moment_position_M[moment])
        event_T = np.arange(max(first, end - max_events), end)
        example_E = (batch.groups[group].moment_E == moment).nonzero().flatten().numpy()
        described = schema.group(group)
        examples = batch.groups[group]
        candidates = self._columns(described.candidate, examples.ids, example_E)
        if described.dense:
            dense_EF = examples.dense_EF[example_E]
            candidates["dense"] = {name: dense_EF[:, index].tolist() for index, name in enumerate(described.dense)}
        events = self._columns((*schema.event, *schema.property), {**batch.event, **batch.property}, event_T)
        return {
            "now": int(batch.moment_time_M[moment]),
            "events": {"time": batch.event_time_T[event_T].tolist(), **events},
            "profile": self._singles(schema.profile, {**batch.profile, "user": batch.user_B}, row),
            "query": self._singles(schema.query, batch.query, moment),
            "group": group,
            "candidates": candidates,
        }

    def _columns(self, features: Sequence[Feature], ids: Mapping[str, Ids], owners: np.ndarray) -> dict[str, Any]:
        return {feature.name: self._raw(feature, ids[feature.name], owners) for feature in features}

    def _singles(self, features: Sequence[Feature], ids: Mapping[str, Ids], owner: int) -> dict[str, Any]:
        columns = self._columns(features, ids, np.array([owner]))
        return {name: column[0] for name, column in columns.items()}

    def _raw(self, feature: Feature, ids: Ids, owners: np.ndarray) -> list[Any]:
        if not isinstance(ids, Jagged):
            return self._raw_ids(feature.table, ids[owners].tolist())
        ends = ids.lengths.cumsum(0)
        bags = [ids.values_N[ends[owner] - ids.lengths[owner] : ends[owner]].tolist() for owner in owners.tolist()]
        return [[raw for raw in self._raw_ids(feature.table, bag) if raw is not None] for bag in bags]

    def _raw_ids(self, table: str, ids: list[int]) -> list[str | int | None]:
        raw_ids = self._dataset.schema.without_vocabulary(table)
        if raw_ids is None:
            if table not in self._vocabularies:
                self._vocabularies[table] = self._dataset.vocabulary(table)
            return self._vocabularies[table].raw_ids(ids)
        if raw_ids.text:
            raise DataError(
                f"prepared data hold the texts of {table!r} (ingest.raw_ids) as 64-bit hashes, which cannot be turned "
                "back: ask with ids out of the log itself"
            )
        return [None if key == UNKNOWN_KEY else key for key in ids]
