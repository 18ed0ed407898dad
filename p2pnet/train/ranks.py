"""The processes that train one replica together, as torchrun starts them: rank 0 owns the node, the others follow it.

Control goes over a gloo group of our own, also where the model's group is NCCL: small tensors in host memory, no
synchronisation with a device. Alone, everything here is free.
"""

from __future__ import annotations

import contextlib
import datetime as dt
from collections.abc import Callable, Iterator, Sequence
from typing import Final

import torch
import torch.distributed as dist
from torch import Tensor

from p2pnet.errors import BehindError, ConfigError, NetworkError, NotFiniteError, P2pnetError

TIMEOUT_S: Final = 1800.0  # torch's own for gloo: ranks may load, compile or save for so long between two steps of ours
PARTING_S: Final = 5.0  # a rank that fails tells the others, unless they are stuck elsewhere
FAILED: Final = 1 << 62  # beyond every code: a rank stops with an error
LEFT: Final = 1 << 61  # a rank has closed the swarm

_ERRORS = {kind.__name__: kind for kind in (ConfigError, NetworkError, NotFiniteError, BehindError)}


class Ranks:
    """A process and its siblings. Every method is collective, and what it returns is the same on all ranks."""

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        """group: of all ranks, gloo; None: this process is alone."""
        self._group = group
        self._lost = False  # a sibling has failed or gone: nobody is there to be told
        self.rank: Final = dist.get_rank() if group is not None else 0
        self.size: Final = dist.get_world_size() if group is not None else 1

    @classmethod
    def of_this_job(cls) -> Ranks:
        """Return the ranks of torch's default process group; alone where there is none. Collective."""
        if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
            return cls()
        return cls(dist.new_group(backend="gloo", timeout=dt.timedelta(seconds=TIMEOUT_S)))

    @property
    def first(self) -> bool:
        """Whether this is rank 0, which owns the node."""
        return self.rank == 0

    def agree(self, code: int = 0) -> int:
        """Return the largest code that a rank gave. Raises P2pnetError when a rank has failed or gone."""
        if self._group is None:
            return code
        agreed = torch.tensor([code])
        with self._watching():
            dist.all_reduce(agreed, dist.ReduceOp.MAX, group=self._group)
        if (found := int(agreed)) >= FAILED:
            self._lost = True
            raise P2pnetError("another rank of this replica stopped with an error: see what it printed")
        if found == LEFT != code:
            self._lost = True
            raise P2pnetError("another rank of this replica has closed the swarm: all leave the loop at the same step")
        return found

    def leave(self) -> None:
        """Close the swarm together; the ranks that have not come to that get an error."""
        self.agree(LEFT)

    def either(self, flags: Sequence[bool]) -> list[bool]:
        """Return, for each flag, whether a rank raised it."""
        if self._group is None:
            return list(flags)
        raised = torch.tensor(flags, dtype=torch.int64)
        with self._watching():
            dist.all_reduce(raised, dist.ReduceOp.MAX, group=self._group)
        return [bool(flag) for flag in raised]

    def total(self, *values: float) -> list[float]:
        """Return the sum over all ranks of each value."""
        if self._group is None:
            return list(values)
        sums = torch.tensor(values, dtype=torch.float64)
        with self._watching():
            dist.all_reduce(sums, group=self._group)
        return sums.tolist()

    def share(self, data: bytes = b"") -> bytes:
        """Return rank 0's bytes; what the others give is ignored."""
        if self._group is None:
            return data
        length = self.agree(len(data) if self.first else 0)
        carried = torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)
        if not self.first:
            carried = torch.empty(length, dtype=torch.uint8)
        if length:
            with self._watching():
                dist.broadcast(carried, src=0, group=self._group)
        return carried.numpy().tobytes()

    def from_first(self, work: Callable[[], bytes]) -> bytes:
        """Run `work` on rank 0 alone, return its result on all ranks; a P2pnetError in it is raised on all of them."""
        if self._group is None:
            return work()
        if not self.first:
            return _open(self.share())
        try:
            data = work()
        except P2pnetError as error:
            self.share(b"\1" + f"{type(error).__name__}\n{error}".encode())
            raise
        self.share(b"\0" + data)
        return data

    def to_first(self, rank: int, data: bytes) -> bytes:
        """Return the bytes of one rank on rank 0, nothing on the others."""
        return self._move(rank, 0, data)

    def to_rank(self, rank: int, data: bytes) -> bytes:
        """Return rank 0's bytes on one rank, nothing on the others."""
        return self._move(0, rank, data)

    def broadcast(self, tensor: Tensor) -> None:
        """Overwrite a tensor with rank 0's, over the model's own group where that is made for its device."""
        if self._group is not None:
            with self._watching():
                dist.broadcast(tensor, src=0, group=self._group if tensor.device.type == "cpu" else None)

    def abandon(self) -> None:
        """Tell the others that this rank stops with an error, if they listen; harmless when they do not."""
        if self._group is not None and not self._lost:
            with contextlib.suppress(RuntimeError):  # they are stuck elsewhere, or gone: their own time-out ends that
                work = dist.all_reduce(torch.tensor([FAILED]), dist.ReduceOp.MAX, group=self._group, async_op=True)
                work.wait(dt.timedelta(seconds=PARTING_S))
        self.close()

    def close(self) -> None:
        """Give the control group back; harmless when called again."""
        if self._group is not None and dist.is_initialized():
            with contextlib.suppress(RuntimeError, ValueError):  # the job has ended meanwhile
                dist.destroy_process_group(self._group)
        self._group = None

    def _move(self, source: int, target: int, data: bytes) -> bytes:
        length = self.agree(len(data) if self.rank == source else 0)
        with self._watching():
            if self.rank == source and length:
                dist.send(torch.frombuffer(bytearray(data), dtype=torch.uint8), dst=target, group=self._group)
            if self.rank == target and length:
                carried = torch.empty(length, dtype=torch.uint8)
                dist.recv(carried, src=source, group=self._group)
                return carried.numpy().tobytes()
        return b""

    @contextlib.contextmanager
    def _watching(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:  # gloo's, for a connection that was closed and for a time-out
            self._lost = True
            raise P2pnetError(f"another rank of this replica is gone or does not answer: {error}") from error


ALONE: Final = Ranks()


def _open(data: bytes) -> bytes:
    if data[:1] == b"\0":
        return data[1:]
    kind, _, text = data[1:].decode().partition("\n")
    raise _ERRORS.get(kind, P2pnetError)(f"rank 0: {text}")
