"""Make a swarm's manifest out of its settings, and say what it means: sizes, places. Needs no torch."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from p2pnet.config import BytesLmTask, CustomTask, SwarmConfig
from p2pnet.errors import ConfigError, WireError
from p2pnet.identity import Identity, verify
from p2pnet.numerics.formats import ChunkFormat
from p2pnet.train.options import write_options
from p2pnet.wire.manifest import PPM, Codec, Manifest, Option, ParameterRow, Policy, open_manifest
from p2pnet.wire.signing import Signed, sign_message

ACCESS_OPEN: Final = "open"
KEY_NAME: Final = "peer.key"  # in a state directory: who this machine is
FOLDER_CHARS: Final = 16  # of the swarm's id in hex: enough to tell apart the swarms of one machine


@dataclass(frozen=True, slots=True)
class Sizes:
    """What a swarm's updates weigh, in bytes, the same in every round."""

    chunks: int
    payload_bytes: int  # what each member sends of its own update
    result_bytes: int  # what each member receives back
    compression: float  # 4 * params / payload_bytes


def make_manifest(
    config: SwarmConfig, table: tuple[ParameterRow, ...], initial: bytes, identity: Identity, now_unix_s: int
) -> Signed[Manifest]:
    """Build and sign the manifest of a swarm.

    table: the model's parameters, by name.   initial: the safetensors file of the initial ones.   identity: the
    creator's; it founds the swarm unless founders are named.   now_unix_s: the date, unless the settings fix one.
    Raises ConfigError when the settings make no manifest that others would take.
    """
    founders = tuple(sorted(config.swarm.founders)) or (identity.peer,)
    if len(founders) > config.policy.voters_max:
        raise ConfigError(
            f"[swarm] founders: found {len(founders)}; allowed are up to voters_max = {config.policy.voters_max}"
        )
    manifest = Manifest(
        name=config.swarm.name,
        created_unix_s=config.swarm.created_unix_s or now_unix_s,
        parent=b"",
        access=ACCESS_OPEN,
        task=config.task.kind,
        task_options=_task_options(config.task),
        inner=config.training.inner.kind,
        inner_options=write_options(config.training.inner),
        codec=_codec(config),
        policy=_policy(config),
        parameters=table,
        initial=hashlib.sha256(initial).digest(),
        initial_bytes=len(initial),
        founders=founders,
    )
    try:
        signed = sign_message(manifest, identity.peer, identity.sign)
        return open_manifest(signed.raw, None, verify)  # as everybody who joins will
    except WireError as error:
        raise ConfigError(f"no manifest can be made of these settings: {error.detail}") from error
    except ValueError as error:
        raise ConfigError(f"no manifest can be made of these settings: {error}") from error


def codec_sizes(manifest: Manifest) -> Sizes:
    """Return what the updates of a swarm weigh (protocols/codec-1.md, Layout)."""
    chunks = manifest.chunks
    codec = manifest.codec
    payload_bytes, result_bytes = (
        ChunkFormat(k, codec.value_bits).payload_bytes(chunks) for k in (codec.k, codec.k_result)
    )
    return Sizes(chunks, payload_bytes, result_bytes, 4 * manifest.params / payload_bytes)


def needed_bytes(manifest: Manifest, keep_results: int) -> int:
    """Return what a member's folder takes at most, but for the decided rounds themselves, kilobytes each.

    The initial parameters; theta, e and two moments of the optimizer, twice while they are saved; up to four states for
    who joins late; and the results that are kept.
    """
    tensors_bytes = 4 * manifest.params * (1 + 2 * (2 + 2) + 4)
    results = max(keep_results, 3 * manifest.policy.snapshot_rounds)
    return tensors_bytes + (results + 2) * codec_sizes(manifest).result_bytes + (2 << 20)


def swarm_folder(state_dir: Path, swarm: bytes) -> Path:
    """Return where the files of a swarm (32 bytes, its id) lie in a state directory."""
    return state_dir / swarm.hex()[:FOLDER_CHARS]


def _codec(config: SwarmConfig) -> Codec:
    its = config.codec
    return Codec(its.k, its.k_result, its.level_bias, its.value_bits, int(its.dense))


def _task_options(task: BytesLmTask | CustomTask) -> tuple[Option, ...]:
    if isinstance(task, CustomTask):
        return (Option("batch_size", str(task.batch_size)), Option("description", task.description))
    return write_options(task)


def _policy(config: SwarmConfig) -> Policy:
    """Seconds become milliseconds and fractions millionths; the settings have no finer ones."""
    training, policy = config.training, config.policy
    return Policy(
        h_steps=training.h_steps,
        round_samples=training.h_steps * config.task.batch_size,
        window_ms=round(training.window_s * 1000),
        grace_ms=round(policy.grace_s * 1000),
        stall_ms=round(policy.stall_s * 1000),
        alpha_ppm=round(config.outer.alpha * PPM),
        beta_ppm=round(config.outer.beta * PPM),
        group_size_max=policy.group_size_max,
        voters_max=policy.voters_max,
        service_rounds=policy.service_rounds,
        reducers_min=policy.reducers_min,
        snapshot_rounds=policy.snapshot_rounds,
        overlap=int(training.overlap),
        by_window=int(training.by_window),
        exclude_rounds=policy.exclude_rounds,
    )
