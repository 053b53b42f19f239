"""torchx components: each verb as a job for any scheduler that torchx knows.

`stack launch` fills in their arguments from the configuration. They also run by themselves:

    torchx run --scheduler slurm --workspace "" launch/components.py:train --hosts 2 -- data=events run.name=x

The words after `--` are options of the verb, as `stack <verb>` takes them. torchx makes the help from the docstrings.
"""

import shlex
import sys
from typing import Dict, List, Optional, Sequence  # torchx reads these names from the annotations

from torchx import specs

from stack.verbs import OF_THE_RUN

_INSTANCE_TYPE = "node.kubernetes.io/instance-type"
"""The capability that torchx's schedulers read as a kind of machine."""

_OWN_STORE = "TORCH_DISABLE_SHARE_RDZV_TCP_STORE"
"""Each start of a job gets a store of its own: see `process_group` in `stack.base.dist`."""


def train(
    *options: str,
    name: str = "stack-train",
    hosts: int = 1,
    min_hosts: int = 0,
    processes: int = 1,
    cpu: int = 1,
    gpu: int = 0,
    memory_mib: int = 1024,
    instance_type: str = "",
    image: str = "",
    env: Optional[Dict[str, str]] = None,
    mounts: Optional[List[str]] = None,
    max_restarts: int = 3,
    retries: int = 0,
    rendezvous: str = "",
    port: int = 29500,
    local_addr: str = "",
    log_dir: str = "",
    shutdown_seconds: int = 300,
    python: str = "python",
) -> specs.AppDef:
    """Timelines -> a model with checkpoints, on all processes of all hosts, restarted from the last checkpoint.

    Args:
        options: options of `stack train`
        name: of the job
        hosts: machines
        min_hosts: go on with so many while others are missing; 0 waits for all
        processes: of each host, one for each GPU or share of its cores
        cpu: cores of each host
        gpu: GPUs of each host
        memory_mib: memory of each host
        instance_type: kind of machine, where a cloud has several
        image: container image
        env: environment variables
        mounts: into the container, each as type=bind,src=...,dst=...
        max_restarts: of all processes after one failed, on hosts that are still there
        retries: of the whole job, by the scheduler
        rendezvous: host:port of the first host where no scheduler starts them all; starts one host
        port: on the first host, through which hosts find each other
        local_addr: this host's address as the others see it
        log_dir: folder for what each process writes, beside the one stream of all
        shutdown_seconds: between SIGTERM and SIGKILL
        python: interpreter on the hosts or in the image
    """
    _positive(hosts=hosts, processes=processes)
    if not 0 <= min_hosts <= hosts:
        raise ValueError(f"min_hosts={min_hosts} must be from 0 to hosts={hosts}")
    agent = _agent(
        name=name, hosts=hosts, min_hosts=min_hosts, processes=processes, max_restarts=max_restarts,
        rendezvous=rendezvous, port=port, local_addr=local_addr, log_dir=log_dir, shutdown_seconds=shutdown_seconds,
        python=python,
    )  # fmt: skip
    role = _shell(
        "train",
        f"exec {agent} {_quoted(['-m', 'stack', 'train', *options])}",
        resource=_resource(cpu, gpu, memory_mib, instance_type),
        image=image,
        env=_agent_environment(env, local_addr),
        mounts=mounts,
        retries=retries,
    )
    role.num_replicas = 1 if rendezvous else hosts
    role.min_replicas = min_hosts or None
    role.port_map = {"c10d": port}
    return specs.AppDef(name=name, roles=[role])


def daily(
    *options: str,
    name: str = "stack-daily",
    processes: int = 1,
    cpu: int = 1,
    gpu: int = 0,
    memory_mib: int = 1024,
    instance_type: str = "",
    image: str = "",
    env: Optional[Dict[str, str]] = None,
    mounts: Optional[List[str]] = None,
    max_restarts: int = 3,
    retries: int = 0,
    local_addr: str = "",
    log_dir: str = "",
    shutdown_seconds: int = 300,
    python: str = "python",
) -> specs.AppDef:
    """A day: ingest, train, evaluate, export on one host, stopping at the first that fails.

    Args:
        options: options of all four verbs; evaluate and export are spared those that they take from the run
        name: of the job
        processes: of training
        cpu: cores of the host
        gpu: GPUs of the host
        memory_mib: memory of the host
        instance_type: kind of machine, where a cloud has several
        image: container image
        env: environment variables
        mounts: into the container, each as type=bind,src=...,dst=...
        max_restarts: of training's processes after one failed
        retries: of the whole job, by the scheduler
        local_addr: this host's address
        log_dir: folder for what each process of training writes
        shutdown_seconds: between SIGTERM and SIGKILL
        python: interpreter on the host or in the image
    """
    _positive(processes=processes)
    agent = _agent(
        name=name, hosts=1, min_hosts=0, processes=processes, max_restarts=max_restarts, rendezvous="", port=0,
        local_addr=local_addr, log_dir=log_dir, shutdown_seconds=shutdown_seconds, python=python,
    )  # fmt: skip
    later = [option for option in options if _group(option) not in OF_THE_RUN]
    steps = [
        _quoted([python, "-m", "stack", "ingest", *options]),
        f"{agent} {_quoted(['-m', 'stack', 'train', *options])}",
        _quoted([python, "-m", "stack", "evaluate", *later]),
        _quoted([python, "-m", "stack", "export", *later]),
    ]
    role = _shell(
        "daily",
        _in_order(steps),
        resource=_resource(cpu, gpu, memory_mib, instance_type),
        image=image,
        env=_agent_environment(env, local_addr),
        mounts=mounts,
        retries=retries,
    )
    return specs.AppDef(name=name, roles=[role])


