"""Servers that are no Prometheus, or one that goes wrong."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PIECE = b'{"status":"success","data":"' + b"x" * 1_000


class _Odd(BaseHTTPRequestHandler):
    """The first part of the path says how it answers; what it was asked is kept."""

    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        way = self.path.split("/")[1]
        if way == "moved":
            self.send_response(302)
            self.send_header("location", "http://127.0.0.1:9/elsewhere")
            self.end_headers()
            return
        self.send_response(200)
        self.send_header("content-type", "text/html" if way == "page" else "application/json")
        self.end_headers()
        for _ in range({"large": 40, "slow": 60}.get(way, 1)):
            try:
                self.wfile.write({"large": PIECE, "slow": PIECE[:10]}.get(way, b'{"status":"success"}'))
            except OSError:
                return
            time.sleep(0.05 if way == "slow" else 0)

    def log_message(self, format: str, *arguments: object) -> None:
        return


@contextmanager
def odd_server() -> Iterator[tuple[str, list[str]]]:
    """Its address, and the paths that it has been asked for."""
    asked: list[str] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Odd", (_Odd,), {"asked": asked}))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
