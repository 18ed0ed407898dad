"""Do the tensor work of an exchange, for a thread beside the loop: reduce, and open what others have reduced."""

from __future__ import annotations

from collections.abc import Mapping

from p2pnet.core.events import Exchange
from p2pnet.core.parts import CHUNKS_PER_LEAF
from p2pnet.errors import WireError
from p2pnet.identity import PeerId
from p2pnet.numerics.codec import check
from p2pnet.numerics.formats import ChunkFormat
from p2pnet.numerics.reduce import reduce_part
from p2pnet.wire import merkle


def reduce_slices(
    exchange: Exchange, slices: Mapping[PeerId, bytes], fmt_in: ChunkFormat, fmt_out: ChunkFormat
) -> tuple[bytes, tuple[int, ...], dict[PeerId, WireError]]:
    """Return the output (empty: no slice is usable), the inputs as `Reduced` lists them, and who is to blame."""
    peers = [commit.peer for commit in exchange.commits]
    weights = dict(zip(peers, exchange.weights, strict=True))
    malformed: dict[PeerId, WireError] = {}
    while senders := [peer for peer in peers if peer in slices and peer not in malformed]:
        data, mine = [slices[peer] for peer in senders], [weights[peer] for peer in senders]
        try:
            done = reduce_part(data, mine, sum(exchange.weights), fmt_in, fmt_out)
        except WireError as error:
            found = {peer: flaw for peer in senders if (flaw := find_flaw(slices[peer], fmt_in)) is not None}
            if not found:
                raise ValueError(f"slices that are right each and not together: {error}") from error
            malformed |= found
        else:
            clips = dict(zip(senders, done.clips, strict=True))
            return done.output, tuple(clips[peer] + 1 if peer in clips else 0 for peer in peers), malformed
    return b"", (), malformed


def find_flaw(data: bytes, fmt: ChunkFormat) -> WireError | None:
    """Return what is wrong with the chunks of a slice, None when nothing is."""
    try:
        check(data, fmt)
    except WireError as error:
        return error
    return None


def open_output(output: bytes, fmt: ChunkFormat) -> tuple[bytes, WireError | None]:
    """Return the root over a reduced part, 32 bytes, and what is wrong with the part, None when nothing is."""
    root = merkle.root(merkle.payload_leaves(output, fmt.payload_bytes(CHUNKS_PER_LEAF)))
    return root, find_flaw(output, fmt)
