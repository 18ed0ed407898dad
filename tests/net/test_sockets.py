from __future__ import annotations

import os
from pathlib import Path

import pytest
import trio
import trio.testing

from p2pnet.net.sockets import UnixSocket


async def test_a_forked_child_keeps_none_of_our_sockets() -> None:
    ours, theirs = UnixSocket.pair()
    with theirs:
        child = os.fork()
        if child == 0:
            os._exit(0 if ours._raw.fileno() == -1 else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0  # noqa: ASYNC222
        ours.close()
        theirs.settimeout(5)
        assert theirs.recv(1) == b""


async def test_what_is_sent_at_one_end_comes_out_at_the_other_whatever_its_size(tmp_path: Path) -> None:
    data = os.urandom(3_000_000)
    with (
        UnixSocket.listen(tmp_path / "s") as listener,
        await UnixSocket.connect(tmp_path / "s") as client,
        await listener.accept() as server,
    ):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send_all, client, data)
            received = bytearray(len(data))
            rest = memoryview(received)
            while rest:
                rest = rest[await server.receive_into(rest) :]
        assert received == data
        client.close()
        assert await server.receive_into(memoryview(bytearray(1))) == 0


async def send_all(sock: UnixSocket, data: bytes) -> None:
    head, rest = data[:5], memoryview(data)[5:]
    sent = await sock.send_some(head, rest)
    rest = rest[max(0, sent - len(head)) :]
    while rest:
        rest = rest[await sock.send_some(b"", rest) :]


async def test_closing_wakes_who_waits_with_an_os_error() -> None:
    ours, theirs = UnixSocket.pair()

    async def wait() -> None:
        with pytest.raises(OSError, match="closed by us"):
            await ours.receive_into(memoryview(bytearray(1)))

    with theirs:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
            ours.close()
            ours.close()


async def test_connecting_where_nobody_listens_is_an_os_error_and_leaves_no_socket(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        await UnixSocket.connect(tmp_path / "s")
