"""Decided rounds of many groups are read back from what is kept of them, and followed from bytes alone."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from p2pnet.core.decided import decision_from, kept_of, read_decided, roots_of
from p2pnet.core.history import follow
from p2pnet.core.state import SwarmState
from p2pnet.errors import WireError
from p2pnet.sim import POLICY, Setting, Simulation
from p2pnet.sim.signatures import fake_verify
from p2pnet.wire.codec import encode
from p2pnet.wire.round import Decision, Listing, WideDecision, decode_value

Played = tuple[SwarmState, list[Decision | WideDecision], SwarmState]


@pytest.fixture(scope="module")
def played() -> Played:
    """A swarm that grows from one founder to three groups; the state before, what it decided, the state after."""
    policy = replace(POLICY, group_size_max=4, service_rounds=1)
    simulation = Simulation(Setting(peers=9, founders=1, leaves=40, policy=policy), seed=2)
    peer = next(iter(simulation.peers.values()))
    genesis = peer.disk.state
    assert genesis is not None
    simulation.start()
    assert simulation.run(lambda: any(len(decision.commits) == 9 for decision in peer.disk.log), 200)
    assert peer.disk.state is not None
    return genesis, peer.disk.log, peer.disk.state


def test_who_was_not_there_ends_in_the_state_of_those_who_were(played: Played) -> None:
    state, decisions, after = played
    assert {type(decision) for decision in decisions} == {Decision, WideDecision}
    for decision in decisions:
        step = follow(state, encode(decision), fake_verify)
        found = read_decided(state, decision.outcome, kept_of(decision))
        assert found.after == step.after
        assert tuple(span.root for span in found.spans) == step.roots
        assert len(found.commits) == len(decision.commits)
        assert decision_from(decision.certificate, decision.outcome, kept_of(decision)) == decision
        state = step.after
    assert state == after


def test_the_parts_of_a_result_come_by_leaf_and_cover_it(played: Played) -> None:
    state, decisions, _ = played
    for decision in decisions:
        found = read_decided(state, decision.outcome, kept_of(decision))
        if isinstance(decision, WideDecision):
            columns = decode_value(decision.outcome).columns  # type: ignore[union-attr]
            assert roots_of(decision.outcome, kept_of(decision), columns) == tuple(one.root for one in found.spans)
        if not found.void:
            spans = [(one.part.start, one.part.stop) for one in found.spans]
            assert spans == sorted(spans)
            assert spans[0][0] == 0
            assert spans[-1][1] == state.volume.leaves
            assert all(one[1] == other[0] for one, other in itertools.pairwise(spans))
        state = found.after


def last_wide(played: Played) -> tuple[SwarmState, WideDecision]:
    state, found = played[0], None
    for decision in played[1]:
        if isinstance(decision, WideDecision):
            found = state, decision
        state = read_decided(state, decision.outcome, kept_of(decision)).after
    assert found is not None
    return found


def test_a_decision_with_other_commits_or_columns_than_were_sealed_is_refused(played: Played) -> None:
    state, decision = last_wide(played)
    first, *others = decision.groups
    column, *rest = decision.columns
    for wrong in (
        replace(decision, groups=(Listing(first.items[1:]), *others)),
        replace(decision, groups=(*others, first)),
        replace(decision, groups=(*decision.groups, Listing(()))),
        replace(decision, columns=(Listing((b"", *column.items[1:])), *rest)),
        replace(decision, columns=(*decision.columns, column)),
        replace(decision, columns=(Listing(column.items[1:]), *rest)),
    ):
        with pytest.raises(WireError):
            follow(state, encode(wrong), fake_verify)
        with pytest.raises(WireError):
            read_decided(state, wrong.outcome, kept_of(wrong))
    with pytest.raises(WireError, match="no quorum"):
        follow(state, encode(replace(decision, outcome=decision.outcome[:-1] + b"\x00")), fake_verify)
