"""Tendermint's lines one by one; whole schedules are in tests/test_sim.py."""

from __future__ import annotations

import random

import pytest

from p2pnet.core.deciding import NIL, VIEWS_AHEAD, Cast, Deciding, Entered, Prepared, Sealed
from p2pnet.identity import PeerId
from p2pnet.wire.round import VIEW_MAX, Phase
from tests.core.voters import peer, peers

VOTERS = peers(4)
ME, *OTHERS = VOTERS
A, B = b"a" * 32, b"b" * 32


def machine(*checked: bytes, voters: list[PeerId] = VOTERS, me: PeerId = ME) -> Deciding:
    deciding = Deciding(voters, me, 1.0)
    for value in checked:
        deciding.check(value, True, 0.0)
    return deciding


def cast(deciding: Deciding, actions: list[object]) -> list[tuple[int, Phase, bytes]]:
    """The votes among the actions, counted as my own."""
    found = [(action.view, action.phase, action.value) for action in actions if isinstance(action, Cast)]
    for view, phase, value in found:
        found += cast(deciding, list(deciding.vote(deciding.me, view, phase, value, b"me", 0.0)))
    return found


def hear(deciding: Deciding, view: int, phase: Phase, value: bytes, voters: list[PeerId]) -> list[object]:
    actions: list[object] = []
    for voter in voters:
        actions += deciding.vote(voter, view, phase, value, b"s", 0.0)
    return actions


def locked_on_a() -> Deciding:
    """A voter that prepared and sealed A in view 0, and is in view 1."""
    deciding = machine(A, B)
    cast(deciding, list(deciding.propose(0, A, None, 0.0)))
    cast(deciding, hear(deciding, 0, Phase.PREPARE, A, OTHERS[:2]))
    assert deciding.locked == (0, A)
    hear(deciding, 0, Phase.SEAL, NIL, OTHERS)
    assert deciding.view == 1
    return deciding


def test_what_is_not_checked_is_not_prepared() -> None:
    deciding = machine()
    assert deciding.propose(0, A, None, 0.0) == []
    assert cast(deciding, list(deciding.check(A, True, 0.0))) == [(0, Phase.PREPARE, A)]


def test_a_refused_proposal_gets_nil() -> None:
    deciding = machine()
    deciding.check(A, False, 0.0)
    assert cast(deciding, list(deciding.propose(0, A, None, 0.0))) == [(0, Phase.PREPARE, NIL)]


def test_two_thirds_of_prepares_lock_and_seal() -> None:
    deciding = machine(A)
    cast(deciding, list(deciding.propose(0, A, None, 0.0)))
    assert hear(deciding, 0, Phase.PREPARE, A, OTHERS[:1]) == []
    actions = hear(deciding, 0, Phase.PREPARE, A, OTHERS[1:2])
    assert isinstance(actions[0], Prepared)
    assert actions[1] == Cast(0, Phase.SEAL, A)
    assert deciding.locked == deciding.valid == (0, A)


def test_two_thirds_of_seals_decide_in_any_view() -> None:
    deciding = machine(A)
    actions = hear(deciding, 5, Phase.SEAL, A, OTHERS)
    assert isinstance(actions[-1], Sealed)
    assert actions[-1].view == 5


def test_a_locked_voter_prepares_nil_for_another_value() -> None:
    deciding = locked_on_a()
    assert cast(deciding, list(deciding.propose(1, B, None, 0.0))) == [(1, Phase.PREPARE, NIL)]


def test_a_locked_voter_prepares_its_value_again() -> None:
    deciding = locked_on_a()
    assert cast(deciding, list(deciding.propose(1, A, None, 0.0))) == [(1, Phase.PREPARE, A)]


def test_a_later_quorum_of_prepares_opens_the_lock_and_an_earlier_one_does_not() -> None:
    deciding = locked_on_a()
    hear(deciding, 1, Phase.PREPARE, B, OTHERS)
    cast(deciding, hear(deciding, 1, Phase.SEAL, NIL, OTHERS))
    assert deciding.view == 2
    assert (2, Phase.PREPARE, B) in cast(deciding, list(deciding.propose(2, B, 1, 0.0)))
    deciding = machine(A, B)
    hear(deciding, 6, Phase.PREPARE, NIL, OTHERS[:2])
    deciding.locked = (3, A)
    deciding.bundle(1, Phase.PREPARE, B, dict.fromkeys(OTHERS, b"s"), 0.0)
    assert cast(deciding, list(deciding.propose(6, B, 1, 0.0)))[0] == (6, Phase.PREPARE, NIL)


def test_a_proof_that_is_not_here_is_waited_for() -> None:
    deciding = locked_on_a()
    assert deciding.propose(1, A, 0, 0.0) != []
    deciding = machine(B)
    deciding.bundle(0, Phase.SEAL, NIL, dict.fromkeys(OTHERS, b"s"), 0.0)
    assert deciding.propose(1, B, 0, 0.0) == []
    actions = deciding.bundle(0, Phase.PREPARE, B, dict.fromkeys(OTHERS, b"s"), 0.0)
    assert Cast(1, Phase.PREPARE, B) in actions


