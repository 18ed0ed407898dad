"""A replica of two processes under gloo, as torchrun starts them: one peer, one node, the same bits on both ranks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from p2pnet.errors import ConfigError, P2pnetError
from p2pnet.train.ranks import ALONE, Ranks

ROOT = Path(__file__).parents[2]
SCENARIOS = ("bare:rounds", "ddp:rounds", "ddp:data", "fsdp:founding", "fsdp:rounds", "ddp:failing")


@pytest.mark.slow
def test_two_processes_are_one_peer(tmp_path: Path) -> None:
    """All scenarios in one pair of processes: loading torch takes longer than they do."""
    command = [sys.executable, "-m", "tests.train.replica_job"]
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [*command, str(rank), str(tmp_path), *SCENARIOS],
            cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        said = [rank.communicate(timeout=120)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    for rank, text in zip(ranks, said, strict=True):
        assert rank.returncode == 0, text[-3000:]
        assert [line for line in text.splitlines() if line.endswith("done")] == [f"{name} done" for name in SCENARIOS]


def test_alone_everything_is_as_it_was_given() -> None:
    ranks = Ranks.of_this_job()  # no process group
    assert (ranks.rank, ranks.size, ranks.first) == (0, 1, True)
    assert ranks.agree(3) == 3
    assert ranks.either([True, False]) == [True, False]
    assert ranks.total(1.5, 2) == [1.5, 2]
    assert ranks.share(b"x") == b"x"
    assert ranks.from_first(lambda: b"y") == b"y"
    ranks.broadcast(torch.ones(2))
    ranks.leave()
    ranks.abandon()
    ranks.close()
    assert ALONE.size == 1


def test_an_error_of_rank_0_is_the_same_kind_elsewhere() -> None:
    from p2pnet.train.ranks import _open

    assert _open(b"\0data") == b"data"
    with pytest.raises(ConfigError, match="rank 0: state_dir: in use"):
        _open(b"\1ConfigError\nstate_dir: in use")
    with pytest.raises(P2pnetError, match="rank 0: odd"):
        _open(b"\1OddError\nodd")
