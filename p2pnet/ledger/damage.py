"""Say what is wrong with a ledger's file, and what to do about it."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import msgpack

from p2pnet.errors import P2pnetError


class LedgerError(P2pnetError):
    """The disk's: full, gone, or damaged. What was being written is not in the ledger, all before it is."""


def explain(path: Path, error: sqlite3.Error) -> str:
    """Say what happened to the file and what to do about it."""
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF  # without: quick_check's words
    match code:
        case sqlite3.SQLITE_FULL:
            return f"{path}: the disk is full; free some space and start again, all that was decided is there"
        case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_PERM:
            return f"{path}: cannot write there: {error}"
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return f"{path}: another process keeps it locked: {error}"
        case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB | sqlite3.SQLITE_CONSTRAINT | sqlite3.SQLITE_ERROR:
            return damaged(path, error)
        case _:
            return f"{path}: the disk does not take or give what it should: {error}"


def damaged(path: Path, error: Exception | str) -> str:
    """Say that the file is damaged, and what to do about it."""
    return (
        f"{path}: damaged ({error}); move it away, with {path.name}-wal and {path.name}-shm beside it, and "
        f"start again: the decided rounds come back from other members"
    )


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what is wrong with rows that were read into LedgerError: SQLite has no checksum over what it stores."""
    try:
        yield
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise LedgerError(damaged(path, error)) from error
