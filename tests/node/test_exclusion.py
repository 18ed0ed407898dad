"""Members that lie, among members as they are: the proof reaches everybody, is stored, and the liar is out."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from p2pnet.core import events as ev
from p2pnet.core.evidence import Ground, sum_norms
from p2pnet.core.state import SwarmState
from p2pnet.identity import Identity, PeerId, verify
from p2pnet.ledger.evidence import EvidenceTable
from p2pnet.ledger.log import Ledger
from p2pnet.net.daemon import DaemonOptions
from p2pnet.net.host import Host, Limits, Misbehaviour, Stream
from p2pnet.net.libp2p import open_libp2p_host
from p2pnet.node import bridge as br
from p2pnet.node.history import replay, volume_of
from p2pnet.node.proving import MINE, PROTOCOL, Proving
from p2pnet.node.reducing import reduce_slices
from p2pnet.numerics.reduce import clip_factors, reduce_leaf
from p2pnet.wire import merkle
from p2pnet.wire.branch import open_spoken
from p2pnet.wire.codec import decode, encode
from p2pnet.wire.evidence import EVIDENCE_BYTES_MAX, DoubleSigned, GetEvidence, decode_evidence, evidence_digest
from p2pnet.wire.exchange import NORM_BYTES, norms_root
from p2pnet.wire.round import Vote, decode_outcome
from p2pnet.wire.signing import sign_message
from tests.node.members import CHUNKS, FORMATS, Member, World, identity, payload, until

LEAF_BYTES = FORMATS[1].payload_bytes(16)
Inputs = tuple[int, ...]
Again = Callable[[Inputs], bytes]  # reduces once more, with the factors of these inputs
Lie = Callable[[bytes, Inputs, bytes, Again], tuple[bytes, Inputs, bytes]]


@pytest.fixture
def world(nursery: trio.Nursery, tmp_path: Path) -> World:
    return World(nursery, tmp_path, founders=4)


class Daemons:
    """A host with a daemon of its own for each member, in place of the network in memory."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def host(
        self, peer: PeerId, limits: Limits | None = None, on_misbehaviour: Misbehaviour = lambda _peer, _rule: None
    ) -> AbstractAsyncContextManager[Host]:
        who = next(one for one in map(identity, range(1, 10)) if one.peer == peer)
        key_file = self.folder / f"{peer.hex()}.key"
        who.save(key_file)
        options = DaemonOptions(listen=("/ip4/127.0.0.1/tcp/0",))
        return open_libp2p_host(options, key_file, limits=limits, on_misbehaviour=on_misbehaviour)


def excluded(member: Member) -> set[PeerId]:
    return set(member.peer.rounds.state.excluded) if member.peer is not None else set()


def kept(member: Member) -> dict[PeerId, str]:
    """What the evidence in a member's ledger is about, by liar: read from the bytes."""
    assert member.ledger is not None
    table = EvidenceTable(member.ledger)
    found = {}
    for stored in table.all():
        raw = table.find(stored.digest)
        assert raw is not None
        assert evidence_digest(raw) == stored.digest
        found[stored.peer] = type(decode_evidence(raw)).__name__
    return found


async def caught(liar: Member, others: list[Member], proof: str) -> None:
    """Everybody comes to hold the proof and to exclude the liar, and the rounds go on without it."""
    who = liar.identity.peer
    await until(lambda: all(excluded(member) == {who} for member in others))
    assert all(kept(member) == {who: proof} for member in others)
    reached = max(len(member.outcomes) for member in others)
    await until(lambda: all(len(member.outcomes) >= reached + 3 for member in others))
    first = others[0]
    assert first.ledger is not None
    exclusions = []
    for member in others:
        assert member.ledger is not None
        assert member.peer is not None
        assert who not in member.peer.rounds.state.electorate
        entry = member.ledger.entry(reached + 1)
        assert entry is not None
        assert entry == replace(first.ledger.entry(reached + 1), **stamps(entry))  # type: ignore[type-var]
        assert who not in [open_spoken(raw, verify).peer for raw in entry.commits]  # type: ignore[union-attr]
        manifest = member.world.manifest.message
        genesis = SwarmState.genesis(member.world.swarm, manifest, volume_of(manifest))
        replayed = replay(genesis, member.ledger)
        assert replayed.excluded == first.peer.rounds.state.excluded  # type: ignore[union-attr]
    for entry in first.ledger.entries(0, len(first.ledger)):
        exclusions += [each.peer for each in decode_outcome(entry.outcome).excluded]
    assert exclusions == [who]


def stamps(entry: object) -> dict[str, object]:
    """What may differ in two members' records of one round: whose seals came first, and when."""
    return {name: getattr(entry, name) for name in ("certificate", "decided_unix_s")}


