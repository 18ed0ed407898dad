"""Decided rounds are followed from bytes alone, and nothing that was not decided is."""

from __future__ import annotations

from dataclasses import replace

import pytest

from p2pnet.core.certificates import bundle
from p2pnet.core.history import follow
from p2pnet.core.state import SwarmState
from p2pnet.errors import WireError
from p2pnet.identity import PeerId
from p2pnet.sim import POLICY, Setting, Simulation
from p2pnet.sim.signatures import fake_verify
from p2pnet.wire.codec import encode
from p2pnet.wire.round import Decision, Exclusion, Phase, Vote, decode_outcome, outcome_digest
from tests.core.voters import signed


@pytest.fixture(scope="module")
def played() -> tuple[Simulation, SwarmState, list[Decision]]:
    """A swarm that grows from one founder while it decides."""
    simulation = Simulation(Setting(peers=5, founders=1), seed=3)
    genesis = next(iter(simulation.peers.values())).disk.state
    assert genesis is not None
    simulation.start()
    assert simulation.run(lambda: simulation.rounds_done() >= 12, 300)
    return simulation, genesis, next(iter(simulation.peers.values())).disk.log


def walk(simulation: Simulation, state: SwarmState, decisions: list[Decision]) -> SwarmState:
    for decision in decisions:
        state = follow(state, encode(decision), fake_verify).after
    return state


def test_who_was_not_there_ends_in_the_state_of_those_who_were(
    played: tuple[Simulation, SwarmState, list[Decision]],
) -> None:
    simulation, genesis, decisions = played
    peer = next(iter(simulation.peers.values()))
    found = walk(simulation, genesis, decisions)
    assert found == peer.disk.state
    assert len(found.electorate) > len(genesis.electorate)


def test_who_was_not_there_learns_who_is_excluded_without_the_evidence() -> None:
    policy = replace(POLICY, service_rounds=1000, exclude_rounds=1000)
    simulation = Simulation(Setting(peers=5, policy=policy), seed=1, liars=1)
    honest = next(peer for peer in simulation.peers.values() if peer.honest)
    genesis = honest.disk.state
    assert genesis is not None
    simulation.start()
    assert simulation.run(lambda: bool(honest.disk.state and honest.disk.state.excluded), 400)
    found = walk(simulation, genesis, honest.disk.log)
    assert found == honest.disk.state
    assert [simulation.peers[peer].honest for peer in found.excluded] == [False]


def charge(peer: PeerId) -> Exclusion:
    return Exclusion(peer, b"e" * 32)


def forge(state: SwarmState, decision: Decision, **changed: object) -> Decision:
    """The decision with another outcome, under as many seals as its electorate would give."""
    raw = encode(replace(decode_outcome(decision.outcome), **changed))  # type: ignore[arg-type]
    ballot = Vote(state.swarm, state.round, 0, 2, outcome_digest(raw))
    seals = {voter: signed(ballot, voter).signature for voter in state.electorate}
    return Decision(bundle(state, 0, Phase.SEAL, outcome_digest(raw), seals), raw, decision.commits)


def test_a_lie_of_any_kind_is_refused_with_its_rule(played: tuple[Simulation, SwarmState, list[Decision]]) -> None:
    simulation, genesis, decisions = played
    state = walk(simulation, genesis, decisions[:8])
    decision, certificate = decisions[8], decisions[8].certificate
    too_few = replace(certificate, endorsements=certificate.endorsements[:1])
    wrong = replace(certificate.endorsements[0], signature=b"\0" * 64)
    unsealed = replace(certificate, endorsements=(wrong, *certificate.endorsements[1:]))
    commits = tuple(reversed(decision.commits))
    lies = {
        "history-1/R3 too few": replace(decision, certificate=too_few),
        "history-1/R3 signature": replace(decision, certificate=unsealed),
        "history-1/R3 round before": decisions[7],
        "history-1/R3 round after": decisions[9],
        "history-1/R3 other outcome": replace(decision, outcome=decisions[7].outcome),
        "round-1/R40 another lineage": forge(state, decision, lineage=b"x" * 32),
        "round-1/R41 another roster": forge(state, decision, roster=b"x" * 32),
        "round-1/R42 no parts": forge(state, decision, reduced=()),
        "round-1/R43 another electorate": forge(state, decision, electorate=state.electorate[:1]),
        "round-1/R43 another beacon": forge(state, decision, beacon=b"x" * 32),
        "round-1/R13 commits out of order": replace(decision, commits=commits),
        "round-1/R43 excluded and still a voter": forge(state, decision, excluded=(charge(state.electorate[0]),)),
        "round-1/R47 excludes a stranger": forge(state, decision, excluded=(charge(PeerId(b"?" * 32)),)),
        "round-1/R47 excludes all voters": forge(state, decision, excluded=tuple(map(charge, state.electorate))),
    }
    for name, lie in lies.items():
        with pytest.raises(WireError) as caught:
            follow(state, encode(lie), fake_verify)
        assert caught.value.rule == name.split()[0], name
    for garbage in (b"", b"\x90", encode(decision)[:-1], encode(decision) + b"\0"):
        with pytest.raises(WireError):
            follow(state, garbage, fake_verify)
