"""Read a ledger that a running node may be writing: never a lock, never a byte of it changed."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from types import TracebackType
from typing import Any

from p2pnet.errors import ConfigError
from p2pnet.ledger.damage import LedgerError, damaged
from p2pnet.ledger.log import APPLICATION_ID, ENTRIES_QUERY, SCHEMA_VERSION, Entry, make_entries


class LedgerReader:
    """The decided rounds of one ledger, as they are when each call is made."""

    def __init__(self, path: Path) -> None:
        """Open the file for reading; `ConfigError` when there is none, or another program's, or another version's."""
        self.path = Path(path)
        if not self.path.is_file():
            raise ConfigError(f"{path}: no ledger there")
        try:
            self._db = sqlite3.connect(f"{self.path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None)
        except sqlite3.Error as error:
            raise ConfigError(f"{path}: cannot open the ledger: {error}") from error
        try:
            self._check()
        except LedgerError as error:
            self.close()
            raise ConfigError(str(error)) from error.__cause__
        except ConfigError:
            self.close()
            raise

    def close(self) -> None:
        """Close the file; may be called twice."""
        self._db.close()

    def __enter__(self) -> LedgerReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __len__(self) -> int:
        """Return the number of decided rounds, which is the next round's number."""
        last = self._rows("SELECT max(round) FROM entries")[0][0]
        if not isinstance(last, int | None):
            raise LedgerError(damaged(self.path, "a round that is no number"))
        return 0 if last is None else last + 1

    def swarm(self) -> bytes:
        """Return the id of the swarm, 32 bytes."""
        return self._meta("swarm")

    def genesis(self) -> bytes:
        """Return the lineage before round 0, 32 bytes."""
        return self._meta("genesis")

    def entry(self, round: int) -> Entry | None:
        """Return a decided round, or None."""
        found = self.entries(round, round + 1)
        return found[0] if found else None

    def entries(self, start: int, stop: int) -> list[Entry]:
        """Return the decided rounds from `start` up to and without `stop`, as far as there are any."""
        return make_entries(self._rows(ENTRIES_QUERY, 0, start, stop), self.path)

    def _check(self) -> None:
        application = self._rows("PRAGMA application_id")[0][0]
        version = self._rows("PRAGMA user_version")[0][0]
        if application != APPLICATION_ID:
            raise ConfigError(f"{self.path}: not a p2pnet ledger")
        if version != SCHEMA_VERSION:
            raise ConfigError(f"{self.path}: format {version}, this p2pnet reads {SCHEMA_VERSION}; upgrade p2pnet")

    def _meta(self, key: str) -> bytes:
        rows = self._rows("SELECT value FROM meta WHERE key = ?", key)
        value = rows[0][0] if rows else None
        if not isinstance(value, bytes):
            raise LedgerError(damaged(self.path, f"it says nothing of its {key}"))
        return value

    def _rows(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        try:
            return self._db.execute(query, values).fetchall()
        except (sqlite3.Error, UnicodeDecodeError) as error:
            raise LedgerError(f"{self.path}: cannot be read: {error}") from error
