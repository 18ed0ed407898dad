"""The loop's side of a swarm: with a node of a few lines for what is rare, with real nodes for what must work."""

from __future__ import annotations

import math
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import trio
from torch import nn

from p2pnet.config import Codec, CustomTask, NodeConfig, Policy, SwarmConfig, Training
from p2pnet.config import Swarm as SwarmSection
from p2pnet.errors import ConfigError, NetworkError, P2pnetError
from p2pnet.founding import create, find_folder
from p2pnet.identity import Identity
from p2pnet.net.daemon import DaemonOptions
from p2pnet.net.host import join_addr
from p2pnet.net.libp2p import open_libp2p_host
from p2pnet.node import bridge as br
from p2pnet.node.content import Content
from p2pnet.node.runner import KEY_NAME
from p2pnet.numerics.formats import ChunkFormat
from p2pnet.numerics.reduce import reduce_part
from p2pnet.swarm import Swarm, join
from p2pnet.train.savefile import LEARNER_NAME
from p2pnet.wire.manifest import Link

WAIT_S = 60.0  # a test that needs it has failed
CONFIG = SwarmConfig(
    swarm=SwarmSection("tests"),
    task=CustomTask("custom", batch_size=4),
    training=Training(h_steps=2, window_s=10.0),
    codec=Codec(k=8, k_result=16, value_bits=2),
    policy=Policy(grace_s=0.4, stall_s=5.0, service_rounds=1),
)
BY_WINDOW = replace(CONFIG, training=replace(CONFIG.training, by_window=True))
LOCAL = ("/ip4/127.0.0.1/tcp/0",)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time that the loop sees, for the test to set."""
    now_s = [0.0]
    monkeypatch.setattr("p2pnet.training.time.monotonic", lambda: now_s[0])
    return now_s


def make_model(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Linear(16, 16)


# A node of a few lines ----------------------------------------------------------------------------------------------


class FakeBridge:
    """Says what the test wants and keeps what it is told."""

    def __init__(self) -> None:
        self.says: queue.SimpleQueue[br.ToUser] = queue.SimpleQueue()
        self.told: list[br.ToNode] = []
        self.answers: list[br.ToUser] = []  # said when the update is there
        self.next: list[br.ToUser] = []  # said when a round is applied

    def tell(self, item: br.ToNode) -> None:
        self.told.append(item)
        if isinstance(item, br.Submitted | br.Skipped):
            for answer in self.answers:
                self.says.put(answer)
            self.answers = []
        if isinstance(item, br.Applied):
            for answer in self.next:
                self.says.put(answer)
            self.next = []

    def wait(self, timeout_s: float | None = None) -> br.ToUser:
        return self.says.get(timeout=5)

    def poll(self) -> br.ToUser | None:
        return None if self.says.empty() else self.says.get()

    def last(self, kind: type) -> Any:
        return next(item for item in reversed(self.told) if isinstance(item, kind))


class FakeNode:
    """Implements as much of Node as the loop's side uses."""

    def __init__(self, folder: Path, keep_results: int = 64) -> None:
        from p2pnet.node.runner import NodeSettings

        self.bridge = FakeBridge()
        self.peer = b"\1" * 32
        self.stopped = 0
        self.settings = NodeSettings(Link(b"\0" * 32, ()), folder, NodeConfig(keep_results=keep_results))

    def stop(self) -> None:
        self.stopped += 1


class FakeOpening:
    """A swarm that is open, around a FakeNode."""

    def __init__(
        self, folder: Path, keep_results: int = 64, model: nn.Module | None = None, config: SwarmConfig = CONFIG
    ) -> None:
        self.folder, self.node = folder, FakeNode(folder, keep_results)
        made = (folder / "manifest.bin").exists()
        link = None if made else create(config, model or make_model(), state_dir=folder, collective=False)
        content = Content(folder, link.swarm if link else b"")
        if link is None:
            from p2pnet.identity import verify
            from p2pnet.wire.manifest import open_manifest

            manifest = open_manifest(content.manifest_path.read_bytes(), None, verify)
        else:
            loaded = content.load()
            assert loaded is not None
            manifest = loaded
        self.opened = br.Opened(manifest, content.initial_path)


