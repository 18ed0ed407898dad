"""Take up a decided round of many groups, and say what is decided. Pure. Contract: protocols/groups-1.md."""

from __future__ import annotations

from typing import TYPE_CHECKING

from p2pnet.core.candidates import Candidate
from p2pnet.core.events import Decide
from p2pnet.core.outcomes import lead_on, list_columns
from p2pnet.core.wide import WideExchange
from p2pnet.core.wide_rosters import assemble
from p2pnet.errors import WireError
from p2pnet.wire.round import Quorum, WideDecision, WideOutcome, decode_value

if TYPE_CHECKING:
    from p2pnet.core.round import Round


def adopt_wide(round_: Round, message: WideDecision) -> None:
    """Take a decision of many groups; raises WireError with the rule broken."""
    if round_.assembly is None:
        raise WireError("groups-1/R30", "an outcome of many groups where there is one")
    whole = assemble(round_.state, message.groups, round_.context.verify)
    round_.assembly.whole[whole.digest] = whole
    round_.candidates.adopt(message.outcome, decode_value(message.outcome), whole.commits)


def decide_wide(round_: Round, candidate: Candidate, certificate: Quorum) -> Decide:
    """The decision of many groups; all that it rests on is here."""
    plan, columns, outcome = candidate.plan, round_.candidates.columns_of(candidate), candidate.outcome
    assert plan is not None
    assert isinstance(outcome, WideOutcome)
    exchange, mine = round_.exchanges.get(plan.view), round_.commits.held.get(round_.context.me)
    listed = plan.commits_by.get(round_.context.me)
    is_in = round_.contributes and mine is not None and listed is not None and mine[0].raw == listed.raw
    masks = (0,) * len(columns)
    if is_in and isinstance(exchange, WideExchange) and exchange.digest == plan.roster:
        masks = tuple(exchange.mask(column) for column in columns)
    return Decide(
        round_.state.round,
        WideDecision(
            certificate, candidate.raw, round_.candidates.whole[plan.roster].listings,
            list_columns(plan, candidate.raw, columns),
        ),
        False,
        candidate.roots,
        tuple((part.start, part.stop) for part in candidate.parts),
        masks,
        lead_on(round_.state, candidate.raw, outcome, plan, columns),
    )  # fmt: skip
