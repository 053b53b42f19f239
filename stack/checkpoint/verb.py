"""`stack checkpoint`: everything a person does with the versions of a run, besides training."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import msgspec

from stack.base.errors import CheckpointError, ConfigError
from stack.checkpoint import told
from stack.checkpoint.chain import Chain, chain_of
from stack.checkpoint.compact import compact, size_of
from stack.checkpoint.config import CheckpointConfig
from stack.checkpoint.diff import diff
from stack.checkpoint.leases import Lease, write_lease
from stack.checkpoint.listing import facts, versions
from stack.checkpoint.load import open_version
from stack.checkpoint.manifest import VersionManifest
from stack.checkpoint.restore import copy_to, restore
from stack.checkpoint.retain import prune
from stack.checkpoint.rows_of import rows_of_id
from stack.checkpoint.verify import verify
from stack.telemetry.console import say, show
from stack.telemetry.progress import Progress

DAMAGE_STATUS = 1

_OPTION = re.compile(r"[+~]*[A-Za-z_][\w./@]*=")

EXAMPLES = """examples
  stack checkpoint list run.name=first               all versions: what, when, how large, which can be restored
  stack checkpoint show run.name=first               the newest version, and its tables
  stack checkpoint show --version 2017-11-05         that of a day (or a number)
  stack checkpoint show --table item --id 123        a row, and the versions that wrote it
  stack checkpoint diff 7 8                          what version 8 learnt: rows, ids, dense tensors, figures
  stack checkpoint verify --deep                     reads every file; exit status 1 where something is damaged
  stack checkpoint restore --version 7               the next training goes on from version 7
  stack checkpoint restore --version 7 --to copy     version 7 alone and whole, in another place
  stack checkpoint compact                           the newest version, whole: it restores faster, and old files can go
  stack checkpoint prune --dry-run                   what the policy (checkpoint.keep_*) would delete, and why not more

Words with '=' select the run and its options, as for other verbs: run.dir=, run.name=, checkpoint.store=s3://...
docs/checkpoints.md tells what is in the folder, and what is guaranteed.
"""


def checkpoint(words: Sequence[str], *, where: Path | str, options: CheckpointConfig, run: Path | None = None) -> int:
    """Does what `words` say (without options of the configuration) with the chain in `where`; `run` is the run's
    folder. Returns the exit status: 1 where `verify` found damage.

    Raises: `UserError` in one line.
    """
    asked = _parser().parse_args(list(words))
    chain = chain_of(where, for_writing=asked.writes)
    status: int = asked.action(_Call(chain=chain, options=options, run=run, asked=asked))
    return status


def split_words(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The verb's own words, and the options of the configuration among them (`run.name=first`)."""
    options = [word for word in words if _OPTION.match(word)]
    return [word for word in words if not _OPTION.match(word)], options


class _Call:
    """What a subcommand is given."""

    def __init__(self, *, chain: Chain, options: CheckpointConfig, run: Path | None, asked: argparse.Namespace) -> None:
        self.chain = chain
        self.options = options
        self.run = run
        self.asked = asked

    def version(self) -> VersionManifest:
        return self.chain.find(self.asked.version)

    def tell(self, found: object, tables: Sequence[object], line: str = "") -> None:
        """For machines or for people."""
        if self.asked.json:
            say(msgspec.json.format(msgspec.json.encode(found)).decode())
            return
        for table in tables:
            show(table)  # type: ignore[arg-type]
        if line:
            say(line)

    @contextmanager
    def reading(self, *numbers: int) -> Iterator[None]:
        """Holds versions while they are read; where nothing may be written they are read without."""
        leases = [Lease(version=number, seconds=self.options.lease_seconds) for number in numbers]
        try:
            for lease in leases:
                write_lease(self.chain.store, lease)
        except OSError:
            pass  # nobody who may not write here prunes here
        try:
            yield
        finally:
            for lease in leases:
                lease.release(self.chain.store)


def _list(call: _Call) -> int:
    rows = versions(call.chain)
    if not rows and not call.asked.json:
        raise CheckpointError(f"{call.chain.store.url} has no version yet: run `stack train` first")
    call.tell(rows, [told.of_versions(rows, url=call.chain.store.url)])
    return 0


def _show(call: _Call) -> int:
    version, asked = call.version(), call.asked
    if (asked.table is None) != (asked.id is None):
        raise ConfigError("--table and --id go together: stack checkpoint show --table item --id 123")
    with call.reading(version.version):
        if asked.table is not None:
            opened = open_version(call.chain, version)
            rows = rows_of_id(call.chain, opened, asked.table, asked.id, run=call.run, vocabulary=asked.vocabulary)
            call.tell(rows, [table for row in rows for table in told.of_row(row, version=version.version)])
            return 0
        gone = version.version in call.chain.pruned()
        found = facts(call.chain, version, None if gone else open_version(call.chain, version))
        call.tell(found, told.of_facts(found))
    return 0


def _verify(call: _Call) -> int:
    with Progress(description="verify", unit="B") as bar:
        report = verify(call.chain, deep=call.asked.deep, progress=bar.advance)
    found = {"damaged": report.damaged, "report": report}
    call.tell(found, told.of_report(report, url=call.chain.store.url), told.verdict(report))
    return DAMAGE_STATUS if report.damaged else 0


