from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnet import identity
from p2pnet.errors import ConfigError, PeerError
from p2pnet.identity import (
    REMEMBERED_BYTES_MAX,
    Identity,
    PeerId,
    from_libp2p,
    parse_peer_id,
    peer_id_text,
    to_libp2p,
    verify,
)
from tests.vectors import vectors

ALICE = Identity.from_seed(b"a" * 32)


@pytest.mark.parametrize("vector", vectors("identity-1", "signature"))
def test_each_signature_is_accepted_or_refused_as_its_vector_says(vector: dict[str, Any]) -> None:
    peer, data = PeerId(bytes.fromhex(vector["peer"])), bytes.fromhex(vector["data"])
    assert verify(peer, data, bytes.fromhex(vector["signature"])) is vector["valid"]
    if "seed" in vector:
        signer = Identity.from_seed(bytes.fromhex(vector["seed"]))
        assert (signer.peer, signer.sign(data).hex()) == (peer, vector["signature"])


@pytest.mark.parametrize("vector", vectors("identity-1", "peer"))
def test_peer_ids_are_those_that_libp2p_prints(vector: dict[str, Any]) -> None:
    peer = PeerId(bytes.fromhex(vector["peer"]))
    assert (to_libp2p(peer).hex(), peer_id_text(peer)) == (vector["libp2p"], vector["text"])
    assert from_libp2p(bytes.fromhex(vector["libp2p"])) == parse_peer_id(vector["text"]) == peer


@pytest.mark.parametrize("vector", vectors("identity-1", "text", "libp2p"))
def test_other_kinds_of_id_and_unusable_keys_are_refused(vector: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="peer id|multihash|Ed25519|base58|character"):
        parse_peer_id(vector["text"]) if "text" in vector else from_libp2p(bytes.fromhex(vector["libp2p"]))


@pytest.mark.parametrize("vector", vectors("identity-1", "key-file"))
def test_each_key_file_is_read_or_refused_as_its_vector_says(vector: dict[str, Any]) -> None:
    data = bytes.fromhex(vector["file"])
    if vector["valid"]:
        read = Identity.from_key_file(data)
        assert (read.peer.hex(), read.to_key_file()) == (vector["peer"], data)
    else:
        with pytest.raises(ConfigError, match="some.key"):
            Identity.from_key_file(data, "some.key")


@pytest.mark.parametrize("vector", vectors("identity-1", "secret"))
def test_secrets_are_hkdf_of_the_seed(vector: dict[str, Any]) -> None:
    secret = Identity.from_seed(bytes.fromhex(vector["seed"])).secret(bytes.fromhex(vector["purpose"]))
    assert secret.hex() == vector["secret"]


@given(seed=st.binary(min_size=32, max_size=32))
def test_every_identity_survives_its_text_its_libp2p_id_and_its_file(seed: bytes) -> None:
    one = Identity.from_seed(seed)
    assert parse_peer_id(peer_id_text(one.peer)) == from_libp2p(to_libp2p(one.peer)) == one.peer
    assert Identity.from_key_file(one.to_key_file()).peer == one.peer
    assert peer_id_text(one.peer).startswith("12D3KooW")


@given(peer=st.binary(max_size=40), data=st.binary(max_size=40), signature=st.binary(max_size=70))
def test_verify_says_no_to_garbage_and_never_raises(peer: bytes, data: bytes, signature: bytes) -> None:
    assert not verify(PeerId(peer), data, signature)
    assert not verify(ALICE.peer, data, signature)


def test_what_was_verified_once_says_nothing_about_anything_else() -> None:
    one, two = Identity.from_seed(b"1" * 32), Identity.from_seed(b"2" * 32)
    for data in (b"small", b"large" * REMEMBERED_BYTES_MAX):
        signature = one.sign(data)
        for _ in range(2):
            assert verify(one.peer, data, signature)
            assert not verify(two.peer, data, signature)
            assert not verify(one.peer, data + b"!", signature)
            assert not verify(one.peer, data, one.sign(b"other"))


@given(text=st.text(max_size=60))
def test_parsing_garbage_raises_value_error_and_nothing_else(text: str) -> None:
    with pytest.raises(ValueError, match="."):
        parse_peer_id(text)


