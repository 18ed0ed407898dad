"""What a simulated peer has written down, and what it only remembers, of each line that it follows."""

from __future__ import annotations

from dataclasses import dataclass, field

from p2pnet.core import events as ev
from p2pnet.core.evidence import Offence
from p2pnet.core.state import SwarmState
from p2pnet.identity import PeerId
from p2pnet.wire.branch import BranchCertificate
from p2pnet.wire.round import Decision, WideDecision

Key = tuple[int, int, int]  # round, view, part


@dataclass(slots=True)
class Disk:
    """What a crash leaves: signed slots, held values, decided rounds, parts; of the final chain, or of a branch."""

    slots: dict[int, dict[bytes, bytes]] = field(default_factory=dict)
    held: dict[int, list[tuple[bytes, tuple[bytes, ...]]]] = field(default_factory=dict)
    log: list[Decision | WideDecision] = field(default_factory=list)
    parts: set[bytes] = field(default_factory=set)
    state: SwarmState | None = None
    theta: bytes = bytes(32)
    evidence: dict[bytes, tuple[Offence, bytes]] = field(default_factory=dict)  # by digest
    work: frozenset[bytes] = frozenset()  # the updates that theta has taken in, by the root of the payload they came in
    certificate: BranchCertificate | None = None  # None: the final chain
    forked: ev.Fork | None = None  # what its learner had when it went on from here

    def fork(self, effect: ev.Fork) -> Disk:
        """The disk of a branch that goes on from here."""
        self.forked = effect
        return Disk(state=effect.genesis, theta=self.theta, work=self.work, certificate=effect.certificate)


@dataclass(slots=True)
class Site:
    """One line at one peer: its disk, and what its process remembers."""

    disk: Disk
    memory: set[bytes] = field(default_factory=set)  # parts
    exchanges: dict[tuple[int, int], ev.Exchange] = field(default_factory=dict)  # by round and view
    slices: dict[Key, set[PeerId]] = field(default_factory=dict)
    waiting: dict[Key, set[PeerId]] = field(default_factory=dict)  # whose slice came, and waits for its part

    def __post_init__(self) -> None:
        self.memory |= self.disk.parts
