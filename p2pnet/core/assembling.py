"""Put the roster of a large swarm together: group by group, called by stewards, listed by the proposer. Pure.

Contract: protocols/groups-1.md, R1 to R8.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from p2pnet.core.columns import plan_columns
from p2pnet.core.commits import OMITTED_SHARE_MAX
from p2pnet.core.deciding import VIEWS_AHEAD
from p2pnet.core.events import Effect, Note
from p2pnet.core.group_events import Fetch, Fetched, Tell
from p2pnet.core.groups import Deal, deal
from p2pnet.core.outcomes import Assembled
from p2pnet.core.rosters import VIEWS_KEPT, Listed
from p2pnet.core.state import SwarmState
from p2pnet.core.wide import WideExchange
from p2pnet.core.wide_rosters import ROOM, assemble_once, digest_of, open_group
from p2pnet.errors import WireError
from p2pnet.identity import PeerId
from p2pnet.wire.round import GroupRoster, Listing, WideRoster, roster_digest
from p2pnet.wire.signing import Signed

if TYPE_CHECKING:
    from p2pnet.core.round import Round

SOURCES_MAX = 8  # members of a group that are asked for its roster, before the proposer
TOLD_MAX = 4  # times that a proposer is told a group's roster again
CALL_ANYWAY = 1  # from this view on a roster is called even if more than one group in ten gave none


class Assembly:
    """The group rosters of one round that are here, and what this peer does for its own group."""

    def __init__(self, state: SwarmState, dealt: Deal, me: PeerId) -> None:
        self.state, self.deal = state, dealt
        self.group = dealt.group_of(me)
        self.me = me
        self.is_steward = dealt.is_steward(me)
        self.found: dict[bytes, Signed[GroupRoster]] = {}  # by digest, opened and right
        self.called: dict[int, dict[int, bytes]] = {}  # by view and group, the first that a steward called
        self.signed: dict[tuple[int, int], Signed[GroupRoster]] = {}  # the same
        self.told: dict[int, int] = {}  # how often the proposer of a view was told again
        self.wide: dict[int, Signed[WideRoster]] = {}  # by view, the first of its proposer
        self.opened: set[int] = set()  # views whose roster was taken up, right or wrong
        self.whole: dict[bytes, Assembled] = {}
        self._asked: set[bytes] = set()
        self.again_s = 0.0

    @property
    def room(self) -> int:
        """Commits that a group has room for."""
        return ROOM * self.state.policy.group_size_max

    def commits_to(self) -> tuple[PeerId, ...]:
        """Who takes my commit."""
        return tuple(peer for peer in self.deal.stewards[self.group] if peer != self.me)

    def takes(self, peer: PeerId) -> bool:
        """Tell whether this peer keeps the commit of another."""
        return self.is_steward and self.deal.group_of(peer) == self.group

    @property
    def awaited(self) -> frozenset[PeerId]:
        """Whose commits this peer waits for: as a steward its group's, else only its own."""
        return frozenset((self.me, *(self.deal.groups[self.group] if self.is_steward else ())))

    def groups_of(self, digest: bytes) -> tuple[bytes, ...]:
        """The digests of the groups of a whole roster; none when it is not here."""
        whole = self.whole.get(digest)
        listings = whole.listings if whole is not None else ()
        return tuple(roster_digest(listing.items) if listing.items else b"" for listing in listings)

    def missing(self, roster: WideRoster) -> list[tuple[int, bytes]]:
        """The groups of a roster whose own rosters are not here."""
        return [(group, digest) for group, digest in enumerate(roster.groups) if digest and digest not in self.found]

    def wanted(self, view: int) -> list[tuple[int, bytes]]:
        """What is to be fetched now, and is not on its way."""
        signed = self.wide.get(view)
        if signed is None or view in self.opened:
            return []
        return [(group, digest) for group, digest in self.missing(signed.message) if digest not in self._asked]

    def is_waiting_for_none(self, view: int) -> bool:
        """Tell whether no group roster that this view's roster lists is on its way."""
        signed = self.wide.get(view)
        return signed is None or self._asked.isdisjoint(signed.message.groups)

    def ask(self, digest: bytes) -> None:
        """Note that a group roster is on its way."""
        self._asked.add(digest)

    def came(self, digest: bytes) -> None:
        """Or that it is not any more."""
        self._asked.discard(digest)

    def enter(self, before: int) -> None:
        """Drop what is of views before this one."""
        for table in (self.called, self.wide):
            for view in [view for view in table if view < before]:
                del table[view]
        self.opened = {view for view in self.opened if view >= before}
        self.signed = {key: signed for key, signed in self.signed.items() if key[0] >= before}


