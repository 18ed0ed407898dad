from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from benchmarks.arms import CONTROL_BYTES, METHODS, Arm, Bench, run
from p2pnet.config import AdamW, BytesLmTask, Codec, Swarm, SwarmConfig
from p2pnet.identity import Identity
from p2pnet.manifests import codec_sizes, make_manifest
from p2pnet.train.learner import Learner

TINY = BytesLmTask("bytes-lm", layers=1, width=64, heads=2, context=16)


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # as the benchmark has it; two that wait for each other are slow on a busy machine
    yield Bench(TINY, is_compiled=False, grid=8, end=8)
    torch.set_num_threads(before)


def test_the_text_of_an_arm_is_the_arm() -> None:
    arm = Arm("diloco", "adamw", h=7, lr=0.004, decay=0.0)
    assert str(arm) == "diloco adamw lr=0.004 decay=0.0 h=7"
    assert Arm.parse(str(arm)) == arm


@pytest.mark.parametrize("text", ["p2pnet muon hh=5", "p2pnet sgd", "gossip muon"])
def test_an_unknown_word_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=text):
        Arm.parse(text)


@pytest.mark.parametrize("method", METHODS)
def test_every_arm_learns_from_the_same_start_and_is_the_same_when_repeated(bench: Bench, method: str) -> None:
    arm = Arm(method, "adamw", steps=9, peers=2, batch=2, lr=0.01, h=4, k=512)
    first, again = run(bench, arm), run(bench, arm)
    assert first == again
    assert first["held_out"][0] == run(bench, Arm("data-parallel", "adamw", steps=1, peers=2, batch=2))["held_out"][0]
    assert first["held_out_loss"] < first["held_out"][0][1] - 0.1


def test_the_same_tokens_come_in_the_same_order_whatever_the_method(bench: Bench) -> None:
    samples = [bench.samples(Arm(method, steps=5)) for method in METHODS]
    assert all(torch.equal(each, samples[0]) for each in samples)
    assert not torch.equal(samples[0], bench.samples(Arm(steps=5, seed=1)))


def test_one_local_step_averaged_densely_is_one_step_of_that_peer(bench: Bench) -> None:
    alone = Arm("diloco", "adamw", steps=3, peers=1, batch=2, h=1, outer_lr=1.0, outer_momentum=0.0, fp32=1)
    together = run(bench, Arm("data-parallel", "adamw", steps=3, peers=1, batch=2, fp32=1))
    assert run(bench, alone)["held_out_loss"] == pytest.approx(together["held_out_loss"], abs=1e-5)


def test_a_peers_bytes_are_those_of_the_manifests_payload_and_result(bench: Bench) -> None:
    arm = Arm(peers=4, h=5, k=64)
    config = SwarmConfig(Swarm("bytes", created_unix_s=1), TINY, codec=Codec(64))
    learner = Learner(bench.model, k=64, k_result=128, value_bits=1, level_bias=0, alpha_ppm=0, beta_ppm=0)
    manifest = make_manifest(config, learner.replica.table(), b"", Identity.generate(), 1)
    sizes = codec_sizes(manifest.message)
    both = sizes.payload_bytes + sizes.result_bytes
    audit = 3 * sizes.payload_bytes  # the whole model is less than a leaf
    assert arm.bytes_per_step(learner.params, sizes.chunks) == (0.75 * both + audit + CONTROL_BYTES) / 5
    assert Arm("data-parallel").bytes_per_step(learner.params, sizes.chunks) == 1.5 * 4 * learner.params


def test_rates_fall_over_the_last_share_of_the_run_in_every_arm() -> None:
    adamw = Arm("data-parallel", "adamw", steps=100, decay=0.4, lr=0.5).inner_settings()
    assert adamw == AdamW(lr=0.5, decay_start=60, decay_steps=40)
