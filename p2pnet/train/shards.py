"""Read and write parameters that lie in shards on several processes (DTensor, as FSDP2 makes them), or whole in one.

Importing torch's DTensor takes as long as importing half of torch: it is not done here, for where nobody has done it
there is none.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, TypeGuard

import torch
from torch import Tensor

from p2pnet.train.ranks import Ranks

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def is_sharded(tensor: Tensor) -> TypeGuard[DTensor]:
    """Tell whether a tensor is a DTensor."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def local_part(tensor: Tensor) -> Tensor:
    """Return this process's shard, or the tensor itself; it may hold no value. Shares memory with `tensor`."""
    return tensor.to_local() if is_sharded(tensor) else tensor


def read_whole(tensor: Tensor) -> Tensor:
    """Return all of a tensor, detached. Collective over the tensor's mesh when it is sharded."""
    with torch.no_grad():
        return tensor.full_tensor() if is_sharded(tensor) else tensor.detach()


def write_whole(tensor: Tensor, value: Tensor | None, ranks: Ranks) -> None:
    """Set a tensor on all ranks to rank 0's value, rounded to the tensor's dtype. Collective.

    value: of the tensor's shape, on rank 0; ignored on the others.
    """
    if ranks.size == 1 and value is not None and not is_sharded(tensor):
        tensor.copy_(value)
        return
    local = local_part(tensor)
    if value is None or not ranks.first:
        whole = torch.empty(tensor.shape, dtype=tensor.dtype, device=local.device)
    else:
        whole = value.to(local.device, tensor.dtype).contiguous()
    if is_sharded(tensor):
        from torch.distributed.tensor import distribute_tensor

        local.copy_(distribute_tensor(whole, tensor.device_mesh, tensor.placements).to_local())
    else:
        ranks.broadcast(whole)
        local.copy_(whole)


def shard_like(local: Tensor, parameter: DTensor) -> DTensor:
    """Return a DTensor out of each process's shard, sharded as `parameter` is."""
    return type(parameter).from_local(
        local, parameter.device_mesh, parameter.placements, shape=parameter.shape, stride=parameter.stride()
    )
