"""Bundles, columns and rows between nine peers of three groups: what comes of them, and what a liar gets."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio

from p2pnet.core import events as ev
from p2pnet.core import group_events as gev
from p2pnet.core.columns import missing_of, plan_columns, rows_root
from p2pnet.core.groups import deal
from p2pnet.core.parts import Part
from p2pnet.core.state import HashChain, SwarmState
from p2pnet.errors import NetworkError
from p2pnet.identity import PeerId, verify
from p2pnet.net.host import Stream
from p2pnet.net.memory import MemoryHost
from p2pnet.node.bulk import PROTOCOL, Bulk, payload_tree
from p2pnet.node.groups import BulkRequest, Groups, read_request
from p2pnet.node.history import volume_of
from p2pnet.numerics import native
from p2pnet.wire.bundles import AwaitColumn, Bundle, BundledSlice, GetColumn, LackedParts
from p2pnet.wire.codec import decode, encode
from p2pnet.wire.round import (
    Commit,
    GroupRoster,
    Listing,
    WideReduced,
    listing_digest,
    roster_digest,
)  # fmt: skip
from p2pnet.wire.signing import Signed, sign_message
from tests.node.members import FORMATS, Recorder, World, identity, make_bulk, payload

MEMBERS, SIZE = 9, 4
COLUMN = 0


@dataclass
class One:
    """One peer."""

    number: int
    host: MemoryHost
    bulk: Bulk
    groups: Groups
    seen: Recorder

    @property
    def peer(self) -> PeerId:
        return self.host.peer


class Scene:
    """Nine peers that have committed and know the roster."""

    def __init__(self, world: World, nursery: trio.Nursery, is_dense: bool) -> None:
        self.world, self.nursery, self.is_dense = world, nursery, is_dense
        manifest = world.manifest.message
        self.state = SwarmState.genesis(world.swarm, manifest, volume_of(manifest))
        self.commits = tuple(sorted(map(self.commit, range(1, MEMBERS + 1)), key=lambda commit: commit.peer))
        dealt = deal(self.state)
        assert dealt is not None
        raws = [tuple(one.raw for one in self.commits if dealt.group_of(one.peer) == g) for g in range(3)]
        self.listings = tuple(map(Listing, raws))
        roster = listing_digest(tuple(roster_digest(each) for each in raws))
        self.plan = plan_columns(self.state, roster, self.commits, 0)
        self.ones: dict[PeerId, One] = {}
        self.group_rosters: dict[bytes, Signed[GroupRoster]] = {}

    def commit(self, number: int) -> Signed[Commit]:
        who = identity(number)
        root = payload_tree(payload(number), FORMATS[0]).root()
        tip = HashChain(bytes([number]) * 32).end
        message = Commit(self.state.swarm, 0, self.state.lineage, root, 8, tip, 0, 1, 0, 0, 0)
        return sign_message(message, who.peer, who.sign)

    async def start(self) -> None:
        for number in range(1, MEMBERS + 1):
            host = await self.world.stranger(number)
            bulk, seen = make_bulk(self.world, host, self.is_dense)
            groups = Groups(
                host, self.world.swarm, bulk, verify, seen.events.append, self.group_rosters.get, lambda _r, _d: None
            )
            one = self.ones[host.peer] = One(number, host, bulk, groups, seen)
            await host.handle(PROTOCOL, serve(one), 64)
            for other in self.ones.values():
                if other is not one:
                    await host.connect(other.peer, other.host.addrs(), 5)
            bulk.keep_payload(0, payload(number), payload_tree(payload(number), FORMATS[0]))
            parts = self.plan.columns[self.plan.group_of(host.peer)]
            bulk.views.open(ev.Exchange(0, 0, self.commits, self.plan.weights, parts, self.plan))

    def column(self, group: int) -> Part:
        return self.plan.columns[group][COLUMN]

    def collector(self, group: int) -> One:
        return self.ones[self.column(group).reducer]

    def members(self, group: int) -> list[One]:
        return [self.ones[peer] for peer in self.plan.groups[group]]

    @property
    def parts(self) -> list[Part]:
        found = [part for part in self.plan.parts_of(COLUMN) if part is not None]
        assert found
        return found

    async def scatter(self) -> None:
        """Everybody sends its slice to who collects the column in its group."""
        for group in range(3):
            for one in self.members(group):
                self.nursery.start_soon(
                    one.groups.columns.scatter, ev.Scatter(0, 0, self.column(group), self.column(group).reducer)
                )
            for _ in self.members(group):
                await self.collector(group).seen.wait(ev.SliceArrived)

    def bundle(self, group: int, part: Part, to: PeerId | None = None) -> gev.Forward:
        return gev.Forward(0, 0, part, to or part.reducer, group, frozenset(self.plan.groups[group]))

    async def forward(self) -> None:
        """Who collects brings bundles to the parts' reducers."""
        for group in range(3):
            for part in self.parts:
                self.nursery.start_soon(self.collector(group).groups.bundles.forward, self.bundle(group, part))

    async def reduce(self, part: Part) -> Signed[WideReduced]:
        """Let the reducer of a part wait for all bundles, reduce, sign and answer."""
        one = self.ones[part.reducer]
        for _ in range(3):
            await one.seen.wait(gev.BundleArrived)
        await one.groups.bundles.reduce(gev.ReducePart(0, 0, part, tuple(map(frozenset, self.plan.groups))))
        done = await one.seen.wait(gev.PartReduced)
        assert isinstance(done, gev.PartReduced)
        signed = self.sign(part, done)
        await one.groups.bundles.answer(ev.Answer(0, 0, part.index, done.root, signed.raw))
        return signed

    def sign(self, part: Part, done: gev.PartReduced) -> Signed[WideReduced]:
        who = identity(self.ones[part.reducer].number)
        message = WideReduced(
            self.state.swarm, 0, 0, part.index, part.start, part.stop, self.plan.roster, rows_root(done.rows),
            missing_of(self.plan, done.rows), done.root, done.norms,
        )  # fmt: skip
        return sign_message(message, who.peer, who.sign)

    async def give(self, group: int) -> gev.Give:
        """Who collects takes all parts back and gives the column."""
        one, found = self.collector(group), dict[int, gev.PartReturned]()
        for _ in self.parts:
            event = await one.seen.wait(gev.PartReturned)
            assert isinstance(event, gev.PartReturned)
            found[event.signed.message.part] = event
        places = range(COLUMN * 3, COLUMN * 3 + 3)
        listing = tuple(found[at].signed.raw if at in found else b"" for at in places)
        give = gev.Give(0, 0, COLUMN, listing_digest(listing), listing)
        await one.groups.columns.give(give)
        return give

    async def exchange(self) -> gev.Give:
        """All of it, for one column; what the first group was given."""
        await self.start()
        await self.scatter()
        await self.forward()
        for part in self.parts:
            await self.reduce(part)
        given = [await self.give(group) for group in range(3)]
        assert len({give.digest for give in given}) == 1
        return given[0]


