from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from p2pnet.errors import PeerError
from p2pnet.identity import Identity
from p2pnet.net import framing
from p2pnet.net.framing import FramedStream, Traffic
from tests.vectors import VECTORS, vectors

PEER = Identity.from_seed(bytes(32)).peer


class Replay:
    """A transport that brings given bytes in pieces of three, and takes down what is sent."""

    def __init__(self, data: bytes) -> None:
        self.data, self.sent = data, b""

    async def receive_into(self, buffer: memoryview) -> int:
        piece = self.data[: min(3, len(buffer))]
        self.data = self.data[len(piece) :]
        buffer[: len(piece)] = piece
        return len(piece)

    async def send_some(self, head: bytes, data: memoryview) -> int:
        self.sent += head + bytes(data)
        return len(head) + len(data)

    def close(self) -> None:
        pass


@pytest.mark.parametrize("vector", vectors("frame-1", "frame"))
async def test_a_frame_is_read_and_written_as_the_vector_says(vector: dict[str, Any]) -> None:
    transport = Replay(bytes.fromhex(vector["hex"]))
    async with FramedStream(transport, PEER, "/p2pnet/test/1", Traffic()) as stream:
        if not vector["valid"]:
            with pytest.raises(PeerError) as caught:
                await stream.receive_frame(vector["bytes_max"])
            assert caught.value.rule == vector["rule"]
            return
        body = await stream.receive_frame(vector["bytes_max"])
        assert body.hex() == vector["body"]
        await stream.send_frame(body)
        assert transport.sent.hex() == vector["hex"]


def test_the_page_names_the_parameters_of_the_code() -> None:
    page = (Path(VECTORS).parent / "frame-1.md").read_text()
    table = dict(re.findall(r"^\| ([A-Z_]+) \| ([\d.]+) \|", page, re.MULTILINE))
    assert {name: float(value) for name, value in table.items()} == {
        name: float(getattr(framing, name)) for name in table
    }
    assert len(table) == 3
