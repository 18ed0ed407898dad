"""What an operator may set: frozen dataclasses, built once from TOML; where a default comes from stands beside it."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Final, Literal

from p2pnet.errors import ConfigError
from p2pnet.hours import Hours
from p2pnet.identity import PeerId, parse_peer_id
from p2pnet.schema import Length, Parsed, Range, Step, load, load_file

__all__ = [
    "AdamW", "BootstrapConfig", "BytesLmTask", "Codec", "CustomTask", "Muon", "NodeConfig", "Outer", "Policy",
    "Swarm", "SwarmConfig", "Training", "load", "load_file",
]  # fmt: skip


STATE_DIR: Final = Path("~/.local/share/p2pnet")


def expand_home(path: Path, what: str) -> Path:
    """Put the home directory where a path says ~. Raises ConfigError, which starts with `what`, when there is none."""
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise ConfigError(f"{what}: found {str(path)!r}, and no such home directory is known; set HOME") from error


def _check_multiaddr(text: str) -> str:
    """Check what an operator may mistype; the daemon knows the rest of the grammar."""
    protocol, _, rest = text.removeprefix("/").partition("/")
    host, _, rest = rest.partition("/")
    transport, _, port = rest.partition("/")
    if protocol in {"ip4", "ip6"}:
        if ipaddress.ip_address(host).version != int(protocol[2]):
            raise ValueError(f"{host} is not an {protocol} address")
    elif protocol not in {"dns", "dns4", "dns6"} or not host:
        raise ValueError("no host")
    if not text.startswith("/") or transport not in {"tcp", "udp"} or not 0 <= int(port.partition("/")[0]) <= 65535:
        raise ValueError("no port")
    return text


Multiaddr = Annotated[str, Parsed(_check_multiaddr, "an address such as /ip4/0.0.0.0/tcp/4001")]
PeerText = Annotated[PeerId, Parsed(parse_peer_id, "a peer id such as 12D3KooW...")]
Port = Annotated[int, Range(0, 65535)]

_AMOUNT: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([kMGT]?)", re.IGNORECASE)
RATE_BPS_MIN: Final = 256_000  # below it even the votes of a round would wait; guess
RATE_BPS_MAX: Final = 10**12
DISK_BYTES_MIN: Final = 10**7


def _parse_amount(text: str) -> int:
    """Read "5M", "800k", "1.5G", "5000000": powers of 1000."""
    found = _AMOUNT.fullmatch(text.strip())
    if found is None:
        raise ValueError("not a number with k, M, G or T")
    return round(float(found[1]) * 1000.0 ** " kmgt".index(found[2].lower() or " "))


def parse_rate(text: str) -> int:
    """Read bits per second, "5M" or "800k"; 0 is no limit. `ValueError` for anything else."""
    rate = _parse_amount(text.strip().removesuffix("bit/s"))
    if rate and not RATE_BPS_MIN <= rate <= RATE_BPS_MAX:
        raise ValueError("too slow or too fast")
    return rate


def parse_disk(text: str) -> int:
    """Read bytes, "20G" or "500M"; 0 is no limit. `ValueError` for anything else."""
    size = _parse_amount(text.strip().removesuffix("B"))
    if size and size < DISK_BYTES_MIN:
        raise ValueError("too small")
    return size


Rate = Annotated[int, Parsed(parse_rate, "bits per second such as 5M or 800k, from 256k, or 0 for no limit")]
Disk = Annotated[int, Parsed(parse_disk, "bytes such as 20G or 500M, from 10M, or 0 for no limit")]
DailyHours = Annotated[Hours, Parsed(Hours.parse, "hours of the day such as 22-07 or 21:30-06:15")]


@dataclass(frozen=True, slots=True)
class BytesLmTask:
    """Predict the next byte of text with a transformer: [task] kind = "bytes-lm"."""

    kind: Literal["bytes-lm"]
    text: Path | None = None  # a folder; none: the standard library's sources, found on any machine
    layers: Annotated[int, Range(1, 256)] = 4  # with the next three 0.8 M parameters, the size that was measured
    width: Annotated[int, Range(8, 16_384)] = 128
    heads: Annotated[int, Range(1, 256)] = 4
    context: Annotated[int, Range(8, 65_536)] = 128  # bytes
    batch_size: Annotated[int, Range(1, 4096)] = 8  # sequences per inner step and peer; measured

    def __post_init__(self) -> None:
        """Check what no field can say alone."""
        if self.width % (2 * self.heads):  # rotary embeddings turn pairs
            raise ValueError(f"heads: {self.heads} do not cut width = {self.width} into even parts")


@dataclass(frozen=True, slots=True)
class CustomTask:
    """A model and a loop of the researcher's own: [task] kind = "custom"; members bring the same code."""

    kind: Literal["custom"]
    description: Annotated[str, Length(0, 1000)] = ""
    batch_size: Annotated[int, Range(1, 4096)] = 8  # samples per inner step and peer


