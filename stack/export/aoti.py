"""Traced programs compiled to native code by AOTInductor: for who measures that it pays. Half a minute a graph."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path

from torch._inductor import aoti_compile_and_package
from torch.export import ExportedProgram

from stack.base.errors import PackageError

_COMPILERS = ("g++", "clang++", "c++")


def save_aoti(program: ExportedProgram, file: Path) -> None:
    """Compiles a program into one `.pt2` file. Raises: `PackageError` where this machine has no C++ compiler."""
    if not any(map(shutil.which, _COMPILERS)):
        raise PackageError(
            f"AOTInductor needs a C++ compiler, and none of {', '.join(_COMPILERS)} is on PATH: install one, or export "
            "'export.formats=[onnx]', which needs none"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        aoti_compile_and_package(program, package_path=str(file), inductor_configs={"cpp.threads": 1})
