"""Which code this is, for manifests and run folders."""

from __future__ import annotations

import subprocess
from functools import cache
from pathlib import Path

from stack import __version__

_PACKAGE = Path(__file__).parents[1]


@cache
def code_version() -> str:
    """The package's version; in a git checkout also its commit, with "-dirty" where files differ: "0.1.0+3f2a..."."""
    commit = _git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    tracked = _git("ls-files", "--error-unmatch", str(Path(__file__)))
    return f"{__version__}+{commit}" if commit and tracked else __version__


def _git(*arguments: str) -> str:
    """The output of a git command in the package's folder; empty without git or outside a checkout."""
    try:
        done = subprocess.run(["git", *arguments], cwd=_PACKAGE, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