@dataclass(frozen=True, slots=True)
class AdamW:
    """The inner optimizer: [training.inner] kind = "adamw"."""

    kind: Literal["adamw"] = "adamw"
    lr: Annotated[float, Range(0.0, 10.0)] = 0.0025  # measured with H = 12; .004 without local steps
    beta1: Annotated[float, Range(0.0, 0.9999)] = 0.9  # arXiv:2508.15706
    beta2: Annotated[float, Range(0.0, 0.999999)] = 0.95  # arXiv:2508.15706
    weight_decay: Annotated[float, Range(0.0, 10.0)] = 0.1  # arXiv:2508.15706
    warmup_steps: Annotated[int, Range(0, 10_000_000)] = 20  # of the swarm, not of the peer; guess
    decay_start: Annotated[int, Range(0, 1_000_000_000)] = 0  # step of the swarm from which the rate falls
    decay_steps: Annotated[int, Range(0, 1_000_000_000)] = 0  # for so many; 0: never, for a swarm without a known end
    decay_floor: Annotated[float, Range(0.0, 1.0)] = 0.1  # share of the rate that is left then


@dataclass(frozen=True, slots=True)
class Muon:
    """The inner optimizer: [training.inner] kind = "muon"; hidden matrices only, the rest of the model gets AdamW.

    Measured with benchmarks/convergence.py: 0.8 M parameters, 4 peers.
    """

    kind: Literal["muon"] = "muon"
    lr: Annotated[float, Range(0.0, 10.0)] = 0.02  # of the hidden matrices; measured: as good as .03 with alpha = 1
    momentum: Annotated[float, Range(0.0, 0.9999)] = 0.9  # measured: .027 nats ahead of .95, .010 of .8
    weight_decay: Annotated[float, Range(0.0, 10.0)] = 0.0  # of the hidden matrices; guess, text is seen less than once
    adamw_lr: Annotated[float, Range(0.0, 10.0)] = 0.01  # of embeddings, gains and biases; measured beside .003
    warmup_steps: Annotated[int, Range(0, 10_000_000)] = 20  # of the swarm, not of the peer; guess
    decay_start: Annotated[int, Range(0, 1_000_000_000)] = 0  # step of the swarm from which the rates fall
    decay_steps: Annotated[int, Range(0, 1_000_000_000)] = 0  # for so many; 0: never, for a swarm without a known end
    decay_floor: Annotated[float, Range(0.0, 1.0)] = 0.1  # share of the rates that is left then; guess


@dataclass(frozen=True, slots=True)
class Training:
    """What a member does between two exchanges."""

    h_steps: Annotated[int, Range(1, 100_000)] = (
        8  # H; 4 learns best, measured (README); 8 is a guess between that and waiting
    )
    window_s: Annotated[float, Range(0.1, 86_400.0), Step(3)] = 600.0  # a round trains no longer; guess
    by_window: bool = False  # True: it trains for all of that, as many steps as fit; h_steps is then the usual number
    overlap: bool = False  # exchange beside the next round's training: no waiting, updates count a round later
    inner: AdamW | Muon = field(default_factory=Muon)  # measured: 9 % under AdamW's loss after 600 steps, data-parallel


@dataclass(frozen=True, slots=True)
class Codec:
    """How many values of a chunk of 4096 travel, how many bits each has, and at what scale."""

    k: Annotated[int, Range(8, 2048)] = 512  # measured: 1024 is .007 nats ahead, at 1.3x the bytes; 64 for large models
    k_result: Annotated[int, Range(0, 2048)] = 0  # 0: 3 * k: what four members send nearly all finds room; measured
    value_bits: Annotated[int, Range(1, 3)] = 1  # the sign alone; measured, best at equal bytes
    dense: bool = False  # send dense-1: 4 to 14 % less, for 10 to 100 us of a core per 4096 values; measured
    level_bias: Annotated[int, Range(0, 129)] = 32  # B: levels from 2e-9 to 7.5; guess

    def __post_init__(self) -> None:
        """Fill in the default that depends on k."""
        if self.k_result == 0:
            object.__setattr__(self, "k_result", min(3 * self.k, 2048))
        if self.k_result < self.k:
            raise ValueError(f"k_result: {self.k_result} is below k = {self.k}")


@dataclass(frozen=True, slots=True)
class Outer:
    """How the decided result moves the parameters, and how fast error feedback forgets."""

    alpha: Annotated[float, Range(0.0, 10.0), Step()] = (
        1.1  # measured: .9 is .011 nats behind, 1.3 .005 ahead with H = 4, 1.4 level with H = 5
    )
    beta: Annotated[float, Range(0.0, 1.0), Step()] = (
        1.0  # .95, as in arXiv:2508.15706, with alpha 1.2 is .006 nats behind
    )


