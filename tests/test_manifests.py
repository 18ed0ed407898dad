from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnet.config import AdamW, BytesLmTask, Codec, CustomTask, Outer, Policy, Swarm, SwarmConfig, Training
from p2pnet.errors import ConfigError
from p2pnet.identity import Identity, verify
from p2pnet.manifests import codec_sizes, make_manifest, swarm_folder
from p2pnet.numerics.formats import ChunkFormat
from p2pnet.numerics.layout import Layout
from p2pnet.train.options import read_inner, read_task
from p2pnet.wire.manifest import Codec as WireCodec
from p2pnet.wire.manifest import ParameterRow, open_manifest, swarm_id

ALICE, BOB, CAROL = (Identity.from_seed(bytes([number]) * 32) for number in (1, 2, 3))
TABLE = (ParameterRow("bias", "float32", (64,), 1), ParameterRow("weight", "float32", (64, 256), 1))
INITIAL = b"safetensors"
NOW_UNIX_S = 1_700_000_000
CONFIG = SwarmConfig(
    Swarm("mine"),
    BytesLmTask("bytes-lm", text=Path("/home/me/texts"), width=64, batch_size=3),
    Training(h_steps=7, window_s=1.25, inner=AdamW(lr=0.0012)),
    Codec(64),
    Outer(alpha=1.1, beta=0.123456),
    Policy(grace_s=0.05, stall_s=3.001),
)


def test_the_settings_become_whole_numbers_and_none_of_them_changes_on_the_way() -> None:
    manifest = make_manifest(CONFIG, TABLE, INITIAL, ALICE, NOW_UNIX_S).message
    policy = manifest.policy
    assert (policy.window_ms, policy.grace_ms, policy.stall_ms) == (1250, 50, 3001)
    assert (policy.alpha_ppm, policy.beta_ppm) == (1_100_000, 123_456)
    assert (policy.h_steps, policy.round_samples, policy.overlap, policy.by_window) == (7, 21, 0, 0)
    timed = replace(CONFIG, training=replace(CONFIG.training, by_window=True))
    assert make_manifest(timed, TABLE, INITIAL, ALICE, NOW_UNIX_S).message.policy == replace(policy, by_window=1)
    assert manifest.codec == WireCodec(64, 192, 32, 1, 0)
    assert read_task(manifest.task, manifest.task_options) == replace(CONFIG.task, text=None)  # type: ignore[type-var]
    assert read_inner(manifest.inner, manifest.inner_options) == CONFIG.training.inner
    assert (manifest.initial, manifest.initial_bytes) == (hashlib.sha256(INITIAL).digest(), len(INITIAL))
    assert (manifest.access, manifest.parent, manifest.created_unix_s) == ("open", b"", NOW_UNIX_S)


def test_everybody_who_joins_can_open_it_and_the_same_settings_make_the_same_swarm() -> None:
    signed = make_manifest(CONFIG, TABLE, INITIAL, ALICE, NOW_UNIX_S)
    assert open_manifest(signed.raw, swarm_id(signed), verify) == signed
    dated = replace(CONFIG, swarm=replace(CONFIG.swarm, created_unix_s=NOW_UNIX_S))
    assert make_manifest(dated, TABLE, INITIAL, ALICE, 5).raw == signed.raw


def test_the_creator_founds_it_alone_unless_others_are_named() -> None:
    assert make_manifest(CONFIG, TABLE, INITIAL, ALICE, 0).message.founders == (ALICE.peer,)
    named = replace(CONFIG, swarm=Swarm("mine", founders=(CAROL.peer, BOB.peer)))
    signed = make_manifest(named, TABLE, INITIAL, ALICE, 0)
    assert signed.message.founders == tuple(sorted((BOB.peer, CAROL.peer)))
    assert signed.peer == ALICE.peer


@pytest.mark.parametrize(
    ("config", "table", "message"),
    [
        (replace(CONFIG, swarm=Swarm("x", founders=(ALICE.peer, BOB.peer)), policy=Policy(voters_max=1)), TABLE,
         r"\[swarm\] founders: found 2; allowed are up to voters_max = 1"),
        (replace(CONFIG, swarm=Swarm("é" * 64)), TABLE, "name"),
        (CONFIG, (), "parameters"),
        (CONFIG, TABLE[::-1], "names are not rising"),
        (CONFIG, (replace(TABLE[0], trained=0),), "0 trained values"),
    ],
)  # fmt: skip
def test_settings_that_make_no_manifest_are_refused(
    config: SwarmConfig, table: tuple[ParameterRow, ...], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        make_manifest(config, table, INITIAL, ALICE, 0)


def test_a_model_of_ones_own_says_what_it_is_and_how_large_its_batch() -> None:
    config = replace(CONFIG, task=CustomTask("custom", "speech from noise", 16))
    manifest = make_manifest(config, TABLE, INITIAL, ALICE, 0).message
    assert {option.name: option.value for option in manifest.task_options} == {
        "batch_size": "16",
        "description": "speech from noise",
    }
    assert manifest.policy.round_samples == 7 * 16


@given(shapes=st.lists(st.lists(st.integers(1, 130), max_size=3), min_size=1, max_size=8))
def test_a_payload_weighs_what_the_layout_says(shapes: list[list[int]]) -> None:
    table = tuple(ParameterRow(f"p{i}", "float32", tuple(shape), 1) for i, shape in enumerate(shapes))
    frozen = ParameterRow("z", "float32", (99_999,), 0)
    manifest = make_manifest(CONFIG, (*table, frozen), INITIAL, ALICE, 0).message
    sizes, layout = codec_sizes(manifest), Layout((row.name, row.shape) for row in table)
    assert sizes.chunks == layout.chunks
    assert sizes.payload_bytes == ChunkFormat(64, 1).payload_bytes(layout.chunks)
    assert sizes.result_bytes == ChunkFormat(192, 1).payload_bytes(layout.chunks)
    assert sizes.compression == pytest.approx(4 * layout.params / sizes.payload_bytes)


def test_a_swarms_files_lie_in_a_folder_named_by_its_id() -> None:
    assert swarm_folder(Path("state"), b"\xab" * 32) == Path("state/abababababababab")
