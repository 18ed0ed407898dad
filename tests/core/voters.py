"""Peers, commits and outcomes for the tests of the round: played signatures, as in the simulator."""

from __future__ import annotations

import hashlib
import random
from typing import TypeVar

from p2pnet.core.pace import Pace
from p2pnet.core.round import Round
from p2pnet.core.shares import Volume
from p2pnet.core.slots import Context
from p2pnet.core.state import HashChain, SwarmState
from p2pnet.identity import PeerId
from p2pnet.sim import POLICY
from p2pnet.sim.signatures import fake_sign, fake_verify
from p2pnet.wire.codec import Message
from p2pnet.wire.manifest import Policy
from p2pnet.wire.round import Commit
from p2pnet.wire.signing import Signed, sign_message

M = TypeVar("M", bound=Message)
SWARM = hashlib.sha256(b"swarm").digest()
LEAVES = 8
VOLUME = Volume(LEAVES, 13_000, 26_000)  # an exchange is given half a second besides grace, at most


def peer(number: int) -> PeerId:
    return PeerId(hashlib.sha256(b"peer %d" % number).digest())


def peers(count: int) -> list[PeerId]:
    return sorted(peer(number) for number in range(count))


def genesis(voters: int, policy: Policy = POLICY) -> SwarmState:
    founders = tuple(peers(voters))
    return SwarmState(SWARM, policy, 0, b"l" * 32, b"b" * 32, founders, {}, frozenset(founders), VOLUME)


def signed(message: M, author: PeerId) -> Signed[M]:
    return sign_message(message, author, lambda data: fake_sign(author, data))


def chain_of(author: PeerId) -> HashChain:
    return HashChain(hashlib.sha256(b"chain" + author).digest(), 64)


def commit(state: SwarmState, author: PeerId, **changed: object) -> Signed[Commit]:
    member = state.members.get(author)
    preimage = chain_of(author).reveal(member.tip if member else None)
    fields: dict[str, object] = {
        "swarm": state.swarm, "round": state.round, "lineage": state.lineage,
        "payload_root": hashlib.sha256(author).digest(), "samples": 40, "preimage": preimage, "checksum": 7,
        "assigned": 1, "reach": 1, "up_kbps": 0, "down_kbps": 0,
    }  # fmt: skip
    return signed(Commit(**(fields | changed)), author)  # type: ignore[arg-type]


def context(me: PeerId, audits: bool = False) -> Context:
    return Context(me, lambda data: fake_sign(me, data), fake_verify, chain_of(me), Pace(), random.Random(1), audits)


def round_of(state: SwarmState, me: PeerId) -> Round:
    round_ = Round(context(me), state, 0.0)
    round_.awaited = frozenset(state.electorate)
    return round_
