"""Fill frozen dataclasses from TOML, strictly: the operator gets every mistake at once, with what is allowed.

A field is a bool, int, float, str, Path, Literal, tuple[X, ...], X | None, another dataclass, or a union of dataclasses
told apart by their `kind`. `Annotated` adds Range, Length, Step or Parsed. Unknown keys are errors.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import math
import tomllib
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar, Union, get_args, get_origin

from p2pnet.errors import ConfigError

T = TypeVar("T")

FILE_BYTES_MAX: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Range:
    """A number from `low` to `high`, both included."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Length:
    """Characters of a text, or members of a list, from `low` to `high`."""

    low: int
    high: int


@dataclass(frozen=True, slots=True)
class Step:
    """A number with at most so many decimals: it travels as an integer (ppm, ms), and must not change on the way."""

    decimals: int = 6


@dataclass(frozen=True, slots=True)
class Parsed:
    """A text that `parse` turns into the field's type, with `ValueError` for what is not `allowed`."""

    parse: Callable[[str], object]
    allowed: str


def load_file(cls: type[T], path: Path) -> T:
    """Read a TOML file into `cls`; relative paths in it start at its own folder. Raises `ConfigError`."""
    try:
        with open(path, "rb") as file:
            data = file.read(FILE_BYTES_MAX + 1)
        if len(data) > FILE_BYTES_MAX:
            raise ConfigError(f"{path}: over {FILE_BYTES_MAX} bytes; not a settings file?")
        mapping = tomllib.loads(data.decode())
    except OSError as error:
        raise ConfigError(f"{path}: cannot read it: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text (byte {error.start})") from error
    except RecursionError as error:
        raise ConfigError(f"{path}: not TOML for settings: nested too deeply") from error
    except ValueError as error:  # and a number of thousands of digits is one that tomllib lets through
        raise ConfigError(f"{path}: not TOML: {error}") from error
    return load(cls, mapping, str(path), Path(path).parent)


def load(cls: type[T], mapping: Mapping[str, object], source: str, directory: Path | None = None) -> T:
    """Build `cls` from tables; `ConfigError` lists every key that is unknown, missing, ill-typed or out of bounds.

    source: where it came from, for the message.   directory: where relative paths start; as they are when None.
    """
    loader = _Loader(source, directory)
    made = loader.table(cls, mapping, ())
    if loader.problems:
        raise ConfigError("\n".join(loader.problems))
    return typing.cast(T, made)


class _InvalidError(Exception):
    """A value is not what its field allows; the message says what is."""


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls, include_extras=True)


@dataclass(slots=True)
class _Loader:
    source: str
    directory: Path | None
    problems: list[str] = field(default_factory=list)

    def table(self, cls: type, mapping: Mapping[str, object], path: tuple[str, ...]) -> object | None:
        """Return an instance, or None after noting why there is none."""
        fields = {one.name: one for one in dataclasses.fields(cls)}
        before, values = len(self.problems), {}
        for key in sorted(mapping.keys() - fields.keys()):
            close = difflib.get_close_matches(key, fields, n=1)
            hint = f"did you mean {close[0]}?" if close else f"known here: {', '.join(fields)}"
            self._note(path, f"{key}: unknown key; {hint}")
        for name, one in fields.items():
            if name in mapping:
                values[name] = self._value(_hints(cls)[name], mapping[name], (*path, name))
            elif one.default is dataclasses.MISSING and one.default_factory is dataclasses.MISSING:
                self._note(path, f"{name}: missing; needed is {_allowed(_hints(cls)[name])}")
        if len(self.problems) > before:
            return None
        try:
            return typing.cast(object, cls(**values))
        except ValueError as error:  # from __post_init__: what no field can say alone
            self._note(path, str(error))
            return None

    def _value(self, hint: Any, found: object, path: tuple[str, ...]) -> object:
        """Return the value, or None after noting what is wrong with it."""
        inner, metadata = _strip(hint)
        options = [one for one in get_args(inner) if one is not types.NoneType] if _is_union(inner) else [inner]
        if len(options) == 1 and options[0] is not inner:
            return self._value(options[0], found, path)
        if dataclasses.is_dataclass(options[0]) and not any(isinstance(rule, Parsed) for rule in metadata):
            return self._tagged(options, found, path)
        try:
            if get_origin(inner) is tuple:
                return self._list(inner, metadata, found, path)
            return _scalar(inner, metadata, found, self.directory)
        except _InvalidError:
            self._note(path[:-1], f"{path[-1]}: found {_describe(found)}; allowed is {_allowed(hint)}")
            return None

    def _list(
        self, hint: Any, metadata: tuple[object, ...], found: object, path: tuple[str, ...]
    ) -> tuple[object, ...]:
        if not isinstance(found, list | tuple):
            raise _InvalidError
        for rule in metadata:
            if isinstance(rule, Length) and not rule.low <= len(found) <= rule.high:
                raise _InvalidError
        member = get_args(hint)[0]
        return tuple(self._value(member, one, (*path[:-1], f"{path[-1]}[{i}]")) for i, one in enumerate(found))

    def _tagged(self, options: list[Any], found: object, path: tuple[str, ...]) -> object | None:
        if not isinstance(found, Mapping):
            self._note(path[:-1], f"{path[-1]}: found {_describe(found)}; allowed is a table [{'.'.join(path)}]")
            return None
        if len(options) == 1:
            return self.table(options[0], found, path)
        kinds = {get_args(_hints(one)["kind"])[0]: one for one in options}
        chosen = [one for kind, one in kinds.items() if kind == found.get("kind")]
        if not chosen:
            what = f"found {_describe(found['kind'])}" if "kind" in found else "missing"
            self._note(path, f"kind: {what}; allowed is {_allowed(Literal[*kinds])}")
            return None
        return self.table(chosen[0], found, path)

    def _note(self, path: tuple[str, ...], problem: str) -> None:
        self.problems.append(f"{self.source}: " + (f"[{'.'.join(path)}] " if path else "") + problem)


