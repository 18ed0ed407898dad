"""The model as one peer has it, in one process or over all ranks of a job: what takes part, how it is read and set.

Which wrapper a user puts around a model (DDP, torch.compile, checkpointing) changes neither names nor table, and who
reads parameters does not notice whether they lie in shards (FSDP2): each is whole for a moment, one by one.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from hashlib import sha256
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from p2pnet.errors import ConfigError
from p2pnet.train.ranks import ALONE, Ranks
from p2pnet.train.shards import is_sharded, local_part, read_whole, write_whole
from p2pnet.train.storage import list_some
from p2pnet.wire.manifest import ParameterRow

WRAPPERS: Final = ("_orig_mod.", "_checkpoint_wrapped_module.")  # what torch.compile and checkpointing put into names


class Replica:
    """The parameters of one peer's model by name: tied ones once, under the first of their names.

    `trained` take part; `frozen` are hashed and never sent, and so are trained ones without a value. Buffers are local.
    """

    def __init__(self, model: nn.Module, ranks: Ranks = ALONE) -> None:
        """Collective. Raises ConfigError for a model without trained parameters, with complex or unmade ones."""
        self.model, self.ranks = _unwrap(model), ranks
        named = self._named()
        _check(self.model, named)
        self.trained: Final = {name: p for name, p in named.items() if p.requires_grad and p.numel()}
        self.frozen: Final = {name: p for name, p in named.items() if name not in self.trained}
        if not self.trained:
            raise ConfigError("model: no parameter is trained (requires_grad)")
        self.sharded: Final = any(is_sharded(p) for p in named.values())
        self.device: Final = local_part(next(iter(self.trained.values()))).device
        table = sha256(repr(self.table()).encode()).digest()
        if any(ranks.either([ranks.share(table) != table])):
            raise ConfigError("model: the ranks of this replica hold different parameters; all need the same model")

    def table(self) -> tuple[ParameterRow, ...]:
        """Return the manifest's rows for this model, by name, frozen parameters included."""
        return tuple(
            ParameterRow(name, str(p.dtype).removeprefix("torch."), tuple(p.shape), int(name in self.trained))
            for name, p in sorted((self.trained | self.frozen).items())
        )

    def check_table(self, table: Iterable[ParameterRow]) -> None:
        """Raise ConfigError that lists what differs between the manifest's table and this model.

        Names, shapes and what is trained must agree. The dtype need not: theta is float32 for everybody.
        """
        ours, theirs = ({row.name: row for row in rows} for rows in (self.table(), table))
        differing = [
            f"{name}: the swarm has {_describe(theirs.get(name))}, the model {_describe(ours.get(name))}"
            for name in sorted(ours.keys() | theirs.keys())
            if _describe(ours.get(name)) != _describe(theirs.get(name))
        ]
        if differing:
            raise ConfigError(f"model: {len(differing)} parameters differ from the swarm's: {list_some(differing)}")

    def check_unchanged(self) -> None:
        """Raise ConfigError when parameters were replaced, frozen or thawed since the swarm was joined."""
        now = self._named()
        differing = [
            f"{name} is {_compare(now.get(name), ours, name in self.trained)}"
            for name, ours in sorted((self.trained | self.frozen).items())
            if now.get(name) is not ours or (ours.numel() and ours.requires_grad != (name in self.trained))
        ] + [f"{name} is new" for name in sorted(now.keys() - self.trained.keys() - self.frozen.keys())]
        if differing:
            raise ConfigError(
                f"model: changed since the swarm was joined: {list_some(differing)}; what is trained stands in the "
                "swarm's manifest and stays: change the model before join, for a swarm of its own"
            )

    def read(self) -> Iterator[tuple[str, Tensor]]:
        """Yield each trained parameter whole, in the order of the names, of its own dtype. Collective to the end."""
        self.ranks.agree()
        self._reshard()
        for name, parameter in self.trained.items():
            yield name, read_whole(parameter)

    @torch.no_grad()
    def write(self, values: Mapping[str, Tensor]) -> None:
        """Set the trained parameters on all ranks, rounding to their dtypes. Collective.

        values: by name, rank 0's float32; the others' are ignored.
        """
        self.ranks.agree()
        self._reshard()
        for name, parameter in self.trained.items():
            write_whole(parameter, values.get(name), self.ranks)

    def extremes(self) -> list[Tensor]:
        """For each trained parameter, this rank's smallest and largest value: (2,) float32; 0 for an empty shard."""
        parts = [local_part(p.detach()) for p in self.trained.values()]
        return [
            torch.stack(torch.aminmax(part)).to(self.device, torch.float32)
            if part.numel()
            else torch.zeros(2, device=self.device)
            for part in parts
        ]

    def buffers(self) -> dict[str, Tensor]:
        """Return the buffers that a state_dict holds, by name; they are this rank's own."""
        lasting = {_plain(name) for name in self.model.state_dict(keep_vars=True)}
        named = {_plain(name): buffer for name, buffer in self.model.named_buffers()}
        return {name: read_whole(buffer) for name, buffer in sorted(named.items()) if name in lasting}

    def _reshard(self) -> None:
        """Have FSDP2's parameters in their shards: after a forward pass alone, some are still whole."""
        if "torch.distributed.fsdp" in sys.modules:
            for module in self.model.modules():
                if callable(reshard := getattr(module, "reshard", None)):
                    reshard()

    def _named(self) -> dict[str, nn.Parameter]:
        self._reshard()
        return {_plain(name): parameter for name, parameter in sorted(self.model.named_parameters())}


