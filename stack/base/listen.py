"""Addresses that servers listen on."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

from stack.base.errors import MachineError


@contextmanager
def bound(host: str, port: int, *, option: str) -> Iterator[socket.socket]:
    """A socket that has the address and does not listen yet: until it can be answered, connections are refused.

    `option` is what the options of host and port begin with (`serve.admin_`).

    Raises: `MachineError` where the address cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise MachineError(
            f"cannot listen on {host}:{port}: {error.strerror}: choose another {option}port or {option}host"
        ) from error
    with listener:
        yield listener


def address_of(listener: socket.socket) -> str:
    """As one types it into a browser."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
