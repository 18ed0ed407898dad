"""What a simulation plays: a swarm, its links, its machines, what goes wrong. Built from TOML or the command line."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Final

from p2pnet.config import Rate
from p2pnet.numerics.formats import ChunkFormat
from p2pnet.schema import Length, Parsed, Range
from p2pnet.sim.sizes import Sizes
from p2pnet.wire.manifest import Policy

_COUNT: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([kMGBT]?)", re.IGNORECASE)
PARAMS_MAX: Final = 2**42  # as in a manifest
SLOW_BYTES_PER_S: Final = 1_250_000  # what a node's deadlines expect of a link (p2pnet.node.bulk has the same)


def parse_params(text: str) -> int:
    """Read "1B", "100M", "800k" or a plain number of parameters. `ValueError` for anything else."""
    found = _COUNT.fullmatch(text.strip())
    if found is None:
        raise ValueError("not a number with k, M, B or T")
    count = round(float(found[1]) * {"": 1, "k": 1e3, "m": 1e6, "g": 1e9, "b": 1e9, "t": 1e12}[found[2].lower()])
    if not 1 <= count <= PARAMS_MAX:
        raise ValueError("too few or too many")
    return count


Params = Annotated[int, Parsed(parse_params, "a number of parameters such as 100M or 1B")]
Share = Annotated[float, Range(0.0, 1.0)]
Seconds = Annotated[float, Range(0.0, 1e6)]


@dataclass(frozen=True, slots=True)
class LinkClass:
    """Links of one kind: [[links]] in the TOML, for so large a share of the members."""

    share: Share = 1.0
    up: Rate = 100_000_000  # bits per second, "20M"; 0: no limit
    down: Rate = 100_000_000
    latency_ms: Annotated[float, Range(0.0, 10_000.0)] = 50.0  # one way, between two members with such links
    loss: Annotated[float, Range(0.0, 0.5)] = 0.0  # share of what is sent that is lost, and sent again
    nat: Share = 0.0  # share that cannot be dialled: they do not reduce, and meet each other through a relay


@dataclass(frozen=True, slots=True)
class Scenario:
    """A whole simulation; every key has a default."""

    members: Annotated[int, Range(1, 100_000)] = 16
    rounds: Annotated[int, Range(1, 1_000_000)] = 5
    seed: Annotated[int, Range(0, 2**62)] = 0
    voters: Annotated[int, Range(0, 100)] = 0  # the first electorate; 0: all members, at most 100
    params: Params = 100_000_000
    k: Annotated[int, Range(8, 2048)] = 64  # values of 4096 that a payload carries
    k_result: Annotated[int, Range(0, 2048)] = 0  # 0: 3 * k, as in a swarm.toml
    value_bits: Annotated[int, Range(1, 3)] = 1

    up: Rate = 100_000_000  # of every member, where there are no [[links]]
    down: Rate = 100_000_000
    latency_ms: Annotated[float, Range(0.0, 10_000.0)] = 50.0
    loss: Annotated[float, Range(0.0, 0.5)] = 0.0
    nat: Share = 0.0
    links: Annotated[tuple[LinkClass, ...], Length(0, 16)] = ()

    train_s: Seconds = 30.0  # a round's local steps on a machine of the middle
    train_spread: Annotated[float, Range(0.0, 2.0)] = 0.05  # from round to round: sigma of the logarithm
    speed_spread: Annotated[float, Range(0.0, 2.0)] = 0.1  # from machine to machine: sigma of the logarithm
    encode_gb_s: Annotated[float, Range(0.001, 1e6)] = 2.4  # of fp32, one thread; measured (results/codec.json)
    reduce_gb_s: Annotated[float, Range(0.001, 1e6)] = 14.0
    apply_gb_s: Annotated[float, Range(0.001, 1e6)] = 14.5

    crash: Share = 0.0  # of the members, killed in each round
    restart_s: Seconds = 10.0  # and started again so much later
    freeze: Share = 0.0  # of the members, stopped in each round while their connections stand
    freeze_s: Seconds = 30.0
    churn: Share = 0.0  # of the members, leaving in each round
    away_s: Seconds = 0.0  # until they are back; 0: half a round to one and a half
    night: Share = 0.0  # of the voters, leaving for good within night_s
    night_s: Seconds = 3600.0
    partition: Share = 0.0  # of the members, cut off from the others
    partition_s: Seconds = 60.0
    fault_round: Annotated[int, Range(0, 1_000_000)] = 1  # in which the first faults happen, night and partition begin
    detect_s: Seconds = 0.1  # from the end of a process to the others' notice: its connections break
    liars: Annotated[int, Range(0, 33)] = 0  # voters that say what they like

    window_s: Annotated[float, Range(0.1, 86_400.0)] = 600.0  # the swarm's policy, as in a swarm.toml
    grace_s: Annotated[float, Range(0.05, 600.0)] = 2.0
    stall_s: Annotated[float, Range(0.5, 3600.0)] = 10.0
    group_size_max: Annotated[int, Range(1, 64)] = 64
    service_rounds: Annotated[int, Range(1, 2**20)] = 20
    reducers_min: Annotated[int, Range(1, 64)] = 2
    snapshot_rounds: Annotated[int, Range(1, 2**20)] = 20
    limit_s: Annotated[float, Range(0.0, 1e9)] = 0.0  # of simulated time; 0: ten times what a round should take, each

    def __post_init__(self) -> None:
        """Check what no field can say alone."""
        if self.k_result and self.k_result < self.k:
            raise ValueError(f"k_result: {self.k_result} is below k = {self.k}")
        if self.links and abs(sum(link.share for link in self.links) - 1.0) > 1e-6:
            raise ValueError(f"links: the shares add up to {sum(link.share for link in self.links):g}, not to 1")
        if 3 * self.liars >= max(3, self.founders) and self.liars:
            raise ValueError(f"liars: {self.liars} of {self.founders} voters; fewer than a third can be survived")

    @property
    def founders(self) -> int:
        """How many voters there are at first."""
        return min(self.members, self.voters or 100)

    @property
    def link_classes(self) -> tuple[LinkClass, ...]:
        """The kinds of links there are."""
        return self.links or (LinkClass(1.0, self.up, self.down, self.latency_ms, self.loss, self.nat),)

    @property
    def policy(self) -> Policy:
        """The manifest's policy."""
        return Policy(
            8, ROUND_SAMPLES, round(1000 * self.window_s), round(1000 * self.grace_s), round(1000 * self.stall_s),
            1_100_000, 1_000_000, self.group_size_max, 100, self.service_rounds, self.reducers_min,
            self.snapshot_rounds, 0, 0, EXCLUDE_ROUNDS,
        )  # fmt: skip

    @property
    def sizes(self) -> Sizes:
        """How large payloads and results are."""
        result = ChunkFormat(self.k_result or min(3 * self.k, 2048), self.value_bits)
        return Sizes(self.params, ChunkFormat(self.k, self.value_bits), result)

    @property
    def exchange_s(self) -> float:
        """The time-out of an exchange, as a node of today sets it."""
        sizes = self.sizes
        return self.grace_s + 2 * (sizes.payload_bytes + sizes.result_bytes) / SLOW_BYTES_PER_S

    @property
    def round_s(self) -> float:
        """What a round should take: training and an exchange at the slowest link's rate. For planning, not a result."""
        slowest = min(min(link.up or 1e12, link.down or 1e12) for link in self.link_classes) / 8
        sizes = self.sizes
        return self.train_s + (sizes.payload_bytes + sizes.result_bytes) / slowest + 1.0


ROUND_SAMPLES: Final = 64
EXCLUDE_ROUNDS: Final = 1000  # as the configuration has it
