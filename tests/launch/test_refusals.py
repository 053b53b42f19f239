"""What `stack launch` cannot do is one line and status 2, before anything waits in a queue."""

from __future__ import annotations

import pytest

from stack.__main__ import main
from stack.launch import command


@pytest.mark.parametrize(
    ("typed", "line"),
    [
        ([], "stack launch needs a verb first, as in `stack launch train`; known: ingest, train, daily, evaluate, "),
        (["run.name=x", "train"], "stack launch needs a verb first, as in `stack launch train`"),
        (["trian"], "unknown verb to launch 'trian'; known: daily, evaluate, export, ingest, serve, train"),
        (["doctor"], "unknown verb to launch 'doctor'; known: daily, "),
        (["train", "launch.scheduler=pbs"], "launch.scheduler: Invalid value 'pbs', expected one of [local_cwd, "),
        (["train", "launch=pbs"], "unknown choice 'pbs' for 'launch'; known: aws_batch, kubernetes, local_cwd, "),
        (
            ["train", "launch=kubernetes"],
            "launch.scheduler=kubernetes runs containers: give the image with launch.image",
        ),
        (["train", "launch=local_docker"], "launch.scheduler=local_docker runs containers: give the image"),
        (["train", "cluster.hosts=0"], "cluster.hosts=0 must be at least 1: a job needs a machine"),
        (["serve", "cluster.hosts=0"], "cluster.hosts=0 must be at least 1: a job needs a machine"),
        (["train", "cluster.devices_per_host=0"], "cluster.devices_per_host=0 must be at least 1"),
        (["train", "launch.min_hosts=0"], "launch.min_hosts=0 must be at least 1, or null"),
        (["train", "launch.min_hosts=3", "cluster.hosts=2"], "launch.min_hosts=3 must be at most cluster.hosts=2"),
        (["train", "launch.max_restarts=-1"], "launch.max_restarts=-1 must be at least 0"),
        (["train", "launch.port=70000"], "launch.port=70000 must be at most 65535"),
        (["train", "launch.memory_gib=0"], "launch.memory_gib=0.0 must be above 0, or null"),
        (["train", "launch.rendezvous=node1"], "launch.rendezvous='node1' must be host:port, as in node1:29500"),
        (
            ["ingest", "launch.rendezvous=a:1"],
            "launch.rendezvous is for `stack launch train` with launch.scheduler=local",
        ),
        (["train", "launch.env.A='b,c'"], "launch.env.A='b,c' must not have a comma: torchx splits there"),
        (["train", "launch.mounts=[x]"], "launch.mounts has no effect with launch.scheduler=local_cwd: leave it out"),
        (
            ["daily", "cluster.hosts=2"],
            "stack launch daily runs on one host, not cluster.hosts=2: launch ingest, train,",
        ),
        (["train", "run.sed=1"], "unknown option 'run.sed'; 'run' knows: dir, name, seed"),
        (["train", "--fast"], "unknown flag '--fast': `stack launch --help` shows the flags there are"),
        (["train", "--multirun", "run.seed=1,2"], "stack launch starts one job at a time: leave out --multirun"),
        (["evaluate", "model.norm=batch"], "stack evaluate takes 'model' from the run's own config.yaml, as it was"),
        (
            ["train", "launch=local_docker", "launch.image=x", "launch.mounts=['src=/a']"],
            "launch.mounts=['src=/a']: type mu",
        ),
        (
            ["train", "launch.scheduler_args.partition=a"],
            "unknown launch.scheduler_args of local_cwd 'partition'; known: ",
        ),
        (
            ["train", "launch=aws_batch", "launch.image=x"],
            "launch.scheduler=aws_batch needs launch.scheduler_args.queue=",
        ),
    ],
)
def test_a_wrong_call_is_one_line_on_stderr_and_status_2(
    capsys: pytest.CaptureFixture[str], typed: list[str], line: str
) -> None:
    assert main(["launch", *typed]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith(f"stack: {line}")
    assert shown.err.count("\n") == 1


def test_a_machine_without_torchx_says_what_to_install(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command.importlib.util, "find_spec", lambda name: None)
    assert main(["launch", "train"]) == 2
    assert capsys.readouterr().err == (
        "stack: stack launch needs torchx: pip install --no-deps -r requirements/launch.txt\n"
    )