class Loop:
    """A swarm whose node the test plays."""

    def __init__(
        self,
        folder: Path,
        keep_results: int = 64,
        seed: int = 1,
        says: tuple[br.ToUser, ...] = (),
        config: SwarmConfig = CONFIG,
    ) -> None:
        self.opening = FakeOpening(folder, keep_results, config=config)
        self.bridge = self.opening.node.bridge
        self.model = make_model(seed)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.1)
        for item in says or (task(0),):
            self.bridge.says.put(item)
        self.swarm = Swarm(self.opening, self.model, self.optimizer)  # type: ignore[arg-type]

    def step(self, spoil: bool = False) -> Any:
        loss = self.model(torch.ones(4, 16)).square().mean()
        loss.backward()
        if spoil:
            for parameter in self.model.parameters():
                parameter.grad.fill_(math.nan)  # type: ignore[union-attr]
        self.optimizer.step()
        self.optimizer.zero_grad()
        return self.swarm.step(loss, samples=4)

    def round(self, *items: br.ToUser, spoil: bool = False) -> Any:
        self.bridge.answers = list(items)
        assert self.step(spoil) is None
        return self.step()

    def e(self) -> torch.Tensor:
        return self.swarm.learner._e.clone()


def task(number: int) -> br.RoundTask:
    return br.RoundTask(number, bytes([number]) * 32, False)


def void(number: int) -> br.Outcome:
    return br.Outcome(number, b"\2" * 32, True, b"", None)


def result(number: int, payload: bytes, named: tuple[bool, ...] | None = None) -> br.Outcome:
    output = reduce_part([payload], [8], 8, ChunkFormat(8), ChunkFormat(16)).output
    return br.Outcome(number, b"\2" * 32, False, output, named)


def other_payload(folder: Path) -> bytes:
    """What another peer sent."""
    loop = Loop(folder, seed=9)
    loop.round(void(0), task(1))
    payload: bytes = loop.bridge.last(br.Submitted).payload
    return payload


def test_a_round_is_trained_sent_applied_and_reported(tmp_path: Path) -> None:
    loop = Loop(tmp_path)
    before = loop.swarm.state_sha256()
    report = loop.round(void(0), task(1))
    submitted = loop.bridge.last(br.Submitted)
    assert (submitted.round_id, submitted.samples, submitted.assigned) == (0, 8, False)
    assert (report.round, report.void, report.steps, report.credited) == (0, True, 2, False)
    assert loop.swarm.state_sha256() == before
    assert loop.swarm.round == 1
    named = result(1, submitted.payload, (True,))
    report = loop.round(named, task(2))
    assert report.credited
    assert loop.swarm.state_sha256() != before


def test_who_is_late_keeps_its_work_and_commits_to_it_when_the_next_round_begins(tmp_path: Path) -> None:
    payload = other_payload(tmp_path / "other")
    loop = Loop(tmp_path / "late")
    loop.bridge.says.put(result(0, payload))
    loop.bridge.says.put(task(1))
    loop.bridge.answers = [result(1, payload, (True,)), task(2)]
    report = loop.step()  # in mid-round: the others are through
    assert (report.round, report.credited, report.steps) == (0, False, 1)
    sent = loop.bridge.last(br.Submitted)
    assert (sent.round_id, sent.samples, sent.assigned) == (1, 4, False)
    assert loop.e().abs().sum() > 0
    only_applied = Loop(tmp_path / "fresh", says=(result(0, payload), result(1, payload), task(2)))
    assert loop.swarm.state_sha256() == only_applied.swarm.state_sha256()
    assert loop.bridge.last(br.Began).round_id == loop.swarm.round == 2  # which it trains, with the others
    loop.round(void(2), task(3))
    assert loop.bridge.last(br.Submitted).samples == 8


def test_by_window_a_round_takes_as_many_steps_as_fit_and_leaves_time_to_encode(
    tmp_path: Path, clock: list[float]
) -> None:
    loop = Loop(tmp_path, config=BY_WINDOW, says=(br.RoundTask(0, bytes(32), False, 10.0),))
    loop.bridge.answers = [void(0), br.RoundTask(1, bytes(32), False, 20.0)]
    report = None
    while report is None:
        clock[0] += 1.5
        report = loop.step()
    assert (report.steps, report.train_s) == (6, 9.0)  # another step would end at 10.5; h_steps is 2
    assert loop.bridge.last(br.Submitted).samples == 24
    loop.swarm._training._pace.encoded(2.0)
    clock[0] = 11.0  # the round began at 9: what was done between two rounds belongs to the first step
    loop.bridge.answers = [void(1), br.RoundTask(2, bytes(32), False, 30.0)]
    while (report := loop.step()) is None:
        clock[0] += 1.5
    assert (report.steps, clock[0]) == (5, 17.0)


