"""Whole swarms in seeded schedules of faults: nothing is ever decided twice, and rounds go on when a quorum is back.

Nor does anybody honest ever sign two things for one slot, whatever kills it, and nobody honest is ever excluded: the
simulation itself looks whenever evidence is kept or a round excludes, and `Watched` at whatever is sent.

P2PNET_SIM_RUNS=10000 pytest tests/test_sim.py     more schedules
P2PNET_SEED=7 pytest tests/test_sim.py -k mixed    one of them
"""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import Callable
from dataclasses import replace

import pytest

from p2pnet.core.events import Decide, Effect, Event
from p2pnet.core.groups import count_groups
from p2pnet.core.state import SwarmState
from p2pnet.core.wide import WideExchange
from p2pnet.identity import PeerId
from p2pnet.sim import POLICY, Setting, Simulation
from p2pnet.sim.peer import SimPeer
from p2pnet.sim.signatures import open_message
from p2pnet.wire.branch import Branch
from p2pnet.wire.round import Commit, Decision, WideDecision, slot_of
from p2pnet.wire.signing import Signed

RUNS = int(os.environ.get("P2PNET_SIM_RUNS", "300"))
SEED = os.environ.get("P2PNET_SEED")
ELECTORATES = (1, 2, 3, 4, 7, 10)
GROUPED = ((5, 3), (8, 4), (12, 4), (13, 6))  # peers, and how many a roster holds
BATCH = 50


class Watched(Simulation):
    """A simulation that looks at every message which leaves an honest peer."""

    def __init__(self, setting: Setting, seed: int, liars: int = 0) -> None:
        self.said: dict[tuple[PeerId, bytes], bytes] = {}  # by author, line and slot
        super().__init__(setting, seed, liars)

    def carry(self, sender: PeerId, to: PeerId, raw: bytes, signed: bool) -> None:
        if signed:
            message = open_message(raw, True)
            assert isinstance(message, Signed)
            author = self.peers.get(message.peer)
            if author is not None and author.honest and not isinstance(message.message, Branch):
                slot = message.message.swarm + slot_of(message.message)
                said = self.said.setdefault((author.peer, slot), message.body)
                assert said == message.body, f"{author.peer[:2].hex()} said two things for slot {slot.hex()}"
        super().carry(sender, to, raw, signed)


def convicted(simulation: Simulation) -> set[PeerId]:
    """Whom the evidence on honest disks is against."""
    disks = [peer.disk for peer in simulation.peers.values() if peer.honest]
    return {offence.peer for disk in disks for offence, _ in disk.evidence.values()}


def commits_of(decision: Decision | WideDecision) -> list[Signed[Commit]]:
    return [open_message(raw, True) for raw in decision.commits]  # type: ignore[misc]


def schedules(share: float) -> list[range]:
    """Seeds in batches, a test each; P2PNET_SEED is one batch of one."""
    if SEED is not None:
        return [range(int(SEED), int(SEED) + 1)]
    runs = max(1, round(RUNS * share))
    return [range(start, min(start + BATCH, runs)) for start in range(0, runs, BATCH)]


def replayed(schedule: Callable[[int], None], seeds: range) -> None:
    """Run a schedule for each seed; a failure says how to see it again."""
    for seed in seeds:
        try:
            schedule(seed)
        except AssertionError as error:
            pytest.fail(f"{error}\nP2PNET_SEED={seed} python -m pytest tests/test_sim.py -k test_{schedule.__name__}")


