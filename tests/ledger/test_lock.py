from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from p2pnet.errors import ConfigError
from p2pnet.identity import Identity, peer_id_text
from p2pnet.ledger.lock import StateLock, lock_key
from p2pnet.net.process import runtime_folder

HOLDER = """
import sys
from pathlib import Path
from p2pnet.ledger.lock import StateLock
lock = StateLock(Path(sys.argv[1]))
if len(sys.argv) > 2:  # a child that outlives us, as a DataLoader's worker does
    import os
    said, say = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(say, b"x")  # what is done in a child first is done
        sys.stdin.read()
        os._exit(0)
    os.read(said, 1)
    print("child", child, flush=True)
print("held", flush=True)
sys.stdin.read()
"""


def start_holder(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", HOLDER, *arguments]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_a_second_process_is_told_which_process_has_the_directory(tmp_path: Path) -> None:
    with start_holder(str(tmp_path)) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(ConfigError, match=f"in use by process {holder.pid};"):
            StateLock(tmp_path)
        holder.kill()
        holder.wait()
        StateLock(tmp_path).release()


def test_a_forked_child_does_not_keep_the_lock_of_a_killed_parent(tmp_path: Path) -> None:
    with start_holder(str(tmp_path), "fork") as holder:
        assert holder.stdout is not None
        child = int(holder.stdout.readline().split()[1])
        assert holder.stdout.readline() == "held\n"
        try:
            holder.kill()
            holder.wait()
            os.kill(child, 0)  # it is there
            StateLock(tmp_path).release()
        finally:
            os.kill(child, signal.SIGKILL)


def test_the_same_process_cannot_take_a_directory_twice_until_it_is_released(tmp_path: Path) -> None:
    with StateLock(tmp_path / "new" / "dir") as lock:
        with pytest.raises(ConfigError, match=f"in use by process {os.getpid()}"):
            StateLock(tmp_path / "new" / "dir")
        lock.release()
        StateLock(tmp_path / "new" / "dir").release()


def test_a_directory_that_cannot_be_made_is_the_operators_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"state_dir .*file: cannot write there"):
        StateLock(tmp_path / "file")


def test_one_key_is_held_once_wherever_its_copies_are() -> None:
    peer = Identity.generate().peer
    with lock_key(peer):
        words = f"key of {peer_id_text(peer)}: in use by process {os.getpid()}; .* give this one a key of its own"
        with pytest.raises(ConfigError, match=words):
            lock_key(peer)
        lock_key(Identity.generate().peer).release()
    lock_key(peer).release()


def test_a_machine_without_a_folder_for_temporary_files_is_the_operators_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> str:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found")

    monkeypatch.setattr(tempfile, "gettempdir", none)
    with pytest.raises(ConfigError, match="TMPDIR: no folder for temporary files can be written"):
        lock_key(Identity.generate().peer)
    with runtime_folder() as folder:  # /tmp, or what the session has
        assert folder.is_dir()
