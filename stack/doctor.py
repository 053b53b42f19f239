"""`stack doctor`: what this machine has, what does not match, and the way out.

Version roulette between torch, torchrec and fbgemm is what users of such stacks meet first: a wrong triple imports and
then fails in some operator, or does not import at all. Each check looks at one thing, takes what it looks at as
arguments, and gives one row; only a row with `FAIL` makes the exit status 1.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import Enum
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import msgspec

from stack.base.dist import java_home
from stack.telemetry.console import say, show

GIB = 1 << 30
TESTED = (("2.13.0", "1.8.0", "1.8.0"),)
"""Versions of (torch, torchrec, fbgemm-gpu or fbgemm-gpu-cpu) with which this code has been run."""
NEEDED_PYTHON = (3, 11)
NEEDED_JAVA = 17
MEMORY_BYTES = 6 * GIB
DISK_BYTES = 5 * GIB


class Status(Enum):
    OK = "ok"
    WARN = "warn"
    FAIL = "FAIL"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One row: `way_out` is empty where nothing needs to be done."""

    what: str
    found: str
    status: Status = Status.OK
    way_out: str = ""


def doctor(options: Sequence[str]) -> int:
    """Shows all findings, as a table or with `--json`; 1 where one of them is a failure."""
    parser = argparse.ArgumentParser(prog="stack doctor", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true", help="for machines: a list of {what, found, status, way_out}")
    arguments = parser.parse_args(options)
    findings = examine()
    if arguments.json:
        say(msgspec.json.format(msgspec.json.encode([asdict(one) for one in findings])).decode())
    else:
        _show(findings)
    return int(any(one.status is Status.FAIL for one in findings))


def examine() -> list[Finding]:
    """All rows for this machine. Loads torch and fbgemm, which takes some seconds."""
    import psutil

    names = ("torch", "torchrec", "fbgemm-gpu", "fbgemm-gpu-cpu", "pyspark")
    versions = {name: _version(name) for name in names}
    return [
        check_python(sys.version_info[:3]),
        check_triple(versions),
        check_operators(_load_operators),
        check_devices(_cuda_devices, driver=shutil.which("nvidia-smi") is not None),
        check_memory(psutil.virtual_memory().available, num_cores=psutil.cpu_count() or 1),
        check_disk(shutil.disk_usage(Path.cwd()).free, Path.cwd()),
        check_spark(versions["pyspark"], _first_line(_java(), "-version")),
        check_compiler(
            _first_line(next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None), "--version")
        ),
    ]


def check_python(found: tuple[int, ...]) -> Finding:
    text = ".".join(map(str, found))
    if found[:2] == NEEDED_PYTHON:
        return Finding(what="Python", found=text)
    needed = ".".join(map(str, NEEDED_PYTHON))
    way_out = f"make a new environment with Python {needed}: rm -r .venv && make demo PYTHON=python{needed}"
    return Finding(what="Python", found=text, status=Status.FAIL, way_out=way_out)


def check_triple(versions: Mapping[str, str | None]) -> Finding:
    """torch, torchrec and fbgemm against the triples that were tested."""
    fbgemm = {name: versions.get(name) for name in ("fbgemm-gpu", "fbgemm-gpu-cpu") if versions.get(name)}
    parts = {"torch": versions.get("torch"), "torchrec": versions.get("torchrec"), **(fbgemm or {"fbgemm-gpu": None})}
    found = ", ".join(f"{name} {text or 'missing'}" for name, text in parts.items())
    reinstall = "install the tested closure: rm -r .venv && make demo"
    what = "torch, torchrec, fbgemm"
    if len(fbgemm) == 2:
        way_out = f"fbgemm-gpu and fbgemm-gpu-cpu overwrite each other's files, keep one: {reinstall}"
        return Finding(what=what, found=found, status=Status.FAIL, way_out=way_out)
    if None in parts.values():
        return Finding(what=what, found=found, status=Status.FAIL, way_out=reinstall)
    triple = tuple(str(text).partition("+")[0] for text in parts.values())
    if triple in TESTED:
        return Finding(what=what, found=found)
    tested = "; ".join("torch {}, torchrec {}, fbgemm {}".format(*one) for one in TESTED)
    return Finding(
        what=what, found=found, status=Status.WARN, way_out=f"not tested together ({tested} are): {reinstall}"
    )


