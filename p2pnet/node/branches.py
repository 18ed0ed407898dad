"""Keep the branches that a peer is in on its disk, and where its learner left the line before each.

Contract: protocols/branch-1.md. A folder for each: what the branch is and what the learner had, the parameters that the
learner left (it writes them itself), and the branch's own ledger.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from p2pnet.core import events as ev
from p2pnet.core.forming import rank
from p2pnet.core.state import SwarmState
from p2pnet.errors import ConfigError, P2pnetError, WireError
from p2pnet.ledger.log import FILE_NAME, Ledger
from p2pnet.node import bridge as br
from p2pnet.node.history import replay
from p2pnet.wire.branch import BranchCertificate
from p2pnet.wire.codec import decode, encode, pack, unpack

log = logging.getLogger(__name__)

FOLDER_NAME = "branches"
RECORD_NAME, STATE_NAME = "branch", "left.state"
RECORD_BYTES_MAX = 1 << 32  # a payload is in it


@dataclass(frozen=True, slots=True)
class Kept:
    """One branch on the disk."""

    folder: Path
    certificate: BranchCertificate
    started: ev.Started | None  # what the learner had when it left the line that this branch goes on from
    update: ev.Encoded | None
    payload: bytes  # of that update; empty: none

    @property
    def id(self) -> bytes:
        """The branch's id, 32 bytes."""
        return self.certificate.branch_id()

    @property
    def fork(self) -> br.Fork:
        """Tells the learner to write down where it leaves the line before this branch."""
        return br.Fork(self.certificate.round, self.folder / STATE_NAME, self.id.hex())

    def back(self, final: bytes) -> br.Return:
        """Tells the learner to go back there.   final: the swarm's id."""
        checksum = self.started.checksum if self.started is not None else None
        samples = self.update.samples if self.update is not None else 0
        line = "" if self.certificate.swarm == final else self.certificate.swarm.hex()
        return br.Return(self.certificate.round, self.folder / STATE_NAME, checksum, self.payload, samples, line)

    def genesis(self, base: SwarmState) -> SwarmState:
        """The state in which the branch begins.   base: before the stalled round."""
        return base.fork(self.id, self.certificate.voters)

    def open_ledger(self, genesis: SwarmState, keep_results: int) -> Ledger:
        """The branch's own decided rounds and slots; ConfigError when the file is damaged."""
        return Ledger(self.folder / FILE_NAME, self.id, genesis.lineage, keep_results, genesis.round)

    def remove(self) -> None:
        """Delete it: the learner is back on the line before, and its ledger is closed."""
        shutil.rmtree(self.folder, ignore_errors=True)


class Branches:
    """The branches of one swarm on this machine."""

    def __init__(self, folder: Path) -> None:
        """folder: the swarm's."""
        self._folder = folder / FOLDER_NAME

    def create(self, depth: int, fork: ev.Fork, payload: bytes) -> Kept:
        """Write down a branch that begins; durable when this returns.

        depth: branches that it goes on from.   payload: of `fork.update`.
        """
        folder = self._folder / f"{depth}-{fork.branch.hex()[:16]}"
        kept = Kept(folder, fork.certificate, fork.started, fork.update, payload)
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            part = folder / f"{RECORD_NAME}.part"
            with part.open("wb") as file:
                file.write(_write(kept))
                file.flush()
                os.fsync(file.fileno())
            part.replace(folder / RECORD_NAME)
        except OSError as error:
            raise ConfigError(f"{folder}: cannot write down a branch: {error.strerror}") from error
        return kept

    def load(self) -> list[Kept]:
        """What a stopped process left. What cannot be read stays on the disk and is not gone on with."""
        found = []
        for folder in sorted(self._folder.glob("*-*")):
            if not (folder / RECORD_NAME).exists():  # the process ended before the branch was written down
                shutil.rmtree(folder, ignore_errors=True)
                continue
            try:
                found.append(_read(folder))
            except (WireError, OSError, TypeError, ValueError) as error:
                log.warning("%s: cannot be read, and is not gone on with: %s", folder, error)
        return found


Line = tuple[Kept, SwarmState, Ledger]  # a branch, the state in which it begins, its decided rounds


def follow(kept: Sequence[Kept], final: SwarmState, keep_results: int) -> list[Line]:
    """The branches that still go on, each from the one before it, with the state in which it begins and its ledger.

    final: where the final chain stands. The others are over: the line that they go on from has decided their round.
    """
    found: list[Line] = []
    base = final
    while (went_on := _go_on(kept, base, keep_results)) is not None:
        line, base = went_on
        found.append(line)
    return found


def _go_on(kept: Sequence[Kept], base: SwarmState, keep_results: int) -> tuple[Line, SwarmState] | None:
    """The best branch that goes on from here, and where it stands."""
    about = base.swarm, base.round, base.lineage
    here = (one for one in kept if (one.certificate.swarm, one.certificate.round, one.certificate.lineage) == about)
    for one in sorted(here, key=lambda one: rank(one.certificate)):
        genesis = one.genesis(base)
        try:
            ledger = one.open_ledger(genesis, keep_results)
        except P2pnetError as error:
            log.warning("%s: not gone on with: %s", one.folder, error)
            continue
        try:
            return (one, genesis, ledger), replay(genesis, ledger)
        except P2pnetError as error:
            ledger.close()
            log.warning("%s: not gone on with: %s", one.folder, error)
    return None


def _write(kept: Kept) -> bytes:
    started, update = kept.started, kept.update
    about = [] if started is None else [started.checksum, started.state]
    sent: list[object] = []
    if update is not None:
        sent = [update.payload_root, update.samples, int(update.assigned), update.reach, update.up_kbps]
        sent.append(update.down_kbps)
    return pack([encode(kept.certificate), about, sent, kept.payload])


def _read(folder: Path) -> Kept:
    path = folder / RECORD_NAME
    if path.stat().st_size > RECORD_BYTES_MAX:
        raise ValueError(f"at most {RECORD_BYTES_MAX} bytes are expected")
    raw, about, sent, payload = _typed(unpack(path.read_bytes(), RECORD_BYTES_MAX), bytes, list, list, bytes)
    certificate = decode((BranchCertificate,), raw)
    number, started, update = certificate.round, None, None
    certificate.branch_id()  # it has as many of all as voters
    if about:
        started = ev.Started(number, *_typed(about, int, bytes))
    if sent:
        root, samples, assigned, *rates = _typed(sent, bytes, int, int, int, int, int)
        update = ev.Encoded(number, root, samples, bool(assigned), *rates)
    return Kept(folder, certificate, started, update, payload)


def _typed(fields: Any, *types: type) -> list[Any]:
    """The fields of a record, when they are of these types."""
    if not isinstance(fields, list) or [type(each) for each in fields] != list(types):
        raise ValueError("its fields are not those of a branch's record")
    return fields
