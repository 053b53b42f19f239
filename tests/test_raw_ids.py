"""A log whose ids get no vocabulary, by the verbs: ingest, a refusal, train, evaluate, export; and a served answer."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from stack.__main__ import main
from stack.evaluate.report import read
from tests.export.recorded import Asked

NUM_DAYS = 4
START = 1_488_326_400
"""2017-03-01, as epoch seconds."""
IDS = [
    "ids.modes.item=managed", "ids.rows.item=30", "ids.modes.brand=hashed", "ids.rows.brand=8",
    "ids.modes.tags=hashed", "ids.rows.tags=8", "ids.modes.shop=hashed", "ids.rows.shop=8", "ids.hash=double",
    "ids.managed.admit_after=1",
]  # fmt: skip


def item(number: int) -> int:
    """Of either sign and beyond 32 bits."""
    return (2**40 + 977 * number) * (-1) ** number


def write_log(path: Path) -> Path:
    rng = random.Random(0)
    lines = ["user,item,time,type,shop,brand,tags"]
    for day in range(NUM_DAYS):
        for _ in range(60):
            number = rng.randrange(25)
            time = START + day * 86_400 + rng.randrange(80_000)
            kind = rng.choice(["view", "buy"])
            side = f"{number % 4 + 1},b{number % 5},t{number % 3}|t{number % 7}"
            lines.append(f"u{rng.randrange(12)},{item(number)},{time},{kind},{side}")
    lines.append(f"u1,0,{START},buy,1,b1,t1")
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.slow
def test_raw_ids_from_the_log_to_the_server(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log, out = write_log(tmp_path / "log.csv"), tmp_path / "prepared"
    data = ["data=events", f"data.path={log}", f"data.out={out}", "data.positive_types=[buy]"]
    data += [f"data.columns.{name}={name}" for name in ("type", "shop", "brand", "tags")]
    run = [f"run.dir={tmp_path}", "run.name=raw"]
    assert main(["ingest", *data, "ingest.raw_ids=[item,shop,brand,tags]", "ingest.num_threads=1"]) == 0
    shown = capsys.readouterr().out
    assert "dropped: bad_item" in shown, "the id 0 is the unknown one"
    assert sorted(path.name for path in (out / "vocab").iterdir()) == ["type", "user"]

    train = [*data, *run, "train.to_day=2017-03-03", "train.max_steps=2", "train.batch_size=64", "train.num_threads=1"]
    for verb in ("train", "plan"):
        assert main([verb, *train]) == 2
        assert "has no vocabulary (ingest.raw_ids), so its ids cannot be direct: set" in capsys.readouterr().err
    assert main(["train", *train, "model.num_states=16", *IDS]) == 0, capsys.readouterr().err
    assert (
        main(["evaluate", *run, "evaluate.num_replicates=20", "evaluate.baselines=false", "evaluate.plots=false"]) == 0
    )
    scorers = {score.name for score in read(tmp_path / "raw" / "report.json").tasks[0].sets[0].scores}
    assert {"model", "popularity", "own frequency"} <= scorers
    options = ["export.tolerance=1e-5", "export.parity_timelines=8", "export.row_type=fp32"]
    assert main(["export", *run, *options]) == 0, capsys.readouterr().err

    asked = Asked(tmp_path / "raw" / "package")
    seen = {"time": [START, START + 5], "item": [item(3), item(4)], "brand": ["b3", None], "tags": [["t0", "t3"], []]}
    candidates = {"item": [item(1), item(2), 5], "shop": [2, 3, 2], "tags": [["t1"], ["t2"], ["t1"]]}
    body = {"now": START + 9, "events": seen, "group": "impression", "candidates": candidates}
    _, scores, unknown = asked.score(body)
    assert unknown == {"candidates.item": 1}, "of the items one was never seen; hashes know all"
    assert len(set(scores["ctr"])) == 3  # type: ignore[arg-type]
    recorded = asked.assert_answers_as_recorded()
    assert recorded
    assert all("tags" not in one.body["candidates"] for one in recorded), "texts cannot be told from their hashes"  # type: ignore[operator]