def assembly_of(state: SwarmState, me: PeerId) -> Assembly | None:
    """What a peer needs in a round of many groups; None when one roster holds all."""
    dealt = deal(state)
    return Assembly(state, dealt, me) if dealt is not None else None


def take_group_roster(round_: Round, signed: Signed[GroupRoster], now_s: float) -> list[Effect]:
    """A steward's roster of its group: the first one of a view counts."""
    assembly, message = round_.assembly, signed.message
    if assembly is None or message.lineage != round_.state.lineage or message.group >= len(assembly.deal.groups):
        return []
    if not abs(message.view - round_.deciding.view) <= VIEWS_KEPT:
        return []
    if signed.peer not in assembly.deal.stewards[message.group]:
        return []
    called = assembly.called.setdefault(message.view, {})
    if message.group not in called:
        if not _open(round_, signed):
            return []
        called[message.group] = digest_of(message)
        assembly.signed[message.view, message.group] = signed
        round_.progress_s = now_s
    return round_.advance(now_s)


def fetched(round_: Round, event: Fetched, now_s: float) -> list[Effect]:
    """A group roster that was asked for is here, or is not to be had."""
    assembly = round_.assembly
    if assembly is None:
        return []
    assembly.came(event.digest)
    if event.roster is None or digest_of(event.roster.message) != event.digest or not _open(round_, event.roster):
        assembly.again_s = now_s + round_.grace_s / 2
        round_.stir()  # it wants to be looked at then
        return []
    round_.progress_s = now_s
    return round_.advance(now_s) if assembly.is_waiting_for_none(round_.deciding.view) else []


def take_wide_roster(round_: Round, signed: Signed[WideRoster], now_s: float) -> list[Effect]:
    """The proposer's roster of a view: the first one counts; what it lists is fetched."""
    assembly, message = round_.assembly, signed.message
    if assembly is None or signed.peer != round_.state.proposer(message.view):
        return []
    if message.lineage != round_.state.lineage or len(message.groups) != len(assembly.deal.groups):
        return []
    if not round_.deciding.view - VIEWS_KEPT <= message.view <= round_.deciding.view + VIEWS_AHEAD:
        return []
    if message.view not in assembly.wide and any(message.groups):
        assembly.wide[message.view] = signed
        round_.progress_s = now_s
    return round_.advance(now_s)


def tend(round_: Round, now_s: float) -> list[Effect]:
    """Do what a round of many groups needs next: my group's roster, the rosters of the others, the exchange."""
    assembly = round_.assembly
    if assembly is None:
        return []
    effects = [*_lead_group(round_, assembly, now_s), *_tell_again(round_, assembly, now_s)]
    view = round_.deciding.view
    for at in [at for at in assembly.wide if at <= view and at not in assembly.opened]:
        effects += _take_up(round_, assembly, at, now_s)
    if now_s >= assembly.again_s:
        for group, digest in assembly.wanted(view):
            assembly.ask(digest)
            effects.append(Fetch(round_.state.round, digest, _sources(round_, assembly, group)))
    return effects


def tend_s(round_: Round) -> list[float | None]:
    """When `tend` wants to be called again, if nothing is heard before."""
    assembly = round_.assembly
    if assembly is None:
        return []
    again_s = assembly.again_s if assembly.wanted(round_.deciding.view) else None
    call_s = call_due_s(round_) if _may_call(round_, assembly) else None
    return [_steward_due_s(round_, assembly), _tell_due_s(round_, assembly), again_s, call_s]


