"""Whatever a PyTorch user calls a model takes part: two peers train it in memory and hold the same masters."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from p2pnet.errors import ConfigError
from p2pnet.numerics.formats import ChunkFormat
from p2pnet.numerics.reduce import reduce_part
from p2pnet.train.learner import Learner
from p2pnet.train.replica import Replica
from p2pnet.wire.manifest import ParameterRow

K, K_RESULT, H = 16, 32, 3
Make = Callable[[], nn.Module]


def make_learner(model: nn.Module) -> Learner:
    return Learner(model, k=K, k_result=K_RESULT, value_bits=2, level_bias=32, alpha_ppm=1_000_000, beta_ppm=950_000)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Linear(8, 8, bias=False), nn.Linear(8, 8)
        self.head.weight = self.embedding.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.head(self.embedding(x).tanh())
        return y


class Odd(nn.Module):
    """A scalar, an empty one, a transposed one, buffers, frozen ones of all sorts, several precisions."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.nothing = nn.Parameter(torch.empty(0, 4))
        self.turned = nn.Parameter(torch.randn(6, 8).t() / 8)
        self.low = nn.Parameter(torch.randn(6, 6).bfloat16() / 8)
        self.high = nn.Parameter(torch.randn(6, dtype=torch.float64))
        self.codes = nn.Parameter(torch.randint(0, 9, (3, 3)), requires_grad=False)
        self.base = nn.Parameter(torch.randn(6, 6).half() / 8, requires_grad=False)
        self.norm = nn.BatchNorm1d(6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(x @ self.turned * self.scale) @ (self.low + self.base).float()
        return y + self.high.float() + 0.01 * self.codes.sum() + self.nothing.sum()


class Convolution(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, padding=1)
        self.to(memory_format=torch.channels_last)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.conv(x.view(-1, 2, 2, 2))
        return y


def parametrized() -> nn.Module:
    model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 2))
    nn.utils.parametrizations.weight_norm(model[0])
    nn.utils.parametrizations.orthogonal(model[2])
    return model


MODELS: dict[str, Make] = {
    "plain": lambda: nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)),
    "more than a chunk": lambda: nn.Sequential(nn.Linear(8, 700), nn.Tanh(), nn.Linear(700, 9)),
    "tied": Tied,
    "odd": Odd,
    "channels last": Convolution,
    "bfloat16": lambda: nn.Linear(8, 8).bfloat16(),
    "float16": lambda: nn.Linear(8, 8).half(),
    "float64": lambda: nn.Linear(8, 8).double(),
    "parametrized": parametrized,
    "frozen": lambda: nn.Sequential(nn.Linear(8, 8).requires_grad_(False), nn.Linear(8, 2)),
}


class Peer:
    """A learner with a model and an optimizer of its own."""

    def __init__(self, make: Make, seed: int, initial: bytes | None) -> None:
        torch.manual_seed(0)
        self.model = make()
        self.learner = make_learner(self.model)
        self.learner.load_initial(initial or self.learner.initial_bytes())
        self.optimizer = torch.optim.SGD([p for p in self.model.parameters() if p.requires_grad], lr=0.05, momentum=0.9)
        self.generator = torch.Generator().manual_seed(seed)

    def train(self) -> bytes:
        dtype = next(self.learner.replica.trained[name].dtype for name in self.learner.replica.trained)
        for _ in range(H):
            x = torch.randn(4, 8, generator=self.generator)
            x = x if isinstance(self.model, Odd) else x.to(dtype)
            self.model(x).float().square().mean().backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
        return self.learner.encode(H, H)


def decide(*payloads: bytes) -> bytes:
    formats = ChunkFormat(K), ChunkFormat(K_RESULT)
    return reduce_part(payloads, [8] * len(payloads), 8 * len(payloads), *formats).output


@pytest.mark.parametrize("name", MODELS)
def test_two_peers_hold_the_same_masters_after_each_round(name: str) -> None:
    first = Peer(MODELS[name], 1, None)
    second = Peer(MODELS[name], 2, first.learner.initial_bytes())
    start = first.learner.state_sha256()
    states = {start}
    for _ in range(4):
        result = decide(first.train(), second.train())
        for peer in (first, second):
            peer.learner.apply(result, [True] * peer.learner.leaves)
        assert first.learner.state_sha256() == second.learner.state_sha256()
        states.add(first.learner.state_sha256())
        for mine, theirs in zip(first.model.parameters(), second.model.parameters(), strict=True):
            assert torch.equal(mine, theirs)
    assert len(states) == 5, "every round moved something"


def test_a_low_precision_model_gathers_what_its_own_dtype_cannot_hold() -> None:
    """Masters move by less than a bfloat16 can say, and nobody takes the rounding for training."""
    model = nn.Linear(64, 64, bias=False).bfloat16()
    learner = make_learner(model)
    before = learner._theta.clone()
    for _ in range(3):
        with torch.no_grad():
            model.weight += torch.full_like(model.weight, 2**-7) * (torch.arange(64) == 5)
        learner.apply(decide(learner.encode(H, H)), [True])
    moved = (learner._theta - before).view(-1)[: 64 * 64].view(64, 64)
    assert moved[:, 5].any()
    assert not moved[:, :5].any()


