from __future__ import annotations

import dataclasses
import tomllib
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from p2pnet.config import (
    AdamW,
    BootstrapConfig,
    BytesLmTask,
    Codec,
    CustomTask,
    NodeConfig,
    SwarmConfig,
    load,
    load_file,
)
from p2pnet.errors import ConfigError
from p2pnet.identity import Identity, peer_id_text

ALICE = Identity.from_seed(b"a" * 32).peer

SWARM_TOML = f"""
[swarm]
name = "standard-library"
founders = ["{peer_id_text(ALICE)}"]

[task]
kind = "bytes-lm"
text = "texts"
width = 64
batch_size = 16

[training]
h_steps = 10
window_s = 1.5

[training.inner]
kind = "adamw"
lr = 1.2e-4

[codec]
k = 64

[outer]
alpha = 1

[policy]
service_rounds = 1
"""


def test_a_swarm_file_is_read_into_frozen_tables(tmp_path: Path) -> None:
    (tmp_path / "swarm.toml").write_text(SWARM_TOML)
    config = load_file(SwarmConfig, tmp_path / "swarm.toml")
    assert config.swarm.founders == (ALICE,)
    assert config.task == BytesLmTask("bytes-lm", tmp_path / "texts", width=64, batch_size=16)
    assert (config.training.h_steps, config.training.window_s, config.training.inner) == (10, 1.5, AdamW(lr=1.2e-4))
    assert (config.codec, config.outer.alpha, config.policy.service_rounds) == (Codec(64, 192, 1), 1.0, 1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.swarm.name = "other"  # type: ignore[misc]


def test_a_name_and_a_task_are_all_that_a_swarm_needs() -> None:
    config = load(SwarmConfig, {"swarm": {"name": "mine"}, "task": {"kind": "custom"}}, "swarm.toml")
    assert config.task == CustomTask("custom")
    assert config.swarm.founders == ()


@pytest.mark.parametrize(("k", "k_result"), [(64, 192), (512, 1536), (1024, 2048)])
def test_a_result_has_three_times_the_values_of_a_payload_unless_told_otherwise(k: int, k_result: int) -> None:
    assert Codec(k).k_result == k_result
    assert Codec(k, k).k_result == k


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("k = 64", "k = 64\nk_result = 32", r"\[codec\] k_result: 32 is below k = 64"),
        ("k = 64", "k = 4", "from 8 to 2048"),
        ("width = 64", "width = 66", r"\[task\] heads: 4 do not cut width = 66"),
        ("[policy]", "[polcy]", "polcy: unknown key; did you mean policy"),
        ("alpha = 1", "alpha = 1.00000001", "at most 6 decimals"),
        (f'["{peer_id_text(ALICE)}"]', f'["{peer_id_text(ALICE)}", "{peer_id_text(ALICE)}"]', "named twice"),
        (f'["{peer_id_text(ALICE)}"]', '["12D3KooWnobody"]', r"founders\[0\]: found .*allowed is a peer id"),
        ('kind = "bytes-lm"', "", r"\[task\] kind: missing"),
        ('kind = "adamw"', "", r'\[training.inner\] kind: missing; allowed is one of "adamw", "muon"'),
        ("lr = 1.2e-4", "lr = nan", r"\[training.inner\] lr: found nan"),
    ],
)
def test_a_mistake_in_a_swarm_file_is_named(old: str, new: str, message: str) -> None:
    assert old in SWARM_TOML
    with pytest.raises(ConfigError, match=message):
        load(SwarmConfig, tomllib.loads(SWARM_TOML.replace(old, new)), "swarm.toml")


def test_every_key_of_a_node_and_of_a_bootstrap_peer_has_a_default() -> None:
    node = load(NodeConfig, {}, "defaults")
    assert node.state_dir.is_absolute()
    assert load(BootstrapConfig, {}, "defaults") == BootstrapConfig()


@pytest.mark.parametrize(
    "address",
    [
        "/ip4/127.0.0.1/tcp/0",
        "/ip6/::/tcp/4001",
        "/dns4/boot.example.org/tcp/4001",
        "/dns/boot.example.org/udp/4001/quic-v1",
        f"/ip4/10.0.0.1/tcp/4001/p2p/{peer_id_text(ALICE)}",
    ],
)
def test_addresses_as_libp2p_writes_them_are_taken(address: str) -> None:
    assert load(NodeConfig, {"listen": [address]}, "node.toml").listen == (address,)


