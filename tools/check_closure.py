"""Proves from the installed metadata that nothing is missing: `python tools/check_closure.py [requirements file ...]`.

The closure is installed without dependency resolution, so this check stands in for it: every requirement, with its
markers, of every installed distribution is there with an allowed version, every pin of the files is installed as
pinned, and what a pinned distribution requires is pinned too: installed by hand here, it would be missing elsewhere.
One exception is named here; everything else exits 1 with a line for each fault.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

STANDS_IN = {("torchrec", "fbgemm-gpu"): "fbgemm-gpu-cpu"}
"""(who asks, for what) -> what is accepted instead: torchrec names the CUDA package also on machines without CUDA."""


@dataclass(frozen=True, kw_only=True)
class Installed:
    """One distribution as its metadata describes it."""

    version: Version
    requires: tuple[str, ...] = ()


def installed() -> dict[str, Installed]:
    """The distributions of the running Python, by canonical name: of several, the one that an import finds."""
    found: dict[str, Installed] = {}
    for one in distributions():
        name = canonicalize_name(one.metadata["Name"])
        found.setdefault(name, Installed(version=Version(one.version), requires=tuple(one.requires or ())))
    return found


def faults(found: Mapping[str, Installed]) -> list[str]:
    """A line for each requirement that is not met, sorted. Extras count where another distribution asks for them."""
    extras: dict[str, set[str]] = {name: set() for name in found}
    lines: set[str] = set()
    todo = [(name, "") for name in found]
    while todo:
        name, extra = todo.pop()
        for text in found[name].requires:
            needed = Requirement(text)
            if needed.marker is not None and not needed.marker.evaluate({"extra": extra}):
                continue
            target = canonicalize_name(needed.name)
            stand_in = STANDS_IN.get((name, target))
            if target not in found and stand_in in found:
                continue
            if target not in found:
                lines.add(f"{name} {found[name].version} requires {needed}: not installed{_hint(target)}")
                continue
            if not needed.specifier.contains(found[target].version, prereleases=True):
                lines.add(f"{name} {found[name].version} requires {needed}: {found[target].version} is installed")
            for asked in needed.extras - extras[target]:
                extras[target].add(asked)
                todo.append((target, asked))
    return sorted(lines)


def wrong_pins(found: Mapping[str, Installed], requirements: Iterable[str]) -> list[str]:
    """A line for each pin (`name==version`; comments and empty lines are passed over) that is not installed so."""
    lines = []
    for text in requirements:
        pin = text.partition("#")[0].strip()
        if not pin:
            continue
        needed = Requirement(pin)
        one = found.get(canonicalize_name(needed.name))
        if one is None:
            lines.append(f"{pin}: not installed")
        elif not needed.specifier.contains(one.version, prereleases=True):
            lines.append(f"{pin}: {one.version} is installed")
    return lines


def unpinned(found: Mapping[str, Installed], requirements: Iterable[str]) -> list[str]:
    """A line for each requirement of a pinned distribution that is installed and no pin."""
    pins = {
        canonicalize_name(Requirement(pin).name) for text in requirements if (pin := text.partition("#")[0].strip())
    }
    missing = faults({name: one for name, one in found.items() if name in pins})
    return [
        f"{line.removesuffix('not installed')}installed, but no pin"
        for line in missing
        if line.endswith("not installed")
    ]


def main(files: Sequence[str]) -> int:
    """Checks and says what it found; 1 where anything is wrong."""
    found = installed()
    lines = faults(found)
    texts = {file: Path(file).read_text().splitlines() for file in files}
    for file, text in texts.items():
        lines += [f"{file}: {line}" for line in wrong_pins(found, text)]
    if not lines:
        lines += unpinned(found, [line for text in texts.values() for line in text])
    for line in lines:
        sys.stderr.write(f"{line}\n")
    if not lines:
        sys.stdout.write(f"closure: {len(found)} distributions, nothing missing\n")
    return 1 if lines else 0


def _hint(name: str) -> str:
    if name.startswith(("nvidia-", "cuda-", "triton")):
        return " (this is the CUDA build of torch: see docs/dependencies.md for how to get the CPU build)"
    return ""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