def serve(one: One) -> Callable[[Stream], Awaitable[None]]:
    async def answer(stream: Stream) -> None:
        request = await read_request(stream)
        if isinstance(request, BulkRequest):
            await one.bulk.serve(stream, request)
        else:
            await one.groups.serve(stream, request)

    return answer


@pytest.fixture(params=[False, True], ids=["as-they-are", "dense"])
def scene(nursery: trio.Nursery, tmp_path: Path, request: pytest.FixtureRequest) -> Scene:
    if request.param and (why := native.missing()) is not None:
        pytest.skip(f"no CPU library: {why}")
    return Scene(World(nursery, tmp_path, founders=MEMBERS, group_size_max=SIZE), nursery, request.param)


@pytest.fixture
def plain_scene(nursery: trio.Nursery, tmp_path: Path) -> Scene:
    return Scene(World(nursery, tmp_path, founders=MEMBERS, group_size_max=SIZE), nursery, False)


async def test_a_column_goes_round_and_every_member_has_it(scene: Scene) -> None:
    given = await scene.exchange()
    for group in range(3):
        for one in scene.members(group):
            if one is scene.collector(group):
                continue  # it is told by nobody: it gave the column
            event = await one.seen.wait(ev.ScatterFailed, gev.ColumnArrived)
            assert isinstance(event, gev.ColumnArrived)
            assert event.listing == given.listing
            for raw in filter(None, event.listing):
                root = decode((WideReduced,), unpack(raw)).root
                assert one.bulk.output(0, root) is not None
    assert not any(one.seen.blamed for one in scene.ones.values())


