"""What `unequal.py` compares: four peers of unequal speed in one process, with the node's numerics and a played clock.

A step takes as long as the setting says; the model, the samples and every byte of the updates are real. Who waits for
whom follows the rules of the rounds (protocols/round-1.md, R20).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import torch

from benchmarks.arms import Arm, Bench
from p2pnet.config import Outer
from p2pnet.core.commits import PATIENCE
from p2pnet.numerics.formats import ChunkFormat
from p2pnet.numerics.reduce import LEAF_CHUNKS, WEIGHT_MAX, reduce_part
from p2pnet.train.learner import Learner
from p2pnet.train.optimizer import InnerOptimizer

POINTS: Final = 16  # of a curve
WAYS: Final = ("window", "fixed", "fixed, waits for all", "fixed, without the slow one")


@dataclass(frozen=True)
class Setting:
    """One run."""

    way: str
    seed: int = 0
    horizon_s: float = 60.0
    h_steps: int = 10
    window_s: float = 1.25
    steps_s: tuple[float, ...] = (0.12, 0.12, 0.12, 1.2)
    late: int = 2  # this peer comes after a quarter of the time
    exchange_s: float = 0.2
    grace_s: float = 0.5
    batch: int = 8


class Runner:
    """One peer: its learner, its optimizer, its own order of the text."""

    def __init__(self, bench: Bench, setting: Setting, arm: Arm, index: int) -> None:
        """The model stands at theta: who comes late begins there, as from a member's state."""
        codec, outer = arm.codec(), Outer()
        self.learner = Learner(
            bench.model, k=codec.k, k_result=codec.k_result, value_bits=codec.value_bits, level_bias=codec.level_bias,
            alpha_ppm=round(outer.alpha * 1e6), beta_ppm=round(outer.beta * 1e6),
        )  # fmt: skip
        self.step_s = setting.steps_s[index]
        self.steps = 0  # in all
        self.credited = 0  # rounds
        self.owed = 0  # steps of a round that went on without it
        self._bench, self._setting, self._arm = bench, setting, arm
        self._optimizer = InnerOptimizer(bench.model, arm.inner_settings())
        self._generator = torch.Generator().manual_seed(10_000 * (setting.seed + 1) + index)

    def train(self, number: int, steps: int) -> bytes:
        """Train a round and encode it; the model is at theta before and after."""
        start = [p.detach().clone() for p in self._bench.model.parameters()]
        for step in range(steps):
            population, batch, h_steps = len(self._bench.task.dataset), self._setting.batch, self._setting.h_steps
            self._bench.backward(torch.randint(population, (batch,), generator=self._generator), self._arm)
            self._optimizer.step(number * h_steps + min(step, h_steps - 1))
        self.steps += steps
        payload = self.learner.encode(steps, self._setting.h_steps)
        with torch.no_grad():
            for local, before in zip(self._bench.model.parameters(), start, strict=True):
                local.copy_(before)
        return payload


