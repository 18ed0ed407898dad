"""Keep optimizers' state on disk: moments and step counts as tensors beside a JSON text, never hyperparameters.

Which learning rate, which decay: the user's code and schedules say, also after a restart. What is kept is what no code
can make again. `Optimizer.load_state_dict` is not used: it brings the old rates back and rounds fp32 moments of bf16
parameters to bf16.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from p2pnet.train.shards import is_sharded, local_part, shard_like

log = logging.getLogger(__name__)

PREFIX: Final = "optimizer."  # of the tensors' names in the file
TEXT: Final = PREFIX + "json"  # what belongs where, as bytes
# What a group holds for the user's code and the schedulers to say; every other number in a group that has changed since
# the start is state (schedule-free and Prodigy keep theirs there).
HYPERPARAMETERS: Final = frozenset(
    {"lr", "initial_lr", "max_lr", "min_lr", "swa_lr", "betas", "momentum", "base_momentum", "max_momentum",
     "weight_decay", "eps"}
)  # fmt: skip
KINDS: Final = frozenset(
    {"float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool"}
)


class Moments:
    """What one process's inner optimizers have gathered: one, several (Muon for matrices, AdamW), or none.

    A sharded optimizer's state (FSDP2) is this process's shards.
    """

    def __init__(self, optimizers: Optimizer | Sequence[Optimizer] | None) -> None:
        """Raises TypeError for what is no optimizer."""
        given: list[Any] = (
            [] if optimizers is None else [optimizers] if isinstance(optimizers, Optimizer) else list(optimizers)
        )
        if odd := [type(one).__name__ for one in given if not isinstance(one, Optimizer)]:
            raise TypeError(f"optimizer: found {odd[0]}, expected a torch.optim.Optimizer or a sequence of them")
        self.optimizers: Final[tuple[Optimizer, ...]] = tuple(given)
        self._first = [[_numbers(group) for group in one.param_groups] for one in given]
        self._left_out: set[str] = set()  # said already

    def dump(self) -> dict[str, Tensor]:
        """Return the state as tensors for a safetensors file, which may be the optimizers' own.

        What cannot be kept (objects, tensors of unusual kinds) is left out, which one log line says.
        """
        tensors: dict[str, Tensor] = {}
        parts = [self._dump_one(number, tensors) for number in range(len(self.optimizers))]
        text = bytearray(json.dumps(parts), "utf-8")
        return tensors | {TEXT: torch.frombuffer(text, dtype=torch.uint8)}

    def restore(self, tensors: Mapping[str, Tensor]) -> list[str]:
        """Go on from what `dump` returned; returns a sentence for each state that does not fit and is dropped."""
        try:
            parts = json.loads(tensors[TEXT].numpy().tobytes()) if TEXT in tensors else []
        except (ValueError, TypeError, RecursionError):
            parts = None
        if not isinstance(parts, list) or len(parts) != len(self.optimizers):
            found = len(parts) if isinstance(parts, list) else "unreadable"
            return [f"optimizers: saved were {found}, there are {len(self.optimizers)}: all begin anew"]
        notes = (_restore(one, part, tensors) for one, part in zip(self.optimizers, parts, strict=True))
        return [note for note in notes if note]

    def forget_not_finite(self) -> int:
        """Forget what is held about parameters for which there is a NaN or infinity; returns for how many.

        PyTorch's optimizers begin anew where they have no state.
        """
        spoilt = [
            (optimizer, parameter)
            for optimizer in self.optimizers
            for parameter, state in optimizer.state.items()
            if any(not bool(torch.isfinite(local_part(tensor)).all()) for tensor in _tensors(state))
        ]
        for optimizer, parameter in spoilt:
            del optimizer.state[parameter]
        return len(spoilt)

    def _dump_one(self, number: int, tensors: dict[str, Tensor]) -> dict[str, Any]:
        optimizer = self.optimizers[number]
        state, left_out = [], set()
        for place, parameter in _places(optimizer):
            if not (held := optimizer.state.get(parameter)):
                continue
            try:
                state.append((place, _format(held, tensors, parameter)))
            except TypeError as error:
                left_out.add(str(error))
        groups = [
            {key: value for key, value in _numbers(group).items() if key not in first or first[key] != value}
            for group, first in zip(optimizer.param_groups, self._first[number], strict=False)
        ]
        name = type(optimizer).__name__
        if left_out and name not in self._left_out:
            self._left_out.add(name)
            log.warning(
                "%s: a part of its state cannot be kept over a restart: %s", name, "; ".join(sorted(left_out)[:3])
            )
        return {"table": _table(optimizer), "state": state, "groups": groups}


def _restore(optimizer: Optimizer, part: Any, tensors: Mapping[str, Tensor]) -> str:
    """Give an optimizer its state back, all or nothing; returns what is wrong with it, if anything is."""
    name = type(optimizer).__name__
    try:
        if part["table"] != _table(optimizer):
            return f"{name}: saved with another optimizer, other parameters or other groups: it begins anew"
        states = []
        for (group, place), saved in part["state"]:
            parameter: Tensor = optimizer.param_groups[group]["params"][place]
            state = _parse(saved, tensors, parameter)
            if _is_step_on_device(optimizer.param_groups[group], state):
                state["step"] = state["step"].to(parameter.device, torch.float32)
            states.append((parameter, state))
        numbers = [_numbers(saved) for saved in part["groups"]]
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        return f"{name}: the saved state is damaged ({error!r}): it begins anew"
    for parameter, state in states:
        optimizer.state[parameter] = state
    for group, saved in zip(optimizer.param_groups, numbers, strict=False):
        group.update(saved)
    return ""


def _is_step_on_device(group: Mapping[str, Any], state: Any) -> bool:
    """Tell whether the step count must lie where the parameter does: the user may have changed the kernels since."""
    return bool(group.get("capturable") or group.get("fused")) and isinstance(state.get("step"), Tensor)


def _places(optimizer: Optimizer) -> Iterator[tuple[tuple[int, int], Tensor]]:
    """Each parameter with its group and its place there: what is the same after a restart."""
    for number, group in enumerate(optimizer.param_groups):
        for place, parameter in enumerate(group["params"]):
            yield (number, place), parameter


def _table(optimizer: Optimizer) -> list[Any]:
    """What a saved state must fit: the optimizer's name, the shapes of each group (of the shards, for sharded ones)."""
    groups = [[list(local_part(parameter).shape) for parameter in group["params"]] for group in optimizer.param_groups]
    return [type(optimizer).__name__, groups]


