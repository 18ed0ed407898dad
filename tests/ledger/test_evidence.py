"""What is proven stays proven over restarts, in bounds, and can be read beside a running node."""

from __future__ import annotations

from pathlib import Path

import pytest

from p2pnet.identity import PeerId
from p2pnet.ledger.evidence import EvidenceTable, Stored, read_evidence
from p2pnet.ledger.log import Entry, Ledger

SWARM, GENESIS = b"s" * 32, b"g" * 32


def stored(number: int) -> Stored:
    return Stored(number.to_bytes(32, "big"), PeerId(bytes([number % 7]) * 32), number, "signed two votes")


def test_evidence_is_there_after_a_restart_in_the_order_in_which_it_came(tmp_path: Path) -> None:
    with Ledger(tmp_path / "ledger.db", SWARM, GENESIS) as ledger:
        assert read_evidence(ledger.query) == []  # a ledger of before
        table = EvidenceTable(ledger)
        for number in (3, 1, 3, 2):
            table.keep(stored(number), b"raw %d" % number)
    with Ledger(tmp_path / "ledger.db", SWARM, GENESIS) as ledger:
        table = EvidenceTable(ledger)
        assert table.all() == [stored(3), stored(1), stored(2)]
        assert table.find(stored(1).digest) == b"raw 1"
        assert table.find(b"?" * 32) is None
        assert read_evidence(ledger.query) == table.all()


def test_the_latest_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("p2pnet.ledger.evidence.KEPT_MAX", 3)
    with Ledger(tmp_path / "ledger.db", SWARM, GENESIS) as ledger:
        table = EvidenceTable(ledger)
        for number in range(10):
            table.keep(stored(number), b"raw")
        assert table.all() == [stored(7), stored(8), stored(9)]


def test_what_was_written_in_a_batch_that_failed_was_never_there(tmp_path: Path) -> None:
    with Ledger(tmp_path / "ledger.db", SWARM, GENESIS) as ledger:
        table = EvidenceTable(ledger)

        def write() -> None:
            with ledger.batch():
                table.keep(stored(1), b"raw")
                ledger.append(Entry(7, b"l" * 32, b"", b"", (), (), 0))

        with pytest.raises(ValueError, match="is next"):
            write()
        assert table.all() == []
