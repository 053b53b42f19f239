"""`stack export`: what its options are refused for, each in one line, and deltas, which need no model."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from stack.__main__ import main
from stack.base.errors import ConfigError
from stack.checkpoint.chain import Chain
from stack.checkpoint.manifest import VersionManifest, data_folder
from stack.export.config import ExportConfig
from stack.export.delta import open_delta
from stack.export.sealed import MANIFEST
from stack.export.sign import Algorithm, check, make_keys, read_signature
from stack.job import CHOICES, Composer, Job, configs_folder, to_yaml
from tests.export.test_delta import write_package
from tests.export.worlds import Shop, chain_in

DELTA = "2017-11-02.delta"


@dataclass(frozen=True, kw_only=True)
class ShopRun:
    """A run `shop` in `folder` of two versions, with a package of the first."""

    folder: Path
    chain: Chain
    versions: tuple[VersionManifest, VersionManifest]

    @property
    def package(self) -> Path:
        return self.folder / "package"

    @property
    def words(self) -> list[str]:
        return ["export", f"run.dir={self.folder.parent}", "run.name=shop"]

    def delta(self, *options: str) -> list[str]:
        return [*self.words, f"export.delta_of={self.package}", *options]


@pytest.fixture(scope="module")
def composed() -> str:
    return to_yaml(Composer(root=Job, choices=CHOICES, folder=configs_folder()).compose(["run.name=shop"]))


@pytest.fixture
def run(composed: str, tmp_path: Path) -> ShopRun:
    folder = tmp_path / "shop"
    chain, shop = chain_in(folder), Shop(seed=7)
    (folder / "config.yaml").write_text(composed)
    for _ in range(3):
        shop.train()
    first = shop.save(chain)
    write_package(folder / "package", shop, first)
    shop.step += 1
    shop.touch("item", [2, 5, 6])
    shop.evict("user", 2)
    return ShopRun(folder=folder, chain=chain, versions=(first, shop.save(chain, day="2017-11-02")))


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The line on stderr of a call that was refused."""
    assert main(words) == 2
    out, line = capsys.readouterr()
    assert out == ""
    assert line.count("\n") == 1
    return line


def test_options_that_mean_nothing_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    def said(*words: str) -> str:
        return refused(["export", *words], capsys)

    assert "export.formats" in (line := said("export.formats=[onxx]"))
    assert "onxx" in line
    assert "aoti" in line
    assert "Invalid value 'int3', expected one of [fp32, fp16, int8, int4]" in said("export.row_type=int3")
    assert said("run.name=../up").startswith("stack: run.name='../up' must be letters, digits, '.', '_' or '-', and ")


OPTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "no format": ({"formats": []}, "export.formats is empty: choose onnx, aoti, or both"),
    "loss": ({"max_auc_loss": -1.0}, "export.max_auc_loss=-1.0 must be 0 or more"),
    "tolerance": ({"tolerance": 0.0}, "export.tolerance=0.0 must be above 0"),
    "requests": ({"num_requests": 0}, "export.num_requests=0 must be at least 1"),
    "package": (
        {"package": "/p"},
        "export.package=/p belongs to export.delta_of: a package is written to export.out",
    ),
    "overwrite": (
        {"delta_of": "/p", "overwrite": True},
        "export.overwrite is for packages: deltas are not changed; choose another export.out",
    ),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_options_that_do_not_go_together_are_refused_before_anything_is_read(name: str) -> None:
    options, text = OPTIONS[name]
    with pytest.raises(ConfigError) as caught:
        ExportConfig(**options)
    assert str(caught.value) == text


