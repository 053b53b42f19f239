"""What is installed from a built wheel works from any folder, with its configs."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def _run(command: Sequence[str | Path], folder: Path) -> str:
    done = subprocess.run([str(word) for word in command], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built without network from a copy of what the repository has."""
    copy = tmp_path_factory.mktemp("source") / "copy"
    copy.mkdir()
    for name in ("stack", "configs", "launch"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy / name)
    _run([sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", copy / "dist"], copy)
    (built,) = (copy / "dist").glob("*.whl")
    return built


def test_the_wheel_holds_every_module_every_file_of_values_and_the_page(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "stack").rglob("*.py")}
    values = {f"stack/{path.relative_to(ROOT)}" for path in (ROOT / "configs").rglob("*.yaml")}
    page = {str(path.relative_to(ROOT)) for path in (ROOT / "stack/dashboard/static").rglob("*") if path.is_file()}
    assert modules | values | page <= names
    assert not any(name.startswith(("tests/", "tools/", "configs/")) for name in names)


def test_the_installed_command_finds_its_configs_from_an_empty_folder(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=False)
    python = tmp_path / "venv" / "bin" / "python"
    library = Path(_run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], tmp_path).strip())
    pip = [sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check"]
    _run([*pip, "install", "--quiet", "--no-deps", "--no-index", wheel], tmp_path)
    (library / "others.pth").write_text(f"{sysconfig.get_path('purelib')}\n")  # everything but this package
    (tmp_path / "empty").mkdir()
    command = tmp_path / "venv" / "bin" / "stack"
    assert "ingest" in _run([command, "--help"], tmp_path / "empty")
    shown = _run([command, "ingest", "--cfg", "job", "data=synthetic"], tmp_path / "empty")
    assert "source: synthetic" in shown
    assert list((tmp_path / "empty").iterdir()) == []
    where = _run([python, "-c", "import stack.job; print(stack.job.configs_folder())"], tmp_path / "empty")
    assert Path(where.strip()) == library / "stack" / "configs"
