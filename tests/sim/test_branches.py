"""Swarms that lose their quorum: they go on in branches, which end where the final chain goes on, and lose no work."""

from __future__ import annotations

from dataclasses import replace

import pytest

from p2pnet.identity import PeerId
from p2pnet.sim import POLICY, Setting, Simulation
from p2pnet.sim.peer import SimPeer

STALL_S = POLICY.stall_ms / 1000
QUICK = replace(POLICY, service_rounds=1)


def started(peers: int, seed: int = 1, founders: int | None = None) -> tuple[Simulation, list[PeerId]]:
    """A swarm that has decided three rounds."""
    simulation = Simulation(Setting(peers=peers, founders=founders, policy=QUICK), seed)
    simulation.start()
    assert simulation.run(lambda: simulation.rounds_done() >= 3, 60)
    return simulation, sorted(simulation.peers)


def lines(peer: SimPeer) -> list[bytes]:
    """The branches that a peer is in."""
    return [line.id for line in peer.course.lines[1:]]


def unite(simulation: Simulation) -> None:
    """Everybody is in one chain again, three rounds on, and no update of anybody's is lost."""
    reached = max(peer.disk.state.round for peer in simulation.peers.values() if peer.disk.state)
    assert simulation.run(lambda: simulation.rounds_done() >= reached + 3, 300)
    peers = list(simulation.peers.values())
    assert [lines(peer) for peer in peers] == [[]] * len(peers)
    known = max(peers, key=lambda peer: len(peer.disk.log)).disk
    found = known.work.union(*(peer.feedback for peer in peers))
    assert set(simulation.work) <= found


def branched(simulation: Simulation, ids: list[PeerId], rounds: int = 3) -> bool:
    """Tell whether these peers are in one branch, so many rounds on."""
    peers = [simulation.peers[peer] for peer in ids]
    first = lines(peers[0])
    return bool(first) and all(lines(peer) == first and len(peer.branches[-1].log) >= rounds for peer in peers)


def test_of_two_the_survivor_goes_on_and_both_are_one_swarm_again_when_the_other_is_back() -> None:
    simulation, (stays, leaves) = started(2)
    simulation.crash(leaves)
    began_s, before = simulation.now_s, len(simulation.peers[stays].disk.log)
    assert simulation.run(lambda: branched(simulation, [stays]), 60)
    assert simulation.now_s - began_s < 3 * STALL_S
    assert len(simulation.peers[stays].disk.log) <= before + 1  # the final chain stands still meanwhile
    learnt = simulation.peers[stays].branches[-1].work
    simulation.peers[leaves].start()
    unite(simulation)
    assert learnt <= simulation.peers[leaves].disk.work  # what was learnt alone is in everybody's parameters


def test_a_swarm_cut_in_halves_goes_on_in_two_branches_and_heals() -> None:
    simulation, ids = started(4)
    simulation.cut(ids[:2], is_noticed=True)
    assert simulation.run(lambda: branched(simulation, ids[:2]) and branched(simulation, ids[2:]), 100)
    assert lines(simulation.peers[ids[0]]) != lines(simulation.peers[ids[2]])
    learnt = simulation.peers[ids[0]].branches[-1].work | simulation.peers[ids[2]].branches[-1].work
    simulation.heal()
    unite(simulation)
    assert learnt <= simulation.peers[ids[1]].disk.work


def test_who_has_a_quorum_goes_on_in_the_final_chain_and_the_rest_in_a_branch() -> None:
    simulation, ids = started(4)
    simulation.cut(ids[:1], is_noticed=True)
    assert simulation.run(lambda: branched(simulation, ids[:1]), 100)
    assert [lines(simulation.peers[peer]) for peer in ids[1:]] == [[]] * 3
    assert simulation.peers[ids[1]].disk.state.round > simulation.peers[ids[0]].disk.state.round  # type: ignore[union-attr]
    simulation.heal()
    unite(simulation)


