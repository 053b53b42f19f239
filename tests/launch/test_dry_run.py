"""Every scheduler's job as torchx renders it from `stack launch`, without a scheduler: nothing is submitted."""

from __future__ import annotations

import copy
import json
import os
import shlex
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from torchx.runner import get_runner
from torchx.schedulers.kubernetes_scheduler import sanitize_for_serialization

from stack.job import CHOICES, Composer, Job, configs_folder
from stack.launch.command import torchx_words
from stack.launch.request import Place, read_request

SCHEMA = json.loads((Path(__file__).parent / "volcano_job.schema.json").read_bytes())
CLUSTER = ("cluster.hosts=2", "cluster.devices_per_host=4", "cluster.ddr_gib=64")
GPUS = ("cluster.device=cuda", "cluster.hbm_gib=80", "cluster.hbm_gb_per_second=3000")
IMAGE = "launch.image=registry.example/stack:1"
DATA = ("data=events", "data.out=/data/prepared", "run.dir=/data/runs", "run.name=mine")


def words_of(*typed: str) -> list[str]:
    """The words after `torchx` for the words after `stack launch`."""
    request = read_request(typed)
    job = Composer(root=Job, choices=CHOICES, folder=configs_folder()).compose(request.options)
    place = Place(
        folder=job.run.folder, name=job.run.name, num_buckets=None, serve_host=job.serve.host, serve_port=job.serve.port
    )
    return torchx_words(request, launch=job.launch, cluster=job.cluster, place=place)


def rendered(*typed: str) -> tuple[Any, Any]:
    """The job and the scheduler's own request for the words after `stack launch`."""
    words = words_of(*typed)
    scheduler = words[words.index("--scheduler") + 1]
    start = words.index("--workspace") + 2
    with get_runner() as runner:
        given = words[words.index("--scheduler_args") + 1] if "--scheduler_args" in words else ""
        cfg = runner.scheduler_run_opts(scheduler).cfg_from_str(given)
        info = runner.dryrun_component(words[start], words[start + 1 :], scheduler, cfg=cfg)
    return info._app, info.request


