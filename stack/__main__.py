"""The command `stack <verb> [options]`: the verbs, one line each."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from stack import __version__
from stack.base.dist import completion_line, replace_completion_line, share_cores
from stack.base.errors import ConfigError, UnknownNameError, UserError
from stack.telemetry.console import say

VERBS = {
    "ingest": "a log -> timelines by day, with vocabularies and a manifest",
    "plan": "whether the tables fit a cluster, where each goes, what a step costs",
    "train": "timelines -> a model with checkpoints; resumes where it was stopped",
    "daily": "the next day, or days to catch up with: judged on, learnt, checked, a version each",
    "checkpoint": "the versions of a run: list, show, verify, restore, compact, prune, diff",
    "evaluate": "a model on days it has not seen, beside baselines on the same examples",
    "audit": "a model before its release: normalisation, probabilities, data, tables; what is off is told, or mended",
    "export": "a model -> a package: user half, scorer, rows, schema",
    "serve": "a package -> user vectors and scores over HTTP",
    "dashboard": "a page over Prometheus: trainings, tables, nights, audits, servers, alerts",
    "launch": "any of these as a job on this machine, Slurm, Kubernetes or AWS Batch",
    "doctor": "what this machine has, what does not match, and the way out",
}
USER_ERROR_STATUS = 2
INTERRUPTED_STATUS = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one verb and returns the exit status: 0, 2 for what the user can mend, 130 when interrupted."""
    share_cores()
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return _run(words)
    except UserError as error:
        alike = isinstance(error, ConfigError)  # on every rank
        say(f"stack: {' '.join(str(error).split())}", file=sys.stderr, everywhere=not alike)
        return USER_ERROR_STATUS
    except KeyboardInterrupt:
        say("stack: interrupted", file=sys.stderr)
        return INTERRUPTED_STATUS


def _run(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        say(_help())
        return 0
    if words[0] == "--version":
        say(f"stack {__version__}")
        return 0
    if words[0] in ("-sc", "--shell-completion"):
        return _complete(words)
    verb, options = words[0], words[1:]
    if verb not in VERBS:
        raise UnknownNameError("verb", verb, VERBS)
    if verb == "doctor":
        from stack.doctor import doctor

        return doctor(options)
    from stack.verbs import checkpoint, launch

    if verb == "checkpoint":
        return checkpoint(options)
    launch(verb, options)
    return 0


def _complete(words: list[str]) -> int:
    """Answers the shell (`eval "$(stack -sc install=bash)"`): verbs first, then what Hydra knows of their options."""
    typed = completion_line().split(" ")
    if words[1:2] == ["query=bash"] and len(typed) <= 2:
        say(" ".join(verb for verb in VERBS if verb.startswith(typed[-1])))
        return 0
    from stack.verbs import launch

    replace_completion_line(" ".join(["stack", *typed[2:]]))
    launch("", words)
    return 0


def _help() -> str:
    verbs = "\n".join(f"  {verb:<10} {text}" for verb, text in VERBS.items())
    return f"""stack <verb> [option=value ...]

{verbs}

  stack <verb> --cfg job            shows every option of the configuration and its value
  stack train data=events           takes another choice of a group: configs/data/events.yaml
  stack train run.name=first        sets one option; unknown options are refused
  stack train experiment=demo       a named set of options across groups
  stack plan cluster=h100x64        plans for other machines; plan.sweep=rows|ranks|batch shows how costs grow
  stack train --multirun run.seed=1,2 'run.name=seed-${{run.seed}}'   one run for each value
  eval "$(stack -sc install=bash)"  completes verbs and options with the tab key"""


if __name__ == "__main__":
    sys.exit(main())
