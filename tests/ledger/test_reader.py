from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from p2pnet.errors import ConfigError
from p2pnet.ledger.damage import LedgerError
from p2pnet.ledger.log import Entry, Ledger
from p2pnet.ledger.reader import LedgerReader
from tests.ledger.writer import GENESIS, make_entry, open_ledger, part_bytes


def append(ledger: Ledger) -> Entry:
    entry = make_entry(ledger.lineage(), len(ledger))
    ledger.append(entry, part_bytes(entry))
    return entry


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with open_ledger(tmp_path / "ledger.db") as opened:
        yield opened


def test_it_sees_what_was_decided_while_the_node_goes_on_writing(ledger: Ledger) -> None:
    with LedgerReader(ledger.path) as reader:
        assert (len(reader), reader.entry(0), reader.genesis()) == (0, None, GENESIS)
        first = append(ledger)
        assert reader.entries(0, 9) == [first]
        with ledger.batch():
            second = append(ledger)
            assert len(reader) == 1  # not durable yet
        assert reader.entries(0, 9) == [first, second]
        assert reader.swarm() == ledger.swarm


def test_it_never_changes_a_byte_nor_holds_up_the_node(ledger: Ledger) -> None:
    append(ledger)
    ledger.close()
    before = hashlib.sha256(ledger.path.read_bytes()).digest()
    with LedgerReader(ledger.path) as reader:
        assert len(reader) == 1
        with pytest.raises(LedgerError, match="readonly"):
            reader._rows("DELETE FROM entries")
    assert hashlib.sha256(ledger.path.read_bytes()).digest() == before


def test_it_reads_the_ledger_of_a_node_that_was_killed(ledger: Ledger, tmp_path: Path) -> None:
    entry = append(ledger)
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in tmp_path.glob("ledger.db*"):
        (copy / path.name).write_bytes(path.read_bytes())
    with LedgerReader(copy / "ledger.db") as reader:
        assert reader.entries(0, 9) == [entry]


def test_what_is_no_ledger_is_refused_and_not_made(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no ledger there"):
        LedgerReader(tmp_path / "ledger.db")
    assert not list(tmp_path.iterdir())
    (tmp_path / "text").write_text("no database at all" * 1000)
    with pytest.raises(ConfigError, match="cannot be read"):
        LedgerReader(tmp_path / "text")
    with sqlite3.connect(tmp_path / "other.db") as other:
        other.execute("CREATE TABLE t (x)")
    other.close()
    with pytest.raises(ConfigError, match="not a p2pnet ledger"):
        LedgerReader(tmp_path / "other.db")


def test_a_newer_format_asks_for_an_upgrade(ledger: Ledger) -> None:
    ledger.close()
    with sqlite3.connect(ledger.path) as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(ConfigError, match="format 99.*upgrade"):
        LedgerReader(ledger.path)
