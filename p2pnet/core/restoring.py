"""Take up a round where a stopped process of ours left it, so that nothing is signed twice. Pure.

Contract: protocols/round-1.md, R50.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from p2pnet.core.slots import Restored
from p2pnet.wire.round import Phase, Vote, decode_outcome

if TYPE_CHECKING:
    from p2pnet.core.round import Round


def restore(round_: Round, restored: Restored) -> None:
    """Take up the votes that were signed and the outcomes that are held.

    No rule runs here: what follows, follows from the first event, and none of its effects is lost.
    """
    own: dict[tuple[int, Phase], tuple[bytes, bytes]] = {}
    for signed in round_.slots.all():
        if isinstance(signed.message, Vote):
            vote = signed.message
            own[vote.view, Phase(vote.phase)] = (vote.value, signed.signature)
    held = []
    for raw, raws in restored.held:
        commits = round_.commits.open_roster(raws) if raws else ()
        candidate = round_.candidates.adopt(raw, decode_outcome(raw), commits)
        candidate.checked = candidate.audited = True
        round_.candidates.held.update(candidate.roots)
        held.append(candidate.value)
    round_.deciding.restore(own, held)