def ingest(
    *options: str,
    name: str = "stack-ingest",
    cpu: int = 1,
    memory_mib: int = 1024,
    instance_type: str = "",
    image: str = "",
    env: Optional[Dict[str, str]] = None,
    mounts: Optional[List[str]] = None,
    retries: int = 0,
    python: str = "python",
) -> specs.AppDef:
    """A log -> timelines by day, in one process.

    Args:
        options: options of `stack ingest`
        name: of the job
        cpu: cores
        memory_mib: memory
        instance_type: kind of machine, where a cloud has several
        image: container image
        env: environment variables
        mounts: into the container, each as type=bind,src=...,dst=...
        retries: of the whole job, by the scheduler
        python: interpreter on the host or in the image
    """
    resource = _resource(cpu, 0, memory_mib, instance_type)
    return _single(name, "ingest", options, python, resource, image=image, env=env, mounts=mounts, retries=retries)


def evaluate(
    *options: str,
    name: str = "stack-evaluate",
    cpu: int = 1,
    gpu: int = 0,
    memory_mib: int = 1024,
    instance_type: str = "",
    image: str = "",
    env: Optional[Dict[str, str]] = None,
    mounts: Optional[List[str]] = None,
    retries: int = 0,
    python: str = "python",
) -> specs.AppDef:
    """A model on days it has not seen, beside baselines, in one process.

    Args:
        options: options of `stack evaluate`
        name: of the job
        cpu: cores
        gpu: GPUs
        memory_mib: memory
        instance_type: kind of machine, where a cloud has several
        image: container image
        env: environment variables
        mounts: into the container, each as type=bind,src=...,dst=...
        retries: of the whole job, by the scheduler
        python: interpreter on the host or in the image
    """
    resource = _resource(cpu, gpu, memory_mib, instance_type)
    return _single(name, "evaluate", options, python, resource, image=image, env=env, mounts=mounts, retries=retries)


def export(
    *options: str,
    name: str = "stack-export",
    cpu: int = 1,
    gpu: int = 0,
    memory_mib: int = 1024,
    instance_type: str = "",
    image: str = "",
    env: Optional[Dict[str, str]] = None,
    mounts: Optional[List[str]] = None,
    retries: int = 0,
    python: str = "python",
) -> specs.AppDef:
    """A model -> a package to serve, in one process.

    Args:
        options: options of `stack export`
        name: of the job
        cpu: cores
        gpu: GPUs
        memory_mib: memory
        instance_type: kind of machine, where a cloud has several
        image: container image
        env: environment variables
        mounts: into the container, each as type=bind,src=...,dst=...
        retries: of the whole job, by the scheduler
        python: interpreter on the host or in the image
    """
    resource = _resource(cpu, gpu, memory_mib, instance_type)
    return _single(name, "export", options, python, resource, image=image, env=env, mounts=mounts, retries=retries)


def serve(
    *options: str,
    name: str = "stack-serve",
    replicas: int = 1,
    cpu: int = 1,
    memory_mib: int = 1024,
    instance_type: str = "",
    image: str = "",
    env: Optional[Dict[str, str]] = None,
    mounts: Optional[List[str]] = None,
    retries: int = 0,
    port: int = 8000,
    python: str = "python",
) -> specs.AppDef:
    """A package -> user vectors and scores over HTTP, in one process for each replica.

    Args:
        options: options of `stack serve`
        name: of the job
        replicas: processes, each on a machine of its own
        cpu: cores
        memory_mib: memory
        instance_type: kind of machine, where a cloud has several
        image: container image
        env: environment variables
        mounts: into the container, each as type=bind,src=...,dst=...
        retries: of the whole job, by the scheduler
        port: that the options make it listen to
        python: interpreter on the host or in the image
    """
    _positive(replicas=replicas)
    resource = _resource(cpu, 0, memory_mib, instance_type)
    app = _single(name, "serve", options, python, resource, image=image, env=env, mounts=mounts, retries=retries)
    app.roles[0].num_replicas = replicas
    app.roles[0].port_map = {"http": port}
    return app


