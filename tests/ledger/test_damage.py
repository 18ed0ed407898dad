"""A ledger whose rows are not what was written: SQLite stores no checksum, and its own check sees pages only."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from p2pnet.errors import ConfigError, P2pnetError
from p2pnet.ledger.damage import LedgerError
from p2pnet.ledger.log import Held
from p2pnet.ledger.reader import LedgerReader
from p2pnet.wire.round import outcome_digest
from tests.ledger.writer import make_entry, open_ledger


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A ledger of three rounds, and an outcome held for the fourth."""
    file = tmp_path / "ledger.db"
    with open_ledger(file) as ledger:
        for _ in range(3):
            ledger.append(make_entry(ledger.lineage(), len(ledger)))
        next_one = make_entry(ledger.lineage(), 3)
        held = Held(3, outcome_digest(next_one.outcome), next_one.outcome, next_one.commits, next_one.roots)
        ledger.hold(held, {})
    return file


def change(path: Path, statement: str, *values: object) -> None:
    with sqlite3.connect(path) as db:
        db.execute(statement, values)
    db.close()


@pytest.mark.parametrize(
    ("statement", "value"),
    [
        ("UPDATE entries SET commits = ? WHERE round = 1", b"\x91\xc4\x01a"),  # a list of bytes, of other bytes
        ("UPDATE entries SET commits = ? WHERE round = 1", b"\x01"),
        ("UPDATE entries SET commits = ? WHERE round = 1", b"\x91"),
        ("UPDATE entries SET roots = ? WHERE round = 1", "text"),
        ("UPDATE entries SET outcome = ? WHERE round = 1", b"other"),
        ("UPDATE entries SET outcome = CAST(? AS TEXT) WHERE round = 1", b"\xa0\xff"),
        ("UPDATE nodes SET hash = ? WHERE level = 0 AND position = 1", bytes(32)),
        ("DELETE FROM nodes WHERE level = 0 AND position = ?", 1),
    ],
    ids=["other commits", "no list", "a cut list", "roots in text", "another outcome", "not utf-8", "hash", "no hash"],
)
def test_a_round_that_is_not_what_was_written_is_never_shown_as_it(path: Path, statement: str, value: object) -> None:
    change(path, statement, value)
    with open_ledger(path) as ledger:
        assert ledger.entry(0) is not None
        with pytest.raises(LedgerError, match="damaged .*move it away"):
            ledger.entry(1)
    with LedgerReader(path) as reader, pytest.raises(LedgerError):
        reader.entries(0, 3)


def test_a_held_outcome_that_is_another_one_is_never_voted_for(path: Path) -> None:
    change(path, "UPDATE held SET outcome = ?", b"other")
    with open_ledger(path) as ledger, pytest.raises(LedgerError, match="an outcome of round 3 is another one"):
        ledger.held(3)


@pytest.mark.parametrize("value", ["text", 7, b"other"])
def test_a_name_of_another_kind_is_another_swarms(path: Path, value: object) -> None:
    change(path, "UPDATE meta SET value = ? WHERE key = 'swarm'", value)
    with pytest.raises(ConfigError, match="another swarm's ledger"):
        open_ledger(path)
    with LedgerReader(path) as reader:
        if isinstance(value, bytes):
            assert reader.swarm() == value
        else:
            with pytest.raises(P2pnetError, match="says nothing of its swarm"):
                reader.swarm()