def test_a_doubted_value_is_prepared_only_with_the_proof_that_others_did() -> None:
    deciding = machine()
    deciding.doubt(A, 0.0)
    assert cast(deciding, list(deciding.propose(0, A, None, 0.0))) == [(0, Phase.PREPARE, NIL)]
    deciding.bundle(0, Phase.PREPARE, A, dict.fromkeys(OTHERS, b"s"), 0.0)
    deciding.bundle(0, Phase.SEAL, NIL, dict.fromkeys(OTHERS, b"s"), 0.0)
    assert deciding.view == 1
    assert (1, Phase.PREPARE, A) in cast(deciding, list(deciding.propose(1, A, 0, 0.0)))


def test_mixed_votes_end_after_a_time_out_and_not_before_two_thirds_were_heard() -> None:
    deciding = machine(A)
    cast(deciding, list(deciding.propose(0, A, None, 0.0)))
    hear(deciding, 0, Phase.PREPARE, NIL, OTHERS[:1])
    assert deciding.deadline_s is None
    hear(deciding, 0, Phase.PREPARE, B, OTHERS[1:2])
    assert deciding.deadline_s == 1.0
    assert cast(deciding, list(deciding.tick(1.0))) == [(0, Phase.SEAL, NIL)]


def test_more_than_a_third_in_a_later_view_pull_along() -> None:
    deciding = machine()
    assert hear(deciding, 3, Phase.PREPARE, NIL, OTHERS[:1]) == []
    assert hear(deciding, 3, Phase.PREPARE, NIL, OTHERS[1:2]) == [Entered(3)]


def test_a_second_vote_in_a_slot_is_not_counted() -> None:
    deciding = machine(A)
    for _ in range(3):
        hear(deciding, 0, Phase.SEAL, A, OTHERS[:1])
    hear(deciding, 0, Phase.SEAL, B, OTHERS[:1])
    assert deciding.endorsements(0, Phase.SEAL, B) == {}
    assert len(deciding.endorsements(0, Phase.SEAL, A)) == 1


def test_a_voter_that_votes_twice_cannot_hide_a_quorum_from_who_heard_its_other_vote() -> None:
    deciding = machine(A)
    hear(deciding, 0, Phase.SEAL, NIL, OTHERS[:1])
    actions = deciding.bundle(0, Phase.SEAL, A, dict.fromkeys(OTHERS, b"s"), 0.0)
    assert isinstance(actions[-1], Sealed)


def test_too_many_liars_cannot_use_up_the_views() -> None:
    deciding = machine()
    hear(deciding, VIEW_MAX, Phase.PREPARE, NIL, OTHERS)
    assert deciding.view == VIEWS_AHEAD
    for _ in range(100):
        deciding.tick(100.0)
    assert deciding.view == VIEWS_AHEAD


def test_a_flood_of_votes_is_kept_in_bounds() -> None:
    deciding, rng = machine(), random.Random(1)
    for _ in range(20_000):
        phase = rng.choice(list(Phase))
        deciding.vote(OTHERS[0], rng.randrange(VIEW_MAX), phase, rng.randbytes(32), b"", 0.0)
        deciding.vote(peer(rng.randrange(10**6)), 0, Phase.SEAL, A, b"", 0.0)
    assert len(deciding._votes) <= 2 * (2 * VIEWS_AHEAD + 1)
    assert deciding.view == 0


@pytest.mark.parametrize("phase", list(Phase))
def test_a_restarted_voter_votes_as_before_or_not_at_all(phase: Phase) -> None:
    deciding = machine()
    deciding.restore({(0, Phase.PREPARE): (A, b"1")} | ({(0, phase): (A, b"2")}), [A])
    assert deciding.step == int(phase)
    assert deciding.locked == ((0, A) if phase is Phase.SEAL else None)
    assert all(action.value == A for action in deciding.propose(0, B, None, 0.0) if isinstance(action, Cast))


def test_old_prepares_that_prove_a_lock_are_sent_again() -> None:
    deciding = locked_on_a()
    deciding.bundle(9, Phase.SEAL, NIL, dict.fromkeys(OTHERS, b"s"), 0.0)
    assert (0, Phase.PREPARE, A) in deciding.own_votes()
    assert (0, Phase.SEAL, A) in deciding.own_votes(asked=0)


def test_who_is_no_voter_follows_and_casts_nothing() -> None:
    deciding = machine(A, me=peer(99))
    assert cast(deciding, list(deciding.propose(0, A, None, 0.0))) == []
    actions = hear(deciding, 0, Phase.PREPARE, A, VOTERS)
    assert not any(isinstance(action, Cast) for action in actions)
    assert isinstance(hear(deciding, 0, Phase.SEAL, A, VOTERS)[-1], Sealed)
