"""Is it answered, how fast, by which version, and how fresh are its rows."""

from __future__ import annotations

from stack.dashboard.panels import Board, Kind, Panel, Query, Unit, above

_REQUESTS = 'sum by (run) (rate(stack_serve_requests_total{run=~"$run"}[$__rate_interval]))'
_FAILED = 'sum by (run) (rate(stack_serve_requests_total{run=~"$run",code=~"5.."}[$__rate_interval]))'
_HITS = 'sum by (run) (rate(stack_serve_cache_total{run=~"$run",result="hits"}[$__rate_interval]))'
_ASKED = 'sum by (run) (rate(stack_serve_cache_total{run=~"$run",result=~"hits|misses"}[$__rate_interval]))'
_SLOW = above(warning=0.05, critical=0.25)
_STALE = above(warning=50 * 3600, critical=74 * 3600)


def _quantile(share: float, by: str) -> str:
    return (
        f"histogram_quantile({share}, sum by ({by}, le) "
        '(rate(stack_serve_request_seconds_bucket{run=~"$run"}[$__rate_interval])))'
    )


_STATS = (
    Panel(
        title="Requests a second",
        look="Follows the hour of the day; a sudden 0 is a client that is gone or a server that is.",
        kind=Kind.stat,
        unit=Unit.per_second,
        queries=(Query(expr=_REQUESTS),),
    ),
    Panel(
        title="Failed",
        look="0%: share of the requests that ended in a status of 500 or more.",
        kind=Kind.stat,
        unit=Unit.share,
        # Where nothing failed there is no series of failures: 0, not nothing.
        queries=(Query(expr=f"({_FAILED} or 0 * {_REQUESTS}) / {_REQUESTS}"),),
        steps=above(warning=0.001, critical=0.01),
    ),
    Panel(
        title="Latency, 99%",
        look="Level, also while packages are swapped.",
        kind=Kind.stat,
        unit=Unit.seconds,
        queries=(Query(expr=_quantile(0.99, "run")),),
        steps=_SLOW,
    ),
    Panel(
        title="Age of the rows",
        look="Since the end of the last day that the oldest of what answers has learnt.",
        kind=Kind.stat,
        unit=Unit.seconds,
        queries=(Query(expr='time() - min by (run) (stack_serve_data_timestamp_seconds{run=~"$run"})'),),
        steps=_STALE,
    ),
    Panel(
        title="Workers",
        look="As many as were asked for; a worker that died is started again, and counted.",
        kind=Kind.stat,
        queries=(Query(expr='sum by (run) (stack_serve_workers{run=~"$run"})'),),
    ),
    Panel(
        title="Workers started again",
        look="0; each is a worker that crashed or hung.",
        kind=Kind.stat,
        queries=(Query(expr='sum by (run) (increase(stack_serve_worker_restarts_total{run=~"$run"}[$__range]))'),),
        steps=above(warning=0.5, critical=3),
    ),
    Panel(
        title="Answers not finite",
        look="0; each would have been a number that is none, and was refused.",
        kind=Kind.stat,
        queries=(Query(expr='sum by (run) (increase(stack_serve_not_finite_total{run=~"$run"}[$__range]))'),),
        steps=above(critical=0.5),
    ),
)

