"""The package: what `stack export` writes and `stack serve` reads, and nothing else passes between the two.

An immutable folder, complete only when `manifest.json` is in it::

    package/
      manifest.json                   PackageManifest: inputs, graphs, tasks, lineage, size and sha256 of every file
      signature.json                  of the manifest, where export was given a key (`stack.export.sign`)
      parity.json                     exported against trained, for each format of graph and type of row
      quality.json                    what each type of row costs: AUC, GAUC, error of the user's vector
      audits.json                     what was found before the package was allowed to be
      requests.json                   recorded requests and their answers: a server warms with them and proves itself
      graphs/user_half.onnx           once per request
      graphs/score_ctr.onnx           once per candidate; one scorer for each task that scores candidates
      graphs/user_half.pt2            the same compiled by AOTInductor, where asked for: native code
      rows/item/rows.npy keys.npy default.npy     rows of a table (`stack.export.runs`), and the row of unknown ids
      ids/type/keys.npy rows.npy      keys of ids and the rows that they stand for, where the rows have no keys
      index/index.faiss keys.npy      items by vector, where a task can retrieve (`stack.export.index`)

Raw ids become 64-bit keys (`stack.data.keys`), and keys lead to rows in one of three ways (`IdKind`). Graphs take
looked-up vectors, so that rows are refreshed without touching them.

All but the AOTInductor graphs can be read without torch; nothing in it is pickled. A `.pt2` file is a program: load
only packages whose origin you trust. Digests guard against damage and mix-ups; a signature against other authors.
"""

from __future__ import annotations

import enum
from pathlib import Path

import msgspec
from msgspec import UNSET, UnsetType

from stack.base.errors import PackageError
from stack.data.schema import Schema
from stack.export.quantize import RowType
from stack.export.sealed import Sealed, check_files, read_sealed, refuse_name, refuse_path
from stack.ids.hashing import HashedRows, HashVariant

PARITY = "parity.json"
QUALITY = "quality.json"
AUDITS = "audits.json"
REQUESTS = "requests.json"
ROWS, IDS, INDEX = "rows", "ids", "index"
"""Folders."""
TEXTS = "texts.npy"
"""Raw ids of the index's items where those are texts: UTF-8 bytes, padded with NUL."""
DEFAULT = "default.npy"
"""The row of unknown ids, (D,) float32, beside a table's rows."""
USER_HALF = "user_half"
"""Name of the graph that runs once per request."""
USER_VECTOR = "vector"
"""Name of its output that is the user's representation, (B, vector_dim)."""
MIN_EVENTS = 3
"""Events every graph must be given, padded if need be: tracers treat lengths such as 0 and 1 apart."""


class Kind(enum.Enum):
    """What an input of a graph is. B users, L events (padded at the end), E candidates, D a table's width, F ranking
    features."""

    EVENT_VECTORS = "event_vectors"
    """(B, L, D) float32: one event feature, looked up; multi-valued features as the mean of their rows."""
    EVENT_IDS = "event_ids"
    """(B, L) int64: rows of one property, which the graph itself embeds."""
    EVENT_TIME = "event_time"
    """(B, L) int64: epoch seconds."""
    NUM_EVENTS = "num_events"
    """(B,) int64: events before the padding."""
    PROFILE_VECTORS = "profile_vectors"
    """(B, D) float32: one profile feature, looked up."""
    QUERY_VECTORS = "query_vectors"
    """(B, D) float32: one query feature, looked up."""
    NOW = "now"
    """(B,) int64: epoch seconds of the moment."""
    USER_OUTPUT = "user_output"
    """An output of the user half, by name, of one user: its first axis is 1."""
    CANDIDATE_VECTORS = "candidate_vectors"
    """(E, D) float32: one candidate feature, looked up."""
    DENSE = "dense"
    """(E, F) float32: ranking features as they come, in the order of the schema's group."""


