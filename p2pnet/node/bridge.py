"""Join the user's thread, which trains, to the node's, which talks: two queues, nothing shared."""

from __future__ import annotations

import contextlib
import math
import queue
from dataclasses import dataclass
from pathlib import Path

import trio

from p2pnet.errors import NetworkError, P2pnetError
from p2pnet.wire.manifest import Manifest
from p2pnet.wire.merkle import Tree
from p2pnet.wire.signing import Signed


@dataclass(frozen=True, slots=True)
class Opened:
    """The swarm is known: its manifest and initial parameters are here."""

    manifest: Signed[Manifest]
    initial: Path  # a safetensors file whose hash is the manifest's


@dataclass(frozen=True, slots=True)
class RoundTask:
    """Train this round."""

    round_id: int
    beacon: bytes  # 32 bytes
    state_wanted: bool  # hash the parameters before training
    end_s: float = math.inf  # of the round's window, by `time.monotonic`; rank 0's


@dataclass(frozen=True, slots=True)
class Outcome:
    """A round is decided: apply it."""

    round_id: int
    lineage: bytes  # after it, 32 bytes
    void: bool
    result: bytes  # all parts in order; empty when void
    named: tuple[bool, ...] | None  # by leaf, whether my slice is among the inputs; None: I took no part


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Go on from this state of the swarm, when the file is it; answered by `Attached`."""

    round_id: int  # the one that starts from it
    sha256: bytes  # 32 bytes, certified by that round's outcome
    path: Path  # from a member, not checked yet


@dataclass(frozen=True, slots=True)
class Fork:
    """Write down theta as it is before this round, and go on: what follows may be taken back."""

    round_id: int
    path: Path
    line: str  # that is gone on in: the branch's id in hexadecimal digits


@dataclass(frozen=True, slots=True)
class Return:
    """Go back to where a round was left; what was learnt since goes into the error feedback."""

    round_id: int
    path: Path  # of the `Fork`
    checksum: int | None  # of theta there; None: it was not known yet
    payload: bytes  # the update that was pending; empty: none
    samples: int  # of that update
    line: str  # that is gone back to; empty: the final chain


@dataclass(frozen=True, slots=True)
class Closed:
    """The node has ended."""

    error: BaseException | None


@dataclass(frozen=True, slots=True)
class Attached:
    """The learner is built; it stands at this round. After a `Snapshot`: it was taken, or refused."""

    chunks: int
    round_id: int
    refused: str = ""  # why a snapshot was not taken
    line: str = ""  # the branch that it was in, in hexadecimal digits; empty: the final chain


@dataclass(frozen=True, slots=True)
class Began:
    """The learner stands at the start of a round."""

    round_id: int
    checksum: int
    state: bytes  # SHA-256, when it was wanted


@dataclass(frozen=True, slots=True)
class Submitted:
    """The learner has encoded its update."""

    round_id: int
    payload: bytes
    tree: Tree  # over the payload's leaves
    samples: int
    assigned: bool
    loss: float


@dataclass(frozen=True, slots=True)
class Skipped:
    """The learner has no update this round."""

    round_id: int
    reason: str


@dataclass(frozen=True, slots=True)
class Applied:
    """The learner has applied a decided round."""

    round_id: int
    loss: float  # of the training before it, nan when there was none


@dataclass(frozen=True, slots=True)
class Leave:
    """The user's loop is over."""


ToUser = Opened | Snapshot | RoundTask | Outcome | Fork | Return | Closed
ToNode = Attached | Began | Submitted | Skipped | Applied | Leave


class Bridge:
    """What passes between the two threads. `bind`, `give` and `take` are the node's side, the rest the user's."""

    def __init__(self) -> None:
        self._to_user: queue.SimpleQueue[ToUser] = queue.SimpleQueue()
        self._to_node: queue.SimpleQueue[ToNode] = queue.SimpleQueue()
        self._token: trio.lowlevel.TrioToken | None = None
        self._rung = trio.Event()

    def bind(self) -> None:
        """The node is ready to take what the user's thread says; called in the node's thread."""
        self._token = trio.lowlevel.current_trio_token()

    async def take(self) -> ToNode:
        """Return what the user's thread says next."""
        while self._to_node.empty():
            self._rung = trio.Event()
            await self._rung.wait()
        return self._to_node.get_nowait()

    def give(self, item: ToUser) -> None:
        """Tell the user's thread something."""
        self._to_user.put(item)

    def tell(self, item: ToNode) -> None:
        """Tell the node something; nothing happens when it has ended."""
        if self._token is None:
            raise ValueError("the node is not ready")
        self._to_node.put(item)
        with contextlib.suppress(trio.RunFinishedError):  # `Closed` is on its way
            self._token.run_sync_soon(self._ring)

    def wait(self, timeout_s: float | None = None) -> ToUser:
        """Return what the node says next.

        Raises its error when it has failed, P2pnetError when it has ended, NetworkError after `timeout_s`.
        """
        try:
            item = self._to_user.get(timeout=timeout_s)
        except queue.Empty:
            raise NetworkError(f"nothing from the swarm within {timeout_s:g} s: is anybody of it there?") from None
        return self._raise_failure(item)

    def poll(self) -> ToUser | None:
        """Return what the node has said, or None; raises as `wait` does."""
        try:
            return self._raise_failure(self._to_user.get_nowait())
        except queue.Empty:
            return None

    def _raise_failure(self, item: ToUser) -> ToUser:
        if isinstance(item, Closed):
            self._to_user.put(item)  # for whoever asks next
            if item.error is not None:
                if isinstance(item.error, P2pnetError):
                    raise item.error
                raise P2pnetError(f"the node failed: {item.error!r}") from item.error
            raise P2pnetError("the node has ended, as it was told to")
        return item

    def _ring(self) -> None:
        self._rung.set()
