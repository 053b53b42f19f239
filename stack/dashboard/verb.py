"""`stack dashboard`: serves the page until it is told to stop (SIGINT, SIGTERM)."""

from __future__ import annotations

import ipaddress
import signal
from dataclasses import replace

import uvicorn

from stack.base.listen import address_of, bound
from stack.dashboard.app import build_app
from stack.dashboard.config import DashboardConfig
from stack.dashboard.prometheus import Prometheus, UnreachableError
from stack.telemetry.console import say

HELP = """stack dashboard [option=value ...]

A page over Prometheus: training, tables and ids, the daily chain, audits, serving; alerts that fire. It needs no
Grafana, and nothing from elsewhere. Prometheus is asked by this command, so browsers need not reach it.

  stack dashboard                                              Prometheus at http://127.0.0.1:9090, page at :8080
  stack dashboard dashboard.prometheus=http://monitor:9090     another one
  stack dashboard dashboard.port=0                             any free port; the line it says names it
  stack dashboard dashboard.scrape_seconds=15                  where Prometheus scrapes every 15 s

It listens on loopback and asks for no password. From another machine: ssh -L 8080:127.0.0.1:8080 <this one>, or a
proxy that knows who may look. The same panels for Grafana are in configs/dashboards/grafana; docs/dashboards.md tells
the rest.
"""
_LOOPBACK = ("localhost", "127.0.0.1", "::1", "[::1]")
_STOP_SECONDS = 1
_FIRST_SECONDS = 2.0


def dashboard(config: DashboardConfig) -> None:
    """Says the address, whether Prometheus answers, and returns after a stop signal.

    Raises: `MachineError` where the address is taken.
    """
    prometheus = Prometheus(
        address=config.prometheus.rstrip("/"),
        timeout_seconds=config.timeout_seconds,
        max_answer_bytes=config.max_answer_bytes,
    )
    with bound(config.host, config.port, option="dashboard.") as listener:
        app = build_app(prometheus, scrape_seconds=config.scrape_seconds, hosts=_hosts(config.host))
        server = uvicorn.Server(
            uvicorn.Config(
                app, log_config=None, access_log=False, lifespan="off", server_header=False,
                timeout_graceful_shutdown=_STOP_SECONDS,
            )
        )  # fmt: skip
        for number in (signal.SIGINT, signal.SIGTERM):  # uvicorn puts its own beside, and raises them again at its end
            signal.signal(number, lambda *_: setattr(server, "should_exit", True))
        listener.listen()
        say(f"dashboard at {address_of(listener)}, over Prometheus at {prometheus.address}")
        _say_if_silent(prometheus)
        server.run(sockets=[listener])
    say("stopped")


def _hosts(host: str) -> tuple[str, ...]:
    """On loopback, its names alone; elsewhere it is not known what names lead here."""
    try:
        loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = False
    return (*_LOOPBACK, host) if loopback else ("*",)


def _say_if_silent(prometheus: Prometheus) -> None:
    try:
        replace(prometheus, timeout_seconds=_FIRST_SECONDS).ask("alerts", [])
    except UnreachableError as error:
        say(f"{error}; the page goes on asking")