def test_by_window_who_is_late_makes_up_for_it_at_once_only_without_time_for_a_step(
    tmp_path: Path, clock: list[float]
) -> None:
    payload = other_payload(tmp_path / "other")
    loop = Loop(tmp_path / "late", config=BY_WINDOW, says=(br.RoundTask(0, bytes(32), False, 10.0),))
    for item in (result(0, payload), br.RoundTask(1, bytes(32), False, 20.0)):
        loop.bridge.says.put(item)
    clock[0] = 12.0  # a step longer than the window
    loop.bridge.answers = [result(1, payload, (True,)), br.RoundTask(2, bytes(32), False, 40.0)]
    assert loop.step().steps == 1
    assert [item.round_id for item in loop.bridge.told if isinstance(item, br.Submitted)] == [1]
    for item in (result(2, payload), br.RoundTask(3, bytes(32), False, 60.0)):
        loop.bridge.says.put(item)
    clock[0] = 45.0
    assert loop.step().round == 2
    assert loop.swarm.round == 3  # 15 s are left, and 12 of them are enough for a step
    loop.bridge.answers = [void(3), br.RoundTask(4, bytes(32), False, 80.0)]
    clock[0] = 57.0
    assert loop.step().steps == 1
    sent = [(item.round_id, item.samples) for item in loop.bridge.told if isinstance(item, br.Submitted)]
    assert sent == [(1, 4), (3, 4)]


@pytest.mark.parametrize("late", [False, True])
def test_nan_is_never_sent_and_the_next_round_goes_on_from_theta(tmp_path: Path, late: bool) -> None:
    loop = Loop(tmp_path)
    theta = loop.swarm.learner._theta.clone()
    if late:
        for item in (void(0), task(1)):
            loop.bridge.says.put(item)
        report = loop.step(spoil=True)
    else:
        report = loop.round(void(0), task(1), spoil=True)
    skipped = loop.bridge.last(br.Skipped)
    assert skipped.round_id == report.round == 0
    assert "NaN" in skipped.reason
    assert "optimizer's state of 2 parameters is forgotten" in skipped.reason
    assert not any(isinstance(item, br.Submitted) for item in loop.bridge.told)
    assert torch.equal(loop.swarm.learner._theta, theta)
    assert loop.e().abs().sum() == 0
    loop.round(void(1), task(2))  # the optimizer would have spoilt this one, too
    assert loop.bridge.last(br.Submitted).round_id == 1


def test_a_loop_that_was_stopped_in_mid_exchange_goes_on(tmp_path: Path) -> None:
    loop = Loop(tmp_path)
    loop.step()

    def stop() -> br.ToUser:
        raise KeyboardInterrupt

    loop.bridge.wait = lambda timeout_s=None: stop()  # type: ignore[method-assign,misc]
    with pytest.raises(KeyboardInterrupt):
        loop.step()
    a = loop.e()
    assert a.abs().sum() > 0
    loop.swarm.close()
    sent = loop.bridge.last(br.Submitted)
    taken = result(0, sent.payload, (True,))
    again = Loop(tmp_path, says=(task(0), taken, task(1)))
    assert again.bridge.last(br.Submitted).payload == sent.payload  # what it is committed to, not something new
    assert again.bridge.last(br.Submitted).samples == sent.samples == 8
    assert again.bridge.last(br.Applied).round_id == 0
    assert again.e().abs().sum() < a.abs().sum()  # what was taken is not sent a second time


def test_a_restarted_learner_replays_what_was_decided_meanwhile(tmp_path: Path) -> None:
    payload = other_payload(tmp_path / "other")
    loop = Loop(tmp_path / "one")
    loop.round(result(0, payload), task(1))
    loop.swarm.close()
    assert loop.opening.node.stopped == 1
    later = [result(1, payload), void(2), result(3, payload)]
    again = Loop(tmp_path / "one", says=(*later, task(4)))
    assert again.bridge.told[0] == br.Attached(1, 1)
    assert [item.round_id for item in again.bridge.told if isinstance(item, br.Applied)] == [1, 2, 3]
    assert again.swarm.round == 4
    loop = Loop(tmp_path / "two", says=(result(0, payload), *later, task(4)))
    assert loop.swarm.state_sha256() == again.swarm.state_sha256()


def test_a_killed_process_never_lacks_more_results_than_the_ledger_keeps(tmp_path: Path) -> None:
    loop = Loop(tmp_path, keep_results=4)
    for number in range(7):
        loop.round(void(number), task(number + 1))
    again = Loop(tmp_path, says=(void(6), task(7)))  # saved every other round, so at the sixth
    assert again.bridge.told[0] == br.Attached(1, 6)


def test_a_round_out_of_order_is_refused(tmp_path: Path) -> None:
    loop = Loop(tmp_path)
    with pytest.raises(P2pnetError, match="round 5 was decided where round 0 is next"):
        loop.round(void(5), task(6))


def test_closing_twice_is_harmless_and_a_closed_swarm_says_so(tmp_path: Path) -> None:
    loop = Loop(tmp_path)
    loop.swarm.close()
    loop.swarm.close()
    assert loop.opening.node.stopped == 1
    with pytest.raises(P2pnetError, match="closed"):
        loop.step()


