from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from torch import nn

from p2pnet.errors import ConfigError, NotFiniteError, WireError
from p2pnet.numerics.codec import decode, dequantise, encode
from p2pnet.numerics.formats import ChunkFormat
from p2pnet.numerics.levels import LEVEL_BIAS_DEFAULT
from p2pnet.numerics.reduce import reduce_part
from p2pnet.train.learner import Learner
from p2pnet.train.moments import Moments
from p2pnet.train.storage import dump_tensors, parse_tensors, read_tensors, write_tensors
from p2pnet.wire.manifest import ParameterRow

K, K_RESULT = 64, 128
FORMATS = ChunkFormat(K), ChunkFormat(K_RESULT)
BETA = 0.5


class Net(nn.Module):
    """Two large tensors, two small ones, a buffer; the head is the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(70, 64)  # 4480 values: two chunks
        self.layer = nn.Linear(64, 64)
        self.norm = nn.BatchNorm1d(64)
        self.head = nn.Linear(64, 70, bias=False)
        self.head.weight = self.embedding.weight


def make_net(seed: int = 0) -> Net:
    torch.manual_seed(seed)
    return Net()


def make_learner(net: nn.Module, beta_ppm: int = int(BETA * 1e6)) -> Learner:
    return Learner(
        net, k=K, k_result=K_RESULT, value_bits=2, level_bias=LEVEL_BIAS_DEFAULT, alpha_ppm=1_000_000, beta_ppm=beta_ppm
    )


@torch.no_grad()
def train(net: nn.Module, seed: int, size: float = 1e-3) -> dict[str, torch.Tensor]:
    """Move every trained parameter by a random amount; return the amounts."""
    generator = torch.Generator().manual_seed(seed)
    moved = {}
    for name, p in net.named_parameters():
        if p.requires_grad:
            moved[name] = size * torch.randn(p.shape, generator=generator)
            p.add_(moved[name].to(p.dtype))
    return moved


def decide(*payloads: bytes) -> bytes:
    formats = ChunkFormat(K), ChunkFormat(K_RESULT)
    return reduce_part(payloads, [8] * len(payloads), 8 * len(payloads), *formats).output


def values(net: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in net.named_parameters()}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first)


def test_sizes_follow_from_the_trained_parameters_tied_ones_once() -> None:
    learner = make_learner(make_net())
    assert learner.params == 70 * 64 + 64 * 64 + 64 + 2 * 64
    assert learner.chunks == 2 + 1 + 1
    assert learner.leaves == 1
    assert learner.payload_bytes == 4 * 82
    assert learner.result_bytes == 4 * ChunkFormat(K_RESULT).chunk_bytes


def test_the_table_names_each_parameter_once_with_dtype_shape_and_whether_it_is_trained() -> None:
    net = make_net()
    net.layer.bias.requires_grad_(False)
    net.norm.weight.data = net.norm.weight.data.bfloat16()
    assert make_learner(net).replica.table() == (
        ParameterRow("embedding.weight", "float32", (70, 64), 1),
        ParameterRow("layer.bias", "float32", (64,), 0),
        ParameterRow("layer.weight", "float32", (64, 64), 1),
        ParameterRow("norm.bias", "float32", (64,), 1),
        ParameterRow("norm.weight", "bfloat16", (64,), 1),
    )


def test_a_table_of_another_model_is_refused_with_every_difference() -> None:
    learner = make_learner(make_net())
    rows = {row.name: row for row in learner.replica.table()}
    learner.replica.check_table(rows.values())
    rows["norm.weight"] = ParameterRow("norm.weight", "bfloat16", (64,), 1)
    learner.replica.check_table(rows.values())  # in what precision a peer trains is its own business
    rows["layer.bias"] = ParameterRow("layer.bias", "float32", (65,), 1)
    rows["extra"] = ParameterRow("extra", "float32", (1, 2), 0)
    del rows["norm.bias"]
    with pytest.raises(ConfigError) as caught:
        learner.replica.check_table(rows.values())
    assert str(caught.value) == (
        "model: 3 parameters differ from the swarm's: extra: the swarm has [1, 2] frozen, the model none; "
        "layer.bias: the swarm has [65] trained, the model [64] trained; "
        "norm.bias: the swarm has none, the model [64] trained"
    )


def test_a_model_without_trained_or_with_complex_parameters_is_refused() -> None:
    with pytest.raises(ConfigError, match="no parameter is trained"):
        make_learner(nn.Linear(2, 2).requires_grad_(False))
    with pytest.raises(ConfigError, match=r"weight is torch.complex64"):
        make_learner(nn.Linear(2, 2, bias=False, dtype=torch.complex64))


def test_an_update_says_how_far_the_model_moved_and_leaves_it_there() -> None:
    net = make_net()
    learner = make_learner(net)
    start = values(net)
    train(net, seed=1)
    trained = values(net)
    update = learner.encode(steps=5, h_steps=5)
    assert len(update) == learner.payload_bytes
    assert same(values(net), trained)
    sent = decode(update, ChunkFormat(K), learner.chunks)
    delta = (start["layer.weight"] - trained["layer.weight"]).flatten()
    largest = delta.abs().topk(K).indices.sort().values
    assert torch.equal(sent.indices[2].long(), largest)
    assert torch.equal(sent.negative[2], delta[largest] < 0)


def test_an_update_of_fewer_steps_counts_as_a_whole_one() -> None:
    updates = []
    for size, steps in ((0.25, 2), (0.5, 4)):
        learner = make_learner(net := make_net())
        zeros = {row.name: torch.zeros(row.shape) for row in learner.replica.table()}
        learner.load_initial(dump_tensors(zeros))
        train(net, seed=1, size=size)
        updates.append(learner.encode(steps, h_steps=4))
    assert updates[0] == updates[1]  # powers of two: not even a rounding differs


@pytest.mark.parametrize("h_steps", [8, 64, 80])
def test_a_step_counts_the_same_for_who_takes_few_and_for_who_takes_all(h_steps: int) -> None:
    """Weight times scale, where each step moves the model by the same: 8 for every number of steps up to H."""
    zeros = dump_tensors({row.name: torch.zeros(row.shape) for row in make_learner(make_net()).replica.table()})
    for steps in {1, h_steps // 8, h_steps // 4, h_steps // 2, h_steps}:
        learner = make_learner(net := make_net())
        learner.load_initial(zeros)
        train(net, seed=1, size=steps / 2**10)
        learner.encode(steps, h_steps)
        weight = max(1, -(-8 * steps // h_steps))
        one = make_learner(other := make_net())
        one.load_initial(zeros)
        train(other, seed=1, size=1 / 2**10)
        one.encode(1, 1)
        torch.testing.assert_close(weight * learner._e, 8 * steps * one._e, rtol=1e-6, atol=0)


def test_who_takes_more_steps_than_h_sends_their_mean_and_who_takes_a_ten_thousandth_no_more_than_eight_times() -> None:
    zeros = dump_tensors({row.name: torch.zeros(row.shape) for row in make_learner(make_net()).replica.table()})
    sent = []
    for steps, h_steps, size in ((40, 4, 10.0), (4, 4, 1.0), (1, 100_000, 0.125), (100_000, 1, 100_000.0)):
        learner = make_learner(net := make_net())
        learner.load_initial(zeros)
        train(net, seed=1, size=size)
        learner.encode(steps, h_steps)
        sent.append(learner._e)
    for other in sent[1:]:
        torch.testing.assert_close(other, sent[0], rtol=1e-6, atol=0)


def test_a_decided_round_moves_theta_and_the_model_by_the_result() -> None:
    net = make_net()
    learner = make_learner(net)
    start = values(net)
    train(net, seed=1)
    result = decide(learner.encode(1, 1))
    learner.apply(result, [True])
    decided = decode(result, ChunkFormat(K_RESULT), learner.chunks)
    expected = start["layer.weight"].flatten().double()
    expected[decided.indices[2].long()] -= dequantise(decided, LEVEL_BIAS_DEFAULT)[2].double()
    assert torch.equal(net.layer.weight.detach().flatten(), expected.float())
    assert net.head.weight is net.embedding.weight


def test_a_void_round_returns_the_model_and_loses_no_work() -> None:
    net, other = make_net(), make_net()
    learner, untouched = make_learner(net), make_learner(other)
    start = values(net)
    train(net, seed=1)
    payload = learner.encode(1, 1)
    learner.void()
    assert same(values(net), start)
    train(other, seed=1)
    assert untouched.encode(1, 1) == payload
    assert learner.encode(1, 1) == payload  # without training: a = e, for beta waits for a decided result


def test_beta_is_applied_once_per_decided_result_whether_or_not_the_peer_took_part() -> None:
    zero = decide(encode(torch.zeros(4, 4096), ChunkFormat(K), LEVEL_BIAS_DEFAULT).numpy().tobytes())
    nets = [make_net() for _ in range(3)]
    learners = [make_learner(net) for net in nets]
    for net, learner in zip(nets, learners, strict=True):
        train(net, seed=1)
        learner.encode(1, 1)
        learner.void()
    encoding, skipping, voiding = learners
    encoding.encode(1, 1)
    encoding.apply(zero, None)  # closes the round whose encode applied beta before the void one
    skipping.apply(zero, None)
    voiding.void()
    voiding.void()
    voiding.apply(zero, None)
    assert encoding.encode(1, 1) == skipping.encode(1, 1) == voiding.encode(1, 1)
    for learner in learners:  # a second result, with nothing sent: decayed a second time
        learner.void()
        learner.apply(zero, None)
    first = learners[0].encode(1, 1)
    skipping.apply(zero, None)
    halved = dequantise(decode(skipping.encode(1, 1), ChunkFormat(K), 4), LEVEL_BIAS_DEFAULT)
    before = dequantise(decode(first, ChunkFormat(K), 4), LEVEL_BIAS_DEFAULT)
    assert torch.equal(halved, before * BETA)


def test_nothing_that_was_trained_is_lost_without_decay() -> None:
    """Conservation: what was accepted and what is still in e add up to all that was trained."""
    nets = [make_net() for _ in range(3)]
    learners = [make_learner(net, beta_ppm=1_000_000) for net in nets]
    trained = [{name: torch.zeros_like(p) for name, p in net.named_parameters()} for net in nets]
    taken = [learner._layout.empty() for learner in learners]
    for round_id in range(6):
        for peer, net in enumerate(nets):
            for name, amount in train(net, seed=10 * round_id + peer).items():
                trained[peer][name] -= amount
        payloads = [learner.encode(1, 1) for learner in learners]
        result = decide(*payloads[:2])  # the third is always too late
        decided = decode(result, ChunkFormat(K_RESULT), 4)
        hit = torch.zeros(4, 4096, dtype=torch.bool).scatter_(1, decided.indices.long(), decided.codes > 0)
        for peer, learner in enumerate(learners):
            if peer < 2:
                sent = decode(payloads[peer], ChunkFormat(K), 4)
                dense = torch.zeros(4, 4096).scatter_(1, sent.indices.long(), dequantise(sent, LEVEL_BIAS_DEFAULT))
                taken[peer] += dense * hit
            learner.apply(result, [True] if peer < 2 else None)
    for peer, learner in enumerate(learners):
        whole = learner._layout.gather(trained[peer])
        torch.testing.assert_close(learner._e + taken[peer], whole, atol=2e-6, rtol=0)  # the model rounds, too
    assert not taken[2].any()
    assert taken[0].any()


def test_a_straggler_that_misses_rounds_sends_all_of_their_work_when_it_is_back() -> None:
    """What was applied of it and what is left in e are what it trained, through five missed rounds and many after."""
    nets = [make_net() for _ in range(3)]
    learners = [make_learner(net, beta_ppm=1_000_000) for net in nets]
    slow, net = learners[2], nets[2]
    trained = {name: torch.zeros_like(p) for name, p in net.named_parameters()}
    taken = slow._layout.empty()
    for round_id in range(40):
        for peer in range(2):
            train(nets[peer], seed=10 * round_id + peer)
        missed, trains = round_id < 5, round_id < 6
        if trains:
            for name, amount in train(net, seed=10 * round_id + 2).items():
                trained[name] -= 8 * amount  # its one step of 8 counts eightfold
        payloads = [learner.encode(8, 8) for learner in learners[:2]]
        late = slow.encode(1, 8) if trains else slow.encode(1, 1)
        inputs, weights = (payloads, [8, 8]) if missed else ([*payloads, late], [8, 8, 1])
        result = reduce_part(inputs, weights, sum(weights), *FORMATS).output
        decided = decode(result, ChunkFormat(K_RESULT), 4)
        hit = torch.zeros(4, 4096, dtype=torch.bool).scatter_(1, decided.indices.long(), decided.codes > 0)
        if not missed:
            sent = decode(late, ChunkFormat(K), 4)
            dense = torch.zeros(4, 4096).scatter_(1, sent.indices.long(), dequantise(sent, LEVEL_BIAS_DEFAULT))
            taken += dense * hit
        for learner in learners[:2]:
            learner.apply(result, [True])
        slow.apply(result, None if missed else [True])
        whole = slow._layout.gather(trained)
        torch.testing.assert_close(slow._e + taken, whole, atol=4e-6 * (round_id + 1), rtol=0)
        if missed:
            assert not taken.any()
    assert slow.checksum() == learners[0].checksum()
    assert taken.square().sum() > 0.2 * whole.square().sum()  # some of it is out, and more with every round


@pytest.mark.parametrize("beta_ppm", [500_000, 1_000_000])
@pytest.mark.parametrize("named", [[True], None])
def test_with_overlap_a_round_ends_as_ever_and_the_next_ones_change_is_not_lost(
    beta_ppm: int, named: list[bool] | None
) -> None:
    nets = [make_net() for _ in range(2)]
    learner, plain = (make_learner(net, beta_ppm=beta_ppm) for net in nets)
    for net in nets:
        train(net, seed=1)
    result = decide(learner.encode(1, 1))
    plain.encode(1, 1)
    learner.rewind()
    start = learner._layout.gather(values(nets[0]))
    train(nets[0], seed=2)
    change = start - learner._layout.gather(values(nets[0]))
    learner.encode_next(result, named, 1, 1)
    plain.apply(result, named)
    assert learner.state_sha256() == plain.state_sha256()
    assert same(values(nets[0]), values(nets[1]))  # the model stands at theta
    assert torch.equal(learner._e, plain._e * (beta_ppm / 1e6) + change)
    sent = decode(learner.pending_update(), ChunkFormat(K), 4)
    assert torch.equal(sent.indices[2].long(), learner._e[2].abs().topk(K).indices.sort().values)


def test_with_overlap_a_void_round_loses_nothing_either() -> None:
    net, whole = make_net(), make_net()
    learner, at_once = make_learner(net), make_learner(whole)
    train(net, seed=1)
    learner.encode(1, 1)
    learner.rewind()
    train(net, seed=2)
    learner.encode_next(None, None, 1, 1)
    for seed in (1, 2):
        train(whole, seed=seed)
        at_once.encode(1, 1)
        at_once.void()
    torch.testing.assert_close(learner._e, at_once._e, atol=1e-7, rtol=0)
    assert learner.pending
    assert same(values(net), values(whole))


def test_with_overlap_what_goes_wrong_changes_nothing() -> None:
    net, other = make_net(), make_net()
    learner, spared = make_learner(net), make_learner(other)
    for each, each_learner in ((net, learner), (other, spared)):
        train(each, seed=1)
        result = decide(each_learner.encode(1, 1))
        each_learner.rewind()
    start = values(net)
    train(net, seed=2)
    with pytest.raises(WireError, match="codec-1"):
        learner.encode_next(result[:-1], [True], 1, 1)
    with torch.no_grad():
        net.layer.weight[3, 4] = float("nan")
    with pytest.raises(NotFiniteError, match=r"layer\.weight"):
        learner.encode_next(result, [True], 1, 1)
    assert same(values(net), start)
    assert learner.pending_update() == spared.pending_update()
    for each, each_learner in ((net, learner), (other, spared)):
        each_learner.apply(result, [True])
        train(each, seed=3)
    assert learner.encode(1, 1) == spared.encode(1, 1)


def test_what_was_trained_beside_an_update_can_be_kept_for_a_later_one() -> None:
    net = make_net()
    learner = make_learner(net, beta_ppm=1_000_000)
    train(net, seed=1)
    result = decide(learner.encode(1, 1))
    e, start = learner._e.clone(), values(net)
    learner.rewind()
    train(net, seed=2)
    change = learner._theta - learner._layout.gather(values(net))
    learner.keep(1, 1)
    assert torch.equal(learner._e, e + change)
    assert not same(values(net), start)
    learner.apply(result, [True])
    assert not learner.pending


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e30])
def test_a_model_that_diverged_emits_nothing_and_is_back_at_theta(value: float) -> None:
    net, other = make_net(), make_net()
    learner, spared = make_learner(net), make_learner(other)
    start = values(net)
    for each, each_learner in ((net, learner), (other, spared)):
        train(each, seed=1)
        each_learner.encode(1, 1)
        each_learner.void()
    with torch.no_grad():
        net.layer.weight[3, 4] = value
    with pytest.raises(NotFiniteError, match=r"layer\.weight"):
        learner.encode(1, 1)
    assert same(values(net), start)
    assert learner.encode(1, 1) == spared.encode(1, 1)


@pytest.mark.parametrize("change", [b"", b"\0", None])
def test_a_malformed_result_changes_nothing(change: bytes | None) -> None:
    net = make_net()
    learner = make_learner(net)
    train(net, seed=1)
    result = decide(learner.encode(1, 1))
    before, trained = learner.state_sha256(), values(net)
    bad = result[:-1] if change == b"" else result + change if change else b"\xff" * len(result)
    with pytest.raises(WireError, match="codec-1"):
        learner.apply(bad, [True])
    assert learner.state_sha256() == before
    assert learner.pending
    assert same(values(net), trained)
    learner.apply(result, [True])


def test_a_round_has_one_update_and_at_least_one_step() -> None:
    net = make_net()
    learner = make_learner(net)
    with pytest.raises(ValueError, match="0 steps of 5"):
        learner.encode(0, 5)
    learner.encode(1, 5)
    with pytest.raises(ValueError, match="pending"):
        learner.encode(1, 5)
    with pytest.raises(ValueError, match="2 leaves named, there are 1"):
        learner.apply(b"", [True, False])


def test_a_half_precision_model_sends_its_training_and_not_its_rounding() -> None:
    net = make_net().bfloat16()
    learner = make_learner(net)
    learner.load_initial(make_learner(make_net(seed=3)).initial_bytes())  # masters that bfloat16 cannot hold
    sent = decode(learner.encode(1, 1), ChunkFormat(K), 4)
    assert not sent.codes.any()
    learner.void()
    train(net, seed=1, size=0.1)
    assert decode(learner.encode(1, 1), ChunkFormat(K), 4).codes.all()
    assert net.layer.weight.dtype == torch.bfloat16


def test_frozen_parameters_stay_and_count_in_the_hash_of_the_state() -> None:
    net = make_net()
    net.layer.weight.requires_grad_(False)
    learner = make_learner(net)
    assert "layer.weight" not in parse_tensors(learner.initial_bytes(), "initial")
    before = learner.state_sha256()
    learner.void()
    with torch.no_grad():
        net.layer.weight[0, 0] += 1
    assert learner.state_sha256() != before


def test_the_state_hash_is_that_of_the_fp32_masters_in_name_order() -> None:
    net = make_net()
    digest = hashlib.sha256()
    for name in sorted(dict(net.named_parameters())):
        digest.update(dict(net.named_parameters())[name].detach().numpy().tobytes())
    assert make_learner(net).state_sha256() == digest.digest()


def test_initial_parameters_travel_as_bytes() -> None:
    source, target = make_learner(make_net(1)), make_learner(net := make_net(2))
    train(net, seed=1)
    target.encode(1, 1)
    data = source.initial_bytes()
    target.load_initial(data)
    assert data == target.initial_bytes()
    assert target.state_sha256() == source.state_sha256()
    assert same(values(net), values(make_net(1)))
    assert not target.pending
    assert not decode(target.encode(1, 1), ChunkFormat(K), 4).codes.any()  # no error feedback is left


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer.bias": torch.zeros(65)}, r"layer.bias: \(torch.float32, \(65,\)\), expected"),
        ({"layer.bias": torch.zeros(64).double()}, "torch.float64"),
        ({"layer.bias": torch.full((64,), torch.nan)}, "layer.bias holds a NaN"),
        ({"extra": torch.zeros(1)}, "extra"),
    ],
)
def test_initial_parameters_that_do_not_fit_are_refused(change: dict[str, torch.Tensor], message: str) -> None:
    learner = make_learner(make_net())
    before = learner.state_sha256()
    tensors = parse_tensors(learner.initial_bytes(), "x") | change
    with pytest.raises(ConfigError, match=message):
        learner.load_initial(dump_tensors(tensors))
    assert learner.state_sha256() == before


@pytest.mark.parametrize("pending", [False, True])
def test_a_restarted_learner_goes_on_as_if_nothing_had_happened(tmp_path: Path, pending: bool) -> None:
    net, again = make_net(), make_net(9)
    learner, restarted = make_learner(net), make_learner(again)
    train(net, seed=1)
    result = decide(learner.encode(1, 1))
    if not pending:
        learner.apply(result, [True])
    learner.save(tmp_path / "state", {"round": "12", "lineage": "ab" * 32})
    assert restarted.load(tmp_path / "state") == {"round": "12", "lineage": "ab" * 32}
    assert restarted.pending == pending
    for each, each_net in ((learner, net), (restarted, again)):
        if pending:
            each.apply(result, [True])
        train(each_net, seed=2)
    assert restarted.encode(1, 1) == learner.encode(1, 1)
    assert restarted.state_sha256() == learner.state_sha256()


def test_the_optimizer_is_saved_and_restored_with_the_rest(tmp_path: Path) -> None:
    net, again = make_net(), make_net(9)
    optimizers = [torch.optim.AdamW(each.parameters()) for each in (net, again)]
    net.layer(torch.ones(64)).sum().backward()
    optimizers[0].step()
    make_learner(net).save(tmp_path / "state", {"round": "1"}, Moments(optimizers[0]))
    assert make_learner(again).load(tmp_path / "state", Moments(optimizers[1])) == {"round": "1"}
    for name in ("exp_avg", "exp_avg_sq", "step"):
        assert torch.equal(optimizers[0].state[net.layer.weight][name], optimizers[1].state[again.layer.weight][name])
    assert make_learner(again).load(tmp_path / "state") == {"round": "1"}  # who has none leaves it


def test_an_optimizer_state_that_does_not_fit_stops_nobody(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    net = make_net()
    make_learner(net).save(tmp_path / "state", {}, Moments(torch.optim.SGD(net.parameters())))
    make_learner(net).load(tmp_path / "state", Moments(torch.optim.AdamW(net.parameters())))
    assert "SGD" not in caplog.text
    assert "AdamW: saved with another optimizer" in caplog.text


def test_who_joins_late_starts_from_a_state_whose_hash_is_certified(tmp_path: Path) -> None:
    def make(seed: int) -> Net:
        net = make_net(seed)
        net.layer.bias.requires_grad_(False)
        with torch.no_grad():
            net.layer.bias.fill_(0.5)
        return net

    source, target = make_learner(make(1)), make_learner(net := make(2))
    certified = source.state_sha256()
    source.write_state(tmp_path / "state")
    assert (tmp_path / "state").stat().st_size == 4 * source.params
    train(net, seed=1)
    update = target.encode(1, 1)
    e = target._e.clone()
    target.load_state(tmp_path / "state", certified)
    assert target.state_sha256() == certified
    assert same(values(net), values(make(1)))
    assert not target.pending
    assert torch.equal(target._e, e)  # what a peer still has to say outlasts a long absence
    assert update


def test_a_state_with_another_hash_or_size_changes_nothing(tmp_path: Path) -> None:
    source, target = make_learner(make_net(1)), make_learner(make_net(2))
    source.write_state(path := tmp_path / "state")
    before, data = target.state_sha256(), path.read_bytes()
    for change, expected, match in (
        (b"", bytes(32), "its hash is .*the certified one 0000.*the file is damaged$"),
        (b"\0", source.state_sha256(), "bytes, .* are expected"),
    ):
        path.write_bytes(data + change)
        with pytest.raises(ConfigError, match=match):
            target.load_state(path, expected)
        assert target.state_sha256() == before
    with pytest.raises(ConfigError, match="cannot be read"):
        target.load_state(tmp_path / "absent", bytes(32))
    frozen = make_net(3)
    frozen.layer.bias.requires_grad_(False)
    frozen_learner = make_learner(frozen)
    frozen_learner.write_state(path)
    with pytest.raises(ConfigError, match="or the model's frozen parameters are not the swarm's"):
        frozen_learner.load_state(path, bytes(32))


def test_a_file_of_another_model_or_kind_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    learner = make_learner(make_net())
    before = learner.state_sha256()
    make_learner(nn.Linear(64, 64)).save(tmp_path / "other", {})
    learner.export(tmp_path / "export")
    with pytest.raises(ConfigError, match="other parameters"):
        learner.load(tmp_path / "other")
    with pytest.raises(ConfigError, match="format is 'pt', expected 'p2pnet-learner-1'"):
        learner.load(tmp_path / "export")
    assert learner.state_sha256() == before


def test_notes_do_not_overwrite_what_the_learner_writes(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="decayed"):
        make_learner(make_net()).save(tmp_path / "state", {"decayed": "1"})


def test_a_learner_goes_back_with_all_that_it_learnt_since_and_what_was_pending(tmp_path: Path) -> None:
    net = make_net()
    learner = make_learner(net, beta_ppm=1_000_000)
    train(net, seed=1)
    pending = learner.encode(1, 1)
    left, checksum = values(net), learner.checksum()
    learner.write_state(tmp_path / "left")
    learner.rewind()
    start = learner._theta.clone()
    learner.apply(decide(pending), [True])  # the branch takes the update in, and goes on
    train(net, seed=2)
    learner.apply(decide(learner.encode(1, 1)), [True])
    position = learner._theta - learner._e
    learner.go_back(tmp_path / "left", checksum, pending)
    assert torch.equal(learner._theta, start)
    assert same(values(net), values(make_net()))
    assert not same(values(net), left)
    assert torch.allclose(learner._theta - learner._e, position, atol=1e-7)
    assert learner.pending
    assert learner.pending_update() == pending
    before = learner._e.clone()
    result = decide(pending)
    learner.apply(result, [True])  # the final chain takes it in as well, and what was sent is owed no more
    sent = learner._layout.empty()
    update = decode(pending, ChunkFormat(K), learner.chunks)
    sent.scatter_(1, update.indices.long(), dequantise(update, LEVEL_BIAS_DEFAULT))
    assert torch.equal(learner._e, before - sent)


@pytest.mark.parametrize("damage", ["checksum", "size", "payload"])
def test_a_learner_that_cannot_go_back_stays_as_it_was(tmp_path: Path, damage: str) -> None:
    net = make_net()
    learner = make_learner(net)
    path, checksum, payload = tmp_path / "left", learner.checksum(), b""
    learner.write_state(path)
    train(net, seed=1)
    learner.apply(decide(learner.encode(1, 1)), [True])
    theta, e = learner._theta.clone(), learner._e.clone()
    match damage:
        case "checksum":
            checksum += 1
        case "size":
            path.write_bytes(path.read_bytes()[:-1])
        case "payload":
            payload = b"\xff" * learner.payload_bytes
    with pytest.raises((ConfigError, WireError)):
        learner.go_back(path, checksum, payload)
    assert torch.equal(learner._theta, theta)
    assert torch.equal(learner._e, e)


def test_an_exported_model_loads_into_a_fresh_one(tmp_path: Path) -> None:
    net = make_net()
    net.layer.bias.requires_grad_(False)
    net.norm(torch.randn(8, 64))  # moves its running statistics
    make_learner(net).export(tmp_path / "model.safetensors")
    fresh = make_net(4)
    missing, unexpected = fresh.load_state_dict(read_tensors(tmp_path / "model.safetensors")[0], strict=False)
    assert (missing, unexpected) == (["head.weight"], [])  # the tied name of the embedding
    assert same(dict(fresh.state_dict()), dict(net.state_dict()))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_and_a_cpu_end_bit_identical(tmp_path: Path) -> None:
    nets = [make_net(), make_net().cuda()]
    learners = [make_learner(net) for net in nets]
    for round_id in range(3):
        with torch.no_grad():
            train(nets[0], seed=round_id)
            for mine, theirs in zip(nets[1].parameters(), nets[0].parameters(), strict=True):
                mine.copy_(theirs)
        updates = [learner.encode(1, 1) for learner in learners]
        assert updates[0] == updates[1]
        result = decide(*updates)
        for learner in learners:
            learner.apply(result, [True])
    learners[1].save(tmp_path / "state", {})
    assert learners[0].state_sha256() == learners[1].state_sha256()


@pytest.mark.parametrize("name", ["theta", "e"])
def test_a_bit_that_the_disk_has_flipped_is_noticed_and_changes_nothing(tmp_path: Path, name: str) -> None:
    path = tmp_path / "learner.safetensors"
    learner = make_learner(make_net())
    learner.save(path, {})
    tensors, metadata = read_tensors(path)
    tensors[name].view(torch.int32)[0, 7] ^= 1
    write_tensors(path, tensors, metadata)
    other = make_learner(make_net(1))
    before = other.state_sha256()
    with pytest.raises(ConfigError, match=r"learner\.safetensors: holds other values than were saved: damaged"):
        other.load(path)
    assert other.state_sha256() == before
