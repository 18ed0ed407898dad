"""Turn messages into bytes and back: one msgpack array each, one encoding only. Contract: protocols/wire-1.md.

A message is a frozen dataclass whose fields are annotated with their limits:

    @dataclass(frozen=True, slots=True)
    class Ping(Message):
        protocol, kind = "ping/1", 1
        nonce: Annotated[bytes, Size(8)]
        sent_ms: Annotated[int, Range(0, 2**40)]

The array on the wire is `[kind, nonce, sent_ms]`. Nothing else is accepted: what was decoded is encoded again and
compared, so that one message has one encoding (msgpack itself admits non-minimal integers).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, TypeVar, get_args, get_origin, get_type_hints

import msgpack

from p2pnet.errors import WireError

MESSAGE_BYTES_MAX = 1 << 20  # one control message; bulk data travels in frames of its own (exchange-1)
DEPTH_MAX = 4  # arrays within arrays; the deepest message is a list of signed messages


@dataclass(frozen=True, slots=True)
class Range:
    """An integer from `low` to `high`, both included."""

    low: int
    high: int


@dataclass(frozen=True, slots=True)
class Size:
    """Bytes (or the UTF-8 bytes of a text) from `low` to `high` long; exactly `low` when `high` is left out."""

    low: int
    high: int = -1

    def admits(self, length: int) -> bool:
        """Tell whether a length is allowed."""
        return self.low <= length <= (self.low if self.high < 0 else self.high)


@dataclass(frozen=True, slots=True)
class Count:
    """A list of `low` to `high` items."""

    low: int
    high: int


class Message:
    """A message of one protocol; subclasses are frozen dataclasses with annotated fields."""

    __slots__ = ()
    protocol: ClassVar[str]
    kind: ClassVar[int]


M = TypeVar("M", bound=Message)
Check = Callable[[Any, str], Any]

_CHECKS: dict[type[Message], list[tuple[str, Check]]] = {}  # by class, built when it is first met

Digest = Annotated[bytes, Size(32)]
Key = Annotated[bytes, Size(32)]
Flag = Annotated[int, Range(0, 1)]
Uint32 = Annotated[int, Range(0, 2**32 - 1)]
Uint63 = Annotated[int, Range(0, 2**63 - 1)]
Uint64 = Annotated[int, Range(0, 2**64 - 1)]


def encode(message: Message) -> bytes:
    """Encode a message as one msgpack array, `[kind, field, ...]`.

    Raises ValueError when a field is outside its limits: that is our own fault, never a peer's.
    """
    try:
        _check_fields(type(message), _fields_of(message))
    except WireError as error:
        raise ValueError(str(error)) from error
    return pack([message.kind, *(_lower(value) for value in _fields_of(message))])


def decode(classes: tuple[type[M], ...], data: bytes, bytes_max: int = MESSAGE_BYTES_MAX) -> M:
    """Decode one message of the given classes, or raise WireError with the rule of wire-1 that it breaks."""
    items = unpack(data, bytes_max)
    if not isinstance(items, list) or not items or type(items[0]) is not int:
        raise WireError("wire-1/R2", "a message is an array that starts with its kind")
    for cls in classes:
        if cls.kind == items[0]:
            return _raise_up(cls, items[1:])
    raise WireError("wire-1/R3", f"no message of kind {items[0]} here")


def pack(value: object) -> bytes:
    """Encode nested lists of integers, bytes and texts as msgpack."""
    return bytes(msgpack.packb(value, use_bin_type=True))


def unpack(data: bytes, bytes_max: int) -> Any:
    """Decode nested lists of integers, bytes and texts; only the shortest encoding of a value is accepted."""
    if len(data) > bytes_max:
        raise WireError("wire-1/R1", f"{len(data)} bytes, at most {bytes_max}")
    try:
        value = msgpack.unpackb(
            data, raw=False, use_list=True, strict_map_key=True, max_map_len=0, max_ext_len=0, ext_hook=_no_ext
        )
    except (ValueError, msgpack.UnpackException, RecursionError, UnicodeDecodeError) as error:
        raise WireError("wire-1/R1", f"not msgpack: {error}") from None
    _check_plain(value, 0)
    if pack(value) != data:
        raise WireError("wire-1/R4", "not the shortest encoding")
    return value


def _no_ext(code: int, _data: bytes) -> Any:
    raise WireError("wire-1/R1", f"extension type {code}")


def _check_plain(value: object, depth: int) -> None:
    """Refuse what a message never holds: maps, floats, nil, booleans, extensions, deep nesting."""
    if type(value) is list:
        if depth >= 2 * DEPTH_MAX:
            raise WireError("wire-1/R1", "nested too deeply")
        for item in value:
            _check_plain(item, depth + 1)
    elif type(value) not in (int, bytes, str):
        raise WireError("wire-1/R1", f"a {type(value).__name__} is not allowed")


def _fields_of(message: Message) -> list[Any]:
    return [getattr(message, field.name) for field in dataclasses.fields(message)]  # type: ignore[arg-type]


def _lower(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_lower(item) for item in value]
    if isinstance(value, Message):
        return [value.kind, *(_lower(item) for item in _fields_of(value))]
    return value


def _raise_up(cls: type[M], values: list[Any]) -> M:
    return cls(*_check_fields(cls, values))


def _check_fields(cls: type[Message], values: list[Any]) -> list[Any]:
    checks = _checks(cls)
    if len(values) != len(checks):
        raise WireError("wire-1/R3", f"{cls.__name__} has {len(checks)} fields, found {len(values)}")
    return [check(value, f"{cls.__name__}.{name}") for (name, check), value in zip(checks, values, strict=True)]


def _checks(cls: type[Message]) -> list[tuple[str, Check]]:
    found = _CHECKS.get(cls)
    if found is None:
        hints = get_type_hints(cls, include_extras=True)
        fields = dataclasses.fields(cls)  # type: ignore[arg-type]
        found = _CHECKS[cls] = [(field.name, _check_of(hints[field.name])) for field in fields]
    return found


def _check_of(hint: Any) -> Check:
    """Build the check of a field from its annotation: int, bytes, str, a nested message, or a tuple of one of them."""
    limit: Any = None
    if get_origin(hint) is Annotated:
        hint, limit = get_args(hint)[:2]
    supertype = getattr(hint, "__supertype__", None)  # NewType: PeerId is 32 bytes
    if supertype is not None:
        return _check_of(Annotated[supertype, limit or Size(32)])
    if hint is int and isinstance(limit, Range):
        return functools.partial(_check_int, limit)
    if hint in (bytes, str) and isinstance(limit, Size):
        return functools.partial(_check_sized, hint, limit)
    if get_origin(hint) is tuple and isinstance(limit, Count):
        return functools.partial(_check_list, _check_of(get_args(hint)[0]), limit)
    if isinstance(hint, type) and issubclass(hint, Message):
        return functools.partial(_check_nested, hint)
    raise TypeError(f"a field of type {hint} needs a limit")


def _check_int(limit: Range, value: Any, where: str) -> int:
    if type(value) is not int or not limit.low <= value <= limit.high:
        raise WireError("wire-1/R3", f"{where}: an integer from {limit.low} to {limit.high}")
    return value


def _check_sized(kind: type, limit: Size, value: Any, where: str) -> Any:
    size = len(value.encode()) if isinstance(value, str) else len(value) if isinstance(value, bytes) else -1
    if type(value) is not kind or not limit.admits(size):
        raise WireError("wire-1/R3", f"{where}: {kind.__name__} of {limit.low} to {max(limit.low, limit.high)} bytes")
    return value


def _check_list(item: Check, limit: Count, value: Any, where: str) -> tuple[Any, ...]:
    if type(value) not in (list, tuple) or not limit.low <= len(value) <= limit.high:
        raise WireError("wire-1/R3", f"{where}: a list of {limit.low} to {limit.high} items")
    return tuple(item(each, where) for each in value)


def _check_nested(cls: type[Message], value: Any, where: str) -> Message:
    if type(value) is cls:  # on the way out: a field inside must not be one that every receiver refuses
        _check_fields(cls, _fields_of(value))
        return value
    if type(value) is not list or not value or value[0] != cls.kind or type(value[0]) is not int:
        raise WireError("wire-1/R3", f"{where}: a {cls.__name__}")
    return _raise_up(cls, value[1:])
