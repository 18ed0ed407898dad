"""Unix sockets that a forked child does not keep; each is a `Transport` for frames.

A DataLoader forks workers. What they inherit would keep streams open after we closed them, and the daemon alive after
we died: so every socket of ours is known here, and a child closes its copies first thing.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import trio

from p2pnet.net.framing import closed_error

BACKLOG: Final = (
    4096  # the daemon does not try again when it finds the queue full; the system cuts this to its own limit
)
_RETRY_S: Final = 0.01

_owned: Final[set[socket.socket]] = set()


def close_in_children(sock: socket.socket) -> None:
    """Let forked children close their copy of `sock`; to be taken back before it is closed here."""
    _owned.add(sock)


def let_children_have(sock: socket.socket) -> None:
    """Take `close_in_children` back."""
    _owned.discard(sock)


class UnixSocket:
    """One end of a local stream. Closing it twice is fine; whoever waits in it gets an `OSError`."""

    def __init__(self, sock: socket.socket) -> None:
        """Take `sock` over."""
        self._raw = sock
        close_in_children(sock)
        self._sock = trio.socket.from_stdlib_socket(sock)

    @classmethod
    async def connect(cls, path: Path) -> UnixSocket:
        """Connect to the socket at `path`; `OSError` when nobody listens there."""
        await trio.lowlevel.checkpoint()
        connected = cls(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        try:
            while True:
                try:
                    connected._raw.connect(
                        str(path)
                    )  # local, so at once: trio's connect takes a full queue for success
                except BlockingIOError:
                    await trio.sleep(_RETRY_S)
                else:
                    return connected
        except BaseException:
            connected.close()
            raise

    @classmethod
    def pair(cls) -> tuple[UnixSocket, socket.socket]:
        """Return a socket of ours and its other end, to be given to a process."""
        ours, theirs = socket.socketpair()
        return cls(ours), theirs

    @classmethod
    def listen(cls, path: Path) -> UnixSocket:
        """Listen at `path`, which must not exist."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.bind(str(path))
            sock.listen(BACKLOG)
        except OSError:
            sock.close()
            raise
        return cls(sock)

    async def accept(self) -> UnixSocket:
        """Wait for the next connection."""
        try:
            accepted, _ = await self._sock.accept()
        except trio.ClosedResourceError:
            raise closed_error() from None
        return UnixSocket(socket.socket(fileno=accepted.detach()))

    async def receive_into(self, buffer: memoryview) -> int:
        """See `Transport`."""
        try:
            return await self._sock.recv_into(buffer)
        except trio.ClosedResourceError:
            raise closed_error() from None

    async def send_some(self, head: bytes, data: memoryview) -> int:
        """See `Transport`."""
        try:
            return await (self._sock.sendmsg((head, data)) if head else self._sock.send(data))
        except trio.ClosedResourceError:
            raise closed_error() from None

    def close(self) -> None:
        """See `Transport`."""
        let_children_have(self._raw)
        self._sock.close()

    def __enter__(self) -> Self:
        """Return the socket."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        self.close()


def _close_in_child() -> None:
    for sock in tuple(_owned):
        sock.close()  # the child's copy of the descriptor; nothing is sent and the parent's stays open
    _owned.clear()


os.register_at_fork(after_in_child=_close_in_child)