def _restore(call: _Call) -> int:
    version, asked, options = call.version(), call.asked, call.options
    if asked.to is None:
        if asked.weights_only:
            raise ConfigError("--weights-only is for a copy: add --to FOLDER")
        made = restore(call.chain, version, verify=options.verify, lease_seconds=options.lease_seconds)
        line = f"version {made.version} is version {version.version} again: the next training goes on from it"
        call.tell({"version": made.version, "restores": version.version}, [], line)
        return 0
    with Progress(description="restore", unit="B") as bar:
        made = copy_to(
            call.chain, version, chain_of(asked.to, for_writing=True), part_mib=options.part_mib,
            weights_only=asked.weights_only, verify=options.verify, lease_seconds=options.lease_seconds,
            progress=bar.advance,
        )  # fmt: skip
    line = f"version {version.version} is in {asked.to}, whole: {told.size(made.num_bytes)}"
    call.tell({"version": made.version, "copies": version.version, "to": str(asked.to)}, [], line)
    return 0


def _compact(call: _Call) -> int:
    version, options = call.version(), call.options
    with Progress(total=size_of(call.chain.layers(version)), description="compact", unit="B") as bar:
        base = compact(
            call.chain, version, part_mib=options.part_mib, lease_seconds=options.lease_seconds, progress=bar.advance
        )
    if base is None:
        call.tell({"version": version.version, "base": None}, [], f"version {version.version} is a base: nothing to do")
        return 0
    num_bytes = sum(file.num_bytes for file in base.files.values())
    found = {"version": version.version, "base": base.data, "num_bytes": num_bytes}
    call.tell(found, [], f"version {version.version} is compacted: {told.size(num_bytes)} in data/{base.data}")
    return 0


def _prune(call: _Call) -> int:
    dry_run = call.asked.dry_run
    found = prune(call.chain, call.options, dry_run=dry_run)
    verb = "would free" if dry_run else "freed"
    call.tell(found, told.of_pruning(found, dry_run=dry_run), f"{verb} {told.size(found.num_bytes)}")
    return 0


def _diff(call: _Call) -> int:
    second = call.chain.find(call.asked.second)
    if call.asked.first is None and second.parent is None:
        raise CheckpointError(f"version {second.version} builds on nothing: name two versions, as in diff 1 2")
    first = call.chain.find(call.asked.first or str(second.parent.version if second.parent else ""))
    with call.reading(first.version, second.version):
        one, other = open_version(call.chain, first), open_version(call.chain, second)
        found = diff(one, other, num_moved=call.asked.rows)
    call.tell(found, told.of_diff(found))
    return 0


class _Parser(argparse.ArgumentParser):
    """Refuses in one line, as all verbs do."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}: `{self.prog} --help` shows what there is")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="stack checkpoint",
        description="The versions of a run: look at them, check them, go back, tidy up.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    verbs = parser.add_subparsers(required=True, metavar="VERB", parser_class=_Parser)

    def add(name: str, action: Callable[[_Call], int], text: str, *, writes: bool = False) -> argparse.ArgumentParser:
        one = verbs.add_parser(
            name, help=text, description=text, epilog=_examples_of(name), allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )  # fmt: skip
        one.add_argument("--json", action="store_true", help="for machines")
        one.set_defaults(action=action, writes=writes)
        return one

    def version(one: argparse.ArgumentParser, *, required: bool = False) -> None:
        one.add_argument(
            "--version", metavar="V", required=required, help="number, or a day; the newest where left out"
        )

    add("list", _list, "all versions, the oldest first")
    one = add("show", _show, "what a version is made of; or one row of it")
    version(one)
    one.add_argument("--table", help="with --id: show this row alone")
    one.add_argument("--id", help="raw id, or the row where ids have no vocabulary at hand")
    one.add_argument("--vocabulary", type=Path, metavar="FOLDER", help="prepared dataset; data.out of the run if there")
    one = add("verify", _verify, "reads every file, and says what is damaged and which versions that breaks")
    one.add_argument("--deep", action="store_true", help="also what the numbers say: keys, rows, not finite")
    one = add("restore", _restore, "goes back to a version, or copies it to another place", writes=True)
    version(one, required=True)
    one.add_argument("--to", metavar="FOLDER", help="an empty folder or s3://...: write the version there, whole")
    one.add_argument("--weights-only", action="store_true", help="with --to: without optimizer state")
    version(add("compact", _compact, "writes a version's tables whole, beside its deltas", writes=True))
    one = add("prune", _prune, "deletes versions that no policy keeps, and what dead writers left", writes=True)
    one.add_argument("--dry-run", action="store_true", help="only say what would go")
    one = add("diff", _diff, "what is different between two versions; if none is named, the newest and its parent")
    one.add_argument("first", nargs="?", metavar="A", help="number or day")
    one.add_argument("second", nargs="?", metavar="B", help="number or day; the newest where left out")
    one.add_argument("--rows", type=int, default=5, metavar="N", help="how many of the rows that moved most")
    return parser


def _examples_of(name: str) -> str:
    lines = [line for line in EXAMPLES.splitlines() if line.startswith(f"  stack checkpoint {name}")]
    return "\n".join(["examples", *lines])
