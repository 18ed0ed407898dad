"""The decided rounds of a swarm and what this peer signed in them, in one SQLite file; durable when a call returns.

Every decided round is a leaf of the swarm's RFC 6962 log: msgpack [round, outcome, commits], the same bytes on every
peer. The certificate stands beside it and not in it: any quorum's signatures prove a round, and two peers may hold
different ones. Entries are never deleted. Bytes of results are, beyond the latest `keep_results` rounds and those that
`keep_from` asks for; an entry may also come without its result, from somebody who was there.

Calls block for as long as the disk takes (an fsync each; `batch` shares one) and may come from any thread.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import msgpack

from p2pnet.errors import ConfigError
from p2pnet.ledger.damage import LedgerError, damaged, explain, reading
from p2pnet.wire.merkle import Tree, leaf_hash, node_hash
from p2pnet.wire.round import next_lineage, outcome_digest

FILE_NAME: Final = "ledger.db"
SCHEMA_VERSION: Final = 1
APPLICATION_ID: Final = 0x7032706C  # "p2pl", in the file's header: tells our files from others
WAL_BYTES_MAX: Final = 4 << 20  # of the write-ahead log between two checkpoints, when one large result is over
SLOT_ROUNDS: Final = 64  # slots of rounds decided longer ago are forgotten, and refused

_SCHEMA: Final = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE slots (slot BLOB PRIMARY KEY, round INTEGER NOT NULL, raw BLOB NOT NULL) WITHOUT ROWID;
CREATE INDEX slots_by_round ON slots (round);
CREATE TABLE entries (
    round INTEGER PRIMARY KEY, lineage BLOB NOT NULL, outcome BLOB NOT NULL, certificate BLOB NOT NULL,
    commits BLOB NOT NULL, roots BLOB NOT NULL, decided_unix_s INTEGER NOT NULL
);
CREATE TABLE nodes (level INTEGER, position INTEGER, hash BLOB NOT NULL, PRIMARY KEY (level, position)) WITHOUT ROWID;
CREATE TABLE held (
    round INTEGER, value BLOB, outcome BLOB NOT NULL, commits BLOB NOT NULL, roots BLOB NOT NULL,
    PRIMARY KEY (round, value)
);
CREATE TABLE parts (round INTEGER, root BLOB, data BLOB NOT NULL, PRIMARY KEY (round, root));
"""

ENTRIES_QUERY: Final = """
SELECT round, lineage, outcome, certificate, commits, roots, decided_unix_s, hash
FROM entries LEFT JOIN nodes ON level = 0 AND position = round - ? WHERE round >= ? AND round < ? ORDER BY round
"""


class SlotConflictError(LedgerError):
    """Something else was signed for this slot already. Signing this too would be evidence against ourselves."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A decided round (protocols/round-1.md, Decision), and the lineage after it."""

    round: int
    lineage: bytes  # 32 bytes: next_lineage of the lineage before it and the outcome's digest
    outcome: bytes  # the decided Outcome, encoded
    certificate: bytes  # the Quorum of seals, encoded
    commits: tuple[bytes, ...]  # the roster's signed commits, in its order; none when void; of many groups listings
    roots: tuple[bytes, ...]  # 32 bytes for each part of the result that is not void
    decided_unix_s: int  # by this peer's clock

    def leaf(self) -> bytes:
        """Return what the log's tree hashes: the same bytes on every peer."""
        return _pack([self.round, self.outcome, list(self.commits)])


@dataclass(frozen=True, slots=True)
class Held:
    """An outcome that may become the decision, kept with its parts until its round is decided."""

    round: int
    value: bytes  # 32 bytes: the outcome's digest
    outcome: bytes
    commits: tuple[bytes, ...]
    roots: tuple[bytes, ...]


