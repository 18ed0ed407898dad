from __future__ import annotations

from pathlib import Path

from p2pnet.identity import Identity, peer_id_text
from tests.cli.conftest import Run


def test_the_peer_id_of_a_key_file_is_shown(run: Run, tmp_path: Path) -> None:
    identity = Identity.generate()
    identity.save(tmp_path / "a.key")
    assert run("key", "--key", "a.key").out == peer_id_text(identity.peer) + "\n"
    assert run("key", "--key", "a.key", "--json").json == {"peer": peer_id_text(identity.peer), "key": "a.key"}


def test_looking_makes_no_key_unless_asked(run: Run, home: Path) -> None:
    done = run("key")
    assert (done.status, done.out) == (2, "")
    assert "--create makes one" in done.err
    assert not (home / ".local").exists()
    made = run("key", "--create").out
    assert run("key").out == run("key", "--create").out == made


def test_a_key_that_others_can_read_is_refused(run: Run, tmp_path: Path) -> None:
    Identity.generate().save(tmp_path / "a.key")
    (tmp_path / "a.key").chmod(0o644)
    done = run("key", "--key", "a.key")
    assert done.status == 2
    assert "chmod 600" in done.err


def test_another_kind_of_key_is_refused(run: Run, tmp_path: Path) -> None:
    (tmp_path / "a.key").write_text("-----BEGIN OPENSSH PRIVATE KEY-----")
    (tmp_path / "a.key").chmod(0o600)
    assert "PEM or OpenSSH" in run("key", "--key", "a.key").err