async def test_a_bundle_with_a_false_slice_is_refused_whole(scene: Scene) -> None:
    await scene.start()
    await scene.scatter()
    one, part = scene.collector(0), next(part for part in scene.parts if part.reducer != scene.column(0).reducer)
    view = one.bulk.views.find(0, 0)
    assert view is not None
    pieces = view.pieces[COLUMN]
    victim = scene.plan.groups[0][1]
    object.__setattr__(pieces[victim], "data", bytes(len(pieces[victim].data)))
    await one.groups.bundles.forward(scene.bundle(0, part))
    assert isinstance(await one.seen.wait(gev.ForwardFailed), gev.ForwardFailed)
    reducer = scene.ones[part.reducer]
    assert not any(isinstance(event, gev.BundleArrived) for event in reducer.seen.events)


async def test_only_who_collects_a_groups_slices_brings_its_bundle(plain_scene: Scene) -> None:
    scene = plain_scene
    await scene.start()
    part = scene.parts[0]
    reducer = scene.ones[part.reducer]
    others = [one for one in scene.ones.values() if one is not reducer]
    liar = next(one for one in others if one.peer not in (scene.column(1).reducer, scene.column(1).backup))
    about = scene.world.swarm, 0, 0, scene.plan.roster
    for request in (
        Bundle(*about, part.index, 1, ()),  # of another group's slices
        Bundle(*about, 65535, 1, ()),
        Bundle(*about, part.index, 1023, ()),
    ):
        assert await answer_to(liar, reducer, encode(request)) is None
    bringer = scene.ones[scene.column(1).reducer]
    if bringer is not reducer:
        twice = (BundledSlice(0, ()), BundledSlice(0, ()))
        assert await answer_to(bringer, reducer, encode(Bundle(*about, part.index, 1, twice))) is None
    assert not any(isinstance(event, gev.BundleArrived) for event in reducer.seen.events)


async def test_a_part_that_is_not_what_its_reducer_signed_is_refused(plain_scene: Scene) -> None:
    scene = plain_scene
    await scene.start()
    await scene.scatter()
    part = next(part for part in scene.parts if part.reducer != scene.column(0).reducer)
    liar, one = scene.ones[part.reducer], scene.collector(0)
    await scene.forward()
    await scene.reduce(part)
    raw, frame = answered(liar, part)
    other = next(signed for signed in scene.parts if signed is not part)

    async def lie(stream: Stream) -> None:
        await read_request(stream)
        for _ in scene.plan.groups[0]:
            await stream.receive_frame(1 << 20)
        for each in lies.pop():
            await stream.send_frame(each)

    lies = [(raw, frame[:-1] + bytes([frame[-1] ^ 1])), (scene.commits[0].raw, frame), (raw,)]
    liar.host.reception._entries.pop(PROTOCOL)
    await liar.host.handle(PROTOCOL, lie)
    for _ in range(3):
        await one.groups.bundles.forward(scene.bundle(0, part))
        await one.seen.wait(gev.ForwardFailed)
    assert {rule for peer, rule in one.seen.blamed if peer == liar.peer} == {"bundles-1/R5", "wire-1/R3"}
    assert other.index != part.index


async def test_a_column_is_fetched_by_its_digest_past_who_lacks_it(scene: Scene) -> None:
    given = await scene.exchange()
    late = scene.members(1)[-1]
    late.bulk._outputs.clear()
    late.seen.events.clear()
    sources = (late.peer, scene.collector(0).peer)
    await late.groups.columns.gather(ev.Gather(0, given.digest, scene.column(1), sources, scene.plan))
    event = await late.seen.wait(gev.ColumnArrived)
    assert isinstance(event, gev.ColumnArrived)
    assert event.listing == given.listing
    assert not late.seen.blamed


