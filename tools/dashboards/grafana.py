"""A board as a dashboard of Grafana: the same panels, built with Grafana's own library of types.

The data source and the runs are variables; the dashboards link to each other and keep both, and the range.
"""

from __future__ import annotations

import json
from typing import Any

from grafana_foundation_sdk.builders import common, dashboard, heatmap, prometheus, stat, table, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common as shapes
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models import heatmap as heatmaps
from grafana_foundation_sdk.models import prometheus as prometheus_models

from stack.dashboard.panels import Board, Kind, Level, Panel, Query, Steps, Unit

TAG = "stack"
UNITS = {
    Unit.number: "short", Unit.per_second: "cps", Unit.share: "percentunit", Unit.seconds: "s", Unit.bytes: "bytes",
}  # fmt: skip
COLOURS = {Level.ok: "green", Level.warning: "orange", Level.critical: "red"}
_WIDTH, _STATS_IN_A_ROW = 24, 6
_SOURCE = models.DataSourceRef(type_val="prometheus", uid="${datasource}")
_RUNS = 'label_values({__name__=~"stack_train_step|stack_daily_version|stack_audit_version|stack_serve_workers"}, run)'
_HEATMAP_POINTS = 72


def as_json(board: Board) -> str:
    """The text of the file that Grafana reads."""
    return json.dumps(_dashboard(board).build(), cls=JSONEncoder, indent=2, sort_keys=True) + "\n"


def _dashboard(board: Board) -> dashboard.Dashboard:
    built = (
        dashboard.Dashboard(f"stack: {board.title}")
        .uid(f"stack-{board.name}")
        .description(board.about)
        .tags([TAG])
        .readonly()
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
        .time(f"now-{board.range_seconds // 3600}h", "now")
        .refresh("30s")
        .timezone("browser")
        .link(_link())
        .with_variable(dashboard.DatasourceVariable("datasource").label("Prometheus").type("prometheus"))
        .with_variable(_run_variable())
    )
    for number, (panel, place) in enumerate(_placed(board.panels), start=1):
        built.with_panel(_panel(panel).id(number).grid_pos(place))
    return built


def _link() -> dashboard.DashboardLink:
    return (
        dashboard.DashboardLink("stack")
        .type(models.DashboardLinkType.DASHBOARDS)
        .tags([TAG])
        .include_vars(True)
        .keep_time(True)
    )


