"""Run the libp2p daemon as a child that cannot outlive us, whatever kills us.

Two lifelines, since each has a hole. On Linux the kernel kills the daemon when the thread that started it ends
(PDEATHSIG), so it is started from trio's own thread and never from a worker. Everywhere the daemon ends by itself when
its persistent control connection closes; forked children would hold that open, so they close it (`sockets`).
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trio

from p2pnet.errors import ConfigError, NetworkError
from p2pnet.net.control import Control, ControlError
from p2pnet.net.daemon import DaemonOptions, daemon_arguments
from p2pnet.net.host import PeerAddrs
from p2pnet.net.sockets import UnixSocket

START_S: Final = 20.0  # measured .2 s on an idle machine; four peers that import torch at once take seconds
STOP_S: Final = 1.0  # measured .005 s
SOCKET_PATH_BYTES_MAX: Final = 103  # sun_path has 104 bytes on macOS, 108 on Linux, one of them for the final zero
GOGC: Final = "50"  # measured after 500 MB: 72 MB of memory instead of 88, for no measurable time
NODE_SOCKET: Final = "h"  # in the folder: ours, for inbound streams; the daemon's is "c"
_PREFIX: Final = "p2pnet-"
_SWEEP_AGE_S: Final = 60.0
_POLL_S: Final = 0.01
_LINES_KEPT: Final = 20
_DIES_WITH_THREAD = sys.platform == "linux"  # not Final: a test tries what other systems have

# Between fork and exec only this small program of its own may run: Python code there (preexec_fn) can deadlock when
# other threads hold locks. 1 is PR_SET_PDEATHSIG, 9 SIGKILL; both survive exec. Who has lost its parent by then ends.
_LAUNCHER: Final = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, 9, 0, 0, 0)
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[2:])
"""

log = logging.getLogger(__name__)


@contextmanager
def runtime_folder() -> Iterator[Path]:
    """Make a private folder (mode 0700) for sockets with a short path; removed at the end.

    A node that was killed leaves its folder behind; the next one removes it.
    Raises `ConfigError` when no temporary folder has a path short enough for a socket.
    """
    longest = f"{_PREFIX}12345678/c"
    roots = [os.environ.get("XDG_RUNTIME_DIR", ""), "/tmp"]
    with suppress(OSError):  # when it finds none
        roots.insert(1, tempfile.gettempdir())
    for root in roots:
        fits = len(os.fsencode(root)) + 1 + len(longest) <= SOCKET_PATH_BYTES_MAX
        if root.startswith("/") and fits and os.access(root, os.W_OK | os.X_OK):
            _sweep(Path(root))
            folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=root))
            break
    else:
        limit = f"a writable folder whose path has at most {SOCKET_PATH_BYTES_MAX - 1 - len(longest)} bytes"
        raise ConfigError(f"TMPDIR: found {os.environ.get('TMPDIR', '/tmp')!r}, allowed is {limit}")
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _sweep(root: Path) -> None:
    """Remove the folders of nodes that are gone: ours, not new, and nobody listens at the node's socket."""
    for folder in root.glob(f"{_PREFIX}????????"):
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as trial:
            status = folder.lstat()
            if status.st_uid == os.getuid() and time.time() - status.st_mtime > _SWEEP_AGE_S:
                trial.setblocking(False)
                if trial.connect_ex(str(folder / NODE_SOCKET)) == errno.ECONNREFUSED:
                    shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True, slots=True)
class Daemon:
    """A daemon that runs and listens."""

    control: Control
    me: PeerAddrs
    pid: int
    gone: trio.Event  # set when the process has ended
    last_words: deque[str]  # what it printed last


@asynccontextmanager
async def run_daemon(
    binary: Path, options: DaemonOptions, key_file: Path, folder: Path, nursery: trio.Nursery
) -> AsyncIterator[Daemon]:
    """Start a daemon, wait until it accepts, stop it at the end of the block, also when cancelled.

    nursery: has the task that listens to the daemon; were it one of our own, errors would come out in groups.
    Raises `ConfigError` for a listen address that cannot be had, `NetworkError` when the daemon does not start.
    """
    for addr in options.listen:
        check_listen(addr)
    control = Control(folder / "c")
    control.path.unlink(missing_ok=True)
    errors, theirs = UnixSocket.pair()
    with errors:
        with theirs:
            process = _spawn(binary, daemon_arguments(options, key_file, control.path), theirs)
        gone, last_words = trio.Event(), deque[str](maxlen=_LINES_KEPT)
        listening = trio.CancelScope(shield=True)  # to the end: its end is how we know that the daemon has ended
        nursery.start_soon(_listen_to, errors, last_words, gone, listening)
        try:
            lifeline, me = await _take_hold(control, options, gone, last_words)
            with lifeline:
                yield Daemon(control, me, process.pid, gone, last_words)
        finally:
            with trio.CancelScope(shield=True), trio.move_on_after(STOP_S):
                await gone.wait()  # closing the lifeline has told it to end
            process.kill()
            process.wait()  # killed, so it does not take long
            listening.cancel()