@dataclass(frozen=True, slots=True)
class Policy:
    """Who takes part and who decides, and how long they wait for each other."""

    group_size_max: Annotated[int, Range(2, 64)] = 64  # nobody talks to more than 63 others
    voters_max: Annotated[int, Range(1, 100)] = 100  # 100 signatures verify in 20 ms; measured
    service_rounds: Annotated[int, Range(1, 2**20)] = 20  # before a member may vote; guess
    reducers_min: Annotated[int, Range(1, 64)] = 2  # fewer dialable peers: the others reduce through relays; guess
    grace_s: Annotated[float, Range(0.05, 600.0), Step(3)] = 2.0  # added to deadlines, an exchange has it; guess
    stall_s: Annotated[float, Range(0.5, 3600.0), Step(3)] = 10.0  # no progress for so long: it says so; guess
    snapshot_rounds: Annotated[int, Range(1, 2**20)] = 20  # guess
    exclude_rounds: Annotated[int, Range(1, 2**20)] = 1000  # who was proved to lie takes no part for so long; guess


@dataclass(frozen=True, slots=True)
class Swarm:
    """What a swarm is called and who founds it."""

    name: Annotated[str, Length(1, 64)]
    founders: Annotated[tuple[PeerText, ...], Length(0, 100)] = ()  # the first voters; none named: the creator
    created_unix_s: Annotated[int, Range(0, 2**40)] = 0  # 0: when the manifest is made

    def __post_init__(self) -> None:
        """Check what no field can say alone."""
        if len(set(self.founders)) != len(self.founders):
            raise ValueError("founders: a peer is named twice")


@dataclass(frozen=True, slots=True)
class SwarmConfig:
    """swarm.toml: what a researcher writes and `p2pnet swarm new` makes a manifest of."""

    swarm: Swarm
    task: BytesLmTask | CustomTask
    training: Training = field(default_factory=Training)
    codec: Codec = field(default_factory=Codec)
    outer: Outer = field(default_factory=Outer)
    policy: Policy = field(default_factory=Policy)


ANY_PORT: Final = "/ip4/0.0.0.0/tcp/0"


@dataclass(frozen=True, slots=True)
class NodeConfig:
    """node.toml: what a volunteer may set; every key has a default."""

    state_dir: Path = STATE_DIR  # key, ledger, optimizer state
    port: Port = 0  # listen on this TCP port, IPv4 and IPv6; 0: any port, as `listen` says
    listen: Annotated[tuple[Multiaddr, ...], Length(1, 16)] = (ANY_PORT,)  # whole addresses, in place of `port`
    bootstrap: Annotated[tuple[Multiaddr, ...], Length(0, 64)] = ()  # beside those in the link
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: Annotated[int, Range(0, 1024)] = 0  # torch's, while it trains and while it reduces; 0: its own choice
    max_up_bps: Rate = 0  # "5M", bits per second on the wire, over everything that is sent; 0: no limit
    max_down_bps: Rate = 0  # the same for what is received
    disk_bytes: Disk = 0  # "20G" for each swarm's folder; 0: no limit. A swarm that needs more is refused
    hours: DailyHours | None = None  # "22-07", local time: outside them saved, silent, and back by itself
    metrics_host: Annotated[str, Length(1, 255)] = "127.0.0.1"  # metrics tell a stranger too much
    metrics_port: Port = 0  # 0: no metrics
    exit_when_unreachable: bool = False  # else it keeps trying, with backoff
    keep_results: Annotated[int, Range(1, 1_000_000)] = 64  # rounds whose result bytes stay on disk; guess
    daemon: Path | None = None  # p2pd; None: the installed one

    def __post_init__(self) -> None:
        """Resolve the home directory; check what no field can say alone."""
        object.__setattr__(self, "state_dir", expand_home(self.state_dir, "state_dir"))
        if self.port and self.listen != (ANY_PORT,):
            raise ValueError(f"port: {self.port} says where to listen, and so does listen; give one of the two")


@dataclass(frozen=True, slots=True)
class BootstrapConfig:
    """bootstrap.toml: a peer that others start from."""

    key: Path = Path("bootstrap.key")  # made when missing; whoever has it is this peer
    listen: Annotated[tuple[Multiaddr, ...], Length(1, 16)] = ("/ip4/0.0.0.0/tcp/4001",)
    announce: Annotated[tuple[Multiaddr, ...], Length(0, 16)] = ()  # where others reach it, behind a forwarded port
    bootstrap: Annotated[tuple[Multiaddr, ...], Length(0, 64)] = ()  # its own neighbours
    metrics_host: Annotated[str, Length(1, 255)] = "127.0.0.1"
    metrics_port: Port = 0  # 0: no metrics
    daemon: Path | None = None  # p2pd; None: the installed one