def recover(simulation: Simulation) -> None:
    """End every fault; then three more rounds are decided by everybody."""
    simulation.heal()
    for peer in simulation.peers.values():
        peer.fuse = None
        if not peer.alive:
            peer.start()
        elif peer.frozen is not None:
            simulation.thaw(peer.peer)
    reached = max(peer.disk.state.round for peer in simulation.peers.values() if peer.disk.state)
    done = simulation.run(lambda: simulation.rounds_done() >= reached + 3, 400)
    assert done, f"stuck in round {simulation.rounds_done()}, others were in {reached}"
    honest = [peer for peer in simulation.peers.values() if peer.honest]
    assert all(len(peer.course.lines) == 1 for peer in honest), "somebody is still in a branch"
    furthest = max(honest, key=lambda peer: len(peer.disk.log)).disk
    kept = furthest.work.union(*(peer.feedback for peer in honest))
    made = {root for root in simulation.work if simulation.authors[root] in honest}
    assert simulation.is_wide or made <= kept, f"the work of {len(made - kept)} updates is lost"


def disturb(simulation: Simulation, rng: random.Random) -> None:
    """One fault, or the end of one."""
    ids = sorted(simulation.peers)
    peer = simulation.peers[rng.choice(ids)]
    draw = rng.random()
    if draw < 0.25:
        if peer.alive:
            peer.fuse = rng.randrange(40)  # killed between two effects, wherever that is
        else:
            peer.start()
    elif draw < 0.45:
        simulation.crash(peer.peer) if peer.alive else peer.start()
    elif draw < 0.6 and peer.alive and peer.frozen is None:
        simulation.freeze(peer.peer)
    elif draw < 0.75 and peer.frozen is not None:
        simulation.thaw(peer.peer)
    elif draw < 0.88:
        simulation.cut(rng.sample(ids, rng.randint(0, len(ids))), is_noticed=rng.random() < 0.5)
    else:
        simulation.heal()


