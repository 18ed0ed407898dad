"""Who failed and is silent is not waited for; whoever is heard again is."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import replace

from p2pnet.core.state import Member, SwarmState
from p2pnet.core.suspects import SILENT, Suspects
from p2pnet.identity import PeerId
from p2pnet.sim import POLICY
from tests.core.voters import genesis, peer, peers

ME, A, B, C = peers(4)
GRACE_S = POLICY.grace_ms / 1000
LONG_S, SHORT_S = SILENT * GRACE_S * 1.01, SILENT * GRACE_S * 0.99


def state(**halvings: int) -> SwarmState:
    """A swarm of four that has decided a round.   halvings: of A, B, C."""
    named = {ME: 0, A: halvings.get("a", 0), B: halvings.get("b", 0), C: halvings.get("c", 0)}
    return replace(genesis(4), members={name: Member(b"t" * 32, 1, 0, 0, count) for name, count in named.items()})


def suspects_of(
    before: SwarmState,
    after: SwarmState,
    voted: set[PeerId],
    view: int = 1,
    missed: Set[PeerId] = frozenset(),
    **silent_s: float,
) -> Suspects:
    """After a round in which all spoke, each so long before it was decided."""
    suspects, end_s = Suspects(ME), 100.0
    for who, name in ((A, "a"), (B, "b"), (C, "c")):
        suspects.hear({who}, before, end_s - silent_s.get(name, 0.0))
    suspects.judge(before, after, view, missed, voted, end_s)
    return suspects


def test_a_voter_that_did_not_vote_and_is_silent_is_suspected() -> None:
    assert suspects_of(state(), state(), {A, B}, a=LONG_S, b=LONG_S, c=LONG_S).peers == {C}


def test_one_that_voted_or_spoke_lately_is_not_nor_am_i() -> None:
    assert suspects_of(state(), state(), {A, B}, a=LONG_S, c=SHORT_S).peers == frozenset()


def test_when_all_goes_well_nobody_has_to_vote() -> None:
    assert suspects_of(state(), state(), {A, B}, 0, c=LONG_S).peers == frozenset()
    assert suspects_of(state(), state(b=1), {A}, 0, b=LONG_S, c=LONG_S).peers == {B, C}


def test_a_reducer_whose_backup_gave_its_part_is_suspected_though_it_voted() -> None:
    assert suspects_of(state(a=1), state(a=2), {A, B, C}, a=LONG_S).peers == {A}
    assert suspects_of(state(a=2), state(a=1), {A, B, C}, a=LONG_S).peers == frozenset()  # it made one good
    assert suspects_of(state(a=1), state(a=2), {A, B, C}, a=SHORT_S).peers == frozenset()


def test_one_whose_slice_was_missed_is_suspected() -> None:
    assert suspects_of(state(), state(), {A, B, C}, 0, {C}, b=LONG_S, c=LONG_S).peers == {C}


def test_whoever_is_heard_is_suspected_no_more_and_a_suspect_stays_one_until_then() -> None:
    suspects = suspects_of(state(), state(), {A}, b=LONG_S, c=LONG_S)
    assert suspects.peers == {B, C}
    suspects.judge(state(), state(), 1, set(), {A}, 200.0)
    assert suspects.peers == {B, C}
    assert suspects.hear({A, B}, state(), 201.0)
    assert not suspects.hear({A, B}, state(), 202.0)
    assert suspects.peers == {C}


def test_who_is_no_member_any_more_is_forgotten() -> None:
    suspects = suspects_of(state(), state(), {A, B}, c=LONG_S)
    after = state()
    after = replace(after, members={who: member for who, member in after.members.items() if who != C})
    suspects.judge(after, after, 1, set(), {A, B}, 100.0)
    assert suspects.peers == frozenset()
    assert C not in suspects._heard_s
    assert not suspects.hear({peer(77)}, state(), 1.0)
    assert suspects._heard_s.keys() == {A, B}  # names are free
