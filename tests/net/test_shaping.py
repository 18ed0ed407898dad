"""Caps on a node's traffic: the bucket by the test's own clock, the wire by the counters of a network namespace."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from p2pnet.identity import Identity
from p2pnet.net.daemon import DaemonOptions, find_daemon
from p2pnet.net.framing import FramedStream, Traffic
from p2pnet.net.host import Stream
from p2pnet.net.libp2p import Libp2pHost, open_libp2p_host
from p2pnet.net.shaping import OVERHEAD, PIECE_S, URGENT_BYTES, Bucket, Meter, Shaper
from p2pnet.net.sockets import UnixSocket

MBIT = 1_000_000
PEER = Identity.from_seed(b"p" * 32).peer
Sizes = st.lists(st.integers(1, 100_000), min_size=1, max_size=50)


@given(st.integers(256_000, 10**9), Sizes)
def test_over_any_time_no_more_passes_than_the_rate_and_one_piece(rate_bps: int, sizes: list[int]) -> None:
    bucket, now_s, passed = Bucket(rate_bps, 0.0), 0.0, 0
    for size in sizes:
        now_s += bucket.wait_s(now_s)
        assert passed <= now_s * rate_bps / 8 + max(bucket.piece_bytes, rate_bps / 8 * PIECE_S) + 1
        bucket.spend(size, now_s)
        passed += size


@given(st.integers(256_000, 10**9), Sizes)
def test_who_always_has_something_to_send_gets_the_rate(rate_bps: int, sizes: list[int]) -> None:
    bucket, now_s = Bucket(rate_bps, 0.0), 0.0
    for size in sizes:
        now_s += bucket.wait_s(now_s)
        bucket.spend(size, now_s)
    assert now_s + bucket.wait_s(now_s) == pytest.approx(8 * sum(sizes) / rate_bps)


def test_an_idle_hour_is_not_saved_up() -> None:
    bucket = Bucket(MBIT, 0.0)
    bucket.spend(0, 3600.0)
    bucket.spend(MBIT // 8, 3600.0)
    assert bucket.wait_s(3600.0) == pytest.approx(1.0, abs=0.1)


def test_what_is_urgent_passes_while_bulk_waits_until_it_is_a_second_ahead() -> None:
    bucket = Bucket(MBIT, 0.0)
    bucket.spend(MBIT / 16, 0.0)
    assert bucket.wait_s(0.0) == pytest.approx(0.5)
    assert bucket.wait_s(0.0, urgent=True) == 0
    bucket.spend(MBIT / 8, 0.0)
    assert bucket.wait_s(0.0, urgent=True) == pytest.approx(0.5)


def test_what_was_not_sent_after_all_is_given_back() -> None:
    bucket = Bucket(MBIT, 0.0)
    bucket.spend(50_000, 0.0)
    bucket.spend(-50_000, 0.0)
    assert bucket.wait_s(0.0) == 0


def test_without_caps_a_transport_stays_as_it_is() -> None:
    async def see() -> None:
        ours, theirs = UnixSocket.pair()
        with ours, theirs:
            assert Shaper().shape(ours) is ours

    trio.run(see)


async def linked(shaper: Shaper) -> tuple[FramedStream, FramedStream]:
    """Two ends of a stream, the first under the caps."""
    ours, raw = UnixSocket.pair()
    theirs = UnixSocket(raw)
    return (
        FramedStream(shaper.shape(ours), PEER, "/p2pnet/x/1", Traffic()),
        FramedStream(theirs, PEER, "/p2pnet/x/1", Traffic()),
    )


async def test_sending_and_receiving_take_as_long_as_the_caps_say(autojump_clock: trio.testing.MockClock) -> None:
    size = 2 * MBIT
    for shaper, outward, rate_bps in ((Shaper(8 * MBIT, 0), True, 8 * MBIT), (Shaper(0, 4 * MBIT), False, 4 * MBIT)):
        here, there = await linked(shaper)
        sender, receiver = (here, there) if outward else (there, here)
        began_s = trio.current_time()
        async with here, there, trio.open_nursery() as nursery:
            nursery.start_soon(sender.send_frame, bytes(size))
            assert len(await receiver.receive_frame(size)) == size
        assert trio.current_time() - began_s == pytest.approx(8 * OVERHEAD * size / rate_bps, rel=0.1)


async def test_a_small_message_does_not_wait_behind_bulk(autojump_clock: trio.testing.MockClock) -> None:
    shaper = Shaper(MBIT, 0)
    bulk, bulk_end = await linked(shaper)
    control, control_end = await linked(shaper)
    async with bulk, bulk_end, control, control_end, trio.open_nursery() as nursery:
        nursery.start_soon(bulk.send_frame, bytes(MBIT))
        nursery.start_soon(bulk_end.receive_frame, MBIT)
        await trio.sleep(2)
        began_s = trio.current_time()
        await control.send_frame(bytes(URGENT_BYTES // 2))
        await control_end.receive_frame(URGENT_BYTES)
        assert trio.current_time() - began_s < 0.1
        nursery.cancel_scope.cancel()


async def test_streams_under_one_cap_share_it(autojump_clock: trio.testing.MockClock) -> None:
    shaper, size, done_s = Shaper(8 * MBIT, 0), MBIT // 2, list[float]()

    async def carry() -> None:
        here, there = await linked(shaper)
        async with here, there, trio.open_nursery() as nursery:
            nursery.start_soon(here.send_frame, bytes(size))
            await there.receive_frame(size)
            done_s.append(trio.current_time() - began_s)

    began_s = trio.current_time()
    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(carry)
    assert max(done_s) == pytest.approx(8 * OVERHEAD * 4 * size / (8 * MBIT), rel=0.1)
    assert min(done_s) > 0.8 * max(done_s)


def test_what_the_caps_take_of_a_request_is_its_own_fault() -> None:
    async def see() -> None:
        assert Shaper().own_s(10**6, 10**6) == 0
        assert Shaper(8 * MBIT, 0).own_s(MBIT, 10**9) == pytest.approx(OVERHEAD)
        assert Shaper(8 * MBIT, 4 * MBIT).own_s(MBIT, MBIT) == pytest.approx(3 * OVERHEAD)

    trio.run(see)


def test_a_meter_shows_the_last_seconds() -> None:
    meter = Meter()
    assert meter.rates_bps() == (0, 0)
    for second in range(100):
        meter.note(float(second), 1000 * second, 250 * max(0, second - 94))
    assert meter.rates_bps() == (8000, 1000)


# On the wire --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Wire:
    """Two network namespaces and the cable between them."""

    folder: Path
    names: tuple[str, str]

    def daemon(self, side: int) -> Path:
        """The daemon, started in one of the namespaces."""
        script = self.folder / f"p2pd-{side}"
        script.write_text(f'#!/bin/sh\nexec ip netns exec {self.names[side]} {find_daemon()} "$@"\n')
        script.chmod(0o755)
        return script

    def key(self, side: int) -> Path:
        Identity.from_seed(bytes([side]) * 32).save(self.folder / f"{side}.key")
        return self.folder / f"{side}.key"

    def addr(self, side: int, host: Libp2pHost) -> str:
        port = next(addr for addr in host.addrs() if "/tcp/" in addr).split("/")[4]
        return f"/ip4/10.213.7.{side + 1}/tcp/{port}"


@pytest.fixture
def wire(tmp_path: Path) -> Iterator[Wire]:
    names = (f"p2pnet-{os.getpid()}-a", f"p2pnet-{os.getpid()}-b")
    if os.getuid():
        pytest.skip("network namespaces are made by root only")
    lines = [f"netns add {names[0]}", f"netns add {names[1]}"]
    lines += [f"link add dev wire0 netns {names[0]} type veth peer name wire0 netns {names[1]}"]
    for side, name in enumerate(names):
        lines += [f"-n {name} addr add 10.213.7.{side + 1}/24 dev wire0", f"-n {name} link set dev wire0 up"]
        lines += [
            f"-n {name} link set dev lo up",
            f"-n {name} link set dev wire0 gso_max_segs 1",
        ]  # as a real line has it
    try:
        for line in lines:
            done = subprocess.run(["ip", *line.split()], capture_output=True, text=True)
            if done.returncode:
                pytest.skip(f"no network namespaces here: {done.stderr.strip()}")
        yield Wire(tmp_path, names)
    except FileNotFoundError:
        pytest.skip("ip (iproute2) is not installed")
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


def wire_bytes(host: Libp2pHost) -> tuple[int, int]:
    """What the cable of a host's namespace has carried: up, down, Ethernet headers included."""
    for line in Path(f"/proc/{host.daemon_pid}/net/dev").read_text().splitlines():
        name, _, counters = line.strip().partition(":")
        if name == "wire0":
            numbers = counters.split()
            return int(numbers[8]), int(numbers[0])
    raise AssertionError("no such cable")


