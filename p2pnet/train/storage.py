"""Tensors on disk as safetensors: written whole or not at all, never executed when read."""

from __future__ import annotations

import contextlib
import math
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save, save_file
from torch import Tensor

from p2pnet.errors import ConfigError, remedy

Kind: TypeAlias = tuple[torch.dtype, tuple[int, ...]]  # and shape

# A sound header may name a dtype that torch has not (F4, F8_E8M0): the library then raises whatever comes.
_MALFORMED = (SafetensorError, LookupError, TypeError, ValueError, RuntimeError)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Replace `path` by a file with these tensors; after a crash it holds either the old content or the new.

    Raises ConfigError with the reason when the file cannot be written; the old one is then untouched.
    """
    part = path.with_name(path.name + ".part")
    try:
        save_file({name: tensor.detach() for name, tensor in tensors.items()}, part, dict(metadata))
        _sync(part)
        part.replace(path)
        _sync(path.parent)
    except (OSError, SafetensorError) as error:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise ConfigError(f"{path}: cannot be written: {_why(error)}") from error


def read_tensors(path: Path, device: torch.device | str = "cpu") -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors and the metadata of a file; raises ConfigError when it is missing or no safetensors file."""
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except (OSError, *_MALFORMED) as error:
        raise ConfigError(f"{path}: cannot be read as safetensors: {error}") from error


def write_raw(path: Path, tensors: Iterable[Tensor]) -> None:
    """Replace `path` by the values of float32 tensors, little endian, one after the other and nothing else.

    After a crash it holds either the old content or the new. Raises ConfigError when it cannot be written.
    """
    part = path.with_name(path.name + ".part")
    try:
        with part.open("wb") as file:
            for tensor in tensors:
                file.write(tensor.detach().contiguous().view(-1).cpu().numpy().astype("<f4", copy=False).data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
        _sync(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise ConfigError(f"{path}: cannot be written: {remedy(error)}") from error


def read_raw(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Return the tensors of such a file, in the order of `shapes`, by name. Raises ConfigError for another size."""
    sizes = [math.prod(shape) for shape in shapes.values()]
    try:
        size, values = path.stat().st_size, sum(sizes)
        if size != 4 * values:
            raise ConfigError(f"{path}: has {size:,} bytes, {4 * values:,} are expected")
        flat = torch.from_numpy(np.fromfile(path, "<f4", values).astype("=f4", copy=False))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    parts = zip(shapes.items(), torch.split(flat, sizes), strict=True)
    return {name: part.view(shape) for (name, shape), part in parts}


def dump_tensors(tensors: Mapping[str, Tensor]) -> bytes:
    """Return the bytes of a safetensors file without metadata, in the order of the names."""
    return save({name: tensors[name].detach().cpu().clone() for name in sorted(tensors)})


def parse_tensors(data: bytes, what: str) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file; raises ConfigError that starts with `what` when it is none."""
    try:
        return load(data)
    except _MALFORMED as error:
        raise ConfigError(f"{what}: not a safetensors file of tensors that torch has: {error}") from error


def check_tensors(found: Mapping[str, Tensor], expected: Mapping[str, Kind], what: str) -> None:
    """Raise ConfigError unless `found` has just the expected names, dtypes and shapes, and finite values."""
    differing = [
        f"{name}: {_describe(found.get(name))}, expected {expected.get(name, 'absent')}"
        for name in sorted(found.keys() | expected.keys())
        if name not in found or expected.get(name) != (found[name].dtype, tuple(found[name].shape))
    ]
    if differing:
        raise ConfigError(f"{what}: {list_some(differing)}")
    for name, tensor in found.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ConfigError(f"{what}: {name} holds a NaN or infinity")


def list_some(items: list[str], limit: int = 20) -> str:
    """Join items for an error message, the first `limit` of them in words."""
    return "; ".join(items[:limit]) + (f"; and {len(items) - limit} more" if len(items) > limit else "")


def _describe(tensor: Tensor | None) -> str:
    return "absent" if tensor is None else str((tensor.dtype, tuple(tensor.shape)))


def _why(error: OSError | SafetensorError) -> str:
    """Say why a file cannot be written; safetensors has the system's number in its words only."""
    found = re.search(r"os error (\d+)", str(error))
    if isinstance(error, OSError) or found is None:
        return remedy(error) if isinstance(error, OSError) else str(error)
    return remedy(OSError(int(found[1]), os.strerror(int(found[1]))))


def _sync(path: Path) -> None:
    """Wait until a file, or what a folder lists, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
