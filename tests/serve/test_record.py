"""Requests recorded with their answers: which, how many, readable by whom, and what goes wrong."""

from __future__ import annotations

import os
import stat
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import pytest

from stack.base.errors import ConfigError, DataError
from stack.export.package import read_manifest
from stack.export.skew_log import Line, encode_line, read_log
from stack.serve.client import ask, running_server
from stack.serve.config import ServeConfig
from stack.serve.record import Recorder, make_record_folder
from stack.serve.request import Limits
from stack.serve.service import Served, Service
from tests.serve.in_process import CANDIDATES, USER, predictor_of


@pytest.fixture
def counted() -> Counter[str]:
    return Counter()


def served_of(package: Path) -> Served:
    limits = Limits(num_events=0, num_candidates=5, num_ids=3)
    return Service(kept=None, limits=limits).make(1, predictor_of(package))  # type: ignore[arg-type]


def recorder(folder: Path, counted: Counter[str], **options: Any) -> Recorder:
    options = {"share": 1.0, "max_bytes": 1 << 20, "clock": lambda: 7.5} | options
    return Recorder(folder, count=lambda result: counted.update([result]), **options)


def test_a_running_server_records_what_it_answered_for_its_owner_alone(package: Path, tmp_path: Path) -> None:
    folder = tmp_path / "log"
    options = [f"serve.record={folder}", "serve.record_share=1", "serve.workers=1", "serve.cache=none"]
    with running_server(package, options=options) as server:
        scores = ask(server.address, "/v1/items:score", {"user": "anna", **USER, **CANDIDATES})
        vector = ask(server.address, "/v1/users:embed", USER)
        with pytest.raises(Exception, match="candidates"):
            ask(server.address, "/v1/items:score", {**USER, "group": "impression", "candidates": {}})
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    (file,) = folder.iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    first, second = read_log(folder)
    assert first is not None
    assert second is not None
    assert (first.route, second.route) == ("/v1/items:score", "/v1/users:embed"), "what was refused is not recorded"
    assert (first.package, first.num_deltas) == (read_manifest(package).digest, 0)
    assert (first.body.user, first.body.now, first.body.events) == ("anna", USER["now"], USER["events"])
    assert first.body.candidates == CANDIDATES["candidates"]
    assert first.answer.scores == scores["scores"]
    assert second.answer.vector == vector["vector"]


def test_a_share_of_two_routes_is_recorded(package: Path, tmp_path: Path, counted: Counter[str]) -> None:
    draws = iter([0.05, 0.1, 0.099, 0.5])
    some = recorder(tmp_path, counted, share=0.1, draw=lambda: next(draws))
    for _ in range(4):
        some.offer("/v1/items:score", served_of(package), b"{}", b"{}")
    some.offer("/v1/users:retrieve", served_of(package), b"{}", b"{}")
    some.close()
    assert counted == {"written": 2}
    assert len(list(read_log(tmp_path))) == 2


def test_all_files_of_the_folder_together_have_a_limit(package: Path, tmp_path: Path, counted: Counter[str]) -> None:
    served = served_of(package)
    line = len(encode_line(Line(at=7.5, route="/v1/items:score", package=served.package, num_deltas=0,
                                body=msgspec.Raw(b'{"now":\n1}'), answer=msgspec.Raw(b"{}"))))  # fmt: skip
    first, second = (recorder(tmp_path, counted, max_bytes=3 * line) for _ in range(2))
    for one in (first, second, first, second, first):
        one.offer("/v1/items:score", served, b'{"now":\n1}', b"{}")
    assert counted == {"written": 3, "full": 2}
    assert [one.body.now for one in read_log(tmp_path) if one is not None] == [1, 1, 1], "a line is a line"
    for one in (first, second):
        one.close()


def test_what_cannot_be_written_is_counted_and_fails_no_request(
    package: Path, tmp_path: Path, counted: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    some, served, write = recorder(tmp_path, counted), served_of(package), os.write
    monkeypatch.setattr(os, "write", lambda file, line: write(file, line[:20]))
    some.offer("/v1/items:score", served, b"{}", b"{}")
    monkeypatch.setattr(os, "write", write)
    some.offer("/v1/items:score", served, b"{}", b"{}")
    some.close()
    some.offer("/v1/items:score", served, b"{}", b"{}")
    assert counted == {"failed": 2, "written": 1}
    half, whole = read_log(tmp_path)
    assert half is None, "half a line takes no other with it"
    assert whole is not None


def test_folders_that_cannot_be_written_or_read_are_one_line(tmp_path: Path, counted: Counter[str]) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="serve.record=.*file cannot be written"):
        make_record_folder(str(tmp_path / "file"))
    with pytest.raises(ConfigError, match="serve.record=.*none cannot be written"):
        recorder(tmp_path / "none", counted)
    with pytest.raises(DataError, match="has no recorded requests .*start `stack serve` with serve.record="):
        list(read_log(tmp_path / "none"))
    with pytest.raises(ConfigError, match=r"serve.record_share=1.5 must be a share, from 0 to 1"):
        ServeConfig(record_share=1.5)