def test_local_cwd_starts_an_agent_for_each_host_on_loopback_with_logs_in_the_run_folder() -> None:
    _, request = rendered("train", *CLUSTER, "launch.max_restarts=2", *DATA)
    agents = request.role_params["train"]
    assert len(agents) == 2
    shell, flag, command = agents[1].args
    assert (shell, flag) == ("bash", "-c")
    words = shlex.split(command)
    assert words[:4] == ["exec", sys.executable, "-m", "torch.distributed.run"]
    assert {
        "--nnodes=2", "--nproc-per-node=4", "--max-restarts=2", "--rdzv-backend=c10d", "--local-addr=127.0.0.1",
        f"--rdzv-id={request.app_id}", "--rdzv-endpoint=${TORCHX_RANK0_HOST:=localhost}:29500", "--tee=3",
        "--log-dir=/data/runs/mine/logs/host-1", "--shutdown-timeout=300",
    } <= set(words)  # fmt: skip
    assert words[words.index("stack") :] == ["stack", "train", *CLUSTER, *DATA, "2>&1"]
    assert agents[1].env["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] == "1"
    assert request.log_dir.startswith("/data/runs/mine/logs/")


def test_one_host_meets_on_a_free_port_and_fewer_hosts_can_be_enough() -> None:
    _, one = rendered("train", "cluster=laptop")
    assert "--rdzv-endpoint=localhost:0" in one.role_params["train"][0].args[2]
    app, elastic = rendered("train", *CLUSTER, "launch.min_hosts=1")
    assert "--nnodes=1:2" in elastic.role_params["train"][0].args[2]
    assert app.roles[0].min_replicas == 1


def test_a_rendezvous_by_hand_starts_the_agent_of_this_host_alone() -> None:
    app, request = rendered("train", *CLUSTER, "launch.rendezvous=node1:29400", "run.name=mine")
    words = shlex.split(request.role_params["train"][0].args[2])
    assert app.roles[0].num_replicas == 1
    assert {"--nnodes=2", "--rdzv-endpoint=node1:29400", "--rdzv-id=stack-train-mine"} <= set(words)
    assert not any(word.startswith(("--local-addr", "--rdzv-conf")) for word in words)
    (folder,) = [word for word in words if word.startswith("--log-dir=")]
    assert folder == "--log-dir=runs/mine/logs/host-$HOSTNAME"


@pytest.mark.parametrize(
    ("first", "address", "said"),
    [
        ("10.0.0.1", "10.0.0.1", ["--rdzv-conf=is_host=true"]),
        ("10.0.0.1", "10.0.0.2", ["--rdzv-conf=is_host=false"]),
        ("node1", "10.0.0.1", []),  # nobody here knows whose name it is: torch asks the host itself
        ("127.0.0.1", "127.0.0.1", []),
    ],
)
def test_the_host_whose_address_is_the_rendezvous_keeps_the_store(first: str, address: str, said: list[str]) -> None:
    _, request = rendered("train", *CLUSTER, f"launch.rendezvous={first}:29400", f"launch.local_addr={address}")
    words = shlex.split(request.role_params["train"][0].args[2])
    assert [word for word in words if word.startswith("--rdzv-conf")] == said
    assert f"--local-addr={address}" in words
    assert any(word.startswith("--log-dir=") and word.endswith(f"/host-{address}") for word in words)


def test_variables_reach_the_job_as_they_were_given(tmp_path: Path) -> None:
    """Also with what torchx and Slurm split at."""
    given = {
        "A": "--x=1 --y=2",
        "HCA": "mlx5_0,mlx5_1",
        "EMPTY": "",
        "DOLLAR": "$HOME $$x",
        "LOGLEVEL": "INFO",
    }
    typed = [f"launch.env.{name}='{value}'" for name, value in given.items()]
    (tmp_path / "show").write_text(f"#!{sys.executable}\nimport json, os\nprint(json.dumps(dict(os.environ)))\n")
    (tmp_path / "show").chmod(0o755)
    _, request = rendered("train", "cluster=laptop", *typed, f"launch.python={tmp_path}/show")
    agent = request.role_params["train"][0]
    done = subprocess.run(
        agent.args, env=agent.env | {"PATH": os.environ["PATH"]}, capture_output=True, text=True, check=True
    )
    assert given.items() <= json.loads(done.stdout).items()
    assert not [value for value in agent.env.values() if "," in value]


def test_options_reach_the_verb_as_they_were_typed(tmp_path: Path) -> None:
    odd = [
        "data=events",
        "data.path='a b $HOME.csv'",
        "data.columns.type=t",
        "data.positive_types=[buy,view]",
        'data.out="x;y"',
        "run.name=n",
    ]
    _, request = rendered("ingest", *odd, f"launch.python={tmp_path}/show")
    (tmp_path / "show").write_text(f"#!{sys.executable}\nimport json, sys\nprint(json.dumps(sys.argv[1:]))\n")
    (tmp_path / "show").chmod(0o755)
    done = subprocess.run(request.role_params["ingest"][0].args, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == ["-m", "stack", "ingest", *odd]
    assert done.stderr == ""


def test_errors_come_in_the_stream_of_results(tmp_path: Path) -> None:
    _, request = rendered("ingest", f"launch.python={tmp_path}/fake")
    (tmp_path / "fake").write_text("#!/bin/sh\necho one; echo two >&2; echo three\n")
    (tmp_path / "fake").chmod(0o755)
    done = subprocess.run(request.role_params["ingest"][0].args, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("one\ntwo\nthree\n", "")


def test_daily_is_a_job_of_all_processes_as_training_is() -> None:
    """`stack launch daily --from ... --to ...` reaches the verb as options of the group `daily`."""
    words = ["daily.from_day=2024-03-01", "daily.to_day=2024-03-29"]
    _, request = rendered("daily", *CLUSTER, *DATA, *words)
    agents = request.role_params["daily"]
    assert len(agents) == 2
    line = shlex.split(agents[1].args[2])
    assert {"--nnodes=2", "--nproc-per-node=4", "--max-restarts=3"} <= set(line)
    assert line[line.index("stack") :] == ["stack", "daily", *CLUSTER, *DATA, *words, "2>&1"]


def test_slurm_gets_a_script_with_resources_of_the_cluster() -> None:
    typed = ["launch=slurm", "launch.scheduler_args.partition=gpu", "launch.scheduler_args.time='2:00:00'"]
    _, request = rendered("train", *CLUSTER, *GPUS, *typed, "launch.retries=3", "launch.env.NCCL_DEBUG=WARN", *DATA)
    script = request.materialize()
    assert script.startswith("#!/bin/bash\n")
    for host in (0, 1):
        assert (
            f"#SBATCH --job-name=train-{host} --requeue --partition=gpu --time=2:00:00 --ntasks-per-node=1 "
            "--cpus-per-task=16 --mem=65536 --gpus-per-task=4\n"
        ) in script
        assert f"--log-dir=/data/runs/mine/logs/host-{host}" in script
    assert script.count("--rdzv-endpoint=${SLURM_JOB_NODELIST_HET_GROUP_0:=localhost}:29500") == 2
    assert "export TORCHX_MAX_RETRIES=3\n" in script
    assert "NCCL_DEBUG=WARN" in script
    assert script.count("-m stack train cluster.hosts=2") == 2
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)


def kubernetes_job(*typed: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of torchx, about retries in Volcano 1.4
        _, request = rendered(*typed, "launch=kubernetes", IMAGE)
    return yaml.safe_load(yaml.safe_dump(sanitize_for_serialization(request.resource)))


def test_kubernetes_gets_a_volcano_job_with_the_fields_that_volcano_knows() -> None:
    mounts = "launch.mounts=['type=volume,src=claim,dst=/data','type=bind,src=/etc/x,dst=/x,readonly']"
    typed = ["launch.retries=1", "launch.scheduler_args.queue=night", "launch.instance_type=p5.48xlarge"]
    job = kubernetes_job("train", *CLUSTER, *GPUS, mounts, *typed, *DATA)
    jsonschema.validate(job, SCHEMA)
    assert (job["spec"]["queue"], len(job["spec"]["tasks"])) == ("night", 2)
    assert job["spec"]["maxRetry"] == 2  # Volcano gives up when it has started so often
    assert {"event": "PodFailed", "action": "RestartJob"} in job["spec"]["tasks"][1]["policies"]
    pod = job["spec"]["tasks"][1]["template"]["spec"]
    container = pod["containers"][0]
    assert pod["nodeSelector"] == {"node.kubernetes.io/instance-type": "p5.48xlarge"}
    assert container["image"] == "registry.example/stack:1"
    assert container["resources"]["limits"] == {"cpu": "16000m", "memory": "65536M", "nvidia.com/gpu": "4"}
    assert {one["mountPath"]: one.get("readOnly") for one in container["volumeMounts"]} == {
        "/dev/shm": None, "/data": False, "/x": True
    }  # fmt: skip
    assert container["command"][2].startswith("exec python -m torch.distributed.run")
    assert "--rdzv-endpoint=${VC_TRAIN_0_HOSTS:=localhost}:29500" in container["command"][2]


@pytest.mark.parametrize("verb", ["ingest", "evaluate", "export", "serve"])
def test_the_other_verbs_are_volcano_jobs_too(verb: str) -> None:
    job = kubernetes_job(verb, "cluster=laptop", *(["serve.host=0.0.0.0"] if verb == "serve" else []))
    jsonschema.validate(job, SCHEMA)
    ports = [port["containerPort"] for port in job["spec"]["tasks"][0]["template"]["spec"]["containers"][0]["ports"]]
    assert ports == ([8000] if verb == "serve" else [])


def _drop_image(job: Any) -> None:
    del job["spec"]["tasks"][0]["template"]["spec"]["containers"][0]["image"]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda job: job["spec"].pop("tasks"), "'tasks' is a required property"),
        (lambda job: job["spec"].update(tasks=[]), "should be non-empty"),
        (lambda job: job["spec"].update(retries=3), "'retries' was unexpected"),
        (lambda job: job["spec"]["tasks"][0].update(name="Train_0"), "does not match"),
        (lambda job: job.update(apiVersion="batch/v1"), "was expected"),
        (_drop_image, "'image' is a required property"),
    ],
)
def test_the_schema_refuses_what_is_no_volcano_job(spoil: Callable[[Any], object], message: str) -> None:
    job = copy.deepcopy(kubernetes_job("export", "cluster=laptop"))
    spoil(job)
    with pytest.raises(jsonschema.ValidationError, match=message):
        jsonschema.validate(job, SCHEMA)


