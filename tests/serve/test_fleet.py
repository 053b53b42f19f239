"""A running server is given other packages and newer rows, and keeps answering whatever happens to it."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import msgspec
import numpy as np
import psutil
import pytest

from stack.export.package import REQUESTS, read_manifest
from stack.export.quantize import RowType
from stack.export.sealed import MANIFEST, describe_files, write_sealed
from stack.export.sign import Algorithm, make_keys, sign, write_signature
from stack.serve.client import RefusedError, Running, ask, running_server
from tests.clocks import wait_for
from tests.export.toy import VECTORS, write_toy_delta, write_toy_package

EMBED = "/v1/users:embed"
USER = {"now": 100, "events": {"time": [1], "item": [900]}}
OTHER = VECTORS | {"item": [[0, 0], [100, 200], [3, 4], [5, 6]]}
FIRST, SECOND = [1 + 0.5 + 1, 2 + 0.5 + 1], [100 + 0.5 + 1, 200 + 0.5 + 1]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Packages a and b, which answer differently, and deltas of a."""
    root = tmp_path_factory.mktemp("packages")
    write_toy_package(root / "a")
    write_toy_package(root / "b", vectors=OTHER)
    write_toy_delta(root / "a2", root / "a", {900: [7, 8], 31: [1, 1]}, from_version=1)
    write_toy_delta(root / "a3", root / "a", {900: [9, 9]}, from_version=2, gone=(-7,))
    write_toy_delta(root / "b2", root / "b", {900: [7, 8]}, from_version=1)
    return root


@pytest.fixture
def root(made: Path, tmp_path: Path) -> Path:
    """The same, to be changed."""
    shutil.copytree(made, tmp_path / "packages")
    return tmp_path / "packages"


