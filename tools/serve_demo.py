"""`make serve-demo`: the demo's model exported, served, asked, refreshed with the next day's rows and swapped for the
next day's package under load, by the same commands that anyone would type.

    python -m tools.serve_demo [option=value ...]

Needs the demo's run (`make demo`); the options are passed to every verb. It ends with the load table. docs/serving.md
has the curl lines that repeat every call from another terminal.
"""

from __future__ import annotations

import json
import shutil
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from stack.base.errors import UserError
from stack.base.files import write_text
from stack.serve.client import Running, ask, running_server
from stack.telemetry.console import say, show
from tools.bench import serving
from tools.bench.bodies import recorded_bodies, sized, user_of
from tools.bench.load import Load, Target, load
from tools.bench.serving import GROUP
from tools.demo import run_verb, short

DAY, NEXT = "2017-11-19", "2017-11-20"
RUN = ("experiment=demo",)
SECONDS = 2.0


def main(words: Sequence[str]) -> int:
    """Does all steps; stops at the first that fails and returns its status."""
    try:
        return _demo(words)
    except UserError as error:
        say(f"serve-demo: {error}", file=sys.stderr)
        return 2


def _demo(options: Sequence[str]) -> int:
    root = _root(options)
    packages = root / "packages"
    if not (root / "checkpoints").is_dir():
        raise UserError(f"{root} has no checkpoints: run `make demo` first, which trains the model")
    shutil.rmtree(packages, ignore_errors=True)
    start = time.monotonic()
    today, delta, tomorrow = packages / DAY, packages / f"{NEXT}.delta", packages / NEXT
    own = [f"run.name={root.name}", f"run.dir={root.parent}"]
    daily = ["daily", f"day={NEXT}", *RUN, *own, "daily.ingest=never", *options]
    for verb in (
        ["export", *own, f"export.version={DAY}", f"export.out={today}"],
        daily,
        ["export", *own, f"export.version={NEXT}", f"export.delta_of={today}", f"export.out={delta}"],
        ["export", *own, f"export.version={NEXT}", f"export.out={tomorrow}"],
    ):
        status = run_verb(verb)
        if status:
            return status
    _serve(today, delta, tomorrow)
    show(serving.as_table(serving.measure(today, num_rounds=1, seconds=SECONDS)))
    say(f"\ndone in {(time.monotonic() - start) / 60:.1f} minutes; packages are in {packages}")
    say(f"serve them yourself: stack serve serve.package={today}")
    return 0


def _serve(today: Path, delta: Path, tomorrow: Path) -> None:
    """Serves a package, asks it, and changes it under load."""
    body = sized(recorded_bodies(today, GROUP)[0], num_candidates=3)
    with running_server(today) as server:
        say(f"\n$ stack serve serve.package={today}")
        user = {**user_of(body), "user": "somebody"}
        kept = {"user": "somebody", "query": body["query"]}
        for path, asked in (
            ("/v1/users:embed", user), ("/v1/items:score", body), ("/v1/users:retrieve", {**kept, "k": 5}),
        ):  # fmt: skip
            _curl(server, path, asked, today.parent.parent / f"ask-{path.rpartition(':')[2]}.json")
        target = Target(
            address=server.address, path="/v1/users:embed", bodies=[msgspec.json.encode(user_of(body))]
        )  # fmt: skip
        orders: Sequence[tuple[str, dict[str, object]]] = (
            ("/admin/deltas", {"delta": delta.name}),
            ("/admin/load", {"package": tomorrow.name, "canary_share": 0.2}),
            ("/admin/labels", {"stable": 2}),
            ("/admin/rollback", {}),
        )
        for path, order in orders:
            _under_load(server, target, path, order)


def _under_load(server: Running, target: Target, path: str, order: dict[str, object]) -> None:
    """An admin call while requests go on; what they noticed."""
    done = threading.Event()
    took: list[float] = []

    def act() -> None:
        try:
            time.sleep(0.5)
            begun = time.monotonic()
            server.order(path, order)
            took.append(time.monotonic() - begun)
            time.sleep(0.5)
        finally:
            done.set()

    thread = threading.Thread(target=act)
    thread.start()
    found: Load = load(target, concurrency=4, seconds=60, stop=done.is_set)
    thread.join()
    if not took:
        raise UserError(f"{path} {json.dumps(order)} was refused: see the server's words above")
    say(
        f"POST {path} {json.dumps(order)}: {took[0]:.2f} s, meanwhile {found.num_requests} requests answered, "
        f"{found.failures.total()} not; p99 {found.percentile(0.99):.1f} ms"
    )


def _curl(server: Running, path: str, body: Mapping[str, object], file: Path) -> None:
    """Asks, and tells how another terminal can."""
    write_text(file, json.dumps(body) + "\n")
    say(f"$ curl {server.address}{path} -d @{file}")
    say(f"  {short(ask(server.address, path, body))}")


def _root(options: Sequence[str]) -> Path:
    given: dict[str, str] = {word.partition("=")[0]: word.partition("=")[2] for word in options}
    return Path(given.get("run.dir", "runs")) / given.get("run.name", "demo")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
