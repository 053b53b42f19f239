"""torchx components: each verb as a job for any scheduler that torchx knows.

`stack launch` fills in their arguments from the configuration. They also run by themselves:

    torchx run --scheduler slurm --workspace "" launch/components.py:train --hosts 2 -- data=events run.name=x

The words after `--` are options of the verb, as `stack <verb>` takes them. torchx makes the help from the docstrings.
"""

import inspect
import ipaddress
import shlex
import sys
from collections.abc import Callable, Sequence
from typing import Any, List, Optional  # torchx knows lists by these names

from torchx import specs

_INSTANCE_TYPE = "node.kubernetes.io/instance-type"
"""The capability that torchx's schedulers read as a kind of machine."""

_OWN_STORE = "TORCH_DISABLE_SHARE_RDZV_TCP_STORE"
"""Each start of a job gets a store of its own: see `process_group` in `stack.base.dist`."""


def _app(
    verb: str,
    step: str,
    *,
    name: str = "",
    cpu: int = 1,
    gpu: int = 0,
    memory_mib: int = 1024,
    instance_type: str = "",
    image: str = "",
    env: str = "",
    mounts: Optional[List[str]] = None,
    retries: int = 0,
    python: str = "python",
) -> specs.AppDef:
    """A job of one role that runs shell: `step` is what follows the interpreter, and may have macros of torchx.

    It replaces the shell, so that signals reach it. Errors go where results go: one stream, in order.

    Args:
        name: of the job; empty is stack-<verb>
        cpu: cores of each host
        gpu: GPUs of each host
        memory_mib: memory of each host
        instance_type: kind of machine, where a cloud has several
        image: container image
        env: environment variables as a shell reads them, "A=1 B='x y'"
        mounts: into the container, each as type=bind,src=...,dst=...
        retries: of the whole job, by the scheduler
        python: interpreter on the hosts or in the image
    """
    line = f"exec {_quoted([python])} {step} 2>&1"
    variables = _variables(env)
    listed = [f"{key}={value}" for key, value in variables.items() if "," in value]  # Slurm's --export splits there
    kind = {_INSTANCE_TYPE: instance_type} if instance_type else {}
    role = specs.Role(
        name=verb,
        image=image,
        entrypoint="bash",
        args=["-c", f"export {_quoted(listed)}; {line}" if listed else line],
        env={key: value.replace("$", "$$") for key, value in variables.items() if "," not in value},
        max_retries=retries,
        resource=specs.Resource(cpu=cpu, gpu=gpu, memMB=memory_mib, capabilities=kind),
        mounts=specs.parse_mounts(mounts) if mounts else [],
    )
    return specs.AppDef(name=name or f"stack-{verb}", roles=[role])


def _with_arguments_of(given: Callable[..., specs.AppDef]) -> Callable[..., Callable[..., specs.AppDef]]:
    """Adds the keyword arguments of `given` to a component's own; it gets them as its `**` argument.

    torchx takes arguments and help from a component's signature and docstring, and refuses `**` in the first.
    """

    def added(component: Callable[..., specs.AppDef]) -> Callable[..., specs.AppDef]:
        own = inspect.signature(component)
        arguments = [one for one in own.parameters.values() if one.kind is not one.VAR_KEYWORD]
        arguments += [one for one in inspect.signature(given).parameters.values() if one.kind is one.KEYWORD_ONLY]
        component.__signature__ = own.replace(parameters=arguments)
        _, _, texts = (inspect.getdoc(given) or "").partition("Args:\n")
        component.__doc__ = f"{(inspect.getdoc(component) or '').rstrip()}\n{texts}"
        return component

    return added


@_with_arguments_of(_app)
def _together(
    verb: str,
    options: Sequence[str],
    *,
    hosts: int = 1,
    min_hosts: int = 0,
    processes: int = 1,
    max_restarts: int = 3,
    rendezvous: str = "",
    port: int = 29500,
    local_addr: str = "",
    log_dir: str = "",
    shutdown_seconds: int = 300,
    **app: Any,
) -> specs.AppDef:
    """A verb on all processes of all hosts.

    Args:
        hosts: machines
        min_hosts: go on with so many while others are missing; 0 waits for all
        processes: of each host, one for each GPU or share of its cores
        max_restarts: of all processes after one failed, on hosts that are still there
        rendezvous: host:port of the first host where no scheduler starts them all; starts one host
        port: on the first host, through which hosts find each other
        local_addr: this host's address as the others see it
        log_dir: folder for what each process writes, beside the one stream of all
        shutdown_seconds: between SIGTERM and SIGKILL
    """
    _positive(hosts=hosts, processes=processes)
    if not 0 <= min_hosts <= hosts:
        raise ValueError(f"min_hosts={min_hosts} must be from 0 to hosts={hosts}")
    nodes = f"{min_hosts}:{hosts}" if min_hosts else f"{hosts}"
    if rendezvous:
        name = app["name"] or f"stack-{verb}"
        meet = [_quoted([f"--rdzv-id={name}", f"--rdzv-endpoint={rendezvous}"]), *_keeps_store(rendezvous, local_addr)]
        host = _quoted([local_addr]) if local_addr else "$$HOSTNAME"
    else:
        first = f"$${{{specs.macros.rank0_env}:=localhost}}:{port}" if hosts > 1 else "localhost:0"
        meet = [f"--rdzv-id={specs.macros.app_id}", f"--rdzv-endpoint={first}"]
        host = specs.macros.replica_id
    agent = _agent(
        verb, options, nodes=nodes, meet=meet, processes=processes, max_restarts=max_restarts, local_addr=local_addr,
        logs=_logs(log_dir, host), shutdown_seconds=shutdown_seconds,
    )  # fmt: skip
    app["env"] = _agent_environment(app["env"], local_addr)
    job = _app(verb, agent, **app)
    (role,) = job.roles
    role.num_replicas = 1 if rendezvous else hosts
    role.min_replicas = min_hosts or None
    role.port_map = {"c10d": port}
    return job