async def start(world: World, nursery: trio.Nursery, *numbers: int) -> list[Member]:
    members = await world.members(*numbers)
    for member in members:
        nursery.start_soon(member.take_part)
    await until(lambda: all(member.outcomes for member in members))
    return members


async def test_who_commits_twice_is_proved_to_and_excluded_everywhere(world: World, nursery: trio.Nursery) -> None:
    *others, liar = await start(world, nursery, 1, 2, 3, 4)
    assert liar.peer is not None
    while not all(excluded(member) for member in others):
        mine = liar.peer.rounds.round.commits.held.get(liar.identity.peer)
        if mine is not None:  # the same once more, for another update
            second = replace(mine[0].message, payload_root=b"\7" * 32)
            liar.links.broadcast(sign_message(second, liar.identity.peer, liar.identity.sign).raw)
        with trio.move_on_after(0.02):
            await until(lambda: all(excluded(member) for member in others))
    await caught(liar, others, "DoubleSigned")


def other_output(output: bytes, inputs: Inputs, norms: bytes, _again: Again) -> tuple[bytes, Inputs, bytes]:
    """Well-formed, and each chunk is another one's."""
    size = FORMATS[1].payload_bytes(1)
    return output[size:] + output[:size], inputs, norms


def other_clips(_output: bytes, inputs: Inputs, norms: bytes, again: Again) -> tuple[bytes, Inputs, bytes]:
    """One input at half of its factor, and the output that follows from it."""
    first = next(place for place, code in enumerate(inputs) if code)
    inputs = (*inputs[:first], inputs[first] // 2 + 1, *inputs[first + 1 :])
    return again(inputs), inputs, norms


def other_norms(_output: bytes, inputs: Inputs, norms: bytes, again: Again) -> tuple[bytes, Inputs, bytes]:
    """The first input's norms nine times as large, the factors that follow from them, and the output that follows."""
    count = sum(code > 0 for code in inputs)
    rows = [int.from_bytes(norms[at : at + NORM_BYTES], "big") for at in range(0, len(norms), NORM_BYTES)]
    rows = [norm * (1 if number % count else 9) for number, norm in enumerate(rows)]
    norms = b"".join(norm.to_bytes(NORM_BYTES, "big") for norm in rows)
    clips = iter(clip_factors(sum_norms(norms, count)))
    inputs = tuple(next(clips) + 1 if code else 0 for code in inputs)
    return again(inputs), inputs, norms


def lies_as_a_reducer(liar: Member, lie: Lie) -> None:
    """From now on a member signs something else than what it reduced."""
    assert liar.peer is not None
    bulk = liar.peer.bulk

    async def reduce(effect: ev.Reduce) -> None:
        view = bulk.views.find(effect.round, effect.view)
        if view is None:
            return
        pieces = view.pieces.get(effect.part.index, {})
        slices = {peer: piece.data for peer, piece in pieces.items() if peer in effect.senders}
        listed = list(zip((commit.peer for commit in view.exchange.commits), view.exchange.weights, strict=True))

        def again(inputs: Inputs) -> bytes:
            taken = [(peer, weight, code - 1) for (peer, weight), code in zip(listed, inputs, strict=True) if code]
            data = [slices[peer] for peer, _, _ in taken]
            total = sum(view.exchange.weights)  # type: ignore[union-attr]
            return reduce_leaf(data, [w for _, w, _ in taken], [q for _, _, q in taken], total, *FORMATS)

        output, inputs, norms, _ = reduce_slices(view.exchange, slices, *FORMATS)
        if not output:
            return
        output, inputs, norms = lie(output, inputs, norms, again)
        root = merkle.root(merkle.payload_leaves(output, LEAF_BYTES))
        bulk._outputs[effect.round, root] = output
        view.norms[effect.part.index] = norms
        over = norms_root(norms, sum(code > 0 for code in inputs))
        bulk._report(ev.ReduceDone(effect.round, effect.view, effect.part.index, inputs, root, over))

    bulk.reduce = reduce  # type: ignore[method-assign]


@pytest.mark.parametrize(
    ("lie", "proof"),
    [(other_output, "WrongLeaf"), (other_clips, "WrongClips"), (other_norms, "WrongNorm")],
    ids=["output", "clips", "norms"],
)
async def test_a_reducer_that_signs_what_does_not_follow_is_proved_to_and_excluded_everywhere(
    world: World, nursery: trio.Nursery, lie: Lie, proof: str
) -> None:
    *others, liar = await start(world, nursery, 1, 2, 3, 4)
    lies_as_a_reducer(liar, lie)
    await caught(liar, others, proof)


@pytest.mark.processes
async def test_over_real_connections_too_a_reducer_that_lies_is_proved_to_and_excluded_everywhere(
    world: World, nursery: trio.Nursery, tmp_path: Path
) -> None:
    world.network = Daemons(tmp_path)  # type: ignore[assignment]
    *others, liar = await start(world, nursery, 1, 2, 3, 4)
    lies_as_a_reducer(liar, other_output)
    await caught(liar, others, "WrongLeaf")


async def test_who_commits_to_a_malformed_update_is_proved_to_and_excluded_everywhere(
    world: World, nursery: trio.Nursery
) -> None:
    members = await world.members(1, 2, 3, 4)
    *others, liar = members

    def train(member: Member, task: br.RoundTask) -> bytes:
        data = payload(member.number, task.round_id)
        spoilt = bytes(FORMATS[0].payload_bytes(1))  # no value in a chunk of eight
        return data if member is not liar else data[: -len(spoilt)] + spoilt

    for member in members:
        nursery.start_soon(member.take_part, train)
    await caught(liar, others, "MalformedLeaf")


def two_votes(world: World, author: Identity) -> bytes:
    """Evidence against somebody who voted twice in round 0."""
    votes = [Vote(world.swarm, 0, 0, 1, bytes([number]) * 32) for number in (1, 2)]
    return encode(DoubleSigned(*sorted(sign_message(vote, author.peer, author.sign).raw for vote in votes)))


async def test_evidence_that_an_outcome_names_is_fetched_by_its_hash_and_judged(
    world: World, nursery: trio.Nursery, tmp_path: Path
) -> None:
    asker, holder = [await world.stranger(number) for number in (1, 2)]
    await asker.connect(holder.peer, holder.addrs(), 5)
    good = two_votes(world, identity(3))
    bad = encode(replace(decode_evidence(good), second=decode_evidence(good).first))  # type: ignore[union-attr]
    raws = {evidence_digest(raw): raw for raw in (good, bad)}

    async def serve(stream: Stream) -> None:
        request = decode((GetEvidence,), await stream.receive_frame(1000))
        await stream.send_frame(raws.get(request.digest, b""))

    await holder.handle(PROTOCOL, serve)
    reported: list[ev.Event] = []
    blamed: list[tuple[PeerId, str]] = []
    ground = Ground(world.swarm, CHUNKS, world.manifest.message.policy.round_samples)
    with Ledger(tmp_path / "ledger.db", world.swarm, b"g" * 32) as ledger:
        table = EvidenceTable(ledger)
        proving = Proving(asker, ground, FORMATS, table, reported.append, lambda *what: blamed.append(what))
        for digest in (*raws, b"\x09" * 32):
            await proving.fetch(ev.FetchEvidence(digest, (PeerId(b"\5" * 32), asker.peer, holder.peer)))
    proven, worthless, missing = reported
    assert isinstance(proven, ev.Proven)
    assert (proven.offence.peer, proven.raw) == (identity(3).peer, good)
    assert worthless == ev.Unproven(evidence_digest(bad), True)
    assert missing == ev.Unproven(b"\x09" * 32, False)
    assert blamed == [(holder.peer, "evidence-1/R3")]


async def test_a_member_serves_the_evidence_that_it_keeps_to_whoever_asks(world: World, nursery: trio.Nursery) -> None:
    first, second, _, liar = await start(world, nursery, 1, 2, 3, 4)
    raw = two_votes(world, liar.identity)
    assert first.peer is not None
    first.peer.proving.offer(MINE, raw)
    await until(lambda: bool(kept(first)))
    for digest, expected in ((evidence_digest(raw), raw), (b"\x09" * 32, b"")):
        request = encode(GetEvidence(world.swarm, digest))
        answer = await second.host.request(first.identity.peer, PROTOCOL, request, 5.0, EVIDENCE_BYTES_MAX)
        assert answer == expected


async def test_a_restarted_member_still_knows_what_it_can_prove(world: World, nursery: trio.Nursery) -> None:
    *others, liar = await start(world, nursery, 1, 2, 3, 4)
    first = others[0]
    assert first.peer is not None
    first.peer.proving.offer(MINE, two_votes(world, liar.identity))
    await until(lambda: bool(kept(first)))
    await first.stop()
    back = Member(world, 1, first.host, first.links, first.inbox)
    nursery.start_soon(back.take_part)
    await until(lambda: back.peer is not None)
    assert back.peer is not None
    assert {one.peer for one in back.peer.rounds.context.docket.held.values()} == {liar.identity.peer}
    await until(lambda: all(excluded(member) == {liar.identity.peer} for member in others[1:]))
