"""`stack checkpoint` as it is typed."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stack.__main__ import main
from stack.checkpoint.chain import Chain, chain_of
from stack.checkpoint.compact import compact
from stack.checkpoint.config import CheckpointConfig as Options
from stack.checkpoint.load import open_version
from stack.checkpoint.manifest import Lineage
from stack.checkpoint.told import ranges, size
from stack.checkpoint.verb import EXAMPLES, checkpoint, split_words
from tests.checkpoint.chains import Toy, random_chain


@pytest.fixture
def chain(tmp_path: Path) -> Chain:
    return random_chain(tmp_path / "runs/toy/checkpoints", seed=3)[0]


@pytest.fixture
def run(chain: Chain, tmp_path: Path) -> list[str]:
    return [f"run.dir={tmp_path}/runs", "run.name=toy"]


def told(capsys: pytest.CaptureFixture[str], words: list[str], *, status: int = 0) -> str:
    assert main(["checkpoint", *words]) == status
    return capsys.readouterr().out


def data(capsys: pytest.CaptureFixture[str], words: list[str], *, status: int = 0) -> object:
    return json.loads(told(capsys, [*words, "--json"], status=status))


def test_help_teaches_with_examples_that_are_understood(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["checkpoint", "--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert EXAMPLES in shown
    verbs = ("list", "show", "verify", "restore", "compact", "prune", "diff")
    assert all(f"\n    {verb} " in shown for verb in verbs)
    for verb in verbs:
        with pytest.raises(SystemExit):
            main(["checkpoint", verb, "--help"])
        assert f"  stack checkpoint {verb}" in capsys.readouterr().out.partition("examples")[2]


def test_list_shows_every_version_with_its_marks(
    capsys: pytest.CaptureFixture[str], run: list[str], chain: Chain, tmp_path: Path
) -> None:
    compact(chain, chain.manifest(5))
    chain.store.publish("manifests/00000001.json", "pruned/00000001.json")
    rows = data(capsys, ["list", *run])
    assert isinstance(rows, list)
    assert [row["version"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert [row["day"] for row in rows] == [f"2017-11-{day:02d}" for day in range(1, 7)]
    assert [row["base"] for row in rows] == [chain.manifest(number).whole for number in range(1, 7)]
    assert [row["num_bytes"] for row in rows] == [chain.manifest(number).num_bytes for number in range(1, 7)]
    assert rows[0]["marks"] == ["pruned"]
    assert rows[5]["marks"] == ["newest"]
    assert rows[4]["marks"] == ([] if chain.manifest(5).whole else ["compacted"])
    path = tmp_path / "runs/toy/checkpoints/manifests/00000002.json"
    path.write_bytes(path.read_bytes()[:-3])
    shown = told(capsys, ["list", *run])
    assert "DAMAGED MANIFEST" in shown
    assert "finished" in shown
    assert "delta" in shown


def test_list_tells_what_took_the_place_of_what(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    chain = chain_of(tmp_path / "runs/toy/checkpoints", for_writing=True)
    toy = Toy(tables={"item": (9, 2)})
    first = toy.save(chain)
    toy.train()
    second = toy.save(chain, day="2017-11-02")
    toy.parent = first
    toy.train()
    toy.save(chain, day="2017-11-02", lineage=Lineage(verb="daily", day="2017-11-02", supersedes=second.link))
    run = [f"run.dir={tmp_path}/runs", "run.name=toy"]
    assert told(capsys, ["restore", "--version", "2", *run]).startswith("version 4 is version 2 again: ")
    rows = data(capsys, ["list", *run])
    assert isinstance(rows, list)
    assert [row["marks"] for row in rows] == [
        [], ["superseded by 3"], ["off the line"], ["newest", "is 2 again"],
    ]  # fmt: skip


def test_show_tells_facts_and_tables(capsys: pytest.CaptureFixture[str], run: list[str], chain: Chain) -> None:
    found = data(capsys, ["show", *run])
    assert isinstance(found, dict)
    assert found["row"]["version"] == 6
    assert found["digest"] == chain.manifest(6).digest
    assert [table["table"] for table in found["tables"]] == ["item", "shop", "user"]
    files = open_version(chain, chain.manifest(6)).files()
    assert found["restore_bytes"] == sum(entry.num_bytes for entry in files.values())
    shown = told(capsys, ["show", "--version", "2017-11-02", *run])
    assert shown.startswith("version 2")
    assert chain.manifest(2).digest in shown
    chain.store.publish("manifests/00000001.json", "pruned/00000001.json")
    assert "cannot be read any more" in told(capsys, ["show", "--version", "1", *run])


def test_show_prints_a_row_and_the_versions_that_wrote_it(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    run = [f"run.dir={tmp_path}/runs", "run.name=toy"]
    chain = chain_of(tmp_path / "runs/toy/checkpoints", for_writing=True)
    toy = Toy(tables={"item": (50, 3)}, managed={"user": (30, 2)})
    toy.train()
    toy.save(chain, day="2017-11-01")
    for day in (2, 3, 4):
        toy.touch("item", [7] if day != 3 else [8])
        toy.step += 1
        if day == 2:
            toy._see("user", [-77])
        if day == 4:
            toy.evict("user", len(toy.keys["user"]))
            toy._see("user", [5])
        toy.save(chain, day=f"2017-11-{day:02d}", world_size=2, blocks={"item": (1, 2)})
    (row,) = data(capsys, ["show", "--table", "item", "--id", "7", *run])  # type: ignore[misc]
    assert row["row"] == 7
    assert row["weights"] == toy.weight["item"][7].tolist()
    assert row["state"]["second"] == toy.state["item"]["second"][7].tolist()
    assert [(one["version"], one["did"]) for one in row["written"]] == [
        (4, "wrote"),
        (2, "wrote"),
        (1, "wrote all rows"),
    ]
    (row,) = data(capsys, ["show", "--table", "user", "--id", "-77", "--version", "3", *run])  # type: ignore[misc]
    assert (row["key"], row["count"], row["last"]) == (-77, 1, 2)
    assert [(one["version"], one["did"]) for one in row["written"]] == [(2, "wrote")]
    (row,) = data(capsys, ["show", "--table", "user", "--id", "-77", *run])  # type: ignore[misc]
    assert row["row"] is None
    assert [(one["version"], one["did"]) for one in row["written"]] == [(4, "evicted"), (2, "wrote")]
    assert "it has no row of its own" in told(capsys, ["show", "--table", "user", "--id", "-77", *run])
    shown = told(capsys, ["show", "--table", "item", "--id", "7", *run])
    assert "2017-11-04" in shown
    assert f"{toy.weight['item'][7][0]:.4g}" in shown


def test_a_raw_id_is_looked_up_in_the_vocabulary_of_the_data(
    capsys: pytest.CaptureFixture[str], run: list[str], tmp_path: Path
) -> None:
    folder = tmp_path / "prepared/vocab/item"
    folder.mkdir(parents=True)
    pq.write_table(pa.table({"raw": ["ab", "cd"], "row": [1, 2]}), folder / "2017-11-01.parquet")
    pq.write_table(pa.table({"raw": ["ef"], "row": [3]}), folder / "2017-11-02.parquet")
    words = ["show", "--table", "item", "--id", "ef", *run]
    (row,) = data(capsys, [*words, "--vocabulary", f"{tmp_path}/prepared"])  # type: ignore[misc]
    assert (row["key"], row["row"]) == (3, 3)
    assert main(["checkpoint", *words]) == 2
    assert "is no whole number: name the prepared dataset that has it with --vocabulary" in capsys.readouterr().err
    words[4] = "xy"
    assert main(["checkpoint", *words, "--vocabulary", f"{tmp_path}/prepared"]) == 2
    assert "does not know the id 'xy' of table 'item'" in capsys.readouterr().err


def test_verify_names_the_damage_and_exits_with_1(
    capsys: pytest.CaptureFixture[str], run: list[str], chain: Chain, tmp_path: Path
) -> None:
    assert "versions good: 1 to 6; last good version: 6" in told(capsys, ["verify", "--deep", *run])
    version = chain.manifest(6)
    path = tmp_path / "runs/toy/checkpoints/data" / version.data / "dense.safetensors"
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    shown = told(capsys, ["verify", *run], status=1)
    assert f"data/{version.data}/dense.safetensors" in shown
    assert "versions good: 1 to 5; damaged: 6; last good version: 5" in shown
    found = data(capsys, ["verify", *run], status=1)
    assert isinstance(found, dict)
    assert found["damaged"] is True
    assert found["report"]["findings"][0]["breaks"] == [6]
    assert main(["checkpoint", "restore", "--version", "6", *run]) == 2
    assert "dense.safetensors is damaged" in capsys.readouterr().err


def test_compact_prune_restore_and_diff_do_what_they_say(
    capsys: pytest.CaptureFixture[str], run: list[str], chain: Chain, tmp_path: Path
) -> None:
    first = next(number for number in range(1, 7) if not chain.manifest(number).whole)
    assert f"version {first} is compacted" in told(capsys, ["compact", "--version", str(first), *run])
    assert "version 1 is a base: nothing to do" in told(capsys, ["compact", "--version", "1", *run])
    policy = ["checkpoint.keep_last=1", "checkpoint.keep_days=1"]
    before = chain.store.list()
    would = data(capsys, ["prune", "--dry-run", *run, *policy])
    assert chain.store.list() == before
    assert data(capsys, ["prune", *run, *policy]) == would
    assert isinstance(would, dict)
    assert chain.pruned() == tuple(would["goes"])
    assert "freed 0 B" in told(capsys, ["prune", *run, *policy])
    assert told(capsys, ["restore", "--version", "6", "--to", f"{tmp_path}/copy", *run]).startswith("version 6 is in ")
    assert chain_of(tmp_path / "copy").numbers() == (1,)
    assert "version 7 is version 6 again" in told(capsys, ["restore", "--version", "6", *run])
    found = data(capsys, ["diff", "6", "7", *run])
    assert isinstance(found, dict)
    assert all(one["num_changed"] == 0 for one in found["tables"].values())
    assert data(capsys, ["diff", *run]) == found
    assert "moved most" in told(capsys, ["diff", *run])
    assert chain.store.list("leases") == []


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ([], "the following arguments are required: VERB"),
        (["lst"], "argument VERB: invalid choice: 'lst'"),
        (["list", "--wide"], "unrecognized arguments: --wide"),
        (["restore"], "the following arguments are required: --version"),
        (["show", "--version", "9"], "has no version 9; it has versions 1 to 6"),
        (["show", "--version", "2017-12-01"], "has no version of day '2017-12-01'"),
        (["show", "--table", "item"], "--table and --id go together"),
        (["show", "--table", "itm", "--id", "1"], "has no table 'itm'; it has: item, shop, user"),
        (["show", "--table", "item", "--id", "99"], "has rows 0 to "),
        (["restore", "--version", "1", "--weights-only"], "--weights-only is for a copy: add --to FOLDER"),
        (["diff", "1", "x"], "has no version of day 'x'"),
        (["list", "run.nme=x"], "unknown option 'run.nme'"),
        (["list", "run.name=other"], "other/checkpoints has no version yet: run `stack train` first"),
    ],
)
def test_a_wrong_call_is_one_line_and_status_2(
    capsys: pytest.CaptureFixture[str], run: list[str], words: list[str], line: str
) -> None:
    assert main(["checkpoint", *run, *words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert line in err
    assert err.count("\n") == 1


def test_the_policy_of_the_run_counts_where_none_is_given(
    capsys: pytest.CaptureFixture[str], run: list[str], chain: Chain, tmp_path: Path
) -> None:
    from stack.job import CHOICES, Composer, Job, configs_folder, to_yaml

    job = Composer(root=Job, choices=CHOICES, folder=configs_folder()).compose(
        ["checkpoint.keep_days=1", "checkpoint.keep_last=1"]
    )
    (tmp_path / "runs/toy/config.yaml").write_text(to_yaml(job))
    strict = data(capsys, ["prune", "--dry-run", *run])
    loose = data(capsys, ["prune", "--dry-run", *run, "checkpoint.keep_days=6", "checkpoint.keep_last=6"])
    assert isinstance(strict, dict)
    assert isinstance(loose, dict)
    assert set(loose["goes"]) < set(strict["goes"])


def test_words_of_the_configuration_are_told_from_those_of_the_verb() -> None:
    words = [
        "show",
        "run.name=a",
        "--id=x=y",
        "--version",
        "3",
        "checkpoint.store=s3://b/c",
        "+a.b=1",
        "experiment=demo",
    ]
    own, options = split_words(words)
    assert own == ["show", "--id=x=y", "--version", "3"]
    assert options == ["run.name=a", "checkpoint.store=s3://b/c", "+a.b=1", "experiment=demo"]


def test_a_place_that_cannot_be_written_is_read_all_the_same(
    capsys: pytest.CaptureFixture[str], chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("stack.checkpoint.verb.write_lease", refuse)
    assert checkpoint(["show", "--json"], where=chain.store.url, options=Options()) == 0
    assert checkpoint(["diff", "--json"], where=chain.store.url, options=Options()) == 0


def test_sizes_and_ranges_read_well() -> None:
    assert [size(number) for number in (0, 1023, 1024, 5 * 2**30, 3 * 2**60)] == [
        "0 B", "1,023 B", "1.0 KiB", "5.0 GiB", "3,072.0 PiB",
    ]  # fmt: skip
    assert ranges([]) == ""
    assert ranges([3, 1, 2, 7, 9, 10]) == "1 to 3, 7, 9 to 10"
