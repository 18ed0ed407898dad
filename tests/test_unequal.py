"""Peers of unequal speed train together: in the simulator with learners that take time, and as whole nodes."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path
from statistics import median

from p2pnet.config import Training
from p2pnet.core import events as ev
from p2pnet.core.commits import PATIENCE
from p2pnet.identity import PeerId
from p2pnet.ledger.reader import LedgerReader
from p2pnet.node.history import open_commits
from p2pnet.node.runner import LEDGER_NAME
from p2pnet.sim import POLICY, Setting, Simulation
from p2pnet.sim.peer import SimPeer
from p2pnet.sim.signatures import open_message
from p2pnet.wire.round import Commit
from p2pnet.wire.signing import Signed
from tests.node.living import agree, open_place

WINDOW_S, GRACE_S, STEP_S, BATCH = 5.0, 0.5, 0.0625, 8
H_STEPS = 64  # of the fast peers' 80 in a window
BY_WINDOW = replace(
    POLICY, by_window=1, window_ms=int(1000 * WINDOW_S), grace_ms=int(1000 * GRACE_S), h_steps=H_STEPS,
    round_samples=H_STEPS * BATCH, service_rounds=1,
)  # fmt: skip
FIXED = replace(BY_WINDOW, by_window=0, window_ms=600_000)
EXCHANGE_S = 0.5  # at most, in this simulation


class Paced(SimPeer):
    """A simulated peer whose steps take time: it hears of a decision between two of them, as `Swarm.step` does."""

    step_s = STEP_S
    began_s = busy_s = 0.0
    owed = 0  # samples of a round that went on without it

    def perform(self, effect: ev.Effect) -> None:
        now_s, policy = self.simulation.now_s, self.rounds.state.policy
        if isinstance(effect, ev.Decide):
            self.decided_s.append(now_s)
        if not isinstance(effect, ev.Train):
            super().perform(effect)
            return
        self._later(0.0, ev.Started(effect.round, int.from_bytes(self.disk.theta[:8], "big"), b""))
        fit = math.floor((effect.end_s - now_s) / self.step_s)
        steps = max(1, fit if policy.by_window else min(fit, policy.h_steps))
        samples, self.began_s = steps * BATCH, now_s
        if self.owed and not (policy.by_window and fit):
            steps, samples, self.owed = 0, self.owed, 0
        self.busy_s = now_s + steps * self.step_s
        root = self.peer[:31] + bytes([effect.round])
        self._later(self.busy_s - now_s, ev.Encoded(effect.round, root, samples, True, 1, 0, 0))

    def _later(self, delay_s: float, event: ev.Event) -> None:
        now_s = self.simulation.now_s
        if isinstance(event, ev.Applied) and now_s < self.busy_s:
            taken = math.ceil((now_s - self.began_s) / self.step_s)
            delay_s += self.began_s + taken * self.step_s - now_s
            self.owed = taken * BATCH
        super()._later(delay_s, event)

    def start(self) -> None:
        self.decided_s: list[float] = []
        super().start()

    def rosters(self) -> list[dict[PeerId, int]]:
        """Of each decided round: who took part, with what weight."""
        rosters = []
        for decision in self.disk.log:
            opened = [open_message(raw, True) for raw in decision.commits]
            commits = [one for one in opened if isinstance(one, Signed) and isinstance(one.message, Commit)]
            rosters.append({one.peer: self.rounds.state.weight(one.message) for one in commits})  # type: ignore[arg-type]
        return rosters


def simulate(policy: object, slow_step_s: float, rounds: int, late_s: float = 0.0) -> list[Paced]:
    """The peers after so many rounds of the fast ones; the last one is slow. late_s: when the third one starts."""
    simulation = Simulation(Setting(peers=4, policy=policy), seed=3)  # type: ignore[arg-type]
    state = next(iter(simulation.peers.values())).disk.state
    assert state is not None
    peers = [Paced(simulation, peer, state) for peer in sorted(simulation.peers)]
    simulation.peers = {peer.peer: peer for peer in peers}
    peers[-1].step_s = slow_step_s
    late = [peers[2]] if late_s else []
    simulation.start([peer.peer for peer in peers if peer not in late])
    for peer in late:
        simulation.run(lambda: False, late_s)
        peer.start()
    assert simulation.run(lambda: min(len(peer.disk.log) for peer in peers[:3]) >= rounds, 100 * rounds)
    return peers


def lengths_s(peer: Paced) -> list[float]:
    """How long rounds took, all but the first."""
    return [after - before for before, after in itertools.pairwise(peer.decided_s)]


def test_by_window_a_peer_ten_times_slower_is_in_every_round_with_its_smaller_weight_and_nobody_waits_for_it() -> None:
    peers = simulate(BY_WINDOW, 10 * STEP_S, rounds=20)
    slow = peers[-1].peer
    assert all(WINDOW_S - 10 * STEP_S < length_s < WINDOW_S + EXCHANGE_S for length_s in lengths_s(peers[0]))
    for roster in peers[0].rosters():
        assert len(roster) == 4
        assert [weight for peer, weight in roster.items() if peer != slow] == [8, 8, 8]
        assert roster[slow] == 1  # 8 steps of 64
    slower = simulate(BY_WINDOW, 3 * STEP_S, rounds=5)
    assert {roster[slow] for roster in slower[0].rosters()} == {4}  # 26 of 64, begun eighths


def test_by_window_who_needs_longer_than_a_window_for_one_step_takes_part_all_the_same() -> None:
    peers = simulate(BY_WINDOW, 2.4 * WINDOW_S, rounds=30)
    slow = peers[-1].peer
    assert max(lengths_s(peers[0])) < WINDOW_S + GRACE_S + EXCHANGE_S
    present = [number for number, roster in enumerate(peers[0].rosters()) if slow in roster]
    assert max(after - before for before, after in itertools.pairwise(present)) <= 4
    assert {roster[slow] for roster in peers[0].rosters() if slow in roster} == {1}


def test_by_window_a_founder_that_comes_late_is_in_the_rounds_after_its_first() -> None:
    peers = simulate(BY_WINDOW, 10 * STEP_S, rounds=12, late_s=17.0)
    late = peers[2].peer
    present = [late in roster for roster in peers[0].rosters()]
    assert present.index(True) in (3, 4, 5)
    assert all(present[present.index(True) :])
    assert median(lengths_s(peers[0])) < WINDOW_S + EXCHANGE_S


def test_with_fixed_steps_a_straggler_is_heard_every_other_round_and_waited_for_in_bounds() -> None:
    peers = simulate(FIXED, 10 * STEP_S, rounds=20)
    slow, train_s = peers[-1].peer, H_STEPS * STEP_S
    assert max(lengths_s(peers[0])) < PATIENCE * (train_s + EXCHANGE_S) + GRACE_S + EXCHANGE_S
    present = [slow in roster for roster in peers[0].rosters()]
    assert present == [number % 2 == 1 for number in range(len(present))]


async def test_whole_nodes_of_unequal_speed_train_together_and_agree(tmp_path: Path) -> None:
    training = Training(h_steps=40, window_s=1.0, by_window=True)
    async with open_place(tmp_path, founders=3, training=training) as place:
        members = [place.member(number) for number in (1, 2, 3)]
        for member, step_s in zip(members, (0.02, 0.02, 0.2), strict=True):
            member.step_s = step_s
            await member.start()
        *fast, slow = members
        for member in members:
            await member.reach(8)
        assert await agree(*members)
        rounds_s = [report.train_s + report.wait_s for report in fast[0].reports]
        assert median(rounds_s) < 4.0  # 1.2 on a machine that is not busy; the slow one's 40 steps would take 8
        assert len(slow.credited()) >= 3
        assert max(report.steps for report in slow.reports) <= 5
        with LedgerReader(fast[0].folder / LEDGER_NAME) as ledger:
            opened = [open_commits(entry.commits) for entry in ledger.entries(0, len(ledger))]
        samples = {one.peer: [c.message.samples for r in opened for c in r if c.peer == one.peer] for one in members}
        assert max(samples[slow.peer]) <= 4 * 5  # a batch of 4
        assert median(samples[fast[0].peer]) > max(samples[slow.peer])
