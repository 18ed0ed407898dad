"""Which states lie in a folder, which are given away, and what is dropped for room."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from p2pnet.ledger.log import Entry, Ledger
from p2pnet.node.snapshots import KEPT, Snapshots, state_path, used_bytes
from p2pnet.wire.codec import encode
from p2pnet.wire.round import Outcome, next_lineage, outcome_digest
from tests.ledger.writer import SWARM, open_ledger
from tests.node.members import identity

EVERY = 4


def state_of(number: int) -> bytes:
    return hashlib.sha256(b"state %d" % number).digest()


def decide(ledger: Ledger, rounds: int, part_bytes: int = 10) -> None:
    """Rounds whose outcomes certify a state every EVERY rounds."""
    for number in range(len(ledger), len(ledger) + rounds):
        state = state_of(number) if number % EVERY == 0 else b""
        voters = (identity(1).peer,)
        outcome = encode(Outcome(SWARM, number, ledger.lineage(), b"r" * 32, 0, (), voters, b"b" * 32, state, ()))
        lineage = next_lineage(ledger.lineage(), outcome_digest(outcome))
        root = hashlib.sha256(b"part %d" % number).digest()
        ledger.append(Entry(number, lineage, outcome, b"seals", (), (root,), 0), {root: b"x" * part_bytes})


def write_state(folder: Path, number: int) -> Path:
    path = state_path(folder, state_of(number))
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"theta %d" % number)
    return path


def test_the_last_two_certified_states_are_found_and_no_other_file(tmp_path: Path) -> None:
    with open_ledger(tmp_path / "ledger.db") as ledger:
        snapshots = Snapshots(tmp_path, EVERY, ledger)
        assert snapshots.certified() == []
        paths = [write_state(tmp_path, number) for number in (4, 8, 12, 16)]
        decide(ledger, 13)  # rounds 0 to 12
        assert [one.round for one in snapshots.certified()] == [12, 8]
        assert snapshots.find(state_of(12)) == paths[2]
        assert snapshots.find(state_of(8)) == paths[1]
        assert snapshots.find(state_of(4)) is None  # certified, and too old
        assert snapshots.find(state_of(16)) is None  # written, and not certified yet
        assert snapshots.find(state_of(0)) is None  # the initial parameters are another file
        paths[1].unlink()
        assert snapshots.find(state_of(8)) is None


def test_what_a_joiner_needs_is_kept_and_the_rest_dropped(tmp_path: Path) -> None:
    with open_ledger(tmp_path / "ledger.db", keep_results=1) as ledger:
        snapshots = Snapshots(tmp_path, EVERY, ledger)
        half = state_path(tmp_path, state_of(12)).with_suffix(".partial")
        for number in (4, 8, 12):
            decide(ledger, number - len(ledger))
            write_state(tmp_path, number)
            half.write_bytes(b"thet")
            (tmp_path / "states" / "junk").write_bytes(b"?")
            decide(ledger, 1)
            snapshots.keep()
        assert {path.name for path in (tmp_path / "states").iterdir()} == {
            half.name, state_of(12).hex(), state_of(8).hex()
        }  # fmt: skip
        decide(ledger, 3)
        assert [number for number in range(16) if ledger.result(number)] == list(range(8, 16))
        assert KEPT == 2


@pytest.mark.parametrize(("disk_bytes", "kept"), [(0, 25), (10_000_000, 25), (3_000_000, 5)])
def test_beyond_what_the_disk_may_take_only_the_results_that_a_joiner_needs_stay(
    tmp_path: Path, disk_bytes: int, kept: int
) -> None:
    with open_ledger(tmp_path / "ledger.db", keep_results=1000) as ledger:
        snapshots = Snapshots(tmp_path, EVERY, ledger, disk_bytes)
        decide(ledger, 25, part_bytes=200_000)
        snapshots.keep()
        assert sum(ledger.result(number) is not None for number in range(25)) == kept
        if disk_bytes:
            assert used_bytes(tmp_path) < disk_bytes