def call_wide(round_: Round, now_s: float) -> tuple[bytes, ...] | None:
    """The groups that the proposer lists now; None while it still waits for some."""
    assembly = round_.assembly
    assert assembly is not None
    view = round_.deciding.view
    called, count = assembly.called.get(view, {}), len(assembly.deal.groups)
    if not called or (len(called) < count and now_s < call_due_s(round_)):
        return None
    if view < CALL_ANYWAY and (count - len(called)) * OMITTED_SHARE_MAX > count:
        return None  # voters would refuse it: who has just come back may think that it is late
    return tuple(called.get(group, b"") for group in range(len(assembly.deal.groups)))


def has_refused(round_: Round) -> bool:
    """Tell whether what is proposed in this view rests on a roster that was opened here, and refused."""
    assembly, view = round_.assembly, round_.deciding.view
    proposed = round_.proposals.get(view)
    if assembly is None or proposed is None or view not in assembly.opened:
        return False
    return proposed.value not in round_.candidates.found


def call_due_s(round_: Round) -> float:
    """When the proposer stops waiting for the rosters of groups."""
    if round_.deciding.view > 0:
        return round_.view_s + round_.grace_s * round_.deciding.growth()
    return max(round_.view_s, round_.commits.everybody_s(round_.awaited - round_.skips)) + round_.grace_s


def _open(round_: Round, signed: Signed[GroupRoster]) -> bool:
    """Open a group roster that was not here, and keep it; whether it is right."""
    assembly, message = round_.assembly, signed.message
    assert assembly is not None
    try:
        open_group(round_.state, message.group, message.commits, round_.context.verify)
    except WireError:
        return False
    digest = digest_of(message)
    assembly.found.setdefault(digest, signed)
    assembly.came(digest)
    return True


def _take_up(round_: Round, assembly: Assembly, view: int, now_s: float) -> list[Effect]:
    """Open the roster of a view once all its groups are here; take part unless it leaves out too many."""
    signed = assembly.wide[view]
    message = signed.message
    if assembly.missing(message):
        return []
    assembly.opened.add(view)

    def listings() -> tuple[Listing, ...]:
        return tuple(Listing(assembly.found[digest].message.commits if digest else ()) for digest in message.groups)

    try:
        whole = assemble_once(round_.state, message.digest(), listings, round_.context.verify)
    except WireError as error:
        return [Note(round_.state.round, "refused-roster", str(error), (signed.peer,))]
    assembly.whole[whole.digest] = whole
    mine = len(whole.listings[assembly.group].items)
    is_voter = round_.context.me in round_.state.electorate
    peers = {commit.peer for commit in whole.commits} if is_voter else frozenset()
    omits = is_voter and round_.commits.omits(peers, mine, assembly.room, round_.checksum, now_s)
    round_.rosters.put(whole.digest, Listed(view, whole.commits, omits))
    if omits:
        why = "groups-1/R6: it omits commits it must have"
        return [Note(round_.state.round, "refused-roster", why, (signed.peer,))]
    if view != round_.deciding.view or round_.repeats(view):
        return []
    return _begin(round_, signed, whole, now_s)


def _begin(round_: Round, signed: Signed[WideRoster], whole: Assembled, now_s: float) -> list[Effect]:
    """Take part in the exchange of this view's roster."""
    view, state, me = round_.deciding.view, round_.state, round_.context.me
    plan = plan_columns(state, whole.digest, whole.commits, view)
    group = plan.group_of(me)
    near = [plan.commits_by[peer] for peer in plan.groups[group]]
    timeout_s = round_.context.pace.timeout_s(round_.grace_s, state.volume, near, plan.columns[group], view)
    timeout_s *= round_.deciding.growth()
    exchange = WideExchange(
        me, signed, plan, timeout_s, now_s, round_.context.verify, round_.grace_s, state.resting(view)
    )
    round_.exchanges[view] = exchange
    round_.progress_s = now_s
    mine, listed = round_.commits.held.get(me), plan.commits_by.get(me)
    is_in = mine is not None and listed is not None and mine[0].raw == listed.raw
    effects = exchange.begin(is_in and round_.contributes)
    if mine is not None and not (is_in and round_.contributes):
        why = "my payload is not the one I committed to before a restart" if is_in else "my commit is not in it"
        effects.append(Note(state.round, "left-out", why, (me,)))
    return effects


