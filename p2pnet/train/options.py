"""Settings of tasks and inner optimizers as a manifest carries them: every one of them, as texts. Needs no torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any, Final, TypeVar

from p2pnet.config import AdamW, BytesLmTask, Muon
from p2pnet.errors import ConfigError
from p2pnet.schema import load
from p2pnet.wire.manifest import Option

S = TypeVar("S", BytesLmTask, AdamW, Muon)

LOCAL: Final = frozenset({"kind", "text"})  # the manifest has a field for the one; the other is each peer's own


def write_options(settings: BytesLmTask | AdamW | Muon) -> tuple[Option, ...]:
    """Return the settings for a manifest, by name. What a default is today must not matter to who joins tomorrow."""
    names = sorted(field.name for field in dataclasses.fields(settings) if field.name not in LOCAL)
    return tuple(Option(name, repr(getattr(settings, name))) for name in names)


def read_task(kind: str, options: Iterable[Option]) -> BytesLmTask:
    """Read a manifest's `task` and `task_options`. Raises ConfigError for another task, missing or unfit options."""
    if kind != "bytes-lm":
        raise ConfigError(
            f"task: the swarm trains {kind!r}, built in is 'bytes-lm'; a task of one's own is joined from Python"
        )
    return _read(BytesLmTask, kind, options, "task")


def read_inner(kind: str, options: Iterable[Option]) -> AdamW | Muon:
    """Read a manifest's `inner` and `inner_options`. Raises ConfigError as `read_task` does."""
    match kind:
        case "adamw":
            return _read(AdamW, kind, options, "inner optimizer")
        case "muon":
            return _read(Muon, kind, options, "inner optimizer")
    raise ConfigError(f"inner optimizer: the swarm uses {kind!r}, built in are 'adamw' and 'muon'")


def _read(cls: type[S], kind: str, options: Iterable[Option], what: str) -> S:
    found = {option.name: _number(option.value) for option in options}
    if missing := [field.name for field in dataclasses.fields(cls) if field.name not in LOCAL | found.keys()]:
        raise ConfigError(f"manifest, {what}: without {', '.join(missing)}")
    if stray := LOCAL & found.keys():
        raise ConfigError(f"manifest, {what}: {', '.join(stray)} does not belong there")
    return load(cls, found | {"kind": kind}, f"manifest, {what}")


def _number(text: str) -> Any:
    """Return an int or a float where the text is one, else the text itself, for `load` to refuse."""
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    return text
