"""A registry as it is shown: without series that say when others began, and with labels that all of them have."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.samples import Sample

_CREATED = "_created"


class Exposed:
    """What prometheus_client writes or serves in place of `registry`.

    `labels` are for what lies in a file; where Prometheus scrapes a process it adds them itself. The library's own way
    to leave the `_created` series out is a switch for the whole program.
    """

    def __init__(self, registry: CollectorRegistry, *, labels: Mapping[str, str] | None = None) -> None:
        self._registry = registry
        self._labels = dict(labels or {})

    def collect(self) -> Iterator[Metric]:
        return self._shown(self._registry.collect())

    def restricted_registry(self, names: Iterable[str]) -> Exposed:
        """For those who ask for some series alone (`/metrics?name[]=...`)."""
        return Exposed(self._registry.restricted_registry(names), labels=self._labels)  # type: ignore[arg-type]

    def _shown(self, metrics: Iterable[Metric]) -> Iterator[Metric]:
        for metric in metrics:
            shown = Metric(metric.name, metric.documentation, metric.type, metric.unit)
            shown.samples = [self._labelled(one) for one in metric.samples if not one.name.endswith(_CREATED)]
            yield shown

    def _labelled(self, sample: Sample) -> Sample:
        return sample._replace(labels={**sample.labels, **self._labels}) if self._labels else sample
