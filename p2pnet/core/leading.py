"""The duties of a view's proposer: a roster, then a proposal. Pure. Contract: protocols/round-1.md, R20 to R24."""

from __future__ import annotations

from typing import TYPE_CHECKING

from p2pnet.core.answers import prepared_quorum
from p2pnet.core.assembling import call_due_s, call_wide, has_refused, take_wide_roster
from p2pnet.core.events import Broadcast, Effect
from p2pnet.core.exchange import LATE_PROPOSAL, RosterExchange
from p2pnet.core.outcomes import wide_outcome
from p2pnet.core.stages import PATIENCE
from p2pnet.core.wide import WideExchange
from p2pnet.wire.codec import encode
from p2pnet.wire.round import (
    Commit,
    Exclusion,
    Outcome,
    Proposal,
    Roster,
    WideOutcome,
    WideRoster,
    decode_value,
    outcome_digest,
)  # fmt: skip
from p2pnet.wire.signing import Signed

if TYPE_CHECKING:
    from p2pnet.core.round import Round


def lead(round_: Round, now_s: float) -> list[Effect]:
    """Do what the proposer of this view does now.

    In this order: propose again what more than 2/3 prepared (Tendermint, lines 15 and 16); in later views finish what
    an earlier one left undone, but nothing that was tried lately; propose the result of the exchange; call a roster; at
    last propose VOID.
    """
    deciding, view = round_.deciding, round_.deciding.view
    if round_.context.me != round_.state.proposer(view) or view in round_.proposals or deciding.step != 0:
        return []
    if deciding.valid is not None and (candidate := round_.candidates.found.get(deciding.valid[1])) is not None:
        return _propose(round_, candidate.raw, deciding.valid[0] + 1, candidate.commits, now_s)
    if round_.my_state is None:
        return []  # my learner is not there yet: I do not know what the outcome says about the state
    held, tried = round_.candidates.result(), {proposed.value for proposed in round_.proposals.values()}
    if held is not None and held.value not in tried and view not in round_.exchanges:
        return _propose(round_, held.raw, 0, held.commits, now_s)
    exchange = round_.exchanges.get(view) or _unfinished(round_)
    if exchange is None:
        if round_.commit_over_s is None:
            return []
        if round_.assembly is not None:
            groups = call_wide(round_, now_s) if view not in round_.assembly.wide else None
            if groups is not None:
                return _call_wide(round_, groups, now_s)
            return _propose_void(round_, now_s) if view > 0 and now_s >= _hopeless_s(round_) else []
        raws = round_.commits.roster()
        if raws:
            return _call_roster(round_, raws, now_s)
        return _propose_void(round_, now_s) if view > 0 else []
    outcome = _finished(round_, exchange)
    if outcome is not None:
        commits = exchange.commits if exchange.view != view else ()
        return _propose(round_, encode(outcome), 0, commits, now_s)
    due_s = void_due_s(round_, exchange)
    return _propose_void(round_, now_s) if due_s is not None and now_s >= due_s else []


def void_due_s(round_: Round, exchange: RosterExchange | WideExchange | None) -> float | None:
    """When this peer, as a proposer, proposes VOID because its exchange gives no result; never in view 0."""
    view = round_.deciding.view
    if exchange is None or exchange.view != view or view == 0 or round_.deciding.step != 0:
        return None
    if round_.context.me != round_.state.proposer(view) or view in round_.proposals or round_.my_state is None:
        return None
    return exchange.void_s


def propose_due_s(round_: Round) -> float | None:
    """When this view is given up without a proposal that I can prepare."""
    if round_.commit_over_s is None:
        return None
    view, grace_s = round_.deciding.view, round_.grace_s
    start_s = max(round_.commit_over_s, round_.view_s)
    exchange = round_.exchanges.get(view)
    proposed = view in round_.proposals and not has_refused(round_)
    patience_s = grace_s * round_.deciding.growth()
    if round_.state.proposer(view) in round_.down and not proposed:
        return start_s + patience_s / 4
    if exchange is None and round_.assembly is not None:
        start_s = max(start_s, call_due_s(round_)) + patience_s
    if exchange is None:
        longest_s = round_.context.pace.longest_s(grace_s, round_.state.volume)
        return start_s + patience_s + (LATE_PROPOSAL * longest_s if proposed else 0.0)
    late_s = exchange.give_up_s
    if not proposed and exchange.complete_s is not None:  # it has all it needs, and is quiet
        slack_s = patience_s / 2
        if isinstance(exchange, WideExchange):  # or has not yet: the columns come to each at its own time
            slack_s = patience_s + (PATIENCE - 1) * (exchange.complete_s - exchange.start_s)
        return min(late_s, exchange.complete_s + slack_s)
    return late_s