def _numbers(group: Mapping[str, Any]) -> dict[str, Any]:
    """The plain numbers of a group that no user's code and no scheduler says."""
    return {k: v for k, v in group.items() if k not in HYPERPARAMETERS and type(v) in (bool, int, float)}


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for inner in value.values() if isinstance(value, Mapping) else value:
            yield from _tensors(inner)


def _format(value: Any, tensors: dict[str, Tensor], parameter: Tensor) -> Any:
    """Return a value as JSON; its tensors go into `tensors`. Raises TypeError that says what cannot be kept."""
    match value:
        case None | bool() | int() | float() | str():
            return value
        case Tensor():
            return {"tensor": _keep(value, tensors, parameter), "like": _kind(value, parameter)}
        case list() | tuple():
            inner = [_format(each, tensors, parameter) for each in value]
            return {"tuple" if isinstance(value, tuple) else "list": inner}
        case Mapping():
            if odd := [key for key in value if not isinstance(key, str | int)]:
                raise TypeError(f"a key of {type(odd[0]).__name__}")
            return {"dict": [(key, _format(each, tensors, parameter)) for key, each in value.items()]}
        case _:
            raise TypeError(f"a {type(value).__name__}")


def _keep(value: Tensor, tensors: dict[str, Tensor], parameter: Tensor) -> str:
    kind = str(value.dtype).removeprefix("torch.")
    if is_sharded(value) and not (is_sharded(parameter) and value.placements == parameter.placements):
        raise TypeError("a tensor sharded otherwise than its parameter")
    local = local_part(value).detach()
    if type(local) not in (Tensor, nn.Parameter) or kind not in KINDS or local.layout != torch.strided:
        raise TypeError(f"a {type(local).__name__} of {kind}")
    whole = local.contiguous()
    if whole.untyped_storage().nbytes() != whole.numel() * whole.itemsize:  # a view of something larger
        whole = whole.clone()
    name = f"{PREFIX}{len(tensors)}"
    tensors[name] = whole
    return name


def _kind(value: Tensor, parameter: Tensor) -> str:
    """Where a tensor belongs: a shard like its parameter, beside it on its device, or on the CPU (step counts)."""
    if is_sharded(value):
        return "shard"
    return "device" if value.device == parameter.device else "cpu"


def _parse(value: Any, tensors: Mapping[str, Tensor], parameter: Tensor) -> Any:
    """Undo `_format`. Raises KeyError, TypeError or ValueError for what it cannot have returned."""
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        saved, like = tensors[value["tensor"]], value["like"]
        local = local_part(parameter)
        if saved.shape != local.shape:
            return saved.to("cpu" if like == "cpu" else local.device, copy=True)
        mine = torch.empty_like(local, dtype=saved.dtype, device="cpu" if like == "cpu" else None, requires_grad=False)
        mine.copy_(saved)  # in the parameter's memory format
        if like != "shard":
            return mine
        if not is_sharded(parameter):
            raise ValueError("a shard, of a parameter that is whole")
        return shard_like(mine, parameter)
    if "list" in value or "tuple" in value:
        inner = [_parse(each, tensors, parameter) for each in value["list" if "list" in value else "tuple"]]
        return inner if "list" in value else tuple(inner)
    return {key: _parse(each, tensors, parameter) for key, each in value["dict"]}