def _single(
    name: str,
    verb: str,
    options: Sequence[str],
    python: str,
    resource: specs.Resource,
    *,
    image: str,
    env: Optional[Dict[str, str]],
    mounts: Optional[List[str]],
    retries: int,
) -> specs.AppDef:
    command = f"exec {_quoted([python, '-m', 'stack', verb, *options])}"
    role = _shell(verb, command, resource=resource, image=image, env=dict(env or {}), mounts=mounts, retries=retries)
    return specs.AppDef(name=name, roles=[role])


def _resource(cpu: int, gpu: int, memory_mib: int, instance_type: str) -> specs.Resource:
    """Of one host. Kubernetes selects nodes by the type, AWS Batch asks for such machines."""
    kind = {_INSTANCE_TYPE: instance_type} if instance_type else {}
    return specs.Resource(cpu=cpu, gpu=gpu, memMB=memory_mib, capabilities=kind)


def _shell(
    name: str,
    command: str,
    *,
    resource: specs.Resource,
    image: str,
    env: Dict[str, str],
    mounts: Optional[List[str]],
    retries: int,
) -> specs.Role:
    """A role that runs one line of shell. The shell is replaced by the verb, so that signals reach it."""
    return specs.Role(
        name=name,
        image=image,
        entrypoint="bash",
        args=["-c", command],
        env=env,
        max_retries=retries,
        resource=resource,
        mounts=specs.parse_mounts(mounts) if mounts else [],
    )


def _agent(
    *,
    name: str,
    hosts: int,
    min_hosts: int,
    processes: int,
    max_restarts: int,
    rendezvous: str,
    port: int,
    local_addr: str,
    log_dir: str,
    shutdown_seconds: int,
    python: str,
) -> str:
    """torchrun, ready for the program's words. Its stream has each line behind the rank that wrote it."""
    words = [python, "-m", "torch.distributed.run", "--rdzv-backend=c10d"]
    words += [f"--nnodes={min_hosts}:{hosts}" if min_hosts else f"--nnodes={hosts}", f"--nproc-per-node={processes}"]
    words += [f"--max-restarts={max_restarts}", f"--shutdown-timeout={shutdown_seconds}", "--role=", "--tee=3"]
    words += [f"--local-addr={local_addr}"] if local_addr else []
    if (
        rendezvous and local_addr and not _loopback(local_addr)
    ):  # torch would compare with the addresses of the host's name
        words.append(f"--rdzv-conf=is_host={'true' if local_addr == rendezvous.rpartition(':')[0] else 'false'}")
    words += [f"--rdzv-id={name}" if rendezvous else f"--rdzv-id={specs.macros.app_id}"]
    endpoint = shlex.quote(f"--rdzv-endpoint={rendezvous or 'localhost:0'}")
    if hosts > 1 and not rendezvous:
        endpoint = f"--rdzv-endpoint=$${{{specs.macros.rank0_env}:=localhost}}:{port}"  # $$ is a $ after macros
    logs = f"--log-dir={log_dir}/host-{specs.macros.replica_id}" if log_dir else ""
    return " ".join([*map(shlex.quote, words), endpoint, *([shlex.quote(logs)] if logs else [])])


def _agent_environment(env: Optional[Dict[str, str]], local_addr: str) -> Dict[str, str]:
    own = {_OWN_STORE: "1", "LOGLEVEL": "WARNING"}
    if _loopback(local_addr) and sys.platform == "linux":
        own["GLOO_SOCKET_IFNAME"] = "lo"
    return own | dict(env or {})


def _loopback(address: str) -> bool:
    return address.startswith("127.")


def _in_order(steps: Sequence[str]) -> str:
    """Shell that runs one step after the other up to the first that fails, and hands SIGTERM on to the running one."""
    waited = " && ".join(f"{{ {step} & wait_for_it; }}" for step in steps)
    # $! is set with the step's start, so no signal falls between the two; one that came just before is handed on late
    stop = "trap 'stopped=\"by $$!\"; [ -z $$! ] || kill -TERM $$!' TERM"
    late = '[ "$${stopped:-by $$!}" = "by $$!" ] || kill -TERM $$!'
    loop = "while :; do wait $$!; status=$$?; kill -0 $$! 2>/dev/null || break; done"
    return f'{stop}; wait_for_it() {{ {late}; {loop}; [ -z "$$stopped" ] || exit 143; return $$status; }}; {waited}'


def _quoted(words: Sequence[str]) -> str:
    """For the shell, and for torchx, which takes `$` for a macro of its own."""
    return shlex.join(words).replace("$", "$$")


def _group(option: str) -> str:
    return option.lstrip("+~").partition("=")[0].partition(".")[0]


def _positive(**counts: int) -> None:
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name}={count} must be at least 1")