class Ledger:
    """The log of one swarm in one file. One process at a time: hold a `StateLock` of the directory."""

    def __init__(self, path: Path, swarm: bytes, genesis: bytes, keep_results: int = 64, first: int = 0) -> None:
        """Open the file, or make it; `ConfigError` when it is damaged, newer, another program's or another swarm's.

        swarm: 32 bytes, a branch's id too.   genesis: 32 bytes, the lineage before round `first`.
        keep_results: rounds whose result bytes stay, at least 1.
        """
        if keep_results < 1:
            raise ValueError(f"keep_results is {keep_results}, at least 1 is needed")
        self.path, self.swarm, self.genesis = Path(path), swarm, genesis
        self.keep_results, self.first = keep_results, first
        self.keep_from: int | None = None  # results from this round on stay, whatever keep_results says
        self.created = False  # True: nothing is known of what this key may have signed before
        self._lock = threading.RLock()
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._db = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False)
        except (OSError, sqlite3.Error) as error:
            raise ConfigError(f"{path}: cannot open the ledger: {error}") from error
        try:
            self._prepare()
        except LedgerError as error:
            self._db.close()
            raise ConfigError(str(error)) from error.__cause__
        except ConfigError:
            self._db.close()
            raise

    def close(self) -> None:
        """Close the file; may be called twice."""
        with self._lock:
            self._db.close()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @contextlib.contextmanager
    def batch(self) -> Iterator[None]:
        """Make all calls inside one transaction: durable together when it ends, all undone when it raises."""
        with self._lock, self._translated():
            if self._in_transaction():
                yield
                return
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            finally:
                if self._in_transaction():
                    self._db.execute("ROLLBACK")

    def get(self, key: str) -> bytes | None:
        """Return a small value stored with `put`, or None."""
        row = self._row("SELECT value FROM meta WHERE key = ?", f"user/{key}")
        return None if row is None else row[0]

    def put(self, key: str, value: bytes) -> None:
        """Store a small value of the node's own."""
        with self.batch():
            self._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (f"user/{key}", value))

    def sign_once(self, round: int, slot: bytes, raw: bytes) -> None:
        """Write down that `raw` is what we sign for this slot; sign and send it only after this returned.

        Again with the same bytes is fine. Raises SlotConflictError for other bytes, and for a round so old that its
        slots are forgotten.
        """
        with self.batch():
            if round <= self._size() - 1 - SLOT_ROUNDS:
                raise SlotConflictError(f"round {round} is decided and its slots are forgotten")
            self._db.execute("INSERT OR IGNORE INTO slots VALUES (?, ?, ?)", (slot, round, raw))
            if self.slot(slot) != raw:
                raise SlotConflictError(f"slot {slot.hex()} of round {round} is taken by something else")

    def slot(self, slot: bytes) -> bytes | None:
        """Return what was signed for a slot, or None."""
        row = self._row("SELECT raw FROM slots WHERE slot = ?", slot)
        return None if row is None else row[0]

    def slots_of_round(self, round: int) -> dict[bytes, bytes]:
        """Return what was signed in a round, by slot."""
        return dict(self._rows("SELECT slot, raw FROM slots WHERE round = ? ORDER BY slot", round))

    def hold(self, held: Held, parts: Mapping[bytes, bytes]) -> None:
        """Keep an outcome of an undecided round, and the bytes of its parts by root, until the round is decided."""
        with self.batch():
            packed = (_pack(list(held.commits)), _pack(list(held.roots)))
            row = (held.round, held.value, held.outcome, *packed)
            self._db.execute("INSERT OR REPLACE INTO held VALUES (?, ?, ?, ?, ?)", row)
            self._put_parts(held.round, parts)

    def held(self, round: int) -> list[Held]:
        """Return the outcomes that are held for a round."""
        rows = self._rows("SELECT * FROM held WHERE round = ? ORDER BY value", round)
        with reading(self.path):
            held = [Held(row[0], row[1], row[2], _unpack(row[3]), _unpack(row[4])) for row in rows]
            if any(one.value != outcome_digest(one.outcome) for one in held):
                raise ValueError(f"an outcome of round {round} is another one")
        return held

    def part(self, round: int, root: bytes) -> bytes | None:
        """Return the bytes of a part, held or decided, or None."""
        row = self._row("SELECT data FROM parts WHERE round = ? AND root = ?", round, root)
        return None if row is None else row[0]

    def fill(self, round: int, parts: Mapping[bytes, bytes]) -> None:
        """Write the bytes of parts of a decided round, by root, that came later than its entry, or anew."""
        with self.batch():
            entry = self.entry(round)
            if entry is None or not parts.keys() <= set(entry.roots):
                raise ValueError(f"round {round} has no such parts")
            rows = [(round, root, data) for root, data in parts.items()]
            self._db.executemany("INSERT OR REPLACE INTO parts VALUES (?, ?, ?)", rows)

    def roots_held(self, round: int) -> set[bytes]:
        """Return the roots of those parts of a round whose bytes are here."""
        return {root for (root,) in self._rows("SELECT root FROM parts WHERE round = ?", round)}

    def drop_results(self, before: int) -> None:
        """Forget the bytes of results of rounds before this one, and give their room back to the disk."""
        with self.batch():
            self._db.execute("DELETE FROM parts WHERE round < ? AND round < ?", (before, self._size()))
        with self._lock, self._translated():
            self._db.executescript("PRAGMA incremental_vacuum; PRAGMA wal_checkpoint(TRUNCATE)")  # runs each to its end

    def append(self, entry: Entry, parts: Mapping[bytes, bytes] | None = None) -> None:
        """Write a decided round, with the bytes of those of its parts (by root) that are not held already.

        Forgets what was held for the round and not decided, results older than `keep_results`, and old slots.
        Raises ValueError when it is not the next round or its lineage does not follow from the one before.
        """
        with self.batch():
            size, lineage = self._size(), self.lineage()
            if entry.round != size:
                raise ValueError(f"round {entry.round} where round {size} is next")
            if entry.lineage != next_lineage(lineage, outcome_digest(entry.outcome)):
                raise ValueError(f"the lineage of round {entry.round} does not follow from {lineage.hex()}")
            packed = (_pack(list(entry.commits)), _pack(list(entry.roots)), entry.decided_unix_s)
            row = (entry.round, entry.lineage, entry.outcome, entry.certificate, *packed)
            self._db.execute("INSERT INTO entries VALUES (?, ?, ?, ?, ?, ?, ?)", row)
            self._grow_tree(size - self.first, leaf_hash(entry.leaf()))
            self._put_parts(entry.round, {root: data for root, data in (parts or {}).items() if root in entry.roots})
            self._forget(entry)

    def __len__(self) -> int:
        """Return the next round's number; the final chain has decided as many."""
        with self._lock, self._translated():
            return self._size()

    def lineage(self) -> bytes:
        """Return the lineage after the last decided round, genesis when there is none."""
        row = self._row("SELECT lineage FROM entries ORDER BY round DESC LIMIT 1")
        return self.genesis if row is None else row[0]

    def last(self) -> Entry | None:
        """Return the last decided round, or None."""
        return self.entry(len(self) - 1)

    def entry(self, round: int) -> Entry | None:
        """Return a decided round, or None."""
        found = self.entries(round, round + 1)
        return found[0] if found else None

    def entries(self, start: int, stop: int) -> list[Entry]:
        """Return the decided rounds from `start` up to and without `stop`, as far as there are any."""
        return make_entries(self._rows(ENTRIES_QUERY, self.first, start, stop), self.path)

    def result(self, round: int) -> tuple[bytes, ...] | None:
        """Return the bytes of a result's parts in order; None when it is unknown, forgotten or void."""
        with self._lock:
            entry = self.entry(round)
            if entry is None or not entry.roots:
                return None
            parts = [data for root in entry.roots if (data := self.part(round, root)) is not None]
            return tuple(parts) if len(parts) == len(entry.roots) else None

    def tree(self, size: int | None = None) -> Tree:
        """Return the log's tree over its first `size` rounds (all of them): roots and proofs of any past state."""
        have = len(self) - self.first
        if size is not None and not 0 <= size <= have:
            raise ValueError(f"no tree of {size} in a log of {have}")
        return Tree(have if size is None else size, self._node)

    def query(self, sql: str, *values: object) -> list[tuple[Any, ...]]:
        """Run one statement of a table that another module keeps in this file; inside `batch` when it writes."""
        return self._rows(sql, *values)

    def _prepare(self) -> None:
        """Set the file up or check it; one transaction, so that a file is whole or empty."""
        self._rows("PRAGMA busy_timeout = 5000")  # a reader such as `p2pnet log`
        self._rows("PRAGMA auto_vacuum = INCREMENTAL")  # a new file's only: forgotten results can give their room back
        self._rows(f"PRAGMA journal_size_limit = {WAL_BYTES_MAX}")
        self._rows("PRAGMA journal_mode = WAL")
        self._rows("PRAGMA synchronous = FULL")  # WAL's default may lose the last transactions to a power cut
        with self.batch():
            application, version = self._pragma("application_id"), self._pragma("user_version")
            if (application, version, self._rows("SELECT count(*) FROM sqlite_master")) == (0, 0, [(0,)]):
                self._create()
            elif application != APPLICATION_ID:
                raise ConfigError(f"{self.path}: not a p2pnet ledger but another program's database")
            elif version != SCHEMA_VERSION:
                raise ConfigError(f"{self.path}: format {version}, this p2pnet reads {SCHEMA_VERSION}; upgrade p2pnet")
        with self._translated():
            problem = self._db.execute("PRAGMA quick_check(1)").fetchone()[0]
            if problem != "ok":
                raise sqlite3.DatabaseError(" ".join(problem.split()))
        for key, expected in (("swarm", self.swarm), ("genesis", self.genesis)):
            row = self._row("SELECT value FROM meta WHERE key = ?", key)
            if row is None or row[0] != expected:
                found = row[0].hex() if row is not None and isinstance(row[0], bytes) else "nothing"
                raise ConfigError(f"{self.path}: {key} is {found}, not {expected.hex()}: another swarm's ledger")

    def _create(self) -> None:
        for statement in _SCHEMA.split(";"):
            self._db.execute(statement)
        self._db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        self._db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        self._db.executemany("INSERT INTO meta VALUES (?, ?)", [("swarm", self.swarm), ("genesis", self.genesis)])
        self.created = True

    def _forget(self, entry: Entry) -> None:
        self._db.execute("DELETE FROM held WHERE round <= ?", (entry.round,))
        marks = ", ".join("?" * len(entry.roots))
        self._db.execute(f"DELETE FROM parts WHERE round = ? AND root NOT IN ({marks})", (entry.round, *entry.roots))
        oldest = entry.round - self.keep_results + 1
        if self.keep_from is not None:
            oldest = min(oldest, self.keep_from)
        self._db.execute("DELETE FROM parts WHERE round < ?", (oldest,))
        self._db.execute("DELETE FROM slots WHERE round <= ?", (entry.round - SLOT_ROUNDS,))

    def _put_parts(self, round: int, parts: Mapping[bytes, bytes]) -> None:
        rows = [(round, root, data) for root, data in parts.items()]
        self._db.executemany("INSERT OR IGNORE INTO parts VALUES (?, ?, ?)", rows)

    def _grow_tree(self, position: int, digest: bytes) -> None:
        """Add a leaf and every perfect subtree that it completes: two rows per round in the long run."""
        level = 0
        self._db.execute("INSERT INTO nodes VALUES (?, ?, ?)", (level, position, digest))
        while position & 1:
            digest = node_hash(self._node(level, position - 1), digest)
            level, position = level + 1, position >> 1
            self._db.execute("INSERT INTO nodes VALUES (?, ?, ?)", (level, position, digest))

    def _node(self, level: int, position: int) -> bytes:
        row = self._row("SELECT hash FROM nodes WHERE level = ? AND position = ?", level, position)
        if row is None:
            raise LedgerError(f"{self.path}: the log's tree lacks node {level}/{position}: damaged")
        digest: bytes = row[0]
        return digest

    def _size(self) -> int:
        last = self._db.execute("SELECT max(round) FROM entries").fetchone()[0]
        if not isinstance(last, int | None):
            raise sqlite3.DatabaseError("a round that is no number")
        return self.first if last is None else last + 1

    def _in_transaction(self) -> bool:
        return self._db.in_transaction

    def _pragma(self, name: str) -> int:
        value: int = self._db.execute(f"PRAGMA {name}").fetchone()[0]
        return value

    def _row(self, query: str, *values: object) -> tuple[Any, ...] | None:
        rows = self._rows(query, *values)
        return rows[0] if rows else None

    def _rows(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        with self._lock, self._translated():
            return self._db.execute(query, values).fetchall()

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.ProgrammingError, sqlite3.InterfaceError, sqlite3.DataError):
            raise  # ours
        except sqlite3.Error as error:
            raise LedgerError(explain(self.path, error)) from error
        except UnicodeDecodeError as error:  # a text that was bytes when it was written
            raise LedgerError(damaged(self.path, error)) from error


def make_entries(rows: Sequence[tuple[Any, ...]], path: Path) -> list[Entry]:
    """Return the decided rounds of ENTRIES_QUERY's rows; LedgerError unless they are what the log's tree hashes."""
    with reading(path):
        entries = [Entry(row[0], row[1], row[2], row[3], _unpack(row[4]), _unpack(row[5]), row[6]) for row in rows]
        for entry, row in zip(entries, rows, strict=True):
            if leaf_hash(entry.leaf()) != row[7]:
                raise ValueError(f"round {entry.round} is not what was written")
    return entries


def _pack(value: Sequence[object]) -> bytes:
    packed: bytes = msgpack.packb(value)
    return packed


def _unpack(data: bytes) -> tuple[bytes, ...]:
    items = msgpack.unpackb(data)
    if type(items) is not list or not all(type(item) is bytes for item in items):
        raise ValueError("not a list of bytes")
    return tuple(items)
