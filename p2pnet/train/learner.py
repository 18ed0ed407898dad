"""The state of one peer's training: theta, what all peers agree on, and e, what this one still has to say.

Memory beyond the user's model and optimizer: two float32 copies of the trained parameters. The accumulator a takes the
place of e when a round is encoded, and the local model is the third copy.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path

import torch
from torch import Tensor, nn

from p2pnet.errors import ConfigError, NotFiniteError
from p2pnet.numerics import native
from p2pnet.numerics.codec import as_bytes, as_chunks, check, encode
from p2pnet.numerics.feedback import PPM, accumulate, add_change
from p2pnet.numerics.formats import ChunkFormat
from p2pnet.numerics.layout import Layout
from p2pnet.numerics.outer import settle, take_over
from p2pnet.numerics.reduce import LEAF_CHUNKS, WEIGHT_MAX
from p2pnet.numerics.state import checksum, state_sha256
from p2pnet.train.moments import PREFIX, Moments
from p2pnet.train.ranks import ALONE, Ranks
from p2pnet.train.replica import Masters, Replica
from p2pnet.train.shards import read_whole
from p2pnet.train.storage import (
    check_tensors,
    dump_tensors,
    list_some,
    parse_tensors,
    read_raw,
    read_tensors,
    write_raw,
    write_tensors,
)

log = logging.getLogger(__name__)

# A local value beyond this counts as infinite. Then no sum can overflow, however long a swarm runs: a delta, scaled by
# at most 2^3, is under 2^68, and a with beta = 1 gains at most that in each of 2^32 rounds.
VALUE_MAX = 2.0**64
# A weight by samples is never below 1 of 8. So the scale H / steps ends at 8: what a step counts for, weight times
# scale, is then the same for who takes all of them and for who manages one of a hundred.
SCALE_MAX = WEIGHT_MAX
FORMAT = "p2pnet-learner-1"


class Learner:
    """The parameters of a model between the swarm and the training loop around it.

    A round: the loop trains the model; `encode`; then one of `apply` (decided with a result) and `void`. Both leave the
    model at theta. A round without an update of one's own (skipped, missed) is an `apply` or `void` without `encode`.
    With overlap the loop trains the next round while an update is pending, from `rewind` on; `encode_next` then takes
    the place of `apply` or `void` and the next `encode`.
    Only trained parameters take part, tied ones once, under the first of their names; buffers stay local.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        k: int,
        k_result: int,
        value_bits: int,
        level_bias: int,
        alpha_ppm: int,
        beta_ppm: int,
        ranks: Ranks = ALONE,
    ) -> None:
        """Take the model's parameters as theta.

        k, k_result, value_bits, level_bias: codec-1.   alpha, beta: millionths.

        Raises ConfigError when the model has no trained parameter, or one that is not a real floating-point tensor.
        """
        if alpha_ppm < 0 or not 0 <= beta_ppm <= PPM:
            raise ValueError(f"alpha_ppm is {alpha_ppm}, beta_ppm is {beta_ppm} (0..{PPM})")
        if (why := native.missing()) is not None:
            log.warning("no CPU library (%s): torch does its work, with the same result, several times slower", why)
        self.replica = Replica(model, ranks)
        self._ranks = ranks
        self._format = ChunkFormat(k, value_bits)
        self._format_result = ChunkFormat(k_result, value_bits)
        self._formats = self._format_result, self._format
        self._level_bias = level_bias
        self._rates = level_bias, alpha_ppm
        self._beta_ppm = beta_ppm
        self._layout = Layout((name, tuple(p.shape)) for name, p in self.replica.trained.items())
        device = self.replica.device if ranks.first else "meta"  # the other ranks hold none of it
        self._theta = self._layout.empty(device)  # (chunks, 4096) float32
        theta = self._layout.views(self._theta)
        for name, whole in self.replica.read():
            theta[name].copy_(whole)
        self._e = self._layout.empty(device)  # (chunks, 4096) float32; from encode to apply or void it holds a
        self._sent: Tensor | None = None  # my payload, of a: (chunks, payload bytes of one) uint8
        self._decayed = False  # whether beta was applied since the last decided result

    @property
    def params(self) -> int:
        """Trained values, tied ones once."""
        return self._layout.params

    @property
    def chunks(self) -> int:
        """Chunks of 4096 values."""
        return self._layout.chunks

    @property
    def leaves(self) -> int:
        """Leaves of 16 chunks; the last may be shorter."""
        return -(-self.chunks // LEAF_CHUNKS)

    @property
    def payload_bytes(self) -> int:
        """Size of every payload."""
        return self._format.payload_bytes(self.chunks)

    @property
    def result_bytes(self) -> int:
        """Size of every result."""
        return self._format_result.payload_bytes(self.chunks)

    @property
    def pending(self) -> bool:
        """Whether an update was encoded whose round is not over."""
        return self._sent is not None

    @torch.no_grad()
    def encode(self, steps: int, h_steps: int) -> bytes:
        """End the training of a round: a = beta * e + (theta - local) * scale, and its largest values.

        steps: inner steps taken, at least 1; by window perhaps more than `h_steps`, the swarm's H. The scale is float32
        of h_steps / steps, at most 8, and each operation is rounded to float32.   returns: `payload_bytes`, on rank 0.
        Raises NotFiniteError when the local model holds NaN, infinity or a value beyond 2^64; then the model is back at
        theta and e is as it was.
        """
        if self._sent is not None:
            raise ValueError("an update is pending: apply or void its round first")
        self._refuse_useless(steps, h_steps)
        self._encode(steps, h_steps)
        return self.pending_update() if self._ranks.first else b""

    @torch.no_grad()
    def encode_next(
        self, result: bytes | memoryview | None, named: Sequence[bool] | None, steps: int, h_steps: int
    ) -> None:
        """End a round whose exchange ran beside the training of the next one, and encode that: `apply`, then `encode`.

        result, named: as for `apply`; None: the round is void.   The change is measured from the theta that the loop
        began at, before the result; the model is then set to theta after it. Raises as both do; nothing has changed.
        """
        self._check_named(named)
        self._refuse_useless(steps, h_steps)
        if self._ranks.first and result is not None:
            check(result, self._format_result, self.chunks)
            if named is not None and self._sent is not None:
                settle(self._e, result, self._sent, self._chunks_named(named), self._formats, self._level_bias)
            self._end_round()
        self._sent = None
        self._encode(steps, h_steps)
        if self._ranks.first and result is not None:
            take_over(self._theta, self._e, result, None, self._chunks_named(None), self._formats, *self._rates)
        self.rewind()

    @torch.no_grad()
    def keep(self, steps: int, h_steps: int) -> None:
        """Take what was trained beside a pending update into e, to be sent later; the model is set to theta.

        steps, h_steps, errors: as for `encode`.
        """
        self._refuse_useless(steps, h_steps)
        self._add_change(steps, h_steps)
        self.rewind()

    def rewind(self) -> None:
        """Set the model to theta. With overlap the next round is trained from here while this one is exchanged."""
        self.replica.write(self._layout.views(self._theta))

    def pending_update(self) -> bytes:
        """Return the update whose round is not over once more, for a process that was stopped before it was."""
        if self._sent is None:
            raise ValueError("no update is pending")
        return as_bytes(self._sent)

    @torch.no_grad()
    def apply(self, result: bytes | memoryview, named: Sequence[bool] | None) -> None:
        """Take over a decided result: theta moves, e loses what was accepted of my update, the model is set to theta.

        result: `result_bytes`, all parts in order.   named: for each leaf whether its part's inputs name me; None: none
        does. Without a pending update it says nothing. beta is applied once per decided result,
        here when no `encode` did. Raises WireError for a malformed result; then nothing has changed.
        """
        self._check_named(named)
        if self._ranks.first:
            sent = None if named is None else self._sent
            take_over(self._theta, self._e, result, sent, self._chunks_named(named), self._formats, *self._rates)
            self._end_round()
        self.rewind()

    def void(self) -> None:
        """End a round without a result: e = a, the model is set to theta. beta stays applied (once per result)."""
        self._sent = None
        self.rewind()

    def checksum(self) -> int:
        """Return the 64-bit checksum of theta that a commit carries, on rank 0; elsewhere 0."""
        return checksum(self._theta) if self._ranks.first else 0

    def state_sha256(self) -> bytes:
        """Return the SHA-256 over theta, and frozen parameters as float32, in the order of their names. Collective."""
        return self._hash(self._layout.views(self._theta))

    def initial_bytes(self) -> bytes:
        """Return theta as a safetensors file; its SHA-256 is the manifest's `initial`."""
        return dump_tensors(self._layout.views(self._theta))

    def load_initial(self, data: bytes) -> None:
        """Start anew from a safetensors file of theta. Raises ConfigError when it does not fit; nothing has changed.

        data: rank 0's counts.
        """
        if self._ranks.first:
            tensors = parse_tensors(data, "initial parameters")
            expected = {name: (torch.float32, tuple(p.shape)) for name, p in self.replica.trained.items()}
            check_tensors(tensors, expected, "initial parameters")
            self._layout.gather(tensors, self._theta)
            self._e.zero_()
            self._sent, self._decayed = None, False
        self.rewind()

    def save(self, path: Path, notes: Mapping[str, str], moments: Moments | None = None) -> None:
        """Write theta, e, a pending update and the optimizers' state, in one atomic step; on rank 0 alone.

        notes: the caller's, such as round and lineage.   moments: the other ranks' go through `RankFiles`.
        Raises ConfigError when the file cannot be written.
        """
        tensors = {"theta": self._theta, "e": self._e}
        if moments is not None:
            tensors |= moments.dump()
        if self._sent is not None:
            tensors["payload"] = self._sent
        sums = f"{checksum(self._theta):016x} {checksum(self._e):016x}"
        own = {"format": FORMAT, "table": self._table_sha256(), "decayed": str(int(self._decayed)), "sums": sums}
        if clash := own.keys() & notes.keys():
            raise ValueError(f"the notes {sorted(clash)} are the learner's own")
        write_tensors(path, tensors, own | dict(notes))

    def load(self, path: Path, moments: Moments | None = None) -> dict[str, str]:
        """Go on from a saved file, return its notes; raises ConfigError, and changes nothing, when it does not fit.

        An optimizer's state that does not fit is no error: a log line says so, and it begins anew.
        """
        notes = json.loads(self._ranks.from_first(lambda: json.dumps(self._load(path, moments)).encode()))
        self.rewind()
        return dict(notes)

    def _load(self, path: Path, moments: Moments | None) -> dict[str, str]:
        tensors, metadata = read_tensors(path)
        if (found := metadata.pop("format", "none")) != FORMAT:
            raise ConfigError(f"{path}: its format is {found!r}, expected {FORMAT!r}")
        if metadata.pop("table", "") != self._table_sha256():
            raise ConfigError(f"{path}: saved from a model with other parameters")
        payload = tensors.pop("payload", None)
        kept = {name: tensors.pop(name) for name in list(tensors) if name.startswith(PREFIX)}
        expected = dict.fromkeys(("theta", "e"), (torch.float32, tuple(self._theta.shape)))
        check_tensors(tensors, expected, str(path))
        if metadata.pop("sums", "") != f"{checksum(tensors['theta']):016x} {checksum(tensors['e']):016x}":
            raise ConfigError(f"{path}: holds other values than were saved: damaged")
        try:
            if payload is not None:
                check(payload, self._format, self.chunks)
        except ValueError as error:
            raise ConfigError(f"{path}: the pending update is damaged: {error}") from error
        self._sent = None if payload is None else payload.to(self._theta.device)
        self._theta.copy_(tensors["theta"])
        self._e.copy_(tensors["e"])
        self._decayed = metadata.pop("decayed", "0") == "1"
        for note in moments.restore(kept) if moments is not None else []:
            log.warning("%s: %s", path, note)
        return metadata

    def write_state(self, path: Path) -> None:
        """Write theta for who joins late: fp32, little endian, nothing else, in the order of the names; atomic.

        On rank 0 alone. Raises ConfigError when the file cannot be written.
        """
        write_raw(path, self._layout.views(self._theta).values())

    @torch.no_grad()
    def load_state(self, path: Path, expected_sha256: bytes) -> None:
        """Go on from a file of `write_state` whose hash is certified; e stays, and a pending update is over.

        expected_sha256: `state_sha256` of the peers that wrote it: theta, and the frozen parameters, which must be this
        model's. Raises ConfigError when the file or the frozen parameters differ; then nothing has changed. Collective.
        """
        tensors = read_raw(path, self._layout.shapes) if self._ranks.first else {}
        found = self._hash(tensors)
        if found != expected_sha256:
            raise ConfigError(
                f"{path}: its hash is {found.hex()}, the certified one {expected_sha256.hex()}; the file is damaged"
                + (", or the model's frozen parameters are not the swarm's" if self.replica.frozen else "")
            )
        if self._ranks.first:
            self._layout.gather(tensors, self._theta)
        self._sent, self._decayed = None, False
        self.rewind()

    @torch.no_grad()
    def go_back(self, path: Path, expected_checksum: int | None, payload: bytes) -> None:
        """Return to a theta of before: what was learnt since goes into e, and is sent later. Collective.

        path: of `write_state`.   payload: the update that was pending then, pending again; empty: none. One that is
        pending now is over. theta - e stays as it is. Raises ConfigError for another checksum, WireError for a
        malformed payload; then nothing has changed.
        """
        if self._ranks.first:
            before = self._layout.empty(self._theta.device)
            self._layout.gather(read_raw(path, self._layout.shapes), before)
            if expected_checksum not in (None, checksum(before)):
                raise ConfigError(f"{path}: holds other values than were written: damaged")
            sent = as_chunks(payload, self._format, self.chunks).to(before.device, copy=True) if payload else None
            if sent is not None:
                check(sent, self._format, self.chunks)
            self._e.add_(before).sub_(self._theta)
            self._theta.copy_(before)
            self._sent, self._decayed = sent, sent is not None
        self.rewind()

    def export(self, path: Path) -> None:
        """Write the model for use elsewhere: theta, frozen parameters and buffers by name, as safetensors.

        Collective; rank 0 writes. Raises ConfigError when the file cannot be written.
        """
        others = {name: read_whole(p) for name, p in self.replica.frozen.items()} | self.replica.buffers()
        if self._ranks.first:
            tensors = self._layout.views(self._theta) | others
            write_tensors(path, {name: tensor.detach().clone() for name, tensor in tensors.items()}, {"format": "pt"})

    def _hash(self, theta: Mapping[str, Tensor]) -> bytes:
        """Return the hash of these values with the model's frozen ones. Collective; `theta` is rank 0's."""
        frozen = self.replica.frozen
        if self._ranks.first:
            return self._ranks.share(state_sha256(Masters(theta, frozen)))
        for parameter in frozen.values():
            read_whole(parameter)
        return self._ranks.share()

    def _check_named(self, named: Sequence[bool] | None) -> None:
        if named is not None and len(named) != self.leaves:
            raise ValueError(f"{len(named)} leaves named, there are {self.leaves}")

    def _refuse_useless(self, steps: int, h_steps: int) -> None:
        """Raise what `encode` does before anything has changed."""
        if steps < 1 or h_steps < 1:
            raise ValueError(f"{steps} steps of {h_steps}")
        self.replica.check_unchanged()
        self._refuse_not_finite()

    def _add_change(self, steps: int, h_steps: int) -> None:
        scale = torch.tensor(min(h_steps / steps, SCALE_MAX), dtype=torch.float32).item()
        beta_ppm = PPM if self._decayed else self._beta_ppm
        theta, e = self._layout.views(self._theta), self._layout.views(self._e)
        for name, local in self.replica.read():
            if self._ranks.first:
                add_change(e[name], theta[name], local.to(e[name].device), scale, beta_ppm)
        self._decayed = True

    def _encode(self, steps: int, h_steps: int) -> None:
        self._add_change(steps, h_steps)
        if self._ranks.first:
            self._sent = encode(self._e, self._format, self._level_bias)

    def _end_round(self) -> None:
        """A result is taken over: beta counts once for it, also where I had no update."""
        if not self._decayed:
            accumulate(self._e, torch.zeros((), device=self._e.device), self._beta_ppm, out=self._e)
        self._sent, self._decayed = None, False

    def _chunks_named(self, named: Sequence[bool] | None) -> Tensor:
        """Return (chunks,) bool, from one for each leaf."""
        leaves = torch.tensor(named or [False] * self.leaves, dtype=torch.bool)
        return leaves.repeat_interleave(LEAF_CHUNKS)[: self.chunks]

    def _refuse_not_finite(self) -> None:
        extremes = torch.stack(self.replica.extremes())  # (parameters, 2) float32
        fine = extremes.abs().amax(1) <= VALUE_MAX  # False for NaN, which aminmax passes on
        spoilt = self._ranks.either((~fine).tolist())
        if any(spoilt):
            names = [name for name, bad in zip(self.replica.trained, spoilt, strict=True) if bad]
            self.rewind()
            raise NotFiniteError(f"NaN, infinity or a value beyond 2^64 in the local model: {list_some(names, 5)}")

    def _table_sha256(self) -> str:
        rows = [(row.name, row.shape) for row in self.replica.table() if row.trained]
        return sha256(repr((rows, self._format)).encode()).hexdigest()