def _is_union(hint: Any) -> bool:
    return get_origin(hint) in {Union, types.UnionType}


def _strip(hint: Any) -> tuple[Any, tuple[object, ...]]:
    """Return the type without what `Annotated` adds, and that."""
    return (get_args(hint)[0], hint.__metadata__) if get_origin(hint) is Annotated else (hint, ())


def _scalar(hint: Any, metadata: tuple[object, ...], found: object, directory: Path | None) -> object:
    for rule in metadata:
        if isinstance(rule, Parsed):
            return _parse(rule, found)
    if get_origin(hint) is Literal:
        if found not in get_args(hint) or type(found) is not type(get_args(hint)[0]):
            raise _InvalidError
        return found
    value = float(found) if hint is float and type(found) is int and abs(found) <= 2**53 else found
    if hint is Path and isinstance(value, str) and value and "\0" not in value:
        try:
            path = Path(value).expanduser()
        except RuntimeError:  # the home directory of nobody
            raise _InvalidError from None
        return directory / path if directory is not None else path
    if type(value) is not hint:  # exact: in Python True is an int
        raise _InvalidError
    for rule in metadata:
        match rule, value:
            case Range(low, high), int() | float():
                valid = low <= value <= high  # false for nan
            case Length(low, high), str():
                valid = low <= len(value) <= high and value.isprintable()
            case Step(decimals), float():
                valid = math.isfinite(value) and round(value, decimals) == value
            case _:
                raise TypeError(f"{rule} does not apply to {hint}")
        if not valid:
            raise _InvalidError
    return value


def _parse(rule: Parsed, found: object) -> object:
    if not isinstance(found, str) and type(found) is not int:  # 5_000_000 is as good as "5M"
        raise _InvalidError
    try:
        return rule.parse(str(found))
    except ValueError:
        raise _InvalidError from None


def _allowed(hint: Any) -> str:
    """Say in words what a field takes."""
    inner, metadata = _strip(hint)
    rules = {type(rule): rule for rule in metadata}
    if isinstance(parsed := rules.get(Parsed), Parsed):
        return parsed.allowed
    if get_origin(inner) is Literal:
        return "one of " + ", ".join(f'"{one}"' for one in get_args(inner))
    if _is_union(inner):
        return _allowed(get_args(inner)[0])
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "text", Path: "a path"}
    text = f"a list, each {_allowed(get_args(inner)[0])}" if get_origin(inner) is tuple else words.get(inner, "a table")
    if isinstance(bounds := rules.get(Range), Range):
        text += f" from {bounds.low:g} to {bounds.high:g}" if inner is float else f" from {bounds.low} to {bounds.high}"
    if isinstance(length := rules.get(Length), Length):
        text += f", {length.low} to {length.high} " + ("of them" if get_origin(inner) is tuple else "characters")
    return text + (f", at most {step.decimals} decimals" if isinstance(step := rules.get(Step), Step) else "")


def _describe(found: object) -> str:
    kinds = {
        bool: "true or false",
        int: "a whole number",
        float: "a number",
        str: "text",
        list: "a list",
        dict: "a table",
    }
    shown = str(found).lower() if isinstance(found, bool) else repr(found)
    return f"{shown if len(shown) <= 80 else shown[:77] + '...'} ({kinds.get(type(found), type(found).__name__)})"
