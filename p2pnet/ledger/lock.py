"""One process per state directory: two on one key would sign against each other."""

from __future__ import annotations

import fcntl
import os
import tempfile
import weakref
from pathlib import Path
from types import TracebackType

from p2pnet.errors import ConfigError, remedy
from p2pnet.identity import PeerId, peer_id_text

LOCK_NAME = "lock"


class StateLock:
    """Holds a state directory for this process until `release`, or until the process is gone, however it went."""

    def __init__(self, state_dir: Path, what: str = "", own: str = "a directory of its own") -> None:
        """Take the directory, which is made when missing; `ConfigError` names the process that has it.

        what: for the error, what the directory stands for; itself when it is left out.   own: and what a second
        process needs instead.
        """
        what = what or f"state_dir {state_dir}"
        self.path = Path(state_dir) / LOCK_NAME
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise ConfigError(f"{what}: cannot write there ({self.path}): {remedy(error)}") from error
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, b"%d\n" % os.getpid(), 0)
        except BlockingIOError as error:
            holder = os.pread(self._fd, 20, 0).decode("ascii", "replace").strip() or "unknown"
            self.release()
            raise ConfigError(f"{what}: in use by process {holder}; stop it, or give this one {own}") from error
        except OSError as error:
            self.release()
            raise ConfigError(f"{what}: cannot lock it: {remedy(error)}") from error
        _held.add(self)

    def release(self) -> None:
        """Let the next process have the directory; may be called twice."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> StateLock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def lock_key(peer: PeerId) -> StateLock:
    """Hold a key on this machine, wherever its file is and however many copies of it: one key is one peer."""
    try:
        folder = Path(tempfile.gettempdir()) / f"p2pnet-{os.getuid()}" / peer_id_text(peer)
    except OSError as error:
        raise ConfigError(f"TMPDIR: no folder for temporary files can be written: {remedy(error)}") from error
    return StateLock(folder, f"key of {peer_id_text(peer)}", "a key of its own: move its copy of peer.key away")


_held: weakref.WeakSet[StateLock] = weakref.WeakSet()


def _release_in_child() -> None:
    """A forked child (a DataLoader's worker) shares the lock, and would keep it after its parent was killed."""
    for lock in list(_held):
        lock.release()


os.register_at_fork(after_in_child=_release_in_child)
