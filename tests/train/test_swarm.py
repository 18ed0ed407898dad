"""Learners that share their numerics directly, with no network between them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from p2pnet.config import AdamW, BytesLmTask
from p2pnet.numerics.formats import ChunkFormat
from p2pnet.numerics.levels import LEVEL_BIAS_DEFAULT
from p2pnet.numerics.reduce import reduce_part
from p2pnet.train.assignment import Assignment
from p2pnet.train.batches import Batches
from p2pnet.train.learner import Learner
from p2pnet.train.optimizer import InnerOptimizer
from p2pnet.train.tasks import make_task

PEERS, ROUNDS, H = 4, 12, 5
FORMAT, FORMAT_RESULT = ChunkFormat(256), ChunkFormat(512)


class Peer:
    """One replica: its own model, optimizer and place in the data."""

    def __init__(self, number: int, text: Path) -> None:
        self.key = bytes([number]) * 32
        settings = BytesLmTask("bytes-lm", text=text, width=64, layers=1, heads=2, context=32, batch_size=4)
        self.task = make_task(settings, seed=number)  # all different, until the initial parameters arrive
        self.optimizer = InnerOptimizer(self.task.model, AdamW(lr=0.01, warmup_steps=5))
        self.learner = Learner(
            self.task.model,
            k=FORMAT.k,
            k_result=FORMAT_RESULT.k,
            value_bits=FORMAT.value_bits,
            level_bias=LEVEL_BIAS_DEFAULT,
            alpha_ppm=1_500_000,
            beta_ppm=950_000,
        )
        self.current: Assignment | None = None
        self.batches = Batches(self.task.dataset, lambda: self.current, batch_size=4)

    def train(self, round_id: int, steps: int) -> float:
        """Take a round's inner steps; returns their mean loss."""
        self.current = Assignment(round_id, round_id.to_bytes(32, "big"), self.key, batches=H)
        total = 0.0
        for step in range(steps):
            loss = self.task.loss(next(self.batches))
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step(round_id * H + step)
            total += loss.item()
        return total / steps


@pytest.fixture(scope="module")
def swarm(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Peer], list[float]]:
    """Four peers after twelve rounds, one of them late in one round and one slow, and the losses of the rounds."""
    torch.set_num_threads(1)
    text = tmp_path_factory.mktemp("text")
    (text / "a.txt").write_bytes(Path(make_task.__code__.co_filename).read_bytes() * 8)
    peers = [Peer(number, text) for number in range(PEERS)]
    initial = peers[0].learner.initial_bytes()
    for peer in peers:
        peer.learner.load_initial(initial)
    losses = []
    for round_id in range(ROUNDS):
        steps = [H, H, H, 3]
        losses.append(sum(peer.train(round_id, steps[i]) for i, peer in enumerate(peers)) / PEERS)
        payloads = [peer.learner.encode(steps[i], H) for i, peer in enumerate(peers)]
        if round_id == 3:  # decided void
            for peer in peers:
                peer.learner.void()
            continue
        present = range(PEERS - 1) if round_id == 5 else range(PEERS)
        weights = [8, 8, 8, 5]
        total = sum(weights[i] for i in present)
        result = reduce_part(
            [payloads[i] for i in present], [weights[i] for i in present], total, FORMAT, FORMAT_RESULT
        ).output
        for i, peer in enumerate(peers):
            peer.learner.apply(result, [True] * peer.learner.leaves if i in present else None)
    return peers, losses


def test_every_peer_ends_with_the_same_bits(swarm: tuple[list[Peer], list[float]]) -> None:
    peers, _ = swarm
    assert len({peer.learner.state_sha256() for peer in peers}) == 1
    assert len({peer.learner.checksum() for peer in peers}) == 1
    assert len({peer.learner.initial_bytes() for peer in peers}) == 1


def test_the_loss_falls_on_what_is_trained_and_on_what_is_held_out(swarm: tuple[list[Peer], list[float]]) -> None:
    peers, losses = swarm
    assert losses[0] > 4.0
    assert losses[-1] < losses[0] - 1.2
    assert peers[0].task.held_out_loss() < losses[0] - 1.2
    assert peers[0].task.held_out_loss() == pytest.approx(peers[3].task.held_out_loss(), abs=1e-5)


def test_every_peer_trained_on_samples_of_its_own(swarm: tuple[list[Peer], list[float]]) -> None:
    peers, _ = swarm
    drawn = [tuple(peer.current.batch(0, 4, 2**40)) for peer in peers if peer.current]
    assert len(set(drawn)) == PEERS
