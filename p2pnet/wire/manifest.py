"""What a swarm is: a signed manifest, named by its hash, and the link to it. Contract: protocols/swarm-1.md."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from math import prod
from typing import Annotated, ClassVar
from urllib.parse import parse_qsl, quote, urlsplit

from p2pnet.errors import ConfigError, WireError
from p2pnet.identity import PeerId
from p2pnet.wire.codec import Count, Digest, Flag, Message, Range, Size, Uint32, Uint63
from p2pnet.wire.signing import Signed, Verify, open_signed

PROTOCOL = "swarm/1"
MANIFEST_BYTES_MAX = 4 << 20
PARAMETERS_MAX = 1 << 15
LINK_CHARS_MAX = 4096
BOOTSTRAP_MAX = 16
PPM = 1_000_000
CHUNK_VALUES = 4096  # codec-1

Name = Annotated[str, Size(1, 256)]
Ppm = Annotated[int, Range(0, 10 * PPM)]


@dataclass(frozen=True, slots=True)
class ParameterRow(Message):
    """One tensor of the model; tied tensors appear once."""

    protocol: ClassVar[str] = PROTOCOL
    kind: ClassVar[int] = 1
    name: Name
    dtype: Annotated[str, Size(1, 16)]  # torch's name; the master copy is float32 whatever it says
    shape: Annotated[tuple[Annotated[int, Range(0, 2**40)], ...], Count(0, 8)]
    trained: Flag  # 0: frozen, hashed with the state and never sent


@dataclass(frozen=True, slots=True)
class Option(Message):
    """One setting of the task or of the inner optimizer, which the core never reads."""

    protocol: ClassVar[str] = PROTOCOL
    kind: ClassVar[int] = 2
    name: Annotated[str, Size(1, 64)]
    value: Annotated[str, Size(0, 1024)]


@dataclass(frozen=True, slots=True)
class Codec(Message):
    """How updates are compressed (codec-1)."""

    protocol: ClassVar[str] = PROTOCOL
    kind: ClassVar[int] = 3
    k: Annotated[int, Range(8, 2048)]  # values of 4096 that a payload chunk carries
    k_result: Annotated[int, Range(8, 2048)]  # the same of a result chunk
    level_bias: Annotated[int, Range(0, 129)]
    value_bits: Annotated[int, Range(1, 3)]  # of a value: its sign, and which of 1, 2 or 4 levels it is at
    coding: Annotated[int, Range(0, 1)]  # 0: payloads and results travel as they are; 1: as dense-1


@dataclass(frozen=True, slots=True)
class Policy(Message):
    """The rules of the rounds; times in milliseconds, rates in millionths."""

    protocol: ClassVar[str] = PROTOCOL
    kind: ClassVar[int] = 4
    h_steps: Annotated[int, Range(1, 100_000)]  # inner steps of a round, which every update is scaled to
    round_samples: Annotated[int, Range(1, 2**31)]  # samples that give the full weight of 8
    window_ms: Annotated[int, Range(100, 86_400_000)]  # a round trains no longer than this
    grace_ms: Annotated[int, Range(50, 600_000)]  # added to every deadline; the least an exchange is given
    stall_ms: Annotated[int, Range(500, 3_600_000)]  # without progress for this long, the round says that it is stalled
    alpha_ppm: Ppm  # outer learning rate
    beta_ppm: Annotated[int, Range(0, PPM)]  # decay of the error feedback
    group_size_max: Annotated[int, Range(1, 64)]
    voters_max: Annotated[int, Range(1, 100)]
    service_rounds: Annotated[int, Range(1, 2**20)]  # accepted rounds before a member may vote
    reducers_min: Annotated[int, Range(1, 64)]
    snapshot_rounds: Annotated[int, Range(1, 2**20)]
    overlap: Annotated[int, Range(0, 1)]
    by_window: Flag  # 1: a round takes the whole window, however many steps fit; h_steps is the usual number
    exclude_rounds: Annotated[int, Range(1, 2**20)]  # for how long who was proved to lie takes no part


@dataclass(frozen=True, slots=True)
class Manifest(Message):
    """Everything that must be the same on all peers of a swarm. Its hash is the swarm's id."""

    protocol: ClassVar[str] = PROTOCOL
    kind: ClassVar[int] = 5
    name: Annotated[str, Size(1, 64)]
    created_unix_s: Uint63
    parent: Annotated[bytes, Size(0, 32)]  # the swarm this one continues; empty for a new one
    access: Annotated[str, Size(1, 16)]  # "open" until private swarms exist
    task: Annotated[str, Size(1, 64)]
    task_options: Annotated[tuple[Option, ...], Count(0, 64)]
    inner: Annotated[str, Size(1, 64)]
    inner_options: Annotated[tuple[Option, ...], Count(0, 64)]
    codec: Codec
    policy: Policy
    parameters: Annotated[tuple[ParameterRow, ...], Count(1, PARAMETERS_MAX)]  # by name, rising
    initial: Digest  # SHA-256 of the safetensors file of the initial parameters
    initial_bytes: Uint63
    founders: Annotated[tuple[PeerId, ...], Count(1, 100)]  # the electorate of round 0, rising

    @property
    def params(self) -> int:
        """Number of trained values."""
        return sum(self._sizes())

    @property
    def chunks(self) -> int:
        """Chunks of 4096 values in every payload and result (codec-1, Layout)."""
        large = [size for size in self._sizes() if size >= CHUNK_VALUES]
        return sum(-(-size // CHUNK_VALUES) for size in (*large, self.params - sum(large)))

    @property
    def state_bytes(self) -> int:
        """What a state takes: the trained values in fp32 (history-1)."""
        return 4 * self.params

    def _sizes(self) -> list[int]:
        return [prod(row.shape) for row in self.parameters if row.trained]


@dataclass(frozen=True, slots=True)
class Get(Message):
    """Give me this content: the manifest of this swarm, or bytes by their SHA-256."""

    protocol: ClassVar[str] = PROTOCOL
    kind: ClassVar[int] = 6
    swarm: Digest
    digest: Digest  # equal to `swarm`: the manifest itself
    offset: Uint63
    length: Uint32


MESSAGES: tuple[type[Message], ...] = (ParameterRow, Option, Codec, Policy, Manifest, Get)


def swarm_id(manifest: Signed[Manifest]) -> bytes:
    """The id of a swarm, 32 bytes: SHA-256 of the manifest's body under a tag of its own."""
    return hashlib.sha256(b"p2pnet/swarm/1\n" + manifest.body).digest()


def open_manifest(raw: bytes, expected: bytes | None, verify: Verify) -> Signed[Manifest]:
    """Decode and check a manifest: hash, signature, and what no codec can check.

    Raises WireError swarm-1/R1 (hash), wire-1/R6 (signature), swarm-1/R2 (order, sizes).
    """
    signed = open_signed((Manifest,), raw, verify, MANIFEST_BYTES_MAX)
    found = swarm_id(signed)
    if expected is not None and found != expected:
        raise WireError("swarm-1/R1", f"the manifest's hash is {found.hex()}, the link says {expected.hex()}")
    manifest = signed.message
    names = [row.name for row in manifest.parameters]
    if names != sorted(set(names)):
        raise WireError("swarm-1/R2", "parameter names are not rising")
    if list(manifest.founders) != sorted(set(manifest.founders)):
        raise WireError("swarm-1/R2", "founders are not rising")
    if len(manifest.founders) > manifest.policy.voters_max:
        raise WireError("swarm-1/R2", "more founders than voters_max")
    if manifest.params == 0 or manifest.params > 2**42:
        raise WireError("swarm-1/R2", f"{manifest.params} trained values")
    if manifest.access != "open":
        raise WireError("swarm-1/R3", f"access {manifest.access!r} is not known to this version; it knows 'open'")
    return signed


@dataclass(frozen=True, slots=True)
class Link:
    """`p2pnet://<swarm id in hex>?bootstrap=<multiaddr>...`: all that a volunteer needs."""

    swarm: bytes
    bootstrap: tuple[str, ...]  # multiaddrs that end in /p2p/<peer id>

    def __str__(self) -> str:
        query = "&".join("bootstrap=" + quote(addr, safe="/:.") for addr in self.bootstrap)
        return f"p2pnet://{self.swarm.hex()}" + (f"?{query}" if query else "")

    @classmethod
    def parse(cls, text: str) -> Link:
        """Read a link; raises ConfigError that says what is wrong with it."""
        if len(text) > LINK_CHARS_MAX:
            raise ConfigError(f"link: {len(text)} characters, at most {LINK_CHARS_MAX}")
        if not text.isascii():
            raise ConfigError(f"link: {text[:80]!a} holds letters that no link has; copy it once more")
        try:
            parts = urlsplit(text.strip())
        except ValueError as error:
            raise ConfigError(f"link: {text[:80]!r} is none: {error}; a link starts with p2pnet://") from None
        if parts.scheme != "p2pnet":
            raise ConfigError(f"link: starts with {parts.scheme or text[:20]!r}, a link starts with p2pnet://")
        try:
            swarm = bytes.fromhex(parts.netloc)
        except ValueError:
            swarm = b""
        if len(swarm) != 32:
            raise ConfigError(f"link: the swarm id is {parts.netloc!r}, 64 hexadecimal digits are needed")
        addrs = []
        for key, value in parse_qsl(parts.query, keep_blank_values=True):
            if key != "bootstrap":
                raise ConfigError(f"link: unknown key {key!r}, known: bootstrap")
            if not value.startswith("/") or "/p2p/" not in value:
                raise ConfigError(f"link: bootstrap={value!r} is not a multiaddr that ends in /p2p/<peer id>")
            addrs.append(value)
        if len(addrs) > BOOTSTRAP_MAX:
            raise ConfigError(f"link: {len(addrs)} bootstrap peers, at most {BOOTSTRAP_MAX}")
        return cls(swarm, tuple(addrs))
