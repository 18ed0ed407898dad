"""Every fault at every phase, for every role: the round is decided without the faulty, or void, or says who is missing.

P2PNET_SIM_RUNS=10000 pytest tests/test_faults.py    more seeds: other moments of each phase
P2PNET_SEED=7 pytest tests/test_faults.py            one of them
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace

import pytest

from p2pnet.core.commits import PATIENCE
from p2pnet.core.deciding import VIEW_GROWTH
from p2pnet.core.exchange import LATE_PROPOSAL
from p2pnet.core.rounds import RESEND_MAX_S
from p2pnet.core.state import quorum
from p2pnet.sim import POLICY, Ambush, Fault, Phase, Role, Setting, SimPeer, Simulation

RUNS = int(os.environ.get("P2PNET_SIM_RUNS", "300"))
SEED = os.environ.get("P2PNET_SEED")
SEEDS = range(int(SEED), int(SEED) + 1) if SEED is not None else range(1 + RUNS // 2000)
STRUCK = 1  # the round that the fault hits
EXCHANGE_S = 1.0  # of the simulated peers
GRACE_S, STALL_S = POLICY.grace_ms / 1000, POLICY.stall_ms / 1000
WINDOW_S = 8.0  # of the swarms that lose their quorum: so long two of four wait for the commits of the others
EARLY = (Phase.TRAIN, Phase.COMMIT, Phase.ROSTER, Phase.SCATTER, Phase.REDUCE)  # the round that is hit pays for it
NORMAL_S = Setting().train_s[1] + EXCHANGE_S  # a round in which nobody is waited for in vain
LASTING = (Fault.CRASH, Fault.FREEZE, Fault.MUTE, Fault.DEAF, Fault.HALF_OPEN, Fault.DISK)

matrix = pytest.mark.parametrize(
    ("peers", "role", "phase"),
    [(peers, role, phase) for peers in (4, 7) for role in Role for phase in Phase],
    ids=lambda value: value if isinstance(value, int) else value.value.replace(" ", "-"),
)


def cells(peers: int, role: Role, phase: Phase) -> Iterator[tuple[Fault, int]]:
    """The faults and seeds of a cell; of seven peers, which cost more, each fault in one role at one seed."""
    for fault in Fault:
        for seed in SEEDS:
            place = list(Fault).index(fault) + list(Role).index(role) + list(Phase).index(phase)
            if peers == 4 or len(SEEDS) > 1 or SEED is not None or place % len(Role) == 0:
                yield fault, seed


def round_limit_s(views: int) -> float:
    """The policy's bound on a round that needs so many views: the commit phase, then each view with its votes."""
    commit_s = PATIENCE * Setting().train_s[1] + GRACE_S
    return commit_s + sum((LATE_PROPOSAL * EXCHANGE_S + 2 * GRACE_S) * VIEW_GROWTH**view for view in range(views))


def reach(simulation: Simulation, peers: list[SimPeer], rounds: int, limit_s: float, what: str) -> float:
    """Run until these peers have decided so many rounds; returns how long that took."""
    start_s = simulation.now_s
    found = simulation.run(lambda: all(state_round(peer) >= rounds for peer in peers), limit_s)
    assert found, f"{what}: {[state_round(peer) for peer in peers]} rounds after {limit_s:.1f} s"
    return simulation.now_s - start_s


def state_round(peer: SimPeer) -> int:
    assert peer.disk.state is not None
    return peer.disk.state.round


def void(peer: SimPeer, number: int) -> bool:
    return peer.disk.log[number].commits == ()


def agree(simulation: Simulation) -> None:
    """Equal rounds, equal parameters; `Simulation.decided` has compared each round's as it was decided."""
    states = {(state_round(peer), peer.disk.state.lineage, peer.disk.theta) for peer in simulation.peers.values()}  # type: ignore[union-attr]
    assert len({number for number, *_ in states}) == len(states)


def struck(peers: int, role: Role, phase: Phase, fault: Fault, seed: int, more: int = 0) -> tuple[Simulation, Ambush]:
    """A swarm up to the moment when the fault has hit."""
    policy = replace(POLICY, window_ms=round(1000 * WINDOW_S)) if more else POLICY
    simulation = Simulation(Setting(peers=peers, policy=policy), seed)
    ambush = Ambush(simulation, role, phase, fault, STRUCK, seed, more)
    simulation.start()
    assert simulation.run(lambda: ambush.struck_s is not None, 30), "the victim did not come along"
    return simulation, ambush


