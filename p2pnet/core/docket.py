"""Keep what this peer can prove: whom an outcome may exclude, and what evidence is still to be fetched. Pure.

Contract: protocols/evidence-1.md, R20 to R23, and protocols/round-1.md, R47 and R48.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from p2pnet.core.events import Effect, FetchEvidence
from p2pnet.core.evidence import Offence
from p2pnet.core.state import EVIDENCE_ROUNDS, SwarmState
from p2pnet.identity import PeerId
from p2pnet.wire.round import EXCLUDED_MAX, Exclusion

HELD_MAX = 1024  # pieces of evidence that are known here; identities with a row in the state are not free
ROUNDS_AHEAD = 2  # who is a round ahead may know of a lie before this peer is there


class Docket:
    """The evidence that this peer holds, verified and stored."""

    def __init__(self, held: Iterable[Offence] = (), held_max: int = HELD_MAX) -> None:
        """held: what a stopped process of ours left behind.   held_max: 0 in a branch, where nobody is excluded."""
        self._held_max = held_max
        self.held: dict[bytes, Offence] = {offence.digest: offence for offence in held}  # by digest
        self._worthless: set[bytes] = set()  # digests of bytes that prove nothing
        self._asked: set[bytes] = set()  # on their way
        self._again_s = -math.inf

    def wants(self, offence: Offence, state: SwarmState) -> bool:
        """Tell whether this evidence is to be kept: the first against a member, or one that an outcome names."""
        if offence.digest in self.held or len(self.held) >= self._held_max:
            return False
        if offence.digest in self._asked:
            return True
        others = (one for one in self.held.values() if one.peer == offence.peer)
        is_new = not any(is_fresh(one, state, ROUNDS_AHEAD) for one in others)
        return is_new and is_fresh(offence, state, ROUNDS_AHEAD)

    def hold(self, offence: Offence) -> None:
        """Take evidence that is proven and on its way to the disk."""
        self.held[offence.digest] = offence
        self._asked.discard(offence.digest)

    def charges(self, state: SwarmState) -> tuple[Exclusion, ...]:
        """Whom an outcome of this round should exclude, by peer; never the last voter."""
        found: dict[PeerId, bytes] = {}
        for digest, offence in self.held.items():
            if is_fresh(offence, state):
                found.setdefault(offence.peer, digest)
        listed: list[Exclusion] = []
        voters = set(state.electorate)
        for peer in sorted(found):
            if len(listed) < EXCLUDED_MAX and voters - {peer}:
                voters.discard(peer)
                listed.append(Exclusion(peer, found[peer]))
        return tuple(listed)

    def refutes(self, excluded: Sequence[Exclusion], state: SwarmState) -> str | None:
        """Say what is wrong with what an outcome says of liars, as far as the evidence is here; None: nothing is."""
        for each in excluded:
            offence = self.held.get(each.evidence)
            if each.evidence in self._worthless:
                return "round-1/R48: evidence that proves nothing"
            if offence is not None and (offence.peer != each.peer or not is_fresh(offence, state)):
                return "round-1/R48: evidence against another, or of long ago"
        return None

    def missing(self, excluded: Sequence[Exclusion]) -> list[bytes]:
        """The digests of evidence that an outcome names and that is not here."""
        return [each.evidence for each in excluded if each.evidence not in self.held]

    def fetch(self, excluded: Sequence[Exclusion], sources: tuple[PeerId, ...], now_s: float) -> list[Effect]:
        """Ask for what is missing, unless it is on its way or was asked for a moment ago."""
        if now_s < self._again_s:
            return []
        wanted = [digest for digest in self.missing(excluded) if digest not in self._asked]
        self._asked.update(wanted)
        return [FetchEvidence(digest, sources) for digest in wanted]

    def again_s(self, excluded: Sequence[Exclusion]) -> float | None:
        """When something missing wants to be asked for again; None when all is here or on its way."""
        return self._again_s if set(self.missing(excluded)).difference(self._asked) else None

    def failed(self, digest: bytes, is_worthless: bool, again_s: float) -> None:
        """Nobody gave this evidence, or what has this digest proves nothing."""
        self._asked.discard(digest)
        if is_worthless:
            self._worthless.add(digest)
        else:
            self._again_s = again_s

    def forget(self, state: SwarmState) -> None:
        """A round is over: drop what can exclude nobody any more."""
        self.held = {digest: offence for digest, offence in self.held.items() if is_fresh(offence, state, ROUNDS_AHEAD)}
        self._worthless.clear()
        self._asked.clear()


def is_fresh(offence: Offence, state: SwarmState, ahead: int = 0) -> bool:
    """Tell whether evidence counts in this round: a member's, not long ago, and not of before it was last let in again.

    So a proof excludes once: what was done before the end of an exclusion is atoned for with it.
    """
    first = max(state.round - EVIDENCE_ROUNDS, state.excluded.get(offence.peer, 0))
    return first <= offence.round <= state.round + ahead and state.may_exclude(offence.peer)