async def test_who_gives_another_column_than_the_one_asked_for_is_blamed_and_the_next_one_asked(
    plain_scene: Scene,
) -> None:
    scene = plain_scene
    given = await scene.exchange()
    late, liar = scene.members(1)[-1], scene.collector(2)

    async def lie(stream: Stream) -> None:
        await read_request(stream)
        await stream.send_frame(encode(Listing((b"", b"", b""))))

    liar.host.reception._entries.pop(PROTOCOL)
    await liar.host.handle(PROTOCOL, lie)
    late.bulk._outputs.clear()
    late.seen.events.clear()
    sources = (liar.peer, scene.collector(0).peer)
    await late.groups.columns.gather(ev.Gather(0, given.digest, scene.column(1), sources, scene.plan))
    assert isinstance(await late.seen.wait(gev.ColumnArrived), gev.ColumnArrived)
    assert (liar.peer, "bundles-1/R6") in late.seen.blamed


async def test_who_only_waits_gets_the_column_too_and_nobody_gets_what_is_not_there(plain_scene: Scene) -> None:
    scene = plain_scene
    given = await scene.exchange()
    collector, other = scene.collector(0), scene.members(1)[-1]
    about = scene.world.swarm, 0, 0, scene.plan.roster
    raw = await answer_to(other, collector, encode(AwaitColumn(*about, COLUMN)))
    assert raw is not None
    assert decode((Listing,), raw).items == given.listing
    near = next(one for one in scene.members(0) if one is not collector)
    assert await answer_to(near, other, encode(AwaitColumn(*about, 63))) is None
    assert await answer_to(near, collector, encode(GetColumn(scene.world.swarm, 0, b"\0" * 32))) == b""


@pytest.mark.parametrize("groups", [(0, 0), (1, 0)])
async def test_nobody_is_sent_a_part_of_a_column_twice_for_one_request(
    plain_scene: Scene, groups: tuple[int, int]
) -> None:
    scene = plain_scene
    given = await scene.exchange()
    collector, asker = scene.collector(0), scene.members(1)[-1]
    async with await asker.host.open_stream(collector.peer, PROTOCOL, 5) as stream:
        await stream.send_frame(encode(GetColumn(scene.world.swarm, 0, given.digest)))
        assert await stream.receive_frame(1 << 20)
        await stream.send_frame(encode(LackedParts(groups)))
        with pytest.raises(NetworkError):
            await stream.receive_frame(1 << 20)
    assert collector.host.reception.misbehaved == 1


async def test_a_groups_roster_is_fetched_by_its_digest_past_who_lacks_it(plain_scene: Scene) -> None:
    scene = plain_scene
    await scene.start()
    one, *others = scene.ones.values()
    steward = identity(1)
    message = GroupRoster(scene.world.swarm, 0, 0, scene.state.lineage, 0, scene.listings[0].items)
    roster = sign_message(message, steward.peer, steward.sign)
    sources = tuple(other.peer for other in others[:2])
    one.groups.perform(gev.Fetch(0, message.digest(), sources), scene.nursery, ())
    found = await one.seen.wait(gev.Fetched)
    assert isinstance(found, gev.Fetched)
    assert found.roster is None
    scene.group_rosters[message.digest()] = roster
    one.groups.perform(gev.Fetch(0, message.digest(), sources), scene.nursery, ())
    found = await one.seen.wait(gev.Fetched)
    assert isinstance(found, gev.Fetched)
    assert found.roster == roster
    scene.group_rosters[b"\0" * 32] = roster
    one.groups.perform(gev.Fetch(0, b"\0" * 32, sources[:1]), scene.nursery, ())
    await one.seen.wait(gev.Fetched)
    assert (sources[0], "groups-1/R7") in one.seen.blamed


async def answer_to(one: One, to: One, request: bytes) -> bytes | None:
    """The first frame that answers a request; None: the stream ended without."""

    try:
        async with await one.host.open_stream(to.peer, PROTOCOL, 5.0) as stream:
            await stream.send_frame(request)
            with trio.fail_after(10.0):
                return await stream.receive_frame(1 << 20)
    except NetworkError:
        return None


def unpack(raw: bytes) -> bytes:
    """The body of a signed message."""
    from p2pnet.wire.codec import unpack as unpack_items

    body: bytes = unpack_items(raw, 1 << 20)[0]
    return body


def answered(one: One, part: Part) -> tuple[bytes, ...]:
    view = one.bulk.views.find(0, 0)
    assert view is not None
    assert view.beside is not None
    answer = view.beside.answered(part.index)
    assert answer is not None
    return answer