def _finished(round_: Round, exchange: RosterExchange | WideExchange) -> Outcome | WideOutcome | None:
    """The result of an exchange as an outcome; None while it has none."""
    state, charges, my_state = round_.state, _charges(round_), round_.my_state or b""
    if isinstance(exchange, WideExchange):
        columns = exchange.result()
        if columns is None:
            return None
        for column in columns:
            round_.candidates.hold_column(column)
        return wide_outcome(state, exchange.plan, [column.digest for column in columns], my_state, charges)
    reduced = exchange.result()
    if reduced is None:
        return None
    raws = tuple(each.raw for each in reduced)
    return state.outcome(exchange.digest, exchange.view, raws, exchange.commits, my_state, charges)


def _unfinished(round_: Round) -> RosterExchange | WideExchange | None:
    """An exchange of an earlier view that is complete and held here, and that nobody proposed: its proposer is gone."""
    for view in sorted(round_.exchanges, reverse=True):
        if view >= round_.deciding.view or view in round_.proposals:
            continue
        exchange = round_.exchanges[view]
        if isinstance(exchange, WideExchange):
            if exchange.result() is not None:
                return exchange
            continue
        reduced = exchange.result()
        if reduced is not None and all(each.message.root in round_.candidates.held for each in reduced):
            return exchange
    return None


def _call_roster(round_: Round, raws: tuple[bytes, ...], now_s: float) -> list[Effect]:
    state = round_.state
    signed, effects = round_.slots.sign(Roster(state.swarm, state.round, round_.deciding.view, state.lineage, raws))
    return [*effects, Broadcast(signed.raw, True), *round_.roster(signed, now_s)]


def _call_wide(round_: Round, groups: tuple[bytes, ...], now_s: float) -> list[Effect]:
    """Call the roster of all groups."""
    state = round_.state
    roster = WideRoster(state.swarm, state.round, round_.deciding.view, state.lineage, groups)
    signed, effects = round_.slots.sign(roster)
    return [*effects, Broadcast(signed.raw, True), *take_wide_roster(round_, signed, now_s)]


def _hopeless_s(round_: Round) -> float:
    """When a proposer that no group gave a roster proposes VOID."""
    return call_due_s(round_) + round_.grace_s * round_.deciding.growth() / 2


def _charges(round_: Round) -> tuple[Exclusion, ...]:
    """Whom to exclude; nobody once each voter had its turn: where those who will not have it are too many, go on."""
    state = round_.state
    return round_.context.docket.charges(state) if round_.deciding.view < len(state.electorate) else ()


def _propose_void(round_: Round, now_s: float) -> list[Effect]:
    outcome = round_.state.outcome(b"", 0, (), (), round_.my_state or b"", _charges(round_))
    return _propose(round_, encode(outcome), 0, (), now_s)


def _propose(
    round_: Round, outcome: bytes, valid_view: int, commits: tuple[Signed[Commit], ...], now_s: float
) -> list[Effect]:
    """Propose an outcome; with its roster, where others may lack it, and the prepares that prove it."""
    state, view = round_.state, round_.deciding.view
    proof = prepared_quorum(round_) if valid_view else None
    effects: list[Effect] = [Broadcast(encode(proof), False)] if proof is not None else []
    signed, sent = round_.slots.sign(Proposal(state.swarm, state.round, view, valid_view, outcome))
    effects += [*sent, Broadcast(signed.raw, True)]
    if commits and outcome_digest(signed.message.outcome) == outcome_digest(outcome):
        if round_.assembly is not None:
            effects += round_.proposal(signed, now_s)
            groups = round_.assembly.groups_of(decode_value(outcome).roster)
            return [*effects, *(_call_wide(round_, groups, now_s) if groups else [])]
        raws = tuple(commit.raw for commit in commits)
        roster, sent = round_.slots.sign(Roster(state.swarm, state.round, view, state.lineage, raws))
        effects += [*sent, Broadcast(roster.raw, True), *round_.proposal(signed, now_s), *round_.roster(roster, now_s)]
        return effects
    return [*effects, *round_.proposal(signed, now_s)]
