"""The report as one page of HTML that needs nothing else: the verdict, what it rests on, and each layer drawn.

Read on a phone as on a desk; light or dark as the reader's machine is set. Drawings are SVG in the page.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from stack.audits.effect import EVERYTHING, Effect
from stack.audits.findings import Finding, Level
from stack.audits.page_norm import normalisation
from stack.audits.report import AuditReport

_VERDICT = {
    Level.ok: "May be released: nothing was found.",
    Level.warning: "May be released: what is off stops nothing on these days.",
    Level.critical: "Must not be released.",
}


def page(report: AuditReport, sections: Sequence[str] = ()) -> str:
    """The whole page; `sections` come after what is about normalisation, as they are."""
    parts = [
        f"<h1>{escape(report.run)}, version {report.version}</h1>",
        f'<p class="verdict {report.level.value}">{_VERDICT[report.level]}</p>',
        f"<p>{_looked_at(report)} {escape(report.created)}, code {escape(report.code_version)}.</p>",
        *map(_plainly, (one for one in report.effects if one.slice == EVERYTHING)),
        *map(_finding, report.findings),
        normalisation(report) if report.effects else "",
        *sections,
    ]  # fmt: skip
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Audit of {escape(report.run)}, version {report.version}</title><style>{_STYLE}</style></head>"
        f"<body>{''.join(parts)}</body></html>\n"
    )


def _looked_at(report: AuditReport) -> str:
    if report.log is not None:
        days = escape(_span(report.log.days))
        return f"Normalisation audited on {report.log.num_requests:,} requests that a server recorded on {days}."
    return (
        f"Audited on {escape(report.traffic)} traffic of {escape(_span(report.days))}: {report.num_timelines:,} "
        f"timelines of {escape(report.dataset)}."
    )


def _plainly(effect: Effect) -> str:
    """What a task's scores are worth, in a sentence that needs no statistics."""
    said = []
    learnt, looked_at = effect.learnt, f"{effect.num_examples:,} candidates looked at, {effect.num_positives:,} taken"
    if effect.observed_rate is not None and learnt.predicted_over_observed is not None:
        observed = 1000 * effect.observed_rate
        said.append(
            f"of every 1,000 candidates, people took {observed:.3g}, and the model expected "
            f"{observed * learnt.predicted_over_observed:.3g}"
        )
    if learnt.auc is not None:
        said.append(
            f"of one that was taken and one that was not, it put the right one first {learnt.auc:.1%} of the time"
        )
    return f"<p><b>{escape(effect.task)}</b>: {'; '.join(said)} ({looked_at}).</p>" if said else ""


def _finding(finding: Finding) -> str:
    return (
        f'<div class="finding {finding.level.value}"><b>{escape(finding.name)}</b> ({finding.level.value})'
        f"<p>Measured: {escape(finding.measured)}.<br>Allowed: {escape(finding.allowed)}.<br>"
        f"What to do: {escape(finding.remedy)}.</p></div>"
    )


def _span(days: Sequence[str]) -> str:
    return days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"


_STYLE = """
:root{color-scheme:light dark;--ok:#2e7d32;--warning:#b26a00;--critical:#c62828;--soft:#8884}
body{overflow-wrap:anywhere;font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:0 auto;padding:1rem}
h1{font-size:1.4rem;margin:.5rem 0}h2{font-size:1.15rem;margin:1.6rem 0 .4rem}
.verdict{font-size:1.2rem;font-weight:600;padding:.6rem .8rem;border-left:.5rem solid}
.ok{border-color:var(--ok)}.warning{border-color:var(--warning)}.critical{border-color:var(--critical)}
.finding{border-left:.3rem solid;padding:.1rem .8rem;margin:.6rem 0;border-color:var(--soft)}
.finding.warning{border-color:var(--warning)}.finding.critical{border-color:var(--critical)}
.mark{border-left:.7rem solid;padding-left:.3rem;font-size:.85rem;white-space:nowrap}
.mark.ok{border-color:var(--ok)}.mark.warning{border-color:var(--warning)}.mark.critical{border-color:var(--critical)}
.wide{overflow-x:auto}table{border-collapse:collapse;font-size:.85rem}
th,td{padding:.25rem .6rem;text-align:right;border-bottom:1px solid var(--soft);white-space:nowrap}
th:first-child,td:first-child,th:nth-child(2),td:nth-child(2){text-align:left}
details{border-bottom:1px solid var(--soft);padding:.4rem 0}summary{cursor:pointer}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.1rem .8rem;font-size:.9rem}dt{opacity:.7}dd{margin:0}
@media(max-width:40rem){dl{grid-template-columns:1fr}dt{margin-top:.3rem}}
svg{display:block;width:100%;max-width:30rem;fill:currentColor;font-size:9px}
.strip rect{fill:var(--soft)}.strip rect.bar{fill:#4a7fb5}.strip line{stroke:currentColor;stroke-width:1}
.strip circle{fill:#4a7fb5;fill-opacity:.6}figure{margin:.6rem 0}figcaption{font-size:.8rem;opacity:.8}
.density path{fill:none;stroke:currentColor}.density .learnt{stroke-width:1}
.density .live{stroke:#4a7fb5;stroke-width:2.5}
"""