_LINES = (
    Panel(
        title="Requests by route",
        look="Which question is asked how often.",
        unit=Unit.per_second,
        queries=(
            Query(
                expr='sum by (run, route) (rate(stack_serve_requests_total{run=~"$run"}[$__rate_interval]))',
                legend="{{route}}",
            ),
        ),
    ),
    Panel(
        title="Requests by status",
        look="200 alone; 4xx are clients to talk to, 429 is load above serve.max_in_flight, 5xx is ours.",
        unit=Unit.per_second,
        queries=(
            Query(
                expr='sum by (run, code) (rate(stack_serve_requests_total{run=~"$run"}[$__rate_interval]))',
                legend="{{code}}",
            ),
        ),
    ),
    Panel(
        title="Latency",
        look="From the body read to the answer encoded; quantiles that part say that requests wait for each other.",
        unit=Unit.seconds,
        queries=(
            Query(expr=_quantile(0.5, "run"), legend="median"),
            Query(expr=_quantile(0.95, "run"), legend="95%"),
            Query(expr=_quantile(0.99, "run"), legend="99%"),
        ),
        steps=_SLOW,
    ),
    Panel(
        title="Latency, every request",
        look="One band; a second band above is users who are not in the cache, or a route that costs more.",
        kind=Kind.heatmap,
        unit=Unit.seconds,
        queries=(
            Query(
                expr='sum by (le) (increase(stack_serve_request_seconds_bucket{run=~"$run"}[$__rate_interval]))',
                legend="{{le}}",
            ),
        ),
    ),
    Panel(
        title="Latency by route, 99%",
        look="The route that is slow.",
        unit=Unit.seconds,
        queries=(Query(expr=_quantile(0.99, "run, route"), legend="{{route}}"),),
        steps=_SLOW,
    ),
    Panel(
        title="Requests under way",
        look="Far below workers times serve.max_in_flight, above which requests are refused.",
        queries=(Query(expr='sum by (run) (stack_serve_in_flight_requests{run=~"$run"})', legend="read or answered"),),
    ),
    Panel(
        title="Refused before they were read",
        look="None; the reason says what the client or the load did.",
        unit=Unit.per_second,
        queries=(
            Query(
                expr='sum by (run, reason) (rate(stack_serve_refused_total{run=~"$run"}[$__rate_interval]))',
                legend="{{reason}}",
            ),
        ),
        empty="None refused.",
    ),
    Panel(
        title="Unknown ids a request",
        look="Grows from night to night until new rows come; a jump is a client whose ids are of another kind.",
        queries=(
            Query(
                expr='sum by (run, feature) (rate(stack_serve_unknown_ids_total{run=~"$run"}[$__rate_interval]))'
                f" / on (run) group_left () {_REQUESTS}",
                legend="{{feature}}",
            ),
        ),
        empty="None.",
    ),
    Panel(
        title="User vectors from the cache",
        look="Share of what was asked of it; falls after a swap, when all vectors are of an older version.",
        unit=Unit.share,
        queries=(Query(expr=f"{_HITS} / {_ASKED}", legend="hits"),),
        empty="No cache, or nothing asked of it.",
    ),
    Panel(
        title="What the cache did",
        look="Errors none; evictions say that it is small for the users who come back.",
        unit=Unit.per_second,
        queries=(
            Query(
                expr='sum by (run, result) (rate(stack_serve_cache_total{run=~"$run"}[$__rate_interval]))',
                legend="{{result}}",
            ),
        ),
        empty="No cache, or nothing asked of it.",
    ),
    Panel(
        title="Requests recorded",
        look="Written alone; full is a record that has reached its size, failed a disk to look at.",
        unit=Unit.per_second,
        queries=(
            Query(
                expr='sum by (run, result) (rate(stack_serve_recorded_total{run=~"$run"}[$__rate_interval]))',
                legend="{{result}}",
            ),
        ),
        empty="None: serve.record is not set.",
    ),
    Panel(
        title="Packages and row deltas loaded",
        look="Over an hour; a rejected one left what answers as it was: the server's log says why.",
        queries=(
            Query(
                expr='sum by (run, kind, result) (increase(stack_serve_swaps_total{run=~"$run"}[1h]))',
                legend="{{kind}} {{result}}",
            ),
        ),
        empty="Nothing was loaded.",
    ),
    Panel(
        title="Time to load",
        look="From the request to the switch, mean of an hour; while it loads the old version answers.",
        unit=Unit.seconds,
        queries=(
            Query(
                expr='sum by (run, kind) (rate(stack_serve_swap_seconds_sum{run=~"$run"}[1h]))'
                ' / sum by (run, kind) (rate(stack_serve_swap_seconds_count{run=~"$run"}[1h]))',
                legend="{{kind}}",
            ),
        ),
        empty="Nothing was loaded in the last hour.",
    ),
    Panel(
        title="What answers",
        look="Each label, the version behind it, and how old its rows are.",
        kind=Kind.table,
        keys=("label",),
        queries=(
            Query(expr='max by (run, label) (stack_serve_version{run=~"$run"} > 0)', legend="version"),
            Query(
                expr='time() - max by (run, label) (stack_serve_loaded_timestamp_seconds{run=~"$run"})',
                legend="loaded since",
                unit=Unit.seconds,
            ),
            Query(
                expr='time() - min by (run, label) (stack_serve_data_timestamp_seconds{run=~"$run"})',
                legend="age of its rows",
                unit=Unit.seconds,
                steps=_STALE,
            ),
        ),
    ),
    Panel(
        title="Share of the canary",
        look="What the canary answers of all requests.",
        unit=Unit.share,
        queries=(Query(expr='max by (run) (stack_serve_canary_share{run=~"$run"})', legend="canary"),),
    ),
)

SERVING = Board(
    name="serving",
    title="Serving",
    about="Is it answered, how fast, by which version, and how fresh are its rows.",
    range_seconds=3600,
    panels=(*_STATS, *_LINES),
)
