"""Rounds to put into a ledger, and a process that does so until it is killed: `python -m tests.ledger.writer FILE`."""

from __future__ import annotations

import random
import sys
from pathlib import Path

from p2pnet.ledger.log import Entry, Held, Ledger
from p2pnet.wire.round import next_lineage, outcome_digest

SWARM, GENESIS = b"s" * 32, b"g" * 32


def open_ledger(path: Path, keep_results: int = 64) -> Ledger:
    return Ledger(path, SWARM, GENESIS, keep_results)


def make_entry(lineage: bytes, round: int, members: int = 2, parts: int = 2) -> Entry:
    """The same round for the same arguments, in every process."""
    draw = random.Random(round)
    outcome = draw.randbytes(300)
    commits = tuple(draw.randbytes(225) for _ in range(members))
    roots = tuple(draw.randbytes(32) for _ in range(parts))
    after = next_lineage(lineage, outcome_digest(outcome))
    return Entry(round, after, outcome, draw.randbytes(100), commits, roots, 1_700_000_000 + round)


def part_bytes(entry: Entry) -> dict[bytes, bytes]:
    return {root: root * 100 for root in entry.roots}


def write_for_ever(path: Path) -> None:
    """Decide rounds as a node does, and say so after each step that the ledger acknowledged."""
    with open_ledger(path, keep_results=1000) as ledger:
        while True:
            round = len(ledger)
            entry = make_entry(ledger.lineage(), round)
            ledger.sign_once(round, b"slot %d" % round, b"raw %d" % round)
            print("signed", round, flush=True)
            held = Held(round, outcome_digest(entry.outcome), entry.outcome, entry.commits, entry.roots)
            ledger.hold(held, part_bytes(entry))
            print("held", round, flush=True)
            with ledger.batch():
                ledger.append(entry)
                ledger.put("applied", b"%d" % round)
            print("appended", round, flush=True)


if __name__ == "__main__":
    write_for_ever(Path(sys.argv[1]))
