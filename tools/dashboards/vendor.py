"""The chart library of `stack dashboard`, as its npm package has it: `python -m tools.dashboards.vendor` renews it.

uPlot is small, has no dependencies and is maintained; its built files are committed beside the page, with its licence,
and `vendor.json` says which version they are and what their digests are. npm is needed for this command alone.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from stack.base.files import sha256_of, write_bytes, write_text
from stack.dashboard.app import STATIC
from stack.telemetry.console import say

PACKAGE, VERSION = "uplot", "1.6.32"
FILES = ("dist/uPlot.iife.min.js", "dist/uPlot.min.css", "LICENSE")
FOLDER = STATIC / "vendor" / PACKAGE


def main() -> int:
    """Fetches the package with npm and takes its files over."""
    with tempfile.TemporaryDirectory() as work:
        command = ["npm", "pack", f"{PACKAGE}@{VERSION}", "--pack-destination", work, "--silent"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            say(f"npm pack failed: {' '.join(done.stderr.split())[-300:]}", file=sys.stderr)
            return 1
        FOLDER.mkdir(parents=True, exist_ok=True)
        with tarfile.open(next(Path(work).glob("*.tgz"))) as packed:
            for name in FILES:
                member = packed.extractfile(f"package/{name}")
                assert member is not None, name
                write_bytes(FOLDER / Path(name).name, member.read())
    digests = {Path(name).name: sha256_of(FOLDER / Path(name).name) for name in FILES}
    told = {"package": PACKAGE, "version": VERSION, "licence": "MIT", "sha256": digests}
    write_text(FOLDER / "vendor.json", json.dumps(told, indent=2) + "\n")
    say(f"{PACKAGE} {VERSION} is in {FOLDER}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