class Input(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One input of a graph; `feature` names the schema's feature or the user half's output where `kind` needs one."""

    kind: Kind
    feature: str = ""


class GraphFormat(enum.Enum):
    """How a graph is kept and run."""

    onnx = "onnx"
    """ONNX Runtime: data, needs no torch and no compiler."""
    aoti = "aoti"
    """AOTInductor: native code, needs torch and, at export, a C++ compiler."""

    @property
    def suffix(self) -> str:
        return ".onnx" if self is GraphFormat.onnx else ".pt2"


class Graph(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A compiled graph: inputs and outputs by position; a file for each format. `group` is the group of examples
    whose candidates a scorer scores."""

    files: dict[str, str]
    inputs: tuple[Input, ...]
    outputs: tuple[str, ...]
    group: str = ""


class Link(enum.Enum):
    """How a task's raw output becomes what is answered."""

    SIGMOID = "sigmoid"
    SOFTMAX = "softmax"
    IDENTITY = "identity"


class Task(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A task the package answers: `graph` computes it as its output `output`. One value, or `columns` of them."""

    name: str
    graph: str
    output: str
    link: Link
    columns: tuple[str, ...] = ()


class Table(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Shape of a table's rows and how its numbers are kept. `keyed`: rows are searched by the key of an id; otherwise
    by their number."""

    num_rows: int
    dim: int
    row_type: RowType
    keyed: bool


class IdKind(enum.Enum):
    """How the key of a raw id leads to its row."""

    key = "key"
    """Rows have keys."""
    list = "list"
    """A list of keys gives the row's number: of properties, which graphs embed, and of hashed vocabularies."""
    hash = "hash"
    """The row's numbers are computed from the key, one or two to be summed."""


class Ids(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The ids of a table. `text`: raw ids are strings; otherwise they are 64-bit integers. `num_ids` is 0 where they
    are hashed, by `hash` into `num_rows` rows."""

    kind: IdKind
    text: bool
    num_ids: int = 0
    num_rows: int = 0
    hash: HashVariant | UnsetType = UNSET

    @property
    def hashed(self) -> HashedRows | None:
        """How rows are computed, where they are."""
        return HashedRows(num_rows=self.num_rows, variant=self.hash) if self.hash else None

    @property
    def rows_per_id(self) -> int:
        """Rows that are summed for an id."""
        hashed = self.hashed
        return 1 if hashed is None else hashed.rows_per_key


class Field(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An input of a request, for those who write one. `per`: event, user, request or candidate; `max_length`: the most
    values of one request, or of one owner where `multi`; what is missing counts as `default`."""

    name: str
    dtype: str
    per: str
    multi: bool
    max_length: int
    default: str


class Retrieval(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Items by vector. `output` of the user half is searched with; `table` holds the items' raw ids."""

    task: str
    output: str
    table: str
    dim: int
    num_items: int
    kind: str
    recall_at_10: float | None
    recall_at_100: float | None


class Lineage(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the numbers come from: enough to find the checkpoint, the data and the code again. `code_version` is that
    which trained (with its git commit, where there was one), `exported_by` that which exported."""

    run: str
    step: int
    version: int
    checkpoint_digest: str
    source: str
    first_day: str
    last_day: str
    num_days: int
    code_version: str
    exported_by: str
    created: str
    versions: dict[str, str]


class Parity(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Largest absolute difference of each output between the package, in one format with one type of row, and the
    trained model; of a type that rounds, `tolerance` is for the graphs on the same rounded rows. `num_examples`: lines
    of each output that were compared, a line for each moment where it is about the user alone."""

    tolerance: float
    num_moments: int
    num_examples: dict[str, int]
    max_abs_difference: dict[str, float]

    @property
    def worst(self) -> float:
        return max(self.max_abs_difference.values())


class Finding(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an audit found. `level`: ok, warning or critical."""

    name: str
    level: str
    measured: str
    allowed: str


def scorers_of(manifest: PackageManifest, group: str) -> tuple[str, ...]:
    """The graphs that score candidates of a group."""
    return tuple(name for name, graph in manifest.graphs.items() if graph.group == group)


class PackageManifest(Sealed, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything about a package. Features missing from a request take the default row of their table.

    `max_history` events before the moment are attended to; `max_events` are accepted and encoded.
    `query_in_vector`: the user vector changes with the query, so it cannot be computed ahead of the request.
    `scorer_needs_states`: scoring needs the user half's states, so a stored user vector is not enough.
    `formats`: of the graphs, the first is served unless another is asked for.
    """

    name: str
    schema: Schema
    inputs: tuple[Field, ...]
    max_history: int
    max_events: int
    vector_dim: int
    query_in_vector: bool
    scorer_needs_states: bool
    formats: tuple[GraphFormat, ...]
    graphs: dict[str, Graph]
    tasks: tuple[Task, ...]
    tables: dict[str, Table]
    ids: dict[str, Ids]
    lineage: Lineage
    parity: Parity
    audits: tuple[Finding, ...] = ()
    retrieval: Retrieval | None = None


def open_package(folder: Path) -> PackageManifest:
    """Reads the manifest and compares every file of the folder with it.

    Raises:
        PackageError: naming the first file that is missing, damaged, not listed, a link, or outside the folder.
    """
    manifest = read_manifest(folder)
    check_files(folder, manifest.files)
    for name, graph in manifest.graphs.items():
        for file in set(graph.files.values()) - set(manifest.files):
            raise PackageError(f"package {folder}: {file!r}, of graph {name[:80]!r}, is not among its files")
    return manifest


def read_manifest(folder: Path) -> PackageManifest:
    """The manifest alone, its format, its own digest and the names that become paths checked; the other files are not
    read."""
    manifest = read_sealed(folder, PackageManifest)
    for table in (*manifest.tables, *manifest.ids):
        refuse_name(table, what="table")
    for graph in manifest.graphs.values():
        for file in graph.files.values():
            refuse_path(file, folder)
    return manifest