def test_aws_batch_gets_a_multi_node_job() -> None:
    typed = ["launch=aws_batch", IMAGE, "launch.scheduler_args.queue=night", "launch.instance_type=p5.48xlarge"]
    mounts = "launch.mounts=['type=volume,src=fs-1,dst=/data']"
    _, request = rendered("train", *CLUSTER, *GPUS, *typed, mounts, "launch.retries=2", *DATA)
    properties = request.job_def["nodeProperties"]
    assert (request.queue, properties["numNodes"], request.job_def["type"]) == ("night", 2, "multinode")
    assert request.job_def["retryStrategy"]["attempts"] == 3  # the first and two more
    (group,) = properties["nodeRangeProperties"]
    assert (group["targetNodes"], group["container"]["instanceType"]) == ("0:1", "p5.48xlarge")
    assert {one["type"]: one["value"] for one in group["container"]["resourceRequirements"]} == {
        "VCPU": "16", "MEMORY": "65536", "GPU": "4"
    }  # fmt: skip
    assert group["container"]["volumes"][0]["efsVolumeConfiguration"] == {"fileSystemId": "fs-1"}
    line = group["container"]["command"][2]
    assert "AWS_BATCH_JOB_MAIN_NODE_PRIVATE_IPV4_ADDRESS:=localhost}:29500" in line
    told = {"AWS_BATCH_JOB_NODE_INDEX": "1", "AWS_BATCH_JOB_MAIN_NODE_PRIVATE_IPV4_ADDRESS": "10.0.0.9"}
    shown = subprocess.run(
        ["bash", "-c", line.replace("exec python", "printf '%s\\n'")],
        env=told,
        capture_output=True,
        text=True,
        check=True,
    )
    assert {"--rdzv-endpoint=10.0.0.9:29500", "--log-dir=/data/runs/mine/logs/host-1"} <= set(shown.stdout.split("\n"))


