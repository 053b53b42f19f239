"""How `stack daily` is typed: the day, or the first and the last, and the rest as for `stack train`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from stack.base.errors import ConfigError

_FLAGS = {"--from": "daily.from_day", "--to": "daily.to_day"}

HELP = """stack daily day=YYYY-MM-DD [option=value ...]
stack daily --from YYYY-MM-DD --to YYYY-MM-DD [option=value ...]

Each day in turn: ingested if it is not prepared yet, the newest version judged on it, learnt, checked, committed as a
new version. The same words again go on where they stopped; what is done is left as it is. Options are those of the
`stack train` that the run began with.

  stack daily day=2024-03-29 experiment=ours                        last night's day
  stack daily --from 2024-03-01 --to 2024-03-29 experiment=ours     a month to catch up with
  stack daily --to 2024-03-29 experiment=ours                       what is missing up to that day
  stack daily day=2024-03-29 daily.replay_days=7 experiment=ours    with a tenth of each day of the week before
  stack daily day=2024-03-29 'daily.allow=[gap]' experiment=ours    days before it that the log does not have
  torchrun --nproc-per-node 2 -m stack daily day=2024-03-29 ...     as several processes

Exit status 3: the day is quarantined, the line says why. docs/daily.md tells the rest.
"""


def translated(words: Sequence[str]) -> list[str]:
    """`day=...`, `--from ...` and `--to ...` as options of the group `daily`; other words as they are.

    Raises: `ConfigError` where a flag has no day.
    """
    return list(_translated(iter(words)))


def _translated(words: Iterator[str]) -> Iterator[str]:
    for word in words:
        name, equals, value = word.partition("=")
        if name in _FLAGS:
            day = value if equals else next(words, "")
            if not day or day.startswith("-"):
                raise ConfigError(f"{name} needs a day: {name} 2024-03-29")
            yield f"{_FLAGS[name]}={day}"
        elif name == "day" and equals:
            yield f"daily.day={value}"
        else:
            yield word