@pytest.mark.parametrize("damage", [b"", b"x" * 100, None])
def test_a_damaged_learner_file_says_what_to_do(tmp_path: Path, damage: bytes | None) -> None:
    loop = Loop(tmp_path)
    if damage is None:  # another model's
        other = create(CONFIG, nn.Linear(3, 3), state_dir=tmp_path / "other")
        assert other
        from p2pnet.train.learner import Learner

        learner = Learner(nn.Linear(3, 3), k=8, k_result=16, value_bits=2, level_bias=32, alpha_ppm=1, beta_ppm=1)
        learner.save(tmp_path / LEARNER_NAME, {"round": "0"})
    else:
        loop.swarm.close()
        (tmp_path / LEARNER_NAME).write_bytes(damage)
    with pytest.raises(ConfigError, match=rf"{LEARNER_NAME}.*move it away and the run is replayed"):
        Loop(tmp_path)


def test_a_learner_file_without_its_round_says_so(tmp_path: Path) -> None:
    loop = Loop(tmp_path)
    for notes in ({}, {"round": "x"}, {"round": "-3"}):
        loop.swarm.learner.save(tmp_path / LEARNER_NAME, notes)
        with pytest.raises(ConfigError, match="does not say its round"):
            Loop(tmp_path)


def test_a_second_swarm_in_one_directory_is_refused(tmp_path: Path) -> None:
    create(CONFIG, make_model(), state_dir=tmp_path)
    with pytest.raises(ConfigError, match="holds a swarm already"):
        create(CONFIG, make_model(), state_dir=tmp_path)


# Loops that people write ----------------------------------------------------------------------------------------------


def plain_step(loop: Loop, x: torch.Tensor) -> torch.Tensor:
    loss = loop.model(x).square().mean()
    loss.backward()
    loop.optimizer.step()
    loop.optimizer.zero_grad()
    return loss


def accumulating_step(loop: Loop, x: torch.Tensor) -> torch.Tensor:
    losses = [loop.model(part).square().mean() / 2 for part in x.split(2)]
    for loss in losses:
        loss.backward()
    loop.optimizer.step()
    loop.optimizer.zero_grad()
    return torch.stack(losses).sum()


def mixed_precision_step(loop: Loop, x: torch.Tensor) -> torch.Tensor:
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    with torch.autocast("cpu", torch.bfloat16):
        loss = loop.model(x).float().square().mean()
    scaler.scale(loss).backward()
    scaler.unscale_(loop.optimizer)
    nn.utils.clip_grad_norm_(loop.model.parameters(), 1.0)
    scaler.step(loop.optimizer)
    scaler.update()
    loop.optimizer.zero_grad()
    return loss


def scheduled_step(loop: Loop, x: torch.Tensor) -> torch.Tensor:
    if not hasattr(loop, "schedule"):
        loop.schedule = torch.optim.lr_scheduler.OneCycleLR(loop.optimizer, max_lr=0.1, total_steps=99)  # type: ignore[attr-defined]
    loss = plain_step(loop, x)
    loop.schedule.step()  # type: ignore[attr-defined]
    return loss


def closure_step(loop: Loop, x: torch.Tensor) -> torch.Tensor:
    if not isinstance(loop.optimizer, torch.optim.LBFGS):
        loop.optimizer = torch.optim.LBFGS(loop.model.parameters(), lr=0.1, max_iter=3)  # type: ignore[assignment]

    def closure() -> torch.Tensor:
        loop.optimizer.zero_grad()
        loss: torch.Tensor = loop.model(x).square().mean()
        loss.backward()
        return loss

    return loop.optimizer.step(closure)  # type: ignore[arg-type,return-value]


def hooked_step(loop: Loop, x: torch.Tensor) -> torch.Tensor:
    """The optimizer steps inside backward, as memory savers do."""
    if not hasattr(loop, "fused"):
        loop.fused = {p: torch.optim.SGD([p], lr=0.1) for p in loop.model.parameters()}  # type: ignore[attr-defined]

        def hook(p: torch.Tensor) -> None:
            loop.fused[p].step()  # type: ignore[attr-defined]
            p.grad = None

        for p in loop.model.parameters():
            p.register_post_accumulate_grad_hook(hook)
    loss: torch.Tensor = loop.model(x).square().mean()
    loss.backward()
    return loss