def _unwrap(model: nn.Module) -> nn.Module:
    """Return the user's own module: without torch.compile's, DDP's or DataParallel's around it."""
    while True:
        if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        else:
            return model


class Masters(Mapping[str, Tensor]):
    """All parameters as float32, each made when it is asked for: a large frozen model is never there twice."""

    def __init__(self, theta: Mapping[str, Tensor], frozen: Mapping[str, Tensor]) -> None:
        self._theta, self._frozen = theta, frozen

    def __getitem__(self, name: str) -> Tensor:
        return self._theta[name] if name in self._theta else read_whole(self._frozen[name]).to(torch.float32)

    def __iter__(self) -> Iterator[str]:
        return iter([*self._theta, *self._frozen])

    def __len__(self) -> int:
        return len(self._theta) + len(self._frozen)


def _plain(name: str) -> str:
    for wrapper in WRAPPERS:
        name = name.replace(wrapper, "")
    return name


def _check(model: nn.Module, named: Mapping[str, nn.Parameter]) -> None:
    if any(type(module).__name__ == "FullyShardedDataParallel" for module in model.modules()):
        raise ConfigError("model: FSDP's first version hides the parameters; use torch.distributed.fsdp.fully_shard")
    if lazy := [name for name in named if is_lazy(named[name])]:
        raise ConfigError(f"model: without a shape yet: {list_some(lazy)}; run one batch through the model before join")
    if unmade := [name for name, p in named.items() if p.is_meta]:
        raise ConfigError(
            f"model: on the meta device, without values: {list_some(unmade)}; move it with to_empty first"
        )
    if odd := [f"{name} is {p.dtype}" for name, p in named.items() if p.is_complex()]:
        raise ConfigError(
            f"model: parameters must be real floating-point numbers: {list_some(odd)}; keep them as torch.view_as_real"
        )


def _compare(now: Tensor | None, ours: Tensor, trained: bool) -> str:
    if now is None:
        return "gone"
    if now is not ours:
        return "another tensor"
    return "frozen now" if trained else "trained now"


def _describe(row: ParameterRow | None) -> str:
    if row is None:
        return "none"
    return f"{list(row.shape)} {'trained' if row.trained else 'frozen'}"
