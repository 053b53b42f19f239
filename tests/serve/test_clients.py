"""Clients that other people wrote, from an environment of their own, ask a real server."""

from __future__ import annotations

import json
import os
import re
import subprocess
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx
import pytest

from stack.serve.client import running_server
from tests.serve.in_process import CANDIDATES, USER

ROOT = Path(__file__).parents[2]
CLIENTS = ROOT / ".venv" / "clients" / "bin"
HERE = Path(__file__).parent
SEED = 20_261_128
MIN_CASES = 2_000


@pytest.fixture(scope="module")
def address(package: Path) -> Iterator[str]:
    with running_server(package, options=["serve.workers=1"]) as running:
        yield running.address
        metrics = httpx.get(f"{running.admin}/metrics", trust_env=False).text
    assert "\nstack_serve_worker_restarts_total 0.0\n" in metrics


def run(command: Sequence[str], folder: Path) -> str:
    """What a program of the clients' environment says; its failure is the test's."""
    assert CLIENTS.is_dir(), f"{CLIENTS} is not there: make environment"
    outside = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    done = subprocess.run(
        [str(CLIENTS / command[0]), *command[1:]], cwd=folder, env=outside, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout[-6_000:] + done.stderr[-3_000:]
    return done.stdout


def test_tritonclient_reads_what_is_told_infers_in_json_and_binary_and_sees_errors(
    address: str, tmp_path: Path
) -> None:
    bodies = [json.dumps(USER), json.dumps(CANDIDATES)]
    assert run(["python", str(HERE / "triton_client.py"), address, *bodies], tmp_path) == "all as it should be\n"


def test_the_lines_for_curl_in_the_documentation_are_answered(address: str, tmp_path: Path) -> None:
    text = (ROOT / "docs" / "serving_protocol.md").read_text()
    blocks = re.findall(r"(?:^    .*\n)+", text, flags=re.MULTILINE)
    assert len(blocks) == 4
    script = textwrap.dedent("".join(blocks)).replace("http://127.0.0.1:8000", address)
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script.replace("curl ", "curl --noproxy '*' -w '\\n' ")],
        cwd=tmp_path, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    ready, users, score, embedded, scored, binary = (json.loads(line) for line in done.stdout.splitlines())
    assert ready == {"live": True, "ready": True}
    assert (users["name"], score["name"], score["versions"]) == ("users", "score_impression", ["1"])
    assert (embedded["id"], embedded["outputs"][0]["shape"]) == ("42", [2, 2])
    assert len(scored["outputs"][0]["data"]) == 3
    vector = next(one["data"] for one in binary["outputs"] if one["name"] == "vector")
    body = {"now": 1_700_000_000, "events": {"time": [1_699_990_000], "item": [900], "type": ["buy"]}}
    assert httpx.post(f"{address}/v1/users:embed", json=body, trust_env=False).json()["vector"] == vector


@pytest.mark.slow
def test_a_fuzzer_finds_no_status_and_no_answer_that_openapi_json_does_not_describe(
    address: str, tmp_path: Path
) -> None:
    said = run(
        [
            "schemathesis", "--config-file", str(HERE / "schemathesis.toml"), "--no-color", "run",
            f"{address}/openapi.json", "--checks", "all", "--seed", str(SEED), "--max-examples", "30",
            "--generation-database", "none", "--continue-on-failure",
        ],
        tmp_path,
    )  # fmt: skip
    cases = re.search(r"(\d+) generated, (\d+) passed", said)
    assert cases is not None, said[-3_000:]
    assert cases[1] == cases[2]
    assert int(cases[1]) >= MIN_CASES
    assert re.search(r"Selected: (\d+)/\1\n  Tested: \1\n", said), said[-3_000:]
