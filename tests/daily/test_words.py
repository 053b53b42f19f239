"""How days are typed, and what a wrong call is answered with."""

from __future__ import annotations

from pathlib import Path

import pytest

from stack.__main__ import main
from stack.base.errors import ConfigError
from stack.daily.words import translated


def test_days_are_options_of_the_group_daily() -> None:
    assert translated(["day=2024-03-29", "run.name=a"]) == ["daily.day=2024-03-29", "run.name=a"]
    assert translated(["--from", "2024-03-01", "--to=2024-03-29"]) == [
        "daily.from_day=2024-03-01", "daily.to_day=2024-03-29"
    ]  # fmt: skip
    with pytest.raises(ConfigError, match="--to needs a day: --to 2024-03-29"):
        translated(["--from", "2024-03-01", "--to"])
    with pytest.raises(ConfigError, match="--from needs a day"):
        translated(["--from", "--to", "2024-03-01"])


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["day=2024-3-1"], "daily.day='2024-3-1' is not a day: write it as YYYY-MM-DD"),
        (
            ["day=2024-03-01", "--to", "2024-03-02"],
            "daily.day=2024-03-01 is one day: leave it out, or leave out --from",
        ),
        (["--from", "2024-03-02", "--to", "2024-03-01"], "--from 2024-03-02 is after --to 2024-03-01: swap them"),
        (
            ["day=2024-03-01", "daily.allow=[gaps]"],
            "daily.allow[0]: Invalid value 'gaps', expected one of [gap, out_of",
        ),
        (["day=2024-03-01", "daily.replay_share=2"], "daily.replay_share=2.0 must be above 0 and at most 1"),
        (["day=2024-03-01", "daily.rate_share=0"], "daily.rate_share=0.0 must be above 0 and finite"),
        (["day=2024-03-01", "daily.max_loss_ratio=1"], "daily.max_loss_ratio=1.0 must be above 1"),
        (["day=2024-03-01"], "{chain} has no version yet: run `stack train` up to the day before first"),
    ],
)
def test_a_wrong_call_is_one_line_on_stderr_and_status_2(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, words: list[str], line: str
) -> None:
    assert main(["daily", *words, f"run.dir={tmp_path}", "run.name=x"]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith(f"stack: {line.format(chain=tmp_path / 'x' / 'checkpoints')}")
    assert shown.count("\n") == 1
    assert not (tmp_path / "x").exists()


def test_help_teaches_with_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["daily", "--help"])
    assert ended.value.code in (None, 0)
    shown = capsys.readouterr().out
    assert shown.startswith("stack daily day=YYYY-MM-DD")
    assert "stack daily --from 2024-03-01 --to 2024-03-29" in shown
    assert "max_volume_ratio: 5.0" in shown