@pytest.mark.parametrize(
    "step",
    [plain_step, accumulating_step, mixed_precision_step, scheduled_step, closure_step, hooked_step],
    ids=lambda step: step.__name__,
)
def test_any_loop_that_calls_step_after_each_optimizer_step_takes_part(tmp_path: Path, step: Any) -> None:
    others = other_payload(tmp_path / "other")
    loops = [Loop(tmp_path / "one"), Loop(tmp_path / "two", seed=5)]  # the models are set to the initial parameters
    for number in range(3):
        for loop in loops:
            loop.bridge.answers = [result(number, others), task(number + 1)]
            for index in range(2):
                generator = torch.Generator().manual_seed(10 * number + index)
                loss = step(loop, torch.randn(4, 16, generator=generator))
                report = loop.swarm.step(loss, samples=4)
            assert report is not None
            assert (report.round, report.steps) == (number, 2)
            assert loop.bridge.last(br.Submitted).samples == 8
        sent = {loop.bridge.last(br.Submitted).payload for loop in loops}
        assert len(sent) == 1, "the same data, the same update: the optimizer went on where it was"
        assert len({loop.swarm.state_sha256() for loop in loops}) == 1


def test_a_loop_that_was_interrupted_between_two_rounds_does_not_save_a_torn_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = Loop(tmp_path)
    loop.round(void(0), task(1))
    loop.swarm._training._file.save(1)
    saved = (tmp_path / LEARNER_NAME).read_bytes()
    payload = loop.bridge.last(br.Submitted).payload

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(loop.swarm._training._file, "is_due", lambda _: False)
    monkeypatch.setattr(loop.swarm.learner, "rewind", interrupt)  # Ctrl-C after theta moved, before the round counted
    with pytest.raises(KeyboardInterrupt), loop.swarm:
        loop.round(result(1, payload), task(2))
    assert (tmp_path / LEARNER_NAME).read_bytes() == saved
    assert loop.opening.node.stopped == 1


def test_samples_of_a_loader_of_ones_own_are_unassigned(tmp_path: Path) -> None:
    loop = Loop(tmp_path)
    batches = loop.swarm.batches(torch.utils.data.TensorDataset(torch.zeros(9, 16)), batch_size=4)
    loop.round(void(0), task(1))
    assert not loop.bridge.last(br.Submitted).assigned  # nothing was drawn from them
    next(batches)
    loop.round(void(1), task(2))
    assert loop.bridge.last(br.Submitted).assigned
    loop.round(void(2), task(3))
    assert not loop.bridge.last(br.Submitted).assigned


def test_the_optimizer_goes_on_after_a_restart(tmp_path: Path) -> None:
    loop = Loop(tmp_path)
    loop.round(void(0), task(1))
    loop.swarm.close()
    again = Loop(tmp_path, says=(task(1),))
    before, after = ([state["exp_avg"] for state in each.optimizer.state.values()] for each in (loop, again))
    assert len(after) == 2
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_saving_is_paced_by_what_it_costs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = [0.0]
    monkeypatch.setattr("p2pnet.train.savefile.time.monotonic", lambda: now_s[0])
    loop = Loop(tmp_path)
    rounds = []
    save = loop.swarm.learner.save

    def slow_save(*arguments: Any) -> None:
        rounds.append(loop.swarm.round)
        save(*arguments)
        now_s[0] += 0.1

    monkeypatch.setattr(loop.swarm.learner, "save", slow_save)
    for number in range(12):
        now_s[0] += 1.01  # a round; so 50 x 0.1 s are five of them
        loop.round(void(number), task(number + 1))
    assert rounds == [0, 5, 10]


def test_who_joins_late_goes_on_from_a_state_or_says_why_not(tmp_path: Path) -> None:
    loop = Loop(tmp_path / "source")
    loop.round(result(0, other_payload(tmp_path / "other")), br.RoundTask(1, bytes(32), True))
    state = loop.bridge.last(br.Began).state
    path = tmp_path / "source" / "states" / state.hex()
    assert path.stat().st_size == 4 * loop.swarm.learner.params
    wrong, right = br.Snapshot(1, bytes(32), path), br.Snapshot(1, state, path)
    late = Loop(tmp_path / "late", says=(wrong, right, task(1)))
    answers = [item for item in late.bridge.told if isinstance(item, br.Attached)]
    assert [answer.round_id for answer in answers] == [0, 0, 1]
    assert "its hash is" in answers[1].refused
    assert not answers[2].refused
    assert late.swarm.state_sha256() == loop.swarm.state_sha256()
    assert late.swarm.round == 1


def test_create_and_join_find_each_other_without_a_state_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    link = create(CONFIG, make_model())
    folder = find_folder(link, None, None)
    assert folder.is_relative_to(tmp_path)
    assert Content(folder, link.swarm).load() is not None
    assert (folder / KEY_NAME).read_bytes() == (folder.parent / KEY_NAME).read_bytes()  # this machine's
    assert find_folder(str(link), folder, None) == folder
    with pytest.raises(ConfigError, match=f"created in {folder}"):
        find_folder(link, tmp_path / "run1", None)
    (tmp_path / "swarm.toml").write_text('[swarm]\nname = "x"\n[task]\nkind = "custom"\nbatch_size = 4\n')
    assert create(tmp_path / "swarm.toml", make_model(), state_dir=tmp_path / "run1") != link
    with pytest.raises(ConfigError, match=r"nowhere\.toml"):
        create(tmp_path / "nowhere.toml", make_model())


