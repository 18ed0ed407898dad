"""The evidence that this peer has verified, beside the decided rounds; durable when a call returns.

The table is made when it is first wanted, so that older ledgers need no other format. Old evidence falls out: what is
decided names it by its digest, and who wants to check an exclusion asks while it lasts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from p2pnet.identity import PeerId
from p2pnet.ledger.log import Ledger

KEPT_MAX: Final = 256  # pieces of evidence; the latest stay, 1 MiB each at most

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS evidence (
    number INTEGER PRIMARY KEY, digest BLOB NOT NULL UNIQUE, peer BLOB NOT NULL, round INTEGER NOT NULL,
    what TEXT NOT NULL, raw BLOB NOT NULL
)
"""

QUERY: Final = "SELECT digest, peer, round, what FROM evidence ORDER BY number"


@dataclass(frozen=True, slots=True)
class Stored:
    """A piece of evidence in short: who lied in which round, and how."""

    digest: bytes  # 32 bytes, of the evidence
    peer: PeerId
    round: int
    what: str  # for a person


class EvidenceTable:
    """The evidence in one ledger."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        with ledger.batch():
            ledger.query(_SCHEMA)

    def keep(self, stored: Stored, raw: bytes) -> None:
        """Write a piece of evidence; again is fine."""
        with self._ledger.batch():
            row = (stored.digest, stored.peer, stored.round, stored.what, raw)
            self._ledger.query("INSERT OR IGNORE INTO evidence VALUES (NULL, ?, ?, ?, ?, ?)", *row)
            oldest = "SELECT number FROM evidence ORDER BY number DESC LIMIT -1 OFFSET ?"
            self._ledger.query(f"DELETE FROM evidence WHERE number IN ({oldest})", KEPT_MAX)

    def find(self, digest: bytes) -> bytes | None:
        """Return the bytes of a piece of evidence, or None."""
        rows = self._ledger.query("SELECT raw FROM evidence WHERE digest = ?", digest)
        return rows[0][0] if rows else None

    def all(self) -> list[Stored]:
        """Return what is kept, in the order in which it came."""
        return read_evidence(self._ledger.query)


def read_evidence(query: Callable[[str], list[tuple[Any, ...]]]) -> list[Stored]:
    """Return what a ledger keeps; none where the table was never made."""
    if not query("SELECT 1 FROM sqlite_master WHERE name = 'evidence'"):
        return []
    return [Stored(row[0], PeerId(row[1]), row[2], row[3]) for row in query(QUERY)]
