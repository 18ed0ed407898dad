"""Keep the certified states, as files named by their hash, for who joins late. Contract: protocols/history-1.md."""

from __future__ import annotations

import logging
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from p2pnet.ledger.log import Ledger
from p2pnet.wire.round import decode_value

log = logging.getLogger(__name__)

FOLDER_NAME = "states"
KEPT = 2  # certified states; the older one for who is fetching it while the newer one comes


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A state that a decided outcome certifies: the parameters before its round."""

    round: int
    sha256: bytes  # 32 bytes


class Snapshots:
    """What of the certified states lies in a swarm's folder. The learner writes them, at the round that wants them."""

    def __init__(self, folder: Path, snapshot_rounds: int, ledger: Ledger, disk_bytes: int = 0) -> None:
        """folder: the swarm's on this machine.   snapshot_rounds: the manifest's.

        disk_bytes: what the folder may take; 0: no limit. Beyond it only those results are kept that a joiner needs.
        """
        self.folder, self._disk_bytes = folder, disk_bytes
        self._every, self._ledger = snapshot_rounds, ledger
        self.keep()

    def certified(self) -> list[Snapshot]:
        """The latest ones, at most KEPT, the newest first. That of round 0 is the initial parameters and is no file."""
        last = (len(self._ledger) - 1) // self._every * self._every
        found = []
        for number in range(last, max(0, last - KEPT * self._every), -self._every):
            entry = self._ledger.entry(number)
            state = decode_value(entry.outcome).state if entry else b""
            if len(state) == 32:
                found.append(Snapshot(number, state))
        return found

    def find(self, sha256: bytes) -> Path | None:
        """Where a certified state lies, None when it is not certified or not here."""
        path = state_path(self.folder, sha256)
        return path if any(one.sha256 == sha256 for one in self.certified()) and path.exists() else None

    def keep(self) -> None:
        """Hold on to what a joiner needs, the certified states and the results since, and drop the other files."""
        certified = self.certified()
        self._ledger.keep_from = certified[-1].round if len(certified) == KEPT else 0
        wanted = {state_path(self.folder, one.sha256) for one in certified}
        for path in (self.folder / FOLDER_NAME).glob("*"):
            if path.with_suffix("") not in wanted:  # what is half fetched of a wanted one may go on
                try:
                    path.unlink()
                except OSError as error:
                    log.warning("%s: cannot remove it: %s", path, error.strerror)
        if 0 < self._disk_bytes < used_bytes(self.folder):
            self._ledger.keep_results = 1
            self._ledger.drop_results(min(self._ledger.keep_from, len(self._ledger) - 1))


def used_bytes(folder: Path) -> int:
    """Return what a swarm's folder takes on the disk; files come and go meanwhile."""
    used = 0
    for path in folder.rglob("*"):
        with suppress(OSError):
            used += path.lstat().st_size
    return used


def state_path(folder: Path, sha256: bytes) -> Path:
    """Where the state with this hash lies in a swarm's folder."""
    return folder / FOLDER_NAME / sha256.hex()
