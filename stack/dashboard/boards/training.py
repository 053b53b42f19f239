"""Does it learn, how fast, and what holds it up."""

from __future__ import annotations

from stack.dashboard.panels import Board, Kind, Panel, Query, Unit, above, within

_STATS = (
    Panel(
        title="Progress",
        look="Grows until the run is done; standing still, it hangs or has ended.",
        kind=Kind.stat,
        unit=Unit.share,
        queries=(
            Query(
                expr='max by (run) (stack_train_step{run=~"$run"})'
                ' / max by (run) (stack_train_planned_steps{run=~"$run"})'
            ),
        ),
    ),
    Panel(
        title="Time left",
        look="At the pace of now; jumps when the pace does.",
        kind=Kind.stat,
        unit=Unit.seconds,
        queries=(
            Query(
                expr='(max by (run) (stack_train_planned_steps{run=~"$run"})'
                ' - max by (run) (stack_train_step{run=~"$run"}))'
                ' / (max by (run) (rate(stack_train_steps_total{run=~"$run"}[$__rate_interval])) > 0)'
            ),
        ),
        empty="No step is being done.",
    ),
    Panel(
        title="Examples a second",
        look="Level; a slow fall is a machine that others use, or a loader that falls behind.",
        kind=Kind.stat,
        unit=Unit.per_second,
        queries=(Query(expr='max by (run) (rate(stack_train_examples_total{run=~"$run"}[$__rate_interval]))'),),
    ),
    Panel(
        title="Processes down",
        look="0; a process that is down stops all others at their next exchange.",
        kind=Kind.stat,
        queries=(
            Query(
                expr='count by (run) (up{role="train",run=~"$run"} == 0)'
                ' or 0 * count by (run) (up{role="train",run=~"$run"})'
            ),
        ),
        steps=above(critical=1),
        empty="No training process is known.",
    ),
    Panel(
        title="Batches refused",
        look="0; each held a number that is not finite, and was not learnt from.",
        kind=Kind.stat,
        queries=(Query(expr='max by (run) (increase(stack_train_refused_batches_total{run=~"$run"}[$__range]))'),),
        steps=above(warning=0.5, critical=10),
    ),
    Panel(
        title="Telemetry errors",
        look="0; what could not be measured or shown since the processes began, while training went on.",
        kind=Kind.stat,
        queries=(
            # Not an increase: the first may precede all scrapes.
            Query(expr='sum by (run, part) (stack_telemetry_errors_total{run=~"$run"})', legend="{{part}}"),
        ),
        steps=above(warning=0.5),
        empty="None.",
    ),
)

# Figures of a window are of a process's own examples: their mean, without those that are not defined (NaN).
_LEARNING = (
    Panel(
        title="Loss",
        look="Falls, then levels; a step up is a day that differs, a spike a batch that does.",
        queries=(Query(expr='max by (run, task) (stack_train_loss{run=~"$run"})', legend="{{task}}"),),
        logarithmic=True,  # losses of tasks differ in size
    ),
    Panel(
        title="Normalised entropy",
        look="Below 1: the log loss against that of always saying the mean; at 1 nothing was learnt.",
        queries=(
            Query(
                expr='avg by (run, task) (stack_train_normalized_entropy_ratio{run=~"$run"} >= 0)', legend="{{task}}"
            ),
        ),
        steps=above(critical=1),
    ),
    Panel(
        title="AUC",
        look="Above 0.5 and level; training's own examples, so higher than on days not seen.",
        queries=(Query(expr='avg by (run, task) (stack_train_auc{run=~"$run"} >= 0)', legend="{{task}}"),),
    ),
    Panel(
        title="Predicted over observed",
        look="Near 1; lasting distance from it is a bias that a metric of order, like AUC, does not see.",
        queries=(
            Query(expr='avg by (run, task) (stack_train_calibration_ratio{run=~"$run"} >= 0)', legend="{{task}}"),
        ),
        steps=within(critical_below=0.8, warning_below=0.9, warning=1.1, critical=1.25),
    ),
    Panel(
        title="Gradient norm",
        look="Steady within a factor of ten; growth without end comes before numbers that are not finite.",
        queries=(Query(expr='max by (run) (stack_train_gradient_norm{run=~"$run"})', legend="before clipping"),),
        logarithmic=True,
    ),
    Panel(
        title="Learning rate",
        look="Share of the rates that were set: rises at the start where it warms up.",
        unit=Unit.share,
        queries=(Query(expr='max by (run) (stack_train_learning_rate_share{run=~"$run"})', legend="in use"),),
    ),
)

