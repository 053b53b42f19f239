"""What `stack launch` cannot do is one line and status 2, before anything waits in a queue."""

from __future__ import annotations

import sys
from pathlib import Path

import kubernetes.config
import pytest

from stack.__main__ import main
from stack.launch import command
from tests.prepared import write_prepared


@pytest.fixture(autouse=True)
def _start_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str, words: list[str]) -> None:
        raise AssertionError(f"not refused: {words}")

    monkeypatch.setattr(command.os, "execv", refuse)


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
        (
            ["train", "launch.rendezvous=node1"],
            "launch.rendezvous='node1' must be host:port, the port up to 65535: node1:29500",
        ),
        (
            ["ingest", "launch.rendezvous=a:1"],
            "launch.rendezvous is for `stack launch train` and `daily`, not ingest: leave it out",
        ),
        (
            ["train", "launch.rendezvous=node1:70000"],
            "launch.rendezvous='node1:70000' must be host:port, the port up to",
        ),
        (["train", "launch.env.A-B=c"], "launch.env has 'A-B', which no variable can be called"),
        (["train", "launch.mounts=[x]"], "launch.mounts has no effect with launch.scheduler=local_cwd: leave it out"),
        (["train", "launch.image=x"], "launch.image has no effect with launch.scheduler=local_cwd: leave it out"),
        (["train", "launch.retries=1"], "launch.retries has no effect with launch.scheduler=local_cwd: leave it out"),
        (
            ["train", "launch=slurm", "launch.instance_type=p5"],
            "launch.instance_type has no effect with launch.scheduler=slurm: leave it out",
        ),
        (
            ["train", "launch=slurm", "launch.min_hosts=1"],
            "launch.min_hosts has no effect with launch.scheduler=slurm: leave it out",
        ),
        (
            ["ingest", "launch.min_hosts=1"],
            "launch.min_hosts is for `stack launch train` and `daily`, not ingest: leave",
        ),
        (
            ["export", "launch=aws_batch", "launch.image=x", "launch.instance_type=p5"],
            "launch.instance_type is heeded by torchx on AWS Batch for jobs of several hosts alone: leave it out",
        ),
        (
            ["train", "launch=slurm", "cluster.hosts=2", "launch.local_addr=10.0.0.1"],
            "launch.local_addr=10.0.0.1 would be the address of all cluster.hosts=2: leave it out",
        ),
        (
            ["serve", "launch=kubernetes", "launch.image=x"],
            "serve.host=127.0.0.1 is reached from inside its container alone: say serve.host=0.0.0.0",
        ),
        (
            ["serve", "launch=local_docker", "launch.image=x", "serve.host=0.0.0.0", "serve.port=0"],
            "serve.port=0 takes a port that nobody outside the container knows: choose one",
        ),
        (
            ["serve", "cluster.hosts=2"],
            "cluster.hosts=2 servers on this machine cannot share serve.port=8000: set cluster.hosts=1, or",
        ),
        (
            ["train", "run.dir='a=b'"],
            "run.dir: the run folder a=b/default must have no '=' or ',': torchx splits there",
        ),
        (["daily", "--from", "--to", "2024-03-29"], "--from needs a day: --from 2024-03-29"),
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
        (
            ["train", "launch=aws_batch", "launch.image=x", "launch.scheduler_args.priority=high"],
            "launch.scheduler_args.priority='high' must be of type int",
        ),
        (
            ["train", "launch=local_docker", "launch.image=x", "launch.scheduler_args.privileged=maybe"],
            "launch.scheduler_args.privileged='maybe' must be of type bool",
        ),
        (
            ["train", "launch=slurm", "launch.scheduler_args.comment='a=b'"],
            "launch.scheduler_args.comment='a=b' must not be empty, have '=', or begin or end with a space",
        ),
        (
            ["train", "launch=slurm", "launch.scheduler_args.time='1,2'"],
            "launch.scheduler_args.time='1,2' must not have a",
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


@pytest.mark.parametrize(
    ("typed", "line"),
    [
        (["launch=slurm"], "launch.scheduler=slurm needs Slurm's `sbatch` on this machine: launch from a login node;"),
        (
            ["launch=kubernetes", "launch.image=x"],
            "launch.scheduler=kubernetes needs a cluster that `kubectl` reaches (Invalid kube-config",
        ),
        (
            ["launch=local_docker", "launch.image=x"],
            "launch.scheduler=local_docker needs a Docker daemon that answers: start it, or set DOCKER_HOST;",
        ),
        (
            ["launch=aws_batch", "launch.image=x", "launch.scheduler_args.queue=q"],
            "launch.scheduler=aws_batch needs boto3: pip install boto3; --dry-run shows the job without",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")  # docker's client, where nobody listens
def test_a_machine_without_the_schedulers_tools_says_what_is_missing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, typed: list[str], line: str
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/docker.sock")
    monkeypatch.setattr(kubernetes.config.kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "config"))
    monkeypatch.setitem(sys.modules, "boto3", None)
    assert main(["launch", "export", *typed]) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith(f"stack: {line}")
    assert shown.err.count("\n") == 1
    with pytest.raises(AssertionError, match="not refused: .*--dryrun"):
        main(["launch", "export", *typed, "--dry-run"])


@pytest.mark.parametrize(
    ("typed", "line"),
    [
        (
            ["train", "cluster.hosts=2", "cluster.devices_per_host=3"],
            "6 processes (hosts x cluster.devices_per_host=3) do not divide the 4 buckets of the data: take a divisor, "
            "or ingest with ingest.num_buckets=6",
        ),
        (
            ["train", "cluster.hosts=4", "cluster.devices_per_host=1", "launch.min_hosts=2"],
            "3 processes (hosts x cluster.devices_per_host=1) do not divide the 4 buckets of the data: take a divisor, "
            "or ingest with ingest.num_buckets=12",
        ),
        (
            ["daily", "cluster.devices_per_host=3", "day=2024-03-29"],
            "3 processes (hosts x cluster.devices_per_host=3) do not divide the 4 buckets of the data: take a divisor, "
            "or ingest with ingest.num_buckets=3",
        ),
    ],
)
def test_processes_that_the_data_cannot_be_shared_among_are_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, typed: list[str], line: str
) -> None:
    data = write_prepared(tmp_path / "data", num_days=1, num_users=4, num_buckets=4)
    assert main(["launch", *typed, f"data.out={data}"]) == 2
    assert capsys.readouterr().err == f"stack: {line}\n"
    with pytest.raises(AssertionError, match="not refused"):
        main(["launch", "train", "cluster.hosts=2", "cluster.devices_per_host=3", f"data.out={tmp_path}/elsewhere"])


def test_days_reach_the_job_as_options_of_the_verb() -> None:
    with pytest.raises(AssertionError, match=r"'daily\.from_day=2024-03-01', 'daily\.to_day=2024-03-29'"):
        main(["launch", "daily", "--from", "2024-03-01", "--to", "2024-03-29", "--dry-run"])


def test_help_without_a_verb_names_the_verbs_and_shows_the_options(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["launch", "--help"])
    shown = capsys.readouterr().out
    assert ended.value.code in (None, 0)
    assert shown.startswith("stack launch <verb> ")
    assert "ingest, train, daily, evaluate, export, serve" in shown
    assert "launch: aws_batch, kubernetes, local_cwd, local_docker, slurm" in shown


def test_a_machine_without_torchx_says_what_to_install(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command.importlib.util, "find_spec", lambda name: None)
    assert main(["launch", "train"]) == 2
    assert capsys.readouterr().err == (
        "stack: stack launch needs torchx: pip install --no-deps -r requirements/launch.txt\n"
    )
