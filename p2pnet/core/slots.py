"""Sign one thing per slot, durable before it is sent, over all restarts. Contract: protocols/round-1.md, R50."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from p2pnet.core.docket import Docket
from p2pnet.core.events import Effect, Persist
from p2pnet.core.pace import Pace
from p2pnet.core.state import HashChain
from p2pnet.identity import PeerId
from p2pnet.wire.codec import Message
from p2pnet.wire.round import SIGNED, slot_of
from p2pnet.wire.signing import Sign, Signed, Verify, open_signed, sign_message

M = TypeVar("M", bound=Message)


@dataclass(frozen=True, slots=True)
class Context:
    """What a peer brings into every round."""

    me: PeerId
    sign: Sign
    verify: Verify
    chain: HashChain
    pace: Pace  # of this peer's exchanges, over all rounds
    rng: random.Random
    audits: bool = True
    docket: Docket = field(default_factory=Docket)  # what this peer can prove, over all rounds
    groups: bool = False  # the shell moves bundles: a swarm may be larger than one roster


@dataclass(frozen=True, slots=True)
class Restored:
    """What a stopped process of ours left behind in this round."""

    slots: Mapping[bytes, bytes] = field(default_factory=dict)  # slot -> signed message
    held: Sequence[tuple[bytes, tuple[bytes, ...]]] = ()  # outcome and its roster's commits, all parts stored


class Slots:
    """What this peer has signed in one round."""

    def __init__(self, context: Context, round_id: int, taken: Mapping[bytes, bytes]) -> None:
        """taken: what a stopped process of ours signed; raises WireError when that is not a message of ours."""
        self._context = context
        self._round = round_id
        self._signed: dict[bytes, Signed[Message]] = {
            slot: open_signed(SIGNED, raw, context.verify) for slot, raw in taken.items()
        }

    def sign(self, message: M) -> tuple[Signed[M], list[Effect]]:
        """Sign a message, or return what was signed in its slot before; the effects make it durable first."""
        slot = slot_of(message)
        if slot in self._signed:
            return self._signed[slot], []  # type: ignore[return-value]  # a slot's first byte is the kind
        signed = sign_message(message, self._context.me, self._context.sign)
        self._signed[slot] = signed  # type: ignore[assignment]
        return signed, [Persist(self._round, slot, signed.raw)]

    def found(self, message: Message) -> Signed[Message] | None:
        """What was signed in this message's slot, if anything."""
        return self._signed.get(slot_of(message))

    def all(self) -> list[Signed[Message]]:
        """Everything signed in this round."""
        return list(self._signed.values())
