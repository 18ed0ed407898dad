"""The CPU library by itself; that it says the same bytes as the torch code is shown wherever tests use `path`."""

from __future__ import annotations

import hashlib
import logging
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from torch import nn

from p2pnet.numerics import native
from p2pnet.numerics.codec import as_bytes, encode
from p2pnet.numerics.formats import ChunkFormat
from p2pnet.train.learner import Learner
from tests.numerics.samples import made_up

needs_library = pytest.mark.skipif(native.missing() is not None, reason=f"no CPU library: {native.missing()}")


@needs_library
def test_the_library_is_built_from_the_source_that_is_here(repository: Path) -> None:
    source = (repository / "p2pnet" / "numerics" / "native.cpp").read_bytes()
    assert native.source_sha256() == hashlib.sha256(source).hexdigest(), "run make setup"


def test_a_machine_with_a_compiler_has_the_library() -> None:
    if not any(map(shutil.which, ("c++", "g++", "clang++"))):
        pytest.skip("no C++ compiler here")
    assert native.missing() is None


@needs_library
def test_the_library_is_used_for_what_lies_on_the_cpu_in_one_piece() -> None:
    assert native.usable(torch.zeros(2, 4096))
    assert not native.usable(torch.zeros(2, 4096).T)
    assert not native.usable(torch.zeros(2, 4096), torch.zeros(1, device="meta"))


@needs_library
def test_the_library_lets_go_of_the_interpreter() -> None:
    a, fmt, turns = made_up("normal", 1, 2000), ChunkFormat(64), []
    done = threading.Event()

    def work() -> None:
        for _ in range(20):
            encode(a, fmt, 32)
        done.set()

    thread = threading.Thread(target=work)
    thread.start()
    while not done.is_set():
        turns.append(1)
    thread.join()
    assert len(turns) > 100  # with the lock held it would be one for each call


@pytest.mark.parametrize("bits", [1, 2, 3])
def test_more_threads_than_chunks_do_no_harm(bits: int) -> None:
    a, fmt = made_up("heavy", 2, 33), ChunkFormat(100, bits)
    expected = as_bytes(encode(a, fmt, 32))
    torch.set_num_threads(8)
    assert as_bytes(encode(a, fmt, 32)) == expected


def test_who_has_no_library_is_told(caplog: pytest.LogCaptureFixture) -> None:
    native.switch(False)
    try:
        with caplog.at_level(logging.WARNING):
            Learner(nn.Linear(3, 3), k=8, k_result=16, value_bits=1, level_bias=32, alpha_ppm=1, beta_ppm=1)
    finally:
        native.switch(True)
    assert "no CPU library (switched off)" in caplog.text


def test_without_a_compiler_the_build_says_so_and_goes_on(tmp_path: Path, repository: Path) -> None:
    work = (
        "import sys, pathlib; sys.path.insert(0, sys.argv[1]); import hatch_build as h;"
        "print(h.compile_library(pathlib.Path(sys.argv[1], h.SOURCE), pathlib.Path(sys.argv[2])))"
    )
    command = [sys.executable, "-c", work, str(repository), str(tmp_path / "x.so")]
    pytest.importorskip("hatchling", reason="the build backend is not installed here")
    for compiler, expected in (("/nowhere/c++", "No such file"), ("false", "ended with 1")):
        done = subprocess.run(command, env={"CXX": compiler, "PATH": "/usr/bin:/bin"}, capture_output=True, text=True)
        assert expected in done.stdout
    assert not list(tmp_path.iterdir())