@pytest.fixture
def server(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # one that is killed leaves its folder
    with running_server(root / "a", options=["serve.workers=2", "serve.max_deltas=1"]) as running:
        yield running


@pytest.fixture(scope="module")
def steady_root(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("steady") / "packages"
    shutil.copytree(made, root)
    return root


@pytest.fixture(scope="module")
def steady(steady_root: Path) -> Iterator[Running]:
    """For what must change nothing: one server for all of it."""
    with running_server(steady_root / "a", options=["serve.workers=1"]) as running:
        yield running


def metrics_of(server: Running) -> str:
    return httpx.get(f"{server.admin}/metrics", trust_env=False).text


def num_rejected(server: Running, kind: str) -> float:
    name = f'stack_serve_swaps_total{{kind="{kind}",result="rejected"}} '
    lines = metrics_of(server).splitlines()
    return sum(float(line.removeprefix(name)) for line in lines if line.startswith(name))


def vector(server: Running, user: dict[str, object] | None = None, *, version: str = "stable") -> list[float]:
    response = httpx.post(
        server.address + EMBED, json=user or USER, headers={"x-stack-version": version}, trust_env=False
    )
    assert response.status_code == 200, response.text
    found: list[float] = response.json()["vector"]
    return found


def workers(server: Running) -> list[psutil.Process]:
    return psutil.Process(server.process.pid).children()


def num_alive(server: Running) -> int:
    """Workers that answer, as the server says."""
    response = httpx.get(f"{server.admin}/healthz", trust_env=False)
    if response.status_code == 503:
        assert response.json() == {"error": "no worker answers: see the server's log"}
        return 0
    found: int = response.json()["workers"]
    return found


class Asking:
    """Asks all the time, over connections that stay open, and keeps what went wrong. Begun once it was answered."""

    def __init__(self, server: Running, num_threads: int = 3) -> None:
        self._server = server
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(num_threads)]
        self.vectors: set[tuple[float, ...]] = set()
        self.failures: list[object] = []
        self.num_answers = 0

    def __enter__(self) -> Asking:
        for thread in self._threads:
            thread.start()
        wait_for(lambda: self.num_answers > 0 or bool(self.failures))
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        with httpx.Client(base_url=self._server.address, trust_env=False) as client:
            while not self._stop.is_set():
                try:
                    response = client.post(EMBED, json=USER)
                except httpx.TransportError as error:
                    self.failures.append(error)
                    continue
                if response.status_code == 200:
                    self.vectors.add(tuple(response.json()["vector"]))
                    self.num_answers += 1
                else:
                    self.failures.append(response.text)


def test_packages_are_swapped_under_load_and_no_request_notices(server: Running) -> None:
    with Asking(server) as asking:
        for number in range(2, 12):
            told = server.order("/admin/load", {"package": "ba"[number % 2]})
            assert told["stable"] == number
    assert asking.failures == []
    assert asking.num_answers > 30
    assert asking.vectors == {tuple(FIRST), tuple(SECOND)}
    assert [one["version"] for one in told["versions"]] == [9, 10, 11]


def test_going_back_is_one_call(server: Running) -> None:
    server.order("/admin/load", {"package": "b"})
    assert vector(server) == SECOND
    assert server.order("/admin/rollback", {})["stable"] == 1
    assert vector(server) == FIRST
    with pytest.raises(RefusedError, match="there is no earlier version to go back to"):
        server.order("/admin/rollback", {})
    assert server.order("/admin/labels", {"stable": 2})["stable"] == 2
    assert vector(server) == SECOND


def test_a_canary_answers_its_share(server: Running) -> None:
    told = server.order("/admin/load", {"package": "b", "canary_share": 0.5})
    assert (told["stable"], told["canary"], told["canary_share"]) == (1, 2, 0.5)
    found = []
    with httpx.Client(base_url=server.address, trust_env=False) as client:
        found = [client.post(EMBED, json=USER).json()["vector"] for _ in range(200)]
    assert 50 < found.count(SECOND) < 150
    assert found.count(FIRST) + found.count(SECOND) == 200
    assert vector(server, version="canary") == SECOND
    assert vector(server, version="stable") == FIRST
    with pytest.raises(RefusedError, match="version 2 answers requests: give its label to another version first"):
        server.order("/admin/drop", {"version": 2})
    server.order("/admin/labels", {"stable": 2})
    assert server.order("/admin/drop", {"version": 1})["versions"][0]["version"] == 2
    text = metrics_of(server)
    assert 'stack_serve_swaps_total{kind="package",result="accepted"} 1.0' in text
    assert 'stack_serve_data_timestamp_seconds{label="canary"}' not in text
    assert 'stack_serve_version{label="stable"} 2.0' in text


def test_going_back_takes_a_canary_away(server: Running) -> None:
    server.order("/admin/load", {"package": "b"})
    assert server.order("/admin/load", {"package": "a", "canary_share": 1.0})["canary"] == 3
    assert ask(server.address, EMBED, USER)["version"] == 3
    told = server.order("/admin/rollback", {})
    assert (told["stable"], told["canary"], told["canary_share"]) == (1, None, 0.0)
    assert ask(server.address, EMBED, USER)["version"] == 1
    response = httpx.post(server.address + EMBED, json=USER, headers={"x-stack-version": "canary"}, trust_env=False)
    assert response.status_code == 404
    assert "stack_serve_canary_share 0.0" in metrics_of(server)


def test_rows_of_later_days_are_served_while_it_answers_and_merged_behind(server: Running) -> None:
    unknown = USER | {"events": {"time": [1], "item": [31]}}
    assert vector(server, unknown) == [0.5 + 1, 0.5 + 1]
    with Asking(server) as asking:
        told = server.order("/admin/deltas", {"delta": "a2"})
        assert told["versions"][0]["last_day"] == "2020-01-03"
        assert vector(server) == [7 + 0.5 + 1, 8 + 0.5 + 1]
        assert vector(server, unknown) == [1 + 0.5 + 1, 1 + 0.5 + 1]
        server.order("/admin/deltas", {"delta": "a3"})
        assert vector(server) == [9 + 0.5 + 1, 9 + 0.5 + 1]
        wait_for(lambda: len(server.order("/admin/versions")["versions"][0]["deltas"]) == 1)
    (name,) = server.order("/admin/versions")["versions"][0]["deltas"]
    assert name.startswith("merged-1-")
    assert vector(server) == [9 + 0.5 + 1, 9 + 0.5 + 1]
    assert vector(server, unknown) == [1 + 0.5 + 1, 1 + 0.5 + 1]
    assert vector(server, USER | {"events": {"time": [1], "item": [-7]}}) == [0.5 + 1, 0.5 + 1]
    assert asking.failures == []
    assert tuple(FIRST) in asking.vectors
    assert asking.vectors <= {tuple(FIRST), (8.5, 9.5), (10.5, 10.5)}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a3", "delta 'a3' begins at version 2, and what is below it is version 1: apply the deltas in their order"),
        ("b2", "delta 'b2' is of package .*, not of .*: export one with export.delta_of"),
        ("b", "manifest.json is not of its kind"),
        ("none", "no delta at .*none: write one with: stack export export.delta_of="),
        ("../a", "delta '../a' cannot be a package's name"),
    ],
)
def test_deltas_that_do_not_fit_are_refused_and_nothing_changes(steady: Running, name: str, text: str) -> None:
    before = num_rejected(steady, "rows")
    with pytest.raises(RefusedError, match=text):
        steady.order("/admin/deltas", {"delta": name})
    assert vector(steady) == FIRST
    assert steady.order("/admin/versions")["versions"][0]["deltas"] == []
    assert num_rejected(steady, "rows") == before + 1


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def resealed(folder: Path) -> None:
    """What another package recorded, in one whose digests agree: it answers other than it recorded."""
    shutil.copyfile(folder.parent / "a" / REQUESTS, folder / REQUESTS)
    files = {name: file for name, file in describe_files(folder).items() if name != MANIFEST}
    write_sealed(folder, msgspec.structs.replace(read_manifest(folder), files=files))


