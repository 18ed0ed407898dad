"""Who goes on with whom when a quorum is gone, and what makes a branch."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace
from typing import Any

import pytest

from p2pnet.core.events import Send
from p2pnet.core.forming import CHANGE_S, RESEND_S, SETTLE_S, Forming, certifies_branch, rank
from p2pnet.core.slots import Context
from p2pnet.core.state import SwarmState
from p2pnet.identity import PeerId
from p2pnet.sim.signatures import fake_verify, open_message
from p2pnet.wire.branch import Branch, BranchCertificate, read_hears, write_hears
from p2pnet.wire.codec import decode
from p2pnet.wire.signing import Signed
from tests.core.voters import context, genesis, peers, signed
from tests.vectors import vectors

STATE = genesis(5)
VOTERS = peers(5)
ME, A, B, C, D = VOTERS
LATER_S = SETTLE_S + 1.0


def forming(me: PeerId = ME, seed: int = 1) -> Forming:
    made: Context = context(me)
    return Forming(replace(made, rng=random.Random(f"{seed} {me.hex()}")), STATE)


def proposal(author: PeerId, *voters: PeerId, hears: frozenset[PeerId] | None = None) -> Signed[Branch]:
    heard = frozenset(voters) if hears is None else hears
    bits = write_hears(STATE.electorate, heard)
    return signed(Branch(STATE.swarm, 0, STATE.lineage, tuple(sorted(voters)), bits, b"\0" * 8), author)


def said(effects: list[Any]) -> Signed[Branch]:
    assert all(isinstance(effect, Send) for effect in effects)
    return open_message(effects[0].raw, True)  # type: ignore[return-value]


def agree(parties: dict[PeerId, Forming], hears: dict[PeerId, set[PeerId]], now_s: float) -> None:
    """Let all say what they propose until nothing changes."""
    for turn in range(4):
        told: list[Send] = []
        for peer, one in parties.items():
            effects = one.propose(frozenset(hears[peer]), frozenset(hears[peer]), now_s + 10 * turn)
            told += [effect for effect in effects if isinstance(effect, Send)]
        for effect in told:
            if effect.to in parties:
                parties[effect.to].hear(open_message(effect.raw, True))  # type: ignore[arg-type]


def test_those_who_hear_each_other_come_to_one_certificate() -> None:
    parties = {peer: forming(peer) for peer in (ME, A, B)}
    agree(parties, {peer: {ME, A, B} - {peer} for peer in parties}, 0.0)
    found = {one.certificate(LATER_S) for one in parties.values()}
    assert len(found) == 1
    certificate = found.pop()
    assert certificate is not None
    assert certificate.voters == (ME, A, B)
    assert certifies_branch(certificate, STATE, fake_verify)


def test_no_branch_begins_before_the_quiet_had_time_to_be_heard() -> None:
    alone = forming()
    alone.propose(frozenset(), frozenset({A}), 0.0)
    settle_s = min(SETTLE_S, STATE.policy.stall_ms / 2000)
    assert alone.certificate(settle_s - 0.1) is None
    certificate = alone.certificate(settle_s)
    assert certificate is not None
    assert certificate.voters == (ME,)


def test_all_that_are_connected_are_told_also_those_who_are_not_heard_yet() -> None:
    one = forming()
    effects = one.propose(frozenset({A}), frozenset({A, B}), 0.0)
    assert {effect.to for effect in effects if isinstance(effect, Send)} == {A, B}
    assert one.propose(frozenset({A}), frozenset({A, B}), 0.1) == []
    assert one.propose(frozenset({A}), frozenset({A, B}), RESEND_S) != []
    assert one.propose(frozenset({A, B}), frozenset({A, B}), RESEND_S + 0.1) == []  # it has changed too soon
    assert one.deadline_s == RESEND_S + CHANGE_S
    assert one.propose(frozenset({A, B}), frozenset({A, B}), RESEND_S + CHANGE_S) != []


@pytest.mark.parametrize("order", list(itertools.permutations((ME, A, B))))
def test_where_two_do_not_hear_each_other_one_goes_on_with_who_hears_both(order: tuple[PeerId, ...]) -> None:
    """The other is shown their certificate by the one in the middle, and goes along."""
    left, middle, right = order
    parties = {peer: forming(peer) for peer in order}
    agree(parties, {left: {middle}, middle: {left, right}, right: {middle}}, 0.0)
    found = [one.certificate(100.0) for one in parties.values()]
    sets = {certificate.voters for certificate in found if certificate is not None}
    assert sets == {tuple(sorted((middle, min(left, right))))}


def test_who_was_alone_and_hears_another_now_does_not_stay_alone() -> None:
    one, other = forming(ME), forming(A)
    agree({ME: one, A: other}, {ME: set(), A: set()}, 0.0)
    one.hear(said(other.propose(frozenset({ME}), frozenset({ME}), 50.0)))
    agree({ME: one, A: other}, {ME: {A}, A: {ME}}, 60.0)
    first = one.certificate(100.0)
    assert first is not None
    assert first.voters == (ME, A)
    assert first == other.certificate(100.0)


@pytest.mark.parametrize(
    "made",
    [
        proposal(A, B, C),
        proposal(ME, ME, A),
        signed(replace(proposal(A, ME, A).message, lineage=b"?" * 32), A),
        signed(replace(proposal(A, ME, A).message, round=7), A),
        signed(replace(proposal(A, ME, A).message, swarm=b"?" * 32), A),
        signed(replace(proposal(A, ME, A).message, voters=(A, ME)), A),
        signed(replace(proposal(A, ME, A).message, voters=(ME, A, PeerId(b"\xff" * 32))), A),
    ],
    ids=["without itself", "mine", "another lineage", "another round", "another line", "not rising", "a stranger"],
)
def test_what_is_no_proposal_for_this_round_is_not_heard(made: Signed[Branch]) -> None:
    assert not forming().hear(made)


def certificate(*voters: PeerId) -> BranchCertificate:
    each = [proposal(peer, *voters) for peer in sorted(voters)]
    return BranchCertificate(
        STATE.swarm, 0, STATE.lineage, tuple(sorted(voters)), tuple(one.message.hears for one in each),
        tuple(one.message.nonce for one in each), tuple(one.signature for one in each),
    )  # fmt: skip


def test_a_certificate_is_as_good_as_its_signatures() -> None:
    right = certificate(ME, A)
    assert certifies_branch(right, STATE, fake_verify)
    wrong: list[BranchCertificate] = [
        replace(right, signatures=right.signatures[::-1]),
        replace(right, signatures=right.signatures[:1]),
        replace(right, hears=right.hears[:1]),
        replace(right, nonces=(b"\1" * 8, *right.nonces[1:])),
        replace(right, voters=right.voters[::-1]),
        replace(right, voters=(ME, ME)),
        replace(right, round=1),
        replace(right, lineage=b"?" * 32),
        certificate(ME, PeerId(b"\xff" * 32)),
    ]
    assert not any(certifies_branch(one, STATE, fake_verify) for one in wrong)


def test_of_two_branches_that_of_more_voters_wins_then_the_lower_id() -> None:
    larger, one, other = certificate(ME, A, B), certificate(ME, C), certificate(C, D)
    assert min((one, larger, other), key=rank) is larger
    assert min((one, other), key=rank).branch_id() == min(one.branch_id(), other.branch_id())


@pytest.mark.parametrize("voters", [1, 3, 8, 9, 100])
def test_bits_say_who_is_heard(voters: int) -> None:
    rng, electorate = random.Random(voters), tuple(peers(voters))
    for _ in range(50):
        heard = frozenset(rng.sample(electorate, rng.randint(0, voters)))
        assert read_hears(electorate, write_hears(electorate, heard)) == heard
    assert read_hears(electorate, b"") == frozenset()


@pytest.mark.parametrize("vector", vectors("branch-1", "branch-id"))
def test_the_id_is_that_of_the_page(vector: dict[str, Any]) -> None:
    found = decode((BranchCertificate,), bytes.fromhex(vector["certificate"]))
    assert found.branch_id().hex() == vector["id"]


@pytest.mark.parametrize("vector", vectors("branch-1", "branch-state"))
def test_the_state_in_which_a_branch_begins_is_that_of_the_page(vector: dict[str, Any]) -> None:
    state: SwarmState = replace(STATE, beacon=bytes.fromhex(vector["beacon"]))
    begun = state.fork(bytes.fromhex(vector["branch"]), (ME, A))
    assert (begun.lineage.hex(), begun.beacon.hex()) == (vector["lineage"], vector["branch_beacon"])
    assert (begun.swarm.hex(), begun.round, begun.electorate) == (vector["branch"], state.round, (ME, A))