def test_the_small_order_keys_are_the_points_that_eight_times_themselves_vanish() -> None:
    p = 2**255 - 19
    d = -121665 * pow(121666, -1, p) % p

    def double(x: int, y: int) -> tuple[int, int]:  # RFC 8032, section 5.1.4, in affine coordinates
        xx, yy, t = x * x, y * y, d * x * x * y * y
        return 2 * x * y * pow(1 + t, -1, p) % p, (yy + xx) * pow(1 - t, -1, p) % p

    for y in identity._SMALL_ORDER_Y:
        xx = (y * y - 1) * pow(d * y * y + 1, -1, p) % p
        x = pow(xx, (p + 3) // 8, p)
        x = x if x * x % p == xx else x * pow(2, (p - 1) // 4, p) % p
        assert x * x % p == xx
        point = (x, y)
        for _ in range(3):
            point = double(*point)
        assert point == (0, 1)
    assert len(identity._SMALL_ORDER_Y) == 5  # 8 points; x and -x share their y


def test_a_peer_error_names_peer_rule_and_detail() -> None:
    error = PeerError(ALICE.peer, "round-1/R3", "two commits")
    assert str(error) == f"peer {peer_id_text(ALICE.peer)} broke round-1/R3: two commits"
    assert (error.peer, error.rule) == (ALICE.peer, "round-1/R3")


def test_a_shown_identity_shows_no_secret() -> None:
    assert repr(ALICE) == f"Identity({peer_id_text(ALICE.peer)})"


def test_a_key_file_is_made_once_private_and_read_again(tmp_path: Path) -> None:
    path = tmp_path / "new" / "identity.key"
    old = os.umask(0)
    try:
        one = Identity.load_or_create(path)
    finally:
        os.umask(old)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert Identity.load_or_create(path).peer == Identity.load(path).peer == one.peer
    assert os.listdir(path.parent) == ["identity.key"]  # no temporary file is left


def test_a_key_is_never_overwritten(tmp_path: Path) -> None:
    ALICE.save(tmp_path / "key")
    with pytest.raises(ConfigError, match="never overwritten"):
        Identity.generate().save(tmp_path / "key")
    assert Identity.load(tmp_path / "key").peer == ALICE.peer


def test_a_missing_key_file_is_the_operators_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such key file"):
        Identity.load(tmp_path / "key")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o601, 0o644])
def test_a_file_that_others_can_touch_is_refused_with_the_command_that_mends_it(tmp_path: Path, mode: int) -> None:
    ALICE.save(tmp_path / "key")
    (tmp_path / "key").chmod(mode)
    with pytest.raises(ConfigError, match=r"others have access .*chmod 600"):
        Identity.load_or_create(tmp_path / "key")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_file_of_another_user_is_refused(tmp_path: Path) -> None:
    ALICE.save(tmp_path / "key")
    os.chown(tmp_path / "key", 65534, -1)
    with pytest.raises(ConfigError, match="belongs to user 65534"):
        Identity.load(tmp_path / "key")


def test_links_are_refused_whether_they_lead_somewhere_or_not(tmp_path: Path) -> None:
    ALICE.save(tmp_path / "key")
    (tmp_path / "link").symlink_to(tmp_path / "key")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for name in ("link", "dangling"):
        with pytest.raises(ConfigError, match="symbolic link"):
            Identity.load_or_create(tmp_path / name)
    assert not (tmp_path / "nowhere").exists()


def test_a_directory_or_a_pipe_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe", 0o600)
    for path in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(ConfigError, match=r"directory|regular file"):
            Identity.load_or_create(path)


def test_a_place_that_cannot_be_written_is_the_operators_error(tmp_path: Path) -> None:
    ALICE.save(tmp_path / "file")
    with pytest.raises(ConfigError, match="file"):
        Identity.load_or_create(tmp_path / "file" / "key")


def test_an_endless_file_is_not_read_to_its_end() -> None:
    with pytest.raises(ConfigError, match="regular file|belongs|access"):
        Identity.load(Path("/dev/zero"))


def test_threads_that_race_get_the_same_key(tmp_path: Path) -> None:
    peers: list[PeerId] = []
    threads = [
        threading.Thread(target=lambda: peers.append(Identity.load_or_create(tmp_path / "key").peer)) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(peers) == 8
    assert len(set(peers)) == 1


def test_processes_that_race_get_the_same_key(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from p2pnet.identity import Identity; sys.stdin.read();"
        "print(Identity.load_or_create(Path(sys.argv[1])))"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "key")]
    racers = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.close()  # the starting gun
        racer.stdin = None
    assert len({racer.communicate()[0] for racer in racers}) == 1
    assert all(racer.returncode == 0 for racer in racers)
