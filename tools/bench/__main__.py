"""Measures speed and memory; one table for people, one JSON file with --out. Options are those of `stack`.

    python -m tools.bench ingest data=complete_journey
    python -m tools.bench loading data=complete_journey train.from_day=2017-11-01
    python -m tools.bench training experiment=demo train.from_day=2017-11-01 --out training.json
    python -m tools.bench encoding experiment=demo --batches 4
    python -m tools.bench lookup
    python -m tools.bench dedup data=complete_journey
    python -m tools.bench pipeline experiment=demo train.from_day=2017-11-01
    python -m tools.bench communication
    python -m tools.bench ids --out ids.json
    python -m tools.bench drift
    python -m tools.bench quality experiment=demo tasks=ctr tasks.ctr.dense_features=false run.name=ids
    python -m tools.bench increments experiment=demo tasks=joint run.name=increments --picture increments.png
    python -m tools.bench billion --picture billion.png
    python -m tools.bench checkpoint --folder runs
    python -m tools.bench serving --run runs/demo --package runs/demo/package
    python -m tools.bench rows --folder runs

`loading`, `training`, `encoding`, `dedup`, `pipeline`, `quality` and `increments` need a prepared dataset. On an idle
machine: `conditions.load_average` in the JSON tells how idle.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.table import Table

from stack.telemetry.console import say, show
from tools.bench import harness, ingest
from tools.bench.assembly import Workload, workload_of

SERVING_PARTS = ("load", "stages", "formats", "swaps", "freshness")


def main() -> None:
    arguments = _parser().parse_args()
    if arguments.bench == "once":
        from tools.bench.encoding import Variant, pass_once

        pass_once(_workload(arguments), Variant(arguments.variant))
        return
    before = harness.conditions()
    settings = {name: str(value) for name, value in vars(arguments).items() if name != "out"}
    if arguments.bench in ("drift", "quality", "increments"):
        table, outcomes = _study(arguments)
        text = harness.found_json({"outcomes": outcomes}, settings=settings, before=before)
    else:
        figures = _serving(arguments) if arguments.bench == "serving" else _measure(arguments)
        table, text = harness.as_table(figures), harness.as_json(figures, settings=settings, before=before)
    if arguments.bench != "serving":  # that has shown its parts
        show(table)
    if arguments.out is not None:
        harness.write(arguments.out, text)
        say(f"wrote {arguments.out}")


def _study(arguments: argparse.Namespace) -> tuple[Table, Sequence[object]]:
    """What is learnt with each way to give ids their rows, and with each way to meet a month."""
    if arguments.bench == "drift":
        from tools.bench import drift

        losses = drift.study()
        return drift.as_table(losses), losses
    if arguments.bench == "increments":
        from tools.bench import increments

        ways = increments.study(
            increments.Month(overrides=tuple(arguments.overrides), first=arguments.first, last=arguments.last)
        )
        if arguments.picture is not None:
            increments.draw(ways, arguments.picture)
        return increments.as_table(ways), ways
    from tools.bench import quality

    judged = quality.study(arguments.overrides)
    return quality.as_table(judged), judged


def _measure(arguments: argparse.Namespace) -> list[harness.Figure]:
    if arguments.bench == "ingest":
        return ingest.measure(arguments.overrides, num_rounds=arguments.rounds)
    if arguments.bench == "lookup":
        from tools.bench import lookup

        return lookup.measure(num_rounds=arguments.rounds)
    if arguments.bench == "touched":
        from tools.bench import touched

        return touched.measure(arguments.overrides, num_rounds=arguments.rounds, rows=arguments.rows)
    if arguments.bench == "communication":
        from tools.bench import exchange

        return exchange.measure_communication(num_rounds=arguments.rounds)
    if arguments.bench == "ids":
        from tools.bench import ids

        return ids.measure(num_rounds=arguments.rounds, rows=arguments.rows)
    if arguments.bench == "billion":
        from tools.bench import billion

        figures = billion.measure(num_rounds=arguments.rounds, large=arguments.large)
        if arguments.picture is not None:
            billion.picture(figures, arguments.picture)
        return figures
    if arguments.bench == "checkpoint":
        from tools.bench import checkpoint

        return checkpoint.measure(
            num_rounds=arguments.rounds, rows=arguments.rows, large=arguments.large, folder=arguments.folder
        )
    if arguments.bench == "rows":
        from tools.bench import rows

        return rows.measure(
            num_rounds=arguments.rounds, rows=arguments.rows, folder=arguments.folder, large=arguments.large
        )
    if arguments.bench == "pipeline":
        from tools.bench import pipeline

        return pipeline.measure(arguments.overrides, num_steps=arguments.steps, num_rounds=arguments.rounds)
    workload = _workload(arguments)
    if arguments.bench == "dedup":
        from tools.bench import exchange, histories

        num_rows, ids = histories.item_ids(workload)
        return exchange.measure_dedup(ids, num_rows=num_rows, num_rounds=arguments.rounds)
    if arguments.bench == "encoding":
        from tools.bench import encoding

        return encoding.measure(workload, num_rounds=arguments.rounds)
    from tools.bench import training

    measure = training.measure_loading if arguments.bench == "loading" else training.measure_training
    return measure(workload, num_rounds=arguments.rounds)


def _serving(arguments: argparse.Namespace) -> list[harness.Figure]:
    """Each part is shown as soon as it is measured: together they take a quarter of an hour."""
    from tools.bench import formats, freshness, serving, stages, swaps

    package, rounds = arguments.package, arguments.rounds
    parts: dict[str, Callable[[], list[harness.Figure]]] = {
        "load": lambda: serving.measure(package, num_rounds=rounds, seconds=arguments.seconds),
        "stages": lambda: stages.measure(package, num_rounds=rounds),
        "formats": lambda: formats.measure(arguments.run, package, num_rounds=rounds),
        "swaps": lambda: swaps.measure(package, num_swaps=arguments.swaps),
        "freshness": lambda: freshness.measure(arguments.run, package, num_rounds=rounds),
    }
    figures = []
    for part in arguments.parts:
        found = parts[part]()
        show(serving.as_table(found) if part == "load" else harness.as_table(found))
        figures += found
    return figures


def _workload(arguments: argparse.Namespace) -> Workload:
    return workload_of(arguments.overrides, num_batches=arguments.batches)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tools.bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    benches = parser.add_subparsers(dest="bench", required=True)
    for name, text in (
        ("ingest", "source rows per second of `stack ingest`"),
        ("loading", "timelines and examples per second of the loader alone"),
        ("training", "examples per second of training, and of loading beside it"),
        ("encoding", "one encoder pass a timeline against one an example"),
        ("dedup", "steps of a table with and without deduplicating a batch's ids"),
    ):
        bench = benches.add_parser(name, help=text)
        bench.add_argument("overrides", nargs="+", help="options of `stack`, such as data=complete_journey")
        bench.add_argument("--rounds", type=int, default=5)
        bench.add_argument("--batches", type=int, default=4, help="batches that `encoding` passes")
        bench.add_argument("--out", type=Path, help="JSON file")
    for name, text in (
        ("lookup", "FBGEMM's sequence kernel against one-id bags in its pooled one"),
        ("communication", "error, bytes and time of vectors sent in fp16 and int8"),
    ):
        bench = benches.add_parser(name, help=text)
        bench.add_argument("--rounds", type=int, default=5)
        bench.add_argument("--out", type=Path, help="JSON file")
    touched = benches.add_parser("touched", help="ways to know which rows of a table training changed")
    touched.add_argument("overrides", nargs="*", help="options of `stack`: also its share of this job's steps")
    touched.add_argument("--rows", type=int, nargs="+", default=[1_000_000, 10_000_000, 100_000_000])
    touched.add_argument("--rounds", type=int, default=5)
    touched.add_argument("--out", type=Path, help="JSON file")
    pipeline = benches.add_parser("pipeline", help="training steps without and with train.pipeline=sparse_dist")
    pipeline.add_argument("overrides", nargs="+", help="options of `stack`, such as data=complete_journey")
    pipeline.add_argument("--steps", type=int, default=24, help="of each round")
    pipeline.add_argument("--rounds", type=int, default=5)
    pipeline.add_argument("--out", type=Path, help="JSON file")
    checkpoint = benches.add_parser("checkpoint", help="saves, restores and compaction beside the disk's own speed")
    checkpoint.add_argument("--folder", type=Path, default=Path(), help="on the disk to measure; needs twice the table")
    checkpoint.add_argument("--rows", type=int, default=10_000_000, help="of 32 columns in fp32")
    checkpoint.add_argument("--large", action="store_true", help="1e8 rows in fp16, once (8 GiB of memory, 20 of disk)")
    checkpoint.add_argument("--rounds", type=int, default=3)
    checkpoint.add_argument("--out", type=Path, help="JSON file")
    served = benches.add_parser("serving", help="a server's speed, its stages and engines, swaps and kills under load")
    served.add_argument("--package", type=Path, required=True, help="folder that `stack export` wrote")
    served.add_argument("--run", type=Path, required=True, help="folder of the run that it is of")
    served.add_argument("--seconds", type=float, default=4.0, help="of each case at each concurrency")
    served.add_argument("--parts", nargs="+", choices=SERVING_PARTS, default=SERVING_PARTS)
    served.add_argument("--swaps", type=int, default=100)
    served.add_argument("--rounds", type=int, default=3)
    served.add_argument("--out", type=Path, help="JSON file")
    stored = benches.add_parser("rows", help="lookups in a package's rows, by type, with and without deltas")
    stored.add_argument("--folder", type=Path, default=Path(), help="on the disk to measure")
    stored.add_argument("--rows", type=int, nargs="+", default=[1_000_000])
    stored.add_argument("--large", action="store_true", help="1e8 rows of 16 in fp16 (4 GiB of disk), once")
    stored.add_argument("--rounds", type=int, default=5)
    stored.add_argument("--out", type=Path, help="JSON file")
    _add_benches_of_ids(benches)
    once = benches.add_parser("once", help="one pass in this process (what `encoding` measures the memory of)")
    once.add_argument("variant")
    once.add_argument("overrides", nargs="+")
    once.add_argument("--batches", type=int, required=True)
    return parser


def _add_benches_of_ids(benches: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    ids = benches.add_parser("ids", help="ids mapped to rows per second, by each kind of map")
    ids.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000, 10_000_000])
    drift = benches.add_parser("drift", help="log loss of managed, hashed and exact ids as popularity drifts")
    quality = benches.add_parser("quality", help="GAUC of a log's training with items exact, hashed and managed")
    quality.add_argument("overrides", nargs="+", help="options of `stack`, such as experiment=demo")
    increments = benches.add_parser("increments", help="a month of daily increments, of weekly retraining, of neither")
    increments.add_argument("overrides", nargs="+", help="options of `stack`, such as experiment=demo")
    increments.add_argument("--first", default="2017-11-01", help="first day of the month")
    increments.add_argument("--last", default="2017-11-28", help="last day of the month")
    increments.add_argument("--picture", type=Path, help="PNG file")
    for bench in (drift, quality, increments):
        bench.add_argument("--out", type=Path, help="JSON file")
    billion = benches.add_parser("billion", help="step time and memory, from a million distinct ids to a billion")
    billion.add_argument(
        "--large", action="store_true", help="also 1e8 managed and 3e8 hashed rows in fp16 (10 and 19 GiB)"
    )
    billion.add_argument("--picture", type=Path, help="PNG file")
    for bench in (ids, billion):
        bench.add_argument("--rounds", type=int, default=3)
        bench.add_argument("--out", type=Path, help="JSON file")


if __name__ == "__main__":
    main()