def test_branches_that_meet_without_a_quorum_become_the_larger_one() -> None:
    simulation, ids = started(7)
    for gone in ids[5:]:
        simulation.crash(gone)
    simulation.crash(ids[4])
    simulation.cut(ids[:1], is_noticed=True)
    assert simulation.run(lambda: branched(simulation, ids[:1]) and branched(simulation, ids[1:4]), 100)
    larger = lines(simulation.peers[ids[1]])
    learnt = simulation.peers[ids[0]].branches[-1].work
    simulation.heal()
    assert simulation.run(lambda: lines(simulation.peers[ids[0]]) == larger, 100)
    assert simulation.run(lambda: branched(simulation, ids[:4], 12), 100)
    assert learnt <= simulation.peers[ids[2]].branches[-1].work  # the smaller one's work went with it
    for gone in ids[4:]:
        simulation.peers[gone].start()
    unite(simulation)


def test_a_branch_that_loses_its_own_quorum_goes_on_in_another_from_there() -> None:
    simulation, ids = started(4)
    for gone in ids[2:]:
        simulation.crash(gone)
    assert simulation.run(lambda: branched(simulation, ids[:2]), 100)
    simulation.crash(ids[1])
    assert simulation.run(lambda: len(lines(simulation.peers[ids[0]])) == 2, 100)
    assert simulation.run(lambda: branched(simulation, ids[:1], 4), 100)
    simulation.peers[ids[1]].start()  # from its disk: it was in the first branch
    assert simulation.run(lambda: branched(simulation, ids[:2], 6) and len(lines(simulation.peers[ids[0]])) == 1, 100)
    for gone in ids[2:]:
        simulation.peers[gone].start()
    unite(simulation)


def test_a_member_that_does_not_vote_goes_along() -> None:
    policy = replace(POLICY, service_rounds=1000)
    simulation = Simulation(Setting(peers=6, founders=4, policy=policy), 3)
    simulation.start()
    assert simulation.run(lambda: simulation.rounds_done() >= 3, 60)
    state = next(iter(simulation.peers.values())).disk.state
    assert state is not None
    assert len(state.electorate) == 4
    for gone in state.electorate[:2]:
        simulation.crash(gone)
    rest = [peer for peer in sorted(simulation.peers) if peer not in state.electorate[:2]]
    assert simulation.run(lambda: branched(simulation, rest, 6), 200)
    rosters = [len(decision.commits) for decision in simulation.peers[rest[0]].branches[-1].log]
    assert rosters[-1] == 4
    for gone in state.electorate[:2]:
        simulation.peers[gone].start()
    unite(simulation)


def test_a_peer_that_is_killed_in_a_branch_goes_on_in_it() -> None:
    simulation, ids = started(4)
    for gone in ids[2:]:
        simulation.crash(gone)
    assert simulation.run(lambda: branched(simulation, ids[:2]), 100)
    branch = lines(simulation.peers[ids[0]])
    simulation.crash(ids[0])
    simulation.peers[ids[0]].start()
    assert lines(simulation.peers[ids[0]]) == branch
    assert simulation.run(lambda: branched(simulation, ids[:2], 8), 100)
    for gone in ids[2:]:
        simulation.peers[gone].start()
    unite(simulation)


def test_before_its_first_round_nobody_begins_without_a_quorum() -> None:
    simulation = Simulation(Setting(peers=4), 1)
    ids = sorted(simulation.peers)
    simulation.start(ids[:2])
    assert not simulation.run(lambda: any(lines(simulation.peers[peer]) for peer in ids[:2]), 10 * STALL_S)


@pytest.mark.parametrize("seed", range(3))
def test_the_same_seed_plays_the_same_branches(seed: int) -> None:
    runs = []
    for _ in range(2):
        simulation, ids = started(4, seed)
        simulation.cut(ids[:2], is_noticed=True)
        simulation.run(lambda simulation=simulation, ids=ids: branched(simulation, ids[:2]), 100)
        runs.append((simulation.values, simulation.now_s))
    assert runs[0] == runs[1]
