"""Do the tensor work of an exchange, for a thread beside the loop: reduce, and open what others have reduced."""

from __future__ import annotations

from collections.abc import Mapping

from p2pnet.core.events import Exchange
from p2pnet.core.parts import CHUNKS_PER_LEAF, Part
from p2pnet.errors import WireError
from p2pnet.identity import PeerId
from p2pnet.node.views import View
from p2pnet.numerics.codec import check
from p2pnet.numerics.dense import shorten
from p2pnet.numerics.formats import ChunkFormat
from p2pnet.numerics.reduce import reduce_part
from p2pnet.wire import merkle
from p2pnet.wire.codec import encode
from p2pnet.wire.exchange import NORM_BYTES, LeafProof, Leaves


def reduce_slices(
    exchange: Exchange, slices: Mapping[PeerId, bytes], fmt_in: ChunkFormat, fmt_out: ChunkFormat
) -> tuple[bytes, tuple[int, ...], bytes, dict[PeerId, WireError]]:
    """Return the output (empty: no slice is usable), the inputs as `Reduced` lists them, norms, and who is to blame.

    norms: the rows whose root `Reduced` names (exchange-1).
    """
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
            inputs = tuple(clips[peer] + 1 if peer in clips else 0 for peer in peers)
            rows = zip(*done.norms, strict=True)
            norms = b"".join(norm.to_bytes(NORM_BYTES, "big") for row in rows for norm in row)
            return done.output, inputs, norms, malformed
    return b"", (), b"", malformed


def leaf_frames(
    view: View, part: Part, inputs: tuple[int, ...], leaf: int, leaves: int, fmt: ChunkFormat, is_dense: bool
) -> list[bytes]:
    """The answer to who audits a leaf of a part: its proofs, the leaves of the inputs, the norms of the whole part.

    leaf: within the part.   leaves: of a payload.
    """
    pieces, proofs, frames = view.pieces.get(part.index, {}), [], []
    leaf_bytes = fmt.payload_bytes(CHUNKS_PER_LEAF)
    for place, commit in enumerate(view.exchange.commits):
        if not inputs[place]:
            continue
        piece = pieces.get(commit.peer)
        if piece is None:
            return [encode(Leaves((), (), 0))]  # forgotten meanwhile
        at = part.start + leaf
        proofs.append(
            LeafProof(place, merkle.narrow_proof(leaves, part.start, part.stop, piece.hashes, piece.proof, at))
        )
        data = piece.data[leaf * leaf_bytes : (leaf + 1) * leaf_bytes]
        frames.append(shorten(data, fmt) if is_dense else data)
    return [encode(Leaves(tuple(proofs), (), 1)), *frames, view.norms.get(part.index, b"")]


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
