"""Where Prometheus finds a process: files that are whole, that go with it, and stay where it failed."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from urllib.request import urlopen

import pytest
from prometheus_client import CollectorRegistry, Counter, Histogram

from stack.base.errors import ConfigError
from stack.telemetry.config import TelemetryConfig
from stack.telemetry.exporter import Target, exported, findable
from stack.telemetry.metrics import TrainMetrics
from stack.telemetry.mishaps import Mishaps, uncounted


def _target(folder: Path, *, rank: int = 0) -> Target:
    return Target(folder=folder / "targets", run="demo", role="train", number=rank)


def _counted() -> tuple[CollectorRegistry, Mishaps]:
    registry = CollectorRegistry()
    return registry, Mishaps(TrainMetrics(registry).errors)


def _count(registry: CollectorRegistry, part: str) -> float | None:
    return registry.get_sample_value("stack_telemetry_errors_total", {"part": part})


def test_the_file_says_where_and_who_and_is_gone_afterwards(tmp_path: Path) -> None:
    target = _target(tmp_path, rank=3)
    with findable(target, "10.0.0.7", 9104, mishaps=uncounted()):
        assert json.loads((tmp_path / "targets" / "demo.train.3.json").read_text()) == [
            {"targets": ["10.0.0.7:9104"], "labels": {"run": "demo", "role": "train", "rank": "3"}}
        ]
        assert [path.name for path in target.folder.iterdir()] == ["demo.train.3.json"]
    assert list(target.folder.iterdir()) == []


def test_a_server_has_no_rank_and_an_address_of_ipv6_has_brackets(tmp_path: Path) -> None:
    target = Target(folder=tmp_path, run="demo", role="serve", number=8001)
    target.write("::1", 8001)
    assert json.loads((tmp_path / "demo.serve.8001.json").read_text()) == [
        {"targets": ["[::1]:8001"], "labels": {"run": "demo", "role": "serve"}}
    ]


def test_the_file_stays_where_the_process_fails_and_goes_where_its_end_was_meant(tmp_path: Path) -> None:
    target = _target(tmp_path)
    with pytest.raises(RuntimeError), findable(target, "127.0.0.1", 1, mishaps=uncounted()):
        raise RuntimeError
    assert target.path.is_file()
    with pytest.raises(SystemExit), findable(target, "127.0.0.1", 1, mishaps=uncounted()):
        raise SystemExit(143)
    assert not target.path.exists()


def test_a_registry_and_the_process_are_shown_on_the_address_alone(tmp_path: Path) -> None:
    registry, mishaps = _counted()
    Counter("stack_things_total", "Things.", registry=registry).inc(3)
    Histogram("stack_thing_seconds", "Of a thing.", registry=registry).observe(0.2)
    target = _target(tmp_path)
    with exported(registry, target, address="127.0.0.1", port=0, world_size=1, mishaps=mishaps):
        (address,) = json.loads(target.path.read_text())[0]["targets"]
        with urlopen(f"http://{address}/metrics") as answer:
            text = answer.read().decode()
        with urlopen(f"http://{address}/metrics?name[]=stack_things_total") as answer:
            assert [line for line in answer.read().decode().splitlines() if line[0] != "#"] == [
                "stack_things_total 3.0"
            ]
    assert {"stack_things_total 3.0", "stack_thing_seconds_count 1.0"} <= set(text.splitlines())
    assert "process_cpu_seconds_total" in text
    assert "_created" not in text
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", int(address.split(":")[1])))


def test_a_port_that_is_taken_is_counted_and_said_once_and_another_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = _target(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        registry, mishaps = _counted()
        with exported(registry, target, address="127.0.0.1", port=port, world_size=1, mishaps=mishaps):
            (address,) = json.loads(target.path.read_text())[0]["targets"]
    found = int(address.split(":")[1])
    assert found != port
    assert _count(registry, "exporter") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"telemetry, exporter: port {port} of 127.0.0.1 cannot be had (")
    assert line.endswith(f"Address already in use): it is {found}")


def test_without_any_port_the_block_is_done_all_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    registry, mishaps = _counted()
    done = False
    with exported(registry, _target(tmp_path), address="192.0.2.1", port=9101, world_size=1, mishaps=mishaps):
        done = True
    assert done
    assert _count(registry, "exporter") == 1
    assert "Cannot assign requested address" in capsys.readouterr().err
    assert not (tmp_path / "targets").exists()


def test_a_folder_that_cannot_be_written_is_counted_and_said_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "targets").write_text("a file")
    registry, mishaps = _counted()
    with exported(registry, _target(tmp_path), address="127.0.0.1", port=0, world_size=1, mishaps=mishaps):
        pass
    assert _count(registry, "targets") == 2  # when it began, and when it ended
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"telemetry, targets: File exists ({tmp_path}/targets): going on without"


@pytest.mark.parametrize("address", ["0.0.0.0", "::", ""])
def test_all_addresses_are_none_to_tell_prometheus(address: str) -> None:
    with pytest.raises(
        ConfigError, match="is no address that Prometheus can be told: give the one by which it reaches"
    ):
        TelemetryConfig(address=address)


def test_folders_are_beside_the_runs_unless_they_are_given(tmp_path: Path) -> None:
    assert TelemetryConfig().targets_folder("runs") == Path("runs/targets")
    assert TelemetryConfig().textfile_folder("runs") == Path("runs/textfile")
    given = TelemetryConfig(targets=str(tmp_path / "a"), textfile=str(tmp_path / "b"))
    assert (given.targets_folder("runs"), given.textfile_folder("runs")) == (tmp_path / "a", tmp_path / "b")


@pytest.mark.parametrize(("name", "value"), [("port", 65_536), ("port", -1), ("window_steps", 0)])
def test_options_out_of_range_are_refused(name: str, value: int) -> None:
    with pytest.raises(ConfigError, match=rf"telemetry\.{name}={value} must be"):
        TelemetryConfig(**{name: value})