def check_operators(load: Callable[[], None]) -> Finding:
    """Whether fbgemm's operators load into this torch: with a wrong build they do not."""
    what = "fbgemm operators"
    try:
        load()
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        way_out = "this build of fbgemm is for another torch: rm -r .venv && make demo"
        return Finding(what=what, found=lines[0], status=Status.FAIL, way_out=way_out)
    return Finding(what=what, found="load and run")


def check_devices(devices: Callable[[], list[str]], *, driver: bool) -> Finding:
    """GPUs that torch sees; `driver` tells whether the machine has NVIDIA's."""
    try:
        names = devices()
    except (ImportError, OSError) as error:
        return Finding(what="devices", found=str(error).splitlines()[0], status=Status.FAIL, way_out="mend torch first")
    if names:
        return Finding(what="devices", found=", ".join(names))
    if driver:
        way_out = "torch sees no GPU though nvidia-smi is there: rm -r .venv && make demo CLOSURE=cuda"
        return Finding(what="devices", found="CPU only", status=Status.WARN, way_out=way_out)
    return Finding(what="devices", found="CPU only")


def check_memory(available: int, *, num_cores: int) -> Finding:
    found = f"{available / GIB:.1f} GiB free, {num_cores} cores"
    if available >= MEMORY_BYTES:
        return Finding(what="memory", found=found)
    way_out = f"the demo may take {MEMORY_BYTES / GIB:.0f} GiB: close other programs"
    return Finding(what="memory", found=found, status=Status.WARN, way_out=way_out)


def check_disk(free: int, folder: Path) -> Finding:
    found = f"{free / GIB:.1f} GiB free in {folder}"
    if free >= DISK_BYTES:
        return Finding(what="disk", found=found)
    way_out = f"the demo may write {DISK_BYTES / GIB:.0f} GiB: free some, or set ingest.out and run.dir to another disk"
    return Finding(what="disk", found=found, status=Status.WARN, way_out=way_out)


def check_spark(pyspark: str | None, java: str | None) -> Finding:
    """pyspark and the Java it needs; `java` is the first line of `java -version`."""
    major = re.search(r'"(\d+)', java or "")
    found = f"pyspark {pyspark or 'missing'}, Java {major.group(1) if major else 'missing'}"
    missing = []
    if pyspark is None:
        missing.append("pip install --no-deps -r requirements/dev.txt")
    if major is None or int(major.group(1)) < NEEDED_JAVA:
        missing.append(f"install Java {NEEDED_JAVA} or later and put it on PATH (or set JAVA_HOME)")
    if not missing:
        return Finding(what="Spark", found=found)
    way_out = f"only ingest.engine=spark needs it: {'; '.join(missing)}"
    return Finding(what="Spark", found=found, status=Status.WARN, way_out=way_out)


def check_compiler(line: str | None) -> Finding:
    """The C++ compiler; `line` is the first that it says of itself."""
    if line is not None:
        return Finding(what="C++ compiler", found=line)
    way_out = "only compiled graphs (torch.compile, AOTInductor) need it: install g++ or clang++"
    return Finding(what="C++ compiler", found="none", status=Status.WARN, way_out=way_out)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _load_operators() -> None:
    """Imports fbgemm and runs one of its operators."""
    import fbgemm_gpu  # noqa: F401  # registers the operators
    import torch

    offsets = torch.ops.fbgemm.asynchronous_complete_cumsum(torch.tensor([2, 3]))
    if offsets.tolist() != [0, 2, 5]:
        raise RuntimeError(f"fbgemm's cumulative sum of [2, 3] is {offsets.tolist()}, not [0, 2, 5]")


def _cuda_devices() -> list[str]:
    import torch

    properties = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return [f"{one.name} ({one.total_memory / GIB:.0f} GiB)" for one in properties]


def _java() -> str | None:
    home = java_home()
    return str(Path(home) / "bin" / "java") if home else shutil.which("java")


def _first_line(program: str | None, flag: str) -> str | None:
    """What a program says of its version; Java says it on stderr."""
    if program is None:
        return None
    try:
        done = subprocess.run([program, flag], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = (done.stdout + done.stderr).strip().splitlines()
    return lines[0] if lines and done.returncode == 0 else None


def _show(findings: Sequence[Finding]) -> None:
    from rich.table import Table

    colours = {Status.OK: "green", Status.WARN: "yellow", Status.FAIL: "red"}
    table = Table(title="stack doctor")
    for name in ("what", "found", "status", "way out"):
        table.add_column(name, overflow="fold")
    for one in findings:
        table.add_row(one.what, one.found, f"[{colours[one.status]}]{one.status.value}[/]", one.way_out)
    show(table)
