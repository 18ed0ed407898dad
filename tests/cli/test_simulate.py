from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Run

QUICK = ("--members", 4, "--rounds", 2, "--params", "1M", "--train", 5)


def test_a_swarm_is_played_and_told_in_words(run: Run) -> None:
    done = run("simulate", *QUICK)
    assert done.status == 0
    assert done.out.startswith("4 members, 2 rounds asked for: 2 sealed, 0 void, 0 stalled\n")
    for word in ("a round", "control", "copies of a message in gossip", "audits"):
        assert word in done.out
    assert "events" in done.err


def test_the_same_seed_writes_the_same_json_with_every_setting_in_it(run: Run) -> None:
    first, again = (run("simulate", *QUICK, "--seed", 3, "--churn", 0.25, "--json") for _ in range(2))
    assert first.out == again.out
    assert first.json["rounds"]["sealed"] == 2
    assert first.json["scenario"]["churn"] == 0.25
    assert first.json["scenario"]["seed"] == 3
    assert run("simulate", *QUICK, "--seed", 4, "--json").out != first.out


def test_a_file_says_what_to_play_and_the_command_line_goes_before_it(run: Run, tmp_path: Path) -> None:
    lines = ["members = 5", 'params = "1M"', "train_s = 5", "rounds = 3", "[[links]]", 'up = "5M"', "nat = 0.5"]
    (tmp_path / "world.toml").write_text("\n".join(lines))
    found = run("simulate", "--config", "world.toml", "--rounds", 2, "--json").json
    assert (found["members"], found["rounds"]["asked"]) == (5, 2)
    assert found["scenario"]["links"][0]["up"] == 5_000_000


def test_two_runs_are_set_side_by_side(run: Run, tmp_path: Path) -> None:
    (tmp_path / "base.json").write_text(run("simulate", *QUICK, "--json").out)
    done = run("simulate", *QUICK, "--up", "1M", "--compare", "base.json")
    assert "compared: up 100000000 -> 1000000" in done.out
    row = next(line for line in done.out.splitlines() if "of it roster to decided" in line and "%" in line)
    assert "+" in row
    compared = run("simulate", *QUICK, "--up", "1M", "--compare", "base.json", "--json").json["compared"]
    before, after = compared["exchange_s.median"]
    assert after > before
    same = run("simulate", *QUICK, "--compare", "base.json")
    assert "compared: the same scenario" in same.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--members", 0), "members: found 0"),
        (("--up", "fast"), "up: found 'fast'"),
        (("--params", "-3"), "params: found '-3'"),
        (("--loss", "1.5"), "loss: found 1.5"),
        (("--liars", 2, "--members", 4), "liars: 2 of 4 voters"),
        (("--config", "none.toml"), "none.toml: cannot read it"),
        (("--compare", "none.json"), "--compare: none.json"),
    ],
)
def test_what_cannot_be_played_is_said_at_once(run: Run, arguments: tuple[object, ...], message: str) -> None:
    done = run("simulate", *arguments)
    assert done.status == 2
    assert message in done.err
    assert done.out == ""


def test_mistakes_in_a_file_are_told_all_at_once(run: Run, tmp_path: Path) -> None:
    (tmp_path / "world.toml").write_text('member = 4\nloss = 2.0\nlinks = [{share = 0.5, speed = "1M"}]')
    done = run("simulate", "--config", "world.toml")
    assert done.status == 2
    for message in ("member: unknown key; did you mean members?", "loss: found 2.0", "[links[0]] speed: unknown key"):
        assert message in done.err
    (tmp_path / "shares.toml").write_text("[[links]]\nshare = 0.5")
    assert "the shares add up to 0.5" in run("simulate", "--config", "shares.toml").err


def test_a_base_that_is_none_is_named(run: Run, tmp_path: Path) -> None:
    for text in ("not json", "[1, 2]", json.dumps({"scenario": 3})):
        (tmp_path / "base.json").write_text(text)
        done = run("simulate", *QUICK, "--compare", "base.json")
        assert done.status == 2
        assert "base.json" in done.err
