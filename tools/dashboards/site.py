"""The page in this process, for tests and pictures: as `stack dashboard` serves it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from stack.base.listen import address_of, bound
from stack.dashboard.app import build_app
from stack.dashboard.prometheus import Prometheus


@contextmanager
def served(prometheus: str, *, scrape_seconds: float = 15.0) -> Iterator[str]:
    """Its address."""
    asked = Prometheus(address=prometheus, timeout_seconds=30.0, max_answer_bytes=16 << 20)
    app = build_app(asked, scrape_seconds=scrape_seconds, hosts=("127.0.0.1",))
    with bound("127.0.0.1", 0, option="") as listener:
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="off", timeout_graceful_shutdown=1))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        listener.listen()
        thread.start()
        try:
            yield address_of(listener)
        finally:
            server.should_exit = True
            thread.join()
