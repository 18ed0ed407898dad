"""Manifest and initial parameters, served and fetched by hash."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from pathlib import Path

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from p2pnet.errors import ConfigError, NetworkError
from p2pnet.identity import PeerId
from p2pnet.net.host import Stream
from p2pnet.net.memory import MemoryHost, MemoryNetwork
from p2pnet.node import content as content_module
from p2pnet.node import download as download_module
from p2pnet.node.content import Content, write_atomically
from p2pnet.node.download import PROTOCOL
from p2pnet.wire.codec import encode, pack
from p2pnet.wire.manifest import Get, swarm_id
from p2pnet.wire.signing import Signed
from tests.node.members import World, identity, manifest

INITIAL = random.Random(1).randbytes(5000)


def a_manifest(name: str = "tests") -> Signed:
    from dataclasses import replace

    from p2pnet.wire.signing import sign_message

    made = manifest((identity(1).peer,), name).message
    made = replace(made, initial=hashlib.sha256(INITIAL).digest(), initial_bytes=len(INITIAL))
    return sign_message(made, identity(1).peer, identity(1).sign)


MANIFEST = a_manifest()
SWARM = swarm_id(MANIFEST)


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (content_module, download_module):  # who serves and who asks
        monkeypatch.setattr(module, "PIECE_BYTES_MAX", 2000)
    monkeypatch.setattr(content_module, "RETRY_S", 0.01)


class Place:
    """A member that serves, a joiner that fetches, and as many liars as the test wants."""

    def __init__(self, nursery: trio.Nursery, folder: Path) -> None:
        self.world, self.folder = World(nursery, folder), folder
        self.sources: list[MemoryHost] = []
        self.said: list[str] = []

    async def joiner(self) -> tuple[MemoryHost, Content]:
        self.host = await self.world.stranger(2)
        (self.folder / "joiner").mkdir(exist_ok=True)
        self.content = Content(self.folder / "joiner", SWARM)
        return self.host, self.content

    async def member(self, number: int = 1) -> MemoryHost:
        folder = self.folder / f"member{number}"
        write_atomically(folder / content_module.MANIFEST_NAME, MANIFEST.raw)
        write_atomically(folder / content_module.INITIAL_NAME, INITIAL)
        content = Content(folder, SWARM)
        content.load()
        return await self.serve(number, content.serve)

    async def serve(self, number: int, handler: object) -> MemoryHost:
        host = await self.world.stranger(number)
        await host.handle(PROTOCOL, handler)  # type: ignore[arg-type]
        await self.host.connect(host.peer, host.addrs(), 5)
        self.sources.append(host)
        return host

    async def fetch(self) -> Signed:
        async def sources() -> Sequence[PeerId]:
            return [host.peer for host in self.sources]

        with trio.fail_after(20):
            return await self.content.fetch(self.host, sources, self.said.append)

    @property
    def fetched(self) -> bytes:
        return self.content.initial_path.read_bytes()


@pytest.fixture
async def place(nursery: trio.Nursery, tmp_path: Path) -> Place:
    made = Place(nursery, tmp_path)
    await made.joiner()
    return made


def lying(data: bytes, stop_at: int = 1 << 60) -> object:
    """Serve the right manifest and other parameters, up to an offset."""

    async def serve(stream: Stream) -> None:
        from p2pnet.wire.codec import decode

        request = decode((Get,), await stream.receive_frame(1000))
        what = MANIFEST.raw if request.digest == SWARM else data
        if request.digest != SWARM and request.offset >= stop_at:
            await stream.aclose()
            return
        await stream.send_frame(what[request.offset : request.offset + request.length])

    return serve


async def test_manifest_and_parameters_are_fetched_by_their_hash(place: Place) -> None:
    await place.member()
    assert (await place.fetch()).raw == MANIFEST.raw
    assert place.fetched == INITIAL
    assert Content(place.content.folder, SWARM).load() is not None


async def test_what_is_there_after_a_broken_transfer_is_not_fetched_again(place: Place) -> None:
    await place.member()
    write_atomically(place.content.initial_path.with_suffix(".partial"), INITIAL[:4000])
    await place.fetch()
    assert place.fetched == INITIAL
    served = place.sources[0].traffic.bytes_up - len(MANIFEST.raw)
    assert served < 1100


async def test_a_transfer_that_breaks_goes_on_with_another_member(place: Place) -> None:
    await place.serve(3, lying(INITIAL, stop_at=2000))
    await place.member()
    await place.fetch()
    assert place.fetched == INITIAL
    assert place.sources[1].traffic.bytes_up < 3200


async def test_another_manifest_is_refused_and_the_next_member_asked(place: Place) -> None:
    other = a_manifest("another")

    async def serve(stream: Stream) -> None:
        await stream.receive_frame(1000)
        await stream.send_frame(other.raw)

    await place.serve(3, serve)
    await place.member()
    assert (await place.fetch()).raw == MANIFEST.raw


async def test_wrong_parameters_are_found_out_and_fetched_from_another(place: Place) -> None:
    await place.serve(3, lying(bytes(5000)))
    await place.member()
    await place.fetch()
    assert place.fetched == INITIAL


async def test_a_liar_that_gives_only_the_first_half_does_not_spoil_every_try(place: Place) -> None:
    await place.serve(3, lying(bytes(5000), stop_at=4000))
    await place.member()
    await place.fetch()
    assert place.fetched == INITIAL


async def test_a_partial_file_of_something_else_is_no_members_fault(place: Place) -> None:
    await place.member()
    write_atomically(place.content.initial_path.with_suffix(".partial"), bytes(6000))
    await place.fetch()
    assert place.fetched == INITIAL


async def test_who_has_nothing_gives_an_empty_frame(place: Place) -> None:
    await place.member()
    nothing = encode(Get(SWARM, b"\3" * 32, 0, 100))
    assert await place.host.request(identity(1).peer, PROTOCOL, nothing, 5, 100) == b""
    beyond = encode(Get(SWARM, MANIFEST.message.initial, 2**63 - 1, 100))
    assert await place.host.request(identity(1).peer, PROTOCOL, beyond, 5, 100) == b""
    whole = encode(Get(SWARM, SWARM, 0, 2**32 - 1))
    assert len(await place.host.request(identity(1).peer, PROTOCOL, whole, 5, 1 << 20)) == min(2000, len(MANIFEST.raw))


HOSTILE = [
    b"",
    b"\xff" * 100,
    pack([6]),
    b"\1" * 300,
    encode(Get(b"\4" * 32, SWARM, 0, 1)),
    pack([6, SWARM, SWARM, -1, 1]),
]


@pytest.mark.parametrize("frame", HOSTILE)
async def test_a_hostile_request_costs_its_sender(place: Place, frame: bytes) -> None:
    member = await place.member()
    with pytest.raises(NetworkError):
        await place.host.request(member.peer, PROTOCOL, frame, 5, 100)
    assert member.reception.misbehaved == 1
    assert await place.host.request(member.peer, PROTOCOL, encode(Get(SWARM, SWARM, 0, 10)), 5, 100)


async def test_who_asks_and_does_not_read_does_not_keep_the_stream(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(content_module, "PIECE_TIMEOUT_S", 0.1)
    member = await place.member()
    monkeypatch.setattr("p2pnet.net.memory.WINDOW_BYTES", 1000)
    stream = await place.host.open_stream(member.peer, PROTOCOL, 5)
    await stream.send_frame(encode(Get(SWARM, MANIFEST.message.initial, 0, 2000)))
    with trio.fail_after(10):
        while member.reception.open_streams or not member.reception.served:  # noqa: ASYNC110
            await trio.sleep(0.005)
    await stream.aclose()


def test_a_damaged_manifest_says_what_to_do(tmp_path: Path) -> None:
    content = Content(tmp_path, SWARM)
    assert content.load() is None
    for data in (b"", MANIFEST.raw[:-1], a_manifest("another").raw, b"x" * (5 << 20)):
        write_atomically(content.manifest_path, data)
        with pytest.raises(ConfigError, match="remove it and it is fetched again"):
            content.load()


def test_damaged_parameters_are_not_taken(tmp_path: Path) -> None:
    content = Content(tmp_path, SWARM)
    write_atomically(content.manifest_path, MANIFEST.raw)
    content.load()
    assert not content.has_initial()
    write_atomically(content.initial_path, INITIAL[:-1] + bytes([INITIAL[-1] ^ 1]))
    assert not content.has_initial()
    assert "not the file that the manifest names" in content.describe_initial()


def test_a_file_that_cannot_be_read_or_written_is_the_operators_error(tmp_path: Path) -> None:
    content = Content(tmp_path, SWARM)
    content.manifest_path.mkdir()
    with pytest.raises(ConfigError, match=r"manifest\.bin: cannot be read"):
        content.load()
    with pytest.raises(ConfigError, match="cannot write it"):
        write_atomically(content.manifest_path, b"x")


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(frame=st.one_of(st.binary(max_size=200), st.lists(st.integers(0, 2**64 - 1) | st.binary(max_size=40)).map(pack)))
def test_no_first_frame_raises_more_than_an_error_that_is_the_senders(frame: bytes, tmp_path: Path) -> None:
    async def main() -> None:
        network = MemoryNetwork()
        content = Content(tmp_path, SWARM)
        async with network.host(identity(1).peer) as one, network.host(identity(2).peer) as two:
            await one.handle(PROTOCOL, content.serve)
            await two.connect(one.peer, one.addrs(), 5)
            try:
                assert await two.request(one.peer, PROTOCOL, frame, 5, 100) == b""
            except NetworkError:
                assert one.reception.misbehaved == 1

    trio.run(main)
