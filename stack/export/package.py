"""The package: what `stack export` writes and `stack serve` reads, and nothing else passes between the two.

An immutable folder, complete only when `manifest.json` is in it::

    package/
      manifest.json                   PackageManifest: schema, graphs, tasks, lineage, size and sha256 of every file
      parity.json                     ParityReport: exported against trained, on held-out moments
      graphs/user_half.pt2            once per request   (torch.export; takes looked-up vectors)
      graphs/scorer_impression.pt2    once per candidate; one scorer for each group of examples that has candidates
      tables/item.npy                 rows of an embedding table, (rows, D) float32, row 0 = the default
      vocab/item.ids.npy              raw ids in sorted order (int64, or UTF-8 bytes of fixed width)
      vocab/item.rows.npy             their rows, int32

Of a managed table without a vocabulary `vocab` holds keys (`stack.data.keys`) in place of raw ids, of a hashed one
nothing: `stack.export.lookup` finds rows in all three ways.

All but the graphs can be read without torch; nothing in it is pickled by us. A `.pt2` file is a program: load only
packages whose origin you trust. The digests guard against damage and mix-ups, not against an author.
"""

from __future__ import annotations

import enum
import hashlib
import re
import stat
from collections.abc import Iterator
from pathlib import Path

import msgspec
from msgspec import UNSET, UnsetType

from stack.base.errors import PackageError
from stack.base.files import sha256_of
from stack.data.schema import Schema
from stack.ids.hashing import HashVariant

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
PARITY = "parity.json"
USER_HALF = "user_half"
"""Name of the graph that runs once per request."""
USER_VECTOR = "vector"
"""Name of its output that is the user's representation, (B, vector_dim)."""
MIN_EVENTS = 3
"""Events every graph must be given, padded if need be: tracers treat lengths such as 0 and 1 apart."""
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}(/[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}){0,3}")


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


class Graph(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A compiled graph: inputs and outputs by position. `group` is the group of examples a scorer scores."""

    file: str
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
    """Shape of a table's rows."""

    num_rows: int
    dim: int


class Vocabulary(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`text`: raw ids are strings; otherwise they are 64-bit integers. `hash`: rows are computed from the key of any
    raw id, in this way, and no ids are listed (`num_ids` is 0)."""

    num_ids: int
    text: bool
    hash: HashVariant | UnsetType = UNSET


class Lineage(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the numbers come from: enough to find the checkpoint, the data and the code again."""

    run: str
    step: int
    checkpoint_digest: str
    source: str
    first_day: str
    last_day: str
    code_version: str
    created: str
    versions: dict[str, str]


class File(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Size and digest of one file of the package."""

    num_bytes: int
    sha256: str


class Parity(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Largest absolute difference of each output between the package and the trained model."""

    tolerance: float
    num_moments: int
    num_examples: dict[str, int]
    max_abs_difference: dict[str, float]

    @property
    def worst(self) -> float:
        return max(self.max_abs_difference.values())


class PackageManifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything about a package. Features missing from a request take row 0 of their table, the default.

    `max_history` events before the moment are attended to; `max_events` are accepted and encoded.
    `query_in_vector`: the user vector changes with the query, so it cannot be computed ahead of the request.
    `scorer_needs_states`: scoring needs the user half's states, so a stored user vector is not enough.
    `digest` is the sha256 of this manifest encoded with an empty digest.
    """

    format_version: int
    schema: Schema
    max_history: int
    max_events: int
    vector_dim: int
    query_in_vector: bool
    scorer_needs_states: bool
    graphs: dict[str, Graph]
    tasks: tuple[Task, ...]
    tables: dict[str, Table]
    vocabularies: dict[str, Vocabulary]
    lineage: Lineage
    parity: Parity
    files: dict[str, File]
    digest: str = ""


def write_manifest(folder: Path, manifest: PackageManifest) -> PackageManifest:
    """Writes and returns the manifest with its own digest in it."""
    sealed = msgspec.structs.replace(manifest, digest=_digest(manifest))
    (folder / MANIFEST).write_bytes(msgspec.json.format(msgspec.json.encode(sealed), indent=1))
    return sealed


def describe_files(folder: Path) -> dict[str, File]:
    """Size and sha256 of every file under `folder`, by its name relative to it."""
    return {
        name: File(num_bytes=(folder / name).stat().st_size, sha256=sha256_of(folder / name))
        for name in sorted(_walk(folder, folder))
    }


def open_package(folder: Path) -> PackageManifest:
    """Reads the manifest and compares every file of the folder with it.

    Raises:
        PackageError: naming the first file that is missing, damaged, not listed, a link, or outside the folder.
    """
    manifest = read_manifest(folder)
    for name in manifest.files:
        if not _NAME.fullmatch(name):
            raise PackageError(f"package {folder}: refused the file name {name!r}: not a plain name inside the package")
    for name in sorted(set(_walk(folder, folder)) - set(manifest.files) - {MANIFEST}):
        raise PackageError(f"package {folder}: {name!r} is not listed in {MANIFEST}: remove it, or export again")
    for name, expected in manifest.files.items():
        _check(folder, name, expected)
    return manifest


def read_manifest(folder: Path) -> PackageManifest:
    """The manifest alone, its format and its own digest checked; the other files are not read."""
    path = folder / MANIFEST
    if not path.is_file():
        raise PackageError(f"no package at {folder}: it has no {MANIFEST}; write one with: stack export run.name=<run>")
    data = path.read_bytes()
    try:
        version = msgspec.json.decode(data, type=_Version).format_version
        if version != FORMAT_VERSION:
            raise PackageError(
                f"package {folder}: format version {version}, this code reads {FORMAT_VERSION}: export it again"
            )
        manifest = msgspec.json.decode(data, type=PackageManifest)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise PackageError(f"package {folder}: {MANIFEST} cannot be read: {error}") from error
    digest = _digest(manifest)
    if digest != manifest.digest:
        raise PackageError(
            f"package {folder}: {MANIFEST} was changed: its digest is {digest}, it says {manifest.digest}"
        )
    return manifest


def _digest(manifest: PackageManifest) -> str:
    return hashlib.sha256(msgspec.json.encode(msgspec.structs.replace(manifest, digest=""))).hexdigest()


class _Version(msgspec.Struct):
    format_version: int


def _walk(folder: Path, root: Path) -> Iterator[str]:
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            yield from _walk(entry, root)
        else:
            yield entry.relative_to(root).as_posix()


def _check(folder: Path, name: str, expected: File) -> None:
    path = folder / name
    if not path.exists() and not path.is_symlink():
        raise PackageError(f"package {folder}: {name!r} is missing")
    if not stat.S_ISREG(path.lstat().st_mode) or path.resolve() != folder.resolve() / name:
        raise PackageError(f"package {folder}: {name!r} is not a plain file inside the package")
    num_bytes = path.stat().st_size
    if num_bytes != expected.num_bytes:
        raise PackageError(f"package {folder}: {name!r} has {num_bytes} bytes, {MANIFEST} says {expected.num_bytes}")
    if sha256_of(path) != expected.sha256:
        raise PackageError(f"package {folder}: {name!r} is damaged: its sha256 is not the one in {MANIFEST}")