_PACE = (
    Panel(
        title="Step time",
        look="Quantiles close together; a 99th percentile far above the median is a save, or a loader that stalls.",
        unit=Unit.seconds,
        queries=tuple(
            Query(
                expr=f"histogram_quantile({share}, sum by (run, le) "
                '(rate(stack_train_step_seconds_bucket{run=~"$run"}[$__rate_interval])))',
                legend=legend,
            )
            for share, legend in ((0.5, "median"), (0.95, "95%"), (0.99, "99%"))
        ),
    ),
    Panel(
        title="Step time, every step",
        look="One band; a second band above it is a kind of step that takes longer.",
        kind=Kind.heatmap,
        unit=Unit.seconds,
        queries=(
            Query(
                expr='sum by (le) (increase(stack_train_step_seconds_bucket{run=~"$run"}[$__rate_interval]))',
                legend="{{le}}",
            ),
        ),
    ),
    Panel(
        title="Step time by rank",
        look="Alike: all wait for the slowest; one above the others is a slow machine or an unfair share of rows.",
        unit=Unit.seconds,
        queries=(
            Query(
                expr='sum by (run, rank) (rate(stack_train_step_seconds_sum{run=~"$run"}[$__rate_interval]))'
                ' / sum by (run, rank) (rate(stack_train_step_seconds_count{run=~"$run"}[$__rate_interval]))',
                legend="rank {{rank}}",
            ),
        ),
    ),
    Panel(
        title="Waiting for the loader",
        look="Share of a step; above a tenth, more loader threads or a faster disk make training faster.",
        unit=Unit.share,
        queries=(
            Query(
                expr='sum by (run, rank) (rate(stack_train_loader_wait_seconds_total{run=~"$run"}[$__rate_interval]))'
                ' / sum by (run, rank) (rate(stack_train_step_seconds_sum{run=~"$run"}[$__rate_interval]))',
                legend="rank {{rank}}",
            ),
        ),
        steps=above(warning=0.1, critical=0.3),
    ),
    Panel(
        title="Exchanging rows",
        look="Share of a step in collectives of the tables; a high share asks for another plan (stack plan).",
        unit=Unit.share,
        queries=(
            Query(
                expr='sum by (run, rank) (rate(stack_train_exchange_seconds_total{run=~"$run"}[$__rate_interval]))'
                ' / sum by (run, rank) (rate(stack_train_step_seconds_sum{run=~"$run"}[$__rate_interval]))',
                legend="rank {{rank}}",
            ),
        ),
    ),
    Panel(
        title="Memory of a process",
        look="Level; a slow climb that never ends is a leak, or a loader that reads ahead too far.",
        unit=Unit.bytes,
        queries=(
            Query(
                expr='max by (run, rank) (process_resident_memory_bytes{role="train",run=~"$run"})',
                legend="rank {{rank}}",
            ),
        ),
    ),
    Panel(
        title="Memory of the accelerator",
        look="Level after the first steps; the most that each rank has had.",
        unit=Unit.bytes,
        queries=(
            Query(
                expr='max by (run, rank) (stack_train_device_memory_bytes{run=~"$run"} > 0)',
                legend="rank {{rank}}",
            ),
        ),
        empty="No accelerator: training on CPUs.",
    ),
)

TRAINING = Board(
    name="training",
    title="Training",
    about="Does it learn, how fast, and what holds it up.",
    range_seconds=3600,
    panels=(*_STATS, *_LEARNING, *_PACE),
)
