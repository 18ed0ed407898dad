"""Follow a proposal from its bytes to a vote: its roster, its parts, its audit. Pure.

Contract: protocols/round-1.md, R40 to R46.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from p2pnet.core.candidates import Candidate
from p2pnet.core.events import Effect, Note
from p2pnet.core.group_events import Root
from p2pnet.core.leading import propose_due_s
from p2pnet.core.outcomes import calls_void
from p2pnet.core.wide import WideExchange
from p2pnet.errors import WireError
from p2pnet.wire.round import Phase, decode_value

if TYPE_CHECKING:
    from p2pnet.core.round import Round

EVIDENCE_SOURCES_MAX = 15  # voters that are asked for evidence which an outcome names, beside its proposer
VOID_ANYWAY = 8  # from this view on, a result that others would not take is no reason to refuse VOID


def judge(round_: Round, now_s: float) -> list[Effect]:
    """Do what the proposal of this view, or the certificate, needs next; prepare only what is held and checked."""
    effects = _certified(round_) if round_.undecided_certificate else _proposed(round_, now_s)
    candidate = focus(round_)
    if candidate is None or candidate.checked:
        return effects
    certificate = round_.undecided_certificate
    if not candidate.outcome.void:
        endorsers = [each.peer for each in certificate.endorsements] if certificate else []
        effects += round_.candidates.gather(candidate, endorsers, expected(round_, candidate, now_s)[0], now_s)
    if not certificate:
        effects += _prove(round_, candidate, now_s)
        if candidate.value in round_.candidates.refused or round_.context.docket.missing(candidate.outcome.excluded):
            return effects
    if candidate.outcome.void:
        return [*effects, *_checked(round_, candidate, now_s)] if _void_is_right(round_, now_s) else effects
    if round_.candidates.missing(candidate) or candidate.value in round_.candidates.refused:
        return effects
    if not certificate and _leaves_out(round_, candidate):
        return effects
    if candidate.audited or certificate:
        return [*effects, *_checked(round_, candidate, now_s)]
    return [*effects, *round_.candidates.audit(candidate)]


def deadlines_s(round_: Round, now_s: float) -> list[float | None]:
    """When `judge` wants to be called again, if nothing is heard before."""
    candidate = focus(round_)
    if candidate is None or candidate.checked:
        return []
    proofs_s = None if round_.undecided_certificate else round_.context.docket.again_s(candidate.outcome.excluded)
    if candidate.outcome.void:
        return [void_from_s(round_) if _may_void(round_) else None, proofs_s]
    roots, until_s = expected(round_, candidate, now_s)
    return [round_.candidates.again_s(candidate, roots), until_s if roots else None, proofs_s]


def give_up_s(round_: Round) -> float | None:
    """When this view is given up without a proposal that I can prepare; soon when what is proposed is out of reach."""
    due_s = propose_due_s(round_)
    if due_s is None or round_.commit_over_s is None or not out_of_reach(round_):
        return due_s
    return min(due_s, max(round_.commit_over_s, round_.view_s) + round_.grace_s * round_.deciding.growth() / 4)


def focus(round_: Round) -> Candidate | None:
    """The outcome that matters now: the certified one, else the one proposed in this view."""
    certificate, proposed = round_.undecided_certificate, round_.proposals.get(round_.deciding.view)
    if certificate is not None:
        return round_.candidates.found.get(certificate.value)
    return round_.candidates.found.get(proposed.value) if proposed else None


def out_of_reach(round_: Round) -> bool:
    """Tell whether what is proposed went down with a reducer that had told its digest and not yet given the bytes."""
    candidate = focus(round_)
    return candidate is not None and not candidate.checked and round_.candidates.lost(candidate)


def expected(round_: Round, candidate: Candidate, now_s: float) -> tuple[set[Root], float]:
    """The parts that will come on the streams that took my slices, and until when they are left to come."""
    exchange = round_.exchanges.get(candidate.outcome.view)
    if exchange is None or exchange.digest != candidate.outcome.roster:
        return set(), now_s
    until_s = exchange.streams_s
    if now_s >= until_s:
        return set(), now_s
    roots = exchange.expected(candidate.pieces)
    return roots.difference(round_.candidates.held), until_s


def void_from_s(round_: Round) -> float:
    """When a voter accepts that this view gives no result."""
    exchange = round_.exchanges.get(round_.deciding.view)
    if exchange is not None:
        return exchange.void_s
    return round_.view_s + round_.grace_s * round_.deciding.growth() / 2


def _void_is_right(round_: Round, now_s: float) -> bool:
    """VOID may be prepared from view 1 on, late in the view, by who holds no result; or if 2/3 prepared it before."""
    deciding = round_.deciding
    proposed = round_.proposals.get(deciding.view)
    if round_.undecided_certificate:
        return True
    if proposed and deciding.has_quorum(proposed.signed.message.valid_view - 1, Phase.PREPARE, proposed.value):
        return True
    return _may_void(round_) and now_s >= void_from_s(round_)


def _leaves_out(round_: Round, candidate: Candidate) -> bool:
    """Tell whether an outcome calls parts void whose digests are here, and too many; but 2/3 may have prepared it."""
    exchange = round_.exchanges.get(candidate.outcome.view)
    columns = round_.candidates.columns_of(candidate)
    if not columns or not isinstance(exchange, WideExchange) or exchange.digest != candidate.outcome.roster:
        return False
    if round_.deciding.view >= VOID_ANYWAY:
        return False
    proposed = round_.proposals.get(round_.deciding.view)
    if proposed and round_.deciding.has_quorum(proposed.signed.message.valid_view - 1, Phase.PREPARE, candidate.value):
        return False
    return calls_void(columns, [exchange.columns.get(column.index) for column in columns])


def _may_void(round_: Round) -> bool:
    view = round_.deciding.view
    return view >= VOID_ANYWAY or (view > 0 and round_.candidates.result() is None)


def _proposed(round_: Round, now_s: float) -> list[Effect]:
    """Turn this view's proposal into a candidate, as soon as the roster that it names is here."""
    deciding, candidates = round_.deciding, round_.candidates
    proposed = round_.proposals.get(deciding.view)
    if proposed is None or proposed.outcome is None or round_.my_state is None:
        return []
    value, outcome, message = proposed.value, proposed.outcome, proposed.signed.message
    if value in candidates.found or value in candidates.refused:
        return []
    listed = round_.rosters.find(outcome.roster)
    if not outcome.void:
        if listed is None:
            return []  # its roster may still come
        if listed.omits and not deciding.has_quorum(message.valid_view - 1, Phase.PREPARE, value):
            return []
    try:
        if outcome.state != round_.my_state:
            raise WireError("round-1/R44", "another state than mine")
        candidates.adopt(message.outcome, outcome, listed.commits if listed and not outcome.void else ())
    except WireError as error:
        return round_.refuse(value, str(error), proposed.signed.peer, now_s)
    return []