def as_delta(folder: Path) -> None:
    shutil.rmtree(folder)
    shutil.copytree(folder.parent / "a2", folder)


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (lambda folder: flip(folder / "graphs" / "user_half.onnx"), "'graphs/user_half.onnx' is damaged"),
        (lambda folder: flip(folder / "rows" / "item" / "rows.npy"), "'rows/item/rows.npy' is damaged"),
        (lambda folder: (folder / MANIFEST).unlink(), "it has no manifest.json"),
        (lambda folder: (folder / "graphs" / "user_half.onnx").unlink(), "'graphs/user_half.onnx' is missing"),
        (lambda folder: (folder / "more").write_text("1"), "'more' is not listed in manifest.json"),
        (lambda folder: folder.chmod(0o775), "chmod"),
        (lambda folder: (folder / "link").symlink_to("/etc/passwd"), "link"),
        (resealed, "answers a recorded request with another vector"),
        (as_delta, "is a row delta, not a package: lay it over one with /admin/deltas"),
    ],
)
def test_a_package_that_is_not_right_is_refused_by_name_and_the_old_one_answers_on(
    steady: Running, steady_root: Path, damage: Callable[[Path], object], text: str
) -> None:
    name = f"b{len(list(steady_root.iterdir()))}"
    shutil.copytree(steady_root / "b", steady_root / name)
    damage(steady_root / name)
    before = num_rejected(steady, "package")
    with pytest.raises(RefusedError, match=text):
        steady.order("/admin/load", {"package": name})
    assert vector(steady) == FIRST
    told = steady.order("/admin/versions")
    assert (told["stable"], len(told["versions"])) == (1, 1)
    assert num_rejected(steady, "package") == before + 1


@pytest.mark.parametrize("name", ["../a", "/etc", "a/../b", ".", "..", "", ".a", "-a", "x" * 65, "a\0", "ä"])
def test_names_that_could_lead_elsewhere_are_refused(steady: Running, name: str) -> None:
    with pytest.raises(RefusedError, match=r"cannot be a package's name|Expected `str` of length <= 64"):
        steady.order("/admin/load", {"package": name})
    assert vector(steady) == FIRST


def test_a_killed_worker_takes_nothing_with_it_but_what_it_had_and_comes_back_warm(server: Running) -> None:
    server.order("/admin/load", {"package": "b"})
    server.order("/admin/load", {"package": "a"})
    server.order("/admin/deltas", {"delta": "a2"})
    victim, other = workers(server)
    with Asking(server, num_threads=4) as asking:
        time.sleep(0.3)
        supervisor = psutil.Process(server.process.pid)
        supervisor.suspend()  # so that nobody is in the victim's place before the other has answered
        victim.send_signal(signal.SIGKILL)
        before = asking.num_answers
        wait_for(lambda: asking.num_answers > before + 20)
        assert victim.status() == psutil.STATUS_ZOMBIE
        assert workers(server) == [victim, other]
        supervisor.resume()
        wait_for(lambda: num_alive(server) == 2 and not victim.is_running())
        time.sleep(0.3)
    assert all(isinstance(one, httpx.TransportError) for one in asking.failures)
    assert len(asking.failures) <= 4
    assert asking.vectors == {(8.5, 9.5)}
    other.send_signal(signal.SIGKILL)
    wait_for(lambda: num_alive(server) == 2 and not other.is_running())
    assert vector(server) == [8.5, 9.5]
    assert vector(server, version="2") == SECOND
    metrics = metrics_of(server)
    assert "stack_serve_worker_restarts_total 2.0" in metrics


def test_a_worker_that_comes_back_refuses_a_package_that_was_replaced_meanwhile(server: Running, root: Path) -> None:
    shutil.rmtree(root / "a")
    shutil.copytree(root / "b", root / "a")
    workers(server)[0].send_signal(signal.SIGKILL)
    wait_for(lambda: num_alive(server) == 1)
    time.sleep(2.0)
    assert num_alive(server) == 1
    assert vector(server) == FIRST
    told = server.order("/admin/load", {"package": "a"})
    assert vector(server) == SECOND
    assert len(told["versions"]) == 2
    wait_for(lambda: num_alive(server) == 2)
    assert [one["version"] for one in server.order("/admin/versions")["versions"]] == [2]