def _lead_group(round_: Round, assembly: Assembly, now_s: float) -> list[Effect]:
    """Call the roster of my group, when it is my turn in this view."""
    due_s = _steward_due_s(round_, assembly)
    if due_s is None or now_s < due_s or round_.certificate is not None:
        return []
    raws = round_.commits.roster(assembly.room)
    if not raws:
        return []
    state, view = round_.state, round_.deciding.view
    message = GroupRoster(state.swarm, state.round, view, state.lineage, assembly.group, raws)
    signed, effects = round_.slots.sign(message)
    assembly.called.setdefault(view, {}).setdefault(assembly.group, signed.message.digest())
    assembly.signed.setdefault((view, assembly.group), signed)
    told = signed.message.digest() in assembly.found  # by an earlier view's: then only who proposes lacks the word
    _open(round_, signed)
    others = assembly.deal.stewards[assembly.group] if told else assembly.deal.groups[assembly.group]
    to = tuple(peer for peer in dict.fromkeys((state.proposer(view), *others)) if peer != round_.context.me)
    return [*effects, Tell(to, signed.raw)]


def _steward_due_s(round_: Round, assembly: Assembly) -> float | None:
    """When I call the roster of my group in this view; one steward stands in for the other every half grace."""
    view = round_.deciding.view
    if not assembly.is_steward or round_.commit_over_s is None or round_.my_state is None:
        return None
    if assembly.group in assembly.called.get(view, {}) or not round_.commits.held:
        return None
    rank = assembly.deal.rank(round_.context.me, view)
    return max(round_.commit_over_s, round_.view_s) + rank * round_.grace_s * round_.deciding.growth() / 2


def _tell_again(round_: Round, assembly: Assembly, now_s: float) -> list[Effect]:
    """Tell the proposer my group's roster again, whoever of its stewards called it, as long as it has called none."""
    due_s = _tell_due_s(round_, assembly)
    if due_s is None or now_s < due_s:
        return []
    view = round_.deciding.view
    assembly.told[view] = assembly.told.get(view, 0) + 1
    signed = assembly.signed.get((view, assembly.group))
    return [Tell((round_.state.proposer(view),), signed.raw)] if signed is not None else []


def _tell_due_s(round_: Round, assembly: Assembly) -> float | None:
    """When the proposer is told again; it may not have heard, and each time waits longer."""
    view = round_.deciding.view
    signed, told = assembly.signed.get((view, assembly.group)), assembly.told.get(view, 0)
    if not assembly.is_steward or signed is None or view in assembly.wide or told >= TOLD_MAX:
        return None
    if round_.context.me == round_.state.proposer(view) or round_.commit_over_s is None:
        return None
    wait_s: float = 2.0**told * round_.grace_s * round_.deciding.growth() / 4
    return max(round_.commit_over_s, round_.view_s) + wait_s


def _may_call(round_: Round, assembly: Assembly) -> bool:
    view = round_.deciding.view
    proposes = round_.context.me == round_.state.proposer(view) and view not in assembly.wide
    return proposes and bool(assembly.called.get(view)) and round_.deciding.step == 0


def _sources(round_: Round, assembly: Assembly, group: int) -> tuple[PeerId, ...]:
    """Who has the roster of a group: its members, whom its steward told, and the proposer that lists it."""
    members = assembly.deal.groups[group]
    first = round_.context.rng.randrange(len(members))
    some = (*members[first:], *members[:first])[:SOURCES_MAX]
    sources = dict.fromkeys((*some, round_.state.proposer(round_.deciding.view)))
    sources.pop(round_.context.me, None)
    return tuple(sources)
