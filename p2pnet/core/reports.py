"""Take what the shell reports of a round: learner, slices, reductions, parts fetched and audited. Pure.

Contract: protocols/round-1.md, R30 to R35, and protocols/groups-1.md, R10 to R18.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, assert_never

from p2pnet.core.assembling import fetched
from p2pnet.core.columns import judge_column
from p2pnet.core.events import (
    Audited,
    Broadcast,
    Effect,
    Encoded,
    Gather,
    Gathered,
    GatherFailed,
    Note,
    ReduceDone,
    Report,
    ScatterFailed,
    Skipped,
    SliceArrived,
    Started,
)  # fmt: skip
from p2pnet.core.exchange import RosterExchange
from p2pnet.core.group_events import (
    BundleArrived,
    ColumnArrived,
    Fetched,
    ForwardFailed,
    Give,
    PartReduced,
    PartReturned,
)
from p2pnet.core.voting import act
from p2pnet.core.wide import WideExchange
from p2pnet.errors import WireError
from p2pnet.wire.signing import Signed

if TYPE_CHECKING:
    from p2pnet.core.round import Round


_OF_GROUPS = (BundleArrived, PartReduced, PartReturned, ForwardFailed)


def report(round_: Round, event: Report, now_s: float) -> list[Effect]:
    """Take one report about this round."""
    if isinstance(event, _OF_GROUPS):  # most of all reports, in a large swarm
        exchange = round_.exchanges.get(event.view)
        return _of_groups(round_, exchange, event, now_s) if isinstance(exchange, WideExchange) else []
    match event:
        case Started():
            return round_.started(event, now_s)
        case Encoded():
            return round_.encoded(event, now_s) if round_.decided is None else []
        case Skipped():
            return round_.skipped(event, now_s)
        case Gathered():
            return _gathered(round_, event, now_s)
        case GatherFailed():
            round_.candidates.gather_failed(event.root, now_s + round_.grace_s / 2)
            return []
        case Audited():
            return _audited(round_, event, now_s)
        case Fetched():
            return fetched(round_, event, now_s)
        case ColumnArrived():
            return _column_arrived(round_, event, now_s)
    exchange = round_.exchanges.get(event.view)
    if isinstance(exchange, RosterExchange):
        match event:
            case SliceArrived():
                return _slice_arrived(round_, exchange, event, now_s)
            case ReduceDone():
                return _reduce_done(round_, exchange, event, now_s)
            case ScatterFailed():
                return [*noted(round_, exchange.scatter_failed(event.part, event.to)), *round_.advance(now_s)]
    elif isinstance(exchange, WideExchange):
        return _of_groups(round_, exchange, event, now_s)
    return []


def told_by(event: Report, round_: Round) -> list[Signed[Any]]:
    """The digests of parts in a report that are not as those that are here: of a part that came back, of a column."""
    if not isinstance(event, PartReturned | ColumnArrived):
        return []
    exchange = round_.exchanges.get(event.view)
    if not isinstance(exchange, WideExchange):
        return []
    if isinstance(event, PartReturned):
        known = exchange.returned_before(event.signed.message.part)
        return [known, event.signed] if known is not None and known is not event.signed else []
    mine = exchange.columns.get(event.column)
    if mine is None or mine.listing is event.listing or exchange.digest != event.roster:
        return []
    try:
        other = judge_column(exchange.plan, event.column, event.listing, round_.context.verify)
    except WireError:
        return []
    differ = [pair for pair in zip(mine.reduced, other.reduced, strict=True) if pair[0] is not pair[1]]
    return [signed for pair in differ for signed in pair if signed is not None]


def noted(round_: Round, effects: list[Effect]) -> list[Effect]:
    """The same effects, with a note of the parts that are now on their way."""
    return [round_.candidates.asked(effect) if isinstance(effect, Gather) else effect for effect in effects]


def hold_given(round_: Round, effects: list[Effect], now_s: float) -> bool:
    """What I give to my group I hold too; whether there is any."""
    found = False
    for effect in effects:
        exchange = round_.exchanges.get(effect.view) if isinstance(effect, Give) else None
        if isinstance(effect, Give) and isinstance(exchange, WideExchange):
            round_.candidates.hold_column(exchange.columns[effect.column])
            round_.progress_s = now_s
            found = True
    return found


def _slice_arrived(round_: Round, exchange: RosterExchange, event: SliceArrived, now_s: float) -> list[Effect]:
    """A slice for a part that I reduce."""
    if exchange.reduces(event.part) and event.peer != round_.context.me:
        round_.context.pace.arrived(now_s - exchange.start_s)
    return exchange.arrived(event.part, event.peer, round_.down)


def _reduce_done(round_: Round, exchange: RosterExchange, event: ReduceDone, now_s: float) -> list[Effect]:
    """My reduction is done: sign it, answer those who wait, tell everybody."""
    round_.candidates.hold(event.root)
    signed, effects = round_.slots.sign(exchange.message(round_.state.swarm, event))
    if signed.message.root != event.root or signed.message.roster != exchange.digest:
        return []  # signed another one before a restart: that one stands
    effects += exchange.answer(event, signed)
    return [*effects, Broadcast(signed.raw, True), *round_.advance(now_s)]


def _gathered(round_: Round, event: Gathered, now_s: float) -> list[Effect]:
    """The bytes of a part are here."""
    round_.candidates.hold(event.root)
    round_.progress_s = now_s
    exchange = round_.exchanges.get(round_.deciding.view)
    if exchange is not None and not exchange.is_late:
        round_.context.pace.arrived(now_s - exchange.start_s)
    return round_.advance(now_s)


def _audited(round_: Round, event: Audited, now_s: float) -> list[Effect]:
    """One leaf was recomputed."""
    lies, effects = round_.candidates.audited(event.root, event.honest)
    for candidate in lies:
        doubts = act(round_, round_.deciding.doubt(candidate.value, now_s), now_s)
        effects += [round_.candidates.keep(candidate), *doubts]
    return [*effects, *round_.advance(now_s)]


def _of_groups(
    round_: Round,
    exchange: WideExchange,
    event: SliceArrived | ReduceDone | ScatterFailed | BundleArrived | PartReduced | PartReturned | ForwardFailed,
    now_s: float,
) -> list[Effect]:  # fmt: skip
    """What happened in an exchange of many groups."""
    match event:
        case BundleArrived():
            return exchange.reducing.bundled(event.part, event.group, event.peer, event.members, now_s)
        case SliceArrived():
            if exchange.reduces(event.part) and event.peer != round_.context.me and not exchange.is_late:
                round_.context.pace.arrived(now_s - exchange.start_s)
            return exchange.arrived(event.part, event.peer, round_.down, now_s)
        case PartReduced():
            return _part_reduced(round_, exchange, event)
        case PartReturned():
            effects = exchange.returned(event, now_s)
            return [*effects, *(round_.advance(now_s) if hold_given(round_, effects, now_s) else [])]
        case ForwardFailed():
            effects = exchange.forward_failed(event.part, event.to, now_s)
            return [*effects, *(round_.advance(now_s) if hold_given(round_, effects, now_s) else [])]
        case ScatterFailed():
            return [*exchange.scatter_failed(event.part, event.to), *round_.advance(now_s)]
        case ReduceDone():
            return []
        case _:
            assert_never(event)


def _part_reduced(round_: Round, exchange: WideExchange, event: PartReduced) -> list[Effect]:
    """My reduction over all groups is done: sign it, and answer those who sent bundles."""
    signed, effects = round_.slots.sign(exchange.reducing.message(event))
    if signed.message.root != event.root or signed.message.roster != exchange.digest:
        return []  # signed another one before a restart: that one stands
    return [*effects, *exchange.reducing.answer(event, signed)]


def _column_arrived(round_: Round, event: ColumnArrived, now_s: float) -> list[Effect]:
    """A column came on the stream that took my slice, or was asked for."""
    exchange = round_.exchanges.get(event.view)
    is_mine = isinstance(exchange, WideExchange) and exchange.digest == event.roster
    plans = [candidate.plan for candidate in round_.candidates.found.values()]
    plans += [exchange.plan] if isinstance(exchange, WideExchange) else []
    plan = next((one for one in plans if one and (one.view, one.roster) == (event.view, event.roster)), None)
    if plan is None or not 0 <= event.column < len(plan.columns[0]):
        return []
    try:
        column = judge_column(plan, event.column, event.listing, round_.context.verify)
    except WireError as error:
        return [Note(round_.state.round, "refused-column", str(error))]
    round_.candidates.hold_column(column)
    round_.progress_s = now_s
    if is_mine and isinstance(exchange, WideExchange):
        exchange.show(column, now_s)
        if not exchange.is_late:
            round_.context.pace.arrived(now_s - exchange.start_s)
        if len(exchange.columns) < len(exchange.parts) and not round_.candidates.found:
            return []  # nothing can be judged or proposed before the last one
    return round_.advance(now_s)