@_with_arguments_of(_together)
def train(*options: str, **together: Any) -> specs.AppDef:
    """Timelines -> a model with checkpoints, on all processes of all hosts, restarted from the last checkpoint.

    Args:
        options: options of `stack train`
    """
    return _together("train", options, **together)


@_with_arguments_of(_together)
def daily(*options: str, **together: Any) -> specs.AppDef:
    """A day, or several, on top of a trained model, on all processes of all hosts; the first one ingests.

    Args:
        options: options of `stack daily`
    """
    return _together("daily", options, **together)


@_with_arguments_of(_app)
def ingest(*options: str, **app: Any) -> specs.AppDef:
    """A log -> timelines by day, in one process.

    Args:
        options: options of `stack ingest`
    """
    return _app("ingest", _verb("ingest", options), **app)


@_with_arguments_of(_app)
def evaluate(*options: str, **app: Any) -> specs.AppDef:
    """A model on days it has not seen, beside baselines, in one process.

    Args:
        options: options of `stack evaluate`
    """
    return _app("evaluate", _verb("evaluate", options), **app)


@_with_arguments_of(_app)
def export(*options: str, **app: Any) -> specs.AppDef:
    """A model -> a package to serve, in one process.

    Args:
        options: options of `stack export`
    """
    return _app("export", _verb("export", options), **app)


@_with_arguments_of(_app)
def serve(*options: str, replicas: int = 1, port: int = 8000, **app: Any) -> specs.AppDef:
    """A package -> user vectors and scores over HTTP, in one process for each replica.

    Args:
        options: options of `stack serve`
        replicas: processes, each on a machine of its own
        port: that the options make it listen to
    """
    _positive(replicas=replicas)
    job = _app("serve", _verb("serve", options), **app)
    job.roles[0].num_replicas = replicas
    job.roles[0].port_map = {"http": port}
    return job


def _verb(verb: str, options: Sequence[str]) -> str:
    return _quoted(["-m", "stack", verb, *options])


def _agent(
    verb: str,
    options: Sequence[str],
    *,
    nodes: str,
    meet: Sequence[str],
    processes: int,
    max_restarts: int,
    local_addr: str,
    logs: Sequence[str],
    shutdown_seconds: int,
) -> str:
    """torchrun with a verb. Its stream has each line behind the rank that wrote it."""
    words = ["-m torch.distributed.run --rdzv-backend=c10d", f"--nnodes={nodes}", f"--nproc-per-node={processes}"]
    words += [f"--max-restarts={max_restarts}", f"--shutdown-timeout={shutdown_seconds}", "--role= --tee=3", *meet]
    words += [_quoted([f"--local-addr={local_addr}"])] if local_addr else []
    return " ".join([*words, *logs, _verb(verb, options)])


def _keeps_store(rendezvous: str, local_addr: str) -> list[str]:
    """Says whether this host keeps the store where both addresses are numbers; torch asks what its name resolves to."""
    first = rendezvous.rpartition(":")[0]
    if not (_is_address(first) and _is_address(local_addr)) or _loopback(local_addr):
        return []
    return [f"--rdzv-conf=is_host={'true' if local_addr == first else 'false'}"]


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _logs(folder: str, host: str) -> list[str]:
    """`host` is shell, not quoted: on AWS Batch the number of a host is a variable."""
    return [f"{_quoted([f'--log-dir={folder}/host-'])}{host}"] if folder else []


def _agent_environment(env: str, local_addr: str) -> str:
    """The later of two values of a variable counts: what was asked for."""
    own = {_OWN_STORE: "1", "LOGLEVEL": "WARNING"}
    if _loopback(local_addr) and sys.platform == "linux":
        own["GLOO_SOCKET_IFNAME"] = "lo"
    return f"{shlex.join(f'{key}={value}' for key, value in own.items())} {env}"


def _loopback(address: str) -> bool:
    return address.startswith("127.")


def _variables(env: str) -> dict[str, str]:
    words = [word.partition("=") for word in shlex.split(env)]
    for key, equals, _ in words:
        if not equals:
            raise ValueError(f"env has {key!r}, which is not NAME=value")
    return {key: value for key, _, value in words}


def _quoted(words: Sequence[str]) -> str:
    """For the shell, and for torchx, which takes `$` for a macro of its own."""
    return shlex.join(words).replace("$", "$$")


def _positive(**counts: int) -> None:
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name}={count} must be at least 1")