@pytest.mark.parametrize(
    "address",
    ["", "127.0.0.1:4001", "ip4/127.0.0.1/tcp/1", "/ip4/127.0.0.1", "/ip4/300.0.0.1/tcp/1", "/ip6/127.0.0.1/tcp/1",
     "/ip4/127.0.0.1/tcp/65536", "/ip4/127.0.0.1/tcp/http", "/dns4//tcp/1", "/unix/tmp/socket", "//////"],
)  # fmt: skip
def test_addresses_with_a_mistake_are_refused_with_an_example(address: str) -> None:
    with pytest.raises(ConfigError, match=r"listen\[0\].*an address such as /ip4/0.0.0.0/tcp/4001"):
        load(NodeConfig, {"listen": [address]}, "node.toml")


def test_a_bootstrap_key_is_looked_for_beside_the_file_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "bootstrap.toml").write_text('key = "operator.key"\nmetrics_port = 9100\n')
    config = load_file(BootstrapConfig, tmp_path / "bootstrap.toml")
    assert (config.key, config.metrics_port) == (tmp_path / "operator.key", 9100)


def test_limits_are_no_wider_than_the_manifests_where_the_names_are_the_same() -> None:
    from p2pnet import config
    from p2pnet.wire import manifest

    def limits(cls: type) -> dict[str, tuple[float, float]]:
        hints = get_type_hints(cls, include_extras=True)
        found = {name: [rule for rule in get_args(hint) if hasattr(rule, "low")] for name, hint in hints.items()}
        return {name: (rules[0].low, rules[0].high) for name, rules in found.items() if rules}

    theirs = limits(manifest.Policy) | limits(manifest.Codec)
    ours = limits(config.Policy) | limits(config.Codec) | limits(config.Training)
    common = ours.keys() & theirs.keys() - {"k_result"}  # where 0 stands for the default
    assert len(common) >= 7
    for name in common:
        assert theirs[name][0] <= ours[name][0] <= ours[name][1] <= theirs[name][1], name
    for name in ("grace", "stall", "window"):
        low, high = ours[f"{name}_s"]
        assert theirs[f"{name}_ms"][0] <= low * 1000 <= high * 1000 <= theirs[f"{name}_ms"][1], name


@pytest.mark.parametrize(
    ("found", "bps"), [("5M", 5_000_000), ("800k", 800_000), ("1.5 G", 1_500_000_000), ("0", 0), (256_000, 256_000)]
)
def test_a_rate_is_bits_per_second_in_powers_of_1000(found: object, bps: int) -> None:
    assert load(NodeConfig, {"max_up_bps": found, "max_down_bps": found}, "node.toml").max_up_bps == bps


@pytest.mark.parametrize("found", ["5MB", "255k", "-5M", "fast", "", 1000, 5.0, True, "2000T"])
def test_a_rate_that_is_none_or_too_slow_for_votes_is_refused(found: object) -> None:
    with pytest.raises(ConfigError, match="max_up_bps: found .* bits per second such as 5M"):
        load(NodeConfig, {"max_up_bps": found}, "node.toml")


def test_a_disk_size_is_bytes() -> None:
    assert load(NodeConfig, {"disk_bytes": "20G"}, "node.toml").disk_bytes == 20_000_000_000
    assert load(NodeConfig, {"disk_bytes": "500MB"}, "node.toml").disk_bytes == 500_000_000
    with pytest.raises(ConfigError, match="bytes such as 20G"):
        load(NodeConfig, {"disk_bytes": "9M"}, "node.toml")


def test_hours_are_local_time() -> None:
    assert str(load(NodeConfig, {"hours": "22-07"}, "node.toml").hours) == "22:00-07:00"
    with pytest.raises(ConfigError, match="hours: found 'night'.*such as 22-07"):
        load(NodeConfig, {"hours": "night"}, "node.toml")


def test_a_port_and_whole_addresses_are_not_given_both() -> None:
    with pytest.raises(ConfigError, match="port: 4001 .* so does listen"):
        load(NodeConfig, {"port": 4001, "listen": ["/ip4/127.0.0.1/tcp/0"]}, "node.toml")