class Wrapper:
    """What users put around a model."""

    @staticmethod
    def compiled(model: nn.Module) -> nn.Module:
        return torch.compile(model, backend="eager")  # type: ignore[return-value]

    @staticmethod
    def compiled_inside(model: nn.Module) -> nn.Module:
        model[0] = torch.compile(model[0], backend="eager")  # type: ignore[operator,index]
        return model

    @staticmethod
    def parallel(model: nn.Module) -> nn.Module:
        return nn.DataParallel(model)

    @staticmethod
    def checkpointed(model: nn.Module) -> nn.Module:
        from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

        model[0] = checkpoint_wrapper(model[0])  # type: ignore[operator,index]
        return model


@pytest.mark.parametrize("wrap", [Wrapper.compiled, Wrapper.compiled_inside, Wrapper.parallel, Wrapper.checkpointed])
def test_what_is_wrapped_around_a_model_does_not_change_its_names(wrap: Callable[[nn.Module], nn.Module]) -> None:
    plain = MODELS["plain"]()
    expected = Replica(plain).table()
    wrapped = wrap(copy.deepcopy(plain))
    assert Replica(wrapped).table() == expected
    learner = make_learner(wrapped)
    wrapped(torch.randn(4, 8)).square().mean().backward()
    torch.optim.SGD(wrapped.parameters(), lr=0.1).step()
    assert learner.encode(1, 1)
    learner.void()


def test_an_exported_model_has_the_plain_names_and_this_peers_buffers(tmp_path: Any) -> None:
    from p2pnet.train.storage import read_tensors

    model = torch.compile(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)), backend="eager")
    make_learner(model).export(tmp_path / "model")  # type: ignore[arg-type]
    tensors, _ = read_tensors(tmp_path / "model")
    fresh = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    fresh.load_state_dict(tensors)


def test_the_table_says_what_is_trained_and_an_empty_parameter_is_not() -> None:
    torch.manual_seed(0)
    rows = {row.name: row for row in Replica(Odd()).table()}
    assert rows["scale"] == ParameterRow("scale", "float32", (), 1)
    assert rows["nothing"] == ParameterRow("nothing", "float32", (0, 4), 0)
    assert rows["codes"] == ParameterRow("codes", "int64", (3, 3), 0)
    assert "norm.running_mean" not in rows


def lazy() -> nn.Module:
    return nn.Sequential(nn.LazyLinear(4))


def without_values() -> nn.Module:
    return nn.Linear(2, 2, device="meta")


def complex_frozen() -> nn.Module:
    model = nn.Linear(2, 2)
    model.extra = nn.Parameter(torch.ones(2, dtype=torch.complex64), requires_grad=False)
    return model


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lazy, r"without a shape yet: 0\.bias; 0\.weight; run one batch"),
        (without_values, "on the meta device"),
        (complex_frozen, "extra is torch.complex64"),
        (lambda: nn.Linear(2, 2).requires_grad_(False), "no parameter is trained"),
        (nn.ReLU, "no parameter is trained"),
    ],
)
def test_a_model_that_cannot_take_part_says_why(make: Make, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Replica(make())


def freeze(model: nn.Sequential) -> None:
    model[0].weight.requires_grad_(False)


def replace(model: nn.Sequential) -> None:
    model[0].weight = nn.Parameter(torch.ones(8, 8))


def remove(model: nn.Sequential) -> None:
    model[0].register_parameter("weight", None)


def grow(model: nn.Sequential) -> None:
    model.append(nn.Linear(2, 2))


def thaw(model: nn.Sequential) -> None:
    model[2].bias.requires_grad_(True)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (freeze, r"0\.weight is frozen now"),
        (replace, r"0\.weight is another tensor"),
        (remove, r"0\.weight is gone"),
        (grow, r"3\.bias is new; 3\.weight is new"),
        (thaw, r"2\.bias is trained now"),
    ],
)
def test_a_model_that_changed_since_join_is_refused_at_the_rounds_end(change: Any, words: str) -> None:
    model = MODELS["plain"]()
    model[2].bias.requires_grad_(False)  # type: ignore[index]
    learner = make_learner(model)
    change(model)
    with pytest.raises(ConfigError, match=f"changed since the swarm was joined: {words}"):
        learner.encode(1, 1)


def test_frozen_parameters_are_hashed_one_at_a_time_and_in_any_dtype() -> None:
    torch.manual_seed(0)
    model = Odd()
    learner = make_learner(model)
    before = learner.state_sha256()
    model.codes.data += 1
    changed = learner.state_sha256()
    model.base.data += 1
    assert len({before, changed, learner.state_sha256()}) == 3