def _certified(round_: Round) -> list[Effect]:
    """Find the certified outcome among the proposals that came, so that nobody has to be asked for it."""
    certificate = round_.undecided_certificate
    if certificate is None or certificate.value in round_.candidates.found:
        return []
    for proposed in round_.proposals.values():
        listed = round_.rosters.find(proposed.outcome.roster) if proposed.outcome else None
        if proposed.value == certificate.value and proposed.outcome and (listed or proposed.outcome.void):
            try:
                raw = proposed.signed.message.outcome
                round_.candidates.adopt(raw, decode_value(raw), listed.commits if listed else ())
            except WireError as error:  # certified and yet wrong: more than 1/3 of the voters lie, or we have a bug
                return [Note(round_.state.round, "impossible-decision", str(error))]
            break
    return []


def _prove(round_: Round, candidate: Candidate, now_s: float) -> list[Effect]:
    """See that all that an outcome says of liars is proven here: what voters have not verified excludes nobody."""
    docket, excluded = round_.context.docket, candidate.outcome.excluded
    proposed = round_.proposals.get(round_.deciding.view)
    if not excluded or proposed is None or candidate.value in round_.candidates.refused:
        return []
    if (why := docket.refutes(excluded, round_.state)) is not None:
        return round_.refuse(candidate.value, why, proposed.signed.peer, now_s)
    voters = [peer for peer in round_.state.electorate if peer not in (proposed.signed.peer, round_.context.me)]
    round_.context.rng.shuffle(voters)
    return docket.fetch(excluded, (proposed.signed.peer, *voters[:EVIDENCE_SOURCES_MAX]), now_s)


def _checked(round_: Round, candidate: Candidate, now_s: float) -> list[Effect]:
    if round_.undecided_certificate:
        return []  # decided already: nothing is voted any more
    round_.progress_s = now_s
    return [round_.candidates.check(candidate), *round_.check(candidate.value, True, now_s)]
