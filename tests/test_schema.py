from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pnet.errors import ConfigError
from p2pnet.schema import FILE_BYTES_MAX, Length, Parsed, Range, Step, load, load_file


def parse_even(text: str) -> int:
    if int(text) % 2:
        raise ValueError(text)
    return int(text)


@dataclass(frozen=True, slots=True)
class Red:
    kind: Literal["red"]
    shade: Annotated[int, Range(1, 3)] = 2


@dataclass(frozen=True, slots=True)
class Blue:
    kind: Literal["blue"]
    depth: Annotated[float, Range(0.0, 1.0), Step(2)]


@dataclass(frozen=True, slots=True)
class Inner:
    flag: bool = False
    even: Annotated[int, Parsed(parse_even, "an even number in quotes")] = 0

    def __post_init__(self) -> None:
        if self.flag and self.even:
            raise ValueError("flag: not together with even")


@dataclass(frozen=True, slots=True)
class Outer:
    name: Annotated[str, Length(1, 8)]
    colour: Red | Blue
    inner: Inner = field(default_factory=Inner)
    mode: Literal["slow", "fast"] = "slow"
    path: Path | None = None
    count: int | None = None
    numbers: Annotated[tuple[Annotated[int, Range(0, 9)], ...], Length(0, 3)] = ()


GOOD: dict[str, Any] = {"name": "x", "colour": {"kind": "red"}}


def problems(changes: dict[str, Any]) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(Outer, {**GOOD, **changes}, "file.toml")
    return str(caught.value).split("\n")


def test_tables_become_dataclasses_and_defaults_fill_the_rest() -> None:
    table = {
        **GOOD,
        "colour": {"kind": "blue", "depth": 1},
        "inner": {"flag": True},
        "mode": "fast",
        "path": "a/b",
        "count": 3,
        "numbers": [1, 2],
    }
    expected = Outer("x", Blue("blue", 1.0), Inner(flag=True), "fast", Path("a/b"), 3, (1, 2))
    assert load(Outer, table, "file.toml") == expected
    assert load(Outer, GOOD, "file.toml") == Outer("x", Red("red"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"nmae": 1}, "nmae: unknown key; did you mean name?"),
        ({"zzz": 1}, "zzz: unknown key; known here: name, colour, inner, mode, path, count, numbers"),
        ({"name": 3}, "name: found 3 (a whole number); allowed is text, 1 to 8 characters"),
        ({"name": ""}, "name: found '' (text); allowed is text, 1 to 8 characters"),
        ({"name": "a\x1b[2J"}, "name: found 'a\\x1b[2J' (text); allowed is text, 1 to 8 characters"),
        ({"mode": "fats"}, 'mode: found \'fats\' (text); allowed is one of "slow", "fast"'),
        ({"mode": 1}, 'mode: found 1 (a whole number); allowed is one of "slow", "fast"'),
        ({"count": True}, "count: found true (true or false); allowed is a whole number"),
        ({"count": 1.0}, "count: found 1.0 (a number); allowed is a whole number"),
        ({"path": ""}, "path: found '' (text); allowed is a path"),
        ({"path": "a\0b"}, "path: found 'a\\x00b' (text); allowed is a path"),
        ({"inner": {"flag": 1}}, "[inner] flag: found 1 (a whole number); allowed is true or false"),
        ({"inner": {"even": "3"}}, "[inner] even: found '3' (text); allowed is an even number in quotes"),
        ({"inner": {"flag": True, "even": "2"}}, "[inner] flag: not together with even"),
        ({"inner": []}, "inner: found [] (a list); allowed is a table [inner]"),
        ({"colour": {"kind": "green"}}, '[colour] kind: found \'green\' (text); allowed is one of "red", "blue"'),
        ({"colour": {"kind": []}}, '[colour] kind: found [] (a list); allowed is one of "red", "blue"'),
        ({"colour": {}}, '[colour] kind: missing; allowed is one of "red", "blue"'),
        ({"colour": {"kind": "red", "depth": 1}}, "[colour] depth: unknown key; known here: kind, shade"),
        (
            {"colour": {"kind": "red", "shade": 4}},
            "[colour] shade: found 4 (a whole number); allowed is a whole number from 1 to 3",
        ),
        ({"colour": {"kind": "blue"}}, "[colour] depth: missing; needed is a number from 0 to 1, at most 2 decimals"),
        (
            {"colour": {"kind": "blue", "depth": 0.123}},
            "[colour] depth: found 0.123 (a number); allowed is a number from 0 to 1, at most 2 decimals",
        ),
        (
            {"numbers": [1, 2, 3, 4]},
            "numbers: found [1, 2, 3, 4] (a list); allowed is a list, each a whole number from 0 to 9, 0 to 3 of them",
        ),
        ({"numbers": [1, 10]}, "numbers[1]: found 10 (a whole number); allowed is a whole number from 0 to 9"),
        (
            {"numbers": 1},
            "numbers: found 1 (a whole number); allowed is a list, each a whole number from 0 to 9, 0 to 3 of them",
        ),
    ],
)
def test_the_message_says_which_key_what_was_found_and_what_is_allowed(changes: dict[str, Any], message: str) -> None:
    assert problems(changes) == [f"file.toml: {message}"]