# Real nodes ---------------------------------------------------------------------------------------------------------


class Background:
    """A thread that runs until the test ends; its error fails the test."""

    def __init__(self, what: Callable[[], None]) -> None:
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(what,), daemon=True)
        self._thread.start()

    def _run(self, what: Callable[[], None]) -> None:
        try:
            what()
        except BaseException as error:  # noqa: BLE001 - raised in `join`
            self.error = error

    def join(self) -> None:
        self._thread.join(WAIT_S)
        assert not self._thread.is_alive()
        if self.error is not None:
            raise self.error


@pytest.fixture(scope="module")
def bootstrap(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a bootstrap peer."""
    key = tmp_path_factory.mktemp("bootstrap") / "key"
    Identity.load_or_create(key)
    ready: queue.SimpleQueue[str] = queue.SimpleQueue()
    stop: list[Callable[[], None]] = []

    async def run() -> None:
        token, scope = trio.lowlevel.current_trio_token(), trio.CancelScope()
        stop.append(lambda: token.run_sync_soon(scope.cancel))
        with scope:
            async with open_libp2p_host(DaemonOptions(listen=LOCAL), key) as host:
                ready.put(join_addr(host.addrs()[0], host.peer))
                await trio.sleep_forever()

    background = Background(lambda: trio.run(run))
    yield ready.get(timeout=WAIT_S)
    stop[0]()
    background.join()


class Peer:
    """A real swarm in a thread of its own: trains until it is told that a round is enough."""

    def __init__(self, link: Link, folder: Path, spoil: int = -1) -> None:
        self.link, self.folder, self.spoil = link, folder, spoil
        self.model = make_model(7)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.01)
        self.reports: list[Any] = []
        self.states: dict[int, str] = {}
        self.notes: list[dict[str, Any]] = []
        self.swarm: Swarm | None = None
        self.until = 1 << 30
        self.news = threading.Condition()
        self.thread = Background(self.run)

    def run(self) -> None:
        config = NodeConfig(listen=LOCAL)
        with join(
            self.link, self.model, self.optimizer, state_dir=self.folder, config=config, on_event=self.hear
        ) as self.swarm:
            while self.swarm.round < self.until:
                self.step(self.swarm)

    def step(self, swarm: Swarm) -> None:
        loss = self.model(torch.ones(4, 16)).square().mean()
        loss.backward()
        if swarm.round == self.spoil:
            self.model.bias.grad.fill_(math.nan)  # type: ignore[union-attr,operator]
            self.spoil = -1
        self.optimizer.step()
        self.optimizer.zero_grad()
        if report := swarm.step(loss, samples=4):
            with self.news:
                self.reports.append(report)
                self.states[swarm.decided - 1] = swarm.state_sha256()
                self.news.notify_all()

    def hear(self, kind: str, fields: dict[str, Any]) -> None:
        if kind == "note":
            self.notes.append(fields)

    def wait(self, is_so: Callable[[], bool]) -> None:
        with self.news:
            assert self.news.wait_for(lambda: is_so() or self.thread.error is not None, WAIT_S), self.reports
        if self.thread.error is not None:
            raise self.thread.error

    def finish(self, rounds: int) -> None:
        self.until = rounds
        self.thread.join()


def credited_rounds(peers: list[Peer]) -> set[int]:
    return set.intersection(*({report.round for report in peer.reports if report.credited} for peer in peers))


@pytest.mark.processes
def test_a_swarm_outlives_nan_and_the_death_of_a_daemon(bootstrap: str, tmp_path: Path) -> None:
    founders = tuple(Identity.load_or_create(tmp_path / name / KEY_NAME).peer for name in ("1", "2"))
    both = replace(
        CONFIG, swarm=SwarmSection("tests", founders=founders), training=Training(h_steps=2, window_s=1.0)
    )  # of two voters both are needed: neither runs ahead
    link = create(both, make_model(), state_dir=tmp_path / "1", bootstrap=[bootstrap])
    peers = [Peer(link, tmp_path / "1"), Peer(link, tmp_path / "2", spoil=3)]
    try:
        for peer in peers:
            peer.wait(lambda: max(credited_rounds(peers), default=0) >= 5)
        swarm = peers[1].swarm
        assert swarm is not None
        assert [note["round"] for note in peers[1].notes if note["kind"] == "skipped"] == [3]
        assert 3 not in credited_rounds([peers[1]])
        daemon = swarm._node.daemon_pid
        assert daemon
        os.kill(daemon, signal.SIGKILL)
        last = max(credited_rounds(peers))
        for peer in peers:
            peer.wait(lambda: max(credited_rounds(peers)) >= last + 3)
        assert swarm._node.daemon_pid not in (daemon, None)
        assert swarm.status()["connected"]
    finally:
        rounds = max((report.round for peer in peers for report in peer.reports), default=0) + 3
        for peer in peers:
            peer.until = rounds
    for peer in peers:
        peer.thread.join()
    common = peers[0].states.keys() & peers[1].states.keys()
    assert len(common) >= 6
    assert all(peers[0].states[number] == peers[1].states[number] for number in common)


@pytest.mark.processes
def test_with_overlap_two_members_end_bit_identical_through_nan_and_a_restart(bootstrap: str, tmp_path: Path) -> None:
    founders = tuple(Identity.load_or_create(tmp_path / name / KEY_NAME).peer for name in ("1", "2"))
    training = Training(h_steps=2, window_s=1.0, overlap=True)
    both = replace(CONFIG, swarm=SwarmSection("tests", founders=founders), training=training)
    link = create(both, make_model(), state_dir=tmp_path / "1", bootstrap=[bootstrap])
    peers = [Peer(link, tmp_path / "1"), Peer(link, tmp_path / "2", spoil=3)]
    peers[0].wait(lambda: max(credited_rounds(peers), default=0) >= 5)
    assert [note["round"] for note in peers[1].notes if note["kind"] == "skipped"] == [3]
    peers[1].finish(0)  # it leaves with an update in exchange and the next one half trained
    states = peers[1].states
    peers[1] = Peer(link, tmp_path / "2")
    last = max(report.round for report in peers[0].reports)
    try:
        peers[0].wait(lambda: max(credited_rounds(peers), default=0) >= last + 3)
    finally:
        rounds = max(report.round for report in peers[0].reports) + 4
        for peer in peers:
            peer.until = rounds
    for peer in peers:
        peer.thread.join()
    states |= peers[1].states
    common = peers[0].states.keys() & states.keys()
    assert len(common) >= 8
    assert all(peers[0].states[number] == states[number] for number in common)


@pytest.mark.processes
def test_a_member_that_is_its_own_bootstrap_peer_is_found(tmp_path: Path) -> None:
    with ExitStack() as stack:
        link = create(CONFIG, make_model(), state_dir=tmp_path / "1")
        first = join(link, make_model(), state_dir=tmp_path / "1", config=NodeConfig(listen=LOCAL), timeout_s=WAIT_S)
        stack.enter_context(first)
        status = first.status()
        addr = f"{status['addrs'][0]}/p2p/{status['peer']}"
        here = Link(link.swarm, (addr,))
        second = join(here, make_model(3), state_dir=tmp_path / "2", config=NodeConfig(listen=LOCAL), timeout_s=20)
        stack.enter_context(second)
        assert second.state_sha256() == first.state_sha256()
        end_s = time.monotonic() + WAIT_S
        while not (first.status()["connected"] and second.status()["connected"]):
            assert time.monotonic() < end_s, "connected, and yet no members of each other"


@pytest.mark.processes
def test_what_is_wrong_with_a_directory_is_said_at_once(tmp_path: Path) -> None:
    link = create(CONFIG, make_model(), state_dir=tmp_path / "1")
    config = NodeConfig(listen=LOCAL)

    def fails(folder: Path, match: str, model: nn.Module | None = None) -> None:
        with pytest.raises(ConfigError, match=match):
            join(link, model or make_model(), state_dir=folder, config=config, timeout_s=WAIT_S)

    with join(link, make_model(), state_dir=tmp_path / "1", config=config, timeout_s=WAIT_S):
        fails(tmp_path / "1", "in use by process")
    fails(tmp_path / "1", r"model: 2 parameters differ.*weight", model=nn.Linear(3, 3))
    (tmp_path / "file").write_text("")
    fails(tmp_path / "file", "cannot write there")
    ledger = tmp_path / "1" / "ledger.db"
    ledger.write_bytes(b"SQLite format 3\0" + b"\1" * 5000)
    fails(tmp_path / "1", r"ledger\.db: damaged")
    (tmp_path / "1" / "manifest.bin").write_bytes(b"garbage")
    fails(tmp_path / "1", r"manifest\.bin.*fetched again")


@pytest.mark.processes
def test_a_link_that_leads_nowhere_says_what_was_tried(tmp_path: Path) -> None:
    nobody = Identity.generate().peer
    addr = join_addr("/ip4/127.0.0.1/tcp/9", nobody)
    link = Link(b"\1" * 32, (addr,))
    with pytest.raises(NetworkError, match="nothing from the swarm"):
        join(link, make_model(), state_dir=tmp_path / "1", config=NodeConfig(listen=LOCAL), timeout_s=1)
    config = NodeConfig(listen=LOCAL, exit_when_unreachable=True)
    with pytest.raises(NetworkError, match=r"no bootstrap peer answers; tried .*/tcp/9"):
        join(link, make_model(), state_dir=tmp_path / "1", config=config, timeout_s=WAIT_S)


@pytest.mark.processes
def test_an_error_in_the_users_callback_ends_the_node_and_reaches_the_loop(tmp_path: Path) -> None:
    link = create(CONFIG, make_model(), state_dir=tmp_path / "1")

    def on_event(kind: str, _fields: dict[str, Any]) -> None:
        if kind == "note":
            raise ZeroDivisionError("in the user's own code")

    model = make_model()
    with (  # noqa: PT012 - it comes out of both blocks
        pytest.raises(P2pnetError, match="ZeroDivisionError"),
        join(
            link, model, state_dir=tmp_path / "1", config=NodeConfig(listen=LOCAL), on_event=on_event, timeout_s=WAIT_S
        ) as swarm,
    ):
        node = swarm._node
        with torch.no_grad():
            model.bias.fill_(math.nan)  # type: ignore[operator,union-attr]
        while True:
            swarm.step(math.nan, samples=4)
    assert not node.is_running()
    assert node.daemon_pid is None


# Branches -----------------------------------------------------------------------------------------------------------


def go_back(loop: Loop, number: int, path: Path, payload: bytes = b"") -> br.Return:
    return br.Return(number, path, None, payload, 4 if payload else 0, "")


def test_a_loop_goes_on_in_a_branch_and_back_with_its_work(tmp_path: Path) -> None:
    loop, left = Loop(tmp_path), tmp_path / "left"
    loop.bridge.answers = [br.Fork(0, left, "ab" * 32)]
    loop.step()
    sent = None

    def then(payload: bytes) -> None:  # decided in the branch
        loop.bridge.says.put(result(0, payload, (True,)))
        loop.bridge.says.put(task(1))

    tell = loop.bridge.tell

    def listen(item: br.ToNode) -> None:
        nonlocal sent
        tell(item)
        if isinstance(item, br.Submitted) and sent is None:
            sent = item.payload
            then(item.payload)

    loop.bridge.tell = listen  # type: ignore[method-assign]
    report = loop.step()
    assert (report.round, report.credited, loop.swarm.branch, loop.swarm.decided) == (0, True, "ab" * 32, 1)
    assert sent is not None
    loop.bridge.says.put(go_back(loop, 0, left, sent))
    loop.bridge.says.put(result(0, sent, (True,)))
    loop.bridge.says.put(task(1))
    assert loop.step() is None  # it goes back in mid-round, and takes over what is decided there
    assert (loop.swarm.branch, loop.swarm.decided, loop.swarm.round) == ("", 1, 1)
    assert [item.round_id for item in loop.bridge.told if isinstance(item, br.Applied)] == [0, 0]
    followed = Loop(tmp_path / "fresh", says=(result(0, sent), task(1)))
    assert followed.swarm.state_sha256() == loop.swarm.state_sha256()
    assert loop.e().abs().sum() > 0


def test_a_branch_in_which_nothing_was_decided_changes_nothing(tmp_path: Path) -> None:
    loop, left = Loop(tmp_path), tmp_path / "left"
    loop.bridge.says.put(br.Fork(0, left, "ab" * 32))
    loop.step()
    assert (loop.swarm.branch, left.exists()) == ("ab" * 32, True)
    loop.bridge.answers = [go_back(loop, 0, left), void(0), task(1)]
    report = loop.step()
    assert (report.round, report.void, loop.swarm.branch) == (0, True, "")


def test_a_loop_that_waits_for_a_branchs_decision_goes_back_without_a_report(tmp_path: Path) -> None:
    loop, left = Loop(tmp_path), tmp_path / "left"
    payload = other_payload(tmp_path / "other")
    loop.round(br.Fork(0, left, "ab" * 32), result(0, payload), task(1))
    assert loop.round(go_back(loop, 0, left), result(0, payload), task(1)) is None
    assert (loop.swarm.decided, loop.swarm.branch) == (1, "")
    assert loop.e().abs().sum() > 0


def test_a_loop_that_was_stopped_in_a_branch_says_so(tmp_path: Path) -> None:
    loop, left = Loop(tmp_path), tmp_path / "left"
    loop.round(br.Fork(0, left, "ab" * 32), result(0, other_payload(tmp_path / "other")), task(1))
    loop.swarm.save()
    again = Loop(tmp_path, says=(task(1),))
    told = again.bridge.last(br.Attached)
    assert (told.round_id, told.line, again.swarm.branch) == (1, "ab" * 32, "ab" * 32)