RUN_AHEAD_BYTES = 2_500_000  # what the daemon's buffers and yamux's window of one stream take in; seen: .8 to 1.4 MB


async def watch(host: Libp2pHost, samples: list[tuple[float, int, int]], task_status: trio.TaskStatus[None]) -> None:
    """Look at the cable now and then."""
    (up_0, down_0), began_s = wire_bytes(host), trio.current_time()
    task_status.started()
    while True:
        up, down = wire_bytes(host)
        samples.append((trio.current_time() - began_s, up - up_0, down - down_0))
        await trio.sleep(0.05)


@pytest.mark.processes
async def test_the_wire_carries_what_the_caps_allow_both_ways_at_once_headers_and_all(wire: Wire) -> None:
    up_bps, down_bps, size = 24 * MBIT, 12 * MBIT, 4 * MBIT
    options = DaemonOptions(listen=("/ip4/0.0.0.0/tcp/0",), dht="server")
    samples: list[tuple[float, int, int]] = []

    async def send(stream: Stream) -> None:
        await stream.receive_frame(10)
        await stream.send_frame(bytes(size))

    async def take(stream: Stream) -> None:
        await stream.receive_frame(2 * size)
        await stream.send_frame(b"done")

    shaper = Shaper(up_bps, down_bps)
    async with (
        open_libp2p_host(options, wire.key(0), daemon_path=wire.daemon(0), shaper=shaper) as here,
        open_libp2p_host(options, wire.key(1), daemon_path=wire.daemon(1)) as there,
    ):
        await there.handle("/p2pnet/down/1", send)
        await there.handle("/p2pnet/up/1", take)
        await here.connect(there.peer, [wire.addr(1, there)], 10)
        async with trio.open_nursery() as watching:
            await watching.start(watch, here, samples)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(here.request, there.peer, "/p2pnet/down/1", b"go", 30, size)
                nursery.start_soon(here.request, there.peer, "/p2pnet/up/1", bytes(2 * size), 30, 10)
            watching.cancel_scope.cancel()
    span_s, up, down = samples[-1]
    print(f"up {8 * up / span_s / MBIT:.2f} Mbit/s, {up / 2 / size:.3f} x the bytes; ", end="")
    print(f"down {8 * down / span_s / MBIT:.2f} Mbit/s, {down / size:.3f} x the bytes; ", end="")
    print(f"received {max(down - down_bps / 8 * at_s for at_s, _, down in samples) / 1e3:.0f} kB before their time")
    assert 0.7 * up_bps < 8 * up / span_s < 1.1 * up_bps  # a busy machine may not reach the cap
    assert 0.7 * down_bps < 8 * down / span_s < 1.1 * down_bps
    assert all(up <= 1.1 * up_bps / 8 * at_s + up_bps / 8 * 2 * PIECE_S for at_s, up, _ in samples)
    assert all(down <= 1.1 * down_bps / 8 * at_s + RUN_AHEAD_BYTES for at_s, _, down in samples)