def test_a_stopped_server_answers_what_it_has_begun(server: Running) -> None:
    body, url = msgspec.json.encode(USER), httpx.URL(server.address)
    with socket.create_connection((url.host, url.port), timeout=20) as begun:
        head = b"POST /v1/users:embed HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body)
        begun.sendall(head + body[:5])
        wait_for(lambda: "stack_serve_in_flight_requests 1.0" in metrics_of(server))
        server.process.terminate()
        wait_for(lambda: refuses(url))
        begun.sendall(body[5:])
        assert begun.recv(65_536).startswith(b"HTTP/1.1 200")
    assert server.process.wait(20) == 0


def refuses(url: httpx.URL) -> bool:
    with socket.socket() as another:
        return another.connect_ex((url.host, url.port)) != 0


def test_a_stop_waits_for_no_worker_that_hangs(root: Path) -> None:
    with running_server(root / "a", options=["serve.workers=2", "serve.shutdown_seconds=1"]) as server:
        workers(server)[0].suspend()
        server.process.terminate()
        assert server.process.wait(10) == 0


def test_a_package_that_ends_every_worker_becomes_no_version(root: Path) -> None:
    with running_server(root / "a", options=["serve.workers=1"]) as server:
        (victim,) = workers(server)
        refused: list[str] = []

        def load() -> None:
            with pytest.raises(RefusedError) as told:
                server.order("/admin/load", {"package": "b"})
            refused.append(str(told.value))

        victim.suspend()  # so that it dies while it is told to load
        thread = threading.Thread(target=load)
        thread.start()
        time.sleep(1.0)
        victim.kill()
        thread.join(30)
        assert refused == ["/admin/load answered 422: no worker lived to do it: see the server's log"]
        wait_for(lambda: num_alive(server) == 1)
        assert vector(server) == FIRST
        assert [one["version"] for one in server.order("/admin/versions")["versions"]] == [1]


def test_workers_end_when_nobody_is_left_to_watch_them(server: Running) -> None:
    left = workers(server)
    server.process.kill()
    _, alive = psutil.wait_procs(left, timeout=20)
    assert alive == []


def test_admin_calls_need_the_token(steady: Running) -> None:
    for token in (None, "x" * 43, steady.token[:-1]):
        with pytest.raises(RefusedError, match="401: a bearer token is needed"):
            ask(steady.admin, "/admin/load", {"package": "b"}, token=token)
    with pytest.raises(RefusedError, match="canary_share 0.5 is of no version: give canary"):
        steady.order("/admin/labels", {"canary_share": 0.5})
    with pytest.raises(RefusedError, match="422: .*unknown field `url`"):
        steady.order("/admin/load", {"package": "b", "url": "http://example.com"})
    assert httpx.get(f"{steady.address}/admin/versions", trust_env=False).status_code == 404
    assert vector(steady) == FIRST


def test_where_keys_are_trusted_only_packages_they_signed_are_loaded(root: Path, tmp_path: Path) -> None:
    secret, public = make_keys(tmp_path / "keys", Algorithm.ed25519)
    stranger, _ = make_keys(tmp_path / "others", Algorithm.ed25519)
    write_signature(root / "a", sign((root / "a" / MANIFEST).read_bytes(), secret))
    with running_server(root / "a", options=["serve.workers=1", f"serve.trusted_keys=[{public}]"]) as server:
        with pytest.raises(RefusedError, match="is not signed"):
            server.order("/admin/load", {"package": "b"})
        with pytest.raises(RefusedError, match="is not signed"):
            server.order("/admin/deltas", {"delta": "a2"})
        write_signature(root / "a2", sign((root / "a2" / MANIFEST).read_bytes(), secret))
        (root / "a2").chmod(0o775)
        with pytest.raises(RefusedError, match="chmod"):
            server.order("/admin/deltas", {"delta": "a2"})
        (root / "a2").chmod(0o755)
        flip(root / "a2" / "rows" / "item" / "rows.npy")
        with pytest.raises(RefusedError, match="'rows/item/rows.npy' is damaged"):
            server.order("/admin/deltas", {"delta": "a2"})
        write_signature(root / "b", sign((root / "b" / MANIFEST).read_bytes(), stranger))
        with pytest.raises(RefusedError, match="signed with the key .*, which is not trusted"):
            server.order("/admin/load", {"package": "b"})
        write_signature(root / "b", sign((root / "b" / MANIFEST).read_bytes(), secret))
        server.order("/admin/load", {"package": "b"})
        assert vector(server) == SECOND


def test_int8_rows_are_served_within_their_rounding(tmp_path: Path) -> None:
    package = write_toy_package(tmp_path / "packages" / "a", row_type=RowType.int8)
    with running_server(package, options=["serve.workers=1"]) as server:
        np.testing.assert_allclose(vector(server), FIRST, atol=0.02)
    assert os.listdir(tmp_path / "packages") == ["a"]
