"""Messages that the codec takes and no honest peer says: every field within its limits, and nonsense otherwise."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

from p2pnet.identity import PeerId
from p2pnet.wire.codec import Message, Range, Size, encode
from p2pnet.wire.signing import Signed, sign_message

M = TypeVar("M", bound=Message)


@dataclass
class Pool:
    """What fields are filled with: values that mean something, so that nonsense gets beyond the first check."""

    peers: Sequence[PeerId]
    sign: Callable[[PeerId, bytes], bytes]
    digests: list[bytes] = field(default_factory=list)  # 32 bytes each
    raws: list[bytes] = field(default_factory=list)  # encoded messages, signed or not
    numbers: list[int] = field(default_factory=lambda: [0, 1, 2, 3, 64, 255, 257, 2**31, 2**32 - 1])
    overrides: dict[str, list[Any]] = field(default_factory=dict)  # by field name, drawn most of the time

    def make(self, rng: random.Random, cls: type[M]) -> M:
        """A message of this class within its limits."""
        hints = _hints(cls)
        names = [one.name for one in dataclasses.fields(cls)]  # type: ignore[arg-type]
        for _ in range(100):
            made = cls(**{name: self._field(rng, name, hints[name]) for name in names})
            with suppress(ValueError):  # an override that this class does not allow
                encode(made)
                return made
        raise AssertionError(f"nothing fits {cls.__name__}")

    def signed(self, rng: random.Random, cls: type[M], author: PeerId | None = None) -> Signed[M]:
        """The same, signed by one of the peers; kept, to turn up inside of others."""
        author = author or rng.choice(self.peers)
        made = sign_message(self.make(rng, cls), author, lambda data: self.sign(author, data))
        self.keep(rng, made.raw)
        return made

    def keep(self, rng: random.Random, raw: bytes) -> None:
        """Let this turn up inside of later messages."""
        if len(self.raws) < 64:
            self.raws.append(raw)
        else:
            self.raws[rng.randrange(64)] = raw

    def _field(self, rng: random.Random, name: str, hint: Any) -> Any:
        if name in self.overrides and rng.random() < 0.8:
            return rng.choice(self.overrides[name])
        limit: Any = None
        if get_origin(hint) is Annotated:
            hint, limit = get_args(hint)[:2]
        if getattr(hint, "__supertype__", None) is not None:
            return rng.choice(self.peers)
        if hint is int:
            return self._number(rng, limit)
        if hint is bytes:
            return self._bytes(rng, limit)
        if hint is str:
            return "x" * rng.randint(limit.low, max(limit.low, min(limit.high, 8)))
        if get_origin(hint) is tuple:
            count = min(limit.high, max(limit.low, rng.choice((0, 1, 2, 3, 5))))
            made = [self._field(rng, "", get_args(hint)[0]) for _ in range(count)]
            return tuple(sorted(made) if rng.random() < 0.5 and all(type(one) is bytes for one in made) else made)
        return self.make(rng, hint)

    def _number(self, rng: random.Random, limit: Range) -> int:
        fitting = [number for number in self.numbers if limit.low <= number <= limit.high]
        return rng.choice([*fitting, limit.low, limit.high])

    def _bytes(self, rng: random.Random, limit: Size) -> bytes:
        known = [one for one in (*self.digests, *self.raws, *self.peers) if limit.admits(len(one))]
        if known and rng.random() < 0.9:
            return rng.choice(known)
        return rng.randbytes(rng.choice((limit.low, limit.low if limit.high < 0 else min(limit.high, 300))))


def size_of(value: object) -> int:
    """About how many items an object holds, all that is inside of it counted: what must not grow without end."""
    seen: set[int] = set()
    pending, count = [value], 0
    while pending:
        one = pending.pop()
        if id(one) in seen or isinstance(one, type | Callable):  # type: ignore[arg-type]
            continue
        seen.add(id(one))
        count += 1
        if isinstance(one, bytes | str):
            count += len(one) // 64
        elif isinstance(one, dict):
            pending += [*one.keys(), *one.values()]
        elif isinstance(one, list | tuple | set | frozenset):
            pending += one
        elif hasattr(one, "__iter__") and hasattr(one, "__len__"):
            pending += list(one)
        else:
            pending += list(getattr(one, "__dict__", {}).values())
            slots = [name for cls in type(one).__mro__ for name in getattr(cls, "__slots__", ())]
            pending += [getattr(one, name) for name in slots if isinstance(name, str) and hasattr(one, name)]
    return count


@cache
def _hints(cls: type) -> dict[str, Any]:
    return get_type_hints(cls, include_extras=True)
