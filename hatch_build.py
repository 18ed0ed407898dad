"""Build hook: compile p2pnet/numerics/native.cpp to a shared library beside it. Without a compiler all works, slower.

CXX says which compiler, CXXFLAGS what else to pass it.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCE = "p2pnet/numerics/native.cpp"
# With a dot in the name nobody takes them for Python modules.
LIBRARIES: dict[str, tuple[str, ...]] = {"p2pnet/numerics/_native.base.so": ()}
if platform.machine() in {"x86_64", "AMD64"}:
    LIBRARIES["p2pnet/numerics/_native.v3.so"] = ("-march=x86-64-v3",)
# Every floating-point operation is rounded by itself, the same on all machines: no fused ones, no fast maths.
FLAGS = (
    "-std=c++17",
    "-O3",
    "-fPIC",
    "-shared",
    "-pthread",
    "-ffp-contract=off",
    "-fvisibility=hidden",
    "-Wall",
    "-Wextra",
)


class NativeHook(BuildHookInterface[Any]):
    """Compiles for the wheel that is being built; an editable installation finds the library in the source tree."""

    PLUGIN_NAME = "native"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002 - what hatch calls it with
        """Compile, and say that the wheel is one machine's where there is a library in it."""
        source = Path(self.root) / SOURCE
        for name, flags in LIBRARIES.items():
            (Path(self.root) / name).unlink(missing_ok=True)
            if (why := compile_library(source, Path(self.root) / name, flags)) is not None:
                self.app.display_warning(f"p2pnet's CPU library is not built, torch does its work, slower: {why}")
                return
        build_data["artifacts"].extend(LIBRARIES)
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{_platform_tag()}"  # of no Python version: it is loaded with ctypes


def compile_library(source: Path, library: Path, flags: Sequence[str] = ()) -> str | None:
    """Compile; returns why it failed, None when it did not."""
    compiler = os.environ.get("CXX") or next(filter(shutil.which, ("c++", "g++", "clang++")), None)
    if compiler is None:
        return "no C++ compiler found (CXX, c++, g++, clang++)"
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    draft = library.with_suffix(".new")
    command = [*shlex.split(compiler), *FLAGS, *flags, *shlex.split(os.environ.get("CXXFLAGS", ""))]
    command += [f'-DP2PNET_SOURCE="{digest}"', str(source), "-o", str(draft)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    if done.returncode != 0:
        return f"{shlex.join(command)} ended with {done.returncode}: {done.stderr[-2000:]}"
    draft.replace(library)  # at once: a running process may have the old one open
    return None


def _platform_tag() -> str:
    name = sys.platform if sys.platform != "darwin" else f"macosx_11_0_{platform.machine()}"
    return name if name.startswith("macosx") else f"{name}_{platform.machine()}"