def mixed(seed: int) -> None:
    rng = random.Random(f"mixed {seed}")
    peers = rng.choice(ELECTORATES)
    founders = rng.choice([None, 1, max(1, peers // 2)])
    policy = replace(POLICY, overlap=int(rng.random() < 0.25))
    setting = Setting(peers=peers, founders=founders, loss=rng.choice([0.0, 0.0, 0.02, 0.1, 0.3]), policy=policy)
    simulation = Watched(setting, seed)
    simulation.start()
    for _ in range(rng.randint(0, 8)):
        simulation.run(lambda: False, rng.choice([rng.uniform(0, 3), rng.uniform(0, 3), rng.uniform(0, 30)]))
        disturb(simulation, rng)
    recover(simulation)
    assert not convicted(simulation)


def groups(seed: int) -> None:
    """The same where one roster does not hold all; links are better, as a round of groups needs more of them."""
    rng = random.Random(f"groups {seed}")
    peers, size = rng.choice(GROUPED)
    policy = replace(POLICY, group_size_max=size, overlap=int(rng.random() < 0.25))
    founders = rng.choice([None, 1, peers // 2])
    setting = Setting(
        peers=peers,
        founders=founders,
        leaves=rng.choice([6, 40]),
        loss=rng.choice([0.0, 0.0, 0.02, 0.1]),
        policy=policy,
    )
    simulation = Watched(setting, seed)
    simulation.start()
    for _ in range(rng.randint(0, 8)):
        simulation.run(lambda: False, rng.uniform(0, 3))
        disturb(simulation, rng)
    recover(simulation)
    assert not convicted(simulation)


def lying_groups(seed: int) -> None:
    rng = random.Random(f"lying groups {seed}")
    peers, size = rng.choice(GROUPED)
    policy = replace(POLICY, group_size_max=size, service_rounds=1000)
    setting = Setting(peers=peers, leaves=40, policy=policy, loss=rng.choice([0.0, 0.05]))
    simulation = Watched(setting, seed, (peers - 1) // 3)
    simulation.start()
    for _ in range(rng.randint(1, 3)):
        simulation.run(lambda: False, rng.uniform(0.5, 6))
        victim = rng.choice([peer for peer in simulation.peers.values() if peer.honest])
        if victim.alive:
            victim.fuse = rng.randrange(60)
        else:
            victim.start()
    simulation.repent()
    recover(simulation)
    assert convicted(simulation) <= {peer.peer for peer in simulation.peers.values() if not peer.honest}


def liars(seed: int) -> None:
    rng = random.Random(f"liars {seed}")
    peers, lying = rng.choice(((4, 1), (5, 1), (8, 2), (11, 3)))
    policy = replace(POLICY, service_rounds=1000)  # the electorate is the founders, less those that miss a round
    simulation = Watched(Setting(peers=peers, policy=policy, loss=rng.choice([0.0, 0.05])), seed, lying)
    simulation.start()
    for _ in range(rng.randint(1, 3)):
        simulation.run(lambda: False, rng.uniform(0.5, 6))
        honest = [peer for peer in simulation.peers.values() if peer.honest]
        victim = rng.choice(honest)
        if victim.alive:
            victim.fuse = rng.randrange(60)
        else:
            victim.start()
    if rng.random() < 0.25:  # long enough for branches, in which a liar may be a third of the voters
        simulation.cut(rng.sample(sorted(simulation.peers), peers // 2), is_noticed=True)
        simulation.run(lambda: False, rng.uniform(5, 30))
        simulation.heal()
        simulation.run(lambda: False, rng.uniform(0, 10))
    simulation.repent()
    recover(simulation)
    assert convicted(simulation) <= {peer.peer for peer in simulation.peers.values() if not peer.honest}


@pytest.mark.slow
@pytest.mark.parametrize("seeds", schedules(0.55), ids=lambda seeds: f"{seeds.start}-{seeds.stop - 1}")
def test_mixed_faults_never_decide_a_round_twice_and_rounds_go_on_after_them(seeds: range) -> None:
    replayed(mixed, seeds)


@pytest.mark.slow
@pytest.mark.parametrize("seeds", schedules(0.15), ids=lambda seeds: f"{seeds.start}-{seeds.stop - 1}")
def test_groups_never_decide_a_round_twice_and_rounds_go_on_after_faults(seeds: range) -> None:
    replayed(groups, seeds)


@pytest.mark.slow
@pytest.mark.parametrize("seeds", schedules(0.1), ids=lambda seeds: f"{seeds.start}-{seeds.stop - 1}")
def test_lying_groups_never_split_a_round_and_it_goes_on_when_they_stop(seeds: range) -> None:
    replayed(lying_groups, seeds)


@pytest.mark.slow
@pytest.mark.parametrize("seeds", schedules(0.2), ids=lambda seeds: f"{seeds.start}-{seeds.stop - 1}")
def test_liars_below_a_third_never_split_a_round_and_it_goes_on_when_they_stop(seeds: range) -> None:
    replayed(liars, seeds)


@pytest.mark.parametrize("peers", ELECTORATES)
def test_everybody_ends_each_round_with_the_same_parameters(peers: int) -> None:
    simulation = Simulation(Setting(peers=peers), seed=peers)
    simulation.start()
    assert simulation.run(lambda: simulation.rounds_done() >= 5, 60)
    assert {len(peer.disk.log) >= 5 for peer in simulation.peers.values()} == {True}
    assert not any(decision.commits == () for peer in simulation.peers.values() for decision in peer.disk.log)


@pytest.mark.parametrize(("peers", "size"), GROUPED)
def test_a_swarm_larger_than_a_roster_decides_one_result_with_everybody_in_it(peers: int, size: int) -> None:
    simulation = Simulation(Setting(peers=peers, leaves=40, policy=replace(POLICY, group_size_max=size)), seed=peers)
    taken: list[tuple[int, ...]] = []

    def watch(_peer: SimPeer, what: Event | Effect, is_done: bool) -> None:
        if isinstance(what, Decide) and is_done:
            taken.append(what.accepted)

    for peer in simulation.peers.values():
        peer.watch = watch
    simulation.start()
    assert simulation.run(lambda: simulation.rounds_done() >= 5, 60)
    for peer in simulation.peers.values():
        for decision in peer.disk.log:
            assert isinstance(decision, WideDecision)
            assert len(decision.commits) == peers
            assert all(all(column.items) for column in decision.columns)
    parts = (1 << count_groups(peers, size)) - 1
    assert {mask for masks in taken for mask in masks} == {parts}  # every part has everybody's slice


def test_a_swarm_outgrows_one_roster_and_everybody_gets_in() -> None:
    policy = replace(POLICY, group_size_max=4, service_rounds=1)
    simulation = Simulation(Setting(peers=14, founders=1, leaves=40, policy=policy), seed=2)
    simulation.start()
    log = next(iter(simulation.peers.values())).disk.log
    assert simulation.run(lambda: any(len(decision.commits) == 14 for decision in log), 200)
    assert len(log) < 14


@pytest.mark.parametrize("seed", range(6))
def test_a_crash_in_an_exchange_of_groups_costs_no_view_and_the_next_round_is_whole(seed: int) -> None:
    simulation = Simulation(Setting(peers=13, leaves=40, policy=replace(POLICY, group_size_max=5)), seed)
    simulation.start()
    assert simulation.run(lambda: simulation.rounds_done() >= 2, 60)

    def under_way() -> bool:
        return all(peer.rounds.round.exchanges for peer in simulation.peers.values())

    assert simulation.run(under_way, 60)
    number = simulation.rounds_done()
    some = next(iter(simulation.peers.values())).rounds.round
    exchange = some.exchanges[0]
    assert isinstance(exchange, WideExchange)
    proposer = some.state.proposer(0)
    victim = next(part.reducer for part in exchange.plan.parts if part and part.reducer != proposer)
    simulation.crash(victim)
    others = [peer for peer in simulation.peers.values() if peer.peer != victim]
    assert simulation.run(lambda: all(len(peer.disk.log) > number + 1 for peer in others), 60)
    for decision in others[0].disk.log[number : number + 2]:
        assert isinstance(decision, WideDecision)
        assert decision.certificate.view == 0
        assert all(any(column.items) for column in decision.columns)
    assert len(others[0].disk.log[number + 1].commits) == 12


def test_a_reducer_that_tells_groups_different_parts_is_proved_to() -> None:
    policy = replace(POLICY, group_size_max=5, service_rounds=1000)
    found: set[str] = set()
    for seed in range(4):
        simulation = Watched(Setting(peers=13, leaves=40, policy=policy), seed, liars=3)
        simulation.start()
        simulation.run(lambda simulation=simulation: simulation.rounds_done() >= 3, 300)  # type: ignore[misc]
        disks = [peer.disk for peer in simulation.peers.values() if peer.honest]
        found |= {offence.what for disk in disks for offence, _ in disk.evidence.values()}
    assert "signed two widereduced messages for one slot" in found


@pytest.mark.parametrize("peers", [2, 4, 10])
def test_with_overlap_a_round_takes_as_long_as_its_training_and_leaves_nobody_out(peers: int) -> None:
    took_s, rosters = [], []
    for overlap in (0, 1):
        policy = replace(POLICY, overlap=overlap)
        setting = Setting(peers=peers, train_s=(5.0, 5.2), delay_s=(0.05, 0.2), policy=policy)
        simulation = Simulation(setting, seed=peers)
        simulation.start()
        assert simulation.run(lambda simulation=simulation: simulation.rounds_done() >= 2, 60)
        began_s = simulation.now_s
        assert simulation.run(lambda simulation=simulation: simulation.rounds_done() >= 12, 120)
        took_s.append((simulation.now_s - began_s) / 10)
        rosters.append({len(d.commits) for peer in simulation.peers.values() for d in peer.disk.log})
    assert rosters == [{peers}, {peers}]
    assert took_s[0] > 5.7
    assert 5.0 <= took_s[1] < 5.3


def test_with_overlap_a_peer_that_trains_for_long_is_waited_for_as_ever() -> None:
    setting = Setting(peers=4, train_s=(4.0, 5.8), policy=replace(POLICY, overlap=1))  # 5.8 < 1.5 * 4 + grace
    simulation = Simulation(setting, seed=7)
    simulation.start()
    assert simulation.run(lambda: simulation.rounds_done() >= 12, 200)
    assert {len(d.commits) for peer in simulation.peers.values() for d in peer.disk.log} == {4}


@pytest.mark.parametrize("seed", range(3))
def test_the_same_seed_plays_the_same_run(seed: int) -> None:
    runs = []
    for _ in range(2):
        simulation = Simulation(Setting(peers=4, loss=0.1), seed)
        simulation.start()
        simulation.run(lambda simulation=simulation: simulation.rounds_done() >= 3, 100)
        runs.append((simulation.values, simulation.now_s))
    assert runs[0] == runs[1]


@pytest.mark.parametrize("peers", [4, 7, 10])
def test_a_crashed_peer_is_left_out_and_the_others_decide_without_it(peers: int) -> None:
    simulation = Simulation(Setting(peers=peers), seed=1)
    simulation.start()
    simulation.run(lambda: simulation.rounds_done() >= 2, 60)
    gone = sorted(simulation.peers)[0]
    simulation.crash(gone)
    began_s = simulation.now_s
    reached = simulation.rounds_done()
    assert simulation.run(lambda: simulation.rounds_done() >= reached + 3, 60)
    assert simulation.now_s - began_s < 30
    other = simulation.peers[sorted(simulation.peers)[1]]
    assert other.disk.state is not None
    assert gone not in other.disk.state.electorate
    assert other.disk.state.members[gone].last < other.disk.state.round - 1


def test_a_frozen_peer_is_left_out_and_follows_once_it_runs_again() -> None:
    simulation = Simulation(Setting(peers=4), seed=5)
    simulation.start()
    simulation.run(lambda: simulation.rounds_done() >= 1, 60)
    frozen = simulation.peers[sorted(simulation.peers)[2]]
    simulation.freeze(frozen.peer)
    others = [peer for peer in simulation.peers.values() if peer is not frozen]
    assert simulation.run(lambda: all(len(peer.disk.log) >= 5 for peer in others), 200)
    assert len(frozen.disk.log) < 3
    simulation.thaw(frozen.peer)
    assert simulation.run(lambda: len(frozen.disk.log) >= 8, 200)


@pytest.mark.parametrize("proposes", [False, True], ids=["reducer", "proposer"])
def test_a_peer_that_freezes_in_an_exchange_costs_what_earlier_ones_took_not_what_a_slow_link_would(
    proposes: bool,
) -> None:
    """It has committed, reduces a part and backs another up. On a slow link all of it would take nine seconds."""
    grace_s = POLICY.grace_ms / 1000
    spent_s = []
    for seed in range(12):
        simulation = Simulation(Setting(peers=7, leaves=140), seed)
        simulation.start()
        simulation.run(lambda simulation=simulation: simulation.rounds_done() >= 4, 100)
        some = next(iter(simulation.peers.values()))
        longest_s = some.rounds.context.pace.longest_s(grace_s, some.rounds.state.volume)
        assert longest_s > 9

        def under_way(simulation: Simulation = simulation) -> bool:
            return all(peer.rounds.round.exchanges for peer in simulation.peers.values())

        simulation.run(under_way, 100)
        round_ = some.rounds.round
        proposer = round_.state.proposer(0)
        reducers = [part.reducer for part in round_.exchanges[0].parts if part.reducer != proposer]
        frozen, number, began_s = proposer if proposes else reducers[0], round_.state.round, simulation.now_s
        simulation.freeze(frozen)
        others = [peer for peer in simulation.peers.values() if peer.peer != frozen]
        assert simulation.run(lambda others=others, n=number: all(len(peer.disk.log) > n for peer in others), 100)
        spent_s.append(simulation.now_s - began_s)
        assert others[0].disk.log[number].commits  # a result, not VOID
    print(f"{min(spent_s):.2f} .. {max(spent_s):.2f} s")
    assert max(spent_s) < (2.5 if proposes else 1.8) * grace_s


@pytest.mark.parametrize("peers", [2, 3, 4, 7])
def test_without_a_quorum_a_round_is_stalled_names_who_is_missing_and_goes_on_when_they_are_back(peers: int) -> None:
    simulation = Simulation(Setting(peers=peers), seed=2)
    simulation.start()
    simulation.run(lambda: simulation.rounds_done() >= 2, 60)
    ids = sorted(simulation.peers)
    stays, gone = simulation.peers[ids[0]], ids[1:]
    for peer in gone:
        simulation.crash(peer)
    assert simulation.run(lambda: bool(stays.rounds.stall.missing), 200)
    note = [note for note in stays.notes if note.kind == "stalled"][-1]
    assert set(note.peers) == set(gone) == set(stays.rounds.stall.missing)
    reached = len(stays.disk.log)
    simulation.run(lambda: False, 120)
    assert len(stays.disk.log) == reached
    for peer in gone:
        simulation.peers[peer].start()
    assert simulation.run(lambda: simulation.rounds_done() >= reached + 2, 200)
    assert stays.rounds.stall.missing == ()
    assert "resumed" in [note.kind for note in stays.notes]


def test_a_frozen_majority_is_named_as_missing_though_its_connections_stand() -> None:
    simulation = Simulation(Setting(peers=4), seed=2)
    simulation.start()
    simulation.run(lambda: simulation.rounds_done() >= 2, 60)
    ids = sorted(simulation.peers)
    for peer in ids[2:]:
        simulation.freeze(peer)
    assert simulation.run(lambda: set(simulation.peers[ids[0]].rounds.stall.missing) == set(ids[2:]), 300)


def test_a_swarm_grows_from_one_founder_by_service() -> None:
    policy = replace(POLICY, service_rounds=3)
    simulation = Simulation(Setting(peers=5, founders=1, policy=policy), seed=3)
    simulation.start()
    sizes = []
    founder = simulation.peers[sorted(simulation.peers)[0]]
    while len(founder.disk.log) < 12:
        before = len(founder.disk.log)
        assert simulation.run(lambda before=before: len(founder.disk.log) > before, 100)
        assert founder.disk.state is not None
        sizes.append(len(founder.disk.state.electorate))
    assert sizes[0] == 1
    assert sizes[-1] == 5
    assert all(0 <= after - before <= 1 for before, after in itertools.pairwise(sizes))


def test_a_late_peer_follows_all_rounds_and_takes_part() -> None:
    simulation = Simulation(Setting(peers=4, founders=3), seed=4)
    ids = sorted(simulation.peers)
    simulation.start(ids[:3])
    assert simulation.run(lambda: simulation.rounds_done() >= 10, 200)
    late = simulation.peers[ids[3]]
    late.start()
    assert simulation.run(lambda: simulation.rounds_done() >= 14, 100)
    assert late.disk.state is not None
    assert late.disk.state.members[late.peer].accepted > 0


@pytest.mark.parametrize("peers", [1, 2, 4])
def test_a_crash_between_any_two_effects_is_survived_and_nothing_is_signed_twice(peers: int) -> None:
    for fuse in range(60):
        simulation = Watched(Setting(peers=peers), seed=6)
        simulation.start()
        victim = simulation.peers[sorted(simulation.peers)[fuse % peers]]
        victim.fuse = fuse
        simulation.run(lambda victim=victim: not victim.alive, 30)
        if not victim.alive:
            victim.start()
        assert simulation.run(lambda simulation=simulation: simulation.rounds_done() >= 3, 300), f"fuse {fuse}"
        assert not convicted(simulation), f"fuse {fuse}"


@pytest.mark.parametrize("phase", [1, 2], ids=["first-round", "second-round"])
def test_a_peer_killed_twice_in_a_round_at_any_write_never_gives_evidence_against_itself(phase: int) -> None:
    for fuse in range(40):
        simulation = Watched(Setting(peers=4, loss=0.02), seed=fuse)
        simulation.start()
        simulation.run(lambda simulation=simulation: simulation.rounds_done() >= phase - 1, 60)  # type: ignore[misc]
        victim = simulation.peers[sorted(simulation.peers)[fuse % 4]]
        for again in range(2):
            victim.fuse = (fuse + 7 * again) % 40
            simulation.run(lambda victim=victim: not victim.alive, 30)  # type: ignore[misc]
            if not victim.alive:
                victim.start()
        recover(simulation)
        assert not convicted(simulation), f"fuse {fuse}"


@pytest.mark.parametrize("seed", range(6))
def test_who_says_different_things_to_different_peers_is_proved_to_and_excluded(seed: int) -> None:
    policy = replace(POLICY, service_rounds=1000, exclude_rounds=1000)
    simulation = Watched(Setting(peers=7, policy=policy, loss=0.02), seed, liars=2)
    liars = {peer.peer for peer in simulation.peers.values() if not peer.honest}
    honest = [peer for peer in simulation.peers.values() if peer.honest]

    def states() -> list[SwarmState]:
        return [peer.disk.state for peer in honest if peer.disk.state is not None]

    simulation.start()
    assert simulation.run(lambda: all(set(state.excluded) == liars for state in states()), 400)
    further = simulation.rounds_done() + 4
    assert simulation.run(lambda: simulation.rounds_done() >= further, 400)  # all goes on without them
    for state, peer in zip(states(), honest, strict=True):
        assert liars.isdisjoint(state.electorate)
        assert all(liars.isdisjoint(c.peer for c in commits_of(decision)) for decision in peer.disk.log[-2:])
        assert convicted(simulation) == liars


def test_the_excluded_come_back_when_their_time_is_over() -> None:
    policy = replace(POLICY, service_rounds=1, exclude_rounds=5)
    simulation = Watched(Setting(peers=5, policy=policy), seed=1, liars=1)
    [liar] = [peer.peer for peer in simulation.peers.values() if not peer.honest]
    honest = next(peer for peer in simulation.peers.values() if peer.honest)
    simulation.start()
    assert simulation.run(lambda: honest.rounds.state.bars(liar), 400)
    simulation.repent()
    until = honest.rounds.state.excluded[liar]
    assert simulation.run(lambda: simulation.rounds_done() >= until + 6, 400)
    assert not honest.rounds.state.bars(liar)
    assert honest.rounds.state.members[liar].last >= until
    assert liar in honest.rounds.state.electorate
    barred = honest.disk.log[until - 5 : until]
    assert all(liar not in [commit.peer for commit in commits_of(decision)] for decision in barred)


def test_a_round_is_void_only_when_more_than_two_thirds_say_so() -> None:
    simulation = Simulation(Setting(peers=4), seed=8)
    simulation.start()
    simulation.run(lambda: all(len(peer.rounds.round.commits.held) == 4 for peer in simulation.peers.values()), 10)
    for peer in sorted(simulation.peers):  # all lose their payloads after they committed: no result is possible
        simulation.crash(peer)
    simulation.start(sorted(simulation.peers)[:2])
    simulation.run(lambda: False, 200)
    assert not simulation.values
    simulation.start(sorted(simulation.peers)[2:])
    assert simulation.run(lambda: simulation.rounds_done() >= 3, 300)
    first = next(iter(simulation.peers.values())).disk.log[0]
    assert first.commits == ()
    assert len(first.certificate.endorsements) >= 3