def run(bench: Bench, setting: Setting, say: Callable[[str], None] = lambda _text: None) -> dict[str, Any]:
    """Run one way through the played time; returns the curve and who did what."""
    bench.start(setting.seed)
    arm = Arm(momentum=0.9, adamw_lr=0.01, decay=0.0, batch=setting.batch)  # the defaults, level: a run without an end
    runners: dict[int, Runner] = {}
    now_s, number, lengths_s = 0.0, 0, []
    curve = [(0.0, bench.held_out_loss(bench.grid))]
    in_last = frozenset(range(len(setting.steps_s))) - {setting.late}  # the founders
    while now_s < setting.horizon_s:
        for index in range(len(setting.steps_s)):
            here = index != setting.late or now_s >= setting.horizon_s / 4
            left_out = setting.way == WAYS[3] and setting.steps_s[index] == max(setting.steps_s)
            if here and index not in runners and not left_out:
                runners[index] = Runner(bench, setting, arm, index)
        length_s, plan = _plan(setting, runners, in_last)
        payloads, weights = [], []
        for index, runner in runners.items():
            steps = plan[index] or runner.owed
            payload = runner.train(number, plan[index]) if plan[index] else runner.learner.encode(1, 1)
            if plan[index] * runner.step_s > length_s + 1e-9:  # in mid-step when the commits were closed
                runner.owed = steps
            else:
                payloads.append(payload)
                weights.append(max(1, min(WEIGHT_MAX, -(-WEIGHT_MAX * steps // setting.h_steps))))
                runner.owed, runner.credited = 0, runner.credited + 1
        result = _reduce(payloads, weights, arm)
        for runner in runners.values():
            runner.learner.apply(result, None if runner.owed else [True] * runner.learner.leaves)
        in_last = frozenset(index for index, runner in runners.items() if not runner.owed)
        if len({runner.learner.checksum() for runner in runners.values()}) != 1:
            raise RuntimeError(f"{setting}: the replicas differ after round {number}")
        lengths_s.append(length_s + setting.exchange_s)
        now_s, number = now_s + lengths_s[-1], number + 1
        if now_s >= min(curve[-1][0] + setting.horizon_s / POINTS, setting.horizon_s):
            curve.append((now_s, bench.held_out_loss(bench.grid)))
            say(f"{setting.way}, seed {setting.seed}: {now_s:.0f} s, round {number}, held-out {curve[-1][1]:.3f}")
    return {
        "way": setting.way,
        "seed": setting.seed,
        "rounds": number,
        "round_s": sorted(lengths_s)[len(lengths_s) // 2],
        "steps": [runners[index].steps if index in runners else 0 for index in range(len(setting.steps_s))],
        "credited": [runners[index].credited if index in runners else 0 for index in range(len(setting.steps_s))],
        "curve": [(round(at_s, 2), round(loss, 5)) for at_s, loss in curve],
    }


def _plan(setting: Setting, runners: dict[int, Runner], in_last: frozenset[int]) -> tuple[float, dict[int, int]]:
    """How long the training of a round takes, and each peer's steps in it; 0: it makes up for another round."""
    h_steps, steps_s = setting.h_steps, {index: runner.step_s for index, runner in runners.items()}
    if setting.way == "window":
        steps = {index: max(1, math.floor(setting.window_s / step_s)) for index, step_s in steps_s.items()}
        return max(steps[index] * step_s for index, step_s in steps_s.items()), steps
    needed_s = sorted(h_steps * step_s for step_s in steps_s.values())
    if setting.way != "fixed":
        return needed_s[-1], dict.fromkeys(runners, h_steps)
    usual_s = needed_s[len(needed_s) // 2]
    slow = {index for index, step_s in steps_s.items() if h_steps * step_s > PATIENCE * usual_s + setting.grace_s}
    waited = {index for index in slow & in_last if not runners[index].owed}
    length_s = PATIENCE * usual_s + setting.grace_s if waited else usual_s
    plan = dict.fromkeys(runners, h_steps)
    for index in slow:  # it hears of the decision between two steps
        until_s = length_s + setting.exchange_s
        plan[index] = 0 if runners[index].owed else math.ceil(until_s / steps_s[index])
    return length_s, plan


def _reduce(payloads: list[bytes], weights: list[int], arm: Arm) -> bytes:
    """Reduce whole payloads, every leaf as a part of its own."""
    codec = arm.codec()
    fmt, fmt_result = (ChunkFormat(k, codec.value_bits) for k in (codec.k, codec.k_result))
    leaf = LEAF_CHUNKS * fmt.chunk_bytes
    parts = ([payload[at : at + leaf] for payload in payloads] for at in range(0, len(payloads[0]), leaf))
    return b"".join(reduce_part(part, weights, sum(weights), fmt, fmt_result).output for part in parts)
