"""The control client against a daemon that lies, stalls and hangs up."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from p2pnet.errors import NetworkError
from p2pnet.identity import Identity, to_libp2p
from p2pnet.net import p2pd
from p2pnet.net.control import Control, ControlError, DaemonError, receive_message
from p2pnet.net.host import PeerAddrs
from p2pnet.net.sockets import UnixSocket

PEER = Identity.from_seed(bytes(32)).peer
PEER_FIELD = b"\x0a\x26" + to_libp2p(PEER)
VALUE = b"\x08\x01\x12" + bytes([len(PEER_FIELD)]) + PEER_FIELD
Ask = Callable[[Control], Awaitable[object]]


@asynccontextmanager
async def daemon(tmp_path: Path, *answer: bytes, hang_up: bool = True) -> AsyncIterator[Control]:
    """A daemon that says the same to everybody."""

    async def serve(listener: UnixSocket) -> None:
        while True:
            with await listener.accept() as sock:
                await receive_message(sock, 1 << 20)
                for piece in answer:
                    await sock.send_some(b"", memoryview(piece))
                if not hang_up:
                    await trio.sleep_forever()

    with UnixSocket.listen(tmp_path / "c") as listener:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve, listener)
            yield Control(tmp_path / "c")
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        (b"", "hung up"),
        (b"\x05\x08", "hung up"),
        (b"\x02\x08\x05", "malformed.*type 5"),
        (b"\x01\x0f", "malformed"),
        (b"\x02\x08\x00", "did not say who it is"),
        (b"\xff\xff\xff\x7f", "268435455 bytes, 1048576 are allowed"),
        (b"\xff" * 10, "does not end"),
        (b"\x09\x08\x00\x22\x05\x0a\x03abc", "unusable identity"),
    ],
)
async def test_a_daemon_that_talks_nonsense_is_a_clear_network_error(
    tmp_path: Path, answer: bytes, complaint: str
) -> None:
    async with daemon(tmp_path, answer) as control:
        with pytest.raises(ControlError, match=complaint):
            await control.identify()


async def test_the_daemons_reason_is_passed_on(tmp_path: Path) -> None:
    async with daemon(tmp_path, p2pd.delimit(b"\x08\x01\x12\x09\x0a\x07because")) as control:
        with pytest.raises(DaemonError, match="because"):
            await control.connect(PEER, [], 5)
        assert await control.find_peer(PEER, 5) is None


async def test_where_no_daemon_listens_that_is_said(tmp_path: Path) -> None:
    with pytest.raises(ControlError, match="does not listen"):
        await Control(tmp_path / "c").identify()


@pytest.mark.parametrize(
    "ask",
    [
        lambda control: control.connect(PEER, [], 0.05),
        lambda control: control.open_stream(PEER, "/p2pnet/x/1", 0.05),
        lambda control: control.provide(bytes(32), 0.05),
        lambda control: control.find_providers(bytes(32), 5, 0.05, print),
    ],
    ids=["connect", "open", "provide", "find"],
)
async def test_a_daemon_that_does_not_answer_is_given_up_at_the_deadline(tmp_path: Path, ask: Ask) -> None:
    async with daemon(tmp_path, hang_up=False) as control:
        with trio.fail_after(2), pytest.raises(NetworkError, match="nothing within"):
            await ask(control)


async def test_answers_of_the_dht_are_taken_as_they_come_and_never_more_than_asked_for(tmp_path: Path) -> None:
    found: list[PeerAddrs] = []
    rsa = b"\x08\x01\x12\x06\x0a\x04\x12\x02hi"  # a peer with another kind of key is none of ours
    answers = [b"\x08\x00\x2a\x02\x08\x00", rsa, VALUE, VALUE, VALUE]
    async with daemon(tmp_path, *map(p2pd.delimit, answers)) as control:
        await control.find_providers(bytes(32), 3, 5, found.append)
    assert found == 2 * [PeerAddrs(PEER, ())]


async def test_a_stream_begins_with_the_very_next_byte_after_the_answer(tmp_path: Path) -> None:
    async with daemon(tmp_path, b"\x02\x08\x00first bytes", hang_up=False) as control:
        with await control.open_stream(PEER, "/p2pnet/x/1", 5) as sock:
            buffer = bytearray(100)
            count = await sock.receive_into(memoryview(buffer))
            assert buffer[:count] == b"first bytes"