def _run_variable() -> dashboard.QueryVariable:
    every = models.VariableOption(selected=True, text="All", value="$__all")
    return (
        dashboard.QueryVariable("run")
        .label("Run")
        .datasource(_SOURCE)
        .query(_RUNS)
        .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(models.VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value(".*")
        .current(every)
    )


def _placed(panels: tuple[Panel, ...]) -> list[tuple[Panel, models.GridPos]]:
    """Stats in rows of six, charts two beside each other, tables over all."""
    placed: list[tuple[Panel, models.GridPos]] = []
    x = y = row_height = 0
    for panel in panels:
        width, height = _size(panel)
        if x + width > _WIDTH or (placed and row_height not in (0, height)):
            x, y, row_height = 0, y + row_height, 0
        placed.append((panel, models.GridPos(h=height, w=width, x=x, y=y)))
        x, row_height = x + width, height
    return placed


def _size(panel: Panel) -> tuple[int, int]:
    if panel.kind is Kind.stat:
        return _WIDTH // _STATS_IN_A_ROW, 4
    return (_WIDTH, 7) if panel.kind is Kind.table else (_WIDTH // 2, 8)


def _panel(panel: Panel) -> Any:
    """Any: the builders of the kinds have no type in common."""
    build: Any = {Kind.line: _line, Kind.stat: _stat, Kind.table: _table, Kind.heatmap: _heatmap}[panel.kind]
    built = build(panel).title(panel.title).description(panel.look).datasource(_SOURCE).no_value(panel.empty)
    for number, query in enumerate(panel.queries):
        built.with_target(_target(panel, query, ref="ABCDEFGH"[number]))
    return built


def _target(panel: Panel, query: Query, *, ref: str) -> prometheus.Dataquery:
    target = prometheus.Dataquery().expr(query.expr).ref_id(ref).datasource(_SOURCE)
    if panel.kind is Kind.table:
        return target.instant().format(prometheus_models.PromQueryFormat.TABLE)
    if panel.kind is Kind.heatmap:
        return target.range().format(prometheus_models.PromQueryFormat.HEATMAP).legend_format(query.legend)
    return target.range().legend_format(f"{{{{run}}}} {query.legend}".strip())


def _line(panel: Panel) -> timeseries.Panel:
    legend = common.VizLegendOptions().display_mode(shapes.LegendDisplayMode.TABLE).calcs(["lastNotNull"])
    built = (
        timeseries.Panel()
        .unit(UNITS[panel.unit])
        .legend(legend.placement(shapes.LegendPlacement.BOTTOM).show_legend(True))
        .tooltip(common.VizTooltipOptions().mode(shapes.TooltipDisplayMode.MULTI))
        .show_points(shapes.VisibilityMode.AUTO)
        .line_width(1.5)
    )
    if panel.steps:
        style = common.GraphThresholdsStyleConfig().mode(shapes.GraphTresholdsStyleMode.DASHED_AND_AREA)
        built.thresholds(_thresholds(panel.steps)).thresholds_style(style)
    if panel.logarithmic:
        built.scale_distribution(common.ScaleDistributionConfig().type(shapes.ScaleDistribution.LOG).log(10))
    return built


def _stat(panel: Panel) -> stat.Panel:
    built = (
        stat.Panel()
        .unit(UNITS[panel.unit])
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .graph_mode(shapes.BigValueGraphMode.AREA)
        .color_mode(shapes.BigValueColorMode.VALUE if panel.steps else shapes.BigValueColorMode.NONE)
    )
    if panel.steps:
        built.thresholds(_thresholds(panel.steps))
    if panel.words:
        words = {str(value): models.ValueMappingResult(text=text) for value, text in panel.words.items()}
        built.mappings([models.ValueMap(options=words)])
    return built


def _table(panel: Panel) -> table.Panel:
    """The queries' tables are merged by their labels; columns get their titles, units and levels."""
    names = {f"Value #{'ABCDEFGH'[number]}": query.legend for number, query in enumerate(panel.queries)}
    options = {
        "excludeByName": {"Time": True},
        "renameByName": names if len(names) > 1 else {"Value": panel.queries[0].legend},
    }
    built = (
        table.Panel()
        .show_header(True)
        .unit(UNITS[panel.unit])
        .with_transformation(models.DataTransformerConfig(id_val="merge", options={}))
        .with_transformation(models.DataTransformerConfig(id_val="organize", options=options))
    )
    for query in panel.queries:
        properties = [models.DynamicConfigValue(id_val="unit", value=UNITS[query.unit or panel.unit])]
        if query.steps:
            coloured = {"type": "color-text"}
            properties += [
                models.DynamicConfigValue(id_val="thresholds", value=_thresholds(query.steps).build()),
                models.DynamicConfigValue(id_val="custom.cellOptions", value=coloured),
            ]
        built.override_by_name(query.legend, properties)
    return built


def _heatmap(panel: Panel) -> heatmap.Panel:
    return (
        heatmap.Panel()
        .calculate(False)
        .max_data_points(_HEATMAP_POINTS)
        .y_axis(heatmap.YAxisConfig().unit(UNITS[panel.unit]))
        .color(heatmap.HeatmapColorOptions().mode(heatmaps.HeatmapColorMode.SCHEME).scheme("Blues").steps(24))
        .rows_frame(heatmap.RowsHeatmapOptions().layout(shapes.HeatmapCellLayout.AUTO))
    )


def _thresholds(steps: Steps) -> dashboard.ThresholdsConfig:
    built = [models.Threshold(value=step.value, color=COLOURS[step.level]) for step in steps]
    return dashboard.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(built)
