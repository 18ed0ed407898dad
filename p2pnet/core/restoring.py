"""Take up a round where a stopped process of ours left it, so that nothing is signed twice. Pure.

Contract: protocols/round-1.md, R50.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from p2pnet.core.candidates import Candidate
from p2pnet.core.columns import judge_column
from p2pnet.core.decided import split_listings
from p2pnet.core.slots import Restored
from p2pnet.core.wide_rosters import assemble
from p2pnet.errors import WireError
from p2pnet.wire.round import Phase, Vote, WideOutcome, decode_value

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
        outcome = decode_value(raw)
        if isinstance(outcome, WideOutcome):
            candidate = _restore_wide(round_, raw, outcome, raws)
        else:
            commits = round_.commits.open_roster(raws) if raws else ()
            candidate = round_.candidates.adopt(raw, outcome, commits)
        candidate.checked = candidate.audited = True
        round_.candidates.held.update(candidate.roots)
        held.append(candidate.value)
    round_.deciding.restore(own, held)


def _restore_wide(round_: Round, raw: bytes, outcome: WideOutcome, raws: tuple[bytes, ...]) -> Candidate:
    """Take up an outcome of many groups: the listings of its groups were kept, and those of its columns."""
    groups, columns = split_listings(outcome, raws)
    if round_.assembly is None:
        raise WireError("groups-1/R30", "an outcome of many groups where there is one")
    whole = assemble(round_.state, groups, round_.context.verify)
    round_.assembly.whole[whole.digest] = whole
    candidate = round_.candidates.adopt(raw, outcome, whole.commits)
    assert candidate.plan is not None
    for number, listing in enumerate(columns):
        column = judge_column(candidate.plan, number, listing.items, round_.context.verify)
        round_.candidates.hold_column(column)
    return candidate
