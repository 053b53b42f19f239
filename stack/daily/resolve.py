"""What a day means for a chain: which version it builds on, or that it is there already, or why it cannot be learnt.

::

    head's line    ... <- base (all of d-1) <- save <- save            d goes on after the newest save, if it has the
                                                                       same inputs; otherwise it begins anew from base
    day d of it    ... <- base <- version of d                         the same inputs: nothing to do
                   ... <- base <- version of d <- (superseded)         others: learnt anew from base, d takes its place
                          ^------ new version of d
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from functools import partial
from itertools import islice

import msgspec

from stack.base.errors import CheckpointError
from stack.checkpoint.chain import Chain
from stack.checkpoint.manifest import Lineage, VersionManifest
from stack.daily.config import Allow
from stack.data.days import day_name, day_number

VERB = "daily"
HISTORY_DAYS = 14
"""Newest finished days whose losses a new day's are compared with."""


class Resolved(msgspec.Struct, frozen=True, kw_only=True):
    """`parent`: the version to restore; `base`: the finished one below it, with the days `learnt` so far; `newest`: the
    number of the newest version when they were chosen. Where `done` is given, that version is the day already. `note`
    is worth a line."""

    day: str
    newest: int
    base: int
    parent: int
    learnt: tuple[str, ...]
    lineage: Lineage
    done: int | None = None
    note: str = ""

    @property
    def resumes(self) -> bool:
        return self.parent != self.base


def finished(chain: Chain) -> VersionManifest:
    """The newest finished version that the head builds on, the head itself as a rule.

    Raises: `CheckpointError` where there is none, or the head is a full training that has not ended.
    """
    head = chain.head()
    if head is None:
        raise CheckpointError(f"{chain.store.url} has no version yet: run `stack train` up to the day before first")
    for version in chain.line(head):
        if version.complete:
            return version
        if version.lineage.day is None:
            break
    raise CheckpointError(
        f"the training of version {head.version} in {chain.store.url} has not ended: run `stack train` to its end first"
    )


def resolve(chain: Chain, day: str, *, inputs: Callable[[VersionManifest], str], allow: Collection[Allow]) -> Resolved:
    """`inputs`: the digest of what the day would be made from on top of a version.

    Raises: `CheckpointError` in one line where the day cannot be learnt.
    """
    resolved = partial(_resolved, day, newest=chain.newest_number())
    base = finished(chain)
    last = max(base.context.data_days)
    made = _version_of(chain, base, day) if day in base.context.data_days else None
    if made is not None:
        below = base_of(chain, made)
        wanted = inputs(below)
        if made.lineage.inputs == wanted:
            return resolved(below, Lineage(verb=VERB, day=day, inputs=wanted), done=made.version)
        if made.version == _origin(chain, base).version:
            note = f"{day} has other inputs than version {made.version}: a new version takes its place"
            lineage = Lineage(verb=VERB, day=day, inputs=wanted, supersedes=base.link)
            return _begun(chain, resolved(below, lineage, note=note))
    if day <= last:
        _refuse_out_of_order(day, base, made, allow)
    else:
        _refuse_gap(day, last, allow)
    return _begun(chain, resolved(base, Lineage(verb=VERB, day=day, inputs=inputs(base))))


def base_of(chain: Chain, version: VersionManifest) -> VersionManifest:
    """The finished version that a day's version builds on: saves on the way are passed over."""
    below = islice(chain.line(version), 1, None)
    return next(one for one in below if one.complete)


def since_base(chain: Chain, version: VersionManifest) -> list[VersionManifest]:
    """A day's version and the saves on its way, newest first."""
    found = [version]
    for below in islice(chain.line(version), 1, None):
        if below.complete:
            break
        found.append(below)
    return found


def history(chain: Chain, base: VersionManifest) -> list[VersionManifest]:
    """The newest finished days up to `base`, newest first."""

    def days() -> Iterator[VersionManifest]:
        for version in chain.line(base):
            if version.lineage.verb == VERB and version.complete:
                yield version
            elif version.complete and version.lineage.restores is None and version.lineage.repairs is None:
                return

    return list(islice(days(), HISTORY_DAYS))


def _resolved(
    day: str, base: VersionManifest, lineage: Lineage, *, newest: int, done: int | None = None, note: str = ""
) -> Resolved:
    return Resolved(
        day=day,
        newest=newest,
        base=base.version,
        parent=base.version,
        learnt=tuple(sorted({*base.context.data_days, day})),
        lineage=lineage,
        done=done,
        note=note,
    )


def _begun(chain: Chain, fresh: Resolved) -> Resolved:
    """Goes on from the head where it is a save on the way to this very version."""
    head = chain.head()
    assert head is not None
    if head.complete or head.lineage.day != fresh.day or head.lineage.inputs != fresh.lineage.inputs:
        if not head.complete:
            note = f"the unfinished training of {head.lineage.day} had other inputs: it is left behind"
            return msgspec.structs.replace(fresh, note=fresh.note or note)
        return fresh
    if base_of(chain, head).version != fresh.base:
        return fresh
    return msgspec.structs.replace(fresh, parent=head.version, lineage=head.lineage)


def _version_of(chain: Chain, base: VersionManifest, day: str) -> VersionManifest | None:
    """The newest finished version of a day in the line of `base`."""
    version: VersionManifest | None = _origin(chain, base)
    while version is not None and day in version.context.data_days:
        if version.complete and version.lineage.day == day:
            return version
        below = None if version.parent is None else chain.linked(version.parent)
        version = None if below is None else _origin(chain, below)
    return None


def _origin(chain: Chain, version: VersionManifest) -> VersionManifest:
    """The version that a restored one brings back."""
    while version.lineage.restores is not None:
        version = chain.linked(version.lineage.restores)
    return version


def _refuse_gap(day: str, last: str, allow: Collection[Allow]) -> None:
    first = day_number(last) + 1
    if day_number(day) > first and Allow.gap not in allow:
        raise CheckpointError(
            f"{day} does not follow {last}, the last day learnt: catch up with --from {day_name(first)} --to {day}, or "
            "leave out the days between with daily.allow=[gap]"
        )


def _refuse_out_of_order(
    day: str, base: VersionManifest, made: VersionManifest | None, allow: Collection[Allow]
) -> None:
    if Allow.out_of_order in allow:
        return
    last = max(base.context.data_days)
    if made is not None:
        raise CheckpointError(
            f"{day} was learnt as version {made.version} from other inputs, and {last} builds on it: `stack checkpoint "
            f"restore` the day before and catch up from it, or learn it once more on top with "
            "daily.allow=[out_of_order]"
        )
    what = "was learnt by `stack train`" if day in base.context.data_days else "was left out"
    raise CheckpointError(
        f"{day} {what}, and the last day learnt is {last}: choose a later day, or learn it on top with "
        "daily.allow=[out_of_order]"
    )
