"""Measures speed and memory; one table for people, one JSON file with --out.

    python -m tools.bench ingest data=complete_journey
    python -m tools.bench loading data/complete_journey --days 28
    python -m tools.bench training data/complete_journey --out tools/bench/results/2026-11-22-training.json
    python -m tools.bench encoding data/complete_journey

On an idle machine: `conditions.load_average` in the JSON tells how idle it was.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from stack.telemetry.console import say, show
from tools.bench import harness, ingest
from tools.bench.assembly import add_arguments, workload_of


def main() -> None:
    arguments = _parser().parse_args()
    if arguments.bench == "once":
        from tools.bench.encoding import Variant, pass_once

        pass_once(workload_of(arguments), Variant(arguments.variant))
        return
    before = harness.conditions()
    figures = _measure(arguments)
    show(harness.as_table(figures))
    if arguments.out is not None:
        settings = {name: str(value) for name, value in vars(arguments).items() if name != "out"}
        harness.write(arguments.out, harness.as_json(figures, settings=settings, before=before))
        say(f"wrote {arguments.out}")


def _measure(arguments: argparse.Namespace) -> list[harness.Figure]:
    if arguments.bench == "ingest":
        return ingest.measure(arguments.overrides, num_rounds=arguments.rounds)
    workload = workload_of(arguments)
    if arguments.bench == "encoding":
        from tools.bench import encoding

        return encoding.measure(workload, num_rounds=arguments.rounds)
    from tools.bench import training

    measure = training.measure_loading if arguments.bench == "loading" else training.measure_training
    return measure(workload, num_rounds=arguments.rounds)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tools.bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    benches = parser.add_subparsers(dest="bench", required=True)
    for name, help_text in (
        ("ingest", "source rows per second of `stack ingest`"),
        ("loading", "timelines and examples per second of the loader alone"),
        ("training", "examples per second of training, and of loading beside it"),
        ("encoding", "one encoder pass a timeline against one an example"),
    ):
        bench = benches.add_parser(name, help=help_text)
        bench.add_argument("--rounds", type=int, default=5)
        bench.add_argument("--out", type=Path, help="JSON file")
        if name == "ingest":
            bench.add_argument("overrides", nargs="+", help="options of `stack ingest`, such as data=complete_journey")
        else:
            add_arguments(bench)
    once = benches.add_parser("once", help="one pass in this process (what `encoding` measures the memory of)")
    once.add_argument("variant")
    add_arguments(once)
    return parser


if __name__ == "__main__":
    main()
