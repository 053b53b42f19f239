"""The verbs train, export and serve one after the other, asked by the client of the demo."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from stack.__main__ import main
from stack.data.dataset import Dataset
from stack.export.package import read_manifest
from stack.export.requests import held_out_requests
from stack.serve.client import RefusedError, ask, running_server
from tests.prepared import write_prepared


@pytest.mark.slow
def test_a_trained_run_is_exported_served_and_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = Dataset(write_prepared(tmp_path / "prepared", num_days=2, num_users=24))
    run = [f"run.dir={tmp_path}", "run.name=small"]
    data = ["data=events", f"data.out={dataset.path}", "data.path=none", f"train.to_day={dataset.days()[0]}"]
    assert main(["train", *data, *run, "train.num_threads=1", "model.attention=both", "model.num_states=16"]) == 0
    assert main(["export", *run, "export.tolerance=1e-5", "export.parity_timelines=8"]) == 0
    assert "largest difference from the trained model" in capsys.readouterr().out
    assert main(["export", *run]) == 2
    assert capsys.readouterr().err == (
        f"stack: {tmp_path}/small/package exists: packages are not changed; "
        "set export.overwrite=true to replace it whole\n"
    )
    package = tmp_path / "small" / "package"
    manifest = read_manifest(package)
    assert (manifest.lineage.run, manifest.lineage.last_day) == ("small", dataset.days()[0])
    body = next(held_out_requests(dataset, manifest.schema, day=dataset.days()[1], group="impression", max_events=100))
    user = {name: body[name] for name in ("now", "events", "profile", "query")}
    with running_server(package, options=["serve.workers=1"]) as server:
        address = server.address
        answer = ask(address, "/v1/users:embed", user)
        scores = ask(address, "/v1/items:score", body)
        with pytest.raises(RefusedError, match=r"items:score answered 422: this package attends by candidate"):
            ask(
                address, "/v1/items:score", {"vector": answer["vector"]} | {n: body[n] for n in ("group", "candidates")}
            )
    assert len(answer["vector"]) == manifest.vector_dim
    np.testing.assert_allclose(sum(answer["tasks"]["power"]), 1, rtol=1e-5)
    assert set(answer["tasks"]["rank_weights"]) == {"item_count", "user_item_count", "price"}
    assert {name: len(column) for name, column in scores["scores"].items()} == {"ctr": 5, "rank": 5}
    assert scores["unknown"] == {}
    assert main(["serve", f"serve.package={tmp_path}/none"]) == 2
    assert capsys.readouterr().err.startswith(
        f"stack: no package at {tmp_path}/none: write one with: stack export run.name="
    )
