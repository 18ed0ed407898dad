"""The swarm's model as a file, without node and daemon."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from p2pnet.config import BytesLmTask, Swarm, SwarmConfig
from p2pnet.founding import create
from p2pnet.ledger.log import FILE_NAME, Ledger
from p2pnet.train.learner import Learner
from p2pnet.train.models import ByteTransformer
from p2pnet.train.savefile import LEARNER_NAME
from tests.cli.conftest import Run
from tests.cli.decided import GENESIS, SWARM, decide

SIZES = {"width": 64, "layers": 1, "heads": 2, "context": 16}


@dataclass
class Saved:
    """What a node left in its folder."""

    folder: Path
    learner: Learner
    lineages: list[str]


@pytest.fixture
def saved(home: Path) -> Saved:
    folder = home / "s" / "swarm"
    model = ByteTransformer(**SIZES)
    create(SwarmConfig(Swarm("mine"), BytesLmTask("bytes-lm", **SIZES)), model, state_dir=folder)
    learner = Learner(model, k=128, k_result=256, value_bits=1, level_bias=32, alpha_ppm=1_000_000, beta_ppm=950_000)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01)
    learner.encode(1, 1)
    learner.save(folder / LEARNER_NAME, {"round": "2", "samples": "8"})
    with Ledger(folder / FILE_NAME, SWARM, GENESIS) as ledger:
        entries = [decide(ledger), decide(ledger)]
    return Saved(folder, learner, [entry.lineage.hex() for entry in entries])


def test_what_is_exported_loads_into_plain_pytorch_and_is_what_all_peers_have(run: Run, saved: Saved) -> None:
    done = run("export", "model.safetensors", "--state-dir", "s")
    assert done.status == 0, done.err
    assert "mine at the beginning of round 2" in done.out
    model = ByteTransformer(**SIZES)
    model.load_state_dict(load_file("model.safetensors"), strict=False)  # as the help says
    again = Learner(model, k=128, k_result=256, value_bits=1, level_bias=32, alpha_ppm=0, beta_ppm=0)
    assert again.state_sha256() == saved.learner.state_sha256()


def test_the_header_says_what_it_is(run: Run, saved: Saved) -> None:
    told = run("export", "model.safetensors", "--state-dir", "s", "--json").json
    with safe_open("model.safetensors", framework="pt") as file:
        header = file.metadata()
        assert all(file.get_tensor(name).dtype == torch.float32 for name in file.keys())  # noqa: SIM118
    assert header["round"] == "2"
    assert header["lineage"] == saved.lineages[1]  # after rounds 0 and 1
    assert header["state_sha256"] == saved.learner.state_sha256().hex()
    assert {key: told[key] for key in ("swarm", "name", "lineage")} == {
        key: header[key] for key in ("swarm", "name", "lineage")
    }


def test_what_was_saved_in_a_degraded_branch_says_so_and_claims_no_lineage(run: Run, saved: Saved) -> None:
    saved.learner.save(saved.folder / LEARNER_NAME, {"round": "7", "samples": "8", "line": "ab" * 32})
    done = run("export", "model.safetensors", "--state-dir", "s")
    assert "of degraded branch abababababababab" in done.out
    told = run("export", "model.safetensors", "--state-dir", "s", "--json").json
    assert (told["branch"], told["round"]) == ("ab" * 32, 7)
    assert "lineage" not in told


def test_where_nothing_is_trained_it_says_what_to_do(run: Run, home: Path) -> None:
    done = run("export", "model.safetensors")
    assert done.status == 2
    assert "p2pnet join LINK" in done.err


@pytest.mark.parametrize("damage", [b"", b"{}", b"\x00" * 100])
def test_a_damaged_file_is_refused_and_nothing_is_written(run: Run, saved: Saved, damage: bytes) -> None:
    (saved.folder / LEARNER_NAME).write_bytes(damage)
    done = run("export", "model.safetensors", "--state-dir", "s")
    assert done.status == 2
    assert LEARNER_NAME in done.err
    assert not Path("model.safetensors").exists()
