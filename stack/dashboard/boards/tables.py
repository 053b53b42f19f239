"""Do the tables have room, and which ids come, stay and go."""

from __future__ import annotations

from stack.dashboard.panels import Board, Kind, Panel, Query, Unit, above

_OCCUPANCY = (
    'sum by (run, table) (stack_train_table_held_rows{run=~"$run"})'
    ' / max by (run, table) (stack_train_table_rows{run=~"$run"})'
)
_FULL = above(warning=0.9, critical=0.98)

_STATS = (
    Panel(
        title="Fullest table",
        look="Below 90%; a full table gives a new id the row of an old one.",
        kind=Kind.stat,
        unit=Unit.share,
        queries=(Query(expr=f"max by (run) ({_OCCUPANCY})"),),
        steps=_FULL,
        empty="No table has managed ids.",
    ),
    Panel(
        title="Ids looked up a second",
        look="Follows the examples a second.",
        kind=Kind.stat,
        unit=Unit.per_second,
        queries=(Query(expr='sum by (run) (rate(stack_train_lookups_total{run=~"$run"}[$__rate_interval]))'),),
    ),
    Panel(
        title="Ids admitted",
        look="Many on the first day, fewer later; a wave is a new kind of item or a change of ids.",
        kind=Kind.stat,
        queries=(Query(expr='sum by (run) (increase(stack_train_admitted_ids_total{run=~"$run"}[$__range]))'),),
        empty="No table has managed ids.",
    ),
    Panel(
        title="Ids evicted",
        look="0 while tables have room; as many as are admitted once they are full.",
        kind=Kind.stat,
        queries=(Query(expr='sum by (run) (increase(stack_train_evicted_ids_total{run=~"$run"}[$__range]))'),),
        empty="No table has managed ids.",
    ),
)

_LINES = (
    Panel(
        title="Rows held",
        look="Share of a table's rows that an id has; a straight line up says when it will be full.",
        unit=Unit.share,
        queries=(Query(expr=_OCCUPANCY, legend="{{table}}"),),
        steps=_FULL,
        empty="No table has managed ids.",
    ),
    Panel(
        title="Lookups a second",
        look="Shares of the tables stay alike; one that grows alone has longer histories or more values.",
        unit=Unit.per_second,
        queries=(
            Query(
                expr='sum by (run, table) (rate(stack_train_lookups_total{run=~"$run"}[$__rate_interval]))',
                legend="{{table}}",
            ),
        ),
    ),
    Panel(
        title="Different ids of those looked up",
        look="A low share is many copies of few rows: good for speed; one id for all is a broken column.",
        unit=Unit.share,
        queries=(Query(expr='avg by (run, table) (stack_train_unique_ids_ratio{run=~"$run"})', legend="{{table}}"),),
    ),
    Panel(
        title="Admitted a second",
        look="Falls as a day is learnt: most ids have been seen by then.",
        unit=Unit.per_second,
        queries=(
            Query(
                expr='sum by (run, table) (rate(stack_train_admitted_ids_total{run=~"$run"}[$__rate_interval]))',
                legend="{{table}}",
            ),
        ),
        empty="No table has managed ids.",
    ),
    Panel(
        title="Evicted a second",
        look="Near 0; near the rate of admission, the table is too small for what is alive.",
        unit=Unit.per_second,
        queries=(
            Query(
                expr='sum by (run, table) (rate(stack_train_evicted_ids_total{run=~"$run"}[$__rate_interval]))',
                legend="{{table}}",
            ),
        ),
        empty="No table has managed ids.",
    ),
    Panel(
        title="Tables",
        look="A table that few rows of were ever touched is too large; one whose ids collide is too small.",
        kind=Kind.table,
        keys=("table",),
        queries=(
            Query(expr='max by (run, table) (stack_train_table_rows{run=~"$run"})', legend="rows"),
            Query(expr='sum by (run, table) (stack_train_table_held_rows{run=~"$run"})', legend="held"),
            Query(expr=_OCCUPANCY, legend="share held", unit=Unit.share, steps=_FULL),
            Query(
                expr='max by (run, table) (stack_audit_table_touched_ratio{run=~"$run"})',
                legend="touched",
                unit=Unit.share,
            ),
            Query(
                expr='max by (run, table) (stack_audit_table_collision_ratio{run=~"$run"})',
                legend="ids that collide",
                unit=Unit.share,
                steps=above(warning=0.1, critical=0.3),
            ),
        ),
    ),
)

TABLES = Board(
    name="tables",
    title="Tables and ids",
    about="Do the tables have room, and which ids come, stay and go.",
    range_seconds=3600,
    panels=(*_STATS, *_LINES),
)