def test_local_docker_gets_a_container_for_each_host() -> None:
    mounts = "launch.mounts=['type=bind,src=/data,dst=/data']"
    _, request = rendered("train", *CLUSTER, "launch=local_docker", IMAGE, mounts, *DATA)
    assert [container.image for container in request.containers] == ["registry.example/stack:1"] * 2
    first = request.containers[0]
    assert first.kwargs["mem_limit"] == "65536m"
    assert first.kwargs["nano_cpus"] == 16 * 10**9
    assert [(one["Source"], one["Target"]) for one in first.kwargs["mounts"]] == [("/data", "/data")]


def test_serve_has_a_replica_for_each_host_and_no_gpu() -> None:
    app, _ = rendered("serve", *CLUSTER, *GPUS, "launch=slurm", "serve.package=p", "serve.port=9000")
    (role,) = app.roles
    assert (role.num_replicas, role.resource.gpu, role.port_map) == (2, 0, {"http": 9000})


def test_the_option_dry_run_is_the_flag() -> None:
    flag, option, neither = (words_of("export", *typed) for typed in (["--dry-run"], ["launch.dry_run=true"], []))
    assert flag == option
    assert [word for word in flag if word != "--dryrun"] == neither


def test_the_command_is_shown_and_a_dry_run_shows_the_whole_job(tmp_path: Path) -> None:
    words = ["export", "cluster=laptop", f"run.dir={tmp_path}/runs", "--dry-run"]
    command = [sys.executable, "-m", "stack", "launch", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    assert done.stdout.startswith("$ torchx run --scheduler local_cwd --scheduler_args ")
    assert " --dryrun " in done.stdout.splitlines()[0]
    assert done.stdout.splitlines()[0].endswith(f"-- run.dir={tmp_path}/runs")
    assert "=== APPLICATION ===" in done.stdout
    assert "=== SCHEDULER REQUEST ===" in done.stdout
    assert not (tmp_path / "runs").exists()
