"""The command: verbs, help, completion, and what a wrong call is answered with."""

from __future__ import annotations

import shlex
import subprocess
import sys

import pytest

from stack.__main__ import VERBS, main
from stack.job import CHOICES, Composer, Job, configs_folder


def test_no_word_and_help_show_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    for words in ([], ["--help"], ["help"]):
        assert main(words) == 0
        shown = capsys.readouterr().out
        assert all(f"  {verb} " in shown for verb in VERBS)


def test_every_example_of_the_help_composes(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--help"])
    lines = [line.strip().partition("   ")[0] for line in capsys.readouterr().out.splitlines()]
    examples = [shlex.split(line)[2:] for line in lines if line.startswith(("stack train ", "stack plan "))]
    assert len(examples) >= 5
    composer = Composer(root=Job, choices=CHOICES, folder=configs_folder())
    for words in examples:
        options = [word.replace("=1,2", "=1") for word in words if word != "--multirun"]
        composer.compose(options)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["trian"], f"stack: unknown verb 'trian'; known: {', '.join(sorted(VERBS))}"),
        (["train", "run.sed=1"], "stack: unknown option 'run.sed'; 'run' knows: dir, name, seed"),
        (["train", "+run.sed=1"], "stack: unknown option 'run.sed'; 'run' knows: dir, name, seed"),
        (["train", "run.seed=one"], "stack: run.seed: Value 'one' of type 'str' could not be converted to Integer"),
        (
            ["evaluate", "run.name=x", "model.norm=batch"],
            "stack: stack evaluate takes 'model' from the run's own config.yaml, as it was trained: "
            "leave out 'model.norm=batch'",
        ),
        (
            ["export", "run.dir=/none", "run.name=x"],
            "stack: /none/x is not a run (no config.yaml): set run.dir and run.name, or run `stack train` first",
        ),
        (
            ["ingest", "data=events", "data.source=synthetic"],
            "stack: data.source='synthetic' belongs to another choice: write data=synthetic",
        ),
        (["train", "--fats"], "stack: unknown flag '--fats': `stack train --help` shows the flags there are"),
    ],
)
def test_a_wrong_call_is_one_line_on_stderr_and_status_2(
    capsys: pytest.CaptureFixture[str], words: list[str], line: str
) -> None:
    assert main(words) == 2
    assert capsys.readouterr() == ("", f"{line}\n")


def test_an_unknown_source_is_answered_with_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ingest", "data=complete_jorney"]) == 2
    line = capsys.readouterr().err
    assert line.startswith("stack: unknown choice 'complete_jorney' for 'data'; known: ")
    assert "events, movielens_1m, synthetic, user_behavior" in line
    assert line.count("\n") == 1


def test_the_configuration_is_shown_without_running_anything(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--cfg", "job", "run.name=first"]) == 0
    assert "run:\n  dir: runs\n  name: first\n  seed: 0" in capsys.readouterr().out


def test_help_is_quick_because_nothing_heavy_is_loaded() -> None:
    code = (
        "import sys; from stack.__main__ import main; main(['--help']); "
        "sys.exit(str(sorted({'torch', 'hydra', 'pandas', 'ibis', 'duckdb'} & set(sys.modules))))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == "[]"


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("stack ", set(VERBS)),
        ("stack tr", {"train"}),
        ("stack train run.", {"run.dir=", "run.name=", "run.seed="}),
        ("stack train run.na", {"run.name="}),
    ],
)
def test_the_tab_key_completes_verbs_and_options(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, typed: str, offered: set[str]
) -> None:
    monkeypatch.setenv("COMP_LINE", typed)
    assert main(["-sc", "query=bash"]) == 0
    assert set(capsys.readouterr().out.split()) == offered
