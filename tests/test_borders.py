"""What only one file may do, read off the code."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "stack").rglob("*.py"))


def _imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]


def _reads_environment(tree: ast.AST) -> bool:
    names = {"environ", "environb", "getenv", "putenv"}
    attributes = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    imported = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == "os"
        for alias in node.names
    }
    return bool(names & (attributes | imported))


def _files_where(test: object) -> list[str]:
    assert callable(test)
    return [str(file.relative_to(ROOT)) for file in FILES if test(ast.parse(file.read_text()))]


def test_only_the_job_imports_hydra() -> None:
    assert _files_where(lambda tree: {"hydra", "omegaconf"} & set(_imports(tree))) == ["stack/job.py"]


def test_only_dist_reads_the_environment() -> None:
    assert _files_where(_reads_environment) == ["stack/base/dist.py"]