def one_is_hit(peers: int, role: Role, phase: Phase, fault: Fault, seed: int) -> None:
    simulation, ambush = struck(peers, role, phase, fault, seed)
    others, victim = ambush.spared, ambush.hit[0]
    limit_s = round_limit_s(3 if role is Role.BACKUP else 2)  # the backup's reducer has failed as well
    cost_s = reach(simulation, others, STRUCK + 1, limit_s, "the round that was hit")
    is_silent = fault in (Fault.CRASH, Fault.FREEZE, Fault.MUTE, Fault.HALF_OPEN) and phase in EARLY
    has_paid = cost_s > GRACE_S / 2 and role is not Role.BACKUP  # one round waits for who is silent, not two
    limit_s = NORMAL_S if is_silent and has_paid else round_limit_s(2)
    reach(simulation, others, STRUCK + 2, limit_s, "the next round")
    assert not void(others[0], STRUCK + 1), "the next round is void"
    ambush.end()
    reached = max(map(state_round, simulation.peers.values()))
    back_s = RESEND_MAX_S + 3 * round_limit_s(1)
    reach(simulation, list(simulation.peers.values()), reached + 2, back_s, "everybody")

    def is_credited() -> bool:
        assert others[0].disk.state is not None
        return others[0].disk.state.members[victim.peer].last >= reached

    assert simulation.run(is_credited, round_limit_s(2)), "the victim does not take part again"
    assert not void(others[0], reached + 1), "a round after the fault is void"
    agree(simulation)


def quorum_is_hit(peers: int, role: Role, phase: Phase, fault: Fault, seed: int) -> None:
    simulation, ambush = struck(peers, role, phase, fault, seed, peers - quorum(peers))
    missing = {peer.peer for peer in ambush.hit}
    assert len(missing) == peers - quorum(peers) + 1
    # One round may still end; then the commit phase of the next, at the latest with the window, and one view.
    limit_s = round_limit_s(2) + WINDOW_S + round_limit_s(1) + STALL_S + 2 * RESEND_MAX_S
    said = simulation.run(lambda: all(set(peer.rounds.stall.missing) == missing for peer in ambush.spared), limit_s)
    names = [[name[:2].hex() for name in peer.rounds.stall.missing] for peer in ambush.spared]
    assert said, f"{[name[:2].hex() for name in missing]} are missing, {names} is said"
    assert all(peer.notes[-1].kind in ("stalled", "branch") for peer in ambush.spared)
    ambush.end()
    reached = max(map(state_round, simulation.peers.values()))
    back_s = 2 * RESEND_MAX_S + WINDOW_S + 3 * round_limit_s(1)
    reach(simulation, list(simulation.peers.values()), reached + 2, back_s, "everybody")
    assert all(peer.rounds.stall.since_s is None for peer in simulation.peers.values())
    agree(simulation)


@matrix
def test_whatever_happens_to_one_peer_the_others_decide_in_time_and_the_next_round_is_normal(
    peers: int, role: Role, phase: Phase
) -> None:
    for fault, seed in cells(peers, role, phase):
        try:
            one_is_hit(peers, role, phase, fault, seed)
        except AssertionError as error:
            pytest.fail(f"{fault.value}, P2PNET_SEED={seed}: {error}")


@matrix
def test_whatever_happens_to_more_than_a_third_the_others_say_who_is_missing_and_go_on_when_it_is_over(
    peers: int, role: Role, phase: Phase
) -> None:
    for fault, seed in cells(peers, role, phase):
        if fault not in LASTING or (len(SEEDS) == 1 and role in (Role.CONTRIBUTOR, Role.BACKUP)):
            continue
        try:
            quorum_is_hit(peers, role, phase, fault, seed)
        except AssertionError as error:
            pytest.fail(f"{fault.value}, P2PNET_SEED={seed}: {error}")


@pytest.mark.parametrize("seed", range(2))
def test_where_the_clocks_of_peers_count_from_changes_nothing(seed: int) -> None:
    """An hour, two, a year: machines compare only times of their own clock, and messages carry none."""
    runs = []
    for clocks_s in ((0.0,) * 4, (0.0, 3600.0, 7200.0, 365 * 86400.0)):
        simulation = Simulation(Setting(peers=4, loss=0.05), seed)
        for peer, clock_s in zip(simulation.peers.values(), clocks_s, strict=True):
            peer.clock_s = clock_s
            simulation.run(lambda: False, 0.0137)  # nothing falls on the same moment at two of them
            simulation.start([peer.peer])
        assert simulation.run(lambda simulation=simulation: simulation.rounds_done() >= 4, 100)
        runs.append((simulation.values, round(simulation.now_s, 3)))
    assert runs[0] == runs[1]