def test_a_delta_is_written_beside_its_package_and_told_of_in_one_line(
    run: ShopRun, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(run.delta()) == 0
    delta = open_delta(run.folder / DELTA)
    assert (delta.from_version, delta.to_version, delta.last_day) == (1, 2, "2017-11-02")
    num_bytes = sum(file.num_bytes for file in delta.files.values())
    assert capsys.readouterr().out == (
        f"exported what version 2 (2017-11-02) changed after version 1 to {run.folder / DELTA}: "
        f"{num_bytes / 1e6:,.1f} MB; rows: item 3, user 0 (2 gone)\n"
    )
    assert refused(run.delta(), capsys).endswith(f"{DELTA} exists: deltas are not changed; choose another export.out\n")


def test_a_delta_takes_neither_the_model_nor_what_trains(run: ShopRun) -> None:
    """It is written every day, or every hour."""
    program = (
        "import sys\nfrom stack.__main__ import main\nstatus = main(sys.argv[1:])\n"
        "heavy = {'torchrec', 'fbgemm_gpu', 'onnx', 'onnxruntime', 'onnxscript', 'stack.model', 'stack.train.build'}\n"
        "print(sorted(heavy & sys.modules.keys()), status)"
    )
    done = subprocess.run([sys.executable, "-c", program, *run.delta()], capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert done.stdout.splitlines()[-1] == "[] 0"
    assert open_delta(run.folder / DELTA).tables["item"].num_rows == 3


def test_a_delta_follows_a_delta_where_its_package_is_named(run: ShopRun, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(run.delta(f"export.out={run.folder}/first.delta")) == 0
    capsys.readouterr()
    after = [*run.words, f"export.delta_of={run.folder}/first.delta"]
    assert refused(after, capsys) == (
        f"stack: export.delta_of={run.folder}/first.delta is a delta: set export.package=<folder of the package it is "
        "of>\n"
    )
    assert refused(run.delta(f"export.package={run.package}"), capsys) == (
        f"stack: export.delta_of={run.package} is a package: leave out export.package={run.package}\n"
    )
    assert refused([*after, f"export.package={run.package}"], capsys) == (
        "stack: version 2 is what is served already: there is nothing to put in a delta\n"
    )


def test_a_delta_is_of_the_version_asked_for_and_signed(run: ShopRun, tmp_path: Path) -> None:
    secret, public = make_keys(tmp_path / "keys", Algorithm.hmac_sha256)
    out = run.folder / "signed.delta"
    assert main(run.delta(f"export.out={out}", f"export.sign_key={secret}", "export.version=2017-11-02")) == 0
    check((out / MANIFEST).read_bytes(), read_signature(out), [public])


def test_what_a_delta_cannot_be_made_of_is_refused(
    run: ShopRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nothing = tmp_path / "nothing"
    assert f"no package at {nothing}: it has no manifest.json" in refused(
        [*run.words, f"export.delta_of={nothing}"], capsys
    )
    assert "has no version 9; it has versions 1 to 2" in refused(run.delta("export.version=9"), capsys)
    assert "cannot be a package's name: it must match" in refused(run.delta(f"export.out={tmp_path}/my delta"), capsys)
    assert "/none/key" in refused(run.delta("export.sign_key=/none/key"), capsys)
    text = (run.package / MANIFEST).read_bytes()
    (run.package / MANIFEST).write_bytes(text.replace(b'"run": "toy"', b'"run": "top"'))
    assert "manifest.json was changed: its digest is" in refused(run.delta(), capsys)
    assert sorted(path.name for path in run.folder.iterdir()) == ["checkpoints", "config.yaml", "package"]


def test_a_damaged_file_of_a_newer_version_is_found_and_an_older_one_is_not_read(
    run: ShopRun, capsys: pytest.CaptureFixture[str]
) -> None:
    place = run.folder / "checkpoints"

    def flip(version: VersionManifest, name: str) -> None:
        (file,) = (place / data_folder(version.data) / "tables" / name).glob("*.safetensors")
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes(data)

    flip(run.versions[0], "brand")
    flip(run.versions[1], "item")
    line = refused(run.delta(), capsys)
    assert "/tables/item/part-00000-0.safetensors is damaged: its sha256 is" in line
    assert main(run.delta("checkpoint.verify=false")) == 0
    flip(run.versions[1], "item")
    assert main(run.delta(f"export.out={run.folder}/again.delta")) == 0
