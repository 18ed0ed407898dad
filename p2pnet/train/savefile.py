"""The file from which a stopped peer goes on: what is in it, and when it is written again."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Final

from p2pnet.errors import ConfigError
from p2pnet.train.learner import Learner
from p2pnet.train.moments import Moments
from p2pnet.train.ranks import Ranks
from p2pnet.train.storage import dump_tensors, parse_tensors, read_tensors, write_tensors

log = logging.getLogger(__name__)

LEARNER_NAME: Final = "learner.safetensors"
SAVE_SHARE: Final = 50  # saving may take this fraction of the time, so that a kill seldom costs more than a round
AGAIN = "move it away and the run is replayed from its start"


class SaveFile:
    """Keeps theta, e, a pending update and the optimizers' state in a swarm's folder, with the round they stand at.

    Of a replica of several processes rank 0 writes it all, one rank's shards at a time: the others need no disk.
    """

    def __init__(
        self, folder: Path | None, learner: Learner, moments: Moments, ranks: Ranks, *, rounds_max: int
    ) -> None:
        """folder: None on ranks other than 0.   rounds_max: between two saves, whatever they cost; rank 0's."""
        self._folder, self._learner, self._moments, self._ranks = folder or Path(), learner, moments, ranks
        self._rounds_max = ranks.agree(rounds_max if ranks.first else 0)
        self._path = self._folder / LEARNER_NAME
        self._saved_s, self._cost_s, self._saved_round = time.monotonic(), 0.0, 0

    def load(self, initial: Path) -> tuple[int, int, str]:
        """Set the learner to where this peer stopped, or to the initial parameters. Collective.

        returns: the next round, the samples of a pending update, and the branch it is in, empty for the final chain.
        Raises ConfigError for a file that does not fit.
        """
        if not self._ranks.agree(int(self._ranks.first and self._path.exists())):
            self._learner.load_initial(_read(initial) if self._ranks.first else b"")
            return 0, 0, ""
        try:
            notes = self._learner.load(self._path, self._moments)
            line = notes.get("line", "")
            self._saved_round, samples = int(notes.get("round", "-1")), int(notes.get("samples", "0"))
        except ConfigError as error:
            raise ConfigError(f"{error}; {AGAIN}") from error
        except ValueError:
            self._saved_round, samples, line = -1, 0, ""
        if self._saved_round < 0:
            raise ConfigError(f"{self._path}: does not say its round; {AGAIN}")
        self._load_ranks()
        return self._saved_round, samples, line

    def is_due(self, round_id: int) -> bool:
        """Tell whether it is time to save, by the last save's cost. Collective."""
        paced = time.monotonic() - self._saved_s >= SAVE_SHARE * self._cost_s
        return bool(self._ranks.agree(int(self._ranks.first and paced))) or self.is_overdue(round_id)

    def is_overdue(self, round_id: int) -> bool:
        """Tell whether the ledger may soon lack results since the last save."""
        return round_id - self._saved_round >= self._rounds_max

    def save(self, round_id: int, samples: int = 0, line: str = "", alone: bool = False) -> None:
        """Write where the learner stands. Collective, unless alone: then the other ranks' shards stay as they were.

        samples: of a pending update.   line: the branch it is in; empty: the final chain.
        Raises ConfigError when the disk takes no more.
        """
        began_s = time.monotonic()
        notes = {"round": str(round_id), "samples": str(samples), "line": line}
        if self._ranks.first:
            self._learner.save(self._path, notes, self._moments)
        if self._learner.replica.sharded and not alone:
            for rank in range(1, self._ranks.size):
                data = dump_tensors(self._moments.dump()) if self._ranks.rank == rank else b""
                if data := self._ranks.to_first(rank, data):
                    write_tensors(self._of_rank(rank), parse_tensors(data, f"rank {rank}"), {})
        self._saved_s, self._saved_round = time.monotonic(), round_id
        self._cost_s = self._saved_s - began_s

    def _load_ranks(self) -> None:
        """Give the other ranks their optimizers' state: their own shards, or what rank 0 has."""
        if not self._learner.replica.sharded:
            if self._ranks.size > 1:
                self._restore(self._ranks.share(dump_tensors(self._moments.dump()) if self._ranks.first else b""))
            return
        for rank in range(1, self._ranks.size):
            data = b""
            if self._ranks.first and (path := self._of_rank(rank)).exists():
                try:
                    data = dump_tensors(read_tensors(path)[0])
                except ConfigError as error:
                    log.warning("%s: the optimizer of rank %d begins anew", error, rank)
            if data := self._ranks.to_rank(rank, data):
                self._restore(data)

    def _restore(self, data: bytes) -> None:
        if not self._ranks.first:
            for note in self._moments.restore(parse_tensors(data, "the optimizer's state")):
                log.warning("rank %d: %s", self._ranks.rank, note)

    def _of_rank(self, rank: int) -> Path:
        return self._folder / f"learner.rank{rank}.safetensors"


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
