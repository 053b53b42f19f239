"""Is every night's run done, in time, and how old is what is served."""

from __future__ import annotations

from stack.dashboard.panels import Board, Kind, Panel, Query, Unit, above

_HOUR = 3600
_LATE = above(warning=26 * _HOUR, critical=50 * _HOUR)
"""A day and two hours; two days and two hours."""
_STALE = above(warning=50 * _HOUR, critical=74 * _HOUR)
"""The end of a day that was learnt a night late, and one that was learnt two nights late."""

_NONE = "No run of stack daily is known."

_STATS = (
    Panel(
        title="Since the last success",
        look="Below a day; above, a night has failed or is late.",
        kind=Kind.stat,
        unit=Unit.seconds,
        queries=(Query(expr='time() - max by (run) (stack_daily_last_success_timestamp_seconds{run=~"$run"})'),),
        steps=_LATE,
        empty="No run has succeeded yet.",
    ),
    Panel(
        title="The last run",
        look="Succeeded; failed means an error or a day in quarantine: the run's record says which.",
        kind=Kind.stat,
        queries=(Query(expr='max by (run) (stack_daily_last_failed{run=~"$run"})'),),
        steps=above(critical=1),
        words={0: "succeeded", 1: "failed"},
        empty=_NONE,
    ),
    Panel(
        title="Newest version",
        look="One more after every night.",
        kind=Kind.stat,
        queries=(Query(expr='max by (run) (stack_daily_version{run=~"$run"})'),),
        empty=_NONE,
    ),
    Panel(
        title="Age of the data",
        look="Since the end of the last day that the newest version has learnt.",
        kind=Kind.stat,
        unit=Unit.seconds,
        queries=(Query(expr='time() - max by (run) (stack_daily_data_timestamp_seconds{run=~"$run"})'),),
        steps=_STALE,
        empty=_NONE,
    ),
    Panel(
        title="Critical findings",
        look="0; one of them keeps a day out of the chain.",
        kind=Kind.stat,
        queries=(Query(expr='sum by (run) (stack_daily_findings{run=~"$run",level="critical"})'),),
        steps=above(critical=1),
        empty=_NONE,
    ),
    Panel(
        title="The last run took",
        look="All phases together; must end before the night does.",
        kind=Kind.stat,
        unit=Unit.seconds,
        queries=(Query(expr='sum by (run) (stack_daily_last_duration_seconds{run=~"$run"})'),),
        empty=_NONE,
    ),
)

_LINES = (
    Panel(
        title="Age of what is learnt, committed and served",
        look="Saw teeth of a day; a tooth that does not come down is a link of the chain that has stopped.",
        unit=Unit.seconds,
        queries=(
            Query(
                expr='time() - max by (run) (stack_train_data_timestamp_seconds{run=~"$run"})', legend="being learnt"
            ),
            Query(expr='time() - max by (run) (stack_daily_data_timestamp_seconds{run=~"$run"})', legend="committed"),
            Query(
                expr='time() - min by (run, label) (stack_serve_data_timestamp_seconds{run=~"$run"})',
                legend="served as {{label}}",
            ),
        ),
        steps=_STALE,
    ),
    Panel(
        title="Duration by phase",
        look="Grows with the day's rows; a phase that grows alone is where to look.",
        unit=Unit.seconds,
        queries=(
            Query(
                expr='max by (run, phase) (stack_daily_last_duration_seconds{run=~"$run"})',
                legend="{{phase}}",
            ),
        ),
        empty=_NONE,
    ),
    Panel(
        title="Findings",
        look="Warnings that stay are thresholds to think about; critical ones stop the chain.",
        queries=(Query(expr='max by (run, level) (stack_daily_findings{run=~"$run"})', legend="{{level}}"),),
        empty=_NONE,
    ),
    Panel(
        title="Rows set aside",
        look="Lines of the log that ingest could not use, by reason; a new reason is a change of the log.",
        queries=(Query(expr='max by (run, reason) (stack_train_bad_rows{run=~"$run"})', legend="{{reason}}"),),
        empty="None.",
    ),
    Panel(
        title="Time to commit a version",
        look="Mean and 95th percentile of an hour, from asking to commit; saves run beside the steps.",
        unit=Unit.seconds,
        queries=(
            Query(
                expr='sum by (run) (rate(stack_train_checkpoint_seconds_sum{run=~"$run"}[1h]))'
                ' / sum by (run) (rate(stack_train_checkpoint_seconds_count{run=~"$run"}[1h]))',
                legend="mean",
            ),
            Query(
                expr="histogram_quantile(0.95, sum by (run, le) "
                '(rate(stack_train_checkpoint_seconds_bucket{run=~"$run"}[1h])))',
                legend="95%",
            ),
        ),
        empty="No version in the last hour.",
    ),
    Panel(
        title="Bytes of a version",
        look="Mean of an hour: touched rows alone, so far below the whole tables.",
        unit=Unit.bytes,
        queries=(
            Query(
                expr='max by (run) (increase(stack_train_checkpoint_bytes_total{run=~"$run"}[1h]))'
                ' / max by (run) (increase(stack_train_checkpoints_total{run=~"$run",result="committed"}[1h]))',
                legend="mean",
            ),
        ),
        empty="No version in the last hour.",
    ),
    Panel(
        title="Versions an hour",
        look="Committed ones as often as configured, and none that failed.",
        queries=(
            Query(
                expr='max by (run, result) (increase(stack_train_checkpoints_total{run=~"$run"}[1h]))',
                legend="{{result}}",
            ),
        ),
        empty="No version in the last hour.",
    ),
)

DAILY = Board(
    name="daily",
    title="Daily chain",
    about="Is every night's run done, in time, and how old is what is served.",
    range_seconds=7 * 24 * _HOUR,
    panels=(*_STATS, *_LINES),
)
