"""`stack serve`: one process that answers HTTP from one package until it is told to stop (SIGINT, SIGTERM)."""

from __future__ import annotations

import signal
import socket
from pathlib import Path

import torch
import uvicorn

from stack.base.errors import ConfigError, MachineError
from stack.serve.app import build_app
from stack.serve.config import ServeConfig
from stack.serve.predictor import Predictor
from stack.serve.request import Limits
from stack.telemetry.console import say


def serve(config: ServeConfig) -> None:
    """Loads the package, says the address once it can answer, and returns after a stop signal.

    Raises: `PackageError` for a package that cannot be served, `MachineError` where the address is taken.
    """
    if not config.package:
        raise ConfigError("serve.package is empty: name the folder that `stack export` wrote, runs/<run>/package")
    torch.set_num_threads(1)
    predictor = Predictor(Path(config.package))
    predictor.warm_up()
    limits = Limits(
        num_events=predictor.manifest.max_events, num_candidates=config.max_candidates, num_ids=config.max_ids
    )
    app = build_app(
        predictor,
        limits=limits,
        max_body_bytes=config.max_body_bytes,
        body_timeout_seconds=config.body_timeout_seconds,
    )
    with _listen(config.host, config.port) as listener:
        host, port = listener.getsockname()[:2]
        say(
            f"serving package {predictor.manifest.digest[:12]} of run {predictor.manifest.lineage.run!r} at http://{host}:{port}"
        )
        _run(app, listener, config.shutdown_seconds)
    say("stopped")


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=1024)
    except OSError as error:
        raise MachineError(
            f"cannot listen on {host}:{port}: {error.strerror}: choose another serve.port or serve.host"
        ) from error


def _run(app: object, listener: socket.socket, shutdown_seconds: float) -> None:
    """Runs until a stop signal. uvicorn raises the signal again when it has drained: by then it is done with."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    settings = uvicorn.Config(
        app,  # type: ignore[arg-type]
        log_config=None,
        access_log=False,
        lifespan="off",
        server_header=False,
        timeout_graceful_shutdown=max(1, round(shutdown_seconds)),
    )
    uvicorn.Server(settings).run(sockets=[listener])