def check_listen(addr: str) -> None:
    """Raise `ConfigError` when another program has the address.

    The daemon would not notice: it listens with SO_REUSEPORT, and two of one user then share the port at random.
    """
    parts = addr.split("/")
    if len(parts) < 5 or parts[1] not in {"ip4", "ip6"} or parts[3] not in {"tcp", "udp"}:
        return  # of a kind that we cannot try; the daemon will
    family = socket.AF_INET if parts[1] == "ip4" else socket.AF_INET6
    kind = socket.SOCK_STREAM if parts[3] == "tcp" else socket.SOCK_DGRAM
    with socket.socket(family, kind) as trial:
        if kind == socket.SOCK_STREAM:
            trial.setsockopt(
                socket.SOL_SOCKET, socket.SO_REUSEADDR, 1
            )  # connections that have just ended do not matter
        if family == socket.AF_INET6:
            trial.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        try:
            trial.bind((parts[2], int(parts[4])))
        except OSError as error:
            why = {
                errno.EADDRINUSE: "where another program listens already; allowed is a free port, or 0 for any",
                errno.EADDRNOTAVAIL: "which is no address of this machine; allowed are its own, or 0.0.0.0 for all",
                errno.EACCES: "which only a privileged user may have; allowed is a port from 1024",
            }.get(error.errno or 0, f"which cannot be had: {error.strerror}")
            raise ConfigError(f"listen: found {addr}, {why}") from error


def port_addrs(port: int) -> tuple[str, ...]:
    """Return where to listen on a TCP port: on every address of this machine, IPv6 too where there is any."""
    with suppress(OSError), socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as trial:
        trial.bind(("::", 0))
        return f"/ip4/0.0.0.0/tcp/{port}", f"/ip6/::/tcp/{port}"
    return (f"/ip4/0.0.0.0/tcp/{port}",)


def pin_ports(listen: Sequence[str], actual: Sequence[str]) -> tuple[str, ...]:
    """Return `listen` with each port 0 replaced by the one that the daemon got, where that is clear.

    A daemon that is started again listens where its peers remember it.
    """
    pinned = []
    for addr in listen:
        parts = addr.split("/")
        if len(parts) >= 5 and parts[4] == "0":
            others = (other.split("/") for other in actual)
            ports = {other[4] for other in others if len(other) >= 5 and (other[1], other[3]) == (parts[1], parts[3])}
            if len(ports) == 1:
                parts[4] = ports.pop()
        pinned.append("/".join(parts))
    return tuple(pinned)


def _spawn(binary: Path, arguments: Sequence[str], errors: socket.socket) -> subprocess.Popen[bytes]:
    """Start the daemon from the calling thread, which must be trio's: the daemon dies with the thread."""
    command = [str(binary), *arguments]
    if _DIES_WITH_THREAD and sys.executable:  # none where Python is embedded; the other lifeline remains
        command = [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(os.getpid()), *command]
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=errors.fileno(),
        env={"GOGC": GOGC, **os.environ},
        start_new_session=True,  # Ctrl-C is for the node, which then ends the daemon
    )


async def _take_hold(
    control: Control, options: DaemonOptions, gone: trio.Event, last_words: deque[str]
) -> tuple[UnixSocket, PeerAddrs]:
    """Wait until the daemon accepts (its socket is there a moment earlier), then hold its lifeline."""
    with trio.move_on_after(START_S):
        while not gone.is_set():
            try:
                lifeline = await control.lifeline()
            except ControlError:
                with trio.move_on_after(_POLL_S):
                    await gone.wait()
                continue
            try:
                return lifeline, await control.identify()
            except BaseException:
                lifeline.close()
                raise
    reason = " ".join(last_words) or "without a word"
    if not gone.is_set():
        raise NetworkError(f"the daemon does not answer after {START_S:g} s: {reason}; is the machine busy? try again")
    if "listen" in reason:  # an address of a kind that `check_listen` could not try
        raise ConfigError(f"listen: found {', '.join(options.listen)}, the daemon says: {reason}")
    raise NetworkError(f"the daemon ended at once: {reason}; `p2pnet daemon install` puts one in place that works")


async def _listen_to(errors: UnixSocket, last_words: deque[str], gone: trio.Event, listening: trio.CancelScope) -> None:
    """Keep the last lines that the daemon prints; the end of them is the end of the process."""
    buffer, rest = bytearray(4096), b""
    with listening, suppress(OSError):
        while count := await errors.receive_into(memoryview(buffer)):
            *lines, rest = (rest + buffer[:count]).split(b"\n")
            rest = rest[-len(buffer) :]
            for line in lines:
                last_words.append(line.decode("utf-8", "replace"))
                log.debug("p2pd: %s", last_words[-1])
    if rest:
        last_words.append(rest.decode("utf-8", "replace"))
    gone.set()