def test_all_mistakes_are_told_at_once() -> None:
    assert len(problems({"name": 1, "mode": 2, "zzz": 3, "inner": {"flag": 4}, "numbers": ["5"]})) == 5


def test_a_missing_key_says_what_it_needs() -> None:
    with pytest.raises(ConfigError, match="name: missing; needed is text, 1 to 8 characters"):
        load(Outer, {"colour": {"kind": "red"}}, "file.toml")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 10**400])
def test_numbers_that_are_none_are_refused(value: float) -> None:
    assert len(problems({"colour": {"kind": "blue", "depth": value}})) == 1


def test_a_long_value_is_not_repeated_in_full() -> None:
    assert len(problems({"name": "x" * 100_000})[0]) < 200


def test_relative_paths_start_at_the_files_own_folder(tmp_path: Path) -> None:
    (tmp_path / "swarm.toml").write_text('name = "x"\npath = "data"\ncolour.kind = "red"\n')
    assert load_file(Outer, tmp_path / "swarm.toml").path == tmp_path / "data"
    (tmp_path / "swarm.toml").write_text('name = "x"\npath = "/data"\ncolour.kind = "red"\n')
    assert load_file(Outer, tmp_path / "swarm.toml").path == Path("/data")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"name = ", "not TOML"),
        (b"name = 1\nname = 2\n", "not TOML"),
        (b"\xff\xfe", "not UTF-8"),
        (b"#" * (FILE_BYTES_MAX + 1), "not a settings file"),
    ],
)
def test_a_file_that_is_no_settings_file_says_why(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "file.toml").write_bytes(data)
    with pytest.raises(ConfigError, match=message):
        load_file(Outer, tmp_path / "file.toml")


def test_a_file_that_is_missing_or_a_folder_says_so(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing.toml"):
        with pytest.raises(ConfigError, match="cannot read it"):
            load_file(Outer, path)


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.datetimes()
anything = st.recursive(scalars, lambda one: st.lists(one) | st.dictionaries(st.text(), one), max_leaves=5)
keys = st.sampled_from(
    ["name", "colour", "inner", "mode", "path", "count", "numbers", "kind", "shade", "depth", "flag"]
)


@settings(max_examples=50)
@given(table=st.dictionaries(keys | st.text(), anything | st.dictionaries(keys, anything)))
def test_whatever_a_file_holds_the_answer_is_a_value_or_a_config_error(table: dict[str, Any]) -> None:
    with contextlib.suppress(ConfigError):
        assert isinstance(load(Outer, table, "file.toml"), Outer)
